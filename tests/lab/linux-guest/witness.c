// The second witness: a program that keeps a pattern in memory, changes and re-verifies it for ever, and prints one
// line a beat:
//   WITNESS beat=N bad=N fx=F mono=S wall=S gap=S
// bad counts damaged words, fx is a floating-point accumulator that must never jump, gap is the time since the last
// beat as the guest saw it.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512, PAGE = WORDS * 8, CHANGED_PER_BEAT = 64, CHECKED_SHARE = 8 };

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static uint64_t expected(uint64_t page, uint64_t word, uint32_t generation) {
    return mix((page * WORDS + word) ^ (uint64_t)generation << 40);
}

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int count, char **arguments) {
    size_t pages = (count > 1 ? atoi(arguments[1]) : 32) * 256;
    uint64_t *memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *generation = calloc(pages, sizeof *generation);
    setvbuf(stdout, 0, _IOLBF, 0);
    for (size_t page = 0; page < pages; page++)
        for (size_t word = 0; word < WORDS; word++) memory[page * WORDS + word] = expected(page, word, 0);

    double fx = 1.0, start = seconds(CLOCK_MONOTONIC), last = start;
    for (uint64_t beat = 1;; beat++) {
        for (size_t i = 0; i < CHANGED_PER_BEAT; i++) {
            size_t page = mix(beat * CHANGED_PER_BEAT + i) % pages;
            generation[page]++;
            for (size_t word = 0; word < WORDS; word++)
                memory[page * WORDS + word] = expected(page, word, generation[page]);
        }
        uint64_t bad = 0;
        for (size_t i = 0; i < pages / CHECKED_SHARE; i++) {
            size_t page = (beat * 97 + i) % pages;
            for (size_t word = 0; word < WORDS; word++)
                bad += memory[page * WORDS + word] != expected(page, word, generation[page]);
        }
        fx = fx * 1.0000001 + 0.5;
        double now = seconds(CLOCK_MONOTONIC);
        printf("WITNESS beat=%llu bad=%llu fx=%.6f mono=%.3f wall=%.0f gap=%.3f\n", (unsigned long long)beat,
               (unsigned long long)bad, fx, now - start, seconds(CLOCK_REALTIME), now - last);
        last = now;
        usleep(300000);
    }
}
