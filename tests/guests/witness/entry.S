// From protected mode to C, for the boot processor and the others; interrupt entry; the two register holders.
#include "layout.h"

#define MSR_EFER 0xc0000080

// A fault at `from` goes on at `to`, with RDX = 1 (see interrupt() in cpu.c).
        .macro fixup from, to
        .pushsection .fixups, "a"
        .quad \from, \to
        .popsection
        .endm

// ---------------------------------------------------------------- boot processor
        .section .start, "ax"
        .code32
        .global start32
start32:
        movw  $0x10, %ax
        movw  %ax, %ds
        movw  %ax, %es
        movw  %ax, %ss
        movl  $0x7000, %esp
        cld
        movl  $bss_start, %edi
        movl  $bss_end, %ecx
        subl  %edi, %ecx
        xorl  %eax, %eax
        rep   stosb
        movl  %esi, boot_sector
        movl  $CPU_BLOCKS, %edi                 // vCPU blocks and page directories
        movl  $(PAGE_DIRS + 0x4000 - CPU_BLOCKS) / 4, %ecx
        rep   stosl
        // 4 GB identity mapped; above 0xf0000000 uncached.
        movl  $PAGE_DIRS, %edi
        xorl  %ecx, %ecx
1:      movl  %ecx, %eax
        shll  $21, %eax
        cmpl  $0xf0000000, %eax
        jb    2f
        orl   $0x18, %eax
2:      orl   $0x1e3, %eax                      // present, writable, accessed, dirty, 2 MB, global
        movl  %eax, (%edi, %ecx, 8)
        incl  %ecx
        cmpl  $2048, %ecx
        jb    1b
        // The boot processor's own top levels, at the bottom of its block.
        movl  $CPU_BLOCKS + 0x1000 + 3, CPU_BLOCKS
        movl  $PAGE_DIRS + 3,           CPU_BLOCKS + 0x1000
        movl  $PAGE_DIRS + 0x1003,      CPU_BLOCKS + 0x1008
        movl  $PAGE_DIRS + 0x2003,      CPU_BLOCKS + 0x1010
        movl  $PAGE_DIRS + 0x3003,      CPU_BLOCKS + 0x1018
        movl  $CPU_BLOCKS, %eax
        movl  $CPU_BLOCKS + CPU_BLOCK, %ebx
        movl  $boot_processor, %edx

// EAX = CR3, EBX = stack, EDX = where to go on in long mode
to_long_mode:
        lgdtl boot_gdtr
        movl  %eax, %cr3
        movl  %edx, %edi
        movl  %cr4, %eax
        orl   $0x20, %eax                       // PAE
        movl  %eax, %cr4
        movl  $MSR_EFER, %ecx
        rdmsr
        orl   $0x100, %eax                      // LME
        wrmsr
        movl  $0x80010031, %eax                 // PG WP NE ET PE
        movl  %eax, %cr0
        ljmpl $SEL_CODE64, $1f
        .code64
1:      movl  $SEL_DATA, %eax
        movl  %eax, %ds
        movl  %eax, %es
        movl  %eax, %fs
        movl  %eax, %gs
        movl  %eax, %ss
        movl  %ebx, %esp
        movl  %edi, %edi
        xorl  %ebp, %ebp
        call  *%rdi
2:      hlt
        jmp   2b

        .align 8
boot_gdt:
        .quad 0
        .quad 0x00cf9b000000ffff                // SEL_CODE32
        .quad 0x00af9b000000ffff                // SEL_CODE64
        .quad 0x00cf93000000ffff                // SEL_DATA
boot_gdtr:
        .word . - boot_gdt - 1
        .long boot_gdt

// ---------------------------------------------------------------- application processors, copied to TRAMPOLINE
        .code16
        .global trampoline, trampoline_end, trampoline_cr3, trampoline_stack
trampoline:
        cli
        xorw  %ax, %ax
        movw  %ax, %ds
        lgdtl TRAMPOLINE + trampoline_gdtr - trampoline
        movl  %cr0, %eax
        orb   $1, %al
        andl  $0x9fffffff, %eax                 // caches on: INIT left CD and NW set
        movl  %eax, %cr0
        ljmpl $SEL_CODE32, $TRAMPOLINE + 1f - trampoline
        .code32
1:      movw  $SEL_DATA, %ax
        movw  %ax, %ds
        movl  TRAMPOLINE + trampoline_cr3 - trampoline, %eax
        movl  TRAMPOLINE + trampoline_stack - trampoline, %ebx
        movl  $application_processor, %edx
        movl  $to_long_mode, %ecx
        jmp   *%ecx
        .align 4
trampoline_gdtr:
        .word 0x1f
        .long boot_gdt
        .align 4
trampoline_cr3:   .long 0
trampoline_stack: .long 0
trampoline_end:

// ---------------------------------------------------------------- interrupts and exceptions
        .text
        .code64
        .global isr_stubs                       // 16 bytes each
        .align 16
isr_stubs:
        vector = 0
        .rept IDT_VECTORS
        .align 16
        .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
        .else
        pushq $0
        .endif
        pushq $vector
        jmp   isr_common
        vector = vector + 1
        .endr
        .align 16
isr_common:
        pushq %rax
        pushq %rbx
        pushq %rcx
        pushq %rdx
        pushq %rsi
        pushq %rdi
        pushq %rbp
        pushq %r8
        pushq %r9
        pushq %r10
        pushq %r11
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        cld
        movq  %rsp, %rdi
        movq  %rsp, %rbp
        andq  $-16, %rsp
        call  interrupt
        movq  %rbp, %rsp
        popq  %r15
        popq  %r14
        popq  %r13
        popq  %r12
        popq  %r11
        popq  %r10
        popq  %r9
        popq  %r8
        popq  %rbp
        popq  %rdi
        popq  %rsi
        popq  %rdx
        popq  %rcx
        popq  %rbx
        popq  %rax
        addq  $16, %rsp
        iretq

