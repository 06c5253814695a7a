//! Streams made by hand, each wrong in one way: the error names it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on has failed")]

mod common;

use std::io::{Read, repeat};

use common::{decode_emulator_context, emulator_context, load, round_trip};
use hyperferry_qemu_stream::{Header, RamBlock, RamStart, SectionKind, StreamReader, StreamWriter};

fn refusal(stream: &[u8]) -> String {
    round_trip(stream).map(|_| ()).unwrap_err().to_string()
}

/// Header and what follows it.
fn stream(parts: &[&[u8]]) -> Vec<u8> {
    [b"QEVM\0\0\0\x03".as_slice(), &parts.concat()].concat()
}

fn ram_start(version: u8, names: &[&str]) -> Vec<u8> {
    let mut bytes = b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0".to_vec();
    bytes.push(version);
    bytes.extend((0x1000 * names.len() as u64 + 4).to_be_bytes());
    for name in names {
        bytes.push(name.len().try_into().unwrap());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend(0x1000_u64.to_be_bytes());
    }
    bytes
}

/// A FULL section `x`, the end, and a description of it.
fn described(body: &[u8], fields: &str) -> Vec<u8> {
    let json = format!(
        r#"{{"devices":[{{"name":"x","instance_id":0,"vmsd_name":"x","version":1,"fields":[{fields}]}}]}}"#
    );
    let length = u32::try_from(json.len()).unwrap().to_be_bytes();
    stream(&[b"\x04\0\0\0\x01\x01x\0\0\0\0\0\0\0\x01", body, b"\0\x06", &length, json.as_bytes()])
}

#[test]
fn a_described_section_is_read() {
    let bytes = described(b"\x01\x02\x03", r#"{"name":"a","type":"odd thing","size":3}"#);
    let (state, written) = round_trip(&bytes).unwrap();
    assert_eq!(state.sections[0].tree.field("a").unwrap().as_bytes().unwrap(), [1, 2, 3]);
    assert_eq!(written, bytes);
}

#[test]
fn a_wrong_footer_in_a_described_stream() {
    let body = b"\x07\x7e\0\0\0\x02";
    let error = refusal(&described(body, r#"{"name":"a","type":"uint8","size":1}"#));
    assert_eq!(error, "x 0 @0x19: footer section_id: found 0x2, wanted 1");
}

#[test]
fn a_description_that_asks_for_more_than_the_stream_has() {
    let inner = r#"{"name":"b","type":"buffer","size":0,"array_len":2000}"#;
    let body = format!(r#"{{"vmsd_name":"y","version":1,"fields":[{inner}]}}"#);
    let field = format!(r#"{{"name":"a","type":"struct","array_len":2000,"struct":{body}}}"#);
    let error = refusal(&described(b"", &field));
    assert_eq!(error, "x 0 @0x17: values in the device state: found 1048577, wanted at most 1048576");
}

#[test]
fn a_length_beyond_the_stream() {
    let field = r#"{"name":"a","type":"uint8","size":1,"array_len":1000000000000}"#;
    assert_eq!(refusal(&described(b"\x01", field)), "x 0 @0x17: a: found 2 bytes, wanted 1000000000000");
}

#[test]
fn a_description_of_another_length_is_none() {
    let mut bytes = described(b"\x01", r#"{"name":"a","type":"uint8","size":1}"#);
    bytes.push(b' ');
    assert!(refusal(&bytes).contains("section x: the stream does not describe it"));
}

#[test]
fn a_version_that_we_have_no_schema_of() {
    let mut blob = emulator_context();
    // Header, type, id, idstr `timer`, instance, and the last byte of the version.
    assert_eq!(blob[26], 2);
    blob[26] = 3;
    let error = decode_emulator_context(&blob).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error, "timer 0 @0x17: version of timer: found 3, wanted 2");
}

#[test]
fn commands_that_change_the_stream() {
    assert!(refusal(&stream(&[b"\x08\0\x03\0\0"])).contains("command POSTCOPY_ADVISE: postcopy and COLO"));
    assert!(refusal(&stream(&[b"\x08\0\x08\0\0"])).contains("command PACKAGED"));
}

#[test]
fn ram_of_another_version() {
    assert_eq!(refusal(&stream(&[&ram_start(3, &["a"])])), "ram @0x15: version_id: found 3, wanted 4");
}

#[test]
fn one_block_twice() {
    let error = refusal(&stream(&[&ram_start(4, &["a", "a"])]));
    assert_eq!(error, "ram @0x2b: block name: found a, wanted each block once");
}

#[test]
fn rounds_of_something_else() {
    let error = refusal(&stream(&[b"\x01\0\0\0\x01\x05block\0\0\0\0\0\0\0\x01"]));
    assert!(error.contains("section block 0: only RAM may be sent in rounds"), "{error}");
}

#[test]
fn sections_out_of_order() {
    let start = ram_start(4, &["a"]);
    let mark = 0x10_u64.to_be_bytes();
    let cases: [(&[&[u8]], &str); 4] = [
        (&[b"\x02\0\0\0\x01"], "found Part, wanted Configuration, Command, Start, Full or Eof"),
        (&[&start, &mark, &start], "found Start, wanted Command, Part or End, for RAM has not ended"),
        (&[&start, &mark, b"\x00"], "found Eof, wanted Command, Part or End, for RAM has not ended"),
        (&[b"\x08\0\x02\0\0\x07"], "found Configuration, wanted Command, Start, Full or Eof"),
    ];
    for (parts, wanted) in cases {
        let error = refusal(&stream(parts));
        assert!(error.ends_with(wanted), "{error}");
    }
}

#[test]
fn device_state_without_end() {
    let head = load("pc-7.2-i386-no-bridge-hotplug")[..8].to_vec();
    let mut reader = StreamReader::new(head.chain(&b"\x04"[..]).chain(repeat(0)));
    reader.next_event().unwrap();
    let error = reader.next_event().map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("stream @0x8: device state: found ") && error.ends_with("at most 67108864"));
}

#[test]
fn pages_that_the_writer_will_not_write() {
    let mut writer = StreamWriter::new(Vec::new());
    let block = |name: &str| RamBlock { name: name.to_owned(), used_length: 0x2000 };
    writer.header(Header).unwrap();
    let mut fault = |offset: u64, length: usize| {
        writer.ram_start(&RamStart { section_id: 1, version: 4, blocks: vec![block("a")] }).unwrap();
        writer.run(0, offset, &vec![1; length]).unwrap_err().to_string()
    };
    assert!(fault(0x800, 0x1000).ends_with("found 0x800, wanted a page of a (0x2000 bytes)"));
    assert!(fault(0x2000, 0x1000).ends_with("found 0x2000, wanted a page of a (0x2000 bytes)"));
    assert!(fault(0, 0x1800).ends_with("run: found 0x1800, wanted whole pages"));
    let start = RamStart { section_id: 1, version: 4, blocks: vec![block(&"a".repeat(256))] };
    let error = writer.ram_start(&start).unwrap_err().to_string();
    assert!(error.ends_with("block name: found 256 bytes, wanted at most 255 bytes"), "{error}");
    let mut writer = StreamWriter::new(Vec::new());
    assert!(writer.ram_section(SectionKind::Part).is_err() && writer.ram_end(true).is_err());
}
