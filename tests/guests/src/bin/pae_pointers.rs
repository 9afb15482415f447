//! Starts and stops PAE paging again and again, each time by the tables that it did not use last, and with caching switched
//! off and on, which is its host's affair: a host that runs it before all of its memory is there has to read the
//! page-directory pointers in the processor's place, and to wait for them.
//!
//! Words on the command line: `mib=N` memory to fill between the tables (4), `rounds=N` rounds until it ends (8; 0 is
//! never). Each round, or every so many (`every=N`), prints `ROUND number `.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and instructions are given as bytes")]

use guests::legacy_modes::{self, Mode, Registers, selector};
use guests::random::Random;
use guests::{boot, guest, mmio, println, tap};

guest!(pae_pointers);

const PAGE_BYTES: u64 = 4096;
/// How often paging starts in a round.
const STARTS: u32 = 1000;
/// An entry that is there; and one of a directory that is written and maps 2 MiB.
const PRESENT: u64 = 1;
const MAPS: u64 = 0x83;

/// With ESI and EDI as the tables, and ECX as how often.
const TOGGLE: &[u8] = &[
    0x0f, 0x20, 0xe0, // mov eax, cr4
    0x83, 0xc8, 0x20, // or eax, PAE
    0x0f, 0x22, 0xe0, // mov cr4, eax
    0x0f, 0x22, 0xde, // mov cr3, esi, where the loop begins
    0x0f, 0x20, 0xc0, // mov eax, cr0
    0x0d, 0x00, 0x00, 0x00, 0xc0, // or eax, PG | CD
    0x0f, 0x22, 0xc0, // mov cr0, eax
    0xeb, 0x00, // jmp to the next
    0x25, 0xff, 0xff, 0xff, 0x3f, // and eax, ~(PG | CD)
    0x0f, 0x22, 0xc0, // mov cr0, eax
    0xeb, 0x00, // jmp to the next
    0x87, 0xf7, // xchg esi, edi
    0x49, // dec ecx
    0x75, 0xe1, // jnz
];

fn pae_pointers() {
    legacy_modes::start();
    let (start, bytes) = boot::free_memory();
    let filled = (boot::number("mib").unwrap_or(4) << 20).min(bytes - 4 * PAGE_BYTES);
    let mut random = Random::new(1);
    (start..start + filled).step_by(8).for_each(|at| put(at, random.next()));
    let tables = [start, start + filled].map(map);
    let rounds = boot::number("rounds").unwrap_or(8);
    println!("# it begins");
    let every = boot::number("every").unwrap_or(1).max(1);
    let mut round = 0;
    while rounds == 0 || round < rounds {
        let [esi, edi] = tables;
        let mut registers = Registers { esi, edi, ecx: STARTS, ds: selector::FLAT, ..Registers::default() };
        // SAFETY: the code changes registers that are put back, and both tables map it where it is.
        let fault = unsafe { legacy_modes::run(Mode::Protected32, TOGGLE, &mut registers) };
        if fault.is_some() || registers.ecx != 0 {
            println!("# round {round}: {fault:?}, {registers:x?}");
            break;
        }
        round += 1;
        if round % every == 0 {
            println!("ROUND {round} ");
        }
    }
    tap::check(round == rounds, "paging starts by the tables that CR3 names");
}

/// Two pages of tables, the pointers first, that map the first 2 MiB to themselves.
fn map(at: u64) -> u32 {
    for offset in (0..2 * PAGE_BYTES).step_by(8) {
        put(at + offset, 0);
    }
    put(at, at + PAGE_BYTES | PRESENT);
    put(at + PAGE_BYTES, MAPS);
    at as u32
}

fn put(at: u64, value: u64) {
    // SAFETY: free memory, mapped one to one.
    unsafe { mmio::write(at, 8, value) }
}
