//! Real save files: read, written again byte for byte, and known values found in them.
//!
//! The files are looked for in the folder that `HYPERFERRY_CAPTURES` names.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may, their helpers too")]

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;

use hyperferry_wire::{ErrorKind, Strictness};
use hyperferry_xen_stream::{Event, StreamReader, StreamWriter, hvm, libxc, libxl};

/// The zstd-compressed save files at hand; a message says so when there are none.
fn captures() -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("HYPERFERRY_CAPTURES") else {
        println!("skipped: HYPERFERRY_CAPTURES does not name a folder with *.save.zst");
        return Vec::new();
    };
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.to_string_lossy().ends_with(".save.zst")).collect()
}

fn open(path: &PathBuf) -> impl Read {
    BufReader::new(zstd::Decoder::new(File::open(path).unwrap()).unwrap())
}

/// A writer that wants to be given exactly the bytes of a reader.
struct Compare<R> {
    wanted: R,
    buffer: Vec<u8>,
    offset: u64,
}

impl<R: Read> Write for Compare<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.resize(bytes.len(), 0);
        self.wanted.read_exact(&mut self.buffer)?;
        assert!(self.buffer == bytes, "bytes differ in the {} from {:#x} on", bytes.len(), self.offset);
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn real_save_files_round_trip() {
    for path in captures() {
        let mut reader = StreamReader::new(open(&path)).with_strictness(Strictness::Strict);
        let mut writer = StreamWriter::new(Compare { wanted: open(&path), buffer: Vec::new(), offset: 0 });
        while let Some(event) = reader.next_event().unwrap() {
            writer.write(&event).unwrap();
        }
        let mut rest = Vec::new();
        writer.into_inner().wanted.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{} bytes were not written", rest.len());
    }
}

#[test]
fn the_linux_capture_holds_what_is_known_of_it() {
    let Some(path) = captures().into_iter().find(|path| path.to_string_lossy().contains("nopv-256M-1vcpu"))
    else {
        return;
    };
    let mut reader = StreamReader::new(open(&path)).with_strictness(Strictness::Strict);
    let (mut records, mut entries, mut pages, mut context) = (0, 0, 0, None);
    while let Some(event) = reader.next_event().unwrap() {
        match event {
            Event::XlHeader(header) => {
                assert_eq!(header.config.as_ref().unwrap().len(), 1225);
                assert_eq!(header.config().unwrap()["c_info"]["name"], "n1");
            }
            Event::PageData(all) => {
                records += 1;
                entries += all.len();
            }
            Event::Pages(chunk) => pages += chunk.entries.len(),
            Event::Libxc(libxc::Record::HvmContext(found)) => context = Some(found),
            Event::Libxc(libxc::Record::HvmParams(params)) => assert_eq!(params.get(33), Some(8)),
            Event::Libxc(libxc::Record::X86CpuidPolicy(policy)) => assert_eq!(policy.leaves.len(), 49),
            Event::Libxl(libxl::Record::EmulatorContext(emulator)) => assert_eq!(emulator.blob.len(), 5956),
            _ => {}
        }
    }
    assert_eq!((records, entries, pages), (1020, 1_044_480, 65_532));

    let context = context.unwrap();
    assert_eq!(context.header().unwrap().gtsc_khz, 2_596_120);
    let cpus = context.all(|record| match record {
        hvm::Record::Cpu(cpu) => Some(cpu),
        _ => None,
    });
    let (instance, cpu) = cpus.last().unwrap();
    assert_eq!(instance, 0);
    assert_eq!((cpu.segments.cs.arbytes, cpu.segments.tr.arbytes), (0xa9b, 0x8b));
    assert_eq!((cpu.rflags, cpu.msr_efer), (0x216, 0xd01));
    assert_eq!(cpu.flags, hvm::Cpu::FPU_INITIALISED);
}

/// Headers and state of a real save file, without its pages, cut at every byte.
#[test]
fn real_state_cut_at_every_byte() {
    for path in captures() {
        let mut reader = StreamReader::new(open(&path));
        let mut writer = StreamWriter::new(Vec::new());
        while let Some(event) = reader.next_event().unwrap() {
            if !matches!(event, Event::PageData(_) | Event::Pages(_)) {
                writer.write(&event).unwrap();
            }
        }
        let bytes = writer.into_inner();
        for length in 0..bytes.len() {
            let mut reader = StreamReader::new(&bytes[..length]);
            let error = loop {
                match reader.next_event() {
                    Ok(event) => assert!(event.is_some(), "no fault when cut at {length:#x}"),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "cut at {length:#x}: {error}");
        }
    }
}
