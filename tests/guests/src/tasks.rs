//! Tasks of protected mode: descriptor tables, task-state segments, and code that notes what a task begins with.
//!
//! [`prepare`] makes three tasks; [`run`] runs instructions in the first, from where they switch to another, whose code
//! notes what it finds in [`seen`] words and goes back. Intel SDM volume 3, chapter 8.

use crate::legacy_modes::{self, BASE, CODE, Fault, Mode, Registers, get, put};
use crate::mmio;
use core::arch::global_asm;

const GDT: u64 = BASE;
const IDT: u64 = BASE + 0x200;
const POINTERS: u64 = BASE + 0x400;
/// The task that [`run`] begins in, the other, and one of 16 bits.
pub const MAIN: u64 = BASE + 0x500;
/// See [`MAIN`].
pub const OTHER: u64 = BASE + 0x600;
/// See [`MAIN`].
pub const NARROW: u64 = BASE + 0x700;
/// What a task's code notes.
const SEEN: u64 = BASE + 0x800;
/// Where the other task's stack ends, that of its inner level, and that of the narrow task.
pub const STACK: u64 = BASE + 0x2000;
const INNER_STACK: u64 = BASE + 0x2400;
const NARROW_STACK: u64 = 0x2800;
/// Code of 16 bits.
const NARROW_CODE: u64 = 0x2c00;
/// A page for tables.
pub const TABLE: u64 = BASE + 0x3000;
/// A linear address that the code reads where there is paging.
pub const MAPPED: u64 = 0x3002_6000;
/// How much [`run`] puts before the instructions.
pub const PROLOGUE: u64 = 7;

/// Selectors behind those of `legacy_modes`.
pub mod selector {
    #![allow(missing_docs, reason = "the names say it")]
    pub const CODE: u16 = 0x08;
    pub const FLAT: u16 = 0x18;
    pub const MAIN: u16 = 0x48;
    pub const OTHER: u16 = 0x50;
    pub const NARROW: u16 = 0x58;
    /// A task gate to the other.
    pub const GATE: u16 = 0x60;
    pub const LDT: u16 = 0x68;
    /// Data that is not present.
    pub const ABSENT: u16 = 0x70;
    /// For a task at level 3.
    pub const USER_CODE: u16 = 0x7b;
    pub const USER_DATA: u16 = 0x83;
    /// The flat data segment by the LDT.
    pub const LOCAL: u16 = 0x1c;
    /// Beyond the table.
    pub const BEYOND: u16 = 0x100;
}

/// Fields of a task-state segment of 32 bits.
pub mod field {
    #![allow(missing_docs, reason = "the names are the manual's")]
    pub const LINK: u64 = 0;
    pub const ESP0: u64 = 4;
    pub const SS0: u64 = 8;
    pub const CR3: u64 = 0x1c;
    pub const EIP: u64 = 0x20;
    pub const EFLAGS: u64 = 0x24;
    pub const EAX: u64 = 0x28;
    pub const ESP: u64 = 0x38;
    pub const ES: u64 = 0x48;
    pub const CS: u64 = 0x4c;
    pub const SS: u64 = 0x50;
    pub const DS: u64 = 0x54;
    pub const FS: u64 = 0x58;
    pub const GS: u64 = 0x5c;
    pub const LDT: u64 = 0x60;
    pub const TRAP: u64 = 0x64;
}

/// Words that a task notes: what it began with.
pub mod word {
    #![allow(missing_docs, reason = "the names say it")]
    /// In the order of the encoding; ESP is the fifth.
    pub const GPRS: u64 = 0;
    pub const EFLAGS: u64 = 0x20;
    pub const TOP: u64 = 0x24;
    pub const CR0: u64 = 0x28;
    pub const CR3: u64 = 0x2c;
    pub const DR7: u64 = 0x30;
    pub const TR: u64 = 0x34;
    pub const LDT: u64 = 0x38;
    pub const GS: u64 = 0x3c;
    pub const MAIN_RIGHTS: u64 = 0x40;
    pub const OTHER_RIGHTS: u64 = 0x44;
    pub const LINK: u64 = 0x48;
    pub const COUNT: u64 = 0x4c;
    pub const MAPPED: u64 = 0x50;
    /// What it does then: whether it goes back by JMP, how far behind itself the main task goes on, and how many bytes it
    /// takes from its stack.
    pub const JUMPS: u64 = 0x60;
    pub const SKIPS: u64 = 0x64;
    pub const POPS: u64 = 0x68;
    /// What the narrow task notes: EAX, ESP, flags, TR, FS.
    pub const NARROW: u64 = 0x80;
}

