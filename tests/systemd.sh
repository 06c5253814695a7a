#!/bin/bash
# A guest in the hands of a systemd of its own: `unshare -m tests/systemd.sh SERIAL hyperferry land … --unit systemd-user`
#
# Exit code 77: no systemd can be started here.
serial=$1 && shift
skip() { echo "$*" >&2; exit 77; }
fail() { echo "$*" >&2; systemctl --user status --no-pager --all 'hyperferry-*' >&2; exit 1; }
wait_for() { for _ in $(seq 300); do "$@" && return; sleep 0.1; done; fail "no success in 30 s: $*"; }

for program in dbus-daemon systemd-run systemctl /lib/systemd/systemd; do
    command -v $program >/dev/null || skip "no $program"
done
mount -t tmpfs tmpfs /run 2>/dev/null || skip "no mounting here"
# What tells systemd that it is wanted.
mkdir -p /run/systemd/system /run/user
export XDG_RUNTIME_DIR=/run/user XDG_CONFIG_HOME=/run/config DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/bus
chmod 700 /run/user
dbus-daemon --session --address=$DBUS_SESSION_BUS_ADDRESS --nofork --nopidfile 2>/dev/null &
bus=$!
/lib/systemd/systemd --user --log-target=null &
manager=$!
trap 'kill $manager $bus; wait' EXIT
for _ in $(seq 50); do state=$(systemctl --user is-system-running 2>/dev/null) && break; sleep 0.1; done
[ "$state" = running ] || skip "systemd says: $state"

unit=hyperferry-fixture
said=$("$@" 2>&1) || fail "landing failed: $said"
pid=${said##*left running, process }
grep -q "/$unit.scope" "/proc/$pid/cgroup" || fail "QEMU is not in its scope: $said"
systemctl --user --quiet is-active $unit.scope || fail "no scope: $said"

systemd-analyze --user verify /run/config/systemd/user/$unit.service || fail "the unit is not sound"
systemctl --user daemon-reload
systemctl --user start $unit 2>/dev/null && fail "it was started beside itself"
systemctl --user --quiet is-active $unit && fail "it runs beside itself"
grep -q 'cold start' "$serial" && fail "it has booted"
systemctl --user reset-failed $unit

systemctl --user stop $unit.scope
systemctl --user --quiet is-active $unit.scope && fail "the scope did not end"
systemctl --user start $unit || fail "it did not start anew"
wait_for grep -q 'cold start' "$serial"
[ -S /run/user/$unit/qmp ] || fail "no monitor"
systemctl --user stop $unit
exit 0
