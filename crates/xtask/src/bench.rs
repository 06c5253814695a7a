//! `cargo xtask bench`: how fast a large stream is converted, beside `cp` of the same file in the same run.
//!
//! The stream is a real one made larger: a fixture's records around pages that cannot be compressed, and twice its
//! vCPUs. It is put together byte by byte here, apart from our encoders. Each round runs all ways in turn, so that they
//! meet the same page cache and the same load; what counts is the ratio to `cp` within the run, not the time.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "figures for people")]
#![allow(
    clippy::indexing_slicing,
    reason = "on a fixture of our own; a panic is a fine answer to a broken one"
)]

use crate::sh::step;
use crate::{ci, qemu};
use anyhow::{Context, Result, ensure};
use hyperferry_testkit::{Fixture, tools};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The fixture that is made larger.
const FIXTURE: &str = "xen/witness-4vcpu";
/// Memory of the larger guest.
const MEMORY_KIB: u64 = 2 << 20;
/// Pages in one record, as Xen sends them.
const BATCH: usize = 1024;
const PAGE: usize = 4096;
/// The hole for VGA memory.
const VGA_HOLE: std::ops::Range<u64> = 0xa0..0xc0;

/// Runs the benchmark.
pub(crate) fn run(rounds: usize, directory: &Path) -> Result<()> {
    qemu::provide(false)?;
    let binary = ci::release_binary()?;
    let program = tools::qemu("7.2")?;
    let (stream, output) = (directory.join("bench.xen"), directory.join("bench.out"));
    step(format!("writing a stream of {} MiB to {}", MEMORY_KIB >> 10, stream.display()));
    enlarge(&stream)?;
    let mut times = [Vec::new(), Vec::new()];
    let (mut memory, mut state) = (0, Vec::new());
    for round in 0..=rounds {
        let copy = timed(Command::new("cp").arg(&stream).arg(&output))?;
        fs::remove_file(&output)?;
        let report = directory.join("bench.json");
        let mut convert = Command::new(&binary);
        convert.arg("convert").arg(&stream).arg(&output).args([
            "--to",
            "qemu",
            "--accel",
            "tcg",
            "--progress",
            "none",
        ]);
        convert.arg("--qemu").arg(&program).arg("--report").arg(&report);
        convert.args([
            "--allow",
            "hpet",
            "--allow",
            "tsc-frequency",
            "--allow",
            "lapic-timer",
            "--allow",
            "cpu-features",
        ]);
        let conversion = timed(&mut convert)?;
        fs::remove_file(&output)?;
        let document: Value = serde_json::from_slice(&fs::read(&report)?)?;
        fs::remove_file(&report)?;
        // The first round finds memory that was never used.
        if round > 0 {
            times[0].push(copy.elapsed);
            times[1].push(conversion.elapsed);
            memory = memory.max(conversion.peak_kib);
            state.push(
                document.get("state_us").and_then(Value::as_u64).context("the report has no state_us")?,
            );
        }
    }
    let bytes = fs::metadata(&stream)?.len();
    fs::remove_file(&stream)?;
    let [copy, conversion] = times.map(median);
    state.sort_unstable();
    println!("stream              {} MB, {rounds} rounds, medians", bytes / 1_000_000);
    println!("cp                  {:.2} s", copy.as_secs_f64());
    println!(
        "hyperferry convert  {:.2} s, {:.2}x the speed of cp",
        conversion.as_secs_f64(),
        copy.as_secs_f64() / conversion.as_secs_f64()
    );
    println!("peak memory         {} MiB", memory >> 10);
    println!(
        "device state        {:.2} ms for 8 vCPUs (median, from the last page to the last byte)",
        state[rounds / 2] as f64 / 1e3
    );
    Ok(())
}

/// What a command took.
struct Taken {
    elapsed: Duration,
    peak_kib: u64,
}

