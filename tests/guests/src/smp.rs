//! The other processors: how they are started, and where each begins (Intel SDM volume 3, 10.4.4).
//!
//! They come up in real mode in a page below 1 MiB, take over tables and paging of the processor that starts them, and
//! run one function, each on a stack of its own, with its local APIC enabled and interrupts shut.

use crate::{apic, cpu};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The most processors beside the first.
pub const OTHERS_MAX: usize = 15;
/// Where they begin: conventional memory in which no loader leaves anything.
const TRAMPOLINE: u64 = 0x1_0000;
/// How long a processor is left alone after INIT, and between two start-up messages.
const PAUSE_CYCLES: u64 = 2_000_000;

global_asm!(
    r#"
    .section .rodata, "a"
    .code16
ap_trampoline:
    cli
    cld
    mov     ax, cs
    mov     ds, ax
    /* lgdt [ap_gdt_pointer - ap_trampoline] */
    .byte   0x0f, 0x01, 0x16
    .word   ap_gdt_pointer - ap_trampoline
    mov     eax, cr0
    or      eax, 1
    mov     cr0, eax
    .byte   0x66, 0xea
    .long   {trampoline} + ap_protected - ap_trampoline
    .word   0x08
    .code32
ap_protected:
    mov     eax, 0x18
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     eax, cr4
    or      eax, 0x20
    mov     cr4, eax
    mov     eax, dword ptr [{root}]
    mov     cr3, eax
    mov     ecx, 0xc0000080
    rdmsr
    or      eax, 0x100
    wrmsr
    mov     eax, cr0
    and     eax, 0x9fffffff
    or      eax, 0x80000001
    mov     cr0, eax
    .byte   0xea
    .long   ap_long
    .word   0x10
    .balign 8
ap_gdt:
    .quad   0
    .quad   0x00cf9b000000ffff
    .quad   0x00af9b000000ffff
    .quad   0x00cf93000000ffff
ap_gdt_pointer:
    .word   31
    .long   {trampoline} + ap_gdt - ap_trampoline
ap_trampoline_end:

    .section .text, "ax"
    .code64
ap_long:
    lgdt    [rip + {gdt}]
    lidt    [rip + {idt}]
    mov     eax, 1
    lock xadd dword ptr [rip + {next}], eax
    mov     edi, eax
    inc     eax
    imul    rax, rax, 16384
    lea     rsp, [rip + ap_stacks]
    add     rsp, rax
    xor     ebp, ebp
    call    {begin}
    ud2

    .section .bss.stack, "aw", @nobits
    .balign 16
ap_stacks:
    .skip   16384 * 15
    "#,
    trampoline = const TRAMPOLINE,
    root = sym ROOT,
    gdt = sym GDT,
    idt = sym IDT,
    next = sym NEXT,
    begin = sym begin,
);

/// What the starting processor leaves for the others: CR3, GDTR and IDTR.
static ROOT: AtomicU64 = AtomicU64::new(0);
static GDT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static IDT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// The number of the next to come; they count from 0.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// What they run, as an address.
static MAIN: AtomicU64 = AtomicU64::new(0);

/// How many processors the machine says it has (CPUID leaf 1).
pub fn count() -> usize {
    (cpu::cpuid(1, 0).ebx >> 16 & 0xff).max(1) as usize
}

/// Prepares the page where processors begin; each will run `main` with its number, from 0 on in the order in which they
/// come. When it returns, the processor halts for ever.
pub fn prepare(main: fn(usize)) {
    unsafe extern "C" {
        static ap_trampoline: u8;
        static ap_trampoline_end: u8;
    }
    let (root, gdt, idt): (u64, _, _) = (cr3(), GDT.as_ptr(), IDT.as_ptr());
    // SAFETY: the tables' registers are stored in statics of sufficient size; the page is free low memory.
    unsafe {
        asm!("sgdt [{}]", "sidt [{}]", in(reg) gdt, in(reg) idt, options(nostack, preserves_flags));
        let start = &raw const ap_trampoline;
        let bytes = (&raw const ap_trampoline_end).offset_from_unsigned(start);
        core::ptr::copy_nonoverlapping(start, TRAMPOLINE as *mut u8, bytes);
    }
    ROOT.store(root, Ordering::Relaxed);
    NEXT.store(0, Ordering::Relaxed);
    MAIN.store(main as usize as u64, Ordering::Release);
}

/// Starts the processor with this APIC ID, or with `None` all others: INIT, STARTUP, STARTUP.
pub fn start(id: Option<u32>) {
    apic::send_init(id);
    pause();
    for _ in 0..2 {
        apic::send_startup((TRAMPOLINE >> 12) as u8, id);
        pause();
    }
}

/// CR3.
pub fn cr3() -> u64 {
    let root;
    // SAFETY: reading CR3 changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack, preserves_flags)) };
    root
}

/// Forgets every translation that this processor keeps.
pub fn flush() {
    // SAFETY: the same tables again.
    unsafe { asm!("mov cr3, {}", in(reg) cr3(), options(nostack, preserves_flags)) };
}

fn pause() {
    let start = cpu::tsc();
    while cpu::tsc().wrapping_sub(start) < PAUSE_CYCLES {
        core::hint::spin_loop();
    }
}

/// Where a processor comes to Rust.
extern "C" fn begin(index: u32) -> ! {
    apic::start();
    let main = MAIN.load(Ordering::Acquire) as usize;
    // SAFETY: `prepare` stored a function of this type there, before any processor was started.
    let main: fn(usize) = unsafe { core::mem::transmute(main) };
    main(index as usize);
    loop {
        // SAFETY: halts with interrupts shut.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
