// The processor's own registers: general registers across a halt, control and debug registers, descriptor tables,
// segments with their hidden parts, and the interrupt entry that serves them.
#include "witness.h"

extern u8 isr_stubs[], breakpoint_targets[];
extern const struct { u64 from, to; } fixups_start[], fixups_end[];
void probe_segments(u32 out[8]);

struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

// ---------------------------------------------------------------- what is held
#define DR6_HELD(c) (0xffff0ff0 | (((c)->index + 5) & 0xf))
// debug=fire: DR1 stops execution at this vCPU's own target, every beat; DR0 watches writes, DR2 execution, both where
// nothing ever happens; DR3 is off. By default none is enabled: QEMU 7.2's emulation of nested SVM leaves a guest's
// breakpoints armed after the guest is gone, for every other guest of that host.
#define DR7_FIRE 0x000d0425                    // L0 (write, 4 bytes), L1, G2
#define DR7_HOLD(c) (0x500 | ((c)->index + 9) << 20)          // LE; kinds and lengths differ by vCPU
static u64 dr7(const struct cpu *c) { return opt.debug_fire ? DR7_FIRE : DR7_HOLD(c); }
#define SEGMENTS 4
static const u16 segment_selectors[SEGMENTS] = { SEL_DS, SEL_ES, SEL_FS, SEL_GS };

static u64 debug_address(const struct cpu *c, u32 n) {
    return n == 1 ? (u64)breakpoint_targets + 16 * c->index : canonical(value_of(c, 0x40 + n)) & ~(u64)3;
}
static u32 segment_limit(const struct cpu *c, u32 n) { return 0x100 + 0x40 * n + 4 * c->index + 3; }
static u32 gdt_limit(const struct cpu *c) { return SEL_SS + 7 + 8 * c->index; }
static u32 ldt_limit(const struct cpu *c) { return 0x0f + (c->index & 1 ? 8 : 0); }

static u64 descriptor(u64 base, u32 limit, u32 access, u32 flags) {
    return (limit & 0xffff) | (base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 0xf) << 48 |
           (u64)flags << 52 | (base >> 24 & 0xff) << 56;
}

struct __attribute__((packed)) table { u16 limit; u64 base; };

#define STACK_IST1(c) ((u64)(c) + CPU_BLOCK - 0x1800)

void start_cpu_tables(struct cpu *c) {
    c->gdt[SEL_CODE32 / 8] = descriptor(0, 0xfffff, 0x9b, 0xc);
    c->gdt[SEL_CODE64 / 8] = descriptor(0, 0xfffff, 0x9b, 0xa);
    c->gdt[SEL_DATA / 8] = c->gdt[SEL_SS / 8] = descriptor(0, 0xfffff, 0x93, 0xc);
    c->gdt[SEL_TSS / 8] = descriptor((u64)&c->tss, sizeof(c->tss) - 1, 0x89, 0);
    c->gdt[SEL_LDT / 8] = descriptor((u64)c->ldt, ldt_limit(c), 0x82, 0);
    for (u32 n = 0; n < SEGMENTS; n++) {
        c->segment_words[n] = value_of(c, 0x60 + n);
        c->gdt[segment_selectors[n] / 8] = descriptor((u64)&c->segment_words[n], segment_limit(c, n), 0x93, 0x4);
    }
    c->ldt[0] = descriptor(0x1000 * c->index, 0x123, 0x93, 0x4);
    c->ldt[1] = descriptor(0x2000 * c->index, 0x456, 0x91, 0x4);
    c->ldt[2] = descriptor(0x3000 * c->index, 0x789, 0x93, 0x4);
    c->tss.ist[0] = STACK_IST1(c);
    c->tss.iomap = sizeof(c->tss);
    for (u32 v = 0; v < IDT_VECTORS; v++) {
        u64 at = (u64)isr_stubs + 16 * v;
        u64 ist = v == 8 || v == VECTOR_SOFT ? 1 : 0;
        c->idt[2 * v] = (at & 0xffff) | SEL_CODE64 << 16 | ist << 32 | 0x8e0000000000 | (at >> 16 & 0xffff) << 48;
        c->idt[2 * v + 1] = at >> 32;
    }
    struct table gdt = { gdt_limit(c), (u64)c->gdt }, idt = { sizeof(c->idt) - 1, (u64)c->idt };
    asm volatile("lgdt %0; lidt %1" ::"m"(gdt), "m"(idt));
    asm volatile("movw %0, %%ds; movw %1, %%es; movw %2, %%fs; movw %3, %%gs; movw %4, %%ss" ::"r"((u16)SEL_DS),
                 "r"((u16)SEL_ES), "r"((u16)SEL_FS), "r"((u16)SEL_GS), "r"((u16)SEL_SS));
    asm volatile("ltr %0; lldt %1" ::"r"((u16)SEL_TSS), "r"((u16)SEL_LDT));
}

