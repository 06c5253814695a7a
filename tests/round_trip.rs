//! What is read can be written again, byte for byte: every capture through its format's reader and writer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may, their helpers too")]

use hyperferry_qemu_stream as qemu;
use hyperferry_testkit::{Fixture, fixtures};
use hyperferry_wire::Strictness;
use hyperferry_xen_stream as xen;

fn compare(fixture: &Fixture, wanted: &[u8], found: &[u8]) {
    let at = wanted.iter().zip(found).position(|(wanted, found)| wanted != found);
    assert!(at.is_none(), "{}: differs at {:#x}", fixture.name, at.unwrap());
    assert_eq!(wanted.len(), found.len(), "{}: another length", fixture.name);
}

#[test]
fn every_xen_capture() {
    for fixture in fixtures("xen").unwrap() {
        let stream = fixture.stream().unwrap();
        let mut reader = xen::StreamReader::new(stream.as_slice()).with_strictness(Strictness::Strict);
        let mut writer = xen::StreamWriter::new(Vec::with_capacity(stream.len()));
        while let Some(event) =
            reader.next_event().unwrap_or_else(|error| panic!("{}: {error}", fixture.name))
        {
            writer.write(&event).unwrap();
        }
        compare(&fixture, &stream, &writer.into_inner());
    }
}

#[test]
fn every_device_state_inside_a_xen_capture() {
    for fixture in fixtures("xen").unwrap() {
        let stream = fixture.stream().unwrap();
        let mut reader = xen::StreamReader::new(stream.as_slice());
        let mut found = 0;
        while let Some(event) = reader.next_event().unwrap() {
            let xen::Event::Libxl(xen::libxl::Record::EmulatorContext(record)) = event else { continue };
            let path = hyperferry_wire::StreamPath::root();
            let state = qemu::DeviceState::decode_emulator_context(&record.blob, 0, path).unwrap();
            compare(&fixture, &record.blob, &state.encode_emulator_context().unwrap());
            found += 1;
        }
        assert_eq!(found, 1, "{}", fixture.name);
    }
}

#[test]
fn every_qemu_capture() {
    // Files whose pages stand at fixed places (mapped-ram) are read and not written.
    let fixtures = fixtures("qemu").unwrap().into_iter().filter(|fixture| !fixture.name.ends_with("mapped"));
    for fixture in fixtures {
        let stream = fixture.stream().unwrap();
        let mut reader = qemu::StreamReader::new(stream.as_slice());
        let mut writer = qemu::StreamWriter::new(Vec::with_capacity(stream.len()));
        while let Some(event) =
            reader.next_event().unwrap_or_else(|error| panic!("{}: {error}", fixture.name))
        {
            writer.event(&event).unwrap();
        }
        compare(&fixture, &stream, &writer.into_inner());
    }
}
