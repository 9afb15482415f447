//! A few instructions of machine code, run with chosen registers: single-stepped or not, wherever they lie in a page.
//!
//! [`run`] runs them and gives the registers, or the fault; [`traps`] says where debug exceptions came meanwhile.

use crate::interrupts::{self, DEBUG, Fault, Frame, catch};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// RFLAGS.TF and RFLAGS.RF.
pub const TRAP_FLAG: u64 = 1 << 8;
/// See [`TRAP_FLAG`].
pub const RESUME_FLAG: u64 = 1 << 16;
/// RFLAGS as the guests have it.
const FLAGS: u64 = 2;
const PAGE_BYTES: usize = 4096;
/// The most debug exceptions that are noted.
const TRAPS_MAX: usize = 8;

/// What the instructions begin with, and end with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub rflags: u64,
}

impl Default for Registers {
    fn default() -> Self {
        Self { rax: 0, rbx: 0, rcx: 0, rdx: 0, rsi: 0, rdi: 0, r8: 0, rflags: FLAGS }
    }
}

/// A debug exception: where it returns to, with which flags, and DR6, which is cleared afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct Trap {
    pub rip: u64,
    pub rflags: u64,
    pub dr6: u64,
}

global_asm!(
    r#"
    .section .text, "ax"
    /* guest_snippet(registers, code) */
    .global guest_snippet
guest_snippet:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    sub     rsp, 8
    mov     r12, rdi
    mov     r13, rsi
    mov     rax, [r12]
    mov     rbx, [r12 + 8]
    mov     rcx, [r12 + 16]
    mov     rdx, [r12 + 24]
    mov     rsi, [r12 + 32]
    mov     rdi, [r12 + 40]
    mov     r8, [r12 + 48]
    push    qword ptr [r12 + 56]
    popfq
    call    r13
    pushfq
    pop     qword ptr [r12 + 56]
    cld
    mov     [r12], rax
    mov     [r12 + 8], rbx
    mov     [r12 + 16], rcx
    mov     [r12 + 24], rdx
    mov     [r12 + 32], rsi
    mov     [r12 + 40], rdi
    mov     [r12 + 48], r8
    add     rsp, 8
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret

    .section .bss.snippet, "aw", @nobits
    .balign 4096
    .global snippet_pages
snippet_pages:
    .skip   8192
"#
);

unsafe extern "C" {
    fn guest_snippet(registers: *mut Registers, code: u64);
    static mut snippet_pages: [u8; 2 * PAGE_BYTES];
}

/// First and last address at which debug exceptions are noted.
static NOTED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static TRAPS: [[AtomicU64; 3]; TRAPS_MAX] = [const { [const { AtomicU64::new(0) }; 3] }; TRAPS_MAX];
static TRAP_COUNT: AtomicUsize = AtomicUsize::new(0);
/// The single step into the code has not come yet.
static ENTERING: AtomicU64 = AtomicU64::new(0);

/// Runs `code`, which must leave the stack, R12 and control flow as they are; says where it lay, and how it ended.
///
/// # Safety
/// What the instructions do must leave the program's memory and state as they are.
pub unsafe fn run(code: &[u8], registers: &mut Registers) -> (u64, Option<Fault>) {
    // SAFETY: the caller's promise.
    unsafe { run_at(0, code, registers) }
}

/// The same with the code so many bytes behind the start of a page.
///
/// # Safety
/// As [`run`].
pub unsafe fn run_at(offset: usize, code: &[u8], registers: &mut Registers) -> (u64, Option<Fault>) {
    const RET: u8 = 0xc3;
    assert!(offset + code.len() < 2 * PAGE_BYTES, "the code fits");
    let start = &raw mut snippet_pages as u64 + offset as u64;
    for (at, &byte) in (start..).zip(code.iter().chain(&[RET])) {
        // SAFETY: pages of this module's own, to which no reference exists; CPUID below makes them code.
        unsafe { (at as *mut u8).write_volatile(byte) };
    }
    crate::cpu::cpuid(0, 0);
    NOTED[0].store(start, Ordering::Relaxed);
    NOTED[1].store(start + code.len() as u64, Ordering::Relaxed);
    TRAP_COUNT.store(0, Ordering::Relaxed);
    ENTERING.store(registers.rflags & TRAP_FLAG, Ordering::Relaxed);
    interrupts::handle(DEBUG, Some(note));
    let at = &raw mut *registers;
    // SAFETY: the caller's promise; the code ends with RET.
    let fault = catch(|| unsafe { guest_snippet(at, start) });
    interrupts::handle(DEBUG, None);
    (start, fault)
}

/// The debug exceptions of the last run, in order.
pub fn traps() -> impl ExactSizeIterator<Item = Trap> {
    let word = |index: usize, part: usize| TRAPS[index][part].load(Ordering::Relaxed);
    (0..TRAP_COUNT.load(Ordering::Relaxed)).map(move |index| Trap {
        rip: word(index, 0),
        rflags: word(index, 1),
        dr6: word(index, 2),
    })
}

fn note(frame: &mut Frame) {
    let dr6: u64;
    // SAFETY: only this handler looks at DR6.
    unsafe { asm!("mov {0}, dr6", "mov dr6, {1}", out(reg) dr6, in(reg) 0xffff_0ff0u64, options(nomem, nostack)) };
    let [first, last] = NOTED.each_ref().map(|bound| bound.load(Ordering::Relaxed));
    let is_entry = frame.rip == first && ENTERING.swap(0, Ordering::Relaxed) != 0;
    let count = TRAP_COUNT.load(Ordering::Relaxed);
    if (first..=last).contains(&frame.rip) && !is_entry && count < TRAPS_MAX {
        for (part, value) in TRAPS[count].iter().zip([frame.rip, frame.rflags, dr6]) {
            part.store(value, Ordering::Relaxed);
        }
        TRAP_COUNT.store(count + 1, Ordering::Relaxed);
    }
    if frame.rip == last || !(first..=last).contains(&frame.rip) {
        frame.rflags &= !TRAP_FLAG;
    }
}
