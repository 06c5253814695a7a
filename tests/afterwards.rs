//! What becomes of a guest once it is here: its network, its configuration, what owns its QEMU, its next start.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{Run, command, finish, fixture, plain, qemus, text, wait_within, with_config};
use hyperferry_testkit::{checkout, cut::GO, lab};
use hyperferry_translate::{cpu_features, refusal::Policy, source::Source};
use serde_json::{Value, json};

/// The hardware address of the card that fixtures have.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest with a display, a network card and a disk.
fn furnished() -> Vec<u8> {
    bootable("xen/witness-stdvga-e1000")
}

/// A guest that boots from its disk: it came with a kernel that is not here.
fn bootable(name: &str) -> Vec<u8> {
    with_config(&fixture(name), |config| {
        config["b_info"].as_object_mut().unwrap().remove("kernel");
    })
}

/// A disk that says `cold start` on the serial port when it is booted from.
fn disk() -> Vec<u8> {
    let mut disk = lab::disk();
    // xor ax,ax; mov ds,ax; mov si,0x7c20; mov dx,0x3f8; next: lodsb; test al,al; jz end; out dx,al; jmp next; end: hlt; jmp end
    let code = [
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x20, 0x7c, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb,
        0xf8, 0xf4, 0xeb, 0xfd,
    ];
    disk[..code.len()].copy_from_slice(&code);
    disk[0x20..0x2d].copy_from_slice(b"cold start\r\n\0");
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

#[track_caller]
fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, done);
}

fn end(pid: u32) {
    let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
}

/// A folder with a stream, a disk and what a guest makes of them.
struct Place(tempfile::TempDir);

impl Place {
    fn new(stream: &[u8]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("stream"), stream).unwrap();
        fs::write(place.path("disk"), disk()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    /// The command, as far as it is the same for all of these tests.
    fn command(&self, qemu: &Path, verb: &[&str]) -> Command {
        let mut command = command(verb);
        command.args(["--qemu", text(qemu), "--accel", "tcg", "--allow", "tsc-frequency"]);
        command.arg("--map-disk").arg(format!("hda={}", text(&self.path("disk"))));
        command.arg("--serial").arg(self.path("serial"));
        command
    }

    fn land(&self, qemu: &Path) -> Command {
        self.command(qemu, &["land", text(&self.path("stream"))])
    }

    /// Starts it and waits until the guest runs.
    fn start(&self, mut command: Command) -> Landed<'_> {
        let errors = fs::File::create(self.path("stderr")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
        let mut landed = Landed { place: self, child };
        wait_for("running guest", || {
            let said = self.read("stderr");
            assert!(landed.child.try_wait().unwrap().is_none(), "{said}");
            said.contains("the guest runs")
        });
        landed
    }
}

/// A guest that runs here until this is dropped.
struct Landed<'a> {
    place: &'a Place,
    child: Child,
}

impl Landed<'_> {
    fn said(&self) -> String {
        self.place.read("stderr")
    }

    fn end(self) {}
}

impl Drop for Landed<'_> {
    fn drop(&mut self) {
        // It takes its QEMU with it.
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// QEMU's monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// What lets QEMU listen.
    fn arguments(place: &Place) -> [String; 2] {
        ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", text(&place.path("qmp")))]
    }

    fn of(place: &Place) -> Self {
        let mut monitor = Self(BufReader::new(UnixStream::connect(place.path("qmp")).unwrap()));
        monitor.ask("qmp_capabilities", &json!({}));
        monitor
    }

    #[track_caller]
    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        // In one piece: QEMU does what it is told before it has seen the end of the line, and may be gone by then.
        let question = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": 7 }));
        self.0.get_mut().write_all(question.as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "QEMU ended");
            let answer: Value = serde_json::from_str(&line).unwrap();
            if answer["id"] == 7 {
                assert!(answer.get("error").is_none(), "{command}: {answer}");
                return answer["return"].clone();
            }
        }
    }

    fn human(&mut self, line: &str) -> String {
        self.ask("human-monitor-command", &json!({ "command-line": line })).as_str().unwrap().to_owned()
    }
}

