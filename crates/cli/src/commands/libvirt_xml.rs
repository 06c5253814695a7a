//! `hyperferry libvirt-xml`: a libvirt domain that can take the guest.
//!
//! What libvirt has elements for stands in elements, so that libvirt knows of it. The rest goes to QEMU through
//! `qemu:commandline`, which libvirt puts after its own arguments; QEMU lets a later `-cpu` win and joins `-machine`.
//!
//! Source: libvirt `docs/formatdomain.rst`, `docs/drvqemu.rst` (pass-through of arguments), 9.0 and 10.0.

use std::io;

use hyperferry_translate::qemu::{Accelerator, args};
use hyperferry_vm_model::{Disk, Nic, PciAddress, VgaKind, Vm};
use quick_xml::{
    Writer,
    events::{BytesDecl, BytesText, Event},
};

use super::open;
use crate::{
    args::LibvirtXml,
    destination::say_what_to_map,
    exit::{self, Error, Result},
    host, output,
};

const NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
const LIMITS: &str = "
    Made by hyperferry from a saved guest. It describes the machine that the guest's state fits; the state itself is
    not part of it: libvirt's own `virsh restore` reads libvirt's format, not a bare QEMU stream, and libvirt takes over
    no QEMU that it has not started. It is for the guest's later life on this host: `virsh define` it once the guest
    that came in has shut down, and start it anew.
    Elements that libvirt lacks stand in qemu:commandline; such a domain is marked tainted (custom-argv).
    Disks and bridges are named as on the source unless they were mapped.
  ";
/// Options that libvirt has no element for, or not one that says the same; each is followed by a value.
const PASSED_THROUGH: [&str; 3] = ["-cpu", "-global", "-object"];

type Xml = Writer<Vec<u8>>;
type Written = io::Result<()>;

/// Prints it.
pub(super) fn run(arguments: &LibvirtXml) -> Result<u8> {
    let source = open(&arguments.input, arguments.allow.policy())?;
    let options = arguments.destination.options(host::accelerator(arguments.destination.accel));
    let vm = source.outline();
    args::know_devices(vm)?;
    say_what_to_map(vm, &options);
    let emulator = arguments.destination.qemu.as_ref().map(|path| path.display().to_string());
    let text = domain(vm, &options, emulator.as_deref()).map_err(Error::stdout)?;
    output::print(&text)?;
    Ok(exit::OK)
}

/// The domain as text.
pub(crate) fn domain(vm: &Vm, options: &args::Options, emulator: Option<&str>) -> io::Result<String> {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let kind = match options.accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "qemu",
    };
    let attributes = [("type", kind), ("xmlns:qemu", NAMESPACE)];
    xml.create_element("domain").with_attributes(attributes).write_inner_content(|xml| {
        xml.write_event(Event::Comment(BytesText::from_escaped(LIMITS)))?;
        let name = if vm.config.name.is_empty() { "guest" } else { &vm.config.name };
        leaf(xml, "name", &[], name)?;
        if let Some(uuid) = &vm.config.uuid {
            leaf(xml, "uuid", &[], uuid)?;
        }
        leaf(xml, "memory", &[("unit", "b")], &vm.memory.size().to_string())?;
        vcpus(xml, vm)?;
        group(xml, "os", |xml| {
            leaf(xml, "type", &[("arch", "x86_64"), ("machine", args::machine_type(vm, options))], "hvm")
        })?;
        group(xml, "features", |xml| {
            empty(xml, "acpi", &[])?;
            empty(xml, "apic", &[])?;
            let vmport = if vm.devices.iter().any(|device| device.name == "vmmouse") { "on" } else { "off" };
            empty(xml, "vmport", &[("state", vmport)])
        })?;
        if vm.config.max_vcpus > 1 && !args::has_every_apic_id(vm) {
            let sockets = vm.config.max_vcpus.to_string();
            let topology = [("sockets", sockets.as_str()), ("cores", "1"), ("threads", "2")];
            // Its place only: the model comes with -cpu below.
            xml.create_element("cpu").write_inner_content(|xml| empty(xml, "topology", &topology))?;
        }
        xml.create_element("clock").with_attribute(("offset", "utc")).write_inner_content(|xml| {
            let present = if vm.config.hpet { "yes" } else { "no" };
            empty(xml, "timer", &[("name", "hpet"), ("present", present)])
        })?;
        group(xml, "devices", |xml| devices(xml, vm, options, emulator))?;
        group(xml, "qemu:commandline", |xml| pass_through(xml, vm, options))
    })?;
    let mut text = String::from_utf8_lossy(&xml.into_inner()).into_owned();
    text.push('\n');
    Ok(text)
}

