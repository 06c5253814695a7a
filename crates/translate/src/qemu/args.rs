//! The destination's command line: a machine that has what the guest has, where the guest has it.
//!
//! Under Xen, libxl plugs devices in a fixed order (tools/libs/light/libxl_dm.c): Xen's platform device takes PCI slot
//! 2 if it is there, then come the display adapter and the network cards. A stream tells at its end where they really
//! were; a difference is refused then, with nothing lost. A guest of a QEMU gets its devices where they were.

use std::collections::BTreeMap;

use hyperferry_vm_model::{CpuidPolicy, Disk, MemoryLayout, Nic, PciAddress, VgaKind, Vm};

use super::{Accelerator, memory::ACPI_WINDOW_SIZE};
use crate::{Error, Result, cpu_features};

/// Id of the memory that stands in for Xen's ACPI tables.
pub const ACPI_WINDOW: &str = "xen-acpi";
/// PCI slot of the device that brings it: the last one, which no toolstack uses.
const ACPI_WINDOW_SLOT: u8 = 0x1f;
/// Serial ports that a PC has places for.
pub const SERIAL_PORTS: u32 = 4;
/// Where QEMU's `pc` splits memory unless told otherwise, and the highest it can when some lies above 4 GiB.
const DEFAULT_SPLIT: u64 = 0xc000_0000;

/// The machine type that every QEMU has.
const ANY_MACHINE: &str = "pc";
/// How a place for a network card begins that is a tap device and no bridge.
pub const TAP: &str = "tap:";

/// What the user chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// Machine type; `pc` is the one that the guest has, or else the newest of the QEMU at hand.
    pub machine: String,
    /// CPU model in place of the one made from the CPUID policy.
    pub cpu: Option<String>,
    /// Paths on this host in place of the source's, by virtual device name (`hda`) or by the source's path.
    pub disks: BTreeMap<String, String>,
    /// Bridges on this host by the source's name, or tap devices that somebody has plugged in there (`tap:NAME`).
    pub bridges: BTreeMap<String, String>,
    /// Where the first serial port goes, as QEMU's `-serial` takes it.
    pub serial: String,
    /// Where the display is shown, as QEMU's `-vnc` takes it.
    pub vnc: Option<String>,
    /// Whether to bring memory for Xen's ACPI tables: for a guest that Xen's firmware has started.
    pub acpi_window: bool,
    /// Whether QEMU is to have the guest's HPET; not where the platform shim has it.
    pub hpet: bool,
}

impl Options {
    /// Options for an accelerator, everything else as usual.
    pub fn new(accelerator: Accelerator) -> Self {
        Self {
            accelerator,
            machine: ANY_MACHINE.to_owned(),
            cpu: None,
            disks: BTreeMap::new(),
            bridges: BTreeMap::new(),
            serial: "null".to_owned(),
            vnc: None,
            acpi_window: true,
            hpet: true,
        }
    }
}

/// Arguments for a QEMU that can take this VM, without the program's name.
pub fn command_line(vm: &Vm, options: &Options) -> Vec<String> {
    let mut args = machine_and_devices(vm, options, |args| processors(vm, options, args));
    if options.acpi_window && from_xen(vm) {
        args.pair("-object", format!("memory-backend-ram,id={ACPI_WINDOW},size={ACPI_WINDOW_SIZE}B"));
        args.pair(
            "-device",
            format!("ivshmem-plain,memdev={ACPI_WINDOW},master=on,addr={ACPI_WINDOW_SLOT:02x}.0"),
        );
        // Where QEMU's machine has its ROM after a reset, this guest has RAM with Xen's firmware in it, which would
        // reset it again for ever (SeaBIOS, src/resume.c: `tryReboot`; src/fw/shadow.c: `qemu_prep_reset`).
        args.flag("-no-reboot");
    }
    args.0
}

