//! The IDT: interrupts are counted, faults end the guest unless [`catch`] waits for them.

use crate::{apic, legacy, println};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// #DB.
pub const DEBUG: u8 = 1;
/// The NMI, which is counted as interrupts are.
pub const NMI: u8 = 2;
/// #UD.
pub const UNDEFINED: u8 = 6;
/// #NM.
pub const NOT_AVAILABLE: u8 = 7;
/// #GP.
pub const PROTECTION: u8 = 13;
/// #PF.
pub const PAGE_FAULT: u8 = 14;

/// The first vector that is no exception; the PICs use 16 from here on.
pub const PIC_VECTOR: u8 = 0x20;
/// The first vector of the local APIC's.
pub const APIC_VECTOR: u8 = 0x30;
/// The local APIC's spurious vector, which is not acknowledged.
pub const SPURIOUS_VECTOR: u8 = 0xff;

const CODE_SELECTOR: u64 = 0x10;
/// Present, privilege level 0, 64-bit interrupt gate.
const GATE: u64 = 0x8e00;

/// What the stubs push, then the registers, then what the processor pushed.
#[repr(C)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct Frame {
    registers: [u64; 15],
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

global_asm!(
    r#"
    .section .text, "ax"
    .altmacro
    .macro stub vector
    .balign 16
    .if \vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17 || \vector == 21 || \vector == 29 || \vector == 30
    .else
    push    0
    .endif
    push    \vector
    jmp     interrupt_common
    .endm

    .balign 16
interrupt_stubs:
    .set    vector, 0
    .rept   256
    stub    %vector
    .set    vector, vector + 1
    .endr

interrupt_common:
    push    rax
    push    rcx
    push    rdx
    push    rbx
    push    rbp
    push    rsi
    push    rdi
    push    r8
    push    r9
    push    r10
    push    r11
    push    r12
    push    r13
    push    r14
    push    r15
    cld
    mov     rdi, rsp
    call    guest_interrupt
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rdi
    pop     rsi
    pop     rbp
    pop     rbx
    pop     rdx
    pop     rcx
    pop     rax
    add     rsp, 16
    iretq

    /* guest_attempt(function, argument): calls it; a fault in it comes back here too. */
    .global guest_attempt
guest_attempt:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    sub     rsp, 8
    mov     [rip + {resume_rsp}], rsp
    lea     rax, [rip + 1f]
    mov     [rip + {resume_rip}], rax
    mov     rax, rdi
    mov     rdi, rsi
    call    rax
1:  mov     qword ptr [rip + {resume_rip}], 0
    add     rsp, 8
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret
"#,
    resume_rsp = sym RESUME_RSP,
    resume_rip = sym RESUME_RIP,
);

unsafe extern "C" {
    static interrupt_stubs: [u8; 256 * 16];
    fn guest_attempt(function: extern "C" fn(u64), argument: u64);
}

static IDT: [AtomicU64; 512] = [const { AtomicU64::new(0) }; 512];
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
/// Where a fault goes on: 0 where none is expected.
static RESUME_RIP: AtomicU64 = AtomicU64::new(0);
static RESUME_RSP: AtomicU64 = AtomicU64::new(0);
static FAULT_VECTOR: AtomicU64 = AtomicU64::new(NO_FAULT);
static FAULT_CODE: AtomicU64 = AtomicU64::new(0);
static FAULT_ADDRESS: AtomicU64 = AtomicU64::new(0);
static FAULT_RIP: AtomicU64 = AtomicU64::new(0);
static FAULT_FLAGS: AtomicU64 = AtomicU64::new(0);
/// RCX, RSI and RDI.
static FAULT_REGISTERS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// What handles a vector instead; 0 for nothing.
static HANDLERS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
const NO_FAULT: u64 = u64::MAX;
const TRAP_FLAG: u64 = 1 << 8;

/// A fault that was caught.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Its vector.
    pub vector: u8,
    /// Its error code, 0 where it has none.
    pub error_code: u64,
    /// CR2, of use for a page fault.
    pub address: u64,
    /// RIP and RFLAGS as they were pushed.
    pub rip: u64,
    /// See `rip`.
    pub rflags: u64,
    /// What a repeated string instruction left: RCX, RSI and RDI.
    pub rcx: u64,
    /// See `rcx`.
    pub rsi: u64,
    /// See `rcx`.
    pub rdi: u64,
}

