// IOAPIC and PIC: a pattern in every unused entry, the used ones as programmed.
#include "witness.h"

#define IOAPIC 0xfec00000
#define MASKED 0x10000
#define STATUS 0x5000                          // delivery status and remote IRR come and go
#define PINS 24                                // Xen has 48, QEMU's pc 24
#define INDEX_HELD 0x15

static u32 ioapic_read(u32 reg) { mmio_write(IOAPIC, reg); return mmio_read(IOAPIC + 0x10); }
static void ioapic_write(u32 reg, u32 v) { mmio_write(IOAPIC, reg); mmio_write(IOAPIC + 0x10, v); }

static u32 pin_low(u32 pin) {
    if (opt.ioapic && pin == 2 && (opt.pit || opt.hpet == HPET_ON))
        return VECTOR_PIT;
    if (opt.ioapic && pin == 8 && opt.rtc)
        return VECTOR_RTC;
    return MASKED | (pin & 1 ? 0x8000 : 0) | (pin & 2 ? 0x2000 : 0) | (pin & 4 ? 0x800 : 0) | (pin % 3 ? 0x100 : 0) | (0x60 + pin);
}
static u32 pin_high(u32 pin) {
    return pin_low(pin) & MASKED ? (pin * 7 + 1) << 24 : cpu_at(0)->apic_id << 24;
}

static void ioapic_set(struct cpu *c) {
    (void)c;
    machine.ioapic_version = ioapic_read(1);
    machine.ioapic_id = ioapic_read(0);
    for (u32 pin = 0; pin < PINS; pin++) {
        ioapic_write(0x10 + 2 * pin, MASKED);
        ioapic_write(0x11 + 2 * pin, pin_high(pin));
        ioapic_write(0x10 + 2 * pin, pin_low(pin));
    }
    mmio_write(IOAPIC, INDEX_HELD);
}
static void ioapic_check(struct cpu *c) {
    (void)c;
    check("ioapic_index", -1, mmio_read(IOAPIC), INDEX_HELD);
    note("ioapic_version", -1, ioapic_read(1), machine.ioapic_version);
    check("ioapic_id", -1, ioapic_read(0), machine.ioapic_id);
    for (u32 pin = 0; pin < PINS; pin++) {
        check("ioapic_low", pin, ioapic_read(0x10 + 2 * pin) & ~STATUS, pin_low(pin));
        check("ioapic_high", pin, ioapic_read(0x11 + 2 * pin), pin_high(pin));
    }
    mmio_write(IOAPIC, INDEX_HELD);
}
static void ioapic_spoil(struct cpu *c) {
    (void)c;
    ioapic_write(0, machine.ioapic_id ^ 0x01000000);
    for (u32 pin = 0; pin < PINS; pin++) {
        ioapic_write(0x10 + 2 * pin, pin_low(pin) ^ 0x2000);
        ioapic_write(0x11 + 2 * pin, pin_high(pin) ^ 0x80000000);
    }
}
SUBJECT(ioapic, false, ioapic_set, ioapic_check, ioapic_spoil);

// ---------------------------------------------------------------- PIC
enum { MASTER = 0x20, SLAVE = 0xa0, ELCR = 0x4d0 };

// With the IOAPIC in use its lines 7 and 13, which nothing raises, stay unmasked: only the pattern counts.
static u8 master_mask(void) {
    if (opt.ioapic)
        return 0x7f;
    return 0xff & ~(opt.pit || opt.hpet == HPET_ON ? 0x01 : 0) & ~(opt.rtc ? 0x04 : 0);
}
static u8 slave_mask(void) { return opt.ioapic ? 0xdf : opt.rtc ? 0xfe : 0xff; }

static void pic_set(struct cpu *c) {
    (void)c;
    out8(MASTER, 0x11);
    out8(SLAVE, 0x11);
    out8(MASTER + 1, VECTOR_PIC);
    out8(SLAVE + 1, VECTOR_PIC + 8);
    out8(MASTER + 1, 4);
    out8(SLAVE + 1, 2);
    out8(MASTER + 1, 1);
    out8(SLAVE + 1, 1);
    out8(MASTER + 1, master_mask());
    out8(SLAVE + 1, slave_mask());
    out8(MASTER, 0x0b);                        // reads of the master give ISR, of the slave IRR
    out8(SLAVE, 0x0a);
    out8(ELCR, 0x20);
    out8(ELCR + 1, 0x0c);
}
static void pic_check(struct cpu *c) {
    (void)c;
    check("pic_master_mask", -1, in8(MASTER + 1), master_mask());
    check("pic_slave_mask", -1, in8(SLAVE + 1), slave_mask());
    check("pic_master_isr", -1, in8(MASTER), 0);
    check("pic_elcr", 0, in8(ELCR), 0x20);
    check("pic_elcr", 1, in8(ELCR + 1), 0x0c);
}
static void pic_spoil(struct cpu *c) {
    (void)c;
    out8(MASTER + 1, master_mask() ^ 0x40);
    out8(SLAVE + 1, slave_mask() ^ 0x40);
    out8(MASTER, 0x0a);
    out8(ELCR, 0);
    out8(ELCR + 1, 0);
}
void pic_acknowledge(u32 line) {
    if (line >= 8)
        out8(SLAVE, 0x20);
    out8(MASTER, 0x20);
}
SUBJECT(pic, false, pic_set, pic_check, pic_spoil);
