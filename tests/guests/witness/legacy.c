// The small old parts: A20 gate, keyboard controller, DMA controllers, the serial port itself.
#include "witness.h"

// ---------------------------------------------------------------- A20 gate
static u8 port92;
static void gate_set(struct cpu *c) { (void)c; port92 = in8(0x92); }
static void gate_check(struct cpu *c) {
    (void)c;
    check("port92", -1, in8(0x92), port92);
    // With A20 held low the even megabyte would show the odd one.
    check_true("a20", *(volatile u64 *)0x200000 != *(volatile u64 *)0x100000 || *(volatile u64 *)0x201000 != *(volatile u64 *)0x101000);
}
static void gate_spoil(struct cpu *c) { (void)c; out8(0x92, port92 ^ 8); }
SUBJECT(gate, false, gate_set, gate_check, gate_spoil);

// ---------------------------------------------------------------- keyboard controller
enum { KBC_DATA = 0x60, KBC_STATUS = 0x64, OUTPUT_FULL = 1, INPUT_FULL = 2 };
static u32 kbc_mode;

static u32 kbc_read_mode(void) {
    for (u32 i = 0; i < 32 && in8(KBC_STATUS) & OUTPUT_FULL; i++)
        in8(KBC_DATA);
    out8(KBC_STATUS, 0x20);
    for (u32 tries = 0; tries < 10000; tries++)
        if (in8(KBC_STATUS) & OUTPUT_FULL)
            return in8(KBC_DATA);
    return ~0u;
}
static void kbc_write_mode(u8 v) {
    out8(KBC_STATUS, 0x60);
    for (u32 tries = 0; tries < 10000 && in8(KBC_STATUS) & INPUT_FULL; tries++)
        relax();
    out8(KBC_DATA, v);
}
static void keyboard_set(struct cpu *c) {
    (void)c;
    if (in8(KBC_STATUS) == 0xff) {
        kbc_mode = ~0u;
        return;
    }
    kbc_write_mode(0x74);                      // no interrupts, both ports off, translation, system flag
    kbc_mode = kbc_read_mode();
}
static void keyboard_check(struct cpu *c) {
    (void)c;
    if (kbc_mode != ~0u)
        check("keyboard_mode", -1, kbc_read_mode(), kbc_mode);
}
static void keyboard_spoil(struct cpu *c) { (void)c; kbc_write_mode(0x34); }
SUBJECT(keyboard, false, keyboard_set, keyboard_check, keyboard_spoil);

// ---------------------------------------------------------------- DMA controllers
static const struct { u16 address, count, page, flip_flop; } dma[2] = { { 0x02, 0x03, 0x83, 0x0c }, { 0xc4, 0xc6, 0x8b, 0xd8 } };
static u32 dma_want[2][3];

static u32 dma_word(u32 n, u16 port) {
    out8(dma[n].flip_flop, 0);
    u32 low = in8(port);
    return low | in8(port) << 8;
}
static u32 dma_read(u32 n, u32 what) {
    return what == 0 ? dma_word(n, dma[n].address) : what == 1 ? dma_word(n, dma[n].count) : in8(dma[n].page);
}
static void dma_program(u16 address, u16 count, u8 page) {
    for (u32 n = 0; n < 2; n++) {
        out8(dma[n].flip_flop, 0);
        out8(dma[n].address, address);
        out8(dma[n].address, address >> 8);
        out8(dma[n].count, count);
        out8(dma[n].count, count >> 8);
        out8(dma[n].page, page);
    }
}
static void dma_set(struct cpu *c) {
    (void)c;
    dma_program(0x1234, 0x0567, 0x0a);
    for (u32 n = 0; n < 2; n++)
        for (u32 what = 0; what < 3; what++)
            dma_want[n][what] = dma_read(n, what);
}
static void dma_check(struct cpu *c) {
    (void)c;
    static const char *const names[3] = { "dma_address", "dma_count", "dma_page" };
    for (u32 n = 0; n < 2; n++)
        for (u32 what = 0; what < 3; what++)
            check(names[what], n ? 5 : 1, dma_read(n, what), dma_want[n][what]);
}
static void dma_spoil(struct cpu *c) { (void)c; dma_program(0x4321, 0x0765, 0x0b); }
SUBJECT(dma, false, dma_set, dma_check, dma_spoil);

// ---------------------------------------------------------------- serial port
#define COM1 0x3f8
static void serial_set(struct cpu *c) { (void)c; out8(COM1 + 7, 0xa7); }
static void serial_check(struct cpu *c) {
    (void)c;
    check("serial_interrupts", -1, in8(COM1 + 1), 0);
    check("serial_fifo", -1, in8(COM1 + 2) & 0xc0, 0xc0);
    check("serial_line", -1, in8(COM1 + 3), 3);
    check("serial_modem", -1, in8(COM1 + 4), 3);
    check("serial_scratch", -1, in8(COM1 + 7), 0xa7);
    out8(COM1 + 3, 0x83);
    check("serial_divisor", -1, in8(COM1) | in8(COM1 + 1) << 8, 1);
    out8(COM1 + 3, 3);
}
static void serial_spoil(struct cpu *c) {
    (void)c;
    out8(COM1 + 3, 0x83);
    out8(COM1, 2);
    out8(COM1 + 3, 3);
    out8(COM1 + 1, 4);                         // line status interrupt: COM1's pin is masked
    out8(COM1 + 2, 0);
    out8(COM1 + 3, 7);
    out8(COM1 + 4, 1);
    out8(COM1 + 7, 0x55);
}
SUBJECT(serial, false, serial_set, serial_check, serial_spoil);
