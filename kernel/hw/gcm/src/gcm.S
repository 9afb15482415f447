# AES-256 in counter mode and GHASH, by AES-NI, PCLMULQDQ, SSSE3 and SSE4.1 (SDM volume 2; Gueron and Kounavis, "Intel
# Carry-Less Multiplication Instruction and its Usage for Computing the GCM Mode", revision 2.02).
#
# The only code of the kernel that touches SIMD registers, alone in its section, which the build checks. A guest's own
# state is in these registers: each function keeps what it uses on the stack and puts it back. The instructions are those
# without VEX prefix, which leave the upper parts of the YMM and ZMM registers and MXCSR alone and ask for nothing in
# XCR0. None of them can raise an exception, and no interrupt handler of the kernel uses these registers.
#
# Nothing branches on, or looks up a table by, a key or a text.

    .section .simd, "ax", @progbits

.macro keep count
    sub rsp, 16 * \count
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
    .if \i < \count
    movups [rsp + 16 * \i], xmm\i
    .endif
    .endr
.endm

.macro put_back count
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
    .if \i < \count
    movups xmm\i, [rsp + 16 * \i]
    .endif
    .endr
    add rsp, 16 * \count
.endm

# The next 16 bytes of the schedule: `last` the 16 two before, `word` what FIPS 197, 5.2 adds to its first word.
.macro schedule last, word, number
    movaps xmm3, \last
    pslldq xmm3, 4
    pxor \last, xmm3
    pslldq xmm3, 4
    pxor \last, xmm3
    pslldq xmm3, 4
    pxor \last, xmm3
    pxor \last, \word
    movaps [rsi + 16 * \number], \last
.endm

# gcm_expand_key(key: rdi, keys: rsi): 32 bytes to 15 round keys of 16, aligned.
    .global gcm_expand_key
    .p2align 4
gcm_expand_key:
    keep 4
    movups xmm0, [rdi]
    movups xmm1, [rdi + 16]
    movaps [rsi], xmm0
    movaps [rsi + 16], xmm1
    .set number, 2
    .irp constant, 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40
    aeskeygenassist xmm2, xmm1, \constant
    pshufd xmm2, xmm2, 0xff
    schedule xmm0, xmm2, number
    .set number, number + 1
    .if \constant < 0x40
    aeskeygenassist xmm2, xmm0, 0
    pshufd xmm2, xmm2, 0xaa
    schedule xmm1, xmm2, number
    .set number, number + 1
    .endif
    .endr
    put_back 4
    ret

# gcm_counter(keys: rdi, counter: rsi, from: rdx, to: rcx, blocks: r8): adds the encrypted counters from this one on to
# `from`, eight at a time; the counter is the last four bytes, big-endian (SP 800-38D, 6.5).
    .global gcm_counter
    .p2align 4
gcm_counter:
    keep 10
    movups xmm9, [rsi]
    mov eax, [rsi + 12]
    bswap eax
2:
    cmp r8, 8
    jb 3f
    movaps xmm8, [rdi]
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    lea r9d, [rax + \i]
    bswap r9d
    movaps xmm\i, xmm9
    pinsrd xmm\i, r9d, 3
    pxor xmm\i, xmm8
    .endr
    .irp round, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13
    movaps xmm8, [rdi + 16 * \round]
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    aesenc xmm\i, xmm8
    .endr
    .endr
    movaps xmm8, [rdi + 16 * 14]
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    aesenclast xmm\i, xmm8
    movups xmm8, [rdx + 16 * \i]
    pxor xmm\i, xmm8
    movups [rcx + 16 * \i], xmm\i
    movaps xmm8, [rdi + 16 * 14]
    .endr
    add eax, 8
    add rdx, 128
    add rcx, 128
    sub r8, 8
    jmp 2b
3:
    test r8, r8
    jz 4f
    mov r9d, eax
    bswap r9d
    movaps xmm0, xmm9
    pinsrd xmm0, r9d, 3
    pxor xmm0, [rdi]
    .irp round, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13
    aesenc xmm0, [rdi + 16 * \round]
    .endr
    aesenclast xmm0, [rdi + 16 * 14]
    movups xmm8, [rdx]
    pxor xmm0, xmm8
    movups [rcx], xmm0
    add eax, 1
    add rdx, 16
    add rcx, 16
    sub r8, 1
    jmp 3b
4:
    put_back 10
    ret

# A block of the text in xmm0 and a power of the hash key in xmm1: their product without carries, low, middle and high.
.macro multiply low, middle, high
    movaps \low, xmm0
    pclmulqdq \low, xmm1, 0x00
    movaps \high, xmm0
    pclmulqdq \high, xmm1, 0x11
    movaps \middle, xmm0
    pclmulqdq \middle, xmm1, 0x10
    pclmulqdq xmm0, xmm1, 0x01
    pxor \middle, xmm0
.endm

# xmm0: the product in xmm2, xmm3, xmm4, divided by x^128, modulo x^128 + x^127 + x^126 + x^121 + 1 (RFC 8452, 3).
.macro reduce
    movaps xmm5, xmm3
    pslldq xmm5, 8
    psrldq xmm3, 8
    pxor xmm2, xmm5
    pxor xmm4, xmm3
    .rept 2
    movaps xmm5, xmm2
    pclmulqdq xmm5, xmm9, 0x10
    pshufd xmm2, xmm2, 0x4e
    pxor xmm2, xmm5
    .endr
    movaps xmm0, xmm2
    pxor xmm0, xmm4
.endm

# gcm_hash(powers: rdi, state: rsi, text: rdx, blocks: rcx): takes whole blocks into the hash, four at a time. `powers`
# holds the first to fourth power of the key, aligned, and all is as POLYVAL has it (RFC 8452, appendix A): bytes
# reversed, the key multiplied by x.
    .global gcm_hash
    .p2align 4
gcm_hash:
    keep 10
    movups xmm0, [rsi]
    movaps xmm8, [rip + gcm_reversed]
    movaps xmm9, [rip + gcm_polynomial]
2:
    cmp rcx, 4
    jb 3f
    movups xmm1, [rdx]
    pshufb xmm1, xmm8
    pxor xmm0, xmm1
    movaps xmm1, [rdi + 48]
    multiply xmm2, xmm3, xmm4
    .irp number, 1, 2, 3
    movups xmm0, [rdx + 16 * \number]
    pshufb xmm0, xmm8
    movaps xmm1, [rdi + 48 - 16 * \number]
    multiply xmm5, xmm6, xmm7
    pxor xmm2, xmm5
    pxor xmm3, xmm6
    pxor xmm4, xmm7
    .endr
    reduce
    add rdx, 64
    sub rcx, 4
    jmp 2b
3:
    test rcx, rcx
    jz 4f
    movups xmm1, [rdx]
    pshufb xmm1, xmm8
    pxor xmm0, xmm1
    movaps xmm1, [rdi]
    multiply xmm2, xmm3, xmm4
    reduce
    add rdx, 16
    sub rcx, 1
    jmp 3b
4:
    movups [rsi], xmm0
    put_back 10
    ret

    .section .rodata.gcm, "a", @progbits
    .p2align 4
gcm_reversed:
    .byte 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0
gcm_polynomial:
    .quad 1, 0xc200000000000000

    .text