/// Xen's APIC ids are even: of two threads a socket, the second of each is never plugged.
fn vcpus(xml: &mut Xml, vm: &Vm) -> Written {
    let count = vm.config.max_vcpus.max(1);
    if count == 1 || args::has_every_apic_id(vm) {
        return leaf(xml, "vcpu", &[("placement", "static")], &count.to_string());
    }
    let (current, all) = (count.to_string(), 2 * count);
    leaf(xml, "vcpu", &[("placement", "static"), ("current", &current)], &all.to_string())?;
    group(xml, "vcpus", |xml| {
        (0..all).try_for_each(|id| {
            let (id_text, order) = (id.to_string(), (id / 2 + 1).to_string());
            let enabled = if id % 2 == 0 { "yes" } else { "no" };
            let hotpluggable = if id == 0 { "no" } else { "yes" };
            let mut attributes =
                vec![("id", id_text.as_str()), ("enabled", enabled), ("hotpluggable", hotpluggable)];
            if id % 2 == 0 {
                attributes.push(("order", &order));
            }
            empty(xml, "vcpu", &attributes)
        })
    })
}

fn devices(xml: &mut Xml, vm: &Vm, options: &args::Options, emulator: Option<&str>) -> Written {
    if let Some(emulator) = emulator {
        leaf(xml, "emulator", &[], emulator)?;
    }
    for disk in vm.config.disks.iter().filter(|disk| disk.ide_place().is_some()) {
        self::disk(xml, disk, options)?;
    }
    if vm.config.usb_devices.is_empty() {
        empty(xml, "controller", &[("type", "usb"), ("model", "none")])?;
    } else {
        xml.create_element("controller")
            .with_attributes([("type", "usb"), ("model", "piix3-uhci")])
            .write_inner_content(|xml| address(xml, 1, 2))?;
        for device in &vm.config.usb_devices {
            empty(xml, "input", &[("type", device), ("bus", "usb")])?;
        }
    }
    let places = args::Places::of(vm);
    for (place, nic) in places.nics.iter().zip(vm.config.nics.iter().filter(|nic| nic.emulated)) {
        interface(xml, nic, *place, options)?;
    }
    if vm.config.serial_ports > 0 {
        xml.create_element("serial").with_attribute(("type", "pty")).write_inner_content(|xml| {
            xml.create_element("target")
                .with_attributes([("type", "isa-serial"), ("port", "0")])
                .write_empty()?;
            Ok(())
        })?;
    }
    video(xml, vm, &places)?;
    empty(xml, "memballoon", &[("model", "none")])
}

fn disk(xml: &mut Xml, disk: &Disk, options: &args::Options) -> Written {
    let source = disk
        .path
        .as_ref()
        .map(|path| options.disks.get(&disk.vdev).or_else(|| options.disks.get(path)).unwrap_or(path));
    let (kind, key) = match source {
        Some(path) if path.starts_with("/dev/") => ("block", "dev"),
        _ => ("file", "file"),
    };
    let device = if disk.cdrom { "cdrom" } else { "disk" };
    let target = disk.vdev.replace("xvd", "hd").replace("sd", "hd");
    xml.create_element("disk").with_attributes([("type", kind), ("device", device)]).write_inner_content(
        |xml| {
            let format = args::image_format(disk);
            empty(xml, "driver", &[("name", "qemu"), ("type", format), ("cache", "writeback")])?;
            if let Some(path) = source {
                empty(xml, "source", &[(key, path)])?;
            }
            empty(xml, "target", &[("dev", &target), ("bus", "ide")])?;
            if !disk.writable {
                empty(xml, "readonly", &[])?;
            }
            Ok(())
        },
    )?;
    Ok(())
}

fn interface(xml: &mut Xml, nic: &Nic, place: PciAddress, options: &args::Options) -> Written {
    let bridge = nic.bridge.as_ref().map(|bridge| options.bridges.get(bridge).unwrap_or(bridge));
    let tap = bridge.and_then(|place| place.strip_prefix(args::TAP));
    let kind = match (tap, bridge) {
        (Some(_), _) => "ethernet",
        (None, Some(_)) => "bridge",
        (None, None) => "user",
    };
    xml.create_element("interface").with_attribute(("type", kind)).write_inner_content(|xml| {
        empty(xml, "mac", &[("address", &nic.mac)])?;
        if let Some(tap) = tap {
            empty(xml, "target", &[("dev", tap), ("managed", "no")])?;
        } else if let Some(bridge) = bridge {
            empty(xml, "source", &[("bridge", bridge)])?;
        }
        empty(xml, "model", &[("type", &nic.model)])?;
        // The ROM has run, and RAM holds what it left.
        empty(xml, "rom", &[("enabled", "no")])?;
        address(xml, place.slot, place.function)
    })?;
    Ok(())
}

