//! The domain's configuration: libxl's JSON of `libxl_domain_config` (tools/libs/light/libxl_types.idl).
//!
//! A key that is absent has its default; defbools are the strings "True" and "False".

use std::collections::BTreeMap;

use hyperferry_vm_model::{Boot, Disk, GuestConfig, Nic, VgaKind, Vm};
use serde_json::{Value, json};

use crate::{
    qemu::args::is_word,
    refusal::{self, Policy},
    report::{Report, Severity},
};

const STAGE: &str = "Xen -> model";
const BACK: &str = "model -> Xen";
const KIB: u64 = 1024;

/// What a guest and its surroundings are called on the Xen host.
#[derive(Clone, Debug, Default)]
pub struct Relocation {
    /// Files of disks, by the disk's name (`hda`) or by the file's name at the source.
    pub disks: BTreeMap<String, String>,
    /// Bridges, by their names at the source.
    pub bridges: BTreeMap<String, String>,
    /// Name and UUID for a guest that brings none.
    pub identity: Identity,
    /// The guest itself, if not as at the source.
    pub name: Option<String>,
    /// Where its first serial port goes, as `serial` in a guest's configuration says it.
    pub serial: Option<String>,
}

/// What libxl tells domains apart by.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name.
    pub name: String,
    /// UUID in its text form.
    pub uuid: Option<String>,
}

impl Default for Identity {
    fn default() -> Self {
        Self { name: "guest".to_owned(), uuid: None }
    }
}

/// Wire to model.
pub(super) fn normalise(json: &Value, report: &mut Report) -> GuestConfig {
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let number = |pointer: &str| json.pointer(pointer).and_then(Value::as_u64);
    let hvm = "/b_info/type.hvm";
    let flag = |key: &str, default: bool| match json.pointer(&format!("{hvm}/{key}")) {
        Some(Value::String(value)) => value == "True",
        Some(Value::Bool(value)) => *value,
        _ => default,
    };
    let build_flag = |key: &str| matches!(json.pointer(&format!("/b_info/{key}")), Some(Value::String(value)) if value == "True");
    let max_memory = number("/b_info/max_memkb").unwrap_or(0) * KIB;
    let video_memory = number("/b_info/video_memkb").unwrap_or(0) * KIB;
    let list = |key: &str| json.get(key).and_then(Value::as_array).cloned().unwrap_or_default();

    report
        .record(STAGE, "xl config")
        .carried(&[
            "c_info.name",
            "c_info.uuid",
            "b_info.max_vcpus",
            "b_info.video_memkb",
            "disks",
            "nics",
            "pcidevs",
        ])
        .carried(&["type.hvm.vga.kind", "type.hvm.serial", "type.hvm.hpet", "type.hvm.xen_platform_pci"])
        .carried(&[
            "type.hvm.mmio_hole_memkb",
            "type.hvm.viridian_enable",
            "type.hvm.usbdevice",
            "type.hvm.vnc",
            "nested_hvm",
        ])
        .carried(&["type.hvm.boot", "kernel", "ramdisk", "cmdline", "localtime"])
        .derived("b_info.max_memkb", "memory of the guest is max_memkb - video_memkb")
        .dropped("b_info.target_memkb", "ballooning ends with the move: the guest keeps what it has")
        .dropped("b_info.sched_params, on_poweroff, on_reboot, on_crash", "the destination's own to decide");
    GuestConfig {
        name: text("/c_info/name").unwrap_or_default(),
        uuid: text("/c_info/uuid"),
        memory: max_memory.saturating_sub(video_memory),
        video_memory,
        max_vcpus: number("/b_info/max_vcpus").and_then(|count| u32::try_from(count).ok()).unwrap_or(1),
        mmio_hole: number(&format!("{hvm}/mmio_hole_memkb")).filter(|hole| *hole != 0).map(|hole| hole * KIB),
        vga: match text(&format!("{hvm}/vga/kind")).as_deref() {
            Some("none") => VgaKind::None,
            Some("std") => VgaKind::Std,
            Some("qxl") => VgaKind::Qxl,
            // libxl's default.
            _ => VgaKind::Cirrus,
        },
        disks: list("disks").iter().map(disk).collect(),
        nics: list("nics").iter().map(nic).collect(),
        serial_ports: match json.pointer(&format!("{hvm}/serial")) {
            Some(Value::String(_)) => 1,
            _ => list_at(json, &format!("{hvm}/serial_list")).len().try_into().unwrap_or(0),
        },
        hpet: flag("hpet", true),
        xen_platform: flag("xen_platform_pci", true),
        viridian: flag("viridian", false)
            || list_at(json, &format!("{hvm}/viridian_enable")).iter().any(|bit| bit != 0),
        nested: flag("nested_hvm", false) || build_flag("nested_hvm"),
        usb_devices: text(&format!("{hvm}/usbdevice"))
            .into_iter()
            .chain(
                list_at(json, &format!("{hvm}/usbdevice_list"))
                    .iter()
                    .filter_map(|name| name.as_str().map(str::to_owned)),
            )
            .collect(),
        passthrough: list("pcidevs").iter().map(pci_device).collect(),
        boot: Boot {
            // libxl's default.
            order: text(&format!("{hvm}/boot")).unwrap_or_else(|| "cda".to_owned()),
            kernel: text("/b_info/kernel"),
            ramdisk: text("/b_info/ramdisk"),
            command_line: text("/b_info/cmdline"),
            local_time: build_flag("localtime"),
        },
        vnc: json.pointer(&format!("{hvm}/vnc")).and_then(vnc),
    }
}