// ---------------------------------------------------------------- interrupts and exceptions
static void fatal(struct cpu *c, struct frame *f) {
    u64 cr2;
    asm volatile("movq %%cr2, %0" : "=r"(cr2));
    say("FATAL cpu=%u vector=%u error=0x%x rip=0x%x rsp=0x%x cr2=0x%x rflags=0x%x cs=0x%x\n", (u64)c->index, f->vector,
        f->error, f->rip, f->rsp, cr2, f->rflags, f->cs);
    for (;;)
        asm volatile("cli; hlt");
}

static void debug_exception(struct cpu *c, struct frame *f) {
    if (f->rip != debug_address(c, 1))
        fatal(c, f);
    c->breakpoints++;
    f->rip++;                                  // over the NOP: works with and without RF support
    asm volatile("movq %0, %%dr6" ::"r"((u64)DR6_HELD(c)));
}

void interrupt(struct frame *f) {
    struct cpu *c = me();
    if (c->spoil_registers && f->vector >= VECTOR_PIC) {      // break=registers: damage all but the stack pointer
        c->spoil_registers = false;
        for (u64 *r = &f->r15; r <= &f->rax; r++)
            *r ^= 0x10;
        f->rflags ^= 0x91;
    }
    if (f->vector >= VECTOR_PIC) {
        if (f->vector == VECTOR_SOFT) {
            c->soft_irqs++;
            c->soft_irq_stack = f->rsp != 0 ? (u64)(f + 1) : 0;
        } else {
            count_interrupt(c, f->vector);
        }
        return;
    }
    if (f->vector == 1) {
        debug_exception(c, f);
        return;
    }
    for (typeof(&fixups_start[0]) x = fixups_start; x < fixups_end; x++)
        if (x->from == f->rip) {
            f->rip = x->to;
            f->rdx = 1;
            return;
        }
    fatal(c, f);
}

// ---------------------------------------------------------------- general registers and flags
static const char *const register_names[17] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8",
                                                "r9",  "r10", "r11", "r12", "r13", "r14", "r15", "rflags" };
#define SPIN_TURNS 2000
enum { RCX = 2, RSP = 7, RFLAGS = 16 };

// Sleeps once with every register loaded and judges what woke up.
void hold_once(struct cpu *c, bool spin) {
    struct hold *h = &c->hold;
    for (u32 r = 0; r < 16; r++)
        h->want[r] = value_of(c, 0x10 + r);
    // Arithmetic flags by vCPU; DF, IOPL 3, NT, AC, ID.
    h->want[RFLAGS] = (value_of(c, 0x20) & 0x8d5) | 2 | 0x400 | 0x3000 | 0x4000 | 0x40000 | 0x200000;
    h->spin = spin;
    if (spin)
        h->want[RCX] = SPIN_TURNS;
    hold_registers(h);
    if (spin)
        h->want[RCX] = 0;
    h->want[RFLAGS] |= 0x200;
    for (u32 r = 0; r < 17; r++)
        check(register_names[r], -1, h->found[r], h->want[r]);
    irq_on();
}

static void registers_spoil(struct cpu *c) { c->spoil_registers = true; }

// ---------------------------------------------------------------- control registers
#define CR(n) ({ u64 v; asm volatile("movq %%cr" #n ", %0" : "=r"(v)); v; })
#define SET_CR(n, v) asm volatile("movq %0, %%cr" #n ::"r"((u64)(v)) : "memory")
#define DR(n) ({ u64 v; asm volatile("movq %%dr" #n ", %0" : "=r"(v)); v; })
#define SET_DR(n, v) asm volatile("movq %0, %%dr" #n ::"r"((u64)(v)))

