// Network card, when it is an e1000 or an rtl8139: its address and registers with a pattern. Nothing is sent or received.
#include "witness.h"

#define REGISTERS_MAX 24
static enum { NONE, E1000, RTL8139 } kind;
static u64 base;
static struct { u16 at; u32 want; } held[REGISTERS_MAX];
static u32 count;
static u16 eeprom[3];

static u32 get(u32 reg) { return kind == E1000 ? mmio_read(base + reg) : in32(base + reg); }
static void put(u32 reg, u32 v) {
    if (kind == E1000)
        mmio_write(base + reg, v);
    else
        out32(base + reg, v);
}
static void hold(u16 at) { held[count].at = at; held[count++].want = get(at); }
static void write_and_hold(u16 at, u32 v) { put(at, v); hold(at); }

static u16 eeprom_read(u32 word) {
    put(0x14, word << 8 | 1);
    for (u32 tries = 0; tries < 1000 && !(get(0x14) & 0x10); tries++)
        relax();
    return get(0x14) >> 16;
}
static void e1000_set(void) {
    hold(0x5400);                              // receive address 0: the MAC
    hold(0x5404);
    write_and_hold(0x5408, 0x33221100);
    write_and_hold(0x540c, 0x00005544);
    for (u32 i = 0; i < 4; i++)
        write_and_hold(0x5200 + 4 * i, 0x11111111 * (i + 1));    // multicast table
    write_and_hold(0x5604, 0x0f0f1234);        // VLAN filter
    write_and_hold(0x2800, 0x00300000);        // receive and transmit rings, both engines off
    write_and_hold(0x2808, 0x00000400);
    write_and_hold(0x3800, 0x00310000);
    write_and_hold(0x3808, 0x00000800);
    write_and_hold(0x0410, 0x00602006);        // inter-packet gap
    hold(0x0000);                              // device control
    for (u32 i = 0; i < 3; i++)
        eeprom[i] = eeprom_read(i);
}
static void rtl8139_set(void) {
    hold(0x00);                                // the MAC; its upper half shares a dword with reserved bytes
    hold(0x04);
    write_and_hold(0x08, 0x12345678);          // multicast filter
    write_and_hold(0x0c, 0x9abcdef0);
    for (u32 i = 0; i < 4; i++)
        write_and_hold(0x20 + 4 * i, 0x00300000 + 0x1000 * i);   // transmit addresses
    write_and_hold(0x30, 0x00310000);          // receive buffer
    write_and_hold(0x44, 0x0000f78e);          // receive configuration, receiver off
    hold(0x40);
}
static void nic_set(struct cpu *c) {
    (void)c;
    static const struct { u32 id; int kind; } known[] = { { 0x100e8086, E1000 }, { 0x10048086, E1000 }, { 0x100f8086, E1000 }, { 0x813910ec, RTL8139 } };
    u32 slot = ~0u;
    for (u32 i = 0; i < sizeof(known) / sizeof(known[0]) && slot == ~0u; i++)
        if ((slot = pci_find(0, 0, ~0u, known[i].id)) != ~0u)
            kind = known[i].kind;
    if (slot == ~0u)
        return;
    pci_write(slot, 4, (pci_read(slot, 4) & 0xffff) | 3);
    base = pci_read(slot, 0x10) & (kind == E1000 ? ~15u : ~3u);
    if (kind == E1000)
        e1000_set();
    else
        rtl8139_set();
}
static void nic_check(struct cpu *c) {
    (void)c;
    for (u32 i = 0; i < count; i++)
        check(kind == E1000 ? "e1000_register" : "rtl8139_register", held[i].at, get(held[i].at), held[i].want);
    for (u32 i = 0; kind == E1000 && i < 3; i++)
        check("e1000_eeprom", i, eeprom_read(i), eeprom[i]);
}
static void nic_spoil(struct cpu *c) {
    (void)c;
    if (kind == E1000)
        for (u32 i = 0; i < count - 1; i++)
            put(held[i].at, held[i].want ^ 0x100000);
    if (kind == RTL8139) {
        out8(base + 0x50, 0xc0);               // unlock
        for (u32 i = 0; i < count - 1; i++)
            put(held[i].at, held[i].want ^ 0x1000);
    }
}
SUBJECT(nic, false, nic_set, nic_check, nic_spoil);
