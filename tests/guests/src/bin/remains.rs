//! Looks all over its memory for what another guest left there, then leaves something for the next.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and the memory is no Rust object's")]

use guests::{boot, guest, mmio, println, tap};

const LEFT_BEHIND: u64 = 0x4c45_4654_2042_4548;

guest!(remains);

fn remains() {
    let (start, bytes) = boot::free_memory();
    println!("# {bytes:#x} bytes from {start:#x}");
    let words = (start..start + bytes).step_by(8);
    // SAFETY: free memory, mapped one to one, that nothing else uses.
    let found = words.clone().find(|&at| unsafe { mmio::read(at, 8) } != 0);
    if let Some(at) = found {
        println!("# {at:#x} is not zero");
    }
    tap::check(found.is_none(), "memory is handed out zeroed");
    // SAFETY: as before.
    words.for_each(|at| unsafe { mmio::write(at, 8, LEFT_BEHIND) });
}
