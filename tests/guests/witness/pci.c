// PCI configuration space of bus 0: every present function against its picture taken at boot.
#include "witness.h"

#define ADDRESS 0xcf8
#define DATA 0xcfc
#define ADDRESS_HELD 0x8000faa4                // names no device
#define FUNCTIONS_MAX 32
#define STATUS_COMES_AND_GOES 0xf9080000       // error bits, INTx level
#define IN_THE_PICTURE 64                      // dwords

static struct { u32 slot, picture[IN_THE_PICTURE]; } functions[FUNCTIONS_MAX];
static u32 function_count;

u32 pci_read(u32 slot, u32 reg) {
    out32(ADDRESS, 0x80000000 | slot << 8 | (reg & 0xfc));
    return in32(DATA);
}
void pci_write(u32 slot, u32 reg, u32 v) {
    out32(ADDRESS, 0x80000000 | slot << 8 | (reg & 0xfc));
    out32(DATA, v);
}
// Leaves the address register as the check wants to find it.
void pci_rest(void) { out32(ADDRESS, ADDRESS_HELD); }
static bool present(u32 slot) { return (u16)pci_read(slot, 0) != 0xffff; }

// The slot of the first function at or after `from` whose dword at `reg` is `want` under `mask`; ~0 when there is none.
u32 pci_find(u32 from, u32 reg, u32 mask, u32 want) {
    for (u32 slot = from; slot < 256; slot++) {
        if (slot & 7 && !(pci_read(slot & ~7, 0x0c) & 0x800000))
            continue;
        if (present(slot) && (pci_read(slot, reg) & mask) == want)
            return slot;
    }
    return ~0u;
}

static u32 steady(u32 reg, u32 v) { return reg == 4 ? v & ~STATUS_COMES_AND_GOES : v; }

// What a move from Xen may rightly change: the shadowing of the BIOS area, the interrupt links.
static bool machine_specific(u32 slot, u32 reg) {
    return machine.xen && ((slot == 0 && (reg == 0x58 || reg == 0x5c || reg == 0x70)) || (slot == 8 && reg == 0x60));
}
static void pci_set(struct cpu *c) {
    (void)c;
    for (u32 slot = pci_find(0, 0, 0, 0); slot != ~0u && function_count < FUNCTIONS_MAX; slot = pci_find(slot + 1, 0, 0, 0)) {
        if (pci_read(slot, 0x3c) & 0xff00)     // has an interrupt pin: its line register is ours to use
            pci_write(slot, 0x3c, (pci_read(slot, 0x3c) & ~0xffu) | (0x80 ^ slot));
        functions[function_count].slot = slot;
        for (u32 i = 0; i < IN_THE_PICTURE; i++)
            functions[function_count].picture[i] = steady(4 * i, pci_read(slot, 4 * i));
        say("PCI slot=%u.%u id=0x%x class=0x%x\n", (u64)slot >> 3, (u64)slot & 7, (u64)pci_read(slot, 0), (u64)pci_read(slot, 8) >> 8);
        function_count++;
    }
    pci_rest();
}
static void pci_check(struct cpu *c) {
    static u32 next, newcomer;
    (void)c;
    check("pci_address", -1, in32(ADDRESS), ADDRESS_HELD);
    u32 all = function_count * IN_THE_PICTURE;
    for (u32 todo = share(all); todo; todo--, next = (next + 1) % all) {
        u32 f = next / IN_THE_PICTURE, reg = 4 * (next % IN_THE_PICTURE), slot = functions[f].slot;
        u32 found = steady(reg, pci_read(slot, reg)), wanted = functions[f].picture[reg / 4];
        // The index reads as slot * 1000 + register, both decimal.
        (machine_specific(slot, reg) ? note : check)("pci", slot * 1000 + reg, found, wanted);
    }
    // Somebody new in the machine? One device a beat.
    bool known = false;
    for (u32 f = 0; f < function_count; f++)
        known |= functions[f].slot == newcomer * 8;
    if (!known)
        note("pci_newcomer", newcomer, pci_read(newcomer * 8, 0), 0xffffffff);
    newcomer = (newcomer + 1) % 32;
    pci_rest();
}
static void pci_spoil(struct cpu *c) {
    (void)c;
    for (u32 f = 0; f < function_count; f++)
        pci_write(functions[f].slot, 0x3c, pci_read(functions[f].slot, 0x3c) ^ 1);
    out32(ADDRESS, ADDRESS_HELD ^ 4);
}
SUBJECT(pci, false, pci_set, pci_check, pci_spoil);
