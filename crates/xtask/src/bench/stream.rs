//! The stream that is measured: a fixture made larger, byte by byte, apart from our encoders.

#![allow(
    clippy::indexing_slicing,
    reason = "on a fixture of our own; a panic is a fine answer to a broken one"
)]

use anyhow::{Context, Result};
use hyperferry_testkit::Fixture;
use serde_json::Value;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The fixture that is made larger.
const FIXTURE: &str = "xen/witness-4vcpu";
/// Pages in one record, as Xen sends them.
const BATCH: usize = 1024;
const PAGE: usize = 4096;
/// The hole for VGA memory.
const VGA_HOLE: std::ops::Range<u64> = 0xa0..0xc0;
/// What `mmio_hole=1024` means: RAM ends at 3 GiB and goes on at 4 GiB, as QEMU can have it.
const HOLE_KIB: u64 = 1 << 20;
const HOLE: std::ops::Range<u64> = 0xc_0000..0x10_0000;

/// What the larger guest is like.
pub(super) struct Size {
    /// Its memory.
    pub(super) memory_kib: u64,
    /// One record of pages out of so many is in the stream.
    pub(super) sparse: usize,
}

/// Writes the fixture with more memory and twice its vCPUs.
pub(super) fn enlarge(path: &Path, size: &Size) -> Result<()> {
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
    config["b_info"]["max_memkb"] = size.memory_kib.into();
    config["b_info"]["max_vcpus"] = 8.into();
    config["b_info"]["type.hvm"]["mmio_hole_memkb"] = HOLE_KIB.into();
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
                write_memory(&mut out, size)?;
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

/// PAGE_DATA for memory, with bytes that no two pages share.
fn write_memory(out: &mut impl Write, size: &Size) -> Result<()> {
    let mut noise = Noise::default();
    for first in (0..size.memory_kib / 4).step_by(BATCH * size.sparse) {
        let behind_the_hole = |pfn: u64| if pfn < HOLE.start { pfn } else { pfn - HOLE.start + HOLE.end };
        let pages = (first..first + BATCH as u64).map(behind_the_hole);
        let pfns = pages.filter(|pfn| !VGA_HOLE.contains(pfn)).collect::<Vec<_>>();
        let mut body = Vec::with_capacity(8 + pfns.len() * (8 + PAGE));
        body.extend_from_slice(&(pfns.len() as u64).to_le_bytes());
        pfns.iter().for_each(|pfn| body.extend_from_slice(&pfn.to_le_bytes()));
        noise.append(pfns.len() * PAGE, &mut body);
        write_record(out, 1, &body)?;
    }
    Ok(())
}

/// Writes memory alone, with bytes that no two pages share.
pub(super) fn memory(path: &Path, kib: u64) -> Result<()> {
    let mut out = File::create(path)?;
    let mut noise = Noise::default();
    let mut body = Vec::new();
    for _ in 0..kib >> 10 {
        body.clear();
        noise.append(1 << 20, &mut body);
        out.write_all(&body)?;
    }
    Ok(())
}

/// Bytes that do not repeat: xorshift64.
struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    fn append(&mut self, count: usize, to: &mut Vec<u8>) {
        for _ in 0..count / 8 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            to.extend_from_slice(&self.0.to_le_bytes());
        }
    }
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
