//! What the tests of this crate share: real streams and how to walk them.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on has failed")]

use std::path::Path;

use hyperferry_qemu_stream::{DeviceState, Event, StreamReader, StreamWriter};
use hyperferry_wire::{Result, StreamPath};

/// Name and bytes of every whole stream in `testdata`.
pub(crate) fn streams() -> Vec<(String, Vec<u8>)> {
    files(|name| !name.ends_with(EMULATOR_CONTEXT))
}

/// Name and bytes of every EMULATOR_CONTEXT in `testdata`.
pub(crate) fn emulator_contexts() -> Vec<(String, Vec<u8>)> {
    files(|name| name.ends_with(EMULATOR_CONTEXT))
}

const EMULATOR_CONTEXT: &str = ".emulator-context";

fn files(wanted: impl Fn(&str) -> bool) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if let Some(name) = name.strip_suffix(".zst").filter(|name| wanted(name)) {
            files.push((name.to_owned(), load(name)));
        }
    }
    assert!(files.len() >= 4);
    files.sort();
    files
}

/// A file of `testdata` by name.
pub(crate) fn load(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(format!("{name}.zst"));
    zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap()
}

/// The blob of a Xen save file.
pub(crate) fn emulator_context() -> Vec<u8> {
    load("xen-4.17.emulator-context")
}

pub(crate) fn decode_emulator_context(blob: &[u8]) -> Result<DeviceState> {
    DeviceState::decode_emulator_context(blob, 0, StreamPath::root())
}

/// Reads a stream to its end, writes it again and gives its device state and what was written.
pub(crate) fn round_trip(bytes: &[u8]) -> Result<(DeviceState, Vec<u8>)> {
    let mut reader = StreamReader::new(bytes);
    let mut writer = StreamWriter::new(Vec::new());
    let mut state = None;
    while let Some(event) = reader.next_event()? {
        writer.event(&event).unwrap();
        if let Event::DeviceState(found) = event {
            state = Some(found);
        }
    }
    Ok((state.unwrap(), writer.into_inner()))
}

/// The same stream without its description, and where its device state begins.
pub(crate) fn bare(bytes: &[u8]) -> (&[u8], usize) {
    let mut reader = StreamReader::new(bytes);
    let mut start = 0;
    loop {
        let offset = reader.offset();
        match reader.next_event().unwrap().unwrap() {
            Event::DeviceState(state) => {
                let text = state.vmdesc.unwrap().text().len();
                return (&bytes[..bytes.len() - text - 5], start);
            }
            _ => start = usize::try_from(reader.offset().max(offset)).unwrap(),
        }
    }
}
