//! `cargo xtask bench`: how fast a large stream is converted and relayed, and with how much memory.
//!
//! * `convert`, file to file, beside `cp` of the same file.
//! * The relay: the stream comes in by one socket and the translated one goes out by another, as between `xl migrate` and
//!   QEMU; beside `cat`, which only copies, with the same sockets and in the same steps of 128 KiB.
//! * The end of a live move: what of the time in which the guest stands still is the receiver's.
//! * The way back: `hyperferry send` of a QEMU's guest into a pipe, as to `xl migrate-receive`; beside `cat`, which
//!   passes on what the same QEMU sends by itself.
//! * The relay again with a guest several times as large, of which only a part was ever written: its memory must not
//!   grow with the guest's.
//!
//! Each round runs all ways in turn, so that they meet the same page cache and the same load; what counts is the ratio
//! within the run, not the time.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "figures for people")]

mod hand_over;
pub(crate) mod receiver;
mod relay;
mod seat;
mod stream;
mod way_back;

use crate::sh::{command, step};
use crate::{ci, qemu};
use anyhow::{Context, Result, ensure};
use hyperferry_testkit::tools;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use stream::Size;
use way_back::Guest;

/// What every round converts.
const LARGE: Size = Size { memory_kib: 2 << 20, sparse: 1 };
/// What the relay's memory is measured with.
const LARGER: Size = Size { memory_kib: 8 << 20, sparse: 16 };
/// What the fixture needs to be allowed: this is about speed.
const ALLOWED: [&str; 4] = ["hpet", "tsc-frequency", "lapic-timer", "cpu-features"];

