//! A few instructions of machine code in the modes before 64 bits: protected mode with 32 and 16 bits, with and without
//! paging, and real mode.
//!
//! [`run`] leaves long mode, runs them with chosen registers and segments, and comes back, also from a fault. The code lies
//! below 1 MiB, at [`BASE`], where every segment but the flat one begins. Intel SDM volume 3, 11.9 and 12.8.5.

use core::arch::global_asm;

/// Where the code's segments begin. The first 32 KiB are the guest's.
pub const BASE: u64 = 0x2_0000;
/// What assembly and this module share, then the code for real mode, then page tables.
const BLOCK: u64 = BASE + 0x8000;
const REAL: u64 = BASE + 0x9000;
const DIRECTORY: u64 = BASE + 0xa000;
const POINTERS: u64 = BASE + 0xb000;
const DIRECTORIES: u64 = BASE + 0xc000;
/// Where the code is put, from `BASE` on.
pub const CODE: u64 = 0x4000;
/// Descriptors and gates.
const SEGMENTS: usize = 9;
const GATES: usize = 32;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const PAGING: u64 = 1 << 31;

/// A mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Mode {
    Protected32,
    /// With pages of 4 MiB.
    Paged32,
    /// With PAE and pages of 2 MiB.
    PagedPae,
    Protected16,
    Real,
}

/// Selectors of data segments, for the modes that have them.
pub mod selector {
    /// All 4 GiB.
    pub const FLAT: u64 = 0x18;
    /// 64 KiB from [`BASE`](super::BASE) on.
    pub const WIDE: u64 = 0x28;
    /// The first 4 KiB of those.
    pub const SHORT: u64 = 0x30;
    /// What is behind them.
    pub const DOWN: u64 = 0x38;
    /// As wide, read-only.
    pub const READ_ONLY: u64 = 0x40;
}

/// What the code begins and ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct Registers {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
    /// Selectors; real mode has [`BASE`] in both.
    pub ds: u64,
    pub es: u64,
}

impl Default for Registers {
    fn default() -> Self {
        Self { eax: 0, ebx: 0, ecx: 0, edx: 0, esi: 0, edi: 0, ds: selector::WIDE, es: selector::WIDE }
    }
}

/// A fault: vector, error code (0 where there is none), and how far behind the code's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Fault {
    pub vector: u64,
    pub error_code: u64,
    pub offset: u64,
}

/// Words of the block.
mod word {
    pub const EIP: u64 = 24;
    pub const CS: u64 = 28;
    pub const DS: u64 = 32;
    pub const ES: u64 = 36;
    pub const CR3: u64 = 40;
    pub const CR4: u64 = 44;
    pub const PAGING: u64 = 48;
    pub const REAL: u64 = 52;
    pub const VECTOR: u64 = 56;
    pub const ERROR: u64 = 60;
    pub const FAULT_EIP: u64 = 64;
}

