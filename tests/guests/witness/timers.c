// PM timer (the reference of all rates), PIT and HPET, the pace of the beats, and the counting of interrupts.
#include "witness.h"

volatile u64 pit_irqs, rtc_irqs;
void rtc_acknowledge(void);

// ---------------------------------------------------------------- PM timer
#define PM_MASK 0xffffff                       // 24 bits everywhere
static u64 pm_total;
static u32 pm_last;

static u32 pm_raw(void) { return in32(machine.pm_timer) & PM_MASK; }

// Boot processor only. Must be called every 4.6 s: the beats do.
u64 pm_now(void) {
    u32 now = pm_raw();
    pm_total += (now - pm_last) & PM_MASK;
    pm_last = now;
    return pm_total;
}
void wait_pm(u32 ticks) {
    for (u32 start = pm_raw(); ((pm_raw() - start) & PM_MASK) < ticks;)
        relax();
}
static void pm_check(struct cpu *c) {
    (void)c;
    u32 before = pm_raw();
    for (u32 tries = 0; tries < 1000 && pm_raw() == before; tries++)
        relax();
    check_true("pm_timer_runs", pm_raw() != before);
    if (machine.pm_event)
        check("pm1_enable", -1, in16(machine.pm_event + 2), machine.pm1_enable);
    if (machine.pm_control)
        check("pm1_control", -1, in16(machine.pm_control), machine.pm1_control);
    for (u32 i = 0; i < machine.gpe0_length / 2u; i++)
        check("gpe0_enable", i, in8(machine.gpe0 + machine.gpe0_length / 2 + i), machine.gpe0_enable[i]);
}
static void pm_set(struct cpu *c) {
    (void)c;
    if (machine.pm_event) {
        out16(machine.pm_event + 2, 0x0120);   // power button and global lock: the SCI pin stays masked
        machine.pm1_enable = in16(machine.pm_event + 2);
    }
    if (machine.pm_control)
        machine.pm1_control = in16(machine.pm_control);
    for (u32 i = 0; i < machine.gpe0_length / 2u; i++) {
        u16 port = machine.gpe0 + machine.gpe0_length / 2 + i;
        out8(port, 0x12);
        machine.gpe0_enable[i] = in8(port);
    }
}
static void pm_spoil(struct cpu *c) {
    (void)c;
    out16(machine.pm_event + 2, machine.pm1_enable ^ 0x100);
    out16(machine.pm_control, machine.pm1_control ^ 1);
    for (u32 i = 0; i < machine.gpe0_length / 2u; i++)
        out8(machine.gpe0 + machine.gpe0_length / 2 + i, machine.gpe0_enable[i] ^ 0x10);
}
SUBJECT(pm, false, pm_set, pm_check, pm_spoil);

// ---------------------------------------------------------------- PIT
#define PIT 0x40
#define CHANNEL0_COUNT (PIT_HZ / TIMER_HZ)
#define CHANNEL2_COUNT 0xfff0
#define SPEAKER 0x61

static u16 pit_count(u32 channel) {
    out8(PIT + 3, channel << 6);               // latch
    u16 low = in8(PIT + channel);
    return low | in8(PIT + channel) << 8;
}
static u8 pit_status(u32 channel) {
    out8(PIT + 3, 0xe0 | 2 << channel);        // read back: status only
    return in8(PIT + channel) & 0x3f;          // without output level and null count
}
static void pit_program(u32 channel, u32 mode, u32 count) {
    out8(PIT + 3, channel << 6 | 0x30 | mode << 1);
    out8(PIT + channel, count);
    out8(PIT + channel, count >> 8);
}
static void pit_set(struct cpu *c) {
    (void)c;
    out8(SPEAKER, (in8(SPEAKER) & 0x0c) | 1);  // gate of channel 2 on, speaker off
    pit_program(2, 2, CHANNEL2_COUNT);
    pit_program(0, 2, opt.pit ? CHANNEL0_COUNT : 0);
}
static void moving(u32 channel, u32 limit) {
    u16 a = pit_count(channel), b = a;
    check("pit_count_in_range", channel, a <= limit, 1);
    for (u32 tries = 0; tries < 1000 && b == a; tries++)
        b = pit_count(channel);
    check("pit_runs", channel, a != b, 1);
}
static void pit_check(struct cpu *c) {
    static u64 seen;
    static u32 stalled;
    (void)c;
    check("pit_status", 0, pit_status(0), 0x34);
    check("pit_status", 2, pit_status(2), 0x34);
    check("speaker_port", -1, in8(SPEAKER) & 0x0f, 0x01);
    moving(0, opt.pit ? CHANNEL0_COUNT : 0xffff);
    moving(2, CHANNEL2_COUNT);
    if (opt.pit || opt.hpet == HPET_ON) {
        stalled = pit_irqs == seen ? stalled + 1 : 0;
        seen = pit_irqs;
        check_true("irq0_alive", stalled < 3);
    }
}
static void pit_spoil(struct cpu *c) {
    (void)c;
    out8(SPEAKER, 2);
    pit_program(0, 0, 0xffff);
    pit_program(2, 0, 0xffff);
}
SUBJECT(pit, false, pit_set, pit_check, pit_spoil);

// ---------------------------------------------------------------- HPET
#define HPET 0xfed00000
enum { CAPABILITY = 0, PERIOD = 4, CONFIG = 0x10, COUNTER = 0xf0, TIMER0 = 0x100, TIMER1 = 0x120, COMPARATOR = 8 };
#define HPET_ENABLE 1
#define HPET_LEGACY 2
static u32 hpet_config, hpet_timer[3], hpet_comparator1;

bool hpet_there(void) { return mmio_read(HPET) >> 16 == 0x8086 && mmio_read(HPET + PERIOD) - 1 < 100000000; }
u64 hpet_now(void) {
    for (;;) {
        u32 high = mmio_read(HPET + COUNTER + 4), low = mmio_read(HPET + COUNTER);
        if (high == mmio_read(HPET + COUNTER + 4))
            return (u64)high << 32 | low;
    }
}
static u32 hpet_timer_config(u32 n) { return mmio_read(HPET + TIMER0 + 0x20 * n); }

static void hpet_set(struct cpu *c) {
    (void)c;
    if (!hpet_there()) {
        if (opt.hpet != HPET_OFF)
            say("ABSENT what=hpet\n");
        opt.hpet = HPET_OFF;
        return;
    }
    machine.hpet_period_fs = mmio_read(HPET + PERIOD);
    if (opt.hpet != HPET_OFF) {
        mmio_write(HPET + CONFIG, 0);
        mmio_write(HPET + COUNTER, 0);
        mmio_write(HPET + COUNTER + 4, 0);
        mmio_write(HPET + TIMER1, 0x100);      // 32 bit, off, comparator held
        mmio_write(HPET + TIMER1 + COMPARATOR, 0x12345678);
        hpet_comparator1 = mmio_read(HPET + TIMER1 + COMPARATOR);
        if (opt.hpet == HPET_ON) {
            u32 ticks = 1000000000000000 / machine.hpet_period_fs / TIMER_HZ;
            mmio_write(HPET + TIMER0, 0x14c);  // 32 bit, periodic, interrupt on; first the accumulator, then the period
            mmio_write(HPET + TIMER0 + COMPARATOR, ticks);
            wait_pm(10);
            mmio_write(HPET + TIMER0 + COMPARATOR, ticks);
        }
        mmio_write(HPET + CONFIG, opt.hpet == HPET_ON ? HPET_ENABLE | HPET_LEGACY : HPET_ENABLE);
    }
    hpet_config = mmio_read(HPET + CONFIG);
    for (u32 n = 0; n < 3; n++)
        hpet_timer[n] = hpet_timer_config(n);
}
static void hpet_check(struct cpu *c) {
    static u64 last;
    (void)c;
    if (!machine.hpet_period_fs)
        return;
    check_true("hpet_there", hpet_there());
    note("hpet_period", -1, mmio_read(HPET + PERIOD), machine.hpet_period_fs);
    check("hpet_config", -1, mmio_read(HPET + CONFIG), hpet_config);
    for (u32 n = 0; n < 3; n++)
        check("hpet_timer", n, hpet_timer_config(n), hpet_timer[n]);
    if (opt.hpet == HPET_OFF)
        return;
    check("hpet_comparator", 1, mmio_read(HPET + TIMER1 + COMPARATOR), hpet_comparator1);
    u64 now = hpet_now();
    check_true("hpet_advances", now > last);
    last = now;
}
static void hpet_spoil(struct cpu *c) {
    (void)c;
    mmio_write(HPET + CONFIG, hpet_config ^ HPET_ENABLE);
    mmio_write(HPET + TIMER1, 0x4);
    mmio_write(HPET + TIMER1 + COMPARATOR, 0x777);
}
SUBJECT(hpet, false, hpet_set, hpet_check, hpet_spoil);

// ---------------------------------------------------------------- pace
static u64 pit_total;
static u16 pit_last;

u64 pace_now(void) {
    if (opt.pace == PACE_TSC)
        return rdtsc();
    if (opt.pace == PACE_PM)
        return pm_now();
    u16 now = pit_count(2);
    pit_total += now <= pit_last ? pit_last - now : pit_last + CHANNEL2_COUNT - now;
    pit_last = now;
    return pit_total;
}
u64 pace_per_ms(void) {
    return opt.pace == PACE_PM ? PM_HZ / 1000 : opt.pace == PACE_PIT ? PIT_HZ / 1000 : machine.tsc_per_pm_x1e6 * (PM_HZ / 1000) / 1000000;
}

// The price of a port access: the UART's scratch register is always the device model's.
void measure_io(void) {
    u32 start = pm_raw(), n = 32;
    for (u32 i = 0; i < n; i++)
        in8(0x3ff);
    machine.io_ns = (u64)((pm_raw() - start) & PM_MASK) * 1000000000 / PM_HZ / n;
}

// TSC against a quarter of a second of the PM timer, from one of its edges to another.
void calibrate(void) {
    u32 edge = pm_raw();
    while (pm_raw() == edge)
        relax();
    u64 tsc = rdtsc(), pm = pm_now();
    wait_pm(PM_HZ / 4);
    for (edge = pm_raw(); pm_raw() == edge;)
        relax();
    u64 tsc_end = rdtsc(), pm_end = pm_now();
    machine.tsc_per_pm_x1e6 = (tsc_end - tsc) * 1000000 / (pm_end - pm);
}

// ---------------------------------------------------------------- interrupts
void count_interrupt(struct cpu *c, u32 vector) {
    switch (vector) {
    case VECTOR_PIC:
        pit_irqs++;
        pic_acknowledge(0);
        break;
    case VECTOR_PIC + 8:
        rtc_irqs++;
        rtc_acknowledge();
        pic_acknowledge(8);
        break;
    case VECTOR_PIC + 7:                       // spurious ones of the PIC
    case VECTOR_PIC + 15:
        break;
    case VECTOR_PIT:
        pit_irqs++;
        lapic_interrupt(c, vector);
        break;
    case VECTOR_RTC:
        rtc_irqs++;
        rtc_acknowledge();
        lapic_interrupt(c, vector);
        break;
    case VECTOR_IPI:
        c->ipis++;
        lapic_interrupt(c, vector);
        break;
    default:
        if (vector != VECTOR_TIMER && vector != VECTOR_SPURIOUS)
            c->strays++;
        lapic_interrupt(c, vector);
    }
}