// ---------------------------------------------------------------- hold_registers(struct hold *h)
// Loads every general register and RFLAGS with h->want, sleeps (HLT, or RCX turns of PAUSE), stores what is there
// afterwards in h->found. STI's shadow makes "enable and halt" one step. LOOP leaves the flags alone.
#define WANT(n)  (8 * (n))
#define FOUND(n) (8 * (17 + (n)))
        .global hold_registers
hold_registers:
        pushq %rbx
        pushq %rbp
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        pushq %rdi
        movq  %rsp, WANT(7)(%rdi)
        cli
        cmpq  $0, 8 * 34(%rdi)                  // h->spin
        pushfq
        pushq WANT(16)(%rdi)                    // flags, IF clear
        movq  WANT(0)(%rdi), %rax
        movq  WANT(1)(%rdi), %rbx
        movq  WANT(2)(%rdi), %rcx
        movq  WANT(3)(%rdi), %rdx
        movq  WANT(4)(%rdi), %rsi
        movq  WANT(6)(%rdi), %rbp
        movq  WANT(8)(%rdi), %r8
        movq  WANT(9)(%rdi), %r9
        movq  WANT(10)(%rdi), %r10
        movq  WANT(11)(%rdi), %r11
        movq  WANT(12)(%rdi), %r12
        movq  WANT(13)(%rdi), %r13
        movq  WANT(14)(%rdi), %r14
        movq  WANT(15)(%rdi), %r15
        movq  WANT(5)(%rdi), %rdi
        testb $0x40, 8(%rsp)                    // ZF of the comparison: no spin, so halt
        jz    1f
        popfq
        leaq  8(%rsp), %rsp                     // drops the comparison, keeps the flags
        sti
        hlt
        jmp   3f
1:      popfq
        leaq  8(%rsp), %rsp
        sti
2:      pause
        loop  2b
3:      pushfq
        cli
        pushq %rdi
        movq  16(%rsp), %rdi
        movq  %rax, FOUND(0)(%rdi)
        movq  %rbx, FOUND(1)(%rdi)
        movq  %rcx, FOUND(2)(%rdi)
        movq  %rdx, FOUND(3)(%rdi)
        movq  %rsi, FOUND(4)(%rdi)
        movq  %rbp, FOUND(6)(%rdi)
        movq  %r8,  FOUND(8)(%rdi)
        movq  %r9,  FOUND(9)(%rdi)
        movq  %r10, FOUND(10)(%rdi)
        movq  %r11, FOUND(11)(%rdi)
        movq  %r12, FOUND(12)(%rdi)
        movq  %r13, FOUND(13)(%rdi)
        movq  %r14, FOUND(14)(%rdi)
        movq  %r15, FOUND(15)(%rdi)
        popq  FOUND(5)(%rdi)
        popq  FOUND(16)(%rdi)
        movq  %rsp, FOUND(7)(%rdi)
        pushq $2                                // NT, DF and the rest of the pattern away again
        popfq
        popq  %rdi
        popq  %r15
        popq  %r14
        popq  %r13
        popq  %r12
        popq  %rbp
        popq  %rbx
        ret

// ---------------------------------------------------------------- probe_segments(u32 out[8])
// Runs a moment in compatibility mode, where the hidden bases and limits of DS, ES, FS, GS count. Interrupts are off.
// out[0..3]: the first word of each segment; out[4..7]: 1 when the byte past its limit faulted.
        .global probe_segments
probe_segments:
        pushq %rbx
        pushq %rbp
        movl  %edi, %ebp
        leaq  1f(%rip), %rax
        pushq $SEL_CODE32
        pushq %rax
        lretq
        .code32
1:      movl  %ds:0, %eax
        movl  %eax, %ss:0(%ebp)
        movl  %es:0, %eax
        movl  %eax, %ss:4(%ebp)
        movl  %fs:0, %eax
        movl  %eax, %ss:8(%ebp)
        movl  %gs:0, %eax
        movl  %eax, %ss:12(%ebp)
        // out[4..7] bring the offsets to try. A fixed-up fault resumes with EDX = 1.
        .macro probe segment, slot
        movl  %ss:\slot(%ebp), %ecx
        xorl  %edx, %edx
8:      movb  %\segment:(%ecx), %al
9:      fixup 8b, 9b
        movl  %edx, %ss:\slot(%ebp)
        .endm
        probe ds, 16
        probe es, 20
        probe fs, 24
        probe gs, 28
        ljmpl $SEL_CODE64, $2f
        .code64
2:      popq  %rbp
        popq  %rbx
        ret

// ---------------------------------------------------------------- small helpers that may fault
// bool try_rdmsr(u32 msr, u64 *value), bool try_wrmsr(u32 msr, u64 value): false when the access faulted.
        .global try_rdmsr, try_wrmsr
try_rdmsr:
        movl  %edi, %ecx
1:      rdmsr
        fixup 1b, failed
        shlq  $32, %rdx
        orq   %rdx, %rax
        movq  %rax, (%rsi)
        movl  $1, %eax
        ret
try_wrmsr:
        movl  %edi, %ecx
        movl  %esi, %eax
        movq  %rsi, %rdx
        shrq  $32, %rdx
1:      wrmsr
        fixup 1b, failed
        movl  $1, %eax
        ret
failed:
        xorl  %eax, %eax
        ret

// One place to stand a vCPU for the execution breakpoint in DR1. The handler steps over the NOP.
        .global breakpoint_targets
        .align 16
breakpoint_targets:
        .rept CPUS_MAX
        .align 16
        nop
        ret
        .endr
