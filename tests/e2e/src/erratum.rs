//! A fault of QEMU's that ends hosts, mended in each emulator that is started. The main function is [`mend`].
//!
//! In QEMU 10's TCG, FLDENV, FRSTOR, FXRSTOR and XRSTOR on any emulated processor clear a flag of the first one's (IGNNE#,
//! `cpu_clear_ignne`): they read, change and write a word that the first processor changes too, and no lock is held. What it
//! writes there meanwhile is undone: that interrupts are held after a VM exit, or that nested paging is off. A host with
//! several processors then takes an interrupt with its guest's registers loaded, or reads its own page tables as the guest's,
//! and falls: once in a hundred moves of a busy guest.
//!
//! Nobody here sets that flag (port F0h does), so the instruction that clears it need not be: it becomes no operation, in
//! the memory of the new process. Where it is not found exactly once, nothing is changed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// `andl $~(1 << 7), offset(register)` without LOCK: opcode, the register in the lowest bits of the second byte, and the
/// mask behind four bytes of offset.
const OPCODE: u8 = 0x81;
const MODE: u8 = 0xa0;
const MASK: [u8; 4] = (!(1_u32 << 7)).to_le_bytes();
const BYTES: usize = 10;
const LOCK: u8 = 0xf0;
/// No operation, in as many bytes.
const NOTHING: [u8; BYTES] = [0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];

/// How often, and after what time each, a new process's memory is looked at.
const LOOKS: u32 = 5000;
const LOOK: Duration = Duration::from_millis(1);

/// Mends the emulator that has just been started; says why where it cannot.
pub(crate) fn mend(process: u32) -> Result<(), String> {
    static PLACE: OnceLock<Option<u64>> = OnceLock::new();
    let folder = format!("/proc/{process}");
    let program = fs::read_link(format!("{folder}/exe")).map_err(|error| format!("its program: {error}"))?;
    let place = PLACE.get_or_init(|| find(&fs::read(&program).ok()?));
    let place = place.ok_or("its program is not as QEMU 10's")?;
    let program = program.to_string_lossy();
    let address = loaded(&folder, &program, place)?;
    let memory = File::options().write(true).open(format!("{folder}/mem"));
    let written = memory.and_then(|memory| memory.write_all_at(&NOTHING, address));
    written.map_err(|error| format!("its memory: {error}"))
}

/// Where byte `place` of the program is in the process's memory, which a new process does not have at once.
fn loaded(folder: &str, program: &str, place: u64) -> Result<u64, String> {
    for _ in 0..LOOKS {
        let maps = fs::read_to_string(format!("{folder}/maps")).map_err(|error| format!("its memory: {error}"))?;
        if let Some(address) = maps.lines().find_map(|line| address(line, program, place)) {
            return Ok(address);
        }
        thread::sleep(LOOK);
    }
    Err("its code is nowhere".into())
}

/// Where the instruction is, if it is there once.
fn find(program: &[u8]) -> Option<u64> {
    let is_it = |at: &usize| {
        let code = &program[*at..*at + BYTES];
        let is_locked = *at > 0 && program[*at - 1] == LOCK;
        code[0] == OPCODE && code[1] & !7 == MODE && code[6..] == MASK && !is_locked
    };
    let mut places = (0..program.len().saturating_sub(BYTES - 1)).filter(is_it);
    let place = places.next()?;
    places.next().is_none().then_some(place as u64)
}

/// Where a line of `maps` has byte `place` of a program as code: "start-end rights offset device inode path".
fn address(line: &str, program: &str, place: u64) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let is_code = words.next()?.contains('x');
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let inside = place.checked_sub(offset).filter(|inside| start + inside + BYTES as u64 <= end)?;
    (is_code && words.nth(2)? == program).then_some(start + inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTRUCTION: [u8; BYTES] = [OPCODE, MODE | 3, 0x74, 0x2c, 0, 0, 0x7f, 0xff, 0xff, 0xff];

    #[test]
    fn the_instruction_is_found_where_it_is_there_once() {
        let mut program = vec![0x90; 100];
        assert_eq!(find(&program), None);
        program[40..50].copy_from_slice(&INSTRUCTION);
        assert_eq!(find(&program), Some(40));
        program[70..80].copy_from_slice(&INSTRUCTION);
        assert_eq!(find(&program), None, "which of the two?");
        program[69] = LOCK;
        assert_eq!(find(&program), Some(40), "one that locks is another");
        assert_eq!(find(&program[..49]), None);
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn code_is_found_in_a_process() {
        let line = "55d0c5000000-55d0c5679000 r-xp 00497000 fd:00 123    /usr/bin/qemu";
        assert_eq!(address(line, "/usr/bin/qemu", 0x0049_7010), Some(0x55d0_c500_0010));
        assert_eq!(address(line, "/usr/bin/qemu", 0x0049_6fff), None, "before it");
        assert_eq!(address(line, "/usr/bin/qemu", 0x0049_7000 + 0x0067_9000), None, "behind it");
        assert_eq!(address(line, "/usr/bin/other", 0x0049_7010), None);
        assert_eq!(address(&line.replace("r-xp", "r--p"), "/usr/bin/qemu", 0x0049_7010), None);
        assert_eq!(address("", "/usr/bin/qemu", 0), None);
    }
}
