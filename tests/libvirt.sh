#!/bin/bash
# Domains in the hands of a libvirt of their own: `unshare -mn tests/libvirt.sh WORDS DOMAIN.xml…`
#
# Defines and starts one after the other, waits for WORDS where the serial port is written down, and prints the domain's file
# and QEMU's command line as libvirt made it, a word a line. Exit code 77: no libvirt can be started here.
words=$1 && shift
skip() { echo "$*" >&2; exit 77; }
fail() { echo "$*" >&2; cat /var/log/libvirt/qemu/*.log >&2; exit 1; }
wait_for() { for _ in $(seq 600); do "$@" && return; sleep 0.1; done; fail "$domain: no success in 60 s: $*"; }

for program in libvirtd virtlogd virsh virt-xml-validate xmllint; do
    command -v $program >/dev/null || skip "no $program (Debian: libvirt-daemon, libvirt-daemon-driver-qemu, libvirt-clients, libxml2-utils)"
done
for place in /run /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p $place && mount -t tmpfs tmpfs $place 2>/dev/null || skip "no mounting here"
done
# What Debian's libvirt-daemon-system adds to these, and what it would confine QEMU with.
for database in passwd:libvirt-qemu:x:0:0::/:/bin/false group:libvirt-qemu:x:0: group:kvm:x:0:; do
    echo "${database#*:}" | cat /etc/${database%%:*} - >/run/more && cp /run/more /run/${database%%:*}
    mount --bind /run/${database%%:*} /etc/${database%%:*}
done
printf '%s\n' 'user = "root"' 'group = "root"' 'security_driver = "none"' 'cgroup_controllers = []' 'namespaces = []' \
    'remember_owner = 0' >/etc/libvirt/qemu.conf

virtlogd & log=$!
libvirtd 2>/run/libvirtd.log & daemon=$!
trap 'kill $daemon $log; wait' EXIT
export LIBVIRT_DEFAULT_URI=qemu:///system
for _ in $(seq 200); do virsh -q version >/dev/null 2>&1 && break; sleep 0.1; done
virsh -q version >/dev/null 2>&1 || skip "libvirtd says: $(tail -1 /run/libvirtd.log)"

for domain; do
    virt-xml-validate "$domain" domain >&2 || fail "$domain is not by libvirt's schema"
    name=$(xmllint --xpath 'string(/domain/name)' "$domain")
    virsh -q define "$domain" >&2 || fail "libvirt does not take $domain"
    virsh -q start "$name" >&2 || fail "libvirt does not start $domain"
    [ "$(virsh -q domstate "$name")" = running ] || fail "$domain does not run"
    serial=$(xmllint --xpath 'string(//serial/log/@file)' "$domain")
    wait_for grep -q "$words" "$serial"
    echo "$domain"
    tr '\0' '\n' <"/proc/$(cat "/run/libvirt/qemu/$name.pid")/cmdline"
    virsh -q destroy "$name" >&2
    virsh -q undefine "$name" >&2
done
