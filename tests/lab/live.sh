#!/bin/bash
# Live moves in the lab: an unmodified `xl migrate` takes a running guest from the Xen host into QEMU on the KVM host.
#
#   tests/lab/live.sh witness|linux [MOVES]      both hosts up (`cargo xtask lab up`), hyperferry built
#
# One line a move: the silence on the serial port as seen from this machine, the time of `xl migrate`, and what the guest
# found wrong. The exit code is the number of moves that failed.
#
#   HYPERFERRY  program to send to the KVM host         [target/release/hyperferry]
#   QEMU        program that takes the guest            [qemu-10.0]
#   OPTIONS     more options of `hyperferry receive`
#   KILL        hyperferry|qemu, with AT=begin|loading: killed in that step of the journal; the source must go on
set -um
exec </dev/null
kind=${1:?witness or linux} moves=${2:-10}
here=$(cd "$(dirname "$0")/../.." && pwd)
lab=${HYPERFERRY_LAB:-$here/target/lab}
program=${HYPERFERRY:-$here/target/release/hyperferry}
qemu=${QEMU:-qemu-10.0} kill=${KILL:-} at=${AT:-loading}
work=$(mktemp -d)
guest=live-$kind${KILL:+-kill}
serial=/var/log/xen/$guest.serial there=/root/$guest
watchers=()

port() { cat "$lab/$1/port" 2>/dev/null || echo "$2"; }
on() {
    ssh -q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 \
        -i "$lab/id_lab" -p "$1" root@127.0.0.1 "$2"
}
xen() { on "$(port xen 2232)" "$1"; }
kvm() { on "$(port kvm 2233)" "$1"; }

# Copies a file of the host to ours line by line, with the time at which each line came.
watch() { # xen|kvm FILE OURS
    (
        "$1" "touch $2; exec tail -n +1 -F $2 2>/dev/null" |
            while IFS= read -r line; do printf '%s %s\n' "$EPOCHREALTIME" "$line"; done >"$3"
    ) &
    watchers+=($!)
}
stop_watching() {
    for group in "${watchers[@]}"; do kill -- "-$group" && wait "$group"; done 2>/dev/null
    watchers=()
}
beats() { cat "$1" 2>/dev/null | grep -c ' WITNESS '; }
wait_for_beats() { # FILE COUNT SECONDS
    for _ in $(seq "$3"); do [ "$(beats "$1")" -ge "$2" ] && return; sleep 1; done
    return 1
}
# Longest time between two lines, number of lines, failed checks, lines out of order: of both files in one.
judge() {
    grep -h ' WITNESS .*bad=[0-9]* ' "$@" | awk '{
        match($0, / beat=[0-9]+/); beat = substr($0, RSTART + 6, RLENGTH - 6) + 0
        match($0, / bad=[0-9]+/); bad += substr($0, RSTART + 5, RLENGTH - 5)
        if (NR > 1) {
            if ($1 - time > gap) gap = $1 - time
            # The line under way may have been printed on both sides or cut in two.
            if (beat < last || beat > last + 2) lost++
        }
        time = $1; last = beat
    } END { printf "%.2f %d %d %d\n", gap, NR, bad, lost }'
}
# The middle of the times between two lines: what silence there is without a move.
usual() {
    grep -h ' WITNESS ' "$1" | awk 'NR > 1 { print $1 - time } { time = $1 }' | sort -n |
        awk '{ gap[NR] = $1 } END { printf "%.2f", gap[int((NR + 1) / 2)] }'
}
configuration() {
    local name=$guest
    case $kind in
    witness) echo "memory=16 vcpus=2 kernel=\"/guest/witness.bzimage\"
                   cmdline=\"avx=off mem=1 skip=pat,cr2 lapic=off\"" ;;
    linux) echo "memory=256 vcpus=1 kernel=\"/guest/vmlinuz\" ramdisk=\"/guest/initrd.gz\"
                 cmdline=\"console=ttyS0 nokaslr nopv quiet clocksource=tsc tsc=reliable hpet=disable\"" ;;
    esac | sed 's/ \(vcpus\|kernel\|ramdisk\)=/\n\1=/g; s/^ *//'
    printf 'name="%s"\ntype="hvm"\nserial="file:%s"\nnographic=1\nvga="none"\nxen_platform_pci=0\n' "$name" "$serial"
    printf 'on_crash="preserve"\non_reboot="preserve"\non_poweroff="preserve"\n'
}
# In the KVM host: ids of what was started from this directory, hyperferry first, then its QEMUs.
ours="ours() {
    for process in /proc/[0-9]*; do
        case \$(readlink \$process/exe) in
        *\$1*) tr '\\0' ' ' <\$process/cmdline | grep -q '$there/' && basename \$process ;;
        esac
    done
}"
clean() {
    stop_watching
    xen "for name in $guest $guest--incoming $guest--migratedaway; do xl destroy \$name; done; true" >/dev/null 2>&1
    kvm "$ours; kill -9 \$(ours hyperferry) \$(ours qemu); rm -rf $there/journal $there/*.serial; true" 2>/dev/null
}
trap 'clean; rm -rf "$work"' EXIT

