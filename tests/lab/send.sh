#!/bin/bash
# Live moves to Xen in the lab: `hyperferry send` takes a running guest out of a QEMU on the KVM host and hands it to the
# Xen host's own `xl migrate-receive`.
#
#   tests/lab/send.sh witness|linux [MOVES]      born under QEMU on the KVM host; each move from a new start
#   tests/lab/send.sh trip [MOVES]               born on Xen: to KVM by `xl migrate`, back by `hyperferry send`, and again
#
# Both hosts up (`cargo xtask lab up`), hyperferry built. One line a move: the silence on the serial port as seen from this
# machine, what is usual, the time of the command, and what the guest found wrong. The exit code is the number of moves
# that failed.
#
#   HYPERFERRY  program to send to the KVM host          [target/release/hyperferry]
#   QEMU        program that runs the guest              [qemu-10.0]
#   GUEST       what goes on a trip: witness|linux       [witness]
#   OPTIONS     more options of `hyperferry send`
#   KILL        hyperferry|ssh|xl, with AT=leave|sending|ready: killed in that step of the journal; the source must go on
set -um
exec </dev/null
what=${1:?witness, linux or trip} moves=${2:-3}
here=$(cd "$(dirname "$0")/../.." && pwd)
lab=${HYPERFERRY_LAB:-$here/target/lab}
program=${HYPERFERRY:-$here/target/release/hyperferry}
qemu=${QEMU:-qemu-10.0} kill=${KILL:-} at=${AT:-sending}
[ "$what" = trip ] && kind=${GUEST:-witness} || kind=$what
work=$(mktemp -d)
guest=send-$what${KILL:+-kill}
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
# Longest time between two lines, number of lines, failed checks, lines out of order: of all files in one.
judge() {
    grep -h ' WITNESS .*bad=[0-9]* ' "$@" | sort -n -s -k1,1 | awk '{
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
# In the KVM host: ids of what was started from this directory, hyperferry first, then its QEMUs.
ours="ours() {
    for process in /proc/[0-9]*; do
        case \$(readlink \$process/exe) in
        *\$1*) tr '\\0' ' ' <\$process/cmdline | grep -q '$there/' && basename \$process ;;
        esac
    done
}"

# Puts hyperferry, the key and a VM that stays where they are needed.
provide_hosts() {
    kvm "mkdir -p $there; gunzip >$there/hyperferry.new; chmod +x $there/hyperferry.new; mv $there/hyperferry.new $there/hyperferry" \
        < <(gzip -1 <"$program") || { echo "no KVM host"; exit 99; }
    for host in xen kvm; do
        $host "mkdir -p /root/.ssh; umask 077; cat >/root/.ssh/id_lab" <"$lab/id_lab" || { echo "no $host host"; exit 99; }
    done
    # The first and the last VM of a host make KVM patch the scheduler (its preemption notifiers), which the emulator gets wrong
    # now and then: Linux dies of an int3 in __schedule. A VM that stays keeps it from that.
    kvm "test -e /run/resident.pid && kill -0 \$(cat /run/resident.pid) ||
         $qemu -machine none -accel kvm -nodefaults -display none -daemonize -pidfile /run/resident.pid" >/dev/null 2>&1
    # From inside a host this machine is 10.0.2.2.
    ssh="ssh -q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i /root/.ssh/id_lab"
    to_kvm="$ssh -p $(port kvm 2233) root@10.0.2.2" to_xen="$ssh -p $(port xen 2232)"
}
# QEMU numbers local APICs one by one and Xen by twos: a witness of two vCPUs would notice. SeaBIOS under KVM leaves a
# clock running in its own memory; a last write to port 0x70 may stay behind in KVM's coalescing ring, in any guest.
case $what-$kind in
witness-*) memory=16 vcpus=1 kernel=/guest/witness.bzimage initrd= cmdline="avx=off mem=1 skip=pat,cr2,bios_page,cmos_index lapic=off" ;;
*-witness) memory=16 vcpus=2 kernel=/guest/witness.bzimage initrd= cmdline="avx=off mem=1 skip=pat,cr2,cmos_index lapic=off" ;;
*-linux) memory=256 vcpus=1 kernel=/guest/vmlinuz initrd=/guest/initrd.gz
    cmdline="console=ttyS0 nokaslr nopv quiet clocksource=tsc tsc=reliable hpet=disable nolapic_timer" ;;
esac

clean() {
    stop_watching
    xen "for name in $guest $guest--incoming $guest--migratedaway; do xl destroy \$name; done; rm -f $serial; true" >/dev/null 2>&1
    kvm "$ours; kill -9 \$(ours hyperferry) \$(ours qemu); rm -rf $there/journal $there/*.serial $there/source.qmp; true" 2>/dev/null
}
trap 'clean; rm -rf "$work"' EXIT

provide_hosts
receive="$there/hyperferry receive --qemu $qemu --journal $there/journal --serial $there/{name}.serial"

