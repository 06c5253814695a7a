#!/bin/bash
# Builds one lab host from Debian packages: `cargo xtask lab build` calls it as root.
# usage: build-host.sh xen|kvm OUT
# environment: SUITE (Debian's name for the release), SOURCES (lines for apt), APT_OPTIONS (a file of apt settings),
#              KEY (public ssh key), XEN (its version, for the Xen host), QEMU (directory with 7.2/ and 10.0/)
# result: OUT/{kernel,initrd,disk.img}, for the Xen host also OUT/xen.elf
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
host=$1 out=$2
tree=$out/tree
rm -rf "$tree" && mkdir -p "$out"

# Nobody reads documentation here, and no driver of real hardware finds any.
slim=(--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*'
      --dpkgopt='path-exclude=/usr/share/locale/*')
for drivers in gpu media staging infiniband iio usb hid input/touchscreen scsi net/wireless net/ethernet; do
  slim+=(--dpkgopt="path-exclude=/lib/modules/*/kernel/drivers/$drivers/*")
done
slim+=(--dpkgopt='path-exclude=/lib/modules/*/kernel/sound/*')

# An initrd with just what mounts the disk: a large one takes long to unpack under emulation.
small_initrd='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
  echo MODULES=list > "$1/etc/initramfs-tools/conf.d/lab"
  printf "virtio_pci\nvirtio_blk\next4\n" > "$1/usr/share/initramfs-tools/modules.d/lab"'

packages=$(grep -hv '^#' "$here/packages" "$here/$host/packages" | paste -sd,)
if [ "$host" = xen ]; then
  packages+=,xen-hypervisor-$XEN-amd64,xen-utils-$XEN
  # The device model got a package of its own after Debian 11.
  if [ "$XEN" = 4.14 ]; then packages+=,qemu-system-x86; else packages+=,qemu-system-xen; fi
fi
mmdebstrap --quiet --mode=root --variant=minbase --format=directory --aptopt="$APT_OPTIONS" "${slim[@]}" \
  --essential-hook="$small_initrd" --include="$packages" "$SUITE" "$tree" - <<<"$SOURCES"

mkdir -p "$tree/guest" "$tree/opt/qemu" "$tree/root/.ssh"
cp "$KEY" "$tree/root/.ssh/authorized_keys"
chmod 700 "$tree/root/.ssh"
cat "$here/init" "$here/$host/init" > "$tree/lab-init"
chmod +x "$tree/lab-init"
cp "$tree"/boot/vmlinuz-* "$out/kernel"
cp "$tree"/boot/initrd.img-* "$out/initrd"
case $host in
xen)
  install -m 755 "$here"/xen/allow-avx "$here"/xen/record-migration "$tree/usr/local/bin/"
  zcat "$tree"/boot/xen-"$XEN"-amd64.gz > "$out/xen.elf" ;;  # QEMU's -kernel wants the unpacked multiboot ELF
kvm) cp -a "$QEMU"/7.2 "$QEMU"/10.0 "$tree/opt/qemu/" ;;
esac

rm -f "$out/disk.img"
truncate -s 4G "$out/disk.img"
mkfs.ext4 -q -F -d "$tree" "$out/disk.img"
rm -rf "$tree"
chmod a+r "$out"/*