/// Where libxl lets the device model show the display: by VNC unless that is turned off (libxl_create.c, libxl_dm.c).
fn vnc(json: &Value) -> Option<String> {
    if json.get("enable").is_some_and(|value| value == "False") {
        return None;
    }
    let listen = json.get("listen").and_then(Value::as_str).unwrap_or("127.0.0.1");
    let display = json.get("display").and_then(Value::as_u64).unwrap_or(0);
    Some(if listen.contains(':') { listen.to_owned() } else { format!("{listen}:{display}") })
}

fn list_at(json: &Value, pointer: &str) -> Vec<Value> {
    json.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn disk(json: &Value) -> Disk {
    let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
    let set = |key: &str| {
        json.get(key).is_some_and(|value| value.as_u64().is_some_and(|n| n != 0) || value == "True")
    };
    Disk {
        vdev: text("vdev").unwrap_or_default(),
        path: text("pdev_path").filter(|path| !path.is_empty() && json["format"] != "empty"),
        format: text("format").unwrap_or_else(|| "raw".to_owned()),
        cdrom: set("is_cdrom"),
        writable: set("readwrite"),
    }
}

fn nic(json: &Value) -> Nic {
    let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
    Nic {
        mac: text("mac").unwrap_or_default(),
        model: text("model").unwrap_or_else(|| "rtl8139".to_owned()),
        bridge: text("bridge"),
        emulated: text("nictype").is_none_or(|kind| kind == "vif_ioemu"),
    }
}

fn pci_device(json: &Value) -> String {
    let number = |key: &str| json.get(key).and_then(Value::as_u64).unwrap_or(0);
    format!("{:04x}:{:02x}:{:02x}.{:x}", number("domain"), number("bus"), number("dev"), number("func"))
}

/// What can be refused before a page is read.
pub(super) fn judge(json: &Value, config: &GuestConfig, policy: &Policy, report: &mut Report) {
    if let Some(kind @ ("pvh" | "pv")) = json.pointer("/c_info/type").and_then(Value::as_str) {
        let what = format!("this is a {} domain: it has no emulated PC around it", kind.to_uppercase());
        let remedy = "only HVM domains can move; boot the guest as type=\"hvm\" first";
        policy.refuse(report, refusal::DOMAIN_TYPE, what, remedy);
    }
    let names = config.nics.iter().flat_map(|nic| [&nic.model, &nic.mac]).chain(&config.usb_devices);
    for name in names.chain(config.disks.iter().map(|disk| &disk.format)).filter(|name| !is_word(name)) {
        let what = format!("the configuration names a device {name:?}, which no device model knows");
        policy.refuse(report, refusal::DEVICE, what, "correct the guest's configuration and boot it again");
    }
    if !config.passthrough.is_empty() {
        let what = format!("host devices are passed through: {}", config.passthrough.join(", "));
        policy.refuse(report, refusal::PASSTHROUGH, what, "detach them (xl pci-detach) before the move");
    }
    if config.viridian {
        let what = "the guest is offered Hyper-V enlightenments (viridian)";
        let remedy = "boot it with viridian=0 before the move";
        policy.refuse(report, refusal::VIRIDIAN, what, remedy);
    }
    if config.nested {
        let what = "the guest is offered nested virtualization (nestedhvm)";
        policy.refuse(report, refusal::NESTED, what, "boot it with nestedhvm=0 before the move");
    }
    if config.memory == 0 {
        let what = "the configuration names no memory (b_info.max_memkb)";
        policy.refuse(report, refusal::MEMORY_LAYOUT, what, "save the guest again with a current xl");
    }
    for disk in config.disks.iter().filter(|disk| disk.is_scsi()) {
        let what = format!("disk {} is on a SCSI controller (lsi53c895a), which we do not carry", disk.vdev);
        let remedy = "boot the guest with it as an IDE disk (vdev=hda to hdd) before the move";
        policy.refuse(report, refusal::DEVICE, what, remedy);
    }
    if config.disks.iter().any(|disk| disk.ide_place().is_none() && !disk.is_scsi()) {
        let what = "disks that are not hda to hdd exist for paravirtual drivers only";
        let remedy = "boot the guest from emulated disks (hda to hdd) before the move";
        report.find("pv-disk", Severity::Warning, what, remedy);
    }
}

/// Model to wire: the text of the configuration. A guest that comes from Xen brings its own.
pub(super) fn localise(vm: &Vm, relocation: &Relocation, report: &mut Report) -> String {
    let own = vm.xen.as_ref().map(|xen| xen.config.as_str()).unwrap_or_default();
    let Ok(json) = serde_json::from_str::<Value>(own) else {
        report
            .record(BACK, "config")
            .carried(&[
                "name",
                "uuid",
                "memory",
                "video_memory",
                "max_vcpus",
                "mmio_hole",
                "vga",
                "disks",
                "nics",
            ])
            .carried(&["serial_ports", "hpet", "xen_platform", "usb_devices", "boot", "vnc"])
            .derived("viridian, nested, passthrough", "refused before they come here");
        let json = relocated(made(&vm.config, &relocation.identity), relocation);
        report_nameless_disks(&json, report);
        return libxl_text(&json);
    };
    report.record(BACK, "config").derived("*", "the guest brings the text that its host had (xen.config)");
    let here = relocated(json.clone(), relocation);
    if here == json { own.to_owned() } else { libxl_text(&here) }
}

/// A QEMU's stream does not say what is behind a disk.
fn report_nameless_disks(json: &Value, report: &mut Report) {
    for disk in json.get("disks").and_then(Value::as_array).into_iter().flatten().map(disk) {
        if disk.path.is_none() && !disk.cdrom {
            let what = format!("the stream does not name what is behind disk {}", disk.vdev);
            let remedy = format!("say what it is on the Xen host with --map-disk {}=PATH", disk.vdev);
            report.find("disk", Severity::Warning, what, remedy);
        }
    }
}

/// Whether the device model is given a kernel to start; it then has the interface through which firmware takes it.
pub(super) fn names_kernel(vm: &Vm) -> bool {
    let own = vm.xen.as_ref().and_then(|xen| serde_json::from_str::<Value>(&xen.config).ok());
    own.is_some_and(|json| {
        json.pointer("/b_info/kernel").and_then(Value::as_str).is_some_and(|name| !name.is_empty())
    })
}

fn libxl_text(json: &Value) -> String {
    format!("{json:#}\n")
}

/// The configuration that `xl create` would have made for such a guest.
fn made(config: &GuestConfig, identity: &Identity) -> Value {
    let name = if config.name.is_empty() { &identity.name } else { &config.name };
    let uuid = config.uuid.as_ref().or(identity.uuid.as_ref());
    let video_memory = super::video::memory(config);
    let total = (config.memory + video_memory) / KIB;
    let hvm = json!({
        "mmio_hole_memkb": config.mmio_hole.map(|hole| hole / KIB),
        "hpet": defbool(config.hpet),
        "nographic": defbool(config.vga == VgaKind::None),
        "vga": { "kind": config.vga },
        "boot": Some(&config.boot.order).filter(|order| !order.is_empty()),
        "vnc": config.vnc.as_ref().map_or_else(|| json!({ "enable": "False" }), |place| json!({ "listen": place })),
        "sdl": {},
        "spice": {},
        "serial": (config.serial_ports == 1).then_some("pty"),
        "serial_list": (config.serial_ports > 1).then(|| vec!["pty"; config.serial_ports.min(4) as usize]),
        "usb": (!config.usb_devices.is_empty()).then_some("True"),
        "usbdevice_list": (!config.usb_devices.is_empty()).then_some(&config.usb_devices),
        "xen_platform_pci": defbool(config.xen_platform),
        "rdm": {},
    });
    let json = json!({
        "c_info": { "type": "hvm", "name": name, "uuid": uuid, "run_hotplug_scripts": "True" },
        "b_info": {
            "max_vcpus": config.max_vcpus,
            "avail_vcpus": (0..config.max_vcpus).collect::<Vec<_>>(),
            "max_memkb": total,
            "target_memkb": total,
            "video_memkb": video_memory / KIB,
            "sched_params": {},
            "kernel": config.boot.kernel,
            "ramdisk": config.boot.ramdisk,
            "cmdline": config.boot.command_line,
            "localtime": config.boot.local_time.then_some("True"),
            "type.hvm": hvm,
            "arch_arm": {},
            "arch_x86": {},
        },
        "disks": config.disks.iter().map(made_disk).collect::<Vec<_>>(),
        "nics": (0..).zip(&config.nics).map(made_nic).collect::<Vec<_>>(),
        "on_poweroff": "destroy",
        "on_reboot": "restart",
        "on_crash": "destroy",
        "on_soft_reset": "soft_reset",
    });
    without_nulls(json)
}

fn defbool(on: bool) -> &'static str {
    if on { "True" } else { "False" }
}

