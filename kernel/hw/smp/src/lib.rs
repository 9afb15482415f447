//! Starts the other processors.
//!
//! SDM volume 3, 10.4.4 (INIT, STARTUP, STARTUP). One processor is started at a time: all use the same page below
//! 1 MiB, in which [`start`] leaves the stack and the number of the next. A processor that comes too late must not run:
//! what it would use is another's by then. So each asks by [`arrive`] first, and one that was given up on is reset by INIT.
#![no_std]
#![expect(unsafe_code, reason = "copies code to where processors begin")]

use addr::{Hpa, PAGE_BYTES};
use boot::BootInfo;
use core::sync::atomic::{AtomicUsize, Ordering};
use interrupts::local_apic;
use memory::Stack;

core::arch::global_asm!(include_str!("trampoline.S"), options(att_syntax));

/// The page where processors begin, and the one with what they need to know, as in the assembly.
const TRAMPOLINE: Hpa = Hpa::new(0x8000);
const PARAMETERS: Hpa = Hpa::new(0x9000);

/// How long a processor may take to begin.
const WAIT_MS: u64 = 500;

/// How long a processor is left alone after INIT.
const RESET_US: u64 = 10_000;

/// The number of the processor that is waited for. 0 is the boot processor's: nobody is.
static EXPECTED: AtomicUsize = AtomicUsize::new(0);
/// The number of the last processor that is ready.
static READY: AtomicUsize = AtomicUsize::new(0);

/// What a processor reads before it has a stack.
#[repr(C)]
struct Parameters {
    page_table: u64,
    stack_top: u64,
    entry: extern "sysv64" fn(usize) -> !,
    index: usize,
}

/// Whether the two pages are RAM that nobody uses. The boot information may lie there: it was copied.
pub fn has_room(boot: &BootInfo) -> bool {
    let is_free = |page: Hpa| {
        let (start, end) = (page.as_u64(), page.as_u64() + PAGE_BYTES);
        let modules = boot.modules().iter().map(|module| module.bytes.as_ptr_range());
        boot.regions().iter().any(|region| region.usable && region.start <= start && end <= region.end)
            && !boot.regions().iter().any(|region| !region.usable && region.start < end && start < region.end)
            && !modules.into_iter().any(|bytes| (bytes.start as u64) < end && start < bytes.end as u64)
    };
    is_free(TRAMPOLINE) && is_free(PARAMETERS)
}

/// Puts the code where processors begin. [`has_room`] said that it may.
pub fn prepare() {
    unsafe extern "C" {
        static trampoline_start: u8;
        static trampoline_end: u8;
    }
    assert!(memory::page_table().as_u64() < 1 << 32, "the trampoline loads 32 bits of CR3");
    // SAFETY: the page is low memory, which the frame allocator leaves alone, and nobody else's.
    unsafe {
        let start = &raw const trampoline_start;
        let bytes = (&raw const trampoline_end).offset_from_unsigned(start);
        core::ptr::copy_nonoverlapping(start, TRAMPOLINE.as_u64() as *mut u8, bytes);
    }
    memory::seal_code(TRAMPOLINE);
    memory::share();
}

/// Starts the processor with APIC ID `apic_id` as number `index`, on a stack of its own; it calls `entry(index)`.
/// Says whether it is ready; if not, it never will be. Call [`prepare`] first.
pub fn start(apic_id: u32, index: usize, tsc_khz: u64, stack: Stack, entry: extern "sysv64" fn(usize) -> !) -> bool {
    assert!(index > 0, "the boot processor runs already");
    let parameters = Parameters { page_table: memory::page_table().as_u64(), stack_top: stack.top(), entry, index };
    // SAFETY: low memory that nothing else uses; the processor before has begun, or was reset, and reads it no more.
    unsafe { (PARAMETERS.as_u64() as *mut Parameters).write_volatile(parameters) };
    EXPECTED.store(index, Ordering::Release);
    let has_arrived = || EXPECTED.load(Ordering::Acquire) == 0;
    let wait_us = |us: u64| {
        let end = cpu::tsc() + tsc_khz * us / 1000;
        while cpu::tsc() < end && !has_arrived() {
            core::hint::spin_loop();
        }
    };
    local_apic::send_init(apic_id);
    wait_us(RESET_US);
    for _ in 0..2 {
        if !has_arrived() {
            local_apic::send_startup(apic_id, TRAMPOLINE);
            wait_us(200);
        }
    }
    wait_us(WAIT_MS * 1000);
    if EXPECTED.compare_exchange(index, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        local_apic::send_init(apic_id);
        let end = cpu::tsc() + tsc_khz * RESET_US / 1000;
        while cpu::tsc() < end {
            core::hint::spin_loop();
        }
        return false;
    }
    // It runs the host's code now: it gets ready, or it dies and stops this processor too.
    while READY.load(Ordering::Acquire) != index {
        core::hint::spin_loop();
    }
    true
}

/// The first thing that a processor does: goes on only if it is still waited for.
pub fn arrive(index: usize) {
    if EXPECTED.compare_exchange(index, 0, Ordering::AcqRel, Ordering::Acquire).is_err() {
        cpu::halt_forever();
    }
}

/// Called by a processor that was started, once it no longer needs the page where it began.
pub fn begun(index: usize) {
    READY.store(index, Ordering::Release);
}
