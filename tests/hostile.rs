//! Streams cut short and changed, through the whole command: always a code with a place, never a panic, never an output.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

mod common;

use common::{elements, names, pipe, plain, run, slim, text};

/// Where the headers of a stream's elements stand: what a length or a type is read from.
fn headers(stream: &[u8]) -> impl Iterator<Item = usize> {
    elements(stream).into_iter().flat_map(|(name, start)| {
        let length = match name.as_str() {
            "xl header" => 52,
            "libxl header" | "libxc domain header" => 16,
            "libxc image header" | "PAGE_DATA" => 24,
            _ => 8,
        };
        start..start + length
    })
}

#[test]
fn a_stream_cut_between_records_is_invalid() {
    let stream = slim(&plain());
    for (name, start) in elements(&stream) {
        let run = pipe(&["verify", "-"], &stream[..start]);
        assert_eq!(run.code, 3, "cut before {name}: {}", run.stderr);
        assert!(run.stderr.contains(&format!("@{start:#x}: ")), "cut before {name}: {}", run.stderr);
    }
    pipe(&["verify", "-"], &stream).expect(0);
}

#[test]
fn the_device_state_cut_anywhere_is_invalid() {
    let stream = slim(&plain());
    let from = common::start_of(&stream, "X86_TSC_INFO");
    // The libraries' own tests cut at every byte; a process each would take minutes.
    for length in (from..stream.len()).step_by(61) {
        let run = pipe(&["verify", "-"], &stream[..length]);
        assert_eq!(run.code, 3, "cut at {length:#x}: {}", run.stderr);
    }
}

#[test]
fn every_flipped_byte_of_a_header_has_its_answer() {
    let stream = slim(&plain());
    for at in headers(&stream) {
        let mut flipped = stream.clone();
        flipped[at] ^= 0x81;
        let run = pipe(&["verify", "-"], &flipped);
        assert!(!run.stderr.contains("panicked"), "{at:#x}: {}", run.stderr);
        match run.code {
            // Xen's version, for one, is free.
            0 => {}
            3 => assert!(run.stderr.contains(" @0x"), "{at:#x}: {}", run.stderr),
            code => panic!("{at:#x}: code {code}: {}", run.stderr),
        }
    }
}

#[test]
fn nothing_is_written_of_a_stream_that_ends_early() {
    let stream = slim(&plain());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for (_, start) in elements(&stream).into_iter().skip(1).step_by(3) {
        for to in ["model", "kvm"] {
            pipe(&["convert", "-", text(&out), "--to", to], &stream[..start]).expect(3);
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }
}

#[test]
fn an_output_that_was_there_stays_as_it_was() {
    let stream = slim(&plain());
    let folder = tempfile::tempdir().unwrap();
    let out = common::file(folder.path(), "out", b"precious");
    pipe(&["convert", "-", &out, "--to", "model"], &stream[..stream.len() - 1]).expect(3);
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
}

#[test]
fn damaged_compression_is_the_streams_fault() {
    let packed = zstd::encode_all(slim(&plain()).as_slice(), 1).unwrap();
    pipe(&["verify", "-"], &packed[..packed.len() / 2]).expect(3).says("@0x");
}

#[test]
fn a_directory_is_no_stream() {
    let folder = tempfile::tempdir().unwrap();
    run(&["verify", text(folder.path())]).expect(5).says("is a directory");
}

#[test]
fn a_lying_length_takes_no_memory() {
    let stream = slim(&plain());
    let at = common::start_of(&stream, "HVM_CONTEXT") + 4;
    let lying = common::patch(&stream, at, &[0xff; 4]);
    pipe(&["verify", "-"], &lying).expect(3).says("body_length: found");
}