global_asm!(
    r#"
    .section .text, "ax"
    .code32
    .global tasks_setup
tasks_setup:
    push    eax
    lgdt    cs:[0x20400]
    lidt    cs:[0x20408]
    mov     eax, 0x48
    ltr     ax
    pop     eax
    retf

    .global tasks_observer
tasks_observer:
    mov     dword ptr [0x20800], eax
    mov     dword ptr [0x20804], ecx
    mov     dword ptr [0x20808], edx
    mov     dword ptr [0x2080c], ebx
    mov     dword ptr [0x20810], esp
    mov     dword ptr [0x20814], ebp
    mov     dword ptr [0x20818], esi
    mov     dword ptr [0x2081c], edi
    pushfd
    pop     dword ptr [0x20820]
    mov     eax, dword ptr [esp]
    mov     dword ptr [0x20824], eax
    mov     eax, cr0
    mov     dword ptr [0x20828], eax
    mov     eax, cr3
    mov     dword ptr [0x2082c], eax
    mov     eax, dr7
    mov     dword ptr [0x20830], eax
    xor     eax, eax
    str     ax
    mov     dword ptr [0x20834], eax
    sldt    ax
    mov     dword ptr [0x20838], eax
    mov     eax, gs
    mov     dword ptr [0x2083c], eax
    mov     eax, dword ptr [0x2004c]
    mov     dword ptr [0x20840], eax
    mov     eax, dword ptr [0x20054]
    mov     dword ptr [0x20844], eax
    mov     eax, dword ptr [0x20600]
    mov     dword ptr [0x20848], eax
    inc     dword ptr [0x2084c]
    mov     eax, cr0
    test    eax, eax
    jns     1f
    mov     eax, dword ptr [0x30026000]
    mov     dword ptr [0x20850], eax
1:  add     esp, dword ptr [0x20868]
    mov     eax, dword ptr [0x20864]
    add     dword ptr [0x20520], eax
    cmp     dword ptr [0x20860], 0
    jne     2f
    iretd
    jmp     tasks_observer
    /* ljmp MAIN */
2:  .byte   0xea
    .long   0
    .word   0x48
    jmp     tasks_observer

    .section .rodata, "a"
    .global tasks_narrow
    .global tasks_narrow_end
    .code16
tasks_narrow:
    mov     dword ptr [0x880], eax
    mov     dword ptr [0x884], esp
    pushf
    pop     word ptr [0x888]
    str     word ptr [0x88c]
    mov     ax, fs
    mov     word ptr [0x890], ax
    /* iret */
    .byte   0xcf
tasks_narrow_end:
    "#
);

unsafe extern "C" {
    fn tasks_setup();
    fn tasks_observer();
    static tasks_narrow: u8;
    static tasks_narrow_end: u8;
}

/// Makes the descriptor tables and the three tasks as they are first, for a mode. After `legacy_modes::start`.
pub fn prepare(mode: Mode) {
    const BYTES: u64 = 0x4000;
    (0..BYTES).step_by(4).for_each(|at| put(BASE + at, 0));
    legacy_modes::copy_tables(GDT, IDT);
    put(POINTERS, 0xff | GDT << 16);
    put(POINTERS + 4, GDT >> 16);
    put(POINTERS + 8, 0x1ff | IDT << 16);
    put(POINTERS + 12, IDT >> 16);
    for (selector, base, limit, rights) in [
        (selector::MAIN, MAIN, 0x67, 0x89),
        (selector::OTHER, OTHER, 0x67, 0x89),
        (selector::NARROW, NARROW, 0x2b, 0x81),
        (selector::LDT, BASE, 0xff, 0x82),
        (selector::ABSENT, BASE, 0xff, 0x13),
        (selector::USER_CODE, 0, 0xf_ffff, 0xc0fb),
        (selector::USER_DATA, 0, 0xf_ffff, 0xc0f3),
    ] {
        describe(selector, base, limit, rights);
    }
    put_gate(GDT + u64::from(selector::GATE));
    for (index, value) in (0..).zip([0x1001, 0x1002, 0x1003, 0x1004, STACK, 0x1006, 0x1007, 0x1008]) {
        put(OTHER + field::EAX + 4 * index, value);
        put_word(NARROW + 0x12 + 2 * index, if index == 4 { NARROW_STACK } else { value });
    }
    for tss in [MAIN, OTHER] {
        put(tss + field::CR3, legacy_modes::cr3(mode));
        put(tss + field::ESP0, INNER_STACK);
        put(tss + field::SS0, selector::FLAT.into());
    }
    put(OTHER + field::EIP, tasks_observer as *const () as u64);
    put(OTHER + field::EFLAGS, 2);
    put(OTHER + field::CS, selector::CODE.into());
    for register in [field::ES, field::SS, field::DS, field::FS, field::GS] {
        put(OTHER + register, selector::FLAT.into());
    }
    prepare_narrow();
}