global_asm!(
    r#"
    .section .text, "ax"
    .code64
    .global guest_legacy
guest_legacy:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    mov     qword ptr [0x28048], rsp
    mov     rax, cr3
    mov     qword ptr [0x28050], rax
    mov     rax, cr4
    mov     qword ptr [0x28058], rax
    sidt    [0x28070]
    lgdt    [rip + legacy_gdt_pointer]
    lidt    [rip + legacy_idt_pointer]
    push    0x08
    lea     rax, [rip + legacy_32]
    push    rax
    retfq

    .code32
legacy_32:
    mov     eax, 0x18
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     esp, offset legacy_stack_end
    mov     eax, cr0
    and     eax, 0x7fffffff
    mov     cr0, eax
    mov     ecx, 0xc0000080
    rdmsr
    and     eax, 0xfffffeff
    wrmsr
    mov     eax, dword ptr [0x2802c]
    mov     cr4, eax
    mov     eax, dword ptr [0x28028]
    mov     cr3, eax
    mov     eax, cr0
    or      eax, dword ptr [0x28030]
    mov     cr0, eax
    cmp     dword ptr [0x28034], 0
    jne     legacy_real
    mov     eax, dword ptr [0x28024]
    mov     es, eax
    push    dword ptr [0x2801c]
    push    dword ptr [0x28018]
    push    dword ptr [0x28020]
    mov     eax, dword ptr [0x28000]
    mov     ebx, dword ptr [0x28004]
    mov     ecx, dword ptr [0x28008]
    mov     edx, dword ptr [0x2800c]
    mov     esi, dword ptr [0x28010]
    mov     edi, dword ptr [0x28014]
    /* pop ds, by its 32-bit form */
    .byte   0x1f
    retf

legacy_real:
    mov     eax, 0x28
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    .byte   0xea
    .long   0x9000
    .word   0x20

    /* Where code in real mode ends: segments are still real mode's, EAX is at 2:8060. */
legacy_back_real:
    mov     eax, 0x18
    mov     ds, eax
    mov     ss, eax
    mov     esp, offset legacy_stack_end
    mov     eax, dword ptr [0x28060]
    /* Where the others end. */
    .global legacy_back
legacy_back:
    pushad
    mov     eax, 0x18
    mov     ds, eax
    mov     es, eax
    jmp     legacy_leave

legacy_fault:
    pushad
    mov     eax, 0x18
    mov     ds, eax
    mov     es, eax
    mov     ebx, dword ptr [esp + 32]
    mov     dword ptr [0x28038], ebx
    lea     ecx, [esp + 36]
    mov     edx, 0x27d00
    bt      edx, ebx
    jnc     1f
    mov     eax, dword ptr [ecx]
    mov     dword ptr [0x2803c], eax
    add     ecx, 4
1:  mov     eax, dword ptr [ecx]
    mov     dword ptr [0x28040], eax

legacy_leave:
    mov     eax, dword ptr [esp + 28]
    mov     dword ptr [0x28000], eax
    mov     eax, dword ptr [esp + 16]
    mov     dword ptr [0x28004], eax
    mov     eax, dword ptr [esp + 24]
    mov     dword ptr [0x28008], eax
    mov     eax, dword ptr [esp + 20]
    mov     dword ptr [0x2800c], eax
    mov     eax, dword ptr [esp + 4]
    mov     dword ptr [0x28010], eax
    mov     eax, dword ptr [esp]
    mov     dword ptr [0x28014], eax
    mov     eax, cr0
    and     eax, 0x7fffffff
    mov     cr0, eax
    mov     eax, dword ptr [0x28058]
    mov     cr4, eax
    mov     eax, dword ptr [0x28050]
    mov     cr3, eax
    mov     ecx, 0xc0000080
    rdmsr
    or      eax, 0x100
    wrmsr
    mov     eax, cr0
    or      eax, 0x80000000
    mov     cr0, eax
    .byte   0xea
    .long   legacy_64
    .word   0x10

    .balign 8
legacy_stubs:
    .set    legacy_vector, 0
    .rept   32
    .balign 8
    push    legacy_vector
    jmp     legacy_fault
    .set    legacy_vector, legacy_vector + 1
    .endr

    .code64
legacy_64:
    mov     rsp, qword ptr [0x28048]
    lidt    [0x28070]
    mov     eax, 0x18
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret

    .section .rodata, "a"
    /* Copied to REAL: first how real mode begins, at 0x40 how its code ends, at 0x80 the stubs of its faults. */
    .global legacy_real_code
legacy_real_code:
    .code16
    mov     eax, cr0
    and     al, 0xfe
    mov     cr0, eax
    .byte   0xea
    .word   0x9000 + 1f - legacy_real_code
    .word   0x2000
1:  mov     ax, 0x2000
    mov     ds, ax
    mov     es, ax
    mov     ss, ax
    mov     sp, 0x7ff0
    /* lidt [9200h] */
    .byte   0x0f, 0x01, 0x1e, 0x00, 0x92
    push    ax
    push    word ptr [0x8018]
    jmp     2f
    .org    legacy_real_code + 0x40
    mov     dword ptr cs:[0x8060], eax
3:  mov     eax, cr0
    or      al, 1
    mov     cr0, eax
    .byte   0x66, 0xea
    .long   legacy_back_real
    .word   0x08
2:  mov     eax, dword ptr [0x8000]
    mov     ebx, dword ptr [0x8004]
    mov     ecx, dword ptr [0x8008]
    mov     edx, dword ptr [0x800c]
    mov     esi, dword ptr [0x8010]
    mov     edi, dword ptr [0x8014]
    /* retf, by its 16-bit form */
    .byte   0xcb
    .org    legacy_real_code + 0x80
    .set    legacy_vector, 0
    .rept   32
    .byte   0x6a, legacy_vector
    /* jmp, 16 bits */
    .byte   0xe9
    .word   4f - . - 2
    .byte   0x90, 0x90, 0x90
    .set    legacy_vector, legacy_vector + 1
    .endr
4:  mov     dword ptr cs:[0x8060], eax
    pop     ax
    mov     word ptr cs:[0x8038], ax
    mov     word ptr cs:[0x803a], 0
    pop     ax
    mov     word ptr cs:[0x8040], ax
    jmp     3b
    .org    legacy_real_code + 0x200
    .word   0x7f
    .long   0x20000 + 0x9210
    .org    legacy_real_code + 0x210
    .set    legacy_vector, 0
    .rept   32
    .word   0x9080 + 8 * legacy_vector
    .word   0x2000
    .set    legacy_vector, legacy_vector + 1
    .endr
    .global legacy_real_code_end
legacy_real_code_end:

    .balign 8
    .global legacy_gdt
legacy_gdt:
    .quad   0
    .quad   0x00cf9b000000ffff
    .quad   0x00af9b000000ffff
    .quad   0x00cf93000000ffff
    .quad   0x00009b020000ffff
    .quad   0x000093020000ffff
    .quad   0x0000930200000fff
    .quad   0x0040970200000fff
    .quad   0x000091020000ffff
legacy_gdt_pointer:
    .word   71
    .quad   legacy_gdt
legacy_idt_pointer:
    .word   255
    .quad   legacy_idt
    .global legacy_idt_stubs
legacy_idt_stubs:
    .quad   legacy_stubs

    .section .bss.legacy, "aw", @nobits
    .balign 16
    .global legacy_idt
legacy_idt:
    .skip   256
    .skip   4096
legacy_stack_end:
    "#
);

