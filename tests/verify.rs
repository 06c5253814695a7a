//! `hyperferry verify`: 0 for what is sound, 3 with path, offset, found and wanted for what is not.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

mod common;

use common::{insert, patch, pipe, plain, run, slim, start_of, text};
use hyperferry_testkit::fixtures;

#[test]
fn every_fixture_is_sound() {
    for fixture in [fixtures("xen").unwrap(), fixtures("qemu").unwrap()].concat() {
        let run = run(&["verify", text(&fixture.path())]);
        assert_eq!(run.code, 0, "{}: {}", fixture.name, run.stderr);
        assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    }
}

#[test]
fn a_checkpoint_is_judged_to_its_last_byte() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    pipe(&["convert", "-", text(&out), "--to", "model"], &slim(&plain())).expect(0);
    let checkpoint = std::fs::read(&out).unwrap();
    pipe(&["verify", "-"], &checkpoint).expect(0);
    pipe(&["verify", "-"], &checkpoint[..checkpoint.len() - 1]).expect(3).says("@0x");
    pipe(&["verify", "-"], &[&checkpoint[..], b"x"].concat()).expect(3).says("left over");
    pipe(&["verify", "-"], &patch(&checkpoint, 16, &[9])).expect(3).says("found 9, wanted 2");
    pipe(&["verify", "-"], &patch(&checkpoint, 40, &[checkpoint[40] ^ 1])).expect(3).says("checksum");
}

#[test]
fn reserved_bits_are_judged() {
    let stream = slim(&plain());
    let at = start_of(&stream, "PAGE_DATA") + 12;
    let wanted = format!("PAGE_DATA @{at:#x}: reserved: found 0x1, wanted 0x0");
    pipe(&["verify", "-"], &patch(&stream, at, &[1])).expect(3).says(&wanted);
}

#[test]
fn unknown_records_pass_only_where_they_are_optional() {
    let stream = slim(&plain());
    let at = start_of(&stream, "X86_TSC_INFO");
    let optional = insert(&stream, at, &[0x70, 0, 0, 0x80, 0, 0, 0, 0]);
    pipe(&["verify", "-"], &optional).expect(0);
    let mandatory = insert(&stream, at, &[0x70, 0, 0, 0, 0, 0, 0, 0]);
    pipe(&["verify", "-"], &mandatory).expect(3).says(&format!("@{at:#x}: type: found"));
}

#[test]
fn unknown_hvm_entries_are_no_records_of_xen() {
    let stream = slim(&plain());
    let at = start_of(&stream, "HVM_CONTEXT");
    // Behind the record's header and the entry HEADER with its own: an entry of typecode 999 without a body.
    let entry = [231, 3, 0, 0, 0, 0, 0, 0];
    let length = u32::from_le_bytes(stream[at + 4..at + 8].try_into().unwrap()) + 8;
    let longer = insert(&patch(&stream, at + 4, &length.to_le_bytes()), at + 8 + 32, &entry);
    pipe(&["verify", "-"], &longer).expect(3).says("typecode: found");
}

#[test]
fn records_keep_their_order() {
    let stream = slim(&plain());
    let (params, end) = (start_of(&stream, "HVM_PARAMS"), start_of(&stream, "HVM_CONTEXT"));
    let swapped = insert(&stream, end, &[0; 8]);
    pipe(&["verify", "-"], &swapped).expect(3).says("wanted HVM_CONTEXT before it");
    let static_again = insert(&stream, params, &[0x10, 0, 0, 0, 0, 0, 0, 0]);
    pipe(&["verify", "-"], &static_again).expect(3).says("as static data has ended");
}

#[test]
fn nothing_but_the_handover_may_follow() {
    let stream = slim(&plain());
    let live = [&stream[..], b"domain is yours, you are cleared to unpause\0"].concat();
    pipe(&["verify", "-"], &live).expect(0);
    pipe(&["verify", "-"], &[&stream[..], b"x"].concat()).expect(3).says("bytes behind END");
}

#[test]
fn the_device_models_state_is_judged() {
    let stream = slim(&plain());
    let at = start_of(&stream, "EMULATOR_CONTEXT");
    // Record header, emulator_id and index, QEVM and version: then the first section's type.
    pipe(&["verify", "-"], &patch(&stream, at + 24, &[0x7f])).expect(3).says("EMULATOR_CONTEXT @");
    pipe(&["verify", "-"], &patch(&stream, at + 16, b"X")).expect(3).says("magic: found");
}

#[test]
fn a_qemu_stream_must_have_the_sections_that_it_describes() {
    let stream = common::fixture("qemu/7.2-tcg-bare");
    let text = stream.windows(16).rposition(|window| window == b"\"name\": \"serial\"");
    let Some(at) = text else { panic!("the description names serial ports") };
    let renamed = patch(&stream, at + 9, b"sXrial");
    let wanted = "devices: found sXrial 0, wanted serial 0";
    pipe(&["verify", "-"], &renamed).expect(3).says(wanted);
}
