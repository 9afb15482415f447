//! Fills memory with patterns, again and again, and checks each against what was written a round before.
//!
//! Words on the command line: `mib=N` memory to use (64), `rounds=N` rounds until it ends (8; 0 is never). Each round, or
//! every so many (`every=N`), prints `HASH round value`: the same in every run with the same memory, whatever happens to
//! the machine meanwhile.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and the memory is no Rust object's")]

use guests::random::Random;
use guests::{boot, cpu, guest, mmio, println, tap};

guest!(memory_hash);

const PAGE_BYTES: u64 = 4096;

fn memory_hash() {
    let (start, bytes) = boot::free_memory();
    let (start, bytes) = (start + PAGE_BYTES, bytes - PAGE_BYTES);
    keep_clock(start - PAGE_BYTES);
    let pages = (boot::number("mib").unwrap_or(64) << 20).min(bytes) / PAGE_BYTES;
    let rounds = boot::number("rounds").unwrap_or(8);
    let every = boot::number("every").unwrap_or(1).max(1);
    println!("# {pages} pages from {start:#x}");
    let mut round = 0;
    let mut is_intact = true;
    while rounds == 0 || round < rounds {
        let mut hash = 0xcbf2_9ce4_8422_2325;
        for page in 0..pages {
            let at = start + page * PAGE_BYTES;
            if round > 0 && !holds(at, round - 1, page) {
                println!("# round {round}: page {page} changed");
                is_intact = false;
            }
            hash = fill(at, round, page, hash);
        }
        if round % every == 0 {
            println!("HASH {round} {hash:016x}");
        }
        round += 1;
    }
    tap::check(is_intact, "memory keeps what was written");
}

/// Has the hypervisor, where there is one that knows how, keep a clock in memory (KVM's MSR_KVM_SYSTEM_TIME_NEW): a guest
/// with one may move to a host whose TSC has another rate.
fn keep_clock(at: u64) {
    const FEATURES: u32 = 0x4000_0001;
    const CLOCK: u32 = 1 << 3;
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    let is_virtual = cpu::cpuid(1, 0).ecx & 1 << 31 != 0;
    if is_virtual && cpu::cpuid(FEATURES, 0).eax & CLOCK != 0 {
        // SAFETY: the page is free memory that nothing else uses from here on.
        unsafe { cpu::write_msr(SYSTEM_TIME, at | 1) };
    }
}

fn pattern(round: u64, page: u64) -> Random {
    Random::new((round << 32 | page).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn holds(at: u64, round: u64, page: u64) -> bool {
    let mut pattern = pattern(round, page);
    // SAFETY: free memory, mapped one to one.
    (0..PAGE_BYTES).step_by(8).all(|offset| unsafe { mmio::read(at + offset, 8) } == pattern.next())
}

fn fill(at: u64, round: u64, page: u64, mut hash: u64) -> u64 {
    let mut pattern = pattern(round, page);
    for offset in (0..PAGE_BYTES).step_by(8) {
        let word = pattern.next();
        // SAFETY: as `holds`.
        unsafe { mmio::write(at + offset, 8, word) };
        hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}
