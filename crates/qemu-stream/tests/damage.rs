//! Damaged streams: a typed error with path and offset, or a stream that means something else; never a panic.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on has failed")]

mod common;

use common::{bare, decode_emulator_context, emulator_context, load, round_trip};
use hyperferry_qemu_stream::Header;
use proptest::prelude::*;

/// What was accepted must be written as it was read.
fn accepts_only_what_it_can_write(bytes: &[u8]) {
    if let Ok((_, written)) = round_trip(bytes) {
        assert!(written == bytes, "accepted and written differently");
    }
}

/// The same stream without its RAM sections, so that thousands of copies of it are read quickly.
fn without_ram(stream: &[u8]) -> Vec<u8> {
    let (bare, start) = bare(stream);
    let configuration = Header::LENGTH + 5 + usize::from(stream[Header::LENGTH + 4]);
    [&bare[..configuration], &bare[start..]].concat()
}

#[test]
fn a_cut_anywhere_in_the_device_state_is_an_error_with_its_place() {
    let stream = without_ram(&load("pc-7.2-i386-no-bridge-hotplug"));
    assert!(stream.len() > 8000 && round_trip(&stream).is_ok());
    for length in 0..stream.len() {
        let error = round_trip(&stream[..length]).map(|_| ()).unwrap_err();
        assert!(error.offset() <= length as u64, "{length}: {error}");
    }
}

#[test]
fn a_cut_anywhere_in_an_emulator_context_is_an_error_with_its_place() {
    let blob = emulator_context();
    let mut accepted = Vec::new();
    for length in 0..blob.len() {
        match decode_emulator_context(&blob[..length]) {
            Err(error) => assert!(error.offset() <= length as u64, "{length}: {error}"),
            Ok(_) => accepted.push(blob.len() - length),
        }
    }
    // The last section, piix4_pm, has an old form without `smb`, 48 bytes shorter, and here a subsection of 24
    // bytes. Cut by as much, with a zero byte at the end, it reads as the old form: nothing in the blob itself
    // can tell. The length of the record that holds the blob does.
    assert_eq!(accepted, [48 + 24]);
}

#[test]
fn a_cut_in_the_description_is_an_error() {
    let stream = load("pc-10.0-x86_64-kvm");
    let (bare, _) = bare(&stream);
    for length in (bare.len() + 1..stream.len()).step_by(97) {
        assert!(round_trip(&stream[..length]).is_err(), "{length}");
    }
}

#[test]
fn a_cut_in_the_ram_is_an_error_with_its_place() {
    let stream = load("pc-10.0-x86_64-kvm");
    let (_, start) = bare(&stream);
    for length in (0..4096).chain((4096..start).step_by(331)) {
        let error = round_trip(&stream[..length]).map(|_| ()).unwrap_err();
        assert!(error.offset() <= length as u64, "{length}: {error}");
    }
}

#[test]
fn flipped_bits_before_the_pages_are_seen_or_carried() {
    let stream = load("pc-7.2-x86_64-kvm");
    let (stream, _) = bare(&stream);
    // Header, configuration, RAM start with its blocks, and the first chunks.
    for bit in 0..400 * 8 {
        let mut damaged = stream.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        accepts_only_what_it_can_write(&damaged);
    }
}

#[test]
fn flipped_bits_of_sections_are_seen_or_carried() {
    let blob = emulator_context();
    // A different bit of each byte: all eight of all bytes take a minute.
    for bit in (0..blob.len()).map(|byte| byte * 8 + byte % 8) {
        let mut damaged = blob.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(state) = decode_emulator_context(&damaged) {
            assert!(state.encode_emulator_context().unwrap() == damaged, "bit {bit}");
        }
    }
}

#[test]
fn a_wrong_footer_names_both_sections() {
    let stream = load("pc-7.2-x86_64-kvm");
    let (bare, start) = bare(&stream);
    // `timer` comes first: header 19 bytes, body 24, then its footer.
    let mut damaged = bare.to_vec();
    assert_eq!(damaged[start + 43], 0x7e);
    damaged[start + 47] ^= 1;
    let error = round_trip(&damaged).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("timer 0 @"), "{error}");
}

#[test]
fn a_section_that_nobody_describes_is_named() {
    let stream = load("pc-7.2-x86_64-kvm");
    let (bare, start) = bare(&stream);
    let mut damaged = bare.to_vec();
    damaged[start + 6..start + 11].copy_from_slice(b"tamer");
    let error = round_trip(&damaged).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("section tamer: the stream does not describe it"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        accepts_only_what_it_can_write(&bytes);
        let mut opened = b"QEVM\0\0\0\x03".to_vec();
        opened.extend(&bytes);
        accepts_only_what_it_can_write(&opened);
        prop_assert!(decode_emulator_context(&bytes).is_err());
    }

    #[test]
    fn damaged_descriptions_do_no_harm(at in 0_usize..50_000, byte in any::<u8>()) {
        let mut stream = load("pc-10.0-x86_64-kvm");
        let from = bare(&stream).0.len();
        let at = from + at % (stream.len() - from);
        stream[at] = byte;
        accepts_only_what_it_can_write(&stream);
    }
}
