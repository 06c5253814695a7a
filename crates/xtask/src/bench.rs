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
//! within the run, not the time. Who runs on which processors: `seat`.

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
    let bench = Bench { binary, qemu: tools::qemu("7.2")?, directory: directory.to_owned() };
    let there = bench.there(rounds)?;
    let larger = bench.larger()?;
    let back = bench.back(rounds)?;

    println!("stream              {} MB, {rounds} rounds, medians", there.bytes / 1_000_000);
    let row = |what: &str, series: &Series, than: &Series, whom: &str| {
        let (took, other) = (series.median().as_secs_f64(), than.median().as_secs_f64());
        let rate = there.bytes as f64 / 1e6 / took;
        println!("{what:19} {took:.2} s, {rate:5.0} MB/s, {:.2}x {whom}", other / took);
    };
    row("cp", &there.cp, &there.cp, "cp");
    row("hyperferry convert", &there.convert, &there.cp, "cp");
    row("cat", &there.cat, &there.cat, "cat");
    row("hyperferry relay", &there.relay, &there.cat, "cat");
    row("cat from QEMU", &back.cat, &back.cat, "cat");
    row("hyperferry send", &back.send, &back.cat, "cat");
    let [convert, relay, send] =
        [&there.convert, &there.relay, &back.send].map(|series| series.peak_kib >> 10);
    println!("peak memory         convert {convert} MiB, relay {relay} MiB, send {send} MiB");
    let gib = LARGER.memory_kib >> 20;
    println!("                    relay of a guest with {gib} GiB {} MiB", larger.peak_kib >> 10);
    let [state, loaded, running] =
        [there.state, there.loaded, there.running].map(|times| median(times).as_secs_f64() * 1e3);
    println!("device state        {state:.2} ms for 8 vCPUs, last page to last byte");
    println!(
        "end of a live move  {loaded:.0} ms from the end of the stream to \"ready\", {running:.0} ms from \"go\" to running"
    );
    Ok(())
}

/// A stream of Xen's on its way.
#[derive(Default)]
struct There {
    bytes: u64,
    cp: Series,
    convert: Series,
    cat: Series,
    relay: Series,
    /// From the last page to the last byte.
    state: Vec<Duration>,
    /// From the end of the stream to "ready".
    loaded: Vec<Duration>,
    /// From "go" to running.
    running: Vec<Duration>,
}

/// A QEMU's guest on its way.
#[derive(Default)]
struct Back {
    cat: Series,
    send: Series,
}

/// What all rounds of one way took.
#[derive(Default)]
struct Series {
    elapsed: Vec<Duration>,
    peak_kib: u64,
}

impl Series {
    fn add(&mut self, taken: &Taken) {
        self.elapsed.push(taken.elapsed);
        self.peak_kib = self.peak_kib.max(taken.peak_kib);
    }

    fn median(&self) -> Duration {
        median(self.elapsed.clone())
    }
}

/// What is measured.
struct Bench {
    binary: PathBuf,
    qemu: PathBuf,
    directory: PathBuf,
}

impl Bench {
    fn there(&self, rounds: usize) -> Result<There> {
        let [stream, output, report] =
            ["bench.xen", "bench.out", "bench.json"].map(|name| self.directory.join(name));
        step(format!("writing a stream of {} MiB to {}", LARGE.memory_kib >> 10, stream.display()));
        stream::enlarge(&stream, &LARGE)?;
        let mut there = There { bytes: fs::metadata(&stream)?.len(), ..There::default() };
        for round in 0..=rounds {
            let copied = timed(command("cp", [&stream, &output]))?;
            fs::remove_file(&output)?;
            let converted = timed(self.convert(&stream, &output, Some(&report)))?;
            fs::remove_file(&output)?;
            let document: Value = serde_json::from_slice(&fs::read(&report)?)?;
            fs::remove_file(&report)?;
            let plain = relay::through(Command::new("cat"), File::open(&stream)?)?;
            let through = relay::through(self.relay(), File::open(&stream)?)?;
            let [loaded, running] = hand_over::measure(&self.binary, &self.qemu)?;
            // The first round finds memory that was never used.
            if round > 0 {
                there.cp.add(&copied);
                there.convert.add(&converted);
                there.cat.add(&plain);
                there.relay.add(&through);
                let state_us = document.get("state_us").and_then(Value::as_u64);
                there.state.push(Duration::from_micros(state_us.context("the report has no state_us")?));
                there.loaded.push(loaded);
                there.running.push(running);
            }
        }
        fs::remove_file(&stream)?;
        Ok(there)
    }

    /// The relay of a larger guest, once.
    fn larger(&self) -> Result<Taken> {
        let stream = self.directory.join("bench.xen");
        stream::enlarge(&stream, &LARGER)?;
        let taken = relay::through(self.relay(), File::open(&stream)?)?;
        fs::remove_file(&stream)?;
        Ok(taken)
    }

    fn back(&self, rounds: usize) -> Result<Back> {
        let memory = self.directory.join("bench.ram");
        step(format!("writing a guest's memory of {} MiB to {}", LARGE.memory_kib >> 10, memory.display()));
        stream::memory(&memory, LARGE.memory_kib)?;
        let mut back = Back::default();
        for round in 0..=rounds {
            let plain = Guest::start(&self.qemu, &memory)?.copy()?;
            let through = Guest::start(&self.qemu, &memory)?.send(&self.binary)?;
            if round > 0 {
                back.cat.add(&plain);
                back.send.add(&through);
            }
        }
        fs::remove_file(&memory)?;
        Ok(back)
    }

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
