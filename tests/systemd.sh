#!/bin/bash
# A guest in the hands of a systemd of its own: `unshare -m tests/systemd.sh SERIAL hyperferry land … --detach --unit systemd-user`
#
# With `--unit systemd` it is the system's: the first process of a container that shares the disks and nothing else, with just
# the units that a service needs. There the guest is brought by a service that ends, as by a login with KillUserProcesses=yes,
# and has to survive it, and the enabled unit has to start it when the system boots. Exit code 77: no such systemd can be
# started here.
serial=$1 && shift
skip() { echo "$*" >&2; exit 77; }
fail() { echo "$*" >&2; $manager status --no-pager --all 'hyperferry-*' >&2; exit 1; }
wait_for() { for _ in $(seq 300); do "$@" && return; sleep 0.1; done; fail "no success in 30 s: $*"; }
wait_for_manager() {
    for _ in $(seq 100); do state=$($manager is-system-running 2>/dev/null) && break; sleep 0.1; done
    [ "$state" = running ] || skip "systemd says: $state"
}

for program in dbus-daemon nsenter systemd-run systemctl /lib/systemd/systemd; do
    command -v $program >/dev/null || skip "no $program"
done
mount -t tmpfs tmpfs /run 2>/dev/null || skip "no mounting here"
# What tells systemd that it is wanted.
mkdir -p /run/systemd/system

user_manager() {
    manager="systemctl --user" analyze="systemd-analyze --user" runtime=/run/user
    export XDG_RUNTIME_DIR=$runtime XDG_CONFIG_HOME=/run/config DBUS_SESSION_BUS_ADDRESS=unix:path=$runtime/bus
    units=$XDG_CONFIG_HOME/systemd/user
    mkdir -m 700 $runtime
    dbus-daemon --session --address=$DBUS_SESSION_BUS_ADDRESS --nofork --nopidfile 2>/dev/null & processes=$!
    /lib/systemd/systemd --user --log-target=null & processes+=" $!"
    trap 'kill $processes; wait' EXIT
    wait_for_manager
}
by_user() { said=$("$@" 2>&1) || fail "landing failed: $said"; }

system_manager() {
    runtime=/run units=/etc/systemd/system
    groups=$(findmnt -nt cgroup2 -o TARGET | head -1) group=$groups/hyperferry-test.$$
    [ -n "$groups" ] && mkdir "$group" 2>/dev/null && echo $$ >"$group/cgroup.procs" || skip "no control group of our own"
    trap 'kill -KILL $first 2>/dev/null; wait; echo $$ >"$groups/cgroup.procs"; find "$group" -depth -type d -exec rmdir {} +' EXIT
    mkdir -p /run/lib /run/etc/system /run/none
    for unit in basic sysinit multi-user network shutdown umount; do cp /lib/systemd/system/$unit.target /run/lib; done
    cp /lib/systemd/system/machine.slice /run/lib
    # No unit of the host's, nor any that is made of its init scripts and /etc/fstab.
    mount --bind /run/lib /lib/systemd/system && mount --bind /run/etc /etc/systemd &&
        mount --bind /run/none /lib/systemd/system-generators || skip "no mounting here"
    boot
}
# Nothing that the first process sets is the host's: its kernel's settings are read only.
boot() {
    unshare --pid --fork --kill-child --mount-proc --cgroup --uts --ipc --net bash -c '
        # Linux mounts nothing over itself: something else has to lie between.
        mount -t tmpfs tmpfs /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && mount -o bind,ro /proc/sys /proc/sys &&
        exec env container=test /lib/systemd/systemd --system --unit=multi-user.target --log-target=null' &
    for _ in $(seq 100); do
        first=$(pgrep -P $!) && [ "$(cat "/proc/$first/comm")" = systemd ] && break
        sleep 0.1
    done
    inside="nsenter -t $first -m -p -C -u -i -n --"
    manager="$inside systemctl" analyze="$inside systemd-analyze"
    wait_for_manager
}
by_service() {
    { printf 'cd %q\nsleep 1000 &\n' "$PWD"; printf '%q ' "$@"; } >/run/bring
    printf '[Service]\nType=oneshot\nExecStart=/bin/bash /run/bring\nStandardOutput=file:/run/said\nStandardError=inherit\n' \
        >$units/bring.service
    $manager daemon-reload
    $manager start bring || fail "landing failed: $(cat /run/said)"
    $inside pgrep -x sleep >/dev/null && fail "the service that brought it has not ended"
    said=$(cat /run/said)
}

case " $* " in
*" systemd-user "*) user_manager && by_user "$@" ;;
*) system_manager && by_service "$@" ;;
esac

unit=hyperferry-fixture
pid=${said##*left running, process }
$inside grep -q "/$unit.scope" "/proc/$pid/cgroup" || fail "QEMU is not in its scope: $said"
$manager --quiet is-active $unit.scope || fail "no scope: $said"
[ "$($manager show -P Description $unit.scope)" = "QEMU of $unit" ] || fail "the scope has no short name"

$analyze verify $units/$unit.service || fail "the unit is not sound"
$manager daemon-reload
$manager start $unit 2>/dev/null && fail "it was started beside itself"
$manager --quiet is-active $unit && fail "it runs beside itself"
grep -q 'cold start' "$serial" && fail "it has booted"
$manager reset-failed $unit

$manager stop $unit.scope
$manager --quiet is-active $unit.scope && fail "the scope did not end"
$manager start $unit || fail "it did not start anew"
wait_for grep -q 'cold start' "$serial"
[ -S $runtime/$unit/qmp ] || fail "no monitor"
$manager stop $unit

if [ -n "$inside" ]; then
    $manager --quiet enable $unit || fail "it cannot be enabled"
    rm "$serial"
    kill -KILL "$first" && wait
    boot
    wait_for grep -q 'cold start' "$serial"
fi
exit 0