/// Runs the benchmark.
pub(crate) fn run(rounds: usize, directory: &Path, instead: Option<PathBuf>) -> Result<()> {
    qemu::provide(false)?;
    let binary = instead.map_or_else(ci::release_binary, Ok)?;
    let bench = Bench { binary, qemu: tools::qemu("7.2")? };
    let (stream, output) = (directory.join("bench.xen"), directory.join("bench.out"));
    step(format!("writing a stream of {} MiB to {}", LARGE.memory_kib >> 10, stream.display()));
    stream::enlarge(&stream, &LARGE)?;
    let bytes = fs::metadata(&stream)?.len();
    let [mut cp, mut conversion, mut copy, mut relayed] = [const { Vec::new() }; 4];
    let [mut convert_kib, mut relay_kib] = [0; 2];
    let [mut state, mut loaded, mut running] = [const { Vec::new() }; 3];
    for round in 0..=rounds {
        let copied = timed(command("cp", [&stream, &output]))?;
        fs::remove_file(&output)?;
        let report = directory.join("bench.json");
        let converted = timed(bench.convert(&stream, &output, Some(&report)))?;
        fs::remove_file(&output)?;
        let document: Value = serde_json::from_slice(&fs::read(&report)?)?;
        fs::remove_file(&report)?;
        let plain = relay::through(Command::new("cat"), File::open(&stream)?)?;
        let through = relay::through(bench.relay(), File::open(&stream)?)?;
        let [to_ready, to_running] = hand_over::measure(&bench.binary, &bench.qemu)?;
        // The first round finds memory that was never used.
        if round > 0 {
            cp.push(copied.elapsed);
            conversion.push(converted.elapsed);
            copy.push(plain.elapsed);
            relayed.push(through.elapsed);
            loaded.push(to_ready);
            running.push(to_running);
            convert_kib = convert_kib.max(converted.peak_kib);
            relay_kib = relay_kib.max(through.peak_kib);
            let state_us = document.get("state_us").and_then(Value::as_u64);
            state.push(Duration::from_micros(state_us.context("the report has no state_us")?));
        }
    }
    stream::enlarge(&stream, &LARGER)?;
    let larger = relay::through(bench.relay(), File::open(&stream)?)?;
    fs::remove_file(&stream)?;
    let memory = directory.join("bench.ram");
    step(format!("writing a guest's memory of {} MiB to {}", LARGE.memory_kib >> 10, memory.display()));
    stream::memory(&memory, LARGE.memory_kib)?;
    let [mut forwarded, mut sent] = [const { Vec::new() }; 2];
    let mut send_kib = 0;
    for round in 0..=rounds {
        let plain = Guest::start(&bench.qemu, &memory)?.copy()?;
        let through = Guest::start(&bench.qemu, &memory)?.send(&bench.binary)?;
        if round > 0 {
            forwarded.push(plain.elapsed);
            sent.push(through.elapsed);
            send_kib = send_kib.max(through.peak_kib);
        }
    }
    fs::remove_file(&memory)?;

    let [cp, conversion, copy, relayed, forwarded, sent] =
        [cp, conversion, copy, relayed, forwarded, sent].map(median);
    let [state, loaded, running] = [state, loaded, running].map(|times| median(times).as_secs_f64() * 1e3);
    let row = |what: &str, took: Duration, than: Duration, whom: &str| {
        let rate = bytes as f64 / 1e6 / took.as_secs_f64();
        let ratio = than.as_secs_f64() / took.as_secs_f64();
        println!("{what:19} {:.2} s, {rate:5.0} MB/s, {ratio:.2}x {whom}", took.as_secs_f64());
    };
    println!("stream              {} MB, {rounds} rounds, medians", bytes / 1_000_000);
    row("cp", cp, cp, "cp");
    row("hyperferry convert", conversion, cp, "cp");
    row("cat", copy, copy, "cat");
    row("hyperferry relay", relayed, copy, "cat");
    row("cat from QEMU", forwarded, forwarded, "cat");
    row("hyperferry send", sent, forwarded, "cat");
    let [convert, relay, send] = [convert_kib, relay_kib, send_kib].map(|kib| kib >> 10);
    println!("peak memory         convert {convert} MiB, relay {relay} MiB, send {send} MiB");
    let gib = LARGER.memory_kib >> 20;
    println!("                    relay of a guest with {gib} GiB {} MiB", larger.peak_kib >> 10);
    println!("device state        {state:.2} ms for 8 vCPUs, last page to last byte");
    println!(
        "end of a live move  {loaded:.0} ms from the end of the stream to \"ready\", {running:.0} ms from \"go\" to running"
    );
    Ok(())
}

/// What is measured.
struct Bench {
    binary: PathBuf,
    qemu: PathBuf,
}

impl Bench {
    fn convert(&self, from: &Path, to: &Path, report: Option<&Path>) -> Command {
        let mut convert = command(&self.binary, ["convert".as_ref(), from, to]);
        convert.args(["--to", "qemu", "--accel", "tcg", "--progress", "none"]);
        convert.arg("--qemu").arg(&self.qemu);
        convert.args(ALLOWED.iter().flat_map(|name| ["--allow", name]));
        convert.args(report.iter().flat_map(|report| ["--report".as_ref(), report.as_os_str()]));
        convert
    }

    fn relay(&self) -> Command {
        let standard = Path::new("-");
        self.convert(standard, standard, None)
    }
}

/// What a command took.
struct Taken {
    elapsed: Duration,
    peak_kib: u64,
}

fn timed(mut command: Command) -> Result<Taken> {
    let began = Instant::now();
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let peak_kib = finish(child)?;
    Ok(Taken { elapsed: began.elapsed(), peak_kib })
}

/// Waits for the end of a command; gives the most memory that it had, in KiB.
fn finish(mut child: Child) -> Result<u64> {
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak_kib = 0;
    while child.try_wait()?.is_none() {
        // VmHWM only grows: the last look before the end is the one that counts.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak_kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(peak_kib);
        thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(peak_kib)
}

fn joined<T>(thread: JoinHandle<T>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread of the benchmark panicked"))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