/// The far end of a cable that leads out of a guest's first card.
struct Cable(UnixDatagram);

impl Cable {
    /// Has to be there before QEMU sends.
    fn new(place: &Place) -> Self {
        let socket = UnixDatagram::bind(place.path("far")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(socket)
    }

    /// What plugs it into a card that is left unconnected.
    fn arguments(place: &Place) -> [String; 4] {
        let (near, far) = (place.path("near"), place.path("far"));
        let ends =
            format!("local.type=unix,local.path={},remote.type=unix,remote.path={}", text(&near), text(&far));
        [
            "-netdev".into(),
            format!("dgram,id=cable,{ends}"),
            "-netdev".into(),
            "hubport,id=plug,hubid=0,netdev=cable".into(),
        ]
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0; 4096];
        let length = self.0.recv(&mut frame).unwrap();
        frame.truncate(length);
        frame
    }
}

/// Whether a frame is a reverse ARP request to all from this address: what switches learn from.
fn announces(frame: &[u8], mac: [u8; 6]) -> bool {
    frame.starts_with(&[0xff; 6]) && frame[6..12] == mac && frame[12..14] == [0x80, 0x35]
}

#[test]
fn a_guest_announces_itself_more_than_once() {
    for qemu in qemus() {
        for name in ["xen/witness-stdvga-e1000", "xen/witness-cirrus-rtl8139"] {
            let place = Place::new(&fixture(name));
            let cable = Cable::new(&place);
            let mut command = place.land(&qemu);
            command.arg("--").args(Cable::arguments(&place));
            let landed = place.start(command);
            // Five are QEMU's own.
            for count in 0..10 {
                let frame = cable.frame();
                assert!(announces(&frame, MAC), "{name}, frame {count}: {frame:02x?}\n{}", landed.said());
            }
        }
    }
}

