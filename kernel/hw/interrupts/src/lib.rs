//! Interrupts of the host: the table, the local APIC of each processor, its timer, and interrupts between processors.
//!
//! A handler notes its vector in the processor's [`cpu::percpu::PerCpu`] block and returns; the CPU's loop takes the
//! notes. An exception of the host itself goes to the hook that [`init`] was given and never returns.
#![no_std]
#![expect(unsafe_code, reason = "the interrupt table, its stubs and the local APIC's registers")]

pub mod ioapic;
pub mod local_apic;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use cpu::machine_check::{self, Verdict};
use cpu::percpu;
use spin::{Once, RwLock};
use x86_64::VirtAddr;
use x86_64::structures::idt::InterruptDescriptorTable;

core::arch::global_asm!(include_str!("entry.S"), options(att_syntax));

/// The lines of devices that send no messages, all of them. They are levels: such an interrupt ends when whoever took its
/// cause away says so ([`end_line`]), and until then its level is not seen again. Of all that the host takes it has the
/// lowest priority, so that nothing else waits meanwhile.
pub const LINE: u8 = 0x20;
/// The local APIC's timer.
pub const TIMER: u8 = 0xe0;
/// Another processor wants this one to look around.
pub const KICK: u8 = 0xe1;
/// Another processor left interrupts for the guest that runs on this one, whose processor takes them by itself.
pub const POSTED: u8 = 0xe2;
/// What a local APIC reports when an interrupt went away before it was taken.
pub const SPURIOUS: u8 = 0xff;
/// Vectors that [`take_device_vector`] hands out.
const DEVICES: core::ops::Range<u8> = 0x30..0xe0;

/// Exceptions that use a stack of their own.
const DOUBLE_FAULT: u8 = 8;
const NMI: u8 = 2;
const MACHINE_CHECK: u8 = 18;

/// What an interrupted program looked like.
#[repr(C)]
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct Frame {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Called for an exception of the host's own code, which has a fault in it.
pub type ExceptionHook = fn(&Frame) -> !;

static IDT: Once<InterruptDescriptorTable> = Once::new();
static HOOK: Once<ExceptionHook> = Once::new();
static NEXT_DEVICE_VECTOR: RwLock<u8> = RwLock::new(DEVICES.start);

/// The host dies: a processor that takes an NMI stops.
static DYING: AtomicBool = AtomicBool::new(false);
static NMIS: AtomicU64 = AtomicU64::new(0);

/// How many NMIs arrived, on all processors. Pollux sends none while it lives, so each is a hardware error or the
/// operator's button.
pub fn nmis() -> u64 {
    NMIS.load(Ordering::Relaxed)
}

/// Stops every other processor for ever, by NMI, which reaches them wherever they are: for a host that is dying.
///
/// Not by INIT, after which the boot processor would run the firmware. A processor in a guest leaves it for an NMI.
pub fn stop_others() {
    DYING.store(true, Ordering::SeqCst);
    local_apic::send_nmi_to_others();
}

/// Makes the interrupt table, and silences the 8259 pair. Called once, before [`table`] and the local APICs.
pub fn init(hook: ExceptionHook) {
    silence_8259();
    unsafe extern "C" {
        static interrupt_stubs: u8;
    }
    HOOK.call_once(|| hook);
    IDT.call_once(|| {
        let mut idt = InterruptDescriptorTable::new();
        let first = &raw const interrupt_stubs as u64;
        for vector in 0..=255u8 {
            set_stub(&mut idt, vector, VirtAddr::new(first + 16 * u64::from(vector)));
        }
        idt
    });
}

/// Masks both 8259s, which firmware leaves with the timer's line open. Their output must fall while the local APIC still
/// listens: QEMU keeps a line that rose before for pending, and then finds no vector for it.
fn silence_8259() {
    // SAFETY: the mask registers of the PC's interrupt controllers, which nothing in the host uses.
    unsafe {
        cpu::port_out8(0x21, 0xff);
        cpu::port_out8(0xa1, 0xff);
    }
}

/// The table, for [`cpu::tables::load`].
pub fn table() -> &'static InterruptDescriptorTable {
    IDT.get().expect("init ran")
}

