// VGA, when there is one: text and frame buffer memory, the register files, the palette.
#include "witness.h"

#define TEXT 0xb8000
#define TEXT_CELLS 256
#define FRAME_OFFSET 0x100000                  // into the frame buffer
#define FRAME_WORDS 512
#define PALETTE_FIRST 0xe0
#define PALETTE_COUNT 16
#define PALETTE_INDEX_HELD 0x77

static bool there, bochs;
static u64 frame;

static const struct bank { const char *what; u16 index_port, data_port; u8 count; } banks[] = {
    { "vga_sequencer", 0x3c4, 0x3c5, 5 },
    { "vga_crtc", 0x3d4, 0x3d5, 0x19 },
    { "vga_graphics", 0x3ce, 0x3cf, 9 },
};
#define BANKS (sizeof(banks) / sizeof(banks[0]))
#define ATTRIBUTES 0x15
#define DISPI 10
static u8 registers[BANKS][32], attributes[ATTRIBUTES], misc, index_held[BANKS];
static u16 dispi[DISPI];

static u8 bank_read(const struct bank *b, u8 i) { out8(b->index_port, i); return in8(b->data_port); }
static u8 attribute_read(u8 i) {
    in8(0x3da);                                // next write of 0x3c0 is the index
    out8(0x3c0, i);
    u8 v = in8(0x3c1);
    in8(0x3da);
    out8(0x3c0, 0x20);                         // palette on
    return v;
}
static u16 dispi_read(u16 i) { out16(0x1ce, i); return in16(0x1cf); }
static u16 cell(u32 i) { return 0x0700 | ('A' + i % 26) | (i & 0x80) << 4; }
static u64 frame_word(u32 i) { return i * 0x0001000100010001ull ^ 0x5647410000000000; }
static u8 palette(u32 i) { return (i * 7 + 5) & 0x3f; }

static void hold_indexes(void) {
    for (u32 b = 0; b < BANKS; b++)
        out8(banks[b].index_port, index_held[b] = b + 2);
    out8(0x3c8, PALETTE_INDEX_HELD);
}
static void vga_set(struct cpu *c) {
    (void)c;
    u32 slot = pci_find(0, 8, 0xffff0000, 0x03000000);
    there = slot != ~0u;
    if (!there) {
        pci_rest();
        return;
    }
    u32 bar = pci_read(slot, 0x10);
    pci_rest();
    frame = !(bar & 1) && bar & ~15u ? (bar & ~15u) + FRAME_OFFSET : 0;
    for (u32 i = 0; i < TEXT_CELLS; i++)
        ((volatile u16 *)TEXT)[i] = cell(i);
    for (u32 i = 0; frame && i < FRAME_WORDS; i++)
        ((volatile u64 *)frame)[i] = frame_word(i);
    out8(0x3c8, PALETTE_FIRST);
    for (u32 i = 0; i < PALETTE_COUNT * 3; i++)
        out8(0x3c9, palette(i));
    out8(0x3d4, 0x0f);                         // cursor position
    out8(0x3d5, 0xa5);
    for (u32 b = 0; b < BANKS; b++)
        for (u32 i = 0; i < banks[b].count; i++)
            registers[b][i] = bank_read(&banks[b], i);
    for (u32 i = 0; i < ATTRIBUTES; i++)
        attributes[i] = attribute_read(i);
    misc = in8(0x3cc);
    bochs = (dispi_read(0) & 0xfff0) == 0xb0c0;
    for (u32 i = 0; bochs && i < DISPI; i++)
        dispi[i] = dispi_read(i);
    hold_indexes();
}
// All registers in one row: sequencer, CRTC, graphics, attributes, the Bochs extension, the palette.
#define REGISTERS (5 + 0x19 + 9 + ATTRIBUTES + DISPI + PALETTE_COUNT * 3)
static void check_register(u32 i) {
    for (u32 b = 0; b < BANKS; i -= banks[b++].count)
        if (i < banks[b].count) {
            check(banks[b].what, i, bank_read(&banks[b], i), registers[b][i]);
            return;
        }
    if (i < ATTRIBUTES) {
        check("vga_attribute", i, attribute_read(i), attributes[i]);
        return;
    }
    i -= ATTRIBUTES;
    if (i < DISPI) {
        if (bochs)
            check("vga_dispi", i, dispi_read(i), dispi[i]);
        return;
    }
    i -= DISPI;
    out8(0x3c7, PALETTE_FIRST + i / 3);
    for (u32 k = 0; k < i % 3; k++)
        in8(0x3c9);
    check("vga_palette", i, in8(0x3c9), palette(i));
}
static void vga_check(struct cpu *c) {
    (void)c;
    if (!there)
        return;
    for (u32 b = 0; b < BANKS; b++)
        check("vga_index", b, in8(banks[b].index_port), index_held[b]);
    check("vga_palette_index", -1, in8(0x3c8), PALETTE_INDEX_HELD);
    check("vga_misc", -1, in8(0x3cc), misc);
    static u32 next_register, next_cell;
    for (u32 todo = share(REGISTERS); todo; todo--, next_register = (next_register + 1) % REGISTERS)
        check_register(next_register);
    for (u32 todo = share(TEXT_CELLS); todo; todo--, next_cell = (next_cell + 1) % TEXT_CELLS)
        check("vga_text", next_cell, ((volatile u16 *)TEXT)[next_cell], cell(next_cell));
    for (u32 i = 0; frame && i < FRAME_WORDS; i++)
        check("vga_frame", i, ((volatile u64 *)frame)[i], frame_word(i));
    hold_indexes();
}
static void vga_spoil(struct cpu *c) {
    (void)c;
    if (!there)
        return;
    out8(0x3d4, 0x0f);
    out8(0x3d5, 0x5a);
    out8(0x3ce, 8);
    out8(0x3cf, 0x0f);
    out8(0x3c4, 3);
    out8(0x3c5, registers[0][3] ^ 1);
    in8(0x3da);
    out8(0x3c0, 3);
    out8(0x3c0, attributes[3] ^ 1);
    out8(0x3c0, 0x20);
    out8(0x3c8, PALETTE_FIRST);
    for (u32 i = 0; i < 3; i++)
        out8(0x3c9, 0x3f);
    for (u32 i = 1; bochs && i < 3; i++) {     // width and height, while the extension is off
        out16(0x1ce, i);
        out16(0x1cf, dispi[i] ^ 8);
    }
    out8(0x3c2, misc ^ 0x80);
    out8(0x3ce, 8);
    ((volatile u16 *)TEXT)[9] = 0;
    if (frame)
        ((volatile u64 *)frame)[9] = 0;
}
SUBJECT(vga, false, vga_set, vga_check, vga_spoil);
