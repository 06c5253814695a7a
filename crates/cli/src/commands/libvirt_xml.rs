//! `hyperferry libvirt-xml`: a libvirt domain for the guest's next start.
//!
//! It is the machine of [`args::cold_start`], the one that a unit or a script starts. What libvirt has elements for stands
//! in elements, so that libvirt knows of it. The rest goes to QEMU through `qemu:commandline`, which libvirt puts after
//! its own arguments; QEMU lets a later `-cpu` win and joins `-machine`.
//!
//! Source: libvirt `docs/formatdomain.rst`, `docs/drvqemu.rst` (pass-through of arguments), 9.0 and 10.0; what libvirt 9.0
//! makes of it was seen (`tests/libvirt.sh`).

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
    Made by hyperferry from a guest that came here from elsewhere, for its next start on this host: the same machine and
    devices, started anew from its disks. `virsh define` it once the guest that came in has shut down: libvirt takes over
    no QEMU that it has not started, and `virsh restore` reads no bare QEMU stream.
    What libvirt has no elements for stands in qemu:commandline; such a domain is marked tainted (custom-argv). -cpu
    there takes the place of the cpu element, and its model belongs to the domain's type: host to kvm, max to qemu.
    Disks and bridges are named as on the source unless they were mapped.
  ";
/// Options that libvirt has no element for, or not one that says the same; each is followed by a value.
const PASSED_THROUGH: [&str; 2] = ["-cpu", "-global"];
/// Where VNC's displays begin among TCP's ports.
const VNC_PORTS: u16 = 5900;

type Xml = Writer<Vec<u8>>;
type Written = io::Result<()>;

/// Prints it.
pub(super) fn run(arguments: &LibvirtXml) -> Result<u8> {
    let source = open(&arguments.input, arguments.allow.policy())?;
    let options = arguments.destination.options(host::accelerator(arguments.destination.accel));
    let vm = source.outline();
    args::know_devices(vm)?;
    say_what_to_map(vm, &options);
    let emulator = arguments.destination.qemu.as_deref().map(|named| host::qemu(Some(named))).transpose()?;
    let emulator = emulator.map(|path| path.display().to_string());
    let text = domain(vm, &options, emulator.as_deref(), &[]).map_err(Error::stdout)?;
    output::print(&text)?;
    Ok(exit::OK)
}

/// The domain as text; QEMU gets the extra arguments as they are.
pub(crate) fn domain(
    vm: &Vm,
    options: &args::Options,
    emulator: Option<&str>,
    extra: &[String],
) -> io::Result<String> {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let (kind, cpu) = match options.accelerator {
        Accelerator::Kvm => ("kvm", "host-passthrough"),
        Accelerator::Tcg => ("qemu", "maximum"),
    };
    let attributes = [("type", kind), ("xmlns:qemu", NAMESPACE)];
    xml.create_element("domain").with_attributes(attributes).write_inner_content(|xml| {
        xml.write_event(Event::Comment(BytesText::from_escaped(LIMITS)))?;
        leaf(xml, "name", &[], &name(&vm.config.name))?;
        if let Some(uuid) = &vm.config.uuid {
            leaf(xml, "uuid", &[], uuid)?;
        }
        leaf(xml, "memory", &[("unit", "b")], &vm.memory.size().to_string())?;
        leaf(xml, "vcpu", &[("placement", "static")], &vm.config.max_vcpus.max(1).to_string())?;
        group(xml, "os", |xml| boot(xml, vm, options))?;
        group(xml, "features", |xml| {
            empty(xml, "acpi", &[])?;
            empty(xml, "apic", &[])?;
            let vmport = if has_device(vm, "vmmouse") { "on" } else { "off" };
            empty(xml, "vmport", &[("state", vmport)])
        })?;
        if options.cpu.is_none() {
            empty(xml, "cpu", &[("mode", cpu), ("check", "none")])?;
        }
        let offset = if vm.config.boot.local_time { "localtime" } else { "utc" };
        // The HPET is there unless told otherwise, and libvirt 9.0 does not know that QEMU 9 and later have one.
        let absent = [("name", "hpet"), ("present", "no")];
        xml.create_element("clock")
            .with_attribute(("offset", offset))
            .write_inner_content(|xml| if vm.config.hpet { Ok(()) } else { empty(xml, "timer", &absent) })?;
        group(xml, "devices", |xml| devices(xml, vm, options, emulator))?;
        group(xml, "qemu:commandline", |xml| pass_through(xml, vm, options, extra))
    })?;
    let mut text = String::from_utf8_lossy(&xml.into_inner()).into_owned();
    text.push('\n');
    Ok(text)
}

