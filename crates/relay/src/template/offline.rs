//! A command line with the same guest devices and nothing behind them.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::size::{self, Format};
use crate::{
    Error, Result,
    qemu::{CommandLine, Opt, Properties},
};

/// Options that only concern the host, or the guest's start, and are left out.
const DROPPED: &[&str] = &[
    "D",
    "S",
    "add-fd",
    "async-teardown",
    "chroot",
    "d",
    "daemonize",
    "display",
    "full-screen",
    "gdb",
    "incoming",
    "jitdump",
    "loadvm",
    "mem-path",
    "mem-prealloc",
    "mon",
    "monitor",
    "nographic",
    "perfmap",
    "pidfile",
    "plugin",
    "qmp",
    "qmp-pretty",
    "run-with",
    "runas",
    "s",
    "snapshot",
    "spice",
    "trace",
    "vnc",
];

/// What a `-drive` says about the guest's side, or about both.
const DRIVE_KEYS: &[&str] =
    &["addr", "bus", "id", "if", "index", "media", "node-name", "read-only", "readonly", "unit"];

/// What a memory backend says about the memory, rather than about where it comes from.
const MEMORY_KEYS: &[&str] =
    &["id", "size", "share", "merge", "dump", "x-use-canonical-path-for-ramblock-id"];

/// What `-nic` says about the guest's side.
const NIC_KEYS: &[&str] = &["addr", "id", "mac", "macaddr", "model", "name", "vectors"];

/// The first hub of ours. Each network gets a hub of its own, so that no two of them meet.
const FIRST_HUB: u32 = 4000;

/// Exchanges the host side of each option for nothing: no file is opened for writing or locked, no port, pipe,
/// terminal, tap device or memory file is touched.
///
/// | option | becomes |
/// |---|---|
/// | `-drive`, `-hda` …, `-blockdev` | `null-co` of the same capacity, same id, interface and place |
/// | `-chardev`, `-serial`, `-parallel`, `-debugcon` | `null` |
/// | `-netdev`, `-nic`, `-net` | a hub with nobody else on it |
/// | `-object memory-backend-*` | `memory-backend-ram` of the same id and size |
/// | `-audiodev`, `-audio` | `none` |
/// | displays, monitors, `-incoming`, `-daemonize`, … | left out |
///
/// What the guest's side may notice, and so the template:
/// * a disk's geometry comes from its partition table, which is not there. It reaches the stream only as CMOS
///   bytes 0x12 and 0x19 to 0x2c; IDE and virtio state hold no capacity;
/// * a virtio NIC on a tap device states `has_vnet_hdr` and a queue pair for each of its queues; here it is 0 and 1.
///
/// Refused, because nothing can stand in for them: `-readconfig` (options out of our sight), `-tpmdev`, and devices
/// of the host (`vfio-*`, `vhost-*`, `usb-host`).
pub fn without_backends(arguments: &[String]) -> Result<Vec<String>> {
    let line = CommandLine::parse(arguments)?;
    let mut exchange = Exchange { files: HashMap::new(), hub: FIRST_HUB };
    let mut options = Vec::new();
    for option in line.0 {
        options.extend(exchange.option(option)?);
    }
    options.push(Opt::new("display", "none"));
    options.push(Opt::new("monitor", "none"));
    Ok(CommandLine(options).into_arguments())
}

struct Exchange {
    /// The file behind each block node named so far.
    files: HashMap<String, String>,
    hub: u32,
}

impl Exchange {
    fn option(&mut self, option: Opt) -> Result<Option<Opt>> {
        let name = option.name.as_str();
        let value = option.text();
        Ok(match name {
            _ if DROPPED.contains(&name) => None,
            "hda" => Some(image("index=0,media=disk", value)),
            "hdb" => Some(image("index=1,media=disk", value)),
            "hdc" => Some(image("index=2,media=disk", value)),
            "hdd" => Some(image("index=3,media=disk", value)),
            "cdrom" => Some(image("index=2,media=cdrom", value)),
            "fda" => Some(image("if=floppy,index=0", value)),
            "fdb" => Some(image("if=floppy,index=1", value)),
            "pflash" => Some(image("if=pflash", value)),
            "mtdblock" => Some(image("if=mtd", value)),
            "sd" => Some(image("if=sd", value)),
            "drive" => Some(drive(&Properties::parse(value, "file"), value)),
            "blockdev" => Some(self.blockdev(option.text())?),
            "serial" | "parallel" | "debugcon" => {
                let kept = value == "none" || value.starts_with("chardev:");
                Some(if kept { option } else { Opt::new(name, "null") })
            }
            "chardev" => Some(chardev(value)?),
            "netdev" => Some(self.netdev(value)?),
            "nic" => Some(self.nic(value)),
            "net" => {
                // Any `-net` keeps QEMU from making up a network of its own, so one has to stay.
                let is_nic = Properties::parse(value, "type").get("type") == Some("nic");
                Some(if is_nic { option } else { Opt::new(name, "none") })
            }
            "object" => object(option)?,
            "audiodev" => {
                Some(Opt::new(name, inside(value, "driver")?.only(&["id"]).led_by("driver", "none")))
            }
            "audio" => Some(Opt::new(
                name,
                Properties::parse(value, "driver").only(&["model"]).led_by("driver", "none"),
            )),
            "overcommit" => {
                let rest = Properties::parse(value, "").without(&["mem-lock"]);
                (!rest.is_empty()).then(|| Opt::new(name, rest.to_string()))
            }
            "readconfig" => {
                return Err(refused(
                    &option,
                    "gives options out of our sight; give them on the command line",
                ));
            }
            "tpmdev" => return Err(refused(&option, "a TPM cannot be moved")),
            "device" => {
                let driver = inside(value, "driver")?.get("driver").unwrap_or_default().to_owned();
                let of_the_host = ["vfio-", "vhost-", "usb-host"];
                if of_the_host.iter().any(|prefix| driver.starts_with(prefix)) {
                    return Err(refused(&option, "a device of the host cannot be moved; leave it out"));
                }
                Some(option)
            }
            _ => Some(option),
        })
    }

