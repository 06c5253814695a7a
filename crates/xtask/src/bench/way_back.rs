//! The way back: a QEMU sends its guest through `hyperferry send`, and as it is through `cat`.
//!
//! Both have the same surroundings: QEMU writes into a UNIX socket as fast as it goes, the guest stands still, and what
//! is measured writes into a socket with the room that `hyperferry send` gives its own. It has a return path
//! both times, which `hyperferry send` cannot do without, and which costs QEMU a fifth of its speed. A QEMU that has sent its guest does
//! not send it again, so each way has its own. The guest's memory is a file that both of them map; its firmware finds
//! nothing to boot, and waits.

use super::seat::{self, Seat};
use super::{Taken, finish, joined, relay};
use crate::sh::command;
use anyhow::{Context, Result, bail};
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What QEMU needs to be there.
const PATIENCE: Duration = Duration::from_secs(30);
/// By then the firmware has nothing more to do.
const SETTLED: Duration = Duration::from_secs(3);
/// With no byte for so long there is none any more.
const OVER: Duration = Duration::from_secs(1);
/// As `hyperferry send` has it where nobody asks for less, bytes a second.
const BANDWIDTH: u64 = 1 << 40;
/// What QEMU with a return path waits for when it has sent its last byte: MIG_RP_MSG_SHUT, four bytes, no error.
const SHUT: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];
/// Room in the socket that `hyperferry send` makes (`crates/relay/src/send/receiver.rs`).
const ROOM: usize = 1 << 20;

/// A guest in a QEMU of its own.
pub(super) struct Guest {
    child: Child,
    folder: tempfile::TempDir,
}

impl Guest {
    /// Starts one with a file for its memory.
    pub(super) fn start(qemu: &Path, memory: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let size = fs::metadata(memory)?.len();
        // Named as the machine itself would name it: the stream says that name.
        let backend = format!(
            "memory-backend-file,id=pc.ram,size={size},mem-path={},share=off,x-use-canonical-path-for-ramblock-id=off",
            memory.display()
        );
        let monitor = format!("unix:{},server=on,wait=off", folder.path().join("qmp").display());
        let mut command = command(qemu, ["-machine", "pc,memory-backend=pc.ram", "-accel", "tcg"]);
        // What the bundled template can show its guests (tests/lab/README.md).
        command.args(["-cpu", "qemu64,-cx16", "-nodefaults", "-display", "none", "-name", "bench"]);
        command.args(["-object", &backend, "-m", &format!("{}M", size >> 20), "-qmp", &monitor]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let child = seat::within(Seat::Feeder, || command.spawn()).context("cannot start QEMU")?;
        let guest = Self { child, folder };
        guest.monitor()?;
        thread::sleep(SETTLED);
        Ok(guest)
    }

    /// Sends it to Xen.
    pub(super) fn send(self, hyperferry: &Path) -> Result<Taken> {
        let took = self.file("took");
        let mut send = command(hyperferry, ["send".as_ref(), self.file("qmp").as_os_str()]);
        send.args(["--progress", "none", "--journal"]).arg(self.file("journal"));
        send.arg("--").arg(std::env::current_exe()?).arg("receiver").arg(&took);
        send.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = seat::within(Seat::Measured, || send.spawn()).context("cannot start hyperferry send")?;
        let peak_kib = finish(child)?;
        let elapsed = Duration::from_micros(fs::read_to_string(took)?.parse()?);
        Ok(Taken { elapsed, peak_kib })
    }

    /// Sends it as it is, through `cat`.
    pub(super) fn copy(self) -> Result<Taken> {
        let stream = self.file("stream");
        let listener = UnixListener::bind(&stream)?;
        let mut monitor = self.monitor()?;
        monitor.execute("stop", json!({}))?;
        let capabilities = json!([{ "capability": "return-path", "state": true }]);
        monitor.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
        monitor.execute("migrate-set-parameters", json!({ "max-bandwidth": BANDWIDTH }))?;
        monitor.execute("migrate", json!({ "uri": format!("unix:{}", stream.display()) }))?;
        let (from, to) = UnixStream::pair()?;
        set_socket_send_buffer_size_force(&to, ROOM).or_else(|_| set_socket_send_buffer_size(&to, ROOM))?;
        // Behind its last byte QEMU waits, and no end of the stream comes.
        from.set_read_timeout(Some(OVER))?;
        let sink = thread::spawn(|| relay::drain(from));
        let from_qemu = listener.accept()?.0;
        let mut return_path = from_qemu.try_clone()?;
        let mut cat = Command::new("cat");
        cat.stdin(OwnedFd::from(from_qemu)).stdout(OwnedFd::from(to)).stderr(Stdio::piped());
        let child = seat::within(Seat::Measured, || cat.spawn())?;
        // It holds the ends of the sockets.
        drop(cat);
        let elapsed = joined(sink)??;
        return_path.write_all(&SHUT)?;
        drop(return_path);
        Ok(Taken { elapsed, peak_kib: finish(child)? })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn monitor(&self) -> Result<Monitor> {
        let began = Instant::now();
        loop {
            match UnixStream::connect(self.file("qmp")) {
                Ok(socket) => return Monitor::greet(socket),
                Err(error) if began.elapsed() > PATIENCE => {
                    return Err(error).context("QEMU does not listen");
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // `hyperferry send` has ended its own.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// QEMU's monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn greet(socket: UnixStream) -> Result<Self> {
        let mut monitor = Self(BufReader::new(socket));
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<()> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        while self.0.read_line(&mut line)? > 0 {
            // The greeting and events are neither.
            let answer: Value = serde_json::from_str(&line)?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            line.clear();
        }
        bail!("QEMU has ended before it answered {command}")
    }
}