/// The guest's name as far as libvirt takes it: it becomes the name of files, and XML has no control characters.
fn name(guest: &str) -> String {
    let guest = guest.replace(|c: char| c == '/' || c.is_control(), "_");
    if guest.is_empty() { "guest".to_owned() } else { guest }
}

fn has_device(vm: &Vm, name: &str) -> bool {
    vm.devices.iter().any(|device| device.name == name)
}

/// What is started, and from where.
fn boot(xml: &mut Xml, vm: &Vm, options: &args::Options) -> Written {
    leaf(xml, "type", &[("arch", "x86_64"), ("machine", args::machine_type(vm, options))], "hvm")?;
    let boot = &vm.config.boot;
    if let Some(kernel) = &boot.kernel {
        leaf(xml, "kernel", &[], kernel)?;
        for (element, value) in [("initrd", &boot.ramdisk), ("cmdline", &boot.command_line)] {
            if let Some(value) = value {
                leaf(xml, element, &[], value)?;
            }
        }
    }
    boot.order.chars().try_for_each(|letter| match letter {
        'a' => empty(xml, "boot", &[("dev", "fd")]),
        'c' => empty(xml, "boot", &[("dev", "hd")]),
        'd' => empty(xml, "boot", &[("dev", "cdrom")]),
        'n' => empty(xml, "boot", &[("dev", "network")]),
        _ => Ok(()),
    })
}

fn devices(xml: &mut Xml, vm: &Vm, options: &args::Options, emulator: Option<&str>) -> Written {
    if let Some(emulator) = emulator {
        leaf(xml, "emulator", &[], emulator)?;
    }
    for disk in vm.config.disks.iter().filter(|disk| disk.ide_place().is_some()) {
        self::disk(xml, disk, options)?;
    }
    usb(xml, vm)?;
    let places = args::Places::of(vm);
    for (place, (_, nic)) in places.nics.iter().zip(args::emulated(vm)) {
        interface(xml, nic, *place, options)?;
    }
    (0..vm.config.serial_ports.min(args::SERIAL_PORTS)).try_for_each(|port| serial(xml, port, options))?;
    if has_device(vm, "parallel_isa") {
        xml.create_element("parallel")
            .with_attribute(("type", "null"))
            .write_inner_content(|xml| empty(xml, "target", &[("port", "0")]))?;
    }
    if let Some(place) = options.vnc.as_deref().and_then(Vnc::of) {
        place.write(xml)?;
    }
    video(xml, vm, &places)?;
    empty(xml, "memballoon", &[("model", "none")])
}