unsafe extern "C" {
    fn guest_legacy();
    fn legacy_back();
    static legacy_real_code: u8;
    static legacy_real_code_end: u8;
    static legacy_idt_stubs: u64;
    static legacy_gdt: [u64; SEGMENTS];
    static mut legacy_idt: [u64; GATES];
}

/// Puts what it needs into low memory. Once, before [`run`].
pub fn start() {
    let (first, end) = (&raw const legacy_real_code as u64, &raw const legacy_real_code_end as u64);
    for at in 0..end - first {
        // SAFETY: the code above; low memory that nobody else uses.
        unsafe { ((REAL + at) as *mut u8).write_volatile(((first + at) as *const u8).read_volatile()) };
    }
    for vector in 0..32 {
        // SAFETY: this module's own.
        unsafe {
            let stub = (&raw const legacy_idt_stubs).read_volatile() + 8 * vector;
            let gate = stub & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (stub & 0xffff_0000) << 32;
            (&raw mut legacy_idt).cast::<u64>().add(vector as usize).write_volatile(gate);
        }
    }
    for index in 0..1024 {
        put(DIRECTORY + 4 * index, index << 22 | 0x83);
    }
    for directory in 0..4 {
        put(POINTERS + 8 * directory, (DIRECTORIES + 4096 * directory) | 1);
        put(POINTERS + 8 * directory + 4, 0);
        for index in 0..512 {
            put(DIRECTORIES + 4096 * directory + 8 * index, directory << 30 | index << 21 | 0x83);
            put(DIRECTORIES + 4096 * directory + 8 * index + 4, 0);
        }
    }
}

