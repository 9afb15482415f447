//! Starts the other processors.
//!
//! SDM volume 3, 10.4.4 (INIT, STARTUP, STARTUP). One processor is started at a time: all use the same page below 1 MiB,
//! in which [`start`] leaves the stack and the number of the next.
#![no_std]
#![expect(unsafe_code, reason = "copies code to where processors begin")]

use addr::Hpa;
use core::sync::atomic::{AtomicUsize, Ordering};
use interrupts::local_apic;
use memory::Stack;

core::arch::global_asm!(include_str!("trampoline.S"), options(att_syntax));

/// The page where processors begin, and the one with what they need to know, as in the assembly.
const TRAMPOLINE: Hpa = Hpa::new(0x8000);
const PARAMETERS: Hpa = Hpa::new(0x9000);

/// How long a processor may take to begin.
const WAIT_MS: u64 = 500;

/// How many processors have begun.
static BEGUN: AtomicUsize = AtomicUsize::new(1);

/// What a processor reads before it has a stack.
#[repr(C)]
struct Parameters {
    page_table: u64,
    stack_top: u64,
    entry: extern "sysv64" fn(usize) -> !,
    index: usize,
}

/// Puts the code where processors begin.
pub fn prepare() {
    unsafe extern "C" {
        static trampoline_start: u8;
        static trampoline_end: u8;
    }
    // SAFETY: the page is low memory, which the frame allocator leaves alone.
    unsafe {
        let start = &raw const trampoline_start;
        let bytes = (&raw const trampoline_end).offset_from_unsigned(start);
        core::ptr::copy_nonoverlapping(start, TRAMPOLINE.as_u64() as *mut u8, bytes);
    }
    memory::seal_code(TRAMPOLINE);
}

/// Starts the processor with APIC ID `apic_id` as number `index`, on a stack of its own; it calls `entry(index)`.
/// Says whether it began. Call [`prepare`] first.
pub fn start(apic_id: u32, index: usize, tsc_khz: u64, stack: Stack, entry: extern "sysv64" fn(usize) -> !) -> bool {
    let parameters =
        Parameters { page_table: memory::page_table().as_u64(), stack_top: stack.top(), entry, index };
    // SAFETY: low memory that nothing else uses; the processor before has begun and reads it no more.
    unsafe { (PARAMETERS.as_u64() as *mut Parameters).write_volatile(parameters) };
    let before = BEGUN.load(Ordering::Acquire);
    let wait_us = |us: u64| {
        let end = cpu::tsc() + tsc_khz * us / 1000;
        while cpu::tsc() < end && BEGUN.load(Ordering::Acquire) == before {
            core::hint::spin_loop();
        }
    };
    local_apic::send_init(apic_id);
    wait_us(10_000);
    for _ in 0..2 {
        if BEGUN.load(Ordering::Acquire) == before {
            local_apic::send_startup(apic_id, TRAMPOLINE);
            wait_us(200);
        }
    }
    wait_us(WAIT_MS * 1000);
    BEGUN.load(Ordering::Acquire) != before
}

/// Called by a processor that was started, once it no longer needs the page where it began.
pub fn begun() {
    BEGUN.fetch_add(1, Ordering::Release);
}
