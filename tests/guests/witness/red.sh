#!/bin/bash
# Sees the checks red: boots the witness once for every subject with break=SUBJECT, which damages the real state, and lists
# the checks that did not notice. usage: red.sh WITNESS.BZIMAGE [QEMU arguments]
# Prints one line a subject and, last, the names of checks that were green throughout.
set -euo pipefail
image=$1; shift
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
head -c 64K /dev/urandom > "$work/disk"

boot() { # boot SECONDS KEYS APPEND
    (sleep "$(($1 - 2))"; printf '%s' "$2"; sleep 2) | timeout "$1" qemu-system-x86_64 -accel tcg -M pc -m 16 -cpu max -smp 2 \
        -kernel "$image" -append "$3" -display none -serial stdio -monitor none -no-reboot \
        -drive file="$work/disk",format=raw,if=ide,snapshot=on "${@:4}" 2>/dev/null || true
}
names() { sed -n "s/^$1 .*what=\([^ ]*\) .*/\1/p" | sort -u; }

common="hpet=on avx=all debug=fire ap=timer"
boot 6 t "$common" "$@" | names ROW > "$work/all"
echo "checks: $(wc -l < "$work/all")"
: > "$work/red"
for subject in $(grep -ho '^SUBJECT([a-z_0-9]*' "$here"/*.c | cut -d'(' -f2); do
    boot 7 '' "$common break=$subject@3" "$@" > "$work/log"
    names BAD < "$work/log" > "$work/now"
    [ "$(names BAD < <(sed '/^WITNESS beat=2 /q' "$work/log") | wc -l)" = 0 ] || echo "$subject: red before it was broken"
    echo "$subject: $(wc -l < "$work/now") red$(sed -n 's/^FATAL/, &/p' "$work/log" | head -1)"
    cat "$work/now" >> "$work/red"
done
rows() { sed 's/\(_[a-z_]*[a-z]\|pci\|cmos\|memory\)[0-9]*$/\1/' "$1" | sort -u; }
echo "green throughout: $(comm -23 <(rows "$work/all") <(rows "$work/red") | tr '\n' ' ')"
