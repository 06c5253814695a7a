// The Linux witness: keeps a pattern in memory, rewrites a part of it and verifies a part of it for ever, and prints one line
// each time round. Static. Arguments: the pattern's size in megabytes (32), and a period in milliseconds: then a beat begins
// that often, as long as the machine keeps up, and memory is dirtied at a known rate (64 pages a beat).
//
//   CLOCKS source=NAME available=NAMES event=NAME cpus=N      once at start, and again when the clock source changes
//   WITNESS beat=N bad=N fx=F mono=S wall=S gap=S
//
// bad   words found damaged in this round (0 for an unharmed guest)
// fx    a floating-point accumulator: a function of beat alone
// mono  seconds of CLOCK_MONOTONIC since the start, wall: seconds of CLOCK_REALTIME
// gap   seconds since the previous line: the longest silence the guest saw is its downtime
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, REWRITTEN = 64, VERIFIED_PART = 8, PAUSE_US = 300000 };

static uint64_t *memory;
static uint32_t *generation;                   // of each page: how often it was rewritten
static size_t pages;

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t word_at(size_t page, int i) {
    return mix((page * WORDS + i) ^ (uint64_t)generation[page] << 40);
}

static void fill(size_t page) {
    for (int i = 0; i < WORDS; i++)
        memory[page * WORDS + i] = word_at(page, i);
}

static uint64_t damaged(size_t page) {
    uint64_t bad = 0;
    for (int i = 0; i < WORDS; i++)
        bad += memory[page * WORDS + i] != word_at(page, i);
    return bad;
}

static void read_line(const char *path, char *to, size_t size) {
    FILE *f = fopen(path, "r");
    if (!f || !fgets(to, size, f))
        snprintf(to, size, "unknown");
    if (f)
        fclose(f);
    to[strcspn(to, "\n")] = 0;
    for (size_t n = strlen(to); n && to[n - 1] == ' '; n--)
        to[n - 1] = 0;
    for (char *c = to; *c; c++)
        if (*c == ' ')
            *c = ',';
}

// Which clock tells the time and which one interrupts: what a move between machines puts at risk.
static void print_clocks_if_changed(void) {
    static char last[64];
    char source[64], available[128], event[64];
    read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", source, sizeof(source));
    if (!strcmp(source, last))
        return;
    strcpy(last, source);
    read_line("/sys/devices/system/clocksource/clocksource0/available_clocksource", available, sizeof(available));
    read_line("/sys/devices/system/clockevents/clockevent0/current_device", event, sizeof(event));
    printf("CLOCKS source=%s available=%s event=%s cpus=%ld\n", source, available, event, sysconf(_SC_NPROCESSORS_ONLN));
}

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

// Sleeps until a period after the last time; a beat that took longer starts a new count.
static void keep_time(double period) {
    static double next;
    double now = seconds(CLOCK_MONOTONIC);
    next = next + period > now ? next + period : now;
    struct timespec until = {.tv_sec = (time_t)next, .tv_nsec = (long)((next - (time_t)next) * 1e9)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL))
        ;
}

int main(int argc, char **argv) {
    size_t mb = argc > 1 ? strtoul(argv[1], NULL, 10) : 32;
    double period = argc > 2 ? strtoul(argv[2], NULL, 10) / 1e3 : 0;
    pages = mb * 1024 * 1024 / PAGE;
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    generation = calloc(pages, sizeof(*generation));
    if (!pages || memory == MAP_FAILED || !generation) {
        fprintf(stderr, "witness: no memory for %zu MB of pattern\n", mb);
        return 1;
    }
    for (size_t page = 0; page < pages; page++)
        fill(page);
    setvbuf(stdout, NULL, _IOLBF, 0);

    double fx = 1.0, start = seconds(CLOCK_MONOTONIC), previous = start;
    for (uint64_t beat = 0;;) {
        for (int k = 0; k < REWRITTEN; k++) {
            size_t page = mix(beat * REWRITTEN + k) % pages;
            generation[page]++;
            fill(page);
        }
        uint64_t bad = 0;
        for (size_t n = 0, first = beat * 97 % pages; n < pages / VERIFIED_PART; n++)
            bad += damaged((first + n) % pages);
        fx = fx * 1.0000001 + 0.5;
        beat++;
        print_clocks_if_changed();
        double now = seconds(CLOCK_MONOTONIC);
        printf("WITNESS beat=%llu bad=%llu fx=%.6f mono=%.3f wall=%.0f gap=%.3f\n", (unsigned long long)beat, (unsigned long long)bad, fx,
               now - start, seconds(CLOCK_REALTIME), now - previous);
        previous = now;
        if (period > 0)
            keep_time(period);
        else
            usleep(PAUSE_US);
    }
}
