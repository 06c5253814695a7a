// The other vCPUs: started by INIT and SIPI, each runs its own checks once a beat and counts a heartbeat.
#include "witness.h"

extern u8 trampoline[], trampoline_end[], trampoline_cr3[], trampoline_stack[];
void send_startup(u32 apic_id);
void send_ipi(u32 apic_id);
void set_subjects(struct cpu *c);
#define STALL_BEATS 3

// How a vCPU waits for the next beat: halted until the boot processor's interrupt, halted under its own timer, or spinning.
static enum ap_mode mode_of(const struct cpu *c) {
    static const enum ap_mode mix_of_three[3] = { AP_TIMER, AP_IPI, AP_SPIN };
    enum ap_mode mode = opt.ap == AP_MIX ? mix_of_three[c->index % 3] : opt.ap;
    return mode == AP_TIMER && opt.lapic == LAPIC_OFF ? AP_IPI : mode;
}

// Called by entry.S on the new vCPU's own stack.
void application_processor(void) {
    struct cpu *c = me();
    start_cpu_tables(c);
    set_subjects(c);
    lapic_timer_start(c);
    c->up = true;
    bool spin = mode_of(c) == AP_SPIN;
    for (u64 done = beat;;) {
        hold_once(c, spin);
        if (beat != done) {
            done = beat;
            run_checks(c);
        }
    }
}

static void start_one(struct cpu *c, u32 index, u32 apic_id) {
    const struct cpu *boot = cpu_at(0);
    c->index = index;
    c->apic_id = apic_id;
    for (u32 i = 0; i < 512; i++)
        c->pdpt[i] = boot->pdpt[i];
    c->pml4[0] = (u64)c->pdpt | 3;
    u8 *to = (u8 *)TRAMPOLINE;
    for (u32 i = 0; i < (u32)(trampoline_end - trampoline); i++)
        to[i] = trampoline[i];
    *(volatile u32 *)(TRAMPOLINE + (trampoline_cr3 - trampoline)) = (u64)c->pml4;
    *(volatile u32 *)(TRAMPOLINE + (trampoline_stack - trampoline)) = (u64)c + CPU_BLOCK;
    send_startup(apic_id);
    for (u32 ms = 0; ms < 2000 && !c->up; ms++)
        wait_pm(PM_HZ / 1000);
}

// Vcpus the MADT names; without one, ids 0 to 15 are tried.
void start_others(void) {
    u32 count = 1;
    for (u32 i = 0; i < machine.id_count && count < opt.cpus; i++) {
        u32 id = machine.lapic_ids[i];
        if (id == cpu_at(0)->apic_id)
            continue;
        start_one(cpu_at(count), count, id);
        if (cpu_at(count)->up)
            count++;
        else
            say("SILENT apic_id=%u\n", (u64)id);
    }
    machine.cpu_count = count;
}

void wake_others(void) {
    irq_off();
    for (u32 i = 1; i < machine.cpu_count; i++)
        if (mode_of(cpu_at(i)) == AP_IPI)
            send_ipi(cpu_at(i)->apic_id);
    irq_on();
}

// The boot processor judges the others' heartbeats.
static void heartbeat_check(struct cpu *boot) {
    (void)boot;
    for (u32 i = 1; i < machine.cpu_count; i++) {
        struct cpu *c = cpu_at(i);
        c->stalled = c->beats == c->seen_beats ? c->stalled + 1 : 0;
        c->seen_beats = c->beats;
        check("heartbeat", i, c->stalled < STALL_BEATS, 1);
    }
}
static void heartbeat_spoil(struct cpu *boot) {               // INIT: the vCPU falls silent
    (void)boot;
    if (machine.cpu_count > 1) {
        lapic_write(0x310, cpu_at(1)->apic_id << 24);
        lapic_write(0x300, 0x4500);
    }
}
SUBJECT(heartbeat, false, 0, heartbeat_check, heartbeat_spoil);
