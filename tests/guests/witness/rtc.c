// RTC and CMOS: control registers, the alarm, RAM bytes, the held index, and a date that goes on.
#include "witness.h"

enum { SECONDS = 0, ALARM_SECONDS = 1, MINUTES = 2, ALARM_MINUTES = 3, HOURS = 4, ALARM_HOURS = 5, A = 10, B = 11, C = 12, D = 13 };
#define RAM_FIRST 0x0e
#define RAM_LAST 0x7f
#define PATTERN_FIRST 0x60                     // bytes no firmware minds
#define PATTERN_LAST 0x6f
#define INDEX_HELD 0x65
#define DATE_STALL_PM (PM_HZ * 3ull)

static u8 ram[128];
static const u8 alarm[3] = { 0x11, 0x22, 0x03 };

static u8 cmos_read(u8 index) { out8(0x70, index); return in8(0x71); }
static void cmos_write(u8 index, u8 v) { out8(0x70, index); out8(0x71, v); }
static void hold_index(void) { out8(0x70, INDEX_HELD); }

void rtc_acknowledge(void) {
    cmos_read(C);
    hold_index();
}
static u8 control_a(void) { return opt.rtc ? 0x2b : 0x26; }  // 32 Hz or the usual 1024 Hz
static u8 control_b(void) { return opt.rtc ? 0x42 : 0x02; }  // periodic interrupt, 24 hours, BCD

// Seconds of the day; settled before it is used.
u32 rtc_seconds(void) {
    // An update is announced 244 us ahead, which is longer than a fast machine takes for a hundred tries.
    u64 start = pm_now();
    for (u32 tries = 0; tries < 100 || pm_now() - start < PM_HZ / 100; tries++) {
        u8 s = cmos_read(SECONDS), m = cmos_read(MINUTES), h = cmos_read(HOURS);
        if (s == cmos_read(SECONDS) && !(cmos_read(A) & 0x80)) {
            hold_index();
            return ((h >> 4) * 10 + (h & 15)) * 3600 + ((m >> 4) * 10 + (m & 15)) * 60 + (s >> 4) * 10 + (s & 15);
        }
    }
    hold_index();
    return ~0u;
}
static void rtc_set(struct cpu *c) {
    (void)c;
    cmos_write(A, control_a());
    cmos_write(ALARM_SECONDS, alarm[0]);
    cmos_write(ALARM_MINUTES, alarm[1]);
    cmos_write(ALARM_HOURS, alarm[2]);
    cmos_write(B, control_b());
    cmos_read(C);
    for (u32 i = PATTERN_FIRST; i <= PATTERN_LAST; i++)
        cmos_write(i, 0x5a ^ i * 3);
    for (u32 i = RAM_FIRST; i <= RAM_LAST; i++)
        ram[i] = cmos_read(i);
    hold_index();
}
static void rtc_check(struct cpu *c) {
    static u32 last = ~0u, next = RAM_FIRST;
    static u64 changed;
    (void)c;
    check("cmos_index", -1, in8(0x71), 0x5a ^ INDEX_HELD * 3 % 256);
    check("rtc_a", -1, cmos_read(A) & 0x7f, control_a());
    check("rtc_b", -1, cmos_read(B), control_b());
    check("rtc_valid", -1, cmos_read(D), 0x80);
    check("rtc_alarm", 0, cmos_read(ALARM_SECONDS), alarm[0]);
    check("rtc_alarm", 1, cmos_read(ALARM_MINUTES), alarm[1]);
    check("rtc_alarm", 2, cmos_read(ALARM_HOURS), alarm[2]);
    for (u32 todo = share(RAM_LAST - RAM_FIRST + 1); todo; todo--, next = next == RAM_LAST ? RAM_FIRST : next + 1)
        check("cmos", next, cmos_read(next), ram[next]);
    hold_index();
    u32 now = rtc_seconds();
    u64 pm = pm_now();
    check_true("rtc_date", now < 86400);
    if (now != last)
        changed = pm;
    last = now;
    check_true("rtc_advances", pm - changed < DATE_STALL_PM);
}
static void rtc_spoil(struct cpu *c) {
    (void)c;
    cmos_write(A, control_a() ^ 1);
    cmos_write(B, control_b() ^ 0x84);         // SET: the date stands still
    cmos_write(ALARM_SECONDS, 0x33);
    cmos_write(ALARM_MINUTES, 0x33);
    cmos_write(ALARM_HOURS, 0x13);
    for (u32 i = PATTERN_FIRST; i <= PATTERN_LAST; i++)
        cmos_write(i, 0);
    out8(0x70, D);
}
SUBJECT(rtc, false, rtc_set, rtc_check, rtc_spoil);
