//! Four and five levels of page tables: CR4.LA57 changes only outside long mode.
//!
//! [`set`] leaves it and comes back with the other number of levels. With five, every address that four know is where it
//! was, and again from [`ALIAS`] on. Intel SDM volume 3, 5.1 and 11.8.5.3.

use core::arch::{asm, global_asm};

/// An address that is canonical with 57 bits alone, where what is at 0 is too.
pub const ALIAS: u64 = 1 << 48;
/// CR4.LA57.
pub const LA57: u64 = 1 << 12;
const PRESENT_WRITABLE: u64 = 3;

#[repr(C, align(4096))]
struct Table([u64; 512]);

/// The fifth level.
static mut ROOT: Table = Table([0; 512]);

global_asm!(
    r#"
    .section .text, "ax"
    /* guest_levels(cr3, cr4): through 32-bit code without paging. */
    .code64
    .global guest_levels
guest_levels:
    push    rbx
    push    rbp
    sub     rsp, 24
    sgdt    [rsp]
    mov     rbp, rsp
    lgdt    [rip + levels_gdt_pointer]
    push    0x08
    lea     rax, [rip + levels_32]
    push    rax
    retfq

    .code32
levels_32:
    mov     eax, cr0
    and     eax, 0x7fffffff
    mov     cr0, eax
    mov     cr4, esi
    mov     cr3, edi
    or      eax, 0x80000000
    mov     cr0, eax
    .byte   0xea
    .long   levels_64
    .word   0x10

    .code64
levels_64:
    mov     rsp, rbp
    lgdt    [rsp]
    add     rsp, 24
    pop     rbp
    pop     rbx
    ret

    .section .rodata, "a"
    .balign 8
levels_gdt:
    .quad   0
    .quad   0x00cf9b000000ffff
    .quad   0x00af9b000000ffff
levels_gdt_pointer:
    .word   23
    .quad   levels_gdt
    "#
);

unsafe extern "C" {
    fn guest_levels(cr3: u64, cr4: u64);
}

/// Goes on with five levels of page tables, or with four again. The processor has CR4.LA57, and no page that is in use has a
/// PCID.
pub fn set(five: bool) {
    let (root, cr4): (u64, u64);
    // SAFETY: reads registers.
    unsafe { asm!("mov {}, cr3", "mov {}, cr4", out(reg) root, out(reg) cr4, options(nomem, nostack)) };
    let own = &raw mut ROOT as u64;
    // SAFETY: the table is this module's own. The program, its stack and tables lie below 4 GiB, one to one, in both; interrupts
    // are off.
    unsafe {
        let entries = (&raw mut ROOT).cast::<u64>();
        if five {
            entries.write_volatile(root | PRESENT_WRITABLE);
            entries.add((ALIAS >> 48) as usize).write_volatile(root | PRESENT_WRITABLE);
            guest_levels(own, cr4 | LA57);
        } else {
            guest_levels(entries.read_volatile() & !0xfff, cr4 & !LA57);
        }
    }
}