    fn blockdev(&mut self, value: &str) -> Result<Opt> {
        let node = inside(value, "driver")?;
        let name = node.get("node-name").unwrap_or_default().to_owned();
        let file = node
            .get("filename")
            .or_else(|| node.get("file.filename"))
            .or_else(|| self.files.get(node.get("file")?).map(String::as_str))
            .map(str::to_owned);
        let format = match node.get("driver") {
            Some("qcow2") => Format::Probe,
            _ => Format::Raw,
        };
        let size = match node.get("size").and_then(|size| size.parse().ok()) {
            Some(size) => size,
            None => file.as_deref().map_or(size::UNKNOWN, |file| size::of(file, format)),
        };
        let read_only = node.get("read-only").is_some_and(|word| matches!(word, "on" | "true"));
        self.files.extend(file.map(|file| (name.clone(), file)));
        let null = json!({
            "driver": "null-co", "node-name": name, "size": size, "read-zeroes": true, "read-only": read_only,
        });
        Ok(Opt::new("blockdev", null.to_string()))
    }

    fn netdev(&mut self, value: &str) -> Result<Opt> {
        let hub = self.next_hub();
        let netdev = inside(value, "type")?.only(&["id"]).led_by("type", "hubport");
        Ok(Opt::new("netdev", format!("{netdev},hubid={hub}")))
    }

    fn nic(&mut self, value: &str) -> Opt {
        let nic = Properties::parse(value, "type");
        if nic.get("type") == Some("none") {
            return Opt::new("nic", value);
        }
        let hub = self.next_hub();
        Opt::new("nic", format!("{},hubid={hub}", nic.only(NIC_KEYS).led_by("type", "hubport")))
    }

    fn next_hub(&mut self) -> u32 {
        self.hub += 1;
        self.hub
    }
}

/// `-hda file` and its kin: the whole value is a file name.
fn image(place: &str, file: &str) -> Opt {
    Opt::new("drive", null_drive(Properties::parse(place, ""), size::of(file, Format::Probe)))
}

fn drive(drive: &Properties, original: &str) -> Opt {
    let has_medium = drive.keys().any(|key| key == "file" || key == "driver" || key.starts_with("file."));
    if !has_medium {
        // An empty drive: there is nothing behind it.
        return Opt::new("drive", original);
    }
    let format = match drive.get("format").or_else(|| drive.get("driver")) {
        Some("raw") => Format::Raw,
        _ => Format::Probe,
    };
    let size = match (drive.get("file").or_else(|| drive.get("file.filename")), drive.get("size")) {
        (Some(file), _) => size::of(file, format),
        (None, Some(size)) => {
            return Opt::new("drive", null_drive(drive.clone().only(DRIVE_KEYS), size));
        }
        (None, None) => size::UNKNOWN,
    };
    Opt::new("drive", null_drive(drive.clone().only(DRIVE_KEYS), size))
}

fn null_drive(place: Properties, size: impl ToString) -> String {
    // Geometry is guessed from the first sector, which is not read from nowhere unless it is zeroes.
    let drive = place.with("driver", "null-co").with("size", size.to_string()).with("read-zeroes", "on");
    drive.to_string()
}

fn chardev(value: &str) -> Result<Opt> {
    Ok(Opt::new("chardev", inside(value, "backend")?.only(&["id", "mux"]).led_by("backend", "null")))
}

/// Memory comes from nowhere in particular; network filters and their like are left out.
fn object(option: Opt) -> Result<Option<Opt>> {
    let object = inside(option.text(), "qom-type")?;
    let kind = object.get("qom-type").unwrap_or_default();
    if kind.starts_with("memory-backend-") {
        let ram = object.only(MEMORY_KEYS).led_by("qom-type", "memory-backend-ram");
        return Ok(Some(Opt::new("object", ram)));
    }
    let on_the_network = kind.starts_with("filter-") || kind == "colo-compare";
    Ok((!on_the_network).then_some(option))
}

