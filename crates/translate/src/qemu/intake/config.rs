//! What a stream's devices say of the configuration that the guest was started with.

use hyperferry_qemu_stream::{DeviceState, RamBlock, Section, Tree};
use hyperferry_vm_model::{DeviceValue, Disk, Nic, VgaKind, Vm};

use crate::qemu::args::{ADAPTERS, CARDS};

/// The firmware finds the size of RAM below 4 GiB in the clock's memory from this address on.
pub(super) const LOW_END_TOLD_FROM: u64 = 16 << 20;

/// Sections of USB devices.
const USB: [(&str, &str); 2] = [("usb-ptr", "tablet"), ("usb-kbd", "kbd")];

/// Fills in what the caller did not know.
pub(super) fn complete(state: &DeviceState, blocks: &[RamBlock], vm: &mut Vm) {
    let count = |name: &str| state.sections.iter().filter(|section| section.vmsd() == name).count();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let config = &mut vm.config;
    config.max_vcpus = config.max_vcpus.max(number(vm.vcpus.len()));
    config.serial_ports = number(count("serial"));
    config.hpet = count("hpet") > 0;
    let adapter = ADAPTERS.iter().find(|(name, _)| count(name) > 0);
    config.vga = adapter.map_or(VgaKind::None, |(_, kind)| *kind);
    let video = blocks.iter().filter(|block| block.name.ends_with("vga.vram"));
    config.video_memory = video.map(|block| block.used_length).sum();
    if config.nics.is_empty() {
        config.nics = state.sections.iter().filter_map(card).collect();
    }
    if config.disks.is_empty() {
        config.disks = disks(state);
    }
    if config.usb_devices.is_empty() {
        let devices = USB.iter().filter(|(section, _)| count(section) > 0);
        config.usb_devices = devices.map(|(_, name)| (*name).to_owned()).collect();
    }
}

/// A network card, if it is one, with the address that it answers to now.
fn card(section: &Section) -> Option<Nic> {
    let (_, model) = CARDS.iter().find(|(name, _)| *name == section.vmsd())?;
    let mac = mac(&section.tree).unwrap_or_default();
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    Some(Nic { mac, model: (*model).to_owned(), bridge: None, emulated: true })
}

/// The hardware address as the chip keeps it: in its EEPROM, or in its first registers.
fn mac(tree: &Tree) -> Option<[u8; 6]> {
    if let Ok(words) = tree.field("eeprom_data").and_then(|field| field.as_u64s()) {
        let mut mac = [0; 6];
        for (to, word) in mac.chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes()[..2]);
        }
        return Some(mac);
    }
    let bytes = ["phys", "mac"].iter().find_map(|name| tree.field(name).ok()?.as_bytes().ok())?;
    bytes.first_chunk::<6>().copied()
}

/// The IDE drives that have told the guest who they are.
fn disks(state: &DeviceState) -> Vec<Disk> {
    /// Word 0 of IDENTIFY: a packet device, such as a CD drive (ATA/ATAPI-6, 8.15).
    const PACKET: u64 = 1 << 15;
    let Some(ide) = state.sections.iter().find(|section| section.vmsd() == "ide") else { return Vec::new() };
    let mut disks = Vec::new();
    for (place, vdev) in [("bus[0].ifs", ["hda", "hdb"]), ("bus[1].ifs", ["hdc", "hdd"])] {
        let Ok(drives) = ide.tree.field(place) else { continue };
        for (index, vdev) in vdev.into_iter().enumerate() {
            let drive = drives.at(index).and_then(|drive| drive.as_struct().cloned());
            let Some(identity) = drive.ok().as_ref().and_then(identity) else { continue };
            let cdrom = identity & PACKET != 0;
            disks.push(Disk {
                vdev: vdev.to_owned(),
                path: None,
                format: "raw".to_owned(),
                cdrom,
                writable: !cdrom,
            });
        }
    }
    disks
}

/// Word 0 of what a drive has answered to IDENTIFY; little-endian, as the guest reads it.
fn identity(drive: &Tree) -> Option<u64> {
    let data = drive.field("identify_data").ok()?.as_bytes().ok()?;
    data.first_chunk::<2>().map(|word| u64::from(u16::from_le_bytes(*word)))
}

/// Where RAM below 4 GiB ends, as QEMU told the firmware: CMOS registers 0x34 and 0x35, in units of 64 KiB above
/// 16 MiB (hw/i386/pc.c, pc_cmos_init).
pub(super) fn told_low_end(vm: &Vm) -> Option<u64> {
    let clock = vm.devices.iter().find(|device| device.name == "mc146818rtc")?;
    let DeviceValue::Bytes(memory) = clock.state.field("cmos_data")? else { return None };
    let [low, high] = [memory.get(0x34)?, memory.get(0x35)?].map(|byte| u64::from(*byte));
    Some(LOW_END_TOLD_FROM + ((high << 8 | low) << 16))
}