/// Arguments for a QEMU that starts the VM anew, from its disks: the same devices in the same places, without what only
/// a running guest of Xen's needs (the window for its ACPI tables, its APIC ids).
pub fn cold_start(vm: &Vm, options: &Options) -> Vec<String> {
    let mut args = machine_and_devices(vm, options, |args| {
        args.pair("-cpu", model(vm, options)).pair("-smp", vm.config.max_vcpus.max(1).to_string());
    });
    let boot = &vm.config.boot;
    if is_word(&boot.order) {
        args.pair("-boot", format!("order={}", boot.order));
    }
    if boot.local_time {
        args.pair("-rtc", "base=localtime");
    }
    if let Some(kernel) = &boot.kernel {
        args.pair("-kernel", kernel);
        for (option, value) in [("-initrd", &boot.ramdisk), ("-append", &boot.command_line)] {
            if let Some(value) = value {
                args.pair(option, value);
            }
        }
    }
    args.0
}

fn machine_and_devices(vm: &Vm, options: &Options, processors: impl FnOnce(&mut Arguments)) -> Arguments {
    let mut args = Arguments::default();
    if !vm.config.name.is_empty() {
        args.pair("-name", vm.config.name.replace(',', ",,"));
    }
    if let Some(uuid) = &vm.config.uuid {
        args.pair("-uuid", uuid);
    }
    args.pair("-machine", machine(vm, options));
    args.pair("-accel", options.accelerator.name());
    args.pair("-m", format!("{}B", vm.memory.size()));
    processors(&mut args);
    args.flag("-nodefaults").pair("-vga", "none").pair("-display", "none");
    if let Some(place) = &options.vnc {
        args.pair("-vnc", place);
    }
    if !has_field(vm, "piix4_pm", "acpi_pci_hotplug.hotplug_select") {
        // Without ACPI's PCI hotplug this QEMU writes piix4_pm in the short form that qemu-xen uses.
        args.pair("-global", "PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off");
        args.pair("-global", "PIIX4_PM.acpi-root-pci-hotplug=off");
    }
    for port in 0..vm.config.serial_ports.min(SERIAL_PORTS) {
        args.pair("-serial", if port == 0 { &options.serial } else { "null" });
    }
    if has_device(vm, "parallel_isa") {
        args.pair("-parallel", "null");
    }
    let places = Places::of(vm);
    display(vm, &places, &mut args);
    network(vm, options, &places, &mut args);
    for disk in &vm.config.disks {
        drive(disk, options, &mut args);
    }
    if !vm.config.usb_devices.is_empty() || has_device(vm, "uhci") {
        args.pair("-device", "piix3-usb-uhci,addr=01.2");
        for device in vm.config.usb_devices.iter().filter(|device| is_word(device)) {
            args.pair("-device", format!("usb-{device}"));
        }
    }
    args
}

/// Whether a name from the stream can stand in an argument: nothing in it ends a value or begins another option.
pub(crate) fn is_word(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":_.-".contains(&byte);
    !name.is_empty() && name.bytes().all(plain)
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.to_owned());
        self
    }

    fn pair(&mut self, flag: &str, value: impl Into<String>) -> &mut Self {
        self.0.push(flag.to_owned());
        self.0.push(value.into());
        self
    }
}

fn machine(vm: &Vm, options: &Options) -> String {
    let on = |on: bool| if on { "on" } else { "off" };
    let (hpet, vmport) = (on(vm.config.hpet && options.hpet), on(has_device(vm, "vmmouse")));
    let mut machine = format!("{},hpet={hpet},vmport={vmport},usb=off", machine_type(vm, options));
    if let Some(limit) = split_limit(&vm.memory) {
        machine.push_str(&format!(",max-ram-below-4g={limit}"));
    }
    machine
}

