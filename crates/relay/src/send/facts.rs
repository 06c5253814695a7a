//! What a running QEMU says of its guest before a byte of it is read: its configuration and its CPU.
//!
//! Source: QEMU 7.2 and 10.0, `qapi/*.json` and the object tree below `/machine`. Devices are looked up there and not
//! in `query-block` and the like, which know backends and not the places where the guest sees them.

use std::collections::BTreeMap;

use hyperferry_translate::{
    refusal::{self, Policy},
    report::Report,
};
use hyperferry_vm_model::{
    CpuidLeaf, CpuidPolicy, Disk, GuestConfig, MemoryLayout, Nic, PciAddress, VgaKind, Vm,
};
use serde_json::{Value, json};

use super::{Guest, Platform};
use crate::{Error, Result, qmp};

/// Where QEMU keeps the devices: of the board, of `-device` with an id, of `-device` without one.
const CONTAINERS: &[&str] = &["/machine/unattached", "/machine/peripheral", "/machine/peripheral-anon"];

/// The machines that have an emulated PC of Xen's kind.
const MACHINES: &[&str] = &["pc-i440fx-", "xenfv"];

/// Devices of the board and devices that Xen's device model has too, beside those of the prefixes below.
const KNOWN: &[&str] = &[
    "PIIX3",
    "PIIX3-xen",
    "PIIX4_PM",
    "VGA",
    "cirrus-vga",
    "e1000",
    "e1000-82540em",
    "floppy",
    "hpet",
    "i440FX",
    "i8042",
    "ide-cd",
    "ide-hd",
    "ivshmem-plain",
    "kvmclock",
    "kvmvapic",
    "mc146818rtc",
    "piix3-ide",
    "piix3-usb-uhci",
    "port92",
    "ps2-kbd",
    "ps2-mouse",
    "rtl8139",
    "smbus-eeprom",
    "usb-tablet",
    "usb-mouse",
    "usb-kbd",
    "vmmouse",
    "vmport",
    "xen-platform",
];

/// Beginnings of names of chips, backends and objects that are no devices of their own.
const HARMLESS: &[&str] =
    &["isa-", "kvm-", "i8257", "irq", "memory-region", "System", "fw_cfg", "apic", "ioapic"];

/// What of host devices: another process, or hardware, holds their state.
const HOST_DEVICES: &[&str] = &["vfio-", "vhost-", "pci-assign", "usb-host"];

/// What is known of a guest before it is sent.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `pc-i440fx-7.2`.
    pub machine: String,
    /// `7.2.22`.
    pub version: String,
    /// Its first number.
    pub major: u32,
    /// Whether it runs under KVM.
    pub kvm: bool,
    /// How its administrator described it, as far as QEMU can tell.
    pub config: GuestConfig,
    /// Where its memory lies.
    pub memory: MemoryLayout,
    /// Where it sees RAM blocks that are not its RAM, by their names: its display's memory, unless that is off.
    pub places: BTreeMap<String, u64>,
    /// What it is shown of its CPU.
    pub cpuid: CpuidPolicy,
    /// Devices by their QEMU type.
    pub devices: Vec<String>,
    /// What keeps QEMU from migrating.
    pub blocked: Vec<String>,
    /// What lies beside QEMU.
    pub platform: Platform,
}

impl Facts {
    /// Asks.
    pub async fn ask(guest: &mut Guest) -> Result<Self> {
        let mut asking = Asking { guest };
        let machine = asking.get("/machine", "type").await?;
        let machine = machine.as_str().unwrap_or_default().trim_end_matches("-machine").to_owned();
        let devices = asking.devices().await?;
        let (version, major) = (asking.guest.version().to_string(), asking.guest.version().major);
        let migration = asking.guest.execute("query-migrate", json!({})).await?;
        let blocked = migration.get("blocked-reasons").and_then(Value::as_array);
        let blocked = blocked.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let kvm = asking.guest.execute("query-kvm", json!({})).await?;
        let kvm = kvm.get("enabled").and_then(Value::as_bool).unwrap_or(false);
        let mut config = asking.config(&devices).await?;
        let platform = Platform::of(asking.guest.pid(), asking.guest.monitor());
        config.hpet |= platform.hpet.is_some();
        let memory = asking.memory(config.memory).await?;
        let places = places(&asking.guest.execute("query-pci", json!({})).await?);
        let cpuid = asking.cpuid().await?;
        let devices = devices.into_iter().map(|device| device.kind).collect();
        Ok(Self { machine, version, major, kvm, config, memory, places, cpuid, devices, blocked, platform })
    }

    /// What is known of the VM before its memory.
    pub fn outline(&self) -> Vm {
        Vm {
            origin: format!("QEMU {} ({})", self.version, self.machine),
            config: self.config.clone(),
            memory: self.memory.clone(),
            cpuid: self.cpuid.clone(),
            ..Vm::default()
        }
    }

    /// Whether the guest has run here since it came from Xen, and was not started anew: then it has the window for Xen's
    /// ACPI tables.
    pub fn came_from_xen(&self) -> bool {
        self.devices.iter().any(|kind| kind == "ivshmem-plain")
    }

    /// Whether the guest must not run while its memory is sent.
    ///
    /// Emulation before 9.0 forgets to look for writes to pages that were sent already (`migration dirty bitmap
    /// coherency`, 03bfc2188f in QEMU). Seen: a guest of an emulation arrived with its memory damaged.
    pub fn loses_writes(&self) -> bool {
        !self.kvm && self.major < 9
    }

    /// Refuses what QEMU's word is enough to refuse.
    pub fn judge(&self, policy: &Policy) -> Report {
        let mut report = Report::default();
        if !MACHINES.iter().any(|known| self.machine.starts_with(known)) {
            let what = format!("machine {} is not the i440FX PC that Xen's guests have", self.machine);
            let remedy = "boot the guest on machine type pc before the move";
            policy.refuse(&mut report, refusal::MACHINE, what, remedy);
        }
        // Since 9.0 and up to 10.1 at least, emulation forgets which block a dirty page is in, and ends itself when the
        // first block, which a -object is, is shorter than the one asked about (tlb_reset_dirty_range_all).
        if !self.kvm && self.major >= 9 && self.devices.iter().any(|kind| kind.starts_with("ivshmem")) {
            let what = format!(
                "QEMU {} under emulation aborts when it migrates a guest that has an ivshmem device, and the guest is \
                 lost",
                self.version
            );
            let remedy = "under KVM it does not; under emulation use QEMU 7.2, or shut the guest down and start it there";
            policy.refuse(&mut report, refusal::MACHINE, what, remedy);
        }
        if self.config.viridian {
            let what = "the guest is offered Hyper-V enlightenments (hv-…)";
            policy.refuse(
                &mut report,
                refusal::VIRIDIAN,
                what,
                "boot it without hv-… flags in -cpu before the move",
            );
        }
        for reason in &self.blocked {
            let what = format!("QEMU does not migrate this guest: {reason}");
            policy.refuse(&mut report, refusal::PASSTHROUGH, what, "remove what it names, then try again");
        }
        let host = |kind: &str| HOST_DEVICES.iter().any(|prefix| kind.starts_with(prefix));
        let mut foreign: BTreeMap<&str, usize> = BTreeMap::new();
        for kind in &self.devices {
            if host(kind) {
                let what = format!("{kind}: its state is not in QEMU");
                policy.refuse(
                    &mut report,
                    refusal::PASSTHROUGH,
                    what,
                    "detach it (device_del) before the move",
                );
            } else if !known(kind) {
                *foreign.entry(kind).or_default() += 1;
            }
        }
        for (kind, count) in foreign {
            let times = if count > 1 { format!(" ({count} of them)") } else { String::new() };
            let what = format!("{kind}{times}: Xen's device model has no such device");
            let (refusal, remedy) = if kind.starts_with("virtio") {
                let remedy =
                    "boot the guest from emulated devices (IDE disks, e1000 or rtl8139) before the move";
                (refusal::VIRTIO, remedy)
            } else {
                (refusal::DEVICE, "remove it before the move")
            };
            policy.refuse(&mut report, refusal, what, remedy);
        }
        report
    }
}

fn known(kind: &str) -> bool {
    KNOWN.contains(&kind)
        || kind.ends_with("-x86_64-cpu")
        || HARMLESS.iter().any(|prefix| kind.starts_with(prefix))
}

/// A device in QEMU's object tree.
struct Device {
    path: String,
    kind: String,
}

struct Asking<'a> {
    guest: &'a mut Guest,
}