kvm "mkdir -p $there; gunzip >$there/hyperferry.new; chmod +x $there/hyperferry.new; mv $there/hyperferry.new $there/hyperferry" \
    < <(gzip -1 <"$program") || { echo "no KVM host"; exit 99; }
xen "mkdir -p /root/.ssh; umask 077; cat >/root/.ssh/id_lab" <"$lab/id_lab" || { echo "no Xen host"; exit 99; }
# The first and the last VM of a host make KVM patch the scheduler (its preemption notifiers), which the emulator gets wrong
# now and then: Linux dies of an int3 in __schedule. A VM that stays keeps it from that.
kvm "test -e /run/resident.pid && kill -0 \$(cat /run/resident.pid) ||
     $qemu -machine none -accel kvm -nodefaults -display none -daemonize -pidfile /run/resident.pid" >/dev/null 2>&1
# From inside a host this machine is 10.0.2.2.
ssh="ssh -q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i /root/.ssh/id_lab -p $(port kvm 2233) root@10.0.2.2"
receive="$there/hyperferry receive --qemu $qemu --journal $there/journal --serial $there/{name}.serial ${OPTIONS:-}"

# Waits for the step in the journal, then kills.
killer() {
    kvm "$ours
         for i in \$(seq 3000); do grep -q '\"step\":\"$at\"' $there/journal/*.journal && break; sleep 0.1; done
         sleep ${DELAY:-0}
         receiver=\$(ours hyperferry)
         case $kill in
         # The QEMU of the template, or the one that waits: whichever is there.
         qemu) for i in \$(seq 300); do child=\$(pgrep -P \$receiver qemu) && kill -9 \$child && break; sleep 0.1; done ;;
         *) kill -9 \$receiver ;;
         esac"
}

# Starts the guest and waits for its beats.
start_guest() {
    # Some starts end in the emulator's own faults (tests/lab/README.md), before there is anything to move.
    for start in 1 2 3; do
        clean
        rm -f "$work"/*
        xen "rm -f $serial; cat >/root/$guest.cfg; xl create -q /root/$guest.cfg" < <(configuration) || exit 98
        watch xen $serial "$work/xen"
        watch kvm "$there/$guest.serial" "$work/kvm"
        wait_for_beats "$work/xen" 20 $((start * 120)) && return
        echo "start $start of the guest led to nothing: $(tail -n 1 "$work/xen")"
    done
    exit 97
}

failures=0
printf '%-4s %-8s %8s %8s %8s %6s %5s %5s  %s\n' move guest silence usual xl beats bad lost verdict
for move in $(seq "$moves"); do
    # A guest that a killed move left where it was can be moved again.
    [ -n "$kill" ] && [ "$move" != 1 ] && [ "$verdict" = ok ] || start_guest
    kvm "rm -rf $there/journal"
    [ -z "$kill" ] || killer >"$work/killed" 2>&1 &
    before=$(beats "$work/xen") began=$EPOCHREALTIME
    xen "xl migrate -s '' $guest 'exec $ssh $receive'" >"$work/xl" 2>&1
    code=$? took=$(awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $began }")
    verdict=ok
    if [ -z "$kill" ]; then
        [ $code = 0 ] || verdict="xl said $code"
        wait_for_beats "$work/kvm" 20 120 || verdict="does not go on"
        usual=$(usual "$work/xen")
        read -r gap count bad lost < <(judge "$work/xen" "$work/kvm")
        kvm "$there/hyperferry resolve $there/journal" | grep -q 'here: it runs' || verdict="resolve does not find it"
        xen "xl list $guest" >/dev/null 2>&1 && verdict="still at the source"
    else
        [ $code = 0 ] && verdict="xl was content"
        wait_for_beats "$work/xen" $((before + 20)) 120 || verdict="the source does not go on"
        usual=$(usual "$work/xen")
        read -r gap count bad lost < <(judge "$work/xen")
        [ "$(beats "$work/kvm")" = 0 ] || verdict="two copies"
        kvm "$there/hyperferry resolve $there/journal" | grep -q 'at the source' || verdict="resolve does not find it"
        [ -z "$(kvm "$ours; ours qemu")" ] || verdict="a QEMU is left"
    fi
    [ "$bad" = 0 ] && [ "$lost" = 0 ] || verdict="damaged"
    printf '%-4s %-8s %8s %8s %8s %6s %5s %5s  %s\n' "$move" "$kind" "$gap" "$usual" "$took" "$count" "$bad" "$lost" "$verdict"
    if [ "$verdict" != ok ]; then
        failures=$((failures + 1))
        sed 's/^/    | /' "$work/xl"
        for host in xen kvm; do
            echo "    $host:"
            (grep -h ' BAD ' "$work/$host" | head -n 12; tail -n 3 "$work/$host") 2>/dev/null | sed 's/^/    | /'
        done
    elif [ -n "${VERBOSE:-}" ]; then
        sed 's/^/    | /' "$work/xl"
    fi
done
exit $failures
