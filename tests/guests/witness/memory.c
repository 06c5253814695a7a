// RAM: pages whose every word is known, a few rewritten each beat, all verified. Eight words a page carry its number and
// generation, the rest depends on position and generation only, so that a saved guest compresses well.
#include "witness.h"

#define WORDS 512
#define LINE 64                                // words; the first of each line names page and generation
#define MUTATED 64                             // pages a beat
#define PAGES_MAX 8192                         // 32 MB of pages have a generation

static u8 generation[PAGES_MAX];
static u32 pages;

u64 mix(u64 x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}
static inline u64 word_at(u32 page, u32 gen, u32 i) {
    if (i % LINE == 0)
        return 0x5157000000000000 | (u64)i << 40 | (u64)gen << 32 | page;
    return (i ^ (gen & 3) << 9) * 0x0001000100010001ull;
}
static void fill(u32 page) {
    volatile u64 *at = (u64 *)(PATTERN + (u64)page * 4096);
    for (u32 i = 0; i < WORDS; i++)
        at[i] = word_at(page, generation[page], i);
}
static void memory_set(struct cpu *c) {
    (void)c;
    u64 room = machine.ram_top > PATTERN + 0x100000 ? machine.ram_top - 0x100000 - PATTERN : 0;
    pages = opt.mem_mb * 256;
    if (pages > room / 4096)
        pages = room / 4096;
    if (pages > PAGES_MAX)
        pages = PAGES_MAX;
    for (u32 page = 0; page < pages; page++)
        fill(page);
    say("MEMORY pattern_kb=%u from=0x%x\n", (u64)pages * 4, (u64)PATTERN);
}
// Called with interrupts on: it is the longest check.
void memory_round(void) {
    if (!pages)
        return;
    for (u32 page = 0; page < pages; page++) {
        volatile u64 *at = (u64 *)(PATTERN + (u64)page * 4096);
        for (u32 i = 0; i < WORDS; i++)
            if (at[i] != word_at(page, generation[page], i))
                check("memory", page, at[i], word_at(page, generation[page], i));
    }
    check("memory_verified", -1, pages, pages);
    for (u32 k = 0; k < MUTATED; k++) {
        u32 page = mix(beat * MUTATED + k) % pages;
        generation[page]++;
        fill(page);
    }
}
static void memory_spoil(struct cpu *c) {
    (void)c;
    if (pages > 3)
        *(volatile u64 *)(PATTERN + 0x3008) ^= 0x10000;
}
SUBJECT(memory, false, memory_set, 0, memory_spoil);
