// COM1, polled, and the formatter of every line.
#include "witness.h"
#include <stdarg.h>

#define COM1 0x3f8
#define THR_EMPTY 0x20

void serial_start(void) {
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 0x80);
    out8(COM1 + 0, 1);                         // 115200
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 3);                         // 8n1
    out8(COM1 + 2, 1);                         // FIFO on
    out8(COM1 + 4, 3);                         // DTR RTS
}

int serial_key(void) {
    return in8(COM1 + 5) & 1 ? in8(COM1) : -1;
}

// Lines go out whole, sixteen bytes (one FIFO) to a string instruction: under Xen every port access is a trip to another
// process, and the beat line would be most of the beat.
#define FIFO 16
struct line { u32 length; char text[FIFO]; };

static void flush(struct line *l) {
    const char *from = l->text;
    u64 n = l->length;
    for (u32 tries = 0; tries < 1000000 && !(in8(COM1 + 5) & THR_EMPTY); tries++)
        relax();
    asm volatile("rep outsb" : "+S"(from), "+c"(n) : "d"((u16)COM1) : "memory");
    l->length = 0;
}
static void put(struct line *l, char ch) {
    l->text[l->length++] = ch;
    if (l->length == FIFO)
        flush(l);
}

static void put_number(struct line *l, u64 v, u32 base, u32 width) {
    char digits[20];
    u32 n = 0;
    do {
        digits[n++] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v);
    while (n < width)
        digits[n++] = '0';
    while (n)
        put(l, digits[--n]);
}

void say(const char *format, ...) {
    struct line l = { 0 };
    va_list args;
    va_start(args, format);
    for (const char *f = format; *f; f++) {
        if (*f != '%') {
            put(&l, *f);
            continue;
        }
        u32 width = 0;
        for (f++; *f >= '0' && *f <= '9'; f++)
            width = width * 10 + (*f - '0');
        if (*f == 's') {
            for (const char *s = va_arg(args, const char *); *s; s++)
                put(&l, *s);
        } else if (*f == 'd') {
            i64 v = va_arg(args, i64);
            if (v < 0)
                put(&l, '-');
            put_number(&l, v < 0 ? -v : v, 10, width);
        } else {
            put_number(&l, va_arg(args, u64), *f == 'x' ? 16 : 10, width);
        }
    }
    va_end(args);
    if (l.length)
        flush(&l);
}