static void control_set(struct cpu *c) {
    bool odd = c->index & 1;
    c->cr0 = 0x80010033 | (odd ? 0x40000 : 0);                // PG WP NE ET MP PE, AM on odd ones
    c->cr4 = 0x6f8 | (odd ? 0x4 : 0x100);                     // DE PSE PAE MCE PGE OSFXSR OSXMMEXCPT, TSD or PCE
    if (machine.fsgsbase)
        c->cr4 |= 1 << 16;
    if (machine.smep)
        c->cr4 |= 1 << 20;
    if (machine.xsave)
        c->cr4 |= 1 << 18;
    SET_CR(0, c->cr0);
    SET_CR(4, c->cr4);
    SET_CR(2, canonical(value_of(c, 0x30)));
}
static void control_check(struct cpu *c) {
    check("cr0", -1, CR(0), c->cr0);
    check("cr2", -1, CR(2), canonical(value_of(c, 0x30)));
    check("cr3", -1, CR(3), (u64)c->pml4);
    check("cr4", -1, CR(4), c->cr4);
}
static void control_spoil(struct cpu *c) {
    SET_CR(0, c->cr0 ^ 0x40000);
    SET_CR(2, CR(2) ^ 1);
    SET_CR(4, c->cr4 ^ 0x100);
    // CR3: another copy of the same tables.
    struct cpu *spare = cpu_at(CPUS_MAX - 1);
    if (spare != c && !spare->up) {
        for (u32 i = 0; i < 512; i++)
            spare->pml4[i] = c->pml4[i];
        SET_CR(3, spare->pml4);
    }
}

// ---------------------------------------------------------------- debug registers
static void hit_breakpoint(struct cpu *c) { ((void (*)(void))debug_address(c, 1))(); }

static void debug_set(struct cpu *c) {
    SET_DR(0, debug_address(c, 0));
    SET_DR(1, debug_address(c, 1));
    SET_DR(2, debug_address(c, 2));
    SET_DR(3, debug_address(c, 3));
    SET_DR(6, DR6_HELD(c));
    SET_DR(7, dr7(c));
    if (opt.debug_fire) {
        hit_breakpoint(c);
        c->breakpoints_fire = c->breakpoints == 1;
    }
}
static void debug_check(struct cpu *c) {
    check("dr0", -1, DR(0), debug_address(c, 0));
    check("dr1", -1, DR(1), debug_address(c, 1));
    check("dr2", -1, DR(2), debug_address(c, 2));
    check("dr3", -1, DR(3), debug_address(c, 3));
    check("dr6", -1, DR(6), DR6_HELD(c));
    check("dr7", -1, DR(7), dr7(c));
    if (c->breakpoints_fire) {
        u64 before = c->breakpoints;
        hit_breakpoint(c);
        check("breakpoint_fires", -1, c->breakpoints - before, 1);
    }
}
static void debug_spoil(struct cpu *c) {
    SET_DR(0, debug_address(c, 0) ^ 4);
    SET_DR(1, debug_address(c, 1) ^ 0x100000000000);
    SET_DR(2, debug_address(c, 2) ^ 4);
    SET_DR(3, debug_address(c, 3) ^ 4);
    SET_DR(6, DR6_HELD(c) ^ 1);
    SET_DR(7, dr7(c) ^ 0x100);
}

// ---------------------------------------------------------------- descriptor tables and segments
static u32 lar(u16 selector) {
    u32 v = 0;
    asm volatile("larl %1, %0" : "+r"(v) : "r"((u32)selector) : "cc");
    return v & 0xf0ff00;                       // bits 19:16 are undefined
}
static u32 lsl(u16 selector) {
    u32 v = 0xdeadbeef;
    asm volatile("lsll %1, %0" : "+r"(v) : "r"((u32)selector) : "cc");
    return v;
}
#define SELECTOR(s) ({ u16 v; asm volatile("movw %%" #s ", %0" : "=r"(v)); v; })

static void probe(struct cpu *c, u32 out[8]) {
    for (u32 n = 0; n < SEGMENTS; n++)
        out[4 + n] = segment_limit(c, n) + 1;
    probe_segments(out);
}

