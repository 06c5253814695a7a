// The witness guest: shared types, registers access and the few services every subject uses.
#ifndef WITNESS_H
#define WITNESS_H
#include "layout.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;

// ---------------------------------------------------------------- ports, MMIO, registers
static inline void out8(u16 port, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static inline void out16(u16 port, u16 v) { asm volatile("outw %0, %1" ::"a"(v), "Nd"(port)); }
static inline void out32(u16 port, u32 v) { asm volatile("outl %0, %1" ::"a"(v), "Nd"(port)); }
static inline u8 in8(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 in16(u16 port) { u16 v; asm volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 in32(u16 port) { u32 v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static inline u32 mmio_read(u64 at) { return *(volatile u32 *)at; }
static inline void mmio_write(u64 at, u32 v) { *(volatile u32 *)at = v; }

static inline u64 rdtsc(void) { u32 lo, hi; asm volatile("rdtsc" : "=a"(lo), "=d"(hi)); return (u64)hi << 32 | lo; }
static inline void relax(void) { asm volatile("pause" ::: "memory"); }
static inline void irq_off(void) { asm volatile("cli" ::: "memory"); }
static inline void irq_on(void) { asm volatile("sti" ::: "memory"); }

struct cpuid { u32 eax, ebx, ecx, edx; };
static inline struct cpuid cpuid(u32 leaf, u32 subleaf) {
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
    return r;
}

// Both return false when the processor refuses the register.
bool try_rdmsr(u32 msr, u64 *value);
bool try_wrmsr(u32 msr, u64 value);
static inline u64 rdmsr(u32 msr) { u64 v = 0; try_rdmsr(msr, &v); return v; }

// ---------------------------------------------------------------- one vCPU
// Order known to entry.S: rax rbx rcx rdx rsi rdi rbp rsp r8..r15 rflags.
struct hold { u64 want[17], found[17], spin; };

struct tss { u32 reserved0; u64 rsp[3], reserved1, ist[7], reserved2; u16 reserved3, iomap; } __attribute__((packed));

struct failure { const char *what; int index; u64 found, wanted; bool note; };
#define FAILURES 64

struct cpu {
    u64 pml4[512], pdpt[512];                  // first: entry.S fills the boot processor's
    u8 xsave_now[4096], xsave_want[4096];
    u64 idt[IDT_VECTORS * 2];
    u64 gdt[32], ldt[4];
    struct tss tss;
    u32 segment_words[4];
    struct hold hold;
    u32 index, apic_id;
    volatile bool up, spoil_registers, breakpoints_fire;
    bool limits_count;                         // the processor enforces segment limits (software emulation may not)
    u64 msrs_held[2];                          // bit a row of msr.c
    u64 cr0, cr4, efer, apic_base, lapic_irr_held;
    u32 fpu_size; u64 xcr0;
    u32 timer_count, icr_low;
    u64 deadline_period;
    volatile u64 beats;                        // heartbeat: rounds of checks done
    volatile u64 lapic_irqs, ipis, breakpoints, strays, soft_irqs, soft_irq_stack;
    u64 seen_beats; u32 stalled;               // kept by the boot processor
    u64 seen_irqs; u32 irqs_stalled;           // kept by the vCPU
    volatile u32 failures_in, failures_out;    // ring: the vCPU writes, the boot processor reads
    volatile u64 failures_lost;
    struct failure failures[FAILURES];
};
_Static_assert(sizeof(struct cpu) <= CPU_BLOCK - 0x2800, "room for the stacks");

static inline struct cpu *cpu_at(u32 index) { return (struct cpu *)(u64)(CPU_BLOCKS + index * CPU_BLOCK); }
// From the stack pointer: GS base is under test, so nothing may depend on it.
static inline struct cpu *me(void) {
    u64 sp;
    asm volatile("movq %%rsp, %0" : "=r"(sp));
    return (struct cpu *)(sp & ~(u64)(CPU_BLOCK - 1));
}

// ---------------------------------------------------------------- subjects: what is held and checked
struct subject {
    const char *name;                          // for break=NAME
    bool every_cpu;                            // else the boot processor alone
    void (*set)(struct cpu *);                 // once, at start: put known values in
    void (*check)(struct cpu *);               // every beat, interrupts off
    void (*spoil)(struct cpu *);               // break=NAME: damage the real state, to see the checks red
};
// One row beside the code it names; the linker gathers them. Any function may be 0.
#define SUBJECT(word, ...) \
    static const struct subject word##_subject __attribute__((section(".subjects"), used, aligned(8))) = { #word, __VA_ARGS__ }
extern const struct subject subjects_start[], subjects_end[];

// The judges. `index` is appended to the name unless negative.
void check(const char *what, int index, u64 found, u64 wanted);
void note(const char *what, int index, u64 found, u64 wanted);    // identity of the machine: told, not counted as bad
#define check_true(what, truth) check(what, -1, (truth) ? 1 : 0, 1)

// A value for `id` that differs from vCPU to vCPU.
u64 mix(u64 x);
static inline u64 value_of(const struct cpu *c, u32 id) { return mix((u64)c->index << 32 | id); }
static inline u64 canonical(u64 x) { return 0xffff800000000000 | (x >> 18); }

// ---------------------------------------------------------------- options.c
enum lapic_mode { LAPIC_OFF, LAPIC_ONESHOT, LAPIC_PERIODIC, LAPIC_DEADLINE };
enum hpet_mode { HPET_OFF, HPET_COUNT, HPET_ON };
enum avx_mode { AVX_OFF, AVX_ON, AVX_ALL };
enum pace { PACE_PM, PACE_PIT, PACE_TSC };
enum ap_mode { AP_MIX, AP_IPI, AP_TIMER, AP_SPIN };
struct options {
    enum lapic_mode lapic; enum hpet_mode hpet; enum avx_mode avx; enum pace pace; enum ap_mode ap;
    bool ioapic, pit, rtc, spin, irr, debug_fire, ide_split, quiet, strict;
    u32 mem_mb, beat_ms, cpus, break_beat, slice;
    char break_name[24], skip[64];
    char line[512];
};
extern struct options opt;
void read_options(u32 boot_sector);
bool same(const char *a, const char *b);
bool skipped(const char *what);                // named in skip=: neither held nor judged

// ---------------------------------------------------------------- print.c
void serial_start(void);
int serial_key(void);                          // -1: none
void say(const char *format, ...);             // %s %d %u %x, numbers are 64 bit, %2u pads with zeros

// ---------------------------------------------------------------- machine facts, found at boot
struct machine {
    u64 ram_top;                               // end of the RAM that holds 1 MB upwards
    char hypervisor[13];
    bool xen, fsgsbase, smep, nx, deadline, xsave;
    u64 xcr0;
    u32 rsdt, dsdt;
    u16 pm_event, pm_control, pm_timer, gpe0, pm1_enable, pm1_control; u8 gpe0_length, gpe0_enable[4];
    u32 lapic_ids[CPUS_MAX], id_count, cpu_count;
    u32 lapic_version, ioapic_version, ioapic_id;
    u64 io_ns;                                 // one access of a port that the device model serves
    u64 tsc_per_pm_x1e6;                       // TSC ticks in a million PM ticks
    u64 lapic_hz[CPUS_MAX]; u64 hpet_period_fs;
};
extern struct machine machine;
extern volatile u64 beat;
#define PM_HZ 3579545
#define PIT_HZ 1193182
#define TIMER_HZ 100

void find_acpi(void);
u64 pm_now(void);                              // 64 bit, extended in software
u64 pace_now(void);
u64 pace_per_ms(void);
void wait_pm(u32 ticks);
void measure_io(void);
void calibrate(void);
void lapic_interrupt(struct cpu *c, u32 vector);
void lapic_timer_start(struct cpu *c);
void set_subjects(struct cpu *c);
void count_interrupt(struct cpu *c, u32 vector);
void pic_acknowledge(u32 line);
void start_others(void);
void wake_others(void);
void start_cpu_tables(struct cpu *c);
void run_checks(struct cpu *c);
void hold_registers(struct hold *h);
void hold_once(struct cpu *c, bool spin);

// ---------------------------------------------------------------- pci.c (a slot is device * 8 + function)
u32 pci_read(u32 slot, u32 reg);
void pci_write(u32 slot, u32 reg, u32 v);
u32 pci_find(u32 from, u32 reg, u32 mask, u32 want);
void pci_rest(void);

#define SLOW_IO_NS 30000
#define SLOW_SHARE 12
// How many of `all` items of a long device check to do in this beat, the next beat going on behind them: all of them, or a
// few where every port access is slow (a nested Xen: milliseconds).
static inline u32 share(u32 all) {
    u32 some = opt.slice ? opt.slice : machine.io_ns > SLOW_IO_NS ? SLOW_SHARE : all;
    return some < all ? some : all;
}

// ---------------------------------------------------------------- LAPIC, vectors
#define LAPIC 0xfee00000
static inline u32 lapic_read(u32 reg) { return mmio_read(LAPIC + reg); }
static inline void lapic_write(u32 reg, u32 v) { mmio_write(LAPIC + reg, v); }
enum {
    VECTOR_PIC = 0x30,        // 16 lines
    VECTOR_HELD = 0x21,       // irr=on: pends for ever under the TPR
    VECTOR_TIMER = 0x40, VECTOR_IPI = 0x41, VECTOR_PIT = 0x42, VECTOR_RTC = 0x48, VECTOR_SOFT = 0x50, VECTOR_SPURIOUS = 0x4f,
};
extern volatile u64 pit_irqs, rtc_irqs;

#endif
