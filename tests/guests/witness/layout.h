// Where things lie in guest-physical memory (identity mapped). Shared by C and assembler.
#ifndef LAYOUT_H
#define LAYOUT_H

#define E820_COUNT   0x5000       // u32, left by the real-mode setup
#define E820_ENTRIES 0x5010       // 24 bytes each
#define E820_MAX     32
#define TRAMPOLINE   0x8000       // application processors start here in real mode
#define BODY         0x100000     // this program
#define CPU_BLOCKS   0x200000     // one block a vCPU: struct cpu at its bottom, stack at its top
#define CPU_BLOCK    0x8000
#define CPUS_MAX     16
#define PAGE_DIRS    0x280000     // four page directories of 2 MB pages, shared by all vCPUs
#define PATTERN      0x400000     // the memory pattern starts here

#define SEL_CODE32   0x08
#define SEL_CODE64   0x10
#define SEL_DATA     0x18
#define SEL_TSS      0x20
#define SEL_LDT      0x30
#define SEL_DS       0x40
#define SEL_ES       0x48
#define SEL_FS       0x50
#define SEL_GS       0x58
#define SEL_SS       0x60

#define IDT_VECTORS  0x60
#endif
