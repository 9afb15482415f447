# Where the other processors begin: real mode, in the page that STARTUP named, up to 64-bit mode in the host's tables.
#
# The code is copied to BASE and is read-only there. What differs from processor to processor stands in the page after
# it: the page table, the stack, the entry and the processor's number, a quadword each (`Parameters` in lib.rs).

.section .rodata
.balign 8
.global trampoline_start
.global trampoline_end
.set BASE, 0x8000
.set PARAMETERS, 0x9000

trampoline_start:
.code16
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl BASE + (trampoline_gdt_pointer - trampoline_start)
    movl %cr4, %eax
    orl $0x20, %eax                                 # PAE
    movl %eax, %cr4
    movl PARAMETERS, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax                                # LME, NXE
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax                          # CD and NW off
    orl $0x80010001, %eax                           # PG, WP, PE
    movl %eax, %cr0
    ljmpl $0x08, $(BASE + (trampoline_long_mode - trampoline_start))

.code64
trampoline_long_mode:
    xorl %eax, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movq PARAMETERS + 8, %rsp
    movq PARAMETERS + 16, %rax
    movq PARAMETERS + 24, %rdi
    xorl %ebp, %ebp
    call *%rax
1:  hlt
    jmp 1b

.balign 8
trampoline_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                        # 64-bit code, accessed: the page is read-only
trampoline_gdt_pointer:
    .short 15
    .long BASE + (trampoline_gdt - trampoline_start)
trampoline_end:
