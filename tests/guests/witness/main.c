// Start, the beat, and the judge's book-keeping.
#include "witness.h"

struct machine machine;
volatile u64 beat;
static u64 bad, notes;
static volatile u32 table_cpu = ~0u;           // whose checks are being printed in full

void memory_round(void);
bool hpet_there(void);
u64 hpet_now(void);
u32 rtc_seconds(void);
u32 boot_sector;                               // linear address of the real-mode part, set by entry.S

// ---------------------------------------------------------------- judging
static void judge(const char *what, int index, u64 found, u64 wanted, bool is_note) {
    struct cpu *c = me();
    if (table_cpu == c->index) {
        say("ROW cpu=%u what=%s", (u64)c->index, what);
        if (index >= 0)
            say("%u", (u64)index);
        say(" found=0x%x wanted=0x%x %s\n", found, wanted, found == wanted ? "ok" : is_note ? "noted" : "BAD");
    }
    if (found == wanted || skipped(what))
        return;
    u32 in = c->failures_in;
    if (in - c->failures_out >= FAILURES) {
        c->failures_lost++;
        return;
    }
    c->failures[in % FAILURES] = (struct failure){ what, index, found, wanted, is_note };
    asm volatile("" ::: "memory");
    c->failures_in = in + 1;
}
void check(const char *what, int index, u64 found, u64 wanted) { judge(what, index, found, wanted, false); }
void note(const char *what, int index, u64 found, u64 wanted) { judge(what, index, found, wanted, !opt.strict); }

#define NOTED 64
// A note is printed once for each value found: it stays true for every later beat.
static bool noted_before(u32 cpu, const struct failure *f) {
    static u64 seen[NOTED];
    static u32 next;
    u64 key = mix((u64)f->what ^ f->found) ^ mix((u64)cpu << 32 | (u32)f->index);
    for (u32 i = 0; i < NOTED; i++)
        if (seen[i] == key)
            return true;
    seen[next++ % NOTED] = key;
    return false;
}
static void drain(struct cpu *c) {
    for (; c->failures_out != c->failures_in; c->failures_out++) {
        struct failure *f = &c->failures[c->failures_out % FAILURES];
        if (f->note && noted_before(c->index, f))
            continue;
        *(f->note ? &notes : &bad) += 1;
        say("%s cpu=%u what=%s", f->note ? "NOTE" : "BAD", (u64)c->index, f->what);
        if (f->index >= 0)
            say("%u", (u64)f->index);
        say(" found=0x%x wanted=0x%x\n", f->found, f->wanted);
    }
    if (c->failures_lost) {
        bad += c->failures_lost;
        say("BAD cpu=%u more=%u\n", (u64)c->index, c->failures_lost);
        c->failures_lost = 0;
    }
}

// ---------------------------------------------------------------- rounds
void set_subjects(struct cpu *c) {
    for (const struct subject *s = subjects_start; s < subjects_end; s++)
        if (s->set && (s->every_cpu || c->index == 0))
            s->set(c);
}
void run_checks(struct cpu *c) {
    for (const struct subject *s = subjects_start; s < subjects_end; s++) {
        if (!s->every_cpu && c->index != 0)
            continue;
        irq_off();
        if (s->spoil && beat == opt.break_beat && (same(opt.break_name, s->name) || same(opt.break_name, "all")))
            s->spoil(c);
        if (s->check)
            s->check(c);
        if (c->index == 0)
            pm_now();                          // a slow round must not outlast the timer's 4.6 s
        irq_on();
    }
    if (c->index == 0)
        memory_round();
    c->beats++;
}

static void print_table(void) {
    for (u32 i = 0; i < machine.cpu_count; i++) {
        struct cpu *c = cpu_at(i);
        table_cpu = i;
        u64 before = c->beats;
        if (i == 0)
            run_checks(c);
        else {
            beat++;
            wake_others();
            for (u32 ms = 0; ms < 3000 && c->beats == before; ms++)
                wait_pm(PM_HZ / 1000);
        }
        table_cpu = ~0u;
    }
    say("TABLE end\n");
}

// ---------------------------------------------------------------- the beat line
static void say_ratio(const char *name, u64 found, u64 wanted) {
    u64 percent = wanted ? found * 100 / wanted : 0;
    say(" %s=%u.%2u", name, percent / 100, percent % 100);
}
static void say_drift(const char *name, u64 found, u64 wanted) {
    i64 ppm = wanted ? ((i64)found - (i64)wanted) * 1000000 / (i64)wanted : 0;
    say(" %s=%d", name, ppm);
}
static void say_beat(void) {
    static u64 last_pm, last_tsc, last_hpet, last_pit, last_lapic;
    struct cpu *c = cpu_at(0);
    irq_off();
    u64 pm = pm_now(), tsc = rdtsc(), hpet = opt.hpet != HPET_OFF ? hpet_now() : 0, pit = pit_irqs, lapic = c->lapic_irqs;
    u32 day = rtc_seconds();
    irq_on();
    u64 passed = pm - last_pm, expected_irqs = passed * TIMER_HZ;
    if (!opt.quiet && beat) {
        say("WITNESS beat=%u bad=%u notes=%u cpus=%u tsc=%u pm=%u pit_irqs=%u lapic_irqs=%u rtc_irqs=%u hpet=%u rtc=%2u:%2u:%2u", beat,
            bad, notes, (u64)machine.cpu_count, tsc, pm, pit, lapic, rtc_irqs, hpet, (u64)day / 3600, (u64)day / 60 % 60, (u64)day % 60);
        say_ratio("rate_pit", (pit - last_pit) * PM_HZ, opt.pit || opt.hpet == HPET_ON ? expected_irqs : 0);
        say_ratio("rate_lapic", (lapic - last_lapic) * PM_HZ, opt.lapic != LAPIC_OFF ? expected_irqs : 0);
        say_drift("ppm_tsc", tsc - last_tsc, passed * machine.tsc_per_pm_x1e6 / 1000000);
        if (opt.hpet != HPET_OFF)
            say_drift("ppm_hpet", (hpet - last_hpet) * (machine.hpet_period_fs / 1000), passed * 279365 * 1000 / 1000);
        say("\n");
        if (machine.cpu_count > 1) {
            say("APS beat=%u", beat);
            for (u32 i = 1; i < machine.cpu_count; i++)
                say(" %u=%u/%u/%u", (u64)i, cpu_at(i)->beats, cpu_at(i)->lapic_irqs, cpu_at(i)->ipis);
            say("\n");
        }
    }
    last_pm = pm, last_tsc = tsc, last_hpet = hpet, last_pit = pit, last_lapic = lapic;
}

// ---------------------------------------------------------------- start
struct e820 { u64 at, size; u32 type, attributes; };

static void find_machine(void) {
    for (u32 leaf = 0x40000000; leaf < 0x40010000; leaf += 0x100) {
        struct cpuid r = cpuid(leaf, 0);
        u32 name[3] = { r.ebx, r.ecx, r.edx };
        bool printable = true;
        for (u32 i = 0; i < 12; i++) {
            char ch = ((char *)name)[i];
            if (ch < ' ' || ch > '~')
                printable = ch == 0 && i > 2 && printable;
            machine.hypervisor[i] = ch < ' ' || ch > '~' ? 0 : ch;
        }
        if (printable && r.eax >= leaf && r.eax < leaf + 0x100)
            break;
        machine.hypervisor[0] = 0;
    }
    machine.xen = same(machine.hypervisor, "XenVMMXenVMM");
    struct cpuid one = cpuid(1, 0), seven = cpuid(0, 0).eax >= 7 ? cpuid(7, 0) : (struct cpuid){ 0 };
    machine.fsgsbase = seven.ebx & 1;
    machine.smep = seven.ebx & 0x80;
    machine.nx = cpuid(0x80000001, 0).edx & 1 << 20;
    machine.deadline = one.ecx & 1 << 24;
    machine.xsave = opt.avx != AVX_OFF && one.ecx & 1 << 26;
    if (machine.xsave) {
        struct cpuid d = cpuid(0xd, 0);
        machine.xcr0 = ((u64)d.edx << 32 | d.eax) & (opt.avx == AVX_ALL ? 0x2e7 : 7);
    }
    if (opt.lapic == LAPIC_DEADLINE && !machine.deadline) {
        say("ABSENT what=tsc_deadline\n");
        opt.lapic = LAPIC_ONESHOT;
    }
    const struct e820 *map = (struct e820 *)E820_ENTRIES;
    for (u32 i = 0; i < *(u32 *)E820_COUNT; i++)
        if (map[i].type == 1 && map[i].at <= BODY && map[i].at + map[i].size > BODY)
            machine.ram_top = map[i].at + map[i].size;
}

void boot_processor(void) {
    struct cpu *c = cpu_at(0);
    serial_start();
    start_cpu_tables(c);
    read_options(boot_sector);
    find_machine();
    find_acpi();
    c->apic_id = lapic_read(0x20) >> 24;
    c->up = true;
    say("START version=1 hypervisor=%s ram_top=0x%x apic_id=%u cmdline=%s\n", machine.hypervisor[0] ? machine.hypervisor : "none", machine.ram_top,
        (u64)c->apic_id, opt.line);
    machine.cpu_count = 1;
    measure_io();
    set_subjects(c);
    calibrate();
    say("RATES io_ns=%u tsc_per_million_pm=%u tsc_khz=%u lapic_hz=%u hpet_period_fs=%u pm_port=0x%x xcr0=0x%x breakpoints=%u limits=%u\n", machine.io_ns, machine.tsc_per_pm_x1e6,
        machine.tsc_per_pm_x1e6 * (PM_HZ / 1000) / 1000000, machine.lapic_hz[0], machine.hpet_period_fs, (u64)machine.pm_timer, machine.xcr0,
        (u64)c->breakpoints_fire, (u64)c->limits_count);
    lapic_timer_start(c);
    irq_on();
    start_others();
    say("CPUS up=%u\n", (u64)machine.cpu_count);
    say_beat();                                // not printed: the first beat's rates start here
    bool spin = opt.spin || !(opt.pit || opt.rtc || opt.hpet == HPET_ON || opt.lapic != LAPIC_OFF);
    for (;;) {
        u64 length = opt.beat_ms * pace_per_ms();
        for (u64 start = pace_now(); pace_now() - start < length;)
            hold_once(c, spin);
        beat++;
        wake_others();
        run_checks(c);
        for (u32 i = 0; i < machine.cpu_count; i++)
            drain(cpu_at(i));
        say_beat();
        int key = serial_key();
        if (key == 't')
            print_table();
        if (key == 'q')
            opt.quiet = !opt.quiet;
    }
}