impl Asking<'_> {
    async fn get(&mut self, path: &str, property: &str) -> Result<Value> {
        self.guest.execute("qom-get", json!({ "path": path, "property": property })).await
    }

    /// A property that not every QEMU, or not every device of the kind, has.
    async fn find(&mut self, path: &str, property: &str) -> Result<Option<Value>> {
        match self.get(path, property).await {
            Ok(value) => Ok(Some(value)),
            Err(Error::Qmp(qmp::Error::Refused { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn number(&mut self, path: &str, property: &str) -> Result<Option<u64>> {
        Ok(self.find(path, property).await?.as_ref().and_then(Value::as_u64))
    }

    async fn word(&mut self, path: &str, property: &str) -> Result<Option<String>> {
        let word = self.find(path, property).await?;
        Ok(word.as_ref().and_then(Value::as_str).map(str::to_owned).filter(|word| !word.is_empty()))
    }

    async fn flag(&mut self, path: &str, property: &str) -> Result<bool> {
        Ok(self.find(path, property).await?.as_ref().and_then(Value::as_bool).unwrap_or(false))
    }

    async fn devices(&mut self) -> Result<Vec<Device>> {
        let mut devices = Vec::new();
        for container in CONTAINERS {
            let children = self.guest.execute("qom-list", json!({ "path": container })).await?;
            for child in children.as_array().into_iter().flatten() {
                let text = |key| child.get(key).and_then(Value::as_str).unwrap_or_default();
                if let Some(kind) =
                    text("type").strip_prefix("child<").and_then(|rest| rest.strip_suffix('>'))
                {
                    let path = format!("{container}/{}", text("name"));
                    devices.push(Device { path, kind: kind.to_owned() });
                }
            }
        }
        Ok(devices)
    }

    async fn config(&mut self, devices: &[Device]) -> Result<GuestConfig> {
        let ask = |answer: &Value, key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
        let name = ask(&self.guest.execute("query-name", json!({})).await?, "name");
        let uuid = ask(&self.guest.execute("query-uuid", json!({})).await?, "UUID");
        let memory = self.guest.execute("query-memory-size-summary", json!({})).await?;
        let cpus = self.guest.execute("query-cpus-fast", json!({})).await?;
        let cpus = cpus.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut config = GuestConfig {
            name: name.unwrap_or_default(),
            uuid: uuid.filter(|uuid| uuid.bytes().any(|byte| byte != b'0' && byte != b'-')),
            memory: memory.get("base-memory").and_then(Value::as_u64).unwrap_or(0),
            max_vcpus: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
            ..GuestConfig::default()
        };
        let blocks = self.guest.execute("query-block", json!({})).await?;
        let network = self.network().await?;
        let mut nics = Vec::new();
        for device in devices {
            match device.kind.as_str() {
                "hpet" => config.hpet = true,
                "isa-serial" => config.serial_ports += 1,
                "xen-platform" => config.xen_platform = true,
                "VGA" | "cirrus-vga" | "qxl-vga" => {
                    config.vga = match device.kind.as_str() {
                        "VGA" => VgaKind::Std,
                        "cirrus-vga" => VgaKind::Cirrus,
                        _ => VgaKind::Qxl,
                    };
                    config.video_memory = self.number(&device.path, "vgamem_mb").await?.unwrap_or(0) << 20;
                }
                "ide-hd" | "ide-cd" => config.disks.push(self.disk(device, &blocks).await?),
                kind => {
                    config.usb_devices.extend(kind.strip_prefix("usb-").map(str::to_owned));
                    if let Some(mac) = self.word(&device.path, "mac").await? {
                        let slot = self.number(&device.path, "addr").await?.unwrap_or(0);
                        let netdev = self.word(&device.path, "netdev").await?.unwrap_or_default();
                        let bridge = network.get(&netdev).cloned();
                        let model = device.kind.trim_end_matches("-82540em").to_owned();
                        nics.push((slot, Nic { mac, model, bridge, emulated: true }));
                    }
                }
            }
        }
        // As the guest counts them.
        nics.sort_by_key(|(slot, _)| *slot);
        config.nics = nics.into_iter().map(|(_, nic)| nic).collect();
        config.disks.sort_by(|left, right| left.vdev.cmp(&right.vdev));
        if let Some(cpu) = cpus.first().and_then(|cpu| ask(cpu, "qom-path")) {
            for feature in ["hv-relaxed", "hv-vapic", "hv-time", "hv-synic", "hv-passthrough"] {
                config.viridian |= self.flag(&cpu, feature).await?;
            }
        }
        Ok(config)
    }

    /// The bridge of each network backend, where there is one.
    async fn network(&mut self) -> Result<BTreeMap<String, String>> {
        let command = json!({ "command-line": "info network" });
        let answer = self.guest.execute("human-monitor-command", command).await?;
        Ok(bridges(answer.as_str().unwrap_or_default()))
    }

    async fn disk(&mut self, device: &Device, blocks: &Value) -> Result<Disk> {
        let unit = self.number(&device.path, "unit").await?.unwrap_or(0);
        let bus = self.word(&device.path, "parent_bus").await?.unwrap_or_default();
        let second = bus.ends_with("ide.1");
        let vdev = match (second, unit) {
            (false, 0) => "hda",
            (false, _) => "hdb",
            (true, 0) => "hdc",
            (true, _) => "hdd",
        };
        let mut disk = Disk {
            vdev: vdev.to_owned(),
            cdrom: device.kind == "ide-cd",
            format: "raw".to_owned(),
            ..Disk::default()
        };
        let id = device.path.rsplit('/').next().unwrap_or_default();
        let is_ours = |block: &&Value| {
            let qdev = block.get("qdev").and_then(Value::as_str).unwrap_or_default();
            qdev == device.path || qdev == id
        };
        let inserted = blocks.as_array().into_iter().flatten().find(is_ours);
        if let Some(inserted) = inserted.and_then(|block| block.get("inserted")) {
            let text = |pointer: &str| inserted.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            disk.path = text("/image/filename").or_else(|| text("/file"));
            disk.format = text("/image/format").or_else(|| text("/drv")).unwrap_or(disk.format);
            disk.writable = !inserted.get("ro").and_then(Value::as_bool).unwrap_or(false);
        }
        Ok(disk)
    }

    /// The machine's own split, by the regions that it made.
    async fn memory(&mut self, size: u64) -> Result<MemoryLayout> {
        let low = self.number("/machine/unattached/ram-below-4g[0]", "size").await?;
        Ok(MemoryLayout::split(size, low.unwrap_or(size)))
    }

    /// The leaves that a guest's use of its CPU depends on.
    async fn cpuid(&mut self) -> Result<CpuidPolicy> {
        let cpus = self.guest.execute("query-cpus-fast", json!({})).await?;
        let Some(cpu) = cpus.pointer("/0/qom-path").and_then(Value::as_str).map(str::to_owned) else {
            return Ok(CpuidPolicy::default());
        };
        let words = self.find(&cpu, "feature-words").await?.unwrap_or_default();
        let mut leaves = feature_leaves(&words);
        let vendor = self.word(&cpu, "vendor").await?.unwrap_or_default();
        let (level, xlevel) = (self.low(&cpu, "level").await?, self.low(&cpu, "xlevel").await?);
        let [ebx, edx, ecx] = registers(vendor.as_bytes());
        leaves.insert((0, None), CpuidLeaf { leaf: 0, eax: level, ebx, ecx, edx, ..CpuidLeaf::default() });
        let extended = 0x8000_0000;
        leaves.insert(
            (extended, None),
            CpuidLeaf { leaf: extended, eax: xlevel, ebx, ecx, edx, ..CpuidLeaf::default() },
        );
        let family = self.low(&cpu, "family").await?;
        let (model, stepping) = (self.low(&cpu, "model").await?, self.low(&cpu, "stepping").await?);
        entry(&mut leaves, 1).eax = signature(family, model, stepping);
        let bits = self.low(&cpu, "phys-bits").await?;
        let long = leaves.get(&(0x8000_0001, None)).is_some_and(|leaf| leaf.edx & 1 << 29 != 0);
        entry(&mut leaves, 0x8000_0008).eax = bits | if long { 48 << 8 } else { 32 << 8 };
        let name = self.word(&cpu, "model-id").await?.unwrap_or_default();
        let mut name = name.as_bytes().chunks(4);
        for leaf in 0x8000_0002..=0x8000_0004_u32 {
            let mut next = || name.next().map_or(0, word);
            let (eax, ebx, ecx, edx) = (next(), next(), next(), next());
            leaves.insert((leaf, None), CpuidLeaf { leaf, subleaf: None, eax, ebx, ecx, edx });
        }
        Ok(CpuidPolicy { leaves: leaves.into_values().collect(), msrs: Vec::new() })
    }

    async fn low(&mut self, path: &str, property: &str) -> Result<u32> {
        let value = self.number(path, property).await?.unwrap_or(0);
        Ok(u32::try_from(value).unwrap_or(u32::MAX))
    }
}

/// Video memory by the name of its RAM block, where the first range of a display adapter on the root bus is.
fn places(pci: &Value) -> BTreeMap<String, u64> {
    /// Base class of PCI's display controllers.
    const DISPLAY: u64 = 3;
    let devices = pci.pointer("/0/devices").and_then(Value::as_array);
    let found = devices.into_iter().flatten().filter_map(|device| {
        let number = |key: &str| u8::try_from(device.get(key)?.as_u64()?).ok();
        let class = device.pointer("/class_info/class")?.as_u64()?;
        let address = PciAddress { slot: number("slot")?, function: number("function")? };
        let memory = device.get("regions")?.as_array()?.iter().find(|region| {
            region.get("bar").and_then(Value::as_u64) == Some(0)
                && region.get("type").and_then(Value::as_str) == Some("memory")
        });
        // A range that is switched off is at -1; no processor addresses more than 52 bits.
        let base = memory?.get("address")?.as_u64().filter(|base| base >> 52 == 0)?;
        (class >> 8 == DISPLAY).then(|| (format!("{address}/vga.vram"), base))
    });
    found.collect()
}

type Leaves = BTreeMap<(u32, Option<u32>), CpuidLeaf>;

fn entry(leaves: &mut Leaves, leaf: u32) -> &mut CpuidLeaf {
    leaves.entry((leaf, None)).or_insert(CpuidLeaf { leaf, ..CpuidLeaf::default() })
}

/// QEMU's feature words: one register of one leaf each. Those of its own and of KVM's leaves are left out.
fn feature_leaves(words: &Value) -> Leaves {
    let mut leaves = Leaves::new();
    for word in words.as_array().into_iter().flatten() {
        let number = |key: &str| word.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let (Some(leaf), Some(value)) = (number("cpuid-input-eax"), number("features")) else { continue };
        if (0x4000_0000..0x5000_0000).contains(&leaf) || leaf >= 0xc000_0000 {
            continue;
        }
        let subleaf = number("cpuid-input-ecx");
        let found = leaves.entry((leaf, subleaf));
        let found = found.or_insert(CpuidLeaf { leaf, subleaf, ..CpuidLeaf::default() });
        match word.get("cpuid-register").and_then(Value::as_str) {
            Some("EAX") => found.eax = value,
            Some("EBX") => found.ebx = value,
            Some("ECX") => found.ecx = value,
            Some("EDX") => found.edx = value,
            _ => {}
        }
    }
    leaves
}

/// Twelve letters in three registers.
fn registers(letters: &[u8]) -> [u32; 3] {
    let mut words = letters.chunks(4).map(word);
    [(); 3].map(|()| words.next().unwrap_or(0))
}

fn word(letters: &[u8]) -> u32 {
    letters.iter().rev().fold(0, |word, letter| word << 8 | u32::from(*letter))
}

/// Leaf 1, EAX: families from 16 and models from 16 on have their rest in the extended fields.
fn signature(family: u32, model: u32, stepping: u32) -> u32 {
    let (base, extended) = if family > 15 { (15, family - 15) } else { (family, 0) };
    (extended & 0xff) << 20 | (model >> 4 & 0xf) << 16 | base << 8 | (model & 0xf) << 4 | stepping & 0xf
}

/// `net0: index=0,type=tap,helper=…,br=br0` and `net0: index=0,type=tap,ifname=tap0,…`, as `info network` prints them.
fn bridges(text: &str) -> BTreeMap<String, String> {
    let found = text.lines().filter_map(|line| {
        let (name, rest) = line.trim_start_matches([' ', '\\']).split_once(": ")?;
        let value = |key: &str| rest.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let of_tap = |tap: &str| {
            let link = std::fs::read_link(format!("/sys/class/net/{tap}/brport/bridge")).ok()?;
            Some(link.file_name()?.to_str()?.to_owned())
        };
        let bridge = value("br").map(str::to_owned).or_else(|| of_tap(value("ifname")?))?;
        Some((name.to_owned(), bridge))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_xen_guest_cannot_have_is_refused_by_name() {
        let plain =
            ["i440FX", "PIIX3", "qemu64-x86_64-cpu", "isa-serial", "ide-hd", "e1000", "memory-region"];
        let facts = |machine: &str, more: &[&str]| Facts {
            machine: machine.to_owned(),
            devices: plain.iter().chain(more).map(|kind| (*kind).to_owned()).collect(),
            ..Facts::default()
        };
        let refused = |facts: &Facts| {
            let report = facts.judge(&Policy::default());
            report.refusals().map(|finding| (finding.name, finding.what.clone())).collect::<Vec<_>>()
        };
        assert_eq!(refused(&facts("pc-i440fx-7.2", &[])), []);
        assert_eq!(refused(&facts("pc-q35-7.2", &[]))[0].0, "machine");
        let found = refused(&facts("pc-i440fx-10.0", &["virtio-net-pci", "virtio-net-pci", "vfio-pci"]));
        assert_eq!(found.iter().map(|found| found.0).collect::<Vec<_>>(), ["passthrough", "virtio"]);
        assert!(found[1].1.starts_with("virtio-net-pci (2 of them)"), "{found:?}");
        let window = Facts { major: 10, ..facts("pc-i440fx-10.0", &["ivshmem-plain"]) };
        assert!(refused(&window)[0].1.contains("aborts when it migrates"));
        assert_eq!(refused(&Facts { kvm: true, ..window.clone() }), []);
        assert_eq!(refused(&Facts { major: 7, ..window }), []);
        assert!(Facts { major: 7, ..Facts::default() }.loses_writes());
        assert!(!Facts { major: 7, kvm: true, ..Facts::default() }.loses_writes());
        let blocked = Facts { blocked: vec!["x".to_owned()], ..facts("pc-i440fx-7.2", &[]) };
        assert!(refused(&blocked)[0].1.contains("does not migrate"));
    }

    #[test]
    fn cpuid_is_put_together_from_feature_words() {
        // As QEMU 7.2 gives them for qemu64.
        let words = json!([
            {"cpuid-register": "EDX", "cpuid-input-eax": 0x8000_0001_u32, "features": 563_346_429},
            {"cpuid-register": "ECX", "cpuid-input-eax": 1, "features": 2_147_491_841_u32},
            {"cpuid-register": "EDX", "cpuid-input-eax": 1, "features": 126_614_525},
            {"cpuid-register": "EBX", "cpuid-input-eax": 7, "cpuid-input-ecx": 0, "features": 5},
            {"cpuid-register": "EAX", "cpuid-input-eax": 0x4000_0001, "features": 7},
        ]);
        let leaves = feature_leaves(&words);
        assert_eq!(
            leaves.keys().copied().collect::<Vec<_>>(),
            [(1, None), (7, Some(0)), (0x8000_0001, None)]
        );
        assert_eq!((leaves[&(1, None)].ecx, leaves[&(1, None)].edx), (2_147_491_841, 126_614_525));
        assert_eq!(registers(b"AuthenticAMD"), [0x6874_7541, 0x6974_6e65, 0x444d_4163]);
        assert_eq!(signature(15, 107, 1), 0x0006_0fb1);
        assert_eq!(signature(6, 0x3c, 4), 0x0003_06c4);
        assert_eq!(signature(25, 1, 1), 0x00a0_0f11);
    }

    #[test]
    fn video_memory_is_where_its_adapter_shows_it() {
        // As QEMU 10.0 tells it, in part.
        let answer = |class: u64, kind: &str, base: i64| {
            let region =
                |bar: u64, kind: &str, base: i64| json!({ "bar": bar, "type": kind, "address": base });
            let bridge =
                json!({ "bus": 0, "slot": 0, "function": 0, "class_info": {"class": 0x600}, "regions": [] });
            let regions = [region(2, "memory", 0xfebf_0000), region(0, kind, base)];
            let device = json!({
                "bus": 0, "slot": 2, "function": 0, "class_info": {"class": class}, "regions": regions
            });
            places(&json!([{ "bus": 0, "devices": [bridge, device] }]))
        };
        let there = BTreeMap::from([("0000:00:02.0/vga.vram".to_owned(), 0xfd00_0000)]);
        assert_eq!(answer(0x300, "memory", 0xfd00_0000), there);
        assert_eq!(answer(0x300, "memory", -1), BTreeMap::new(), "switched off");
        assert_eq!(answer(0x300, "memory", 1 << 52), BTreeMap::new(), "nowhere");
        assert_eq!(answer(0x200, "memory", 0xfd00_0000), BTreeMap::new(), "a network card");
        assert_eq!(answer(0x300, "io", 0xc000), BTreeMap::new());
        assert_eq!(places(&json!([])), BTreeMap::new());
    }

    #[test]
    fn bridges_are_read_from_what_people_read() {
        let text = "e1000.0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\r\n \\ net0: index=0,type=tap,\
                    helper=/usr/lib/qemu/qemu-bridge-helper,br=br0\r\nhub0\r\n \\ hub0port0: net1: index=0,type=hubport\r\n";
        assert_eq!(bridges(text), BTreeMap::from([("net0".to_owned(), "br0".to_owned())]));
    }
}
