//! The end of a live move, in which the guest stands still: what of it is the receiver's.

use super::ALLOWED;
use crate::sh::{Run, command};
use anyhow::{Context, Result};
use hyperferry_testkit::Fixture;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// Four vCPUs, and little memory.
const FIXTURE: &str = "xen/witness-4vcpu";
/// The last pages and the state: a sender with its guest suspended.
const END: usize = 128 << 10;
/// By then all that came before has been taken.
const SETTLED: Duration = Duration::from_secs(2);
/// What the two sides say (`formats/xen/xl.md`): lengths of the receiver's three sentences, and the sender's permission.
const BANNER: usize = 54;
const READY: usize = 34;
const REPORT: usize = 40;
const GO: &[u8] = b"domain is yours, you are cleared to unpause\0";

/// From the end of the stream to "ready", and from "go" to the report that the guest runs. QEMU emulates the guest.
pub(super) fn measure(binary: &Path, qemu: &Path) -> Result<[Duration; 2]> {
    let stream = Fixture::named(FIXTURE)?.stream()?;
    let (before, end) = stream.split_at(stream.len().saturating_sub(END));
    let journal = tempfile::tempdir()?;
    let mut receive = command(binary, ["receive", "--accel", "tcg", "--progress", "none", "--qemu"]);
    receive.arg(qemu).arg("--journal").arg(journal.path());
    receive.args(ALLOWED.iter().flat_map(|name| ["--allow", name]));
    receive.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = receive.spawn().context("cannot start the receiver")?;
    let mut to = child.stdin.take().context("no pipe to the receiver")?;
    let mut from = child.stdout.take().context("no pipe from the receiver")?;
    let mut hear = |length: usize| from.read_exact(&mut vec![0; length]);
    hear(BANNER)?;
    to.write_all(before)?;
    thread::sleep(SETTLED);

    let began = Instant::now();
    to.write_all(end)?;
    hear(READY)?;
    let loaded = began.elapsed();
    let began = Instant::now();
    to.write_all(GO)?;
    hear(REPORT)?;
    let running = began.elapsed();

    drop(to);
    let said = String::from_utf8_lossy(&child.wait_with_output()?.stderr).into_owned();
    let process = said.split_once("QEMU process ").and_then(|(_, rest)| rest.split_once(','));
    let (process, _) = process.context("the receiver does not name its QEMU")?;
    command("kill", ["-9", process]).quiet()?;
    Ok([loaded, running])
}