fn made_disk(disk: &Disk) -> Value {
    // A drive without a medium is a format of libxl's own.
    let empty = disk.path.is_none() && disk.cdrom;
    json!({
        "pdev_path": disk.path.as_deref().unwrap_or_default(),
        "vdev": disk.vdev,
        "format": if empty { "empty" } else { disk.format.as_str() },
        "removable": i32::from(disk.cdrom),
        "readwrite": i32::from(disk.writable),
        "is_cdrom": i32::from(disk.cdrom),
    })
}

fn made_nic((devid, nic): (u32, &Nic)) -> Value {
    json!({
        "devid": devid,
        "model": nic.model,
        "mac": nic.mac,
        "bridge": nic.bridge,
        "nictype": if nic.emulated { "vif_ioemu" } else { "vif" },
    })
}

/// libxl takes a key that is absent for its default, and refuses one that is null.
fn without_nulls(json: Value) -> Value {
    match json {
        Value::Object(fields) => {
            let set = fields.into_iter().filter(|(_, value)| !value.is_null());
            set.map(|(name, value)| (name, without_nulls(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// The same with disks and bridges under the names that they have on the Xen host.
fn relocated(mut json: Value, relocation: &Relocation) -> Value {
    rename(&mut json, "disks", &["vdev", "pdev_path"], "pdev_path", &relocation.disks);
    rename(&mut json, "nics", &["bridge"], "bridge", &relocation.bridges);
    for (place, key, value) in
        [("/c_info", "name", &relocation.name), ("/b_info/type.hvm", "serial", &relocation.serial)]
    {
        if let (Some(value), Some(Value::Object(object))) = (value, json.pointer_mut(place)) {
            object.insert(key.to_owned(), value.as_str().into());
        }
    }
    json
}

/// Gives `field` of each item in a list the name that one of its `keys` stands for.
fn rename(json: &mut Value, list: &str, keys: &[&str], field: &str, names: &BTreeMap<String, String>) {
    for item in json.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
        let here = keys.iter().find_map(|key| names.get(item.get(key)?.as_str()?));
        if let (Some(here), Some(fields)) = (here, item.as_object_mut()) {
            fields.insert(field.to_owned(), here.as_str().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_libxl_writes() {
        // Keys and values as Xen 4.17 wrote them for a guest with a standard VGA, a disk and a network card.
        let json = serde_json::json!({
            "c_info": {"type": "hvm", "name": "d1", "uuid": "5e313d3b-b64e-4073-a921-bc3ff83f2eca"},
            "b_info": {
                "max_vcpus": 2, "max_memkb": 163_840, "target_memkb": 163_840, "video_memkb": 16_384,
                "type.hvm": {"vga": {"kind": "std"}, "serial": "file:/var/log/d1", "xen_platform_pci": "False"},
            },
            "disks": [{"pdev_path": "/guest/disk.img", "vdev": "hda", "format": "raw", "readwrite": 1}],
            "nics": [{"devid": 0, "model": "e1000", "mac": "00:16:3e:01:02:03", "bridge": "xenbr0", "nictype": "vif_ioemu"}],
        });
        let config = normalise(&json, &mut Report::default());
        assert_eq!(config.memory, 144 << 20);
        assert_eq!((config.vga, config.max_vcpus, config.serial_ports), (VgaKind::Std, 2, 1));
        assert!(config.hpet && !config.xen_platform);
        assert_eq!(config.disks[0].path.as_deref(), Some("/guest/disk.img"));
        assert_eq!((config.nics[0].model.as_str(), config.nics[0].emulated), ("e1000", true));
        assert_eq!((config.boot.order.as_str(), config.boot.kernel), ("cda", None));
    }

    #[test]
    fn a_display_is_shown_where_libxl_shows_it() {
        let place = |json| vnc(&json);
        assert_eq!(place(serde_json::json!({})).as_deref(), Some("127.0.0.1:0"));
        assert_eq!(place(serde_json::json!({"listen": "::1", "display": 0})).as_deref(), Some("::1"));
        assert_eq!(
            place(serde_json::json!({"listen": "0.0.0.0", "display": 3})).as_deref(),
            Some("0.0.0.0:3")
        );
        assert_eq!(place(serde_json::json!({"enable": "False"})), None);
    }

    #[test]
    fn a_scsi_disk_is_refused_by_its_name_and_a_cd_drive_is_not_one() {
        let judged = |vdev: &str, cdrom: u32| {
            let json = serde_json::json!({
                "b_info": {"max_memkb": 16_384},
                "disks": [{"vdev": vdev, "is_cdrom": cdrom, "pdev_path": "/x", "format": "raw"}],
            });
            let config = normalise(&json, &mut Report::default());
            let mut report = Report::default();
            judge(&json, &config, &Policy::default(), &mut report);
            let found = report.findings.pop().map(|finding| (finding.name, finding.what));
            (config.disks[0].ide_place(), found)
        };
        let (place, found) = judged("sda", 0);
        assert_eq!((place, found.as_ref().map(|found| found.0)), (None, Some("device")));
        assert!(found.unwrap().1.starts_with("disk sda is on a SCSI controller"));
        assert_eq!(judged("sdb", 1), (Some((0, 1)), None));
        assert_eq!(judged("xvdd", 0), (Some((1, 1)), None));
        assert_eq!(judged("xvde", 0).1.unwrap().0, "pv-disk");
    }

    #[test]
    fn an_empty_drive_has_no_image() {
        let drive =
            serde_json::json!({"vdev": "hdc", "is_cdrom": 1, "format": "empty", "pdev_path": "/old.iso"});
        let drive = disk(&drive);
        assert_eq!((drive.path, drive.cdrom, drive.writable), (None, true, false));
    }

    #[test]
    fn what_is_made_for_a_guest_reads_as_that_guest() {
        let config = GuestConfig {
            name: "d1".into(),
            memory: 144 << 20,
            video_memory: 16 << 20,
            max_vcpus: 2,
            vga: VgaKind::Std,
            disks: vec![Disk {
                vdev: "hda".into(),
                path: Some("/disk".into()),
                format: "raw".into(),
                cdrom: false,
                writable: true,
            }],
            nics: vec![Nic {
                mac: "00:16:3e:01:02:03".into(),
                model: "e1000".into(),
                bridge: Some("br0".into()),
                emulated: true,
            }],
            serial_ports: 1,
            usb_devices: vec!["tablet".into()],
            boot: Boot {
                order: "dc".into(),
                kernel: Some("/vmlinuz".into()),
                local_time: true,
                ..Boot::default()
            },
            vnc: Some("127.0.0.1:3".into()),
            ..GuestConfig::default()
        };
        let vm = Vm { config, ..Vm::default() };
        let text = localise(&vm, &Relocation::default(), &mut Report::default());
        let json = serde_json::from_str(&text).unwrap();
        assert_eq!(normalise(&json, &mut Report::default()), vm.config);

        let relocation = Relocation {
            disks: [("hda".to_owned(), "/dev/vg/d1".to_owned())].into(),
            bridges: [("br0".to_owned(), "xenbr0".to_owned())].into(),
            ..Relocation::default()
        };
        let moved = localise(&vm, &relocation, &mut Report::default());
        assert!(moved.contains("\"pdev_path\": \"/dev/vg/d1\"") && moved.contains("\"bridge\": \"xenbr0\""));
    }

    #[test]
    fn a_guest_from_xen_brings_its_own() {
        let config = "{ \"disks\": [{ \"vdev\": \"hda\", \"future\": 1 }] }\n";
        let xen = hyperferry_vm_model::XenDomain { config: config.into(), ..Default::default() };
        let vm = Vm { xen: Some(xen), ..Vm::default() };
        assert_eq!(localise(&vm, &Relocation::default(), &mut Report::default()), config);
        let relocation =
            Relocation { disks: [("hda".to_owned(), "/d".to_owned())].into(), ..Relocation::default() };
        let moved = localise(&vm, &relocation, &mut Report::default());
        assert!(moved.contains("\"future\": 1") && moved.contains("\"pdev_path\": \"/d\""), "{moved}");
    }

    #[test]
    fn refuses_before_memory_what_cannot_move() {
        let json = serde_json::json!({
            "b_info": {"max_memkb": 1024, "nested_hvm": "True"},
            "c_info": {"type": "pvh"},
            "pcidevs": [{"domain": 0, "bus": 3, "dev": 0x1f, "func": 2}],
        });
        let mut report = Report::default();
        judge(&json, &normalise(&json, &mut Report::default()), &Policy::default(), &mut report);
        let names: Vec<_> = report.refusals().map(|finding| finding.name).collect();
        assert_eq!(names, ["domain-type", "passthrough", "nested"]);
        assert!(report.findings[1].what.contains("0000:03:1f.2"));
    }
}
