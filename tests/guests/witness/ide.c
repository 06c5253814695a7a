// IDE disks and CD drives on the two legacy channels, by polled PIO: IDENTIFY and the first sector against what they were at
// boot. In between the task file holds a pattern or, with ide=split, a sector read half way.
#include "witness.h"

enum { DATA = 0, ERROR = 1, COUNT = 2, LBA0 = 3, LBA1 = 4, LBA2 = 5, SELECT = 6, STATUS = 7, COMMAND = 7 };
enum { BUSY = 0x80, REQUEST = 0x08, FAULT = 0x21 };
enum { READ_SECTORS = 0x20, IDENTIFY = 0xec, IDENTIFY_PACKET = 0xa1 };
static const u16 channels[2] = { 0x1f0, 0x170 };
#define CONTROL 0x206                          // from the channel's base
#define WORDS 256

static struct drive { bool there, packet; u64 identity, sector; } drives[4];
static u16 buffer[WORDS];
static bool half_way;

static bool wait(u16 port, u8 want) {
    for (u32 tries = 0; tries < 2000000; tries++) {
        u8 s = in8(port + STATUS);
        if (!(s & BUSY))
            return s & want || (!want && !(s & FAULT));
        relax();
    }
    return false;
}
static void take(u16 port, u32 from, u32 words) {
    u16 *to = buffer + from;
    u64 n = words;
    asm volatile("rep insw" : "+D"(to), "+c"(n) : "d"(port) : "memory");
}
static u64 sum(void) {
    u64 s = 0;
    for (u32 i = 0; i < WORDS; i++)
        s = (s ^ buffer[i]) * 0x100000001b3 + 1;
    return s;
}
static bool command(u32 n, u8 what) {
    u16 port = channels[n / 2];
    out8(port + SELECT, 0xe0 | (n & 1) << 4);
    if (!wait(port, 0) && in8(port + STATUS) & BUSY)
        return false;
    out8(port + COUNT, 1);
    out8(port + LBA0, 0);
    out8(port + LBA1, 0);
    out8(port + LBA2, 0);
    out8(port + COMMAND, what);
    return wait(port, REQUEST);
}
static u64 identity(u32 n) {
    if (!command(n, drives[n].packet ? IDENTIFY_PACKET : IDENTIFY))
        return 0;
    take(channels[n / 2], 0, WORDS);
    return sum();
}
static u64 first_sector(u32 n) {
    if (!command(n, READ_SECTORS))
        return 0;
    take(channels[n / 2], 0, WORDS);
    return sum();
}
static void leave(void) {
    for (u32 ch = 0; ch < 2; ch++) {
        u16 port = channels[ch];
        if (!drives[2 * ch].there && !drives[2 * ch + 1].there)
            continue;
        out8(port + SELECT, 0xe0 | (drives[2 * ch].there ? 0 : 0x10));
        for (u32 i = COUNT; i <= LBA2; i++)
            out8(port + i, 0x50 + 3 * i + ch);
    }
    half_way = opt.ide_split && drives[0].there && !drives[0].packet && command(0, READ_SECTORS);
    if (half_way)
        take(channels[0], 0, WORDS / 2);
}
static void ide_set(struct cpu *c) {
    (void)c;
    for (u32 n = 0; n < 4; n++) {
        u16 port = channels[n / 2];
        out8(port + CONTROL, 2);               // no interrupts
        out8(port + SELECT, 0xe0 | (n & 1) << 4);
        u8 s = in8(port + STATUS);
        if (s == 0 || s == 0xff)
            continue;
        drives[n].identity = identity(n);
        if (!drives[n].identity && in8(port + LBA1) == 0x14 && in8(port + LBA2) == 0xeb) {
            drives[n].packet = true;
            drives[n].identity = identity(n);
        }
        drives[n].there = drives[n].identity != 0;
        if (drives[n].there && !drives[n].packet)
            drives[n].sector = first_sector(n);
        if (drives[n].there)
            say("IDE drive=%u packet=%u sector=0x%x\n", (u64)n, (u64)drives[n].packet, drives[n].sector);
    }
    leave();
}
static void ide_check(struct cpu *c) {
    (void)c;
    if (half_way) {
        check("ide_half_way", -1, in8(channels[0] + STATUS) & (BUSY | REQUEST), REQUEST);
        take(channels[0], WORDS / 2, WORDS / 2);
        check("ide_second_half", -1, sum(), drives[0].sector);
    }
    for (u32 ch = half_way ? 1 : 0; ch < 2; ch++)
        for (u32 i = COUNT; i <= LBA2 && (drives[2 * ch].there || drives[2 * ch + 1].there); i++)
            check("ide_task_file", ch * 10 + i, in8(channels[ch] + i), 0x50 + 3 * i + ch);
    for (u32 n = 0; n < 4; n++) {
        if (!drives[n].there)
            continue;
        check("ide_identity", n, identity(n), drives[n].identity);
        if (!drives[n].packet)
            check("ide_sector", n, first_sector(n), drives[n].sector);
    }
    leave();
}
static void ide_spoil(struct cpu *c) {
    (void)c;
    for (u32 ch = 0; ch < 2; ch++)
        for (u32 i = COUNT; i <= LBA2; i++)
            out8(channels[ch] + i, 0);
    drives[0].sector ^= half_way || drives[0].there ? 1 : 0;
}
SUBJECT(ide, false, ide_set, ide_check, ide_spoil);