/// The machine type: the user's, or the guest's own, whose chips and tables it knows.
pub fn machine_type<'a>(vm: &'a Vm, options: &'a Options) -> &'a str {
    match &vm.remainder {
        Some(remainder) if options.machine == ANY_MACHINE && is_word(&remainder.machine) => {
            &remainder.machine
        }
        _ => &options.machine,
    }
}

/// Whether the guest was booted by Xen's firmware, wherever it is now.
pub(crate) fn from_xen(vm: &Vm) -> bool {
    vm.remainder.as_ref().is_none_or(|remainder| remainder.from_xen)
}

/// Refuses a guest of which nothing but the size is known.
pub fn know_devices(vm: &Vm) -> Result<()> {
    if vm.origin.starts_with("QEMU") && vm.remainder.is_none() {
        return Err(Error::DevicesUnknown);
    }
    Ok(())
}

fn has_device(vm: &Vm, name: &str) -> bool {
    vm.devices.iter().any(|device| device.name == name)
}

fn has_field(vm: &Vm, name: &str, field: &str) -> bool {
    vm.devices.iter().any(|device| device.name == name && device.state.field(field).is_some())
}

/// Sections of network cards, and the model that QEMU's `-device` takes for each.
pub(crate) const CARDS: [(&str, &str); 6] = [
    ("e1000", "e1000"),
    ("rtl8139", "rtl8139"),
    ("e1000e", "e1000e"),
    ("ne2000", "ne2k_pci"),
    ("pcnet", "pcnet"),
    ("virtio-net", "virtio-net-pci"),
];
/// Sections of display adapters.
pub(crate) const ADAPTERS: [(&str, VgaKind); 3] =
    [("vga", VgaKind::Std), ("cirrus_vga", VgaKind::Cirrus), ("qxl", VgaKind::Qxl)];

/// Where devices are plugged that have no fixed place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The display adapter.
    pub display: Option<PciAddress>,
    /// The emulated network cards, in the order of the configuration.
    pub nics: Vec<PciAddress>,
}

impl Places {
    /// As the devices' state tells, or else in libxl's order.
    pub fn of(vm: &Vm) -> Self {
        if vm.remainder.is_some() {
            let of = |name: &str| ADAPTERS.iter().any(|(adapter, _)| *adapter == name);
            let mut adapters = vm.devices.iter().filter(|device| of(&device.name));
            let card = |name: &str| CARDS.iter().any(|(card, _)| *card == name);
            let cards = vm.devices.iter().filter(|device| card(&device.name));
            return Self {
                display: adapters.next().and_then(|device| device.address),
                nics: cards.filter_map(|device| device.address).collect(),
            };
        }
        let slots = 2 + u8::from(vm.config.xen_platform)..ACPI_WINDOW_SLOT;
        let mut addresses = slots.map(|slot| PciAddress { slot, function: 0 });
        let display = if vm.config.vga == VgaKind::None { None } else { addresses.next() };
        Self { display, nics: addresses.take(emulated(vm).count()).collect() }
    }
}

/// The network cards that the machine emulates, and that can be named.
pub fn emulated(vm: &Vm) -> impl Iterator<Item = (usize, &Nic)> {
    let nics = vm.config.nics.iter().enumerate();
    nics.filter(|(_, nic)| nic.emulated && is_word(&nic.model) && is_word(&nic.mac))
}

/// The value of `max-ram-below-4g` that gives this layout, if the default does not.
fn split_limit(memory: &MemoryLayout) -> Option<u64> {
    if memory.high_size() > 0 {
        return (memory.low_end != DEFAULT_SPLIT || memory.size() < 0xe000_0000).then_some(memory.low_end);
    }
    // All RAM below the hole: from 3.5 GiB on QEMU would split it.
    (memory.low_end >= 0xe000_0000).then_some(0xf000_0000)
}

/// Whether QEMU's `pc` can lay memory out like this at all.
pub fn can_lay_out(memory: &MemoryLayout) -> bool {
    if memory.high_size() > 0 { memory.low_end <= DEFAULT_SPLIT } else { memory.low_end <= 0xf000_0000 }
}