/// Fills in and loads the IDT. No line of the PICs is let through: a BIOS leaves the PIT ticking on an exception's vector.
pub(crate) fn start() {
    legacy::start_pics(0xffff);
    let stubs = &raw const interrupt_stubs as u64;
    for (vector, gate) in (0..).zip(IDT.chunks(2)) {
        let handler = stubs + vector * 16;
        let low = handler & 0xffff | CODE_SELECTOR << 16 | GATE << 32 | (handler & 0xffff_0000) << 32;
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(handler >> 32, Ordering::Relaxed);
    }
    let mut pointer = [0u8; 10];
    pointer[..2].copy_from_slice(&(size_of_val(&IDT) as u16 - 1).to_le_bytes());
    pointer[2..].copy_from_slice(&(IDT.as_ptr() as u64).to_le_bytes());
    // SAFETY: the table is static and complete, each gate leads to a stub that saves every register.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack, preserves_flags)) };
}

/// How many interrupts came with this vector.
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::Acquire)
}

/// Runs `action` and returns the fault that ended it, if one did. Not to be nested.
pub fn catch<F: FnMut()>(mut action: F) -> Option<Fault> {
    extern "C" fn call<F: FnMut()>(action: u64) {
        // SAFETY: `catch` passes a pointer to its closure, which outlives the call.
        unsafe { (*(action as *mut F))() }
    }
    FAULT_VECTOR.store(NO_FAULT, Ordering::Relaxed);
    // SAFETY: it calls `call` with the closure's address. A fault comes back as a return: the frames that it leaves
    // behind hold nothing to be dropped, as the guests own no resources.
    unsafe { guest_attempt(call::<F>, &raw mut action as u64) };
    let vector = FAULT_VECTOR.load(Ordering::Relaxed);
    (vector != NO_FAULT).then(|| Fault {
        vector: vector as u8,
        error_code: FAULT_CODE.load(Ordering::Relaxed),
        address: FAULT_ADDRESS.load(Ordering::Relaxed),
        rip: FAULT_RIP.load(Ordering::Relaxed),
        rflags: FAULT_FLAGS.load(Ordering::Relaxed),
        rcx: FAULT_REGISTERS[0].load(Ordering::Relaxed),
        rsi: FAULT_REGISTERS[1].load(Ordering::Relaxed),
        rdi: FAULT_REGISTERS[2].load(Ordering::Relaxed),
    })
}

/// Lets `handler` see each exception or interrupt with this vector, which then returns to where the frame says; `None` for the usual.
pub fn handle(vector: u8, handler: Option<fn(&mut Frame)>) {
    HANDLERS[usize::from(vector)].store(handler.map_or(0, |handler| handler as usize as u64), Ordering::Relaxed);
}

fn handler(vector: u8) -> Option<fn(&mut Frame)> {
    let address = HANDLERS.get(usize::from(vector))?.load(Ordering::Relaxed);
    // SAFETY: `handle` stored a function of this type, or zero, which is `None`.
    unsafe { core::mem::transmute::<u64, Option<fn(&mut Frame)>>(address) }
}

/// What every stub calls.
#[unsafe(no_mangle)]
extern "C" fn guest_interrupt(frame: &mut Frame) {
    let vector = frame.vector as u8;
    if vector == NMI {
        COUNTS[usize::from(vector)].fetch_add(1, Ordering::Release);
    }
    if let Some(handler) = handler(vector) {
        return handler(frame);
    }
    if vector < PIC_VECTOR && vector != NMI {
        return exception(frame);
    }
    if vector != NMI {
        COUNTS[usize::from(vector)].fetch_add(1, Ordering::Release);
    }
    match vector {
        PIC_VECTOR..APIC_VECTOR => legacy::acknowledge(vector - PIC_VECTOR),
        NMI | SPURIOUS_VECTOR => {}
        _ => apic::acknowledge(),
    }
}

fn exception(frame: &mut Frame) {
    let address: u64;
    // SAFETY: reading CR2 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    let resume = RESUME_RIP.swap(0, Ordering::Relaxed);
    if resume == 0 {
        let Frame { vector, error_code, rip, .. } = frame;
        println!("Bail out! exception {vector} (error {error_code:#x}, CR2 {address:#x}) at {rip:#x}");
        crate::power::off();
    }
    FAULT_VECTOR.store(frame.vector, Ordering::Relaxed);
    FAULT_CODE.store(frame.error_code, Ordering::Relaxed);
    FAULT_ADDRESS.store(address, Ordering::Relaxed);
    FAULT_RIP.store(frame.rip, Ordering::Relaxed);
    FAULT_FLAGS.store(frame.rflags, Ordering::Relaxed);
    // R15 was pushed last.
    for (place, index) in FAULT_REGISTERS.iter().zip([13, 9, 8]) {
        place.store(frame.registers[index], Ordering::Relaxed);
    }
    frame.rflags &= !TRAP_FLAG;
    frame.rip = resume;
    frame.rsp = RESUME_RSP.load(Ordering::Relaxed);
}
