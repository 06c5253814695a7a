# Real-mode part of the bzImage: the Linux boot protocol header and the switch to protected mode.
# Source: the x86 Linux boot protocol, version 2.06. A loader puts this file's first five sectors at some segment S,
# the rest at 1 MB, patches cmd_line_ptr and jumps to S+0x20:0 with DS=S.
#include "layout.h"
#define SECTORS 4                       /* after the boot sector */
        .code16
        .org 0x1f1
        .byte SECTORS                   # setup_sects
        .word 0                         # root_flags
        .long 0x8000                    # syssize, 16-byte units: 512 KB at most
        .word 0, 0, 0                   # ram_size, vid_mode, root_dev
        .word 0xaa55                    # boot_flag
        .org 0x200
        jmp   go
        .ascii "HdrS"
        .word 0x0206                    # version
        .long 0                         # realmode_swtch
        .word 0                         # start_sys_seg
        .word name - 0x200              # kernel_version
        .byte 0                         # type_of_loader
        .byte 1                         # loadflags: LOADED_HIGH
        .word 0                         # setup_move_size
        .long BODY                      # code32_start
        .long 0, 0                      # ramdisk_image, ramdisk_size
        .long 0                         # bootsect_kludge
        .word 0                         # heap_end_ptr
        .word 0
        .org 0x228
        .long 0                         # cmd_line_ptr
        .long 0xffffff                  # initrd_addr_max
        .long 0x100000                  # kernel_alignment
        .byte 0, 0                      # relocatable_kernel, min_alignment
        .word 0                         # xloadflags
        .long 0x7ff                     # cmdline_size
        .org 0x260
name:   .asciz "hyperferry witness guest"

go:     cld
        # The memory map, while there is a BIOS to ask.
        xorw  %ax, %ax
        movw  %ax, %es
        movl  $0, %es:E820_COUNT
        movw  $E820_ENTRIES, %di
        xorl  %ebx, %ebx
1:      movl  $0xe820, %eax
        movl  $0x534d4150, %edx
        movl  $24, %ecx
        movl  $1, %es:20(%di)
        int   $0x15
        jc    2f
        cmpl  $0x534d4150, %eax
        jne   2f
        incl  %es:E820_COUNT
        addw  $24, %di
        cmpl  $E820_MAX, %es:E820_COUNT
        jae   2f
        testl %ebx, %ebx
        jnz   1b
2:      cli
        inb   $0x92, %al                # A20: firmware has it on already, make sure
        orb   $2, %al
        andb  $0xfe, %al
        outb  %al, $0x92
        xorl  %esi, %esi
        movw  %ds, %si
        shll  $4, %esi                  # ESI = linear address of this sector, as Linux has it
        leal  gdt(%esi), %eax
        movl  %eax, gdtr + 2
        lgdtl gdtr
        movl  %cr0, %eax
        orb   $1, %al
        movl  %eax, %cr0
        ljmpl $0x08, $BODY

        .align 8
gdt:    .quad 0
        .quad 0x00cf9b000000ffff        # 0x08 flat code
        .quad 0x00cf93000000ffff        # 0x10 flat data
gdtr:   .word . - gdt - 1
        .long 0
        .org (SECTORS + 1) * 512