fn timed(command: &mut Command) -> Result<Taken> {
    let began = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak_kib = 0;
    while child.try_wait()?.is_none() {
        // VmHWM only grows: the last look before the end is the one that counts.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak_kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(peak_kib);
        thread::sleep(Duration::from_millis(2));
    }
    let elapsed = began.elapsed();
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Taken { elapsed, peak_kib })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Writes the fixture with more memory and twice its vCPUs.
fn enlarge(path: &Path) -> Result<()> {
    let stream = Fixture::named(FIXTURE)?.stream()?;
    let word = |at: usize| -> Result<usize> {
        let bytes = stream.get(at..at + 4).context("the fixture ends early")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let mut out = BufWriter::new(File::create(path)?);
    // xl header: 48 bytes, the last four the length of what follows; then a length and the configuration.
    let optional = word(44)?;
    let mut config: Value = serde_json::from_slice(
        stream[52..48 + optional].split(|byte| *byte == 0).next().unwrap_or_default(),
    )?;
    config["b_info"]["max_memkb"] = MEMORY_KIB.into();
    config["b_info"]["max_vcpus"] = 8.into();
    let text = format!("{config:#}\n\0");
    out.write_all(&stream[..44])?;
    for length in [text.len() + 4, text.len()] {
        out.write_all(&u32::try_from(length)?.to_le_bytes())?;
    }
    out.write_all(text.as_bytes())?;
    // libxl header, LIBXC_CONTEXT, libxc image and domain headers: 16 + 8 + 24 + 16 bytes.
    let mut at = 48 + optional;
    out.write_all(&stream[at..at + 64])?;
    at += 64;
    let mut memory_written = false;
    loop {
        let (kind, length) = (word(at)?, word(at + 4)?);
        let end = at + 8 + length.next_multiple_of(8);
        let body = stream.get(at + 8..at + 8 + length).context("the fixture ends early")?;
        match kind {
            1 if memory_written => {}
            1 => {
                write_memory(&mut out)?;
                memory_written = true;
            }
            9 => write_record(&mut out, 9, &double_vcpus(body)?)?,
            _ => out.write_all(&stream[at..end])?,
        }
        at = end;
        if kind == 0 {
            break;
        }
    }
    out.write_all(&stream[at..])?;
    Ok(out.flush()?)
}

/// PAGE_DATA for all of memory, with bytes that no two pages share.
fn write_memory(out: &mut impl Write) -> Result<()> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for first in (0..MEMORY_KIB / 4).step_by(BATCH) {
        let pfns = (first..first + BATCH as u64).filter(|pfn| !VGA_HOLE.contains(pfn)).collect::<Vec<_>>();
        let mut body = Vec::with_capacity(8 + pfns.len() * (8 + PAGE));
        body.extend_from_slice(&(pfns.len() as u64).to_le_bytes());
        pfns.iter().for_each(|pfn| body.extend_from_slice(&pfn.to_le_bytes()));
        for _ in 0..pfns.len() * PAGE / 8 {
            // xorshift64
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            body.extend_from_slice(&seed.to_le_bytes());
        }
        write_record(out, 1, &body)?;
    }
    Ok(())
}

fn write_record(out: &mut impl Write, kind: u32, body: &[u8]) -> Result<()> {
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&u32::try_from(body.len())?.to_le_bytes())?;
    out.write_all(body)?;
    Ok(out.write_all(&[0; 8][..body.len().next_multiple_of(8) - body.len()])?)
}

/// HVM_CONTEXT with each vCPU's entries once more, under the number after the last.
fn double_vcpus(context: &[u8]) -> Result<Vec<u8>> {
    /// CPU, LAPIC, LAPIC_REGS, MTRR, CPU_XSAVE, VMCE_VCPU, TSC_ADJUST, CPU_MSR.
    const PER_VCPU: [u16; 8] = [2, 5, 6, 14, 16, 18, 19, 20];
    let (mut first, mut second, mut at) = (Vec::new(), Vec::new(), 0);
    let half = |at: usize| u16::from_le_bytes([context[at], context[at + 1]]);
    while at < context.len() {
        let (code, instance) = (half(at), half(at + 2));
        let length = u32::from_le_bytes(context[at + 4..at + 8].try_into()?) as usize;
        let entry = &context[at..at + 8 + length];
        at += entry.len();
        if code == 0 {
            first.append(&mut second);
        }
        first.extend_from_slice(entry);
        if PER_VCPU.contains(&code) {
            let mut copy = entry.to_vec();
            copy[2..4].copy_from_slice(&(instance + 4).to_le_bytes());
            if code == 6 {
                // The APIC id is twice the vCPU's number.
                copy[8 + 0x23] = u8::try_from(2 * (instance + 4))?;
            }
            second.append(&mut copy);
        }
    }
    Ok(first)
}