static void segments_set(struct cpu *c) {
    u32 out[8];
    probe(c, out);
    c->limits_count = out[4] && out[5] && out[6] && out[7];
}
static void segments_check(struct cpu *c) {
    struct table t;
    u16 s;
    asm volatile("sgdt %0" : "=m"(t));
    check("gdtr_base", -1, t.base, (u64)c->gdt);
    check("gdtr_limit", -1, t.limit, gdt_limit(c));
    asm volatile("sidt %0" : "=m"(t));
    check("idtr_base", -1, t.base, (u64)c->idt);
    check("idtr_limit", -1, t.limit, sizeof(c->idt) - 1);
    asm volatile("sldt %0" : "=m"(s));
    check("ldtr", -1, s, SEL_LDT);
    asm volatile("str %0" : "=m"(s));
    check("tr", -1, s, SEL_TSS);
    check("cs", -1, SELECTOR(cs), SEL_CODE64);
    check("ds", -1, SELECTOR(ds), SEL_DS);
    check("es", -1, SELECTOR(es), SEL_ES);
    check("fs", -1, SELECTOR(fs), SEL_FS);
    check("gs", -1, SELECTOR(gs), SEL_GS);
    check("ss", -1, SELECTOR(ss), SEL_SS);
    check("cs_access", -1, lar(SELECTOR(cs)), 0xa09b00);
    check("ss_access", -1, lar(SELECTOR(ss)), 0xc09300);
    check("tr_access", -1, lar(SEL_TSS), 0x8b00);
    check("tr_limit", -1, lsl(SEL_TSS), sizeof(c->tss) - 1);
    for (u32 n = 0; n < SEGMENTS; n++) {
        check("segment_access", n, lar(segment_selectors[n]), 0x409300);
        check("segment_limit", n, lsl(segment_selectors[n]), segment_limit(c, n));
    }
    // Through the hidden base and limit of LDTR: the second entry, and one past the end.
    check("ldt_entry", -1, lsl(0x0c), 0x456);
    check("ldt_end", -1, lsl(0x14), c->index & 1 ? 0x789 : 0xdeadbeef);
    // The hidden base of TR: a software interrupt on the stack of IST 1.
    u64 before = c->soft_irqs;
    asm volatile("int %0" ::"i"(VECTOR_SOFT) : "memory");
    check("soft_irq", -1, c->soft_irqs - before, 1);
    check("ist_stack", -1, c->soft_irq_stack, STACK_IST1(c));
}

// The hidden bases and limits of the data segments: compatibility mode sees them. (The held FS and GS bases of msr.c
// differ from the descriptor's in their upper halves only, which this mode ignores.)
static void hidden_check(struct cpu *c) {
    u32 out[8];
    probe(c, out);
    for (u32 n = 0; n < SEGMENTS; n++) {
        check("hidden_base", n, out[n], c->segment_words[n]);
        if (c->limits_count)
            check("hidden_limit", n, out[4 + n], 1);
    }
}
static void hidden_spoil(struct cpu *c) {
    u64 held[SEGMENTS];
    for (u32 n = 0; n < SEGMENTS; n++) {
        held[n] = c->gdt[segment_selectors[n] / 8];
        c->gdt[segment_selectors[n] / 8] = descriptor((u64)&c->segment_words[n ^ 1], 0xffff, 0x93, 0x4);
    }
    asm volatile("movw %0, %%ds; movw %1, %%es; movw %2, %%fs; movw %3, %%gs" ::"r"((u16)SEL_DS), "r"((u16)SEL_ES),
                 "r"((u16)SEL_FS), "r"((u16)SEL_GS));
    for (u32 n = 0; n < SEGMENTS; n++)
        c->gdt[segment_selectors[n] / 8] = held[n];
}
// The tables elsewhere, with other limits; other selectors; the TSS one byte shorter.
static void segments_spoil(struct cpu *c) {
    static u64 gdts[CPUS_MAX][32], idts[CPUS_MAX][IDT_VECTORS * 2];
    u64 *gdt_copy = gdts[c->index], *idt_copy = idts[c->index];
    for (u32 i = 0; i < 32; i++)
        gdt_copy[i] = c->gdt[i];
    for (u32 i = 0; i < IDT_VECTORS * 2; i++)
        idt_copy[i] = c->idt[i];
    gdt_copy[SEL_TSS / 8] = descriptor((u64)&c->tss, sizeof(c->tss) - 2, 0x8b, 0);
    for (u32 n = 0; n < SEGMENTS; n++)
        gdt_copy[segment_selectors[n] / 8] = descriptor((u64)&c->segment_words[n], 0x777, 0x91, 0x4);
    struct table gdt = { gdt_limit(c) + 8, (u64)gdt_copy }, idt = { sizeof(c->idt) - 17, (u64)idt_copy };
    asm volatile("lgdt %0; lidt %1" ::"m"(gdt), "m"(idt));
    asm volatile("movw %0, %%ds; movw %0, %%es; movw %0, %%fs; movw %0, %%gs; movw %0, %%ss; lldt %1" ::"r"((u16)SEL_DATA),
                 "r"((u16)0));
}
// Another interrupt stack, another access byte behind SS.
static void tr_spoil(struct cpu *c) {
    c->tss.ist[0] -= 0x40;
    c->gdt[SEL_SS / 8] = descriptor(0, 0xfffff, 0x93, 0xd);
}

SUBJECT(registers, true, 0, 0, registers_spoil);              // judged by hold_once() at every wake-up
SUBJECT(control, true, control_set, control_check, control_spoil);
SUBJECT(debug, true, debug_set, debug_check, debug_spoil);
SUBJECT(segments, true, segments_set, segments_check, segments_spoil);
SUBJECT(tr, true, 0, 0, tr_spoil);
SUBJECT(hidden, true, 0, hidden_check, hidden_spoil);
