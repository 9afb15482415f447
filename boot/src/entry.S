# The first instructions: from a boot loader's 32-bit protected mode to `kernel_main` in 64-bit mode.
#
# multiboot2 (GRUB) and multiboot 1 (QEMU's -kernel) enter alike: flat 32-bit segments, paging off, a magic number in
# EAX and the physical address of the boot information in EBX.

.section .boot.header, "a"
.balign 8
multiboot2_header:
    .long 0xe85250d6                                # magic
    .long 0                                         # i386, protected mode
    .long multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + (multiboot2_header_end - multiboot2_header))
    .balign 8
    .short 6, 0                                     # modules start on page boundaries
    .long 8
    .balign 8
    .short 5, 1                                     # a framebuffer of any size, if there is one
    .long 20
    .long 0, 0, 32
    .balign 8
    .short 0, 0                                     # end
    .long 8
multiboot2_header_end:

.balign 4
multiboot1_header:
    .long 0x1badb002                                # magic
    .long 0x3                                       # modules on page boundaries; memory map wanted
    .long -(0x1badb002 + 0x3)

.section .boot.text, "ax"
.code32
.global boot_entry
boot_entry:
    cli
    cld
    movl $boot_stack_end, %esp
    movl %eax, %edi                                 # the arguments of kernel_main: magic,
    movl %ebx, %esi                                 # boot information

    # A processor without long mode cannot go on: "64?" in the corner of the screen and on the serial line.
    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb no_long_mode
    movl $0x80000001, %eax
    cpuid
    btl $29, %edx
    jnc no_long_mode

    # Identity-map the first 4 GiB with 2 MiB pages, until hw/memory builds the real tables.
    movl $boot_pml4, %eax
    movl $boot_pdpt + 3, (%eax)
    movl $boot_pdpt, %eax
    movl $boot_pds + 3, %ecx
    movl $4, %edx
1:  movl %ecx, (%eax)
    addl $8, %eax
    addl $4096, %ecx
    decl %edx
    jnz 1b
    movl $boot_pds, %eax
    movl $0x83, %ecx                                # present, writable, large
    movl $2048, %edx
2:  movl %ecx, (%eax)
    addl $8, %eax
    addl $0x200000, %ecx
    decl %edx
    jnz 2b

    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    andl $0xffffefff, %eax                          # LA57 off, whatever the firmware used
    orl $0x20, %eax                                 # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x900, %eax                                # LME, NXE
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax                          # CD and NW off
    orl $0x80010001, %eax                           # PG, WP, PE
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmpl $0x08, $boot_long_mode

no_long_mode:
    movl $0x4f344f36, 0xb8000
    movw $0x4f3f, 0xb8004
    movw $0x3f8, %dx
    movb $'6', %al
    outb %al, %dx
    movb $'4', %al
    outb %al, %dx
    movb $'?', %al
    outb %al, %dx
3:  hlt
    jmp 3b

.code64
boot_long_mode:
    xorl %eax, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    xorl %ebp, %ebp
    movl %edi, %edi                                 # the high halves are undefined after the switch
    movl %esi, %esi
    call kernel_main
4:  hlt
    jmp 4b

.section .rodata
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                        # 64-bit code, accessed: the table becomes read-only
boot_gdt_pointer:
    .short 15
    .quad boot_gdt

.section .bss
.balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pds:  .skip 4 * 4096
.global boot_stack_guard
boot_stack_guard: .skip 4096                        # hw/memory unmaps it
boot_stack: .skip 262144                         # start-up passes large values by move
boot_stack_end:
