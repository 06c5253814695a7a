// Local APIC: every register that holds still, and its timer in three modes.
#include "witness.h"

enum {
    ID = 0x20, VERSION = 0x30, TPR = 0x80, PPR = 0xa0, EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0, ISR = 0x100, IRR = 0x200,
    ICR_LOW = 0x300, ICR_HIGH = 0x310, LVT_TIMER = 0x320, LVT_THERMAL = 0x330, LVT_COUNTERS = 0x340, LVT_LINT0 = 0x350,
    LVT_LINT1 = 0x360, LVT_ERROR = 0x370, INITIAL = 0x380, CURRENT = 0x390, DIVIDE = 0x3e0,
};
#define MSR_APIC_BASE 0x1b
#define MSR_DEADLINE 0x6e0
#define MASKED 0x10000
#define PENDING 0x1000u                        // delivery status
#define STALL_BEATS 3

// ---------------------------------------------------------------- what is held
static u32 tpr(const struct cpu *c) { return c->index & 1 ? 0x10 : 0x20; }
static u32 ldr(const struct cpu *c) { return 1u << (24 + (c->index & 7)); }
static u32 divide(const struct cpu *c) { return c->index & 1 ? 0x2 : 0x3; }       // by 8 or by 16
static u32 lint0(const struct cpu *c) { return !opt.ioapic && c->index == 0 ? 0x700 : MASKED | 0x700; }
static u32 icr_high(const struct cpu *c) { return (0xa0 + c->index) << 24; }
static u32 timer_entry(void) {
    static const u32 mode[] = { MASKED, 0, 0x20000, 0x40000 };
    return mode[opt.lapic] | VECTOR_TIMER;
}
static u32 held(const struct cpu *c, u32 reg) {
    switch (reg) {
    case ID: return c->apic_id << 24;
    case TPR: return tpr(c);
    case LDR: return ldr(c);
    case DFR: return 0xffffffff;
    case SVR: return 0x100 | VECTOR_SPURIOUS;
    case LVT_TIMER: return timer_entry();
    case LVT_THERMAL: return MASKED | (0x80 + c->index);
    case LVT_COUNTERS: return MASKED | (0x90 + c->index);
    case LVT_LINT0: return lint0(c);
    case LVT_LINT1: return 0x400;
    case LVT_ERROR: return MASKED | (0xb0 + c->index);
    case DIVIDE: return divide(c);
    default: return 0;
    }
}
static const struct { u32 reg; const char *what; } rows[] = {
    { ID, "lapic_id" }, { TPR, "lapic_tpr" }, { LDR, "lapic_ldr" }, { DFR, "lapic_dfr" }, { SVR, "lapic_svr" },
    { LVT_TIMER, "lapic_lvt_timer" }, { LVT_THERMAL, "lapic_lvt_thermal" }, { LVT_COUNTERS, "lapic_lvt_counters" },
    { LVT_LINT0, "lapic_lvt_lint0" }, { LVT_LINT1, "lapic_lvt_lint1" }, { LVT_ERROR, "lapic_lvt_error" },
    { DIVIDE, "lapic_divide" },
};
#define ROWS (sizeof(rows) / sizeof(rows[0]))
_Static_assert(VECTOR_HELD >> 4 == 2, "under the even vCPUs' task priority");

static void wait_sent(void) {
    for (u32 tries = 0; tries < 1000000 && lapic_read(ICR_LOW) & PENDING; tries++)
        relax();
}
static void send(u32 apic_id, u32 command) {
    struct cpu *c = me();
    lapic_write(ICR_HIGH, apic_id << 24);
    lapic_write(ICR_LOW, command);
    wait_sent();
    lapic_write(ICR_HIGH, icr_high(c));        // sends nothing, leaves a value to hold
    c->icr_low = command;
}

// INIT, two start-ups: the usual way.
void send_startup(u32 apic_id) {
    send(apic_id, 0x4500);
    wait_pm(PM_HZ / 100);
    send(apic_id, 0x4600 | TRAMPOLINE >> 12);
    wait_pm(PM_HZ / 2000);
    send(apic_id, 0x4600 | TRAMPOLINE >> 12);
}
void send_ipi(u32 apic_id) { send(apic_id, 0x4000 | VECTOR_IPI); }

// ---------------------------------------------------------------- timer
static void arm(struct cpu *c) {
    if (opt.lapic == LAPIC_DEADLINE)
        try_wrmsr(MSR_DEADLINE, rdtsc() + c->deadline_period);
    else if (opt.lapic != LAPIC_OFF)
        lapic_write(INITIAL, c->timer_count);
}
void lapic_interrupt(struct cpu *c, u32 vector) {
    if (vector == VECTOR_TIMER) {
        c->lapic_irqs++;
        if (opt.lapic == LAPIC_ONESHOT || opt.lapic == LAPIC_DEADLINE)
            arm(c);
    }
    if (vector != VECTOR_SPURIOUS)
        lapic_write(EOI, 0);
}
// Counts a tenth of a second of the PM timer.
void calibrate_lapic(struct cpu *c) {
    lapic_write(SVR, held(c, SVR));
    lapic_write(DIVIDE, divide(c));
    lapic_write(LVT_TIMER, MASKED | VECTOR_TIMER);
    u64 tsc = rdtsc();
    lapic_write(INITIAL, 0xffffffff);
    wait_pm(PM_HZ / 10);
    u64 ticks = 0xffffffff - lapic_read(CURRENT);
    tsc = rdtsc() - tsc;
    lapic_write(INITIAL, 0);
    machine.lapic_hz[c->index] = ticks * 10 * (c->index & 1 ? 8 : 16);
    c->timer_count = ticks * 10 / TIMER_HZ;
    c->deadline_period = tsc * 10 / TIMER_HZ;
}
void lapic_timer_start(struct cpu *c) { arm(c); }

// ---------------------------------------------------------------- set, check, spoil
static void lapic_set(struct cpu *c) {
    c->apic_base = rdmsr(MSR_APIC_BASE);
    if (c->index == 0)
        machine.lapic_version = lapic_read(VERSION);
    calibrate_lapic(c);
    for (u32 i = 0; i < ROWS; i++)
        if (rows[i].reg != ID)
            lapic_write(rows[i].reg, held(c, rows[i].reg));
    lapic_write(ICR_HIGH, icr_high(c));
    c->icr_low = lapic_read(ICR_LOW) & ~PENDING;
    if (opt.irr && !(c->index & 1)) {          // stays in IRR under the task priority
        send(c->apic_id, 0x4000 | VECTOR_HELD);
        c->lapic_irr_held = 1;
    }
}
static void lapic_check(struct cpu *c) {
    u64 cr8;
    asm volatile("movq %%cr8, %0" : "=r"(cr8));
    check("cr8", -1, cr8, tpr(c) >> 4);
    check("apic_base", -1, rdmsr(MSR_APIC_BASE), c->apic_base);
    for (u32 i = 0; i < ROWS; i++)
        check(rows[i].what, -1, lapic_read(rows[i].reg) & (rows[i].reg >= 0x320 && rows[i].reg <= 0x370 ? ~PENDING : ~0u),
              held(c, rows[i].reg));
    check("lapic_icr_high", -1, lapic_read(ICR_HIGH), icr_high(c));
    check("lapic_icr_low", -1, lapic_read(ICR_LOW) & ~PENDING, c->icr_low);
    for (u32 i = 0; i < 8; i++)
        check("lapic_isr", i, lapic_read(ISR + 16 * i), 0);
    check("lapic_irr_held", -1, lapic_read(IRR + 16 * (VECTOR_HELD / 32)) >> VECTOR_HELD % 32 & 1, c->lapic_irr_held);
    note("lapic_version", -1, lapic_read(VERSION), machine.lapic_version);
    if (opt.lapic == LAPIC_OFF)
        return;
    if (opt.lapic != LAPIC_DEADLINE) {
        check("lapic_initial", -1, lapic_read(INITIAL), c->timer_count);
        check_true("lapic_current_in_range", lapic_read(CURRENT) <= c->timer_count);
    }
    c->irqs_stalled = c->lapic_irqs == c->seen_irqs ? c->irqs_stalled + 1 : 0;
    c->seen_irqs = c->lapic_irqs;
    check_true("lapic_timer_alive", c->irqs_stalled < STALL_BEATS);
}
static void lapic_spoil(struct cpu *c) {
    for (u32 i = 0; i < ROWS; i++)
        if (rows[i].reg != ID)
            lapic_write(rows[i].reg, held(c, rows[i].reg) ^ (rows[i].reg == LDR ? 0x80000000 : rows[i].reg == TPR ? 0x30 :
                                                             rows[i].reg == DFR ? 0xf0000000 : rows[i].reg >= 0x320 && rows[i].reg <= 0x370 ? MASKED : 1));
    send(c->apic_id, 0x4000 | VECTOR_IPI);
    lapic_write(ICR_HIGH, 0);
}
static void lapic_timer_spoil(struct cpu *c) {
    (void)c;
    try_wrmsr(MSR_DEADLINE, 0);
    lapic_write(INITIAL, 0);
}

SUBJECT(lapic, true, lapic_set, lapic_check, lapic_spoil);
SUBJECT(lapic_timer, true, 0, 0, lapic_timer_spoil);
