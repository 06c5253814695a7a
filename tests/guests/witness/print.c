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

static void put(char ch) {
    for (u32 tries = 0; tries < 1000000 && !(in8(COM1 + 5) & THR_EMPTY); tries++)
        relax();
    out8(COM1, ch);
}

static void put_number(u64 v, u32 base, u32 width) {
    char digits[20];
    u32 n = 0;
    do {
        digits[n++] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v);
    while (n < width)
        digits[n++] = '0';
    while (n)
        put(digits[--n]);
}

void say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    for (const char *f = format; *f; f++) {
        if (*f != '%') {
            put(*f);
            continue;
        }
        u32 width = 0;
        for (f++; *f >= '0' && *f <= '9'; f++)
            width = width * 10 + (*f - '0');
        if (*f == 's') {
            for (const char *s = va_arg(args, const char *); *s; s++)
                put(*s);
        } else if (*f == 'd') {
            i64 v = va_arg(args, i64);
            if (v < 0)
                put('-');
            put_number(v < 0 ? -v : v, 10, width);
        } else {
            put_number(va_arg(args, u64), *f == 'x' ? 16 : 10, width);
        }
    }
    va_end(args);
}