#[test]
fn what_qemu_has_is_what_the_guest_was_configured_with() {
    for qemu in qemus() {
        let stream = with_config(&furnished(), |config| {
            config["disks"][0]["format"] = "qcow2".into();
            let drive = json!({"vdev": "hdc", "format": "empty", "is_cdrom": 1, "pdev_path": ""});
            config["disks"].as_array_mut().unwrap().push(drive);
        });
        let place = Place::new(&stream);
        let (raw, image) = (place.path("disk"), place.path("qcow2"));
        let convert = ["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&image)];
        let converted = Command::new(qemu.with_file_name("qemu-img")).args(convert).status().unwrap();
        assert!(converted.success());
        fs::rename(&image, &raw).unwrap();
        let mut command = place.land(&qemu);
        command.args(["--vnc", &format!("unix:{}/{{name}}.vnc", text(place.0.path()))]);
        command.arg("--").args(Monitor::arguments(&place));
        let landed = place.start(command);
        let mut monitor = Monitor::of(&place);
        let mut ask = |command: &str, arguments: Value| monitor.ask(command, &arguments);

        let outline = Source::open(stream.as_slice(), Policy::default()).unwrap().outline().clone();
        assert_eq!(ask("query-name", json!({}))["name"], "fixture");
        assert_eq!(ask("query-uuid", json!({}))["UUID"], "4e7ba34e-f54d-4036-899b-bc84824acafb");
        assert_eq!(ask("query-memory-size-summary", json!({}))["base-memory"], 16 << 20);
        assert_eq!(ask("query-cpus-fast", json!({})).as_array().unwrap().len(), 1);
        assert!(Path::new(&place.path("fixture.vnc")).exists(), "{}", landed.said());
        assert_eq!(ask("query-vnc", json!({}))["enabled"], true);

        let blocks = ask("query-block", json!({}));
        let block = |name: &str| {
            let of =
                |block: &&Value| block["device"] == name || block["qdev"].as_str().unwrap().contains(name);
            blocks.as_array().unwrap().iter().find(of).unwrap_or_else(|| panic!("{name}: {blocks}")).clone()
        };
        let hda = block("hda");
        let inserted = &hda["inserted"];
        assert_eq!((&inserted["drv"], &inserted["ro"]), (&"qcow2".into(), &false.into()));
        assert_eq!(inserted["image"]["filename"], text(&raw));
        let drives = blocks.as_array().unwrap();
        assert!(
            drives.len() == 2
                && drives.iter().any(|drive| drive["removable"] == true && drive.get("inserted").is_none()),
            "{blocks}"
        );

        let cards = ask("query-pci", json!({}));
        let at = |slot: u64| {
            let devices = cards[0]["devices"].as_array().unwrap();
            let device = devices.iter().find(|device| device["slot"] == slot && device["function"] == 0);
            device.map(|device| {
                (device["id"]["vendor"].as_u64().unwrap(), device["id"]["device"].as_u64().unwrap())
            })
        };
        assert_eq!((at(2), at(3)), (Some((0x1234, 0x1111)), Some((0x8086, 0x100e))), "VGA and e1000");

        let cpu = "/machine/unattached/device[0]";
        let mut property = |name: &str| ask("qom-get", json!({ "path": cpu, "property": name }));
        assert_eq!(property("vendor").as_str().unwrap(), cpu_features::vendor(&outline.cpuid).unwrap());
        let (family, model, stepping) = cpu_features::signature(&outline.cpuid).unwrap();
        let here = ["family", "model", "stepping"].map(|name| property(name).as_u64().unwrap());
        assert_eq!(here, [family, model, stepping].map(u64::from));
        for (name, offered) in cpu_features::offered(&outline.cpuid).filter(|(_, offered)| !offered) {
            assert_eq!(property(name), offered, "{name} was hidden from the guest");
        }
        let network = monitor.human("info network");
        assert!(network.contains("e1000") && network.contains("macaddr=52:54:00:12:34:56"), "{network}");
        let serial = monitor.human("info chardev");
        assert!(serial.contains("serial0: filename=file"), "{serial}");
    }
}

#[test]
fn a_qemu_that_stays_holds_nothing_of_the_login_that_brought_it() {
    for qemu in qemus() {
        let place = Place::new(&plain());
        let journal = place.path("journal");
        let mut receive = place.command(&qemu, &["receive", "--journal", text(&journal)]);
        // Standard output and error are pipes: this comes back only when nobody holds them any more.
        let run = finish(&mut receive, Some(&[&plain(), GO].concat())).expect(0);
        let (_, rest) = run.stderr.split_once("QEMU process ").unwrap();
        let pid: u32 = rest.split(',').next().unwrap().parse().unwrap();
        let open = |number: u32| fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        let ours = [0, 1, 2].map(open);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let log = fs::read_to_string(&ours[2]);
        end(pid);
        assert_eq!(ours[..2], ["/dev/null", "/dev/null"].map(PathBuf::from));
        assert!(
            ours[2].starts_with(&journal) && ours[2].extension().is_some_and(|end| end == "log"),
            "{ours:?}"
        );
        assert!(log.is_ok());
        // State, parent, process group: a terminal's signals go to another one.
        let group = stat.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap().to_owned();
        assert_eq!(group, pid.to_string());
    }
}

#[test]
fn a_terminal_that_is_closed_leaves_the_guest_running() {
    for qemu in qemus().into_iter().take(1) {
        let place = Place::new(&plain());
        let mut land = place.land(&qemu);
        land.args(["--detach", "--progress", "none"]);
        let words = std::iter::once(land.get_program()).chain(land.get_args());
        let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        // A session of its own on a terminal of its own, gone when its leader is.
        let run =
            finish(Command::new("script").args(["-qec", &words.join(" "), "/dev/null"]), None).expect(0);
        let (_, rest) = run.stdout.split_once("left running, process ").unwrap();
        let pid: u32 = rest.trim().parse().unwrap();
        let lines = || place.read("serial").lines().count();
        let before = lines();
        wait_for("further beats", || lines() > before + 2);
        end(pid);
    }
}

/// Xen's firmware lies in the guest's RAM, and cannot start a machine of QEMU's.
#[test]
fn a_guest_that_reboots_ends_its_qemu() {
    for qemu in qemus() {
        let place = Place::new(&furnished());
        let mut command = place.land(&qemu);
        command.arg("--").args(Monitor::arguments(&place));
        let mut landed = place.start(command);
        let mut monitor = Monitor::of(&place);
        monitor.ask("system_reset", &json!({}));
        wait_for("end of QEMU", || landed.child.try_wait().unwrap().is_some());
        assert!(landed.said().contains("QEMU ended: host-qmp-system-reset"), "{}", landed.said());
    }
}

#[test]
fn a_script_starts_the_guest_anew_and_not_beside_itself() {
    for qemu in qemus() {
        let place = Place::new(&furnished());
        let mut command = place.land(&qemu);
        command.args(["--unit", "script", "--unit-directory", text(place.0.path())]);
        let mark = place.path("pid");
        command.args(["--", "-pidfile", text(&mark)]);
        let landed = place.start(command);
        let script = place.path("hyperferry-fixture.sh");
        wait_for("script", || script.exists() && landed.said().contains("starts it again"));
        finish(&mut Command::new(&script), None).expect(1).says("still runs");
        landed.end();
        fs::remove_file(place.path("serial")).unwrap();
        let mut again = Command::new(&script).args(["-name", "again"]).spawn().unwrap();
        wait_for("cold start", || place.read("serial").contains("cold start"));
        assert!(mark.exists(), "arguments of the user's own");
        again.kill().unwrap();
        again.wait().unwrap();
    }
}

#[test]
fn what_cannot_be_written_is_said_before_anything_moves() {
    for qemu in qemus().into_iter().take(1) {
        let place = Place::new(&plain());
        fs::write(place.path("file"), "").unwrap();
        let inside = place.path("file/units");
        for option in [["--unit-directory", text(&inside)], ["--libvirt-xml", text(&inside)]] {
            let mut command = place.land(&qemu);
            command.args(["--unit", "script", "--unit-directory", text(place.0.path())]);
            let mut command = if option[0] == "--libvirt-xml" { command } else { place.land(&qemu) };
            if option[0] == "--unit-directory" {
                command.args(["--unit", "script"]);
            }
            finish(command.args(option), None).expect(5).says("file/units");
            assert!(!place.path("serial").exists(), "no QEMU was started");
        }
    }
}

/// How it ended: well, unless this machine lacks what it takes.
#[track_caller]
fn where_possible(what: &str, command: &mut Command) -> Option<Run> {
    let run = finish(command, None);
    if run.code == 77 || run.stderr.contains("unshare failed") {
        eprintln!("SKIPPED {what}: {}", run.stderr.trim());
        return None;
    }
    Some(run.expect(0))
}

/// Where a systemd can be started, the user's and the system's.
#[test]
fn systemd_owns_the_qemu_and_starts_the_guest_anew() {
    let script = checkout().join("tests/systemd.sh");
    for (qemu, unit) in qemus().iter().zip(["systemd-user", "systemd"]) {
        let place = Place::new(&furnished());
        let mut land = place.land(qemu);
        land.args(["--detach", "--unit", unit]);
        let mut command = Command::new("unshare");
        command.arg("-m").arg(&script).arg(place.path("serial"));
        command.arg(land.get_program()).args(land.get_args());
        where_possible(unit, &mut command);
    }
}

/// Guests, whether they have an HPET, and what the command line that libvirt makes of their domains has to say.
const BY_LIBVIRT: [(&str, &str, &[&str]); 2] = [
    (
        "xen/witness-stdvga-e1000",
        "True",
        &[
            "-m\n16\n",
            "\"size\":16777216",
            "-smp\n1,sockets=1,cores=1,threads=1",
            "vmport=off",
            "-uuid\n4e7ba34e-f54d-4036-899b-bc84824acafb",
            "-rtc\nbase=utc",
            "{\"driver\":\"ide-hd\",\"bus\":\"ide.0\",\"unit\":0,",
            "\"driver\":\"VGA\",\"id\":\"video0\",\"vgamem_mb\":16,\"bus\":\"pci.0\",\"addr\":\"0x2\"}",
            "\"driver\":\"e1000\",",
            "\"mac\":\"52:54:00:12:34:56\",\"bus\":\"pci.0\",\"addr\":\"0x3\"}",
            "{\"driver\":\"isa-serial\",\"chardev\":\"charserial0\",",
        ],
    ),
    (
        "xen/witness-cirrus-rtl8139",
        "False",
        &[
            "\"driver\":\"cirrus-vga\",\"id\":\"video0\",\"bus\":\"pci.0\",\"addr\":\"0x2\"}",
            "-global\ncirrus-vga.vgamem_mb=8\n",
            "-machine\nhpet=off\n",
            "\"driver\":\"rtl8139\",",
            "\"mac\":\"52:54:00:12:34:56\",\"bus\":\"pci.0\",\"addr\":\"0x3\"}",
        ],
    ),
];

/// Where a libvirt of its own can be started: a guest boots in the machine that it had.
#[test]
fn libvirt_starts_the_domain() {
    for qemu in qemus() {
        let guests = BY_LIBVIRT.map(|(name, hpet, wanted)| {
            let place = Place::new(&with_config(&bootable(name), |config| {
                config["b_info"]["type.hvm"]["hpet"] = hpet.into();
            }));
            let mut command = place.land(&qemu);
            command.args(["--seconds", "0", "--libvirt-xml", text(&place.path("{name}.xml"))]);
            finish(&mut command, None).expect(0).says("fixture.xml");
            (name, place, wanted)
        });
        let script = checkout().join("tests/libvirt.sh");
        let mut command = Command::new("unshare");
        command.arg("-mn").arg(&script).arg("cold start");
        command.args(guests.iter().map(|(_, place, _)| place.path("fixture.xml")));
        let Some(run) = where_possible("libvirt", &mut command) else { return };
        let mut rest = run.stdout.as_str();
        for (name, place, wanted) in guests.iter().rev() {
            let (before, line) = rest.split_once(text(&place.path("fixture.xml"))).unwrap();
            rest = before;
            let machine = line.split("-machine\n").nth(1).unwrap();
            assert!(machine.starts_with("pc-i440fx-"), "{name}: not the machine that it has: {machine}");
            // The last one counts.
            let cpu = line.rsplit("-cpu\n").next().unwrap();
            assert!(cpu.starts_with("max,vendor=AuthenticAMD,family=23,model=1,"), "{name}: {cpu}");
            for wanted in *wanted {
                assert!(line.contains(wanted), "{name}: {wanted} is not in\n{line}");
            }
            assert!(line.contains(&format!("\"filename\":\"{}\"", text(&place.path("disk")))), "{line}");
        }
    }
}

#[test]
fn a_disk_that_is_mapped_to_nowhere_is_said_to_be_that() {
    let place = Place::new(&furnished());
    let stream = place.path("stream");
    let says = |more: &[&str], words: &str| {
        let arguments = [&["qemu-args", text(&stream), "--accel", "tcg"], more].concat();
        finish(&mut command(&arguments), None).expect(0).says(words);
    };
    says(&[], "hda is /root/fixture.disk at the source, and not here");
    says(&["--map-disk", "hda=/nowhere/disk"], "hda was mapped to /nowhere/disk, which is not here");
}

/// Where a network namespace can be had.
#[test]
fn a_card_is_plugged_into_a_tap_device() {
    const TAP: &str =
        "ip tuntap add t0 mode tap && ip link set t0 up || exit 77; \"$@\" && cat /proc/net/dev";
    let stream = with_config(&furnished(), |config| config["nics"][0]["bridge"] = "xenbr0".into());
    for qemu in qemus() {
        let place = Place::new(&stream);
        let mut land = place.land(&qemu);
        land.args(["--map-bridge", "xenbr0=tap:t0", "--seconds", "3"]);
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", TAP, "sh"]).arg(land.get_program()).args(land.get_args());
        let Some(run) = where_possible("a tap device", &mut command) else { return };
        // Bytes and packets that came out of QEMU.
        let line = run.stdout.lines().find_map(|line| line.trim().strip_prefix("t0:")).unwrap();
        let packets: u32 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(packets >= 10, "{packets} frames only: {}\n{}", run.stdout, run.stderr);
    }
}