/// Whether the vCPUs' APIC ids are 0, 1, 2, …, as QEMU gives them.
pub fn has_every_apic_id(vm: &Vm) -> bool {
    !vm.vcpus.is_empty() && (0..).zip(&vm.vcpus).all(|(id, vcpu)| vcpu.lapic.id == id)
}

/// Xen's APIC ids are twice the vCPU's: every vCPU is the first of two threads in a socket of its own.
fn processors(vm: &Vm, options: &Options, args: &mut Arguments) {
    let model = model(vm, options);
    let kind = model.split(',').next().unwrap_or_default().to_owned();
    args.pair("-cpu", model);
    let count = vm.config.max_vcpus.max(1);
    if count == 1 || has_every_apic_id(vm) {
        args.pair("-smp", count.to_string());
        return;
    }
    let topology = format!("maxcpus={0},sockets={count},cores=1,threads=2", 2 * count);
    if options.accelerator == Accelerator::Tcg {
        // QEMU 7.2's emulated local APICs look for a destination up to the first id that is missing (hw/intc/apic.c,
        // apic_get_delivery_bitmask): no id may be. The second threads wait for a startup IPI that never comes.
        args.pair("-smp", format!("{},{topology}", 2 * count));
        return;
    }
    args.pair("-smp", format!("1,{topology}"));
    for socket in 1..count {
        args.pair("-device", format!("{kind}-x86_64-cpu,socket-id={socket},core-id=0,thread-id=0"));
    }
}

fn model(vm: &Vm, options: &Options) -> String {
    let base = match options.accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    options.cpu.clone().unwrap_or_else(|| cpu_model(base, &vm.cpuid))
}

/// A CPU that shows what the guest has seen: the base model without the features that were hidden from it.
fn cpu_model(base: &str, policy: &CpuidPolicy) -> String {
    let mut model = base.to_owned();
    if policy.leaves.is_empty() {
        return model;
    }
    if let Some(vendor) = cpu_features::vendor(policy) {
        model.push_str(&format!(",vendor={vendor}"));
    }
    if let Some((family, number, stepping)) = cpu_features::signature(policy) {
        model.push_str(&format!(",family={family},model={number},stepping={stepping}"));
    }
    if let Some(bits) = cpu_features::physical_bits(policy) {
        model.push_str(&format!(",phys-bits={bits},host-phys-bits=off"));
    }
    for (name, offered) in cpu_features::offered(policy) {
        if !offered {
            model.push_str(&format!(",{name}=off"));
        }
    }
    model
}

/// QEMU's device for a display adapter.
pub(crate) fn adapter(kind: VgaKind) -> Option<&'static str> {
    match kind {
        VgaKind::None => None,
        VgaKind::Std => Some("VGA"),
        VgaKind::Cirrus => Some("cirrus-vga"),
        VgaKind::Qxl => Some("qxl-vga"),
    }
}

fn display(vm: &Vm, places: &Places, args: &mut Arguments) {
    let (Some(device), Some(place)) = (adapter(vm.config.vga), places.display) else { return };
    let megabytes = (vm.config.video_memory >> 20).max(1);
    args.pair("-device", format!("{device},vgamem_mb={megabytes},addr={}", plugged(place)));
}

fn network(vm: &Vm, options: &Options, places: &Places, args: &mut Arguments) {
    for ((index, nic), place) in emulated(vm).zip(&places.nics) {
        let bridge = nic.bridge.as_ref().and_then(|bridge| options.bridges.get(bridge));
        args.pair(
            "-netdev",
            match bridge.map(|place| (place, place.strip_prefix(TAP))) {
                Some((_, Some(tap))) => format!("tap,id=net{index},ifname={tap},script=no,downscript=no"),
                Some((bridge, None)) => format!("bridge,id=net{index},br={bridge}"),
                // A hub with one port: the card is there, and its cable leads nowhere.
                None => format!("hubport,id=net{index},hubid={index}"),
            },
        );
        let (model, mac) = (&nic.model, &nic.mac);
        args.pair("-device", format!("{model},netdev=net{index},mac={mac},addr={}", plugged(*place)));
    }
}