/// The inside of a value that may also be written as JSON.
fn inside(value: &str, implied: &str) -> Result<Properties> {
    if !value.starts_with('{') {
        return Ok(Properties::parse(value, implied));
    }
    let object: Map<String, Value> = serde_json::from_str(value)
        .map_err(|error| Error::option(value, format!("is no JSON object: {error}")))?;
    let mut properties = Properties::parse("", "");
    flatten(&mut properties, "", object);
    Ok(properties)
}

/// Writes nested members as QEMU's dotted keys.
fn flatten(properties: &mut Properties, prefix: &str, object: Map<String, Value>) {
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(inner) => flatten(properties, &format!("{key}."), inner),
            Value::String(text) => properties.push(&key, text),
            Value::Bool(on) => properties.push(&key, if on { "on" } else { "off" }),
            other => properties.push(&key, other.to_string()),
        }
    }
}

fn refused(option: &Opt, why: &str) -> Error {
    Error::option(&option.to_string(), why)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The options that come out, one a line, without the two that are always added.
    fn offline(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let line = CommandLine::parse(&without_backends(&words).unwrap()).unwrap();
        let mut lines: Vec<_> = line.0.iter().map(Opt::to_string).collect();
        assert_eq!(lines.split_off(lines.len() - 2), ["-display none", "-monitor none"]);
        lines
    }

    #[test]
    fn disks_keep_their_place_and_capacity() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; 1536]).unwrap();
        let path = file.path().to_str().unwrap();
        let full = format!("file={path},if=ide,index=1,format=raw,cache=none,id=a,,b,readonly=on");
        let node = format!("driver=raw,node-name=n,file.driver=file,file.filename={path}");
        let leaf = format!(r#"{{"driver":"file","filename":"{path}","node-name":"f"}}"#);
        let lines = offline(&[
            "-drive",
            &full,
            "-hda",
            path,
            "-drive",
            "if=none,id=cd,media=cdrom",
            "-blockdev",
            &node,
            "-blockdev",
            &leaf,
            "-blockdev",
            "raw,file=f,node-name=g,read-only=on",
            "-cdrom",
            "nbd://x",
        ]);
        let null = |node: &str, read_only: bool| {
            format!(
                r#"-blockdev {{"driver":"null-co","node-name":"{node}","size":1536,"read-zeroes":true,"read-only":{read_only}}}"#
            )
        };
        assert_eq!(
            lines,
            [
                "-drive if=ide,index=1,id=a,,b,readonly=on,driver=null-co,size=1536,read-zeroes=on",
                "-drive index=0,media=disk,driver=null-co,size=1536,read-zeroes=on",
                "-drive if=none,id=cd,media=cdrom",
                &null("n", false),
                &null("f", false),
                &null("g", true),
                "-drive index=2,media=cdrom,driver=null-co,size=1073741824,read-zeroes=on",
            ]
        );
    }

    #[test]
    fn nothing_talks_to_the_host() {
        let lines = offline(&[
            "-serial",
            "file:/tmp/x",
            "-serial",
            "chardev:c",
            "-serial",
            "none",
            "-chardev",
            "socket,id=c,path=/x,server=on,mux=on",
            "-netdev",
            "tap,id=n,ifname=t0,script=no",
            "-nic",
            "user,model=e1000,mac=52:54:00:00:00:01,hostfwd=tcp::1-:2",
            "-nic",
            "none",
            "-net",
            "user",
            "-net",
            "nic,model=rtl8139",
            "-object",
            "memory-backend-file,id=m,size=16M,mem-path=/x,share=on",
            "-object",
            "filter-dump,id=d,netdev=n,file=/x",
            "-object",
            "iothread,id=i",
            "-audiodev",
            "pa,id=a,server=x",
            "-overcommit",
            "mem-lock=on",
            "-qmp",
            "stdio",
            "-daemonize",
            "-incoming",
            "defer",
            "-vnc",
            ":1",
            "-nographic",
            "-m",
            "16",
        ]);
        assert_eq!(
            lines,
            [
                "-serial null",
                "-serial chardev:c",
                "-serial none",
                "-chardev null,id=c,mux=on",
                "-netdev hubport,id=n,hubid=4001",
                "-nic hubport,model=e1000,mac=52:54:00:00:00:01,hubid=4002",
                "-nic none",
                "-net none",
                "-net nic,model=rtl8139",
                "-object memory-backend-ram,id=m,size=16M,share=on",
                "-object iothread,id=i",
                "-audiodev none,id=a",
                "-m 16",
            ]
        );
    }

    #[test]
    fn what_nothing_can_stand_in_for_is_refused_by_name() {
        for (words, start) in [
            (["-readconfig", "x.cfg"], "QEMU option -readconfig x.cfg: gives options"),
            (["-device", "vfio-pci,host=0:1"], "QEMU option -device vfio-pci,host=0:1: a device of the host"),
            (["-blockdev", "{]"], "QEMU option {]: is no JSON object"),
        ] {
            let error = without_backends(&words.map(str::to_owned)).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