/// Copies the descriptor tables to where code that loads them finds them, to be changed: nine segments and 32 gates.
pub fn copy_tables(gdt: u64, idt: u64) {
    let copy = |from: u64, to: u64, count: usize| {
        for at in (0..8 * count as u64).step_by(4) {
            put(to + at, get(from + at));
        }
    };
    copy(&raw const legacy_gdt as u64, gdt, SEGMENTS);
    copy(&raw const legacy_idt as u64, idt, GATES);
}

/// What is in CR3 in a mode.
pub fn cr3(mode: Mode) -> u64 {
    match mode {
        Mode::Paged32 => DIRECTORY,
        Mode::PagedPae => POINTERS,
        _ => 0,
    }
}

/// The entry that maps an address in a mode with paging.
pub fn entry(mode: Mode, address: u64) -> u64 {
    if mode == Mode::PagedPae { DIRECTORIES + 8 * (address >> 21) } else { DIRECTORY + 4 * (address >> 22) }
}

/// Runs `code` in a mode; says what fault ended it.
///
/// # Safety
/// What the instructions do must leave the program's memory and state as they are.
pub unsafe fn run(mode: Mode, code: &[u8], registers: &mut Registers) -> Option<Fault> {
    let Registers { eax, ebx, ecx, edx, esi, edi, ds, es } = *registers;
    for (index, value) in (0..).zip([eax, ebx, ecx, edx, esi, edi]) {
        put(BLOCK + 4 * index, value.into());
    }
    let back = legacy_back as *const () as u64;
    let (cs, base) = match mode {
        Mode::Protected32 | Mode::Paged32 | Mode::PagedPae => (0x08, BASE),
        Mode::Protected16 | Mode::Real => (0x20, 0),
    };
    // A far jump home.
    let real_home = [0xea, 0x40, 0x90, 0x00, 0x20, 0, 0, 0];
    let [b0, b1, b2, b3, ..] = back.to_le_bytes();
    let home: &[u8] = match mode {
        Mode::Real => &real_home,
        Mode::Protected16 => &[0x66, 0xea, b0, b1, b2, b3, 0x08, 0],
        _ => &[0xea, b0, b1, b2, b3, 0x08, 0],
    };
    for (at, &byte) in (BASE + CODE..).zip(code.iter().chain(home)) {
        // SAFETY: low memory of this module's own.
        unsafe { (at as *mut u8).write_volatile(byte) };
    }
    let (cr4, paging) = match mode {
        Mode::Paged32 => (PSE, PAGING),
        Mode::PagedPae => (PAE, PAGING),
        _ => (0, 0),
    };
    for (at, value) in [
        (word::EIP, base + CODE),
        (word::CS, cs),
        (word::DS, ds),
        (word::ES, es),
        (word::CR3, cr3(mode)),
        (word::CR4, cr4),
        (word::PAGING, paging),
        (word::REAL, u64::from(mode == Mode::Real)),
        (word::VECTOR, u64::from(u32::MAX)),
        (word::ERROR, 0),
        (word::FAULT_EIP, 0),
    ] {
        put(BLOCK + at, value);
    }
    // SAFETY: the caller's promise; everything is in place, and interrupts are off.
    unsafe { guest_legacy() };
    let [eax, ebx, ecx, edx, esi, edi] = [0, 1, 2, 3, 4, 5].map(|index| get(BLOCK + 4 * index) as u32);
    *registers = Registers { eax, ebx, ecx, edx, esi, edi, ds, es };
    let vector = get(BLOCK + word::VECTOR);
    let offset = get(BLOCK + word::FAULT_EIP).wrapping_sub(base + CODE);
    (vector != u64::from(u32::MAX)).then(|| Fault { vector, error_code: get(BLOCK + word::ERROR), offset })
}

/// Reads a word of low memory.
pub fn get(at: u64) -> u64 {
    // SAFETY: low memory that no Rust object is in.
    unsafe { crate::mmio::read(at, 4) }
}

/// Writes one.
pub fn put(at: u64, value: u64) {
    // SAFETY: as `get`; whoever writes knows what for.
    unsafe { crate::mmio::write(at, 4, value) }
}
