//! A machine with a firmware of its own: saved amid what firmware does, and restored.

use super::bench::*;
use super::saved::sealed;
use crate::*;
use ::firmware::fw_cfg::{DATA_PORT, SELECTOR_PORT};
use ::firmware::layout;
use addr::{Gpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use guestmem::GuestMemory;
use guestmem::heap::guest_memory;
use proptest::prelude::*;

const FLASH_PAGES: u64 = 4;
const CODE_BYTES: u64 = 2 * PAGE_BYTES;
const FLASH: u64 = layout::FLASH_END.as_u64() - CODE_BYTES - FLASH_PAGES * PAGE_BYTES;
/// Where the guest has a block that its firmware writes.
const BLOCK: u64 = FLASH + 2 * PAGE_BYTES;
/// The configuration address of the LPC bridge's first interrupt routing registers.
const ROUTING: u32 = 0x8000_f860;
/// fw_cfg's directory.
const DIRECTORY: u32 = 0x19;

fn config(memory: GuestMemory, code_checksum: u64) -> MachineConfig {
    let variables = guest_memory(LARGE_PAGE_BYTES);
    variables.write(Gpa::new(0), &[0xff; (FLASH_PAGES * PAGE_BYTES) as usize]).unwrap();
    let variables_bytes = (FLASH_PAGES * PAGE_BYTES) as usize;
    MachineConfig {
        id: 1,
        vcpus: 1,
        memory,
        profile: CpuProfile::new(amd, 1, TSC_KHZ),
        disks: vec![disk(1000)],
        nics: vec![],
        debug: DebugPorts::default(),
        firmware: Some(FirmwareConfig { code_bytes: CODE_BYTES, code_checksum, variables, variables_bytes }),
        wall_unix_ns: WALL_UNIX_NS,
    }
}

/// A machine whose firmware has read some of the directory and routed interrupts, and programs its flash.
fn used() -> Bench {
    let mut bench = Bench::of(config(guest_memory(MEMORY_BYTES), 7));
    bench.out(SELECTOR_PORT, 2, DIRECTORY);
    bench.input(DATA_PORT, 1);
    bench.out(0xcf8, 4, ROUTING);
    bench.out(0xcfc, 4, 0x0b0a_0b0a);
    for (at, value) in [(BLOCK, 0x10), (BLOCK, 0x5a), (BLOCK + 1, 0x10)] {
        bench.mmio_write(at, 1, value);
    }
    bench
}

fn restore(bench: &Bench, saved: &[u8], code_checksum: u64) -> Result<Bench, RestoreError> {
    bench.restore_with(saved, 1_000, 0, |memory| config(memory, code_checksum))
}

/// What the guest does next, and what it sees of that.
fn go_on(bench: &mut Bench) -> Vec<u64> {
    let mut seen: Vec<u64> = (0..80).map(|_| bench.input(DATA_PORT, 1)).collect();
    seen.push(bench.input(0xcfc, 4));
    seen.push(bench.mmio_read(BLOCK, 1).into());
    bench.mmio_write(BLOCK + 1, 1, 0xa5);
    seen.push(bench.mmio_read(BLOCK, 1).into());
    bench.mmio_write(BLOCK, 1, 0xff);
    seen.push(bench.mmio_read(BLOCK, 4).into());
    seen
}

#[test]
fn a_guest_amid_its_firmware_goes_on() {
    let mut original = used();
    assert_eq!(original.host.shown, [(FLASH_PAGES as usize, false)], "it has to exit to read");
    let saved = original.save().unwrap();
    let mut copy = restore(&original, &saved, 7).unwrap();
    assert_eq!(copy.save().unwrap(), saved, "nothing changed on the way");
    assert_eq!(copy.machine.hidden_pages().len(), FLASH_PAGES as usize, "and still has to");
    let seen = go_on(&mut original);
    assert_eq!(go_on(&mut copy), seen);
    assert_eq!(seen.last(), Some(&0xffff_a55a), "what was programmed before and after");
    assert_eq!(copy.host.shown, [(FLASH_PAGES as usize, true)]);
    assert!(copy.machine.hidden_pages().is_empty());
    let saved = copy.save().unwrap();
    assert!(restore(&copy, &saved, 7).unwrap().machine.hidden_pages().is_empty());
}

#[test]
fn another_firmware_or_none_is_refused() {
    let mut bench = used();
    let saved = bench.save().unwrap();
    let unlike = |result: Result<Bench, RestoreError>| match result.map(drop).unwrap_err() {
        RestoreError::Unlike(unlike) => unlike,
        RestoreError::State(error) => panic!("{error}"),
    };
    assert_eq!(unlike(restore(&bench, &saved, 8)), Unlike::Firmware);
    let without = |memory| MachineConfig { firmware: None, ..config(memory, 7) };
    assert_eq!(unlike(bench.restore_with(&saved, 1_000, 0, without)), Unlike::Firmware);
    let mut other = Bench::of(without(guest_memory(MEMORY_BYTES)));
    let saved = other.save().unwrap();
    assert_eq!(unlike(restore(&other, &saved, 7)), Unlike::Firmware);
}

#[test]
fn a_machine_without_its_firmware_s_devices_is_none() {
    let mut bench = used();
    let mut saved = bench.save().unwrap();
    let unit = saved.windows(8).position(|head| head == [12, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    saved[unit] = 99;
    let refused = restore(&bench, &sealed(saved), 7).map(drop).unwrap_err();
    assert!(matches!(refused, RestoreError::State(state::Error::Missing(_))), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A firmware's devices from anybody are refused, or are some: whatever the firmware then does, nothing panics.
    #[test]
    fn hostile_devices(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bench = used();
        let mut bytes = bench.save().unwrap();
        let unit = bytes.windows(8).position(|head| head == [12, 0, 0, 0, 1, 0, 0, 0]).unwrap();
        let body_bytes = u32::from_le_bytes(bytes[unit + 8..unit + 12].try_into().unwrap()) as usize;
        let devices = &mut bytes[unit..unit + 12 + body_bytes];
        changes.iter().for_each(|(place, byte)| *place.get_mut(devices) = *byte);
        if let Ok(mut copy) = restore(&bench, &sealed(bytes), 7) {
            go_on(&mut copy);
            let _ = (copy.save(), copy.machine.hidden_pages());
        }
    }
}