/// A vector for a device's interrupts, or `None` when all are taken.
pub fn take_device_vector() -> Option<u8> {
    let mut next = NEXT_DEVICE_VECTOR.write();
    let vector = *next;
    if vector == DEVICES.end {
        return None;
    }
    *next += 1;
    Some(vector)
}

/// Ends a [`LINE`] interrupt of this processor, outside of any handler. What still pulls interrupts again.
pub fn end_line() {
    local_apic::end_of_interrupt();
}

fn set_stub(idt: &mut InterruptDescriptorTable, vector: u8, stub: VirtAddr) {
    use cpu::tables::{DOUBLE_FAULT_STACK, MACHINE_CHECK_STACK, NMI_STACK};
    // SAFETY: the stubs save and restore every register and end with IRETQ; the special stacks are those that
    // `cpu::tables::load` puts into each processor's TSS.
    unsafe {
        match vector {
            DOUBLE_FAULT => drop(idt.double_fault.set_handler_addr(stub).set_stack_index(DOUBLE_FAULT_STACK)),
            NMI => drop(idt.non_maskable_interrupt.set_handler_addr(stub).set_stack_index(NMI_STACK)),
            MACHINE_CHECK => drop(idt.machine_check.set_handler_addr(stub).set_stack_index(MACHINE_CHECK_STACK)),
            0 => drop(idt.divide_error.set_handler_addr(stub)),
            1 => drop(idt.debug.set_handler_addr(stub)),
            3 => drop(idt.breakpoint.set_handler_addr(stub)),
            4 => drop(idt.overflow.set_handler_addr(stub)),
            5 => drop(idt.bound_range_exceeded.set_handler_addr(stub)),
            6 => drop(idt.invalid_opcode.set_handler_addr(stub)),
            7 => drop(idt.device_not_available.set_handler_addr(stub)),
            10 => drop(idt.invalid_tss.set_handler_addr(stub)),
            11 => drop(idt.segment_not_present.set_handler_addr(stub)),
            12 => drop(idt.stack_segment_fault.set_handler_addr(stub)),
            13 => drop(idt.general_protection_fault.set_handler_addr(stub)),
            14 => drop(idt.page_fault.set_handler_addr(stub)),
            16 => drop(idt.x87_floating_point.set_handler_addr(stub)),
            17 => drop(idt.alignment_check.set_handler_addr(stub)),
            19 => drop(idt.simd_floating_point.set_handler_addr(stub)),
            // Reserved ones do not occur, and #VE, #CP, #HV, #VC and #SX need features that the host leaves off.
            9 | 15 | 20..32 => {}
            _ => drop(idt[vector].set_handler_addr(stub)),
        }
    }
}

/// Where all stubs come together.
#[unsafe(no_mangle)]
extern "C" fn interrupt_arrived(frame: &Frame) {
    let vector = frame.vector as u8;
    match vector {
        // Nothing more than this may be done in it: it comes in the middle of anything, locks held.
        NMI if DYING.load(Ordering::SeqCst) => cpu::halt_forever(),
        NMI => drop(NMIS.fetch_add(1, Ordering::Relaxed)),
        MACHINE_CHECK => match machine_check::outcome(false) {
            Verdict::GoOn => {}
            Verdict::StopGuest | Verdict::StopHost => machine_check::stop_host(),
        },
        0..32 => HOOK.get().expect("init ran")(frame),
        SPURIOUS => {}
        LINE => percpu::current().arrive(LINE),
        _ => {
            percpu::current().arrive(vector);
            local_apic::end_of_interrupt();
        }
    }
}
