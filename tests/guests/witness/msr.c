// Model-specific registers, memory types included. A register the processor does not have, or that does not keep what is
// written, is not judged (the boot line `ABSENT` names it).
#include "witness.h"

// ---------------------------------------------------------------- what each register holds
static u64 v64(const struct cpu *c, u32 at) { return value_of(c, at); }
static u64 v32(const struct cpu *c, u32 at) { return value_of(c, at) & 0xffffffff; }
static u64 v16(const struct cpu *c, u32 at) { return value_of(c, at) & 0xfff8; }
static u64 address(const struct cpu *c, u32 at) { return canonical(value_of(c, at)); }
// The lower half is the segment's own base, for hidden_check().
static u64 fs_base(const struct cpu *c, u32 at) { return (address(c, at) & ~0xffffffffull) | (u32)(u64)&c->segment_words[2]; }
static u64 gs_base(const struct cpu *c, u32 at) { return (address(c, at) & ~0xffffffffull) | (u32)(u64)&c->segment_words[3]; }
static u64 efer(const struct cpu *c, u32 at) { (void)c, (void)at; return 0x501 | (machine.nx ? 0x800 : 0); }
static u64 flag_mask(const struct cpu *c, u32 at) { return value_of(c, at) & 0x3f7fd5; }
static u64 adjust(const struct cpu *c, u32 at) { return value_of(c, at) & 0xfff; }
// Entries 0 to 3 are in use (WB and UC- by the page tables), the upper four hold any legal type.
static u64 pat(const struct cpu *c, u32 at) {
    static const u8 types[6] = { 0, 1, 4, 5, 6, 7 };
    u64 v = 0x00070406;
    for (u32 i = 4; i < 8; i++)
        v |= (u64)types[(value_of(c, at) >> 8 * i & 0xff) % 6] << 8 * i;
    return v;
}
static u64 mtrr_default(const struct cpu *c, u32 at) { (void)c, (void)at; return 0xc06; }
static u64 mtrr_fixed_ram(const struct cpu *c, u32 at) { (void)c, (void)at; return 0x0606060606060606; }
static u64 mtrr_fixed(const struct cpu *c, u32 at) {
    static const u8 types[5] = { 0, 1, 4, 5, 6 };
    u64 v = 0;
    for (u32 i = 0; i < 8; i++)
        v |= (u64)types[(value_of(c, at) >> 8 * i & 0xff) % 5] << 8 * i;
    return v;
}
// Variable ranges over the PCI hole, one megabyte each, uncached; one in two switched on.
static u64 mtrr_base(const struct cpu *c, u32 at) { return 0xf0000000 + ((u64)c->index << 20) + ((u64)(at & 0xe) << 23); }
static u64 mtrr_mask(const struct cpu *c, u32 at) {
    (void)c;
    struct cpuid limits = cpuid(0x80000008, 0);
    u64 width = (1ull << (limits.eax & 0xff)) - 1;
    return (width & ~0xfffffull) | ((at & 2) ? 0 : 0x800);
}

