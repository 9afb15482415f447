//! Faults without handlers: the processor shuts down.
#![no_std]
#![no_main]

use guests::{guest, power, println};

guest!(triple_fault);

fn triple_fault() {
    println!("faulting");
    power::triple_fault()
}
