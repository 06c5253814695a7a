// The command line: words of name=value, unknown ones are reported and ignored.
#include "witness.h"

struct options opt = {
    .lapic = LAPIC_ONESHOT, .hpet = HPET_OFF, .avx = AVX_ON, .pace = PACE_PM, .ap = AP_MIX,
    .ioapic = true, .pit = true, .mem_mb = 4, .beat_ms = 250, .cpus = CPUS_MAX, .break_beat = 5,
};

bool same(const char *a, const char *b) {
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

// skip= is a list of names parted by commas.
bool skipped(const char *what) {
    for (const char *s = opt.skip; *s;) {
        const char *w = what;
        while (*w && *w == *s)
            w++, s++;
        if (!*w && (!*s || *s == ','))
            return true;
        while (*s && *s++ != ',')
            ;
    }
    return false;
}

// The position of `value` in a list of names separated by '|', -1 when it is none of them.
static int choice(const char *value, const char *names) {
    for (int n = 0;; n++) {
        const char *v = value;
        while (*v && *v == *names)
            v++, names++;
        if (!*v && (!*names || *names == '|'))
            return n;
        while (*names && *names != '|')
            names++;
        if (!*names++)
            return -1;
    }
}

static u32 number(const char *s) {
    u32 v = 0;
    while (*s >= '0' && *s <= '9')
        v = v * 10 + (*s++ - '0');
    return v;
}

static bool read_option(const char *name, char *value) {
    int n;
#define CHOICE(word, field, names) \
    if (same(name, word)) { \
        if ((n = choice(value, names)) < 0) \
            return false; \
        opt.field = n; \
        return true; \
    }
#define NUMBER(word, field, low, high) \
    if (same(name, word)) { \
        u32 v = number(value); \
        opt.field = v < (low) ? (low) : v > (high) ? (high) : v; \
        return true; \
    }
    CHOICE("lapic", lapic, "off|oneshot|periodic|deadline")
    CHOICE("hpet", hpet, "off|count|on")
    CHOICE("avx", avx, "off|on|all")
    CHOICE("pace", pace, "pm|pit|tsc")
    CHOICE("ap", ap, "mix|ipi|timer|spin")
    CHOICE("ioapic", ioapic, "off|on")
    CHOICE("pit", pit, "off|on")
    CHOICE("rtc", rtc, "off|on")
    CHOICE("idle", spin, "hlt|spin")
    CHOICE("debug", debug_fire, "hold|fire")
    CHOICE("irr", irr, "off|on")
    CHOICE("ide", ide_split, "whole|split")
    CHOICE("quiet", quiet, "off|on")
    CHOICE("strict", strict, "off|on")
    NUMBER("mem", mem_mb, 0, 3000)
    NUMBER("beat", beat_ms, 10, 2000)
    NUMBER("cpus", cpus, 1, CPUS_MAX)
    NUMBER("slice", slice, 0, 4096)
    if (same(name, "skip")) {
        for (u32 i = 0; value[i] && i < sizeof(opt.skip) - 1; i++)
            opt.skip[i] = value[i];
        return true;
    }
    if (same(name, "break")) {                 // NAME or NAME@BEAT
        u32 i = 0;
        while (value[i] && value[i] != '@' && i < sizeof(opt.break_name) - 1)
            opt.break_name[i] = value[i], i++;
        if (value[i] == '@')
            opt.break_beat = number(value + i + 1);
        return true;
    }
    return false;
}

void read_options(u32 boot_sector) {
    const char *from = (const char *)(u64)*(volatile u32 *)(u64)(boot_sector + 0x228);
    u32 length = 0;
    if (from)
        while (from[length] && length < sizeof(opt.line) - 1)
            opt.line[length] = from[length], length++;
    char words[sizeof(opt.line)];
    for (u32 i = 0; i <= length; i++)
        words[i] = opt.line[i];
    for (char *w = words; *w;) {
        char *end = w, *value = 0;
        for (; *end && *end != ' '; end++)
            if (*end == '=' && !value)
                *end = 0, value = end + 1;
        char *next = *end ? end + 1 : end;
        *end = 0;
        if (*w && !(value && read_option(w, value)))
            say("IGNORED option=%s\n", w);
        w = next;
    }
}