/// The task of 16 bits, whose segments begin at `BASE`.
fn prepare_narrow() {
    let (first, end) = (&raw const tasks_narrow as u64, &raw const tasks_narrow_end as u64);
    for at in (0..end - first).step_by(4) {
        put(BASE + NARROW_CODE + at, get(first + at));
    }
    put_word(NARROW + 0x0e, NARROW_CODE);
    put_word(NARROW + 0x10, 2);
    for (at, selector) in [(0x22, 0x28), (0x24, 0x20), (0x26, 0x28), (0x28, 0x28)] {
        put_word(NARROW + at, selector);
    }
}

/// Runs instructions in the main task; they end with CR0 in ESI.
///
/// # Safety
/// As `legacy_modes::run`.
pub unsafe fn run(mode: Mode, code: &[u8], registers: &mut Registers) -> Option<Fault> {
    const EPILOGUE: [u8; 5] = [
        0x0f, 0x20, 0xc6, // mov esi, cr0
        0x0f, 0x06, // clts
    ];
    let [a, b, c, d, ..] = (tasks_setup as *const () as u64).to_le_bytes();
    let mut all = [0; 64];
    let prologue = [0x9a, a, b, c, d, selector::CODE as u8, 0];
    let bytes = prologue.iter().chain(code).chain(&EPILOGUE);
    let length = all.iter_mut().zip(bytes).map(|(to, &from)| *to = from).count();
    // SAFETY: the caller's promise; the tables that are loaded have what the module's own have.
    unsafe { legacy_modes::run(mode, &all[..length], registers) }
}

/// CALL of a selector.
pub const fn call(selector: u16) -> [u8; 7] {
    [0x9a, 0, 0, 0, 0, selector as u8, (selector >> 8) as u8]
}

/// JMP to a selector.
pub const fn jump(selector: u16) -> [u8; 7] {
    [0xea, 0, 0, 0, 0, selector as u8, (selector >> 8) as u8]
}

/// Makes an exception or interrupt go to the other task.
pub fn gate(vector: u64) {
    put_gate(IDT + 8 * vector);
}

/// A word that a task noted.
pub fn seen(word: u64) -> u64 {
    get(SEEN + word)
}

/// Sets what it does then.
pub fn tell(word: u64, value: u64) {
    put(SEEN + word, value);
}

/// The rights of a selector's descriptor.
pub fn rights(selector: u16) -> u64 {
    get(GDT + u64::from(selector) + 4) >> 8 & 0xff
}

/// Sets a selector's descriptor: of the rights' bits 15:12 the first says that the limit counts pages.
pub fn describe(selector: u16, base: u64, limit: u64, rights: u64) {
    let at = GDT + u64::from(selector & !7);
    put(at, limit & 0xffff | (base & 0xffff) << 16);
    put(at + 4, base >> 16 & 0xff | rights << 8 | limit & 0xf_0000 | base & 0xff00_0000);
}

/// How far behind the main task's instructions it was left.
pub fn left_at() -> u64 {
    get(MAIN + field::EIP).wrapping_sub(BASE + CODE + PROLOGUE)
}

/// Writes two bytes.
pub fn put_word(at: u64, value: u64) {
    // SAFETY: as `legacy_modes::put`.
    unsafe { mmio::write(at, 2, value) }
}

fn put_gate(at: u64) {
    put(at, u64::from(selector::OTHER) << 16);
    put(at + 4, 0x8500);
}
