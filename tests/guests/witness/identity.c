// What the processor says of itself. A saved machine does not always carry it, so a change is a NOTE (strict=on: BAD).
#include "witness.h"

static const struct row { const char *what; u32 leaf, subleaf, reg, mask; } rows[] = {
    { "cpuid_1_eax", 1, 0, 0, ~0u },           { "cpuid_1_ecx", 1, 0, 2, ~(1u << 27) }, { "cpuid_1_edx", 1, 0, 3, ~0u },
    { "cpuid_7_ebx", 7, 0, 1, ~0u },           { "cpuid_7_ecx", 7, 0, 2, ~(1u << 4) },  { "cpuid_7_edx", 7, 0, 3, ~0u },
    { "cpuid_d_eax", 0xd, 0, 0, ~0u },         { "cpuid_vendor", 0, 0, 1, ~0u },        { "cpuid_80000001_ecx", 0x80000001, 0, 2, ~0u },
    { "cpuid_80000001_edx", 0x80000001, 0, 3, ~0u }, { "cpuid_80000008_eax", 0x80000008, 0, 0, ~0u },
    { "cpuid_hypervisor", 0x40000000, 0, 1, ~0u },
};
#define ROWS (sizeof(rows) / sizeof(rows[0]))
static u32 seen[CPUS_MAX][ROWS];

static u32 look(const struct row *r) {
    if (r->leaf < 0x40000000 && r->leaf > cpuid(0, 0).eax)
        return 0;
    struct cpuid v = cpuid(r->leaf, r->subleaf);
    return (r->reg == 0 ? v.eax : r->reg == 1 ? v.ebx : r->reg == 2 ? v.ecx : v.edx) & r->mask;
}
static void identity_set(struct cpu *c) {
    for (u32 i = 0; i < ROWS; i++)
        seen[c->index][i] = look(&rows[i]);
}
static void identity_check(struct cpu *c) {
    for (u32 i = 0; i < ROWS; i++)
        note(rows[i].what, -1, look(&rows[i]), seen[c->index][i]);
    struct cpuid one = cpuid(1, 0);
    check("cpuid_apic_id", -1, one.ebx >> 24, c->apic_id);
}
SUBJECT(identity, true, identity_set, identity_check, 0);