/// A place as `-device` takes it.
fn plugged(place: PciAddress) -> String {
    format!("{:02x}.{:x}", place.slot, place.function)
}

/// QEMU's name for the format of a disk's image (libxl_dm.c, `libxl__qemu_disk_format_string`).
pub fn image_format(disk: &Disk) -> &str {
    match disk.format.as_str() {
        "vhd" => "vpc",
        format @ ("qcow" | "qcow2" | "qed") => format,
        _ => "raw",
    }
}

/// What is behind a disk here, if anything is.
pub fn image<'a>(disk: &'a Disk, options: &'a Options) -> Option<&'a str> {
    let mapped = options.disks.get(&disk.vdev).or_else(|| options.disks.get(disk.path.as_ref()?));
    mapped.or(disk.path.as_ref()).map(String::as_str)
}

fn drive(disk: &Disk, options: &Options, args: &mut Arguments) {
    let Some((bus, unit)) = disk.ide_place() else { return };
    let id = &disk.vdev;
    if let Some(path) = image(disk, options) {
        let path = path.replace(',', ",,");
        let read_only = if disk.writable { "off" } else { "on" };
        let format = image_format(disk);
        args.pair(
            "-drive",
            format!("file={path},format={format},if=none,id={id},readonly={read_only},cache=writeback"),
        );
        let kind = if disk.cdrom { "ide-cd" } else { "ide-hd" };
        args.pair("-device", format!("{kind},drive={id},bus=ide.{bus},unit={unit}"));
    } else if disk.cdrom {
        args.pair("-device", format!("ide-cd,bus=ide.{bus},unit={unit}"));
    }
}