static const struct msr { u32 at; const char *what; u64 (*want)(const struct cpu *, u32); } msrs[] = {
    { 0xc0000080, "efer", efer },
    { 0xc0000081, "star", v64 },
    { 0xc0000082, "lstar", address },
    { 0xc0000083, "cstar", address },
    { 0xc0000084, "fmask", flag_mask },
    { 0xc0000100, "fs_base", fs_base },
    { 0xc0000101, "gs_base", gs_base },
    { 0xc0000102, "kernel_gs_base", address },
    { 0xc0000103, "tsc_aux", v32 },
    { 0x174, "sysenter_cs", v16 },
    { 0x175, "sysenter_esp", v32 },
    { 0x176, "sysenter_eip", v32 },
    { 0x3b, "tsc_adjust", adjust },
    { 0x277, "pat", pat },
    { 0x2ff, "mtrr_default", mtrr_default },
    { 0x250, "mtrr_fixed_00000", mtrr_fixed_ram },
    { 0x258, "mtrr_fixed_80000", mtrr_fixed },
    { 0x259, "mtrr_fixed_a0000", mtrr_fixed },
    { 0x268, "mtrr_fixed_c0000", mtrr_fixed },
    { 0x269, "mtrr_fixed_c8000", mtrr_fixed },
    { 0x26a, "mtrr_fixed_d0000", mtrr_fixed },
    { 0x26b, "mtrr_fixed_d8000", mtrr_fixed },
    { 0x26c, "mtrr_fixed_e0000", mtrr_fixed },
    { 0x26d, "mtrr_fixed_e8000", mtrr_fixed },
    { 0x26e, "mtrr_fixed_f0000", mtrr_fixed },
    { 0x26f, "mtrr_fixed_f8000", mtrr_fixed },
    { 0x200, "mtrr_base0", mtrr_base },
    { 0x201, "mtrr_mask0", mtrr_mask },
    // Xen saves range 0 in all eight slots: the others are judged elsewhere only.
    { 0x202, "mtrr_base1", mtrr_base },
    { 0x203, "mtrr_mask1", mtrr_mask },
    { 0x204, "mtrr_base2", mtrr_base },
    { 0x205, "mtrr_mask2", mtrr_mask },
    { 0x206, "mtrr_base3", mtrr_base },
    { 0x207, "mtrr_mask3", mtrr_mask },
    { 0x208, "mtrr_base4", mtrr_base },
    { 0x209, "mtrr_mask4", mtrr_mask },
    { 0x20a, "mtrr_base5", mtrr_base },
    { 0x20b, "mtrr_mask5", mtrr_mask },
    { 0x20c, "mtrr_base6", mtrr_base },
    { 0x20d, "mtrr_mask6", mtrr_mask },
    { 0x20e, "mtrr_base7", mtrr_base },
    { 0x20f, "mtrr_mask7", mtrr_mask },
};
#define MSRS (sizeof(msrs) / sizeof(msrs[0]))
_Static_assert(MSRS <= 128, "room in msrs_held");

static bool offered(u32 at) {
    if (at == 0x3b)                            // TSC_ADJUST: some hypervisors swallow the write
        return cpuid(0, 0).eax >= 7 && cpuid(7, 0).ebx & 2;
    if (at == 0xc0000103)
        return cpuid(0x80000001, 0).edx & 1u << 27;
    if (at >= 0x202 && at <= 0x20f)
        return !machine.xen;
    return true;
}

static void msrs_set(struct cpu *c) {
    for (u32 i = 0; i < MSRS; i++) {
        u64 want = msrs[i].want(c, msrs[i].at), found;
        if (skipped(msrs[i].what))
            continue;
        if (offered(msrs[i].at) && try_wrmsr(msrs[i].at, want) && try_rdmsr(msrs[i].at, &found) &&
            (found == want || (msrs[i].at == 0x3b && found)))
            c->msrs_held[i / 64] |= 1ull << i % 64;
        else if (c->index == 0)
            say("ABSENT what=%s\n", msrs[i].what);
    }
}
static void msrs_check(struct cpu *c) {
    for (u32 i = 0; i < MSRS; i++)
        if (c->msrs_held[i / 64] & 1ull << i % 64)
            check(msrs[i].what, -1, rdmsr(msrs[i].at), msrs[i].want(c, msrs[i].at));
}
static void msrs_spoil(struct cpu *c) {
    for (u32 i = 0; i < MSRS; i++)
        if (c->msrs_held[i / 64] & 1ull << i % 64 && msrs[i].want != gs_base && msrs[i].want != fs_base) {
            u64 v = rdmsr(msrs[i].at);
            bool variable = msrs[i].at >= 0x200 && msrs[i].at <= 0x20f;
            try_wrmsr(msrs[i].at, msrs[i].want == pat ? v ^ 1ull << 32 : variable ? v ^ 0x100000 : v ^ 1);
        }
}
static void bases_spoil(struct cpu *c) {
    try_wrmsr(0xc0000100, fs_base(c, 0xc0000100) ^ 1ull << 40);
    try_wrmsr(0xc0000101, gs_base(c, 0xc0000101) ^ 1ull << 40);
}

SUBJECT(msrs, true, msrs_set, msrs_check, msrs_spoil);
SUBJECT(bases, true, 0, 0, bases_spoil);
