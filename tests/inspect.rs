//! `hyperferry inspect`: the golden dumps, the JSON, what is shown of a damaged stream.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

mod common;

use std::io::Write;

use common::{pipe, plain, run, slim, start_of};
use hyperferry_testkit::golden;

#[test]
fn every_fixture_looks_as_it_did() {
    golden::check_dumps(env!("CARGO_BIN_EXE_hyperferry").as_ref(), golden::updating()).unwrap();
}

#[test]
fn compression_is_no_matter() {
    let stream = slim(&plain());
    let wanted = pipe(&["inspect", "-"], &stream).expect(0).stdout;
    let zstd = zstd::encode_all(stream.as_slice(), 1).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&stream).unwrap();
    assert!(wanted.starts_with("Xen save stream\nxl header @0x0\n"), "{wanted:.200}");
    assert_eq!(pipe(&["inspect", "-"], &zstd).expect(0).stdout, wanted);
    assert_eq!(pipe(&["inspect", "-"], &gzip.finish().unwrap()).expect(0).stdout, wanted);
}

#[test]
fn json_tells_the_same_elements() {
    let stream = slim(&plain());
    let text = pipe(&["inspect", "-"], &stream).expect(0).stdout;
    let json = pipe(&["inspect", "-", "--json"], &stream).expect(0).stdout;
    let mut documents = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let head = documents.next().unwrap();
    assert_eq!((&head["schema"], &head["version"]), (&"hyperferry-inspect".into(), &1.into()));
    let from_json: Vec<_> = documents
        .map(|element| {
            format!("{} @{:#x}", element["path"].as_str().unwrap(), element["offset"].as_u64().unwrap())
        })
        .collect();
    let from_text: Vec<_> = text.lines().skip(1).filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(from_json, from_text);
}

#[test]
fn runs_of_pages_are_one_element() {
    let text = pipe(&["inspect", "-"], &plain()).expect(0).stdout;
    assert_eq!(text.matches(" PAGE_DATA @").count(), 1);
    assert!(text.contains("\n  frames = 0x0-0x9f "), "where the VGA hole is, there is no page");
}

#[test]
fn the_device_models_state_is_opened() {
    let text = pipe(&["inspect", "-"], &slim(&plain())).expect(0).stdout;
    assert!(text.contains("EMULATOR_CONTEXT > timer 0 @"), "{text:.300}");
    assert!(text.contains("EMULATOR_CONTEXT > serial 0 @"));
}

#[test]
fn what_stands_before_damage_is_shown() {
    let stream = slim(&plain());
    let cut = start_of(&stream, "HVM_CONTEXT") + 20;
    let shown = pipe(&["inspect", "-"], &stream[..cut]).expect(3).says("HVM_CONTEXT @");
    assert!(shown.stdout.contains("X86_TSC_INFO @"), "{}", shown.stdout);
    assert!(!shown.stdout.contains("\nend @"));
}

#[test]
fn a_checkpoint_is_shown_too() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    pipe(&["convert", "-", common::text(&out), "--to", "model"], &slim(&plain())).expect(0);
    let text = run(&["inspect", common::text(&out)]).expect(0).stdout;
    let elements: Vec<_> = text.lines().filter(|line| !line.starts_with(' ')).collect();
    let names: Vec<_> = elements.iter().map(|line| line.split(" @").next().unwrap()).collect();
    assert_eq!(names, ["hyperferry checkpoint", "OUTLINE", "PAGES", "STATE", "end"]);
    let size = std::fs::metadata(&out).unwrap().len();
    assert_eq!(elements[4], format!("end @{size:#x}"));
    assert!(text.contains("\n  vcpus[0].general.rip = 0x"));
}

#[test]
fn what_is_no_stream_is_named_by_what_was_found() {
    pipe(&["inspect", "-"], b"#!/bin/sh\necho a script of some length, no stream\n")
        .expect(3)
        .says("found #!/bin/sh");
    pipe(&["inspect", "-"], b"").expect(3).says("magic: found 0 bytes, wanted 32");
}