/// Bridges of the source that have no counterpart here: their cards are left unconnected.
pub fn unmapped_bridges<'a>(vm: &'a Vm, options: &'a Options) -> impl Iterator<Item = &'a str> {
    let bridges = vm.config.nics.iter().filter(|nic| nic.emulated).filter_map(|nic| nic.bridge.as_deref());
    bridges.filter(|bridge| !options.bridges.contains_key(*bridge))
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::{Boot, GuestConfig, Nic};

    use super::*;

    fn vm() -> Vm {
        Vm {
            config: GuestConfig {
                name: "d1".into(),
                memory: 144 << 20,
                video_memory: 16 << 20,
                max_vcpus: 2,
                vga: VgaKind::Std,
                serial_ports: 1,
                hpet: true,
                nics: vec![Nic {
                    mac: "00:16:3e:01:02:03".into(),
                    model: "e1000".into(),
                    bridge: Some("xenbr0".into()),
                    emulated: true,
                }],
                disks: vec![Disk {
                    vdev: "hda".into(),
                    path: Some("/a,b".into()),
                    format: "raw".into(),
                    writable: true,
                    cdrom: false,
                }],
                ..GuestConfig::default()
            },
            memory: MemoryLayout::split(144 << 20, 0xf000_0000),
            ..Vm::default()
        }
    }

    #[test]
    fn devices_stand_where_libxl_put_them() {
        let args = command_line(&vm(), &Options::new(Accelerator::Kvm)).join(" ");
        assert!(args.contains("-device VGA,vgamem_mb=16,addr=02.0"), "{args}");
        assert!(args.contains("-device e1000,netdev=net0,mac=00:16:3e:01:02:03,addr=03.0"), "{args}");
        assert!(args.contains("-drive file=/a,,b,format=raw,if=none,id=hda"), "{args}");
        assert!(args.contains("-m 150994944B"), "{args}");
        assert!(
            args.contains("-smp 1,maxcpus=4,sockets=2,cores=1,threads=2 -device host-x86_64-cpu,socket-id=1"),
            "{args}"
        );
    }

    #[test]
    fn no_name_from_a_stream_adds_an_option() {
        let mut vm = vm();
        vm.config.nics[0].model = "e1000,romfile=/etc/shadow".into();
        vm.config.disks[0].format = "raw,file=/etc/shadow".into();
        vm.config.usb_devices = vec!["tablet,x=y".into()];
        let args = command_line(&vm, &Options::new(Accelerator::Tcg)).join(" ");
        assert!(!args.contains("shadow") && !args.contains("x=y"), "{args}");
    }

    #[test]
    fn emulation_leaves_no_gap_in_apic_ids() {
        let args = command_line(&vm(), &Options::new(Accelerator::Tcg)).join(" ");
        assert!(args.contains("-smp 4,maxcpus=4,sockets=2,cores=1,threads=2 -nodefaults"), "{args}");
    }

    #[test]
    fn a_cold_start_has_the_devices_and_nothing_of_xens() {
        let mut vm = vm();
        vm.config.boot = Boot {
            order: "dc".into(),
            kernel: Some("/k".into()),
            command_line: Some("a,b c".into()),
            local_time: true,
            ..Boot::default()
        };
        let args = cold_start(&vm, &Options::new(Accelerator::Tcg)).join(" ");
        for wanted in
            ["-smp 2 ", "mac=00:16:3e:01:02:03,addr=03.0", "-boot order=dc -rtc base=localtime -kernel /k"]
        {
            assert!(args.contains(wanted), "{wanted}: {args}");
        }
        assert!(args.ends_with("-append a,b c") && !args.contains("ivshmem"), "{args}");
        assert!(!command_line(&vm, &Options::new(Accelerator::Tcg)).contains(&"-boot".to_owned()));
    }

    #[test]
    fn a_card_is_plugged_into_a_bridge_or_a_tap_device() {
        let netdev = |place: &str| {
            let mut options = Options::new(Accelerator::Tcg);
            options.bridges.insert("xenbr0".into(), place.into());
            let args = command_line(&vm(), &options);
            args.into_iter().find(|word| word.contains("id=net0")).unwrap()
        };
        assert_eq!(netdev("br0"), "bridge,id=net0,br=br0");
        assert_eq!(netdev("tap:web0"), "tap,id=net0,ifname=web0,script=no,downscript=no");
    }

    #[test]
    fn images_have_qemus_names() {
        let name = |format: &str| image_format(&Disk { format: format.into(), ..Disk::default() }).to_owned();
        assert_eq!(
            ["raw", "qcow2", "vhd", "unknown", "a,b"].map(name),
            ["raw", "qcow2", "vpc", "raw", "raw"]
        );
    }

    #[test]
    fn the_platform_device_takes_its_slot() {
        let mut vm = vm();
        vm.config.xen_platform = true;
        let args = command_line(&vm, &Options::new(Accelerator::Kvm)).join(" ");
        assert!(args.contains("-device VGA,vgamem_mb=16,addr=03.0"), "{args}");
    }

    #[test]
    fn memory_splits_where_the_guest_has_its_hole() {
        // Measured on QEMU 10.0.2, formats/qemu/ram.md.
        let limit = |size: u64, low: u64| split_limit(&MemoryLayout::split(size, low));
        assert_eq!(limit(256 << 20, 0xf000_0000), None);
        assert_eq!(limit(3700 << 20, 0xf000_0000), Some(0xf000_0000));
        assert_eq!(limit(5 << 30, 0xc000_0000), None);
        assert_eq!(limit(3 << 30, 2 << 30), Some(2 << 30));
        assert!(!can_lay_out(&MemoryLayout::split(5 << 30, 0xf000_0000)));
        assert!(can_lay_out(&MemoryLayout::split(5 << 30, 0xc000_0000)));
    }
}