fn video(xml: &mut Xml, vm: &Vm, places: &args::Places) -> Written {
    let model = match vm.config.vga {
        VgaKind::None => return group(xml, "video", |xml| empty(xml, "model", &[("type", "none")])),
        VgaKind::Std => "vga",
        VgaKind::Cirrus => "cirrus",
        VgaKind::Qxl => "qxl",
    };
    let kibibytes = (vm.config.video_memory >> 10).to_string();
    group(xml, "video", |xml| {
        empty(xml, "model", &[("type", model), ("vram", &kibibytes), ("primary", "yes")])?;
        places.display.map_or(Ok(()), |place| address(xml, place.slot, place.function))
    })
}

/// What only QEMU has words for.
fn pass_through(xml: &mut Xml, vm: &Vm, options: &args::Options) -> Written {
    let words = args::command_line(vm, options);
    for pair in words.windows(2) {
        let [option, value] = pair else { continue };
        let passed =
            PASSED_THROUGH.contains(&option.as_str()) || option == "-device" && value.starts_with("ivshmem");
        if passed {
            argument(xml, option)?;
            argument(xml, value)?;
        }
        // The rest of -machine has elements.
        if let Some(split) = value.split(',').find(|part| part.starts_with("max-ram-below-4g="))
            && option == "-machine"
        {
            argument(xml, option)?;
            argument(xml, split)?;
        }
    }
    for device in ["VGA", "cirrus-vga", "qxl-vga"] {
        if words.iter().any(|word| word.starts_with(&format!("{device},"))) {
            argument(xml, "-global")?;
            argument(xml, &format!("{device}.romfile="))?;
        }
    }
    Ok(())
}

fn argument(xml: &mut Xml, value: &str) -> Written {
    empty(xml, "qemu:arg", &[("value", value)])
}

fn address(xml: &mut Xml, slot: u8, function: u8) -> Written {
    let (slot, function) = (format!("{slot:#04x}"), format!("{function:#x}"));
    let place =
        [("type", "pci"), ("domain", "0x0000"), ("bus", "0x00"), ("slot", &slot), ("function", &function)];
    empty(xml, "address", &place)
}

fn group(xml: &mut Xml, name: &str, inner: impl FnOnce(&mut Xml) -> Written) -> Written {
    xml.create_element(name).write_inner_content(inner)?;
    Ok(())
}

fn leaf(xml: &mut Xml, name: &str, attributes: &[(&str, &str)], text: &str) -> Written {
    let element = xml.create_element(name).with_attributes(attributes.iter().copied());
    element.write_text_content(BytesText::new(text))?;
    Ok(())
}

fn empty(xml: &mut Xml, name: &str, attributes: &[(&str, &str)]) -> Written {
    xml.create_element(name).with_attributes(attributes.iter().copied()).write_empty()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::{GuestConfig, MemoryLayout};

    use super::*;

    fn guest() -> Vm {
        Vm {
            config: GuestConfig {
                name: "a<b>&\"c\"".into(),
                max_vcpus: 2,
                vga: VgaKind::Std,
                video_memory: 16 << 20,
                nics: vec![Nic {
                    mac: "00:16:3e:01:02:03".into(),
                    model: "e1000".into(),
                    bridge: Some("xenbr0".into()),
                    emulated: true,
                }],
                disks: vec![Disk { vdev: "xvda".into(), path: Some("/dev/vg/a".into()), ..Disk::default() }],
                ..GuestConfig::default()
            },
            memory: MemoryLayout::split(1 << 30, 0xf000_0000),
            ..Vm::default()
        }
    }

    #[test]
    fn devices_keep_their_places_and_names_are_escaped() {
        let text = domain(&guest(), &args::Options::new(Accelerator::Kvm), None).unwrap();
        for wanted in [
            "<name>a&lt;b&gt;&amp;&quot;c&quot;</name>",
            r#"<memory unit="b">1073741824</memory>"#,
            r#"<vcpu id="2" enabled="yes" hotpluggable="yes" order="2"/>"#,
            r#"<source dev="/dev/vg/a"/>"#,
            r#"slot="0x02" function="0x0"/>"#,
            r#"slot="0x03" function="0x0"/>"#,
            r#"<qemu:arg value="ivshmem-plain,memdev=xen-acpi,master=on,addr=1f.0"/>"#,
            r#"<qemu:arg value="VGA.romfile="/>"#,
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }

    #[test]
    fn it_is_well_formed() {
        let text = domain(&guest(), &args::Options::new(Accelerator::Tcg), Some("/q&q")).unwrap();
        let mut reader = quick_xml::Reader::from_str(&text);
        reader.config_mut().check_end_names = true;
        loop {
            match reader.read_event().unwrap() {
                Event::Eof => break,
                Event::Start(start) | Event::Empty(start) => {
                    start.attributes().for_each(|attribute| drop(attribute.unwrap()));
                }
                _ => {}
            }
        }
    }
}
