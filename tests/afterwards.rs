//! What becomes of a guest once it is here: its network, its configuration, the QEMU that has it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

mod common;

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use common::{command, fixture, qemus, text};
use hyperferry_testkit::lab;

/// The hardware address of the card that fixtures have.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// A guest that runs here until this is dropped.
struct Landed {
    folder: tempfile::TempDir,
    child: Child,
}

impl Landed {
    /// Lands a stream in a folder of its own; `more` is for QEMU.
    fn start(qemu: &Path, stream: &[u8], more: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("stream"), stream).unwrap();
        fs::write(place("disk"), lab::disk()).unwrap();
        let disk = format!("hda={}", text(&place("disk")));
        let (stream, serial) = (place("stream"), place("serial"));
        let arguments = ["land", text(&stream), "--qemu", text(qemu), "--accel", "tcg", "--map-disk", &disk];
        let mut command = command(&arguments);
        command.args(["--serial", text(&serial), "--allow", "tsc-frequency", "--"]);
        command.args(more(folder.path()));
        let errors = fs::File::create(place("stderr")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
        Self { folder, child }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap()
    }
}

impl Drop for Landed {
    fn drop(&mut self) {
        // It takes its QEMU with it.
        let _ = std::process::Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

/// The far end of a cable that leads out of a guest's first card.
struct Cable {
    socket: UnixDatagram,
}

impl Cable {
    fn path(folder: &Path) -> PathBuf {
        folder.join("cable")
    }

    /// Has to be there before QEMU sends.
    fn new(folder: &Path) -> Self {
        let socket = UnixDatagram::bind(Self::path(folder)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { socket }
    }

    /// What plugs it into the card that is left unconnected.
    fn arguments(folder: &Path) -> Vec<String> {
        let (near, far) = (folder.join("near"), Self::path(folder));
        let ends =
            format!("local.type=unix,local.path={},remote.type=unix,remote.path={}", text(&near), text(&far));
        let netdevs = [format!("dgram,id=cable,{ends}"), "hubport,id=plug,hubid=0,netdev=cable".to_owned()];
        netdevs.into_iter().flat_map(|netdev| ["-netdev".to_owned(), netdev]).collect()
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0; 4096];
        let length = self.socket.recv(&mut frame).unwrap();
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
            let mut cable = None;
            let landed = Landed::start(&qemu, &fixture(name), |folder| {
                cable = Some(Cable::new(folder));
                Cable::arguments(folder)
            });
            let cable = cable.unwrap();
            // Five are QEMU's own.
            for count in 0..10 {
                let frame = cable.frame();
                assert!(announces(&frame, MAC), "{name}, frame {count}: {frame:02x?}\n{}", landed.said());
            }
        }
    }
}
