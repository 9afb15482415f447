//! The first instructions: from either boot protocol to Rust.
//!
//! At the image's start lies the PVH entry (32-bit, paging off, EBX at the start information; Xen's
//! docs/misc/pvh.pandoc), 0x200 bytes on the entry of Linux's 64-bit boot protocol (RSI at the boot parameters, the
//! first 4 GiB mapped). Between them a Multiboot 1 header gives addresses, so that the 64-bit ELF file is a Multiboot
//! image too, whose entry is as PVH's (0.6.96, 3.1 and 3.2). All end in the same environment: own GDT with Linux's
//! selectors, stack, zeroed .bss.

use crate::{boot, interrupts, power, println, serial, tap};
use core::arch::global_asm;

global_asm!(
    r#"
    .section .head, "ax"
    .code32
pvh_entry:
    mov     ebp, 1
    jmp     from_32_bits
multiboot_entry:
    mov     ebp, 2
    cmp     eax, 0x2badb002
    je      from_32_bits
    ud2

    .balign 4
multiboot_header:
    .long   0x1badb002
    .long   0x10003
    .long   0xe4514ffb
    .long   multiboot_header
    .long   __image_start
    .long   __data_end
    .long   __image_end
    .long   multiboot_entry

from_32_bits:
    cli
    cld
    mov     esp, offset stack_end
    mov     esi, ebx
    mov     edi, offset page_tables
    xor     eax, eax
    mov     ecx, 6 * 1024
    rep     stosd
    mov     eax, offset page_tables + 0x1003
    mov     dword ptr [page_tables], eax
    mov     eax, offset page_tables + 0x2003
    mov     edi, offset page_tables + 0x1000
    mov     ecx, 4
1:  mov     dword ptr [edi], eax
    add     edi, 8
    add     eax, 0x1000
    dec     ecx
    jnz     1b
    mov     eax, 0x83
    mov     edi, offset page_tables + 0x2000
    mov     ecx, 4 * 512
2:  mov     dword ptr [edi], eax
    add     edi, 8
    add     eax, 0x200000
    dec     ecx
    jnz     2b
    mov     eax, offset page_tables
    mov     cr3, eax
    mov     eax, cr4
    or      eax, 0x20
    mov     cr4, eax
    mov     ecx, 0xc0000080
    rdmsr
    or      eax, 0x100
    wrmsr
    mov     eax, cr0
    or      eax, 0x80000001
    mov     cr0, eax
    lgdt    [gdt_pointer]
    mov     eax, offset pvh_long
    push    0x10
    push    eax
    retf
    .code64
pvh_long:
    mov     edi, esi
    mov     esi, ebp
    jmp     common

    .org    pvh_entry + 0x200
    .global _start
_start:
    cli
    cld
    mov     rdi, rsi
    xor     esi, esi
common:
    lgdt    [rip + gdt_pointer]
    mov     eax, 0x18
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    lea     rsp, [rip + stack_end]
    mov     r8, rdi
    lea     rdi, [rip + __bss_start]
    lea     rcx, [rip + __bss_end]
    sub     rcx, rdi
    xor     eax, eax
    rep     stosb
    mov     rdi, r8
    xor     ebp, ebp
    call    guest_start
    ud2

    .section .rodata, "a"
    .balign 8
gdt:
    .quad   0
    .quad   0
    .quad   0x00af9b000000ffff
    .quad   0x00cf93000000ffff
gdt_pointer:
    .word   31
    .quad   gdt

    .section .note.pvh, "a", @note
    .balign 4
    .long   4
    .long   8
    .long   18
    .asciz  "Xen"
    .quad   pvh_entry

    .section .bss.stack, "aw", @nobits
    .balign 16
    .skip   65536
stack_end:

    .section .page_tables, "aw", @nobits
    .balign 4096
page_tables:
    .skip   6 * 4096
"#
);

unsafe extern "Rust" {
    fn guest_main();
}

/// Called on the stack, .bss zeroed: `information` is the boot protocol's page, `protocol` 0 for Linux, 1 for PVH, 2 for Multiboot.
#[unsafe(no_mangle)]
extern "C" fn guest_start(information: u64, protocol: u32) -> ! {
    serial::start();
    interrupts::start();
    // SAFETY: the entry code passes on what the loader gave it, under the protocol it came by.
    unsafe { boot::start(information, protocol) };
    // SAFETY: `guest!` defines it with this signature.
    unsafe { guest_main() };
    tap::finish();
    println!("done");
    power::off()
}