fn disk(xml: &mut Xml, disk: &Disk, options: &args::Options) -> Written {
    let source = args::image(disk, options).map(Image::of);
    if source.is_none() && !disk.cdrom {
        return Ok(());
    }
    let kind = source.as_ref().map_or("file", Image::kind);
    let device = if disk.cdrom { "cdrom" } else { "disk" };
    let target = disk.vdev.replace("xvd", "hd").replace("sd", "hd");
    xml.create_element("disk").with_attributes([("type", kind), ("device", device)]).write_inner_content(
        |xml| {
            let format = args::image_format(disk);
            empty(xml, "driver", &[("name", "qemu"), ("type", format), ("cache", "writeback")])?;
            if let Some(source) = &source {
                source.write(xml)?;
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

/// What is behind a disk.
#[derive(Debug, PartialEq, Eq)]
enum Image<'a> {
    File(&'a str),
    Block(&'a str),
    /// `nbd://HOST:PORT/NAME`, and what else QEMU and libvirt both know by an address of that form.
    Network {
        protocol: &'a str,
        host: &'a str,
        port: Option<&'a str>,
        name: &'a str,
    },
}

impl<'a> Image<'a> {
    fn of(path: &'a str) -> Self {
        Self::network(path).unwrap_or(if path.starts_with("/dev/") {
            Self::Block(path)
        } else {
            Self::File(path)
        })
    }

    fn network(path: &'a str) -> Option<Self> {
        let (protocol, place) = path.split_once("://")?;
        let known = ["nbd", "http", "https", "iscsi"].contains(&protocol);
        let (host, name) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (host, None),
        };
        let host = host.trim_matches(['[', ']']);
        known.then_some(Self::Network { protocol, host, port, name })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Block(_) => "block",
            Self::Network { .. } => "network",
        }
    }

    fn write(&self, xml: &mut Xml) -> Written {
        let (protocol, host, port, name) = match self {
            Self::File(path) => return empty(xml, "source", &[("file", path)]),
            Self::Block(path) => return empty(xml, "source", &[("dev", path)]),
            Self::Network { protocol, host, port, name } => (protocol, host, port, name),
        };
        let mut source = vec![("protocol", *protocol)];
        if !name.is_empty() {
            source.push(("name", *name));
        }
        let place = std::iter::once(("name", *host)).chain(port.map(|port| ("port", port)));
        xml.create_element("source")
            .with_attributes(source)
            .write_inner_content(|xml| empty(xml, "host", &place.collect::<Vec<_>>()))?;
        Ok(())
    }
}

fn usb(xml: &mut Xml, vm: &Vm) -> Written {
    if vm.config.usb_devices.is_empty() && !has_device(vm, "uhci") {
        return empty(xml, "controller", &[("type", "usb"), ("model", "none")]);
    }
    xml.create_element("controller")
        .with_attributes([("type", "usb"), ("model", "piix3-uhci")])
        .write_inner_content(|xml| address(xml, 1, 2))?;
    vm.config.usb_devices.iter().try_for_each(|device| {
        let kind = if device == "kbd" { "keyboard" } else { device };
        empty(xml, "input", &[("type", kind), ("bus", "usb")])
    })
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
        } else {
            // It led nowhere at the source, and must not lead to this host's networks.
            empty(xml, "link", &[("state", "down")])?;
        }
        empty(xml, "model", &[("type", &nic.model)])?;
        address(xml, place.slot, place.function)
    })?;
    Ok(())
}

/// A port for `virsh console`; the first one is written down where it was on this host.
fn serial(xml: &mut Xml, port: u32, options: &args::Options) -> Written {
    let log = options.serial.strip_prefix("file:").filter(|_| port == 0);
    let kind = if port == 0 { "pty" } else { "null" };
    xml.create_element("serial").with_attribute(("type", kind)).write_inner_content(|xml| {
        if let Some(log) = log {
            empty(xml, "log", &[("file", log), ("append", "on")])?;
        }
        empty(xml, "target", &[("type", "isa-serial"), ("port", &port.to_string())])
    })?;
    Ok(())
}

