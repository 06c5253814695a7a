// x87, SSE, AVX and what else XCR0 offers. Compiled code uses none of it, so the state is loaded once and stays live in the
// registers for ever; a check stores it and compares.
#include "witness.h"

#define XCR0_WANTED_ALL 0x2e7                  // x87 SSE AVX AVX-512 PKRU
#define HEADER 512

static inline u64 xgetbv0(void) { u32 lo, hi; asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0)); return (u64)hi << 32 | lo; }
static inline void xsetbv0(u64 v) { asm volatile("xsetbv" ::"a"((u32)v), "d"((u32)(v >> 32)), "c"(0)); }

static void load(const u8 *area) {
    if (machine.xsave)
        asm volatile("xrstor64 (%0)" ::"r"(area), "a"(-1), "d"(-1) : "memory");
    else
        asm volatile("fxrstor64 (%0)" ::"r"(area) : "memory");
}
static void store(struct cpu *c, u8 *area) {
    for (u32 i = 0; i < c->fpu_size; i++)
        area[i] = 0;
    if (machine.xsave)
        asm volatile("xsave64 (%0)" ::"r"(area), "a"(-1), "d"(-1) : "memory");
    else
        asm volatile("fxsave64 (%0)" ::"r"(area) : "memory");
}

static u16 *at16(u8 *area, u32 offset) { return (u16 *)(area + offset); }
static u32 *at32(u8 *area, u32 offset) { return (u32 *)(area + offset); }
static u64 *at64(u8 *area, u32 offset) { return (u64 *)(area + offset); }

static void fpu_set(struct cpu *c) {
    u8 *area = c->xsave_want;
    c->xcr0 = 0;
    c->fpu_size = 512;
    if (machine.xsave) {
        c->xcr0 = machine.xcr0;
        xsetbv0(c->xcr0);
        c->fpu_size = cpuid(0xd, 0).ebx;
        if (c->fpu_size > sizeof(c->xsave_want))
            c->fpu_size = sizeof(c->xsave_want);
    }
    u32 top = (c->index + 3) & 7;
    *at16(area, 0) = 0x37f ^ (c->index & 3) << 10;            // FCW: rounding by vCPU
    *at16(area, 2) = top << 11 | 0x4500 | 0x20;               // FSW: TOP, C0 C2 C3 bits, a masked exception
    area[4] = 0xff ^ 1 << (c->index & 7);                     // FTW: one empty register
    u32 mask = 0;
    asm volatile("fxsave64 (%0)" ::"r"(c->xsave_now) : "memory");
    mask = *at32(c->xsave_now, 28);
    *at32(area, 24) = (0x1f80 | ((c->index + 1) & 3) << 13 | 0x8000 | 0x15 | 0x40) & (mask ? mask : 0xffbf);
    for (u32 i = 0; i < 8; i++) {                             // ST: a NaN, a denormal, ordinary numbers
        *at64(area, 32 + 16 * i) = value_of(c, 0x80 + i) | 1ull << 63;
        *at16(area, 40 + 16 * i) = i == 1 ? 0x7fff : i == 2 ? 0 : (value_of(c, 0x88 + i) & 0xbfff) | 1;
    }
    for (u32 i = 0; i < 32; i++)                              // XMM
        *at64(area, 160 + 8 * i) = value_of(c, 0xa0 + i);
    if (machine.xsave) {
        *at64(area, HEADER) = c->xcr0;
        for (u32 bit = 2; bit < 63; bit++)
            if (c->xcr0 >> bit & 1) {
                struct cpuid where = cpuid(0xd, bit);
                u32 bytes = bit == 9 ? 4 : where.eax;         // PKRU: 32 bits count
                for (u32 i = 0; i < bytes && where.ebx + i < c->fpu_size; i += 4)
                    *at32(area, where.ebx + i) = value_of(c, bit << 16 | i);
                // Opmask registers are 16 bits wide without AVX512BW.
                if (bit == 5 && !(cpuid(7, 0).ebx & 1u << 30))
                    for (u32 i = 0; i < 8; i++)
                        *at64(area, where.ebx + 8 * i) &= 0xffff;
            }
    }
    load(area);
}

// FIP, FDP and FOP are not judged: processors keep them only around exceptions.
static void fpu_check(struct cpu *c) {
    u8 *now = c->xsave_now, *want = c->xsave_want;
    store(c, now);
    check("fcw", -1, *at16(now, 0), *at16(want, 0));
    check("fsw", -1, *at16(now, 2), *at16(want, 2));
    check("ftw", -1, now[4], want[4]);
    check("mxcsr", -1, *at32(now, 24), *at32(want, 24));
    for (u32 i = 0; i < 8; i++) {
        check("st_mantissa", i, *at64(now, 32 + 16 * i), *at64(want, 32 + 16 * i));
        check("st_exponent", i, *at16(now, 40 + 16 * i), *at16(want, 40 + 16 * i));
    }
    for (u32 i = 0; i < 16; i++) {
        check("xmm_low", i, *at64(now, 160 + 16 * i), *at64(want, 160 + 16 * i));
        check("xmm_high", i, *at64(now, 168 + 16 * i), *at64(want, 168 + 16 * i));
    }
    if (!machine.xsave)
        return;
    check("xcr0", -1, xgetbv0(), c->xcr0);
    check("xstate_bv", -1, *at64(now, HEADER), *at64(want, HEADER));
    for (u32 bit = 2; bit < 63; bit++)
        if (c->xcr0 >> bit & 1) {
            static const char *const names[10] = { 0, 0, "ymm_high", 0, 0, "opmask", "zmm_high", "zmm_upper", 0, "pkru" };
            struct cpuid where = cpuid(0xd, bit);
            for (u32 i = 0; i < where.eax && where.ebx + i < c->fpu_size; i += 8)
                check(bit < 10 && names[bit] ? names[bit] : "xstate", i / 8, *at64(now, where.ebx + i), *at64(want, where.ebx + i));
        }
}

static void fpu_spoil(struct cpu *c) {
    u8 *area = c->xsave_now;
    store(c, area);
    *at16(area, 0) ^= 0x400;
    *at16(area, 2) ^= 0x3800;
    area[4] ^= 0x81;
    *at32(area, 24) ^= 0x2000;
    for (u32 i = 32; i < 416; i += 8)
        *at64(area, i) ^= 1;
    for (u32 i = 576; i < c->fpu_size; i += 8)
        *at64(area, i) ^= 1;
    load(area);
}
static void xcr0_spoil(struct cpu *c) {
    if (machine.xsave)
        xsetbv0(c->xcr0 ^ 4);
}

SUBJECT(fpu, true, fpu_set, fpu_check, fpu_spoil);
SUBJECT(xcr0, true, 0, 0, xcr0_spoil);