on_xen() {
    printf 'name="%s"\ntype="hvm"\nmemory=%s\nvcpus=%s\nkernel="%s"\n' $guest $memory $vcpus $kernel
    [ -z "$initrd" ] || printf 'ramdisk="%s"\n' $initrd
    printf 'cmdline="%s"\nserial="file:%s"\nnographic=1\nvga="none"\nxen_platform_pci=0\n' "$cmdline" $serial
    printf 'on_crash="preserve"\non_reboot="preserve"\non_poweroff="preserve"\n'
}
# A CPU that shows no more than the Xen host's guests see.
on_kvm() {
    echo "$qemu -name $guest -uuid $(cat /proc/sys/kernel/random/uuid) -machine pc -accel kvm -cpu qemu64,-svm -m $memory \
          -smp $vcpus -nodefaults -display none -serial file:$there/$guest.serial -qmp unix:$there/source.qmp,server=on,wait=off \
          -kernel $kernel ${initrd:+-initrd $initrd} -append '$cmdline'"
}
# Starts the guest and waits for its beats.
start_guest() {
    for start in 1 2 3; do
        clean
        rm -f "$work"/*
        watch xen $serial "$work/xen"
        watch kvm "$there/$guest.serial" "$work/kvm"
        if [ "$what" = trip ]; then
            xen "cat >/root/$guest.cfg; xl create -q /root/$guest.cfg" < <(on_xen) || exit 98
            place=xen
        else
            kvm "nohup $(on_kvm) >$there/source.log 2>&1 &"
            place=kvm
        fi
        wait_for_beats "$work/$place" ${BEATS:-20} $((start * 120)) && return
        echo "start $start of the guest led to nothing: $(tail -n 1 "$work/$place")"
    done
    exit 97
}
# The monitor of the QEMU that has the guest.
monitor() { kvm "ls -t $there/*.qmp $there/journal/*.qmp 2>/dev/null | head -n 1"; }
send() {
    kvm "$there/hyperferry send --journal $there/journal --serial file:$serial ${OPTIONS:-} $(monitor) --ssh '$to_xen' root@10.0.2.2"
}
killer() {
    kvm "$ours
         for i in \$(seq 3000); do grep -q '\"step\":\"$at\"' $there/journal/*.journal && break; sleep 0.02; done
         sleep ${DELAY:-0}
         sender=\$(ours hyperferry)
         case $kill in
         ssh) kill -9 \$(pgrep -P \$sender) ;;
         hyperferry) kill -9 \$sender ;;
         esac"
    [ $kill != xl ] || xen "pkill -9 -f '^xl migrate-receive'"
}

failures=0
printf '%-4s %-6s %-8s %8s %8s %8s %6s %5s %5s  %s\n' move to guest silence usual time beats bad lost verdict
verdict=ok
start_guest
for move in $(seq "$moves"); do
    if [ "$move" != 1 ] && { [ "$verdict" != ok ] || { [ "$what" != trip ] && [ -z "$kill" ]; }; }; then start_guest; fi
    [ $place = xen ] && to=kvm || to=xen
    [ -z "$kill" ] || { kvm "rm -rf $there/journal"; killer >"$work/killed" 2>&1 & }
    [ $to = xen ] && xen "rm -f $serial" || kvm "rm -f $there/$guest.serial"
    before=$(beats "$work/$place") there_before=$(beats "$work/$to") began=$EPOCHREALTIME
    usual=$(usual "$work/$place")
    if [ $to = kvm ]; then
        xen "xl migrate -s '' $guest 'exec $to_kvm $receive'" >"$work/words" 2>&1
    else
        send >"$work/words" 2>&1
    fi
    code=$? took=$(awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $began }")
    verdict=ok
    if [ -z "$kill" ]; then
        [ $code = 0 ] || verdict="code $code"
        wait_for_beats "$work/$to" $((there_before + ${BEATS:-20})) 120 || verdict="does not go on"
        if [ $to = xen ]; then
            kvm "$there/hyperferry resolve $there/journal" | grep -q 'at the destination' || verdict="resolve does not find it"
            [ -z "$(kvm "$ours; ours qemu")" ] || verdict="a QEMU is left"
        else
            xen "xl list $guest" >/dev/null 2>&1 && verdict="still at the source"
        fi
        place=$to
    else
        [ $code = 0 ] && verdict="it went all the same"
        sleep 3
        resolved=$(kvm "$there/hyperferry resolve $there/journal")
        wait_for_beats "$work/kvm" $((before + ${BEATS:-20})) 120 || verdict="the source does not go on"
        grep -q '  here: QEMU is in state running' <<<"$resolved" || verdict="resolve: $resolved"
        [ "$(beats "$work/xen")" = "$there_before" ] || verdict="two copies"
        for _ in $(seq 30); do left=$(xen "xl list | grep -c $guest"); [ "$left" = 0 ] && break; sleep 1; done
        [ "$left" = 0 ] || verdict="a domain is left: $(xen "xl list | grep $guest")"
    fi
    read -r gap count bad lost < <(judge "$work/xen" "$work/kvm")
    [ "$bad" = 0 ] && [ "$lost" = 0 ] || verdict="damaged"
    printf '%-4s %-6s %-8s %8s %8s %8s %6s %5s %5s  %s\n' "$move" $to "$kind" "$gap" "$usual" "$took" "$count" "$bad" "$lost" "$verdict"
    if [ "$verdict" != ok ]; then
        failures=$((failures + 1))
        sed 's/^/    | /' "$work/words"
        for host in xen kvm; do
            echo "    $host:"
            (grep -h ' BAD ' "$work/$host" | head -n 12; tail -n 3 "$work/$host") 2>/dev/null | sed 's/^/    | /'
        done
        start_guest
    elif [ -n "${VERBOSE:-}" ]; then
        sed 's/^/    | /' "$work/words"
    fi
done
exit $failures