/// Where a display is shown, as far as libvirt has words for what QEMU's `-vnc` takes.
#[derive(Debug, PartialEq, Eq)]
enum Vnc<'a> {
    Socket(&'a str),
    Address(&'a str, u16),
}

impl<'a> Vnc<'a> {
    fn of(place: &'a str) -> Option<Self> {
        // Passwords, certificates.
        if place.contains(',') {
            return None;
        }
        if let Some(path) = place.strip_prefix("unix:") {
            return Some(Self::Socket(path));
        }
        let (host, display) = place.rsplit_once(':')?;
        let port = VNC_PORTS.checked_add(display.parse().ok()?)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some(Self::Address(if host.is_empty() { "0.0.0.0" } else { host }, port))
    }

    fn write(&self, xml: &mut Xml) -> Written {
        match self {
            Self::Socket(path) => empty(xml, "graphics", &[("type", "vnc"), ("socket", path)]),
            Self::Address(host, port) => {
                let port = port.to_string();
                empty(
                    xml,
                    "graphics",
                    &[("type", "vnc"), ("autoport", "no"), ("port", &port), ("listen", host)],
                )
            }
        }
    }
}

fn video(xml: &mut Xml, vm: &Vm, places: &args::Places) -> Written {
    let (model, memory) = match vm.config.vga {
        VgaKind::None => return group(xml, "video", |xml| empty(xml, "model", &[("type", "none")])),
        VgaKind::Std => ("vga", "vram"),
        VgaKind::Cirrus => ("cirrus", "vram"),
        VgaKind::Qxl => ("qxl", "vgamem"),
    };
    let kibibytes = (vm.config.video_memory >> 10).to_string();
    group(xml, "video", |xml| {
        empty(xml, "model", &[("type", model), (memory, &kibibytes), ("primary", "yes")])?;
        places.display.map_or(Ok(()), |place| address(xml, place.slot, place.function))
    })
}

/// What only QEMU has words for.
fn pass_through(xml: &mut Xml, vm: &Vm, options: &args::Options, extra: &[String]) -> Written {
    let words = args::cold_start(vm, options);
    for pair in words.windows(2) {
        let [option, value] = pair else { continue };
        let unknown_display = option == "-vnc" && Vnc::of(value).is_none();
        if PASSED_THROUGH.contains(&option.as_str()) || unknown_display {
            argument(xml, option)?;
            argument(xml, value)?;
        }
        // Libvirt's Cirrus card has QEMU's usual size, whatever its element says.
        if let Some((card, rest)) = value.split_once(',')
            && card == "cirrus-vga"
            && let Some(size) = rest.split(',').find(|part| part.starts_with("vgamem_mb="))
        {
            argument(xml, "-global")?;
            argument(xml, &format!("{card}.{size}"))?;
        }
        if option == "-machine" {
            // The rest of it has elements. That of the HPET does not reach every QEMU from every libvirt.
            let passed = |part: &&str| part.starts_with("max-ram-below-4g=") || *part == "hpet=off";
            value.split(',').filter(passed).try_for_each(|part| {
                argument(xml, option)?;
                argument(xml, part)
            })?;
        }
    }
    extra.iter().try_for_each(|word| argument(xml, word))
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
    use hyperferry_vm_model::{Boot, GuestConfig, MemoryLayout};

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
        let text = domain(&guest(), &args::Options::new(Accelerator::Kvm), None, &[]).unwrap();
        for wanted in [
            "<name>a&lt;b&gt;&amp;&quot;c&quot;</name>",
            r#"<memory unit="b">1073741824</memory>"#,
            r#"<vcpu placement="static">2</vcpu>"#,
            r#"<source dev="/dev/vg/a"/>"#,
            r#"slot="0x02" function="0x0"/>"#,
            r#"slot="0x03" function="0x0"/>"#,
            r#"<qemu:arg value="PIIX4_PM.acpi-root-pci-hotplug=off"/>"#,
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }

    #[test]
    fn it_starts_as_the_guest_was_configured_to() {
        let mut vm = guest();
        vm.config.vga = VgaKind::Cirrus;
        vm.config.nics[0].bridge = None;
        vm.config.serial_ports = 2;
        vm.memory = MemoryLayout::split(3700 << 20, 0xf000_0000);
        vm.config.boot = Boot {
            order: "dc".into(),
            kernel: Some("/k".into()),
            command_line: Some("a b".into()),
            local_time: true,
            ..Boot::default()
        };
        let mut options = args::Options::new(Accelerator::Tcg);
        options.serial = "file:/log".into();
        options.vnc = Some("[::1]:1".into());
        let text = domain(&vm, &options, None, &["-extra".to_owned()]).unwrap();
        let flat: String = text.lines().map(str::trim).collect();
        for wanted in [
            r#"<kernel>/k</kernel><cmdline>a b</cmdline><boot dev="cdrom"/><boot dev="hd"/>"#,
            r#"<cpu mode="maximum" check="none"/><clock offset="localtime"><timer name="hpet" present="no"/></clock>"#,
            r#"<qemu:arg value="-machine"/><qemu:arg value="hpet=off"/>"#,
            r#"<qemu:arg value="-machine"/><qemu:arg value="max-ram-below-4g=4026531840"/>"#,
            r#"<serial type="pty"><log file="/log" append="on"/><target type="isa-serial" port="0"/>"#,
            r#"<serial type="null"><target type="isa-serial" port="1"/>"#,
            r#"<graphics type="vnc" autoport="no" port="5901" listen="::1"/>"#,
            r#"<interface type="user"><mac address="00:16:3e:01:02:03"/><link state="down"/>"#,
            r#"<qemu:arg value="cirrus-vga.vgamem_mb=16"/>"#,
            r#"<qemu:arg value="-extra"/></qemu:commandline>"#,
        ] {
            assert!(flat.contains(wanted), "{wanted} is not in\n{text}");
        }
        assert!(!text.contains("ivshmem"), "{text}");
    }

    #[test]
    fn an_image_is_a_file_a_device_or_on_the_network() {
        let network = |host, port, name| Image::Network { protocol: "nbd", host, port, name };
        for (path, image) in [
            ("/a", Image::File("/a")),
            ("/dev/vg/a", Image::Block("/dev/vg/a")),
            ("json:{}", Image::File("json:{}")),
            ("nbd://host", network("host", None, "")),
            ("nbd://host:7/web/a", network("host", Some("7"), "web/a")),
            ("nbd://[::1]/web", network("::1", None, "web")),
            ("nbd://[::1]:7/web", network("::1", Some("7"), "web")),
        ] {
            assert_eq!(Image::of(path), image, "{path}");
        }
        let mut vm = guest();
        vm.config.disks[0].path = None;
        let text = domain(&vm, &args::Options::new(Accelerator::Tcg), None, &[]).unwrap();
        assert!(!text.contains("<disk"), "nobody knows where it is: {text}");
        let mut options = args::Options::new(Accelerator::Tcg);
        options.disks.insert("xvda".into(), "nbd://host:7/web".into());
        let text = domain(&vm, &options, None, &[]).unwrap();
        let flat: String = text.lines().map(str::trim).collect();
        let wanted = r#"<source protocol="nbd" name="web"><host name="host" port="7"/></source>"#;
        assert!(flat.contains(wanted), "{text}");
    }

    #[test]
    fn a_display_that_libvirt_has_no_words_for_is_passed_through() {
        assert_eq!(Vnc::of("unix:/run/a.vnc"), Some(Vnc::Socket("/run/a.vnc")));
        assert_eq!(Vnc::of(":7"), Some(Vnc::Address("0.0.0.0", 5907)));
        assert_eq!(Vnc::of("127.0.0.1:1,password=on"), None);
        assert_eq!(Vnc::of("unix:/run/a.vnc,password=on"), None);
        let mut options = args::Options::new(Accelerator::Tcg);
        options.vnc = Some("127.0.0.1:1,password=on".into());
        let text = domain(&guest(), &options, None, &[]).unwrap();
        assert!(text.contains(r#"<qemu:arg value="127.0.0.1:1,password=on"/>"#), "{text}");
    }

    #[test]
    fn no_name_is_one_that_libvirt_cannot_take() {
        assert_eq!(["web", "a/b\nc", ""].map(name), ["web", "a_b_c", "guest"]);
    }

    #[test]
    fn it_is_well_formed() {
        let text = domain(&guest(), &args::Options::new(Accelerator::Tcg), Some("/q&q"), &[]).unwrap();
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
