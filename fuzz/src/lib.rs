//! What the fuzz targets share: the property that they check, and small streams made from the fixtures.
//!
//! The property is the same everywhere: no panic on any bytes, and what a strict reader accepts reads the same when it
//! is written again.

use std::io::{self, Read, Write};

use anyhow::Result;
use hyperferry_qemu_stream as qemu;
use hyperferry_testkit::fixtures;
use hyperferry_translate::{
    refusal::{self, Policy},
    source::Source,
};
use hyperferry_vm_model::checkpoint::Reader;
use hyperferry_wire::{StreamPath, Strictness};
use hyperferry_xen_stream::{self as xen, libxc, libxl};

/// A Xen stream, read strictly and written again.
pub fn xen_stream(bytes: &[u8]) {
    let mut reader = xen::StreamReader::new(bytes).with_strictness(Strictness::Strict);
    let mut writer = xen::StreamWriter::new(Again(bytes));
    while let Ok(Some(event)) = reader.next_event() {
        writer.write(&event).expect("what was read can be written");
    }
}

/// Takes what was read before, and nothing else.
struct Again<'a>(&'a [u8]);

impl Write for Again<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let rest = self.0.strip_prefix(bytes);
        self.0 =
            rest.unwrap_or_else(|| panic!("written: {bytes:02x?}, read: {:02x?}", self.0.get(..bytes.len())));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The device model's state inside a Xen stream, decoded and encoded again.
pub fn emulator_context(bytes: &[u8]) {
    if let Ok(state) = qemu::DeviceState::decode_emulator_context(bytes, 0, StreamPath::root()) {
        let again = state.encode_emulator_context().expect("what was decoded can be encoded");
        assert!(again == bytes, "decoded, and encoded otherwise");
    }
}

/// A QEMU stream, read to its end or its first fault.
pub fn qemu_stream(bytes: &[u8]) {
    let mut reader = qemu::StreamReader::new(bytes);
    let mut writer = qemu::StreamWriter::new(io::sink());
    while let Ok(Some(event)) = reader.next_event() {
        writer.event(&event).expect("what was read can be written");
    }
}

/// Our own file, read to its end or its first fault. Checksums are made right, or nothing behind them would be met.
pub fn checkpoint(bytes: &[u8]) {
    const HEADER: usize = 20;
    let mut bytes = bytes.to_vec();
    let mut at = HEADER;
    while let Some((head, rest)) = bytes.get_mut(at..).and_then(<[u8]>::split_first_chunk_mut::<12>) {
        let [_, _, _, _, a, b, c, d, crc @ ..] = head;
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let Some(body) = rest.get(..length) else { break };
        *crc = crc32fast::hash(body).to_le_bytes();
        at += 12 + length;
    }
    if let Ok((mut reader, _)) = Reader::new(bytes.as_slice()) {
        while let Ok(Some(_)) = reader.next_item() {}
    }
}

/// The fixtures of a format, without their memory.
pub fn slim_streams(format: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let slim: fn(&[u8]) -> Result<Vec<u8>> = if format == "xen" { slim_xen } else { slim_qemu };
    fixtures(format)?
        .into_iter()
        .map(|fixture| Ok((fixture.name.replace('/', "-"), slim(&fixture.stream()?)?)))
        .collect()
}

fn slim_xen(stream: &[u8]) -> Result<Vec<u8>> {
    let mut reader = xen::StreamReader::new(stream);
    let mut writer = xen::StreamWriter::new(Vec::new());
    while let Some(event) = reader.next_event()? {
        if !matches!(event, xen::Event::PageData(_) | xen::Event::Pages(_)) {
            writer.write(&event)?;
        }
    }
    Ok(writer.into_inner())
}

fn slim_qemu(stream: &[u8]) -> Result<Vec<u8>> {
    let mut reader = qemu::StreamReader::new(stream);
    let mut writer = qemu::StreamWriter::new(Vec::new());
    while let Some(event) = reader.next_event()? {
        if !matches!(event, qemu::Event::RamPages(_)) {
            writer.event(&event)?;
        }
    }
    Ok(writer.into_inner())
}

/// A Xen stream up to its record HVM_CONTEXT, that record's body, and the body of EMULATOR_CONTEXT.
pub fn parts(stream: &[u8]) -> Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let mut reader = xen::StreamReader::new(stream);
    let (mut before, mut context, mut emulator) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let start = usize::try_from(reader.offset())?;
        let Some(event) = reader.next_event()? else { return Ok((before, context, emulator)) };
        let is_context = matches!(event, xen::Event::Libxc(libxc::Record::HvmContext(_)));
        if let xen::Event::Libxl(libxl::Record::EmulatorContext(record)) = event {
            emulator = record.blob;
        }
        if is_context {
            let end = usize::try_from(reader.offset())?;
            before = stream[..start].to_vec();
            let length = u32::from_le_bytes(stream[start + 4..start + 8].try_into()?);
            context = stream[start + 8..end][..usize::try_from(length)?].to_vec();
        }
    }
}

/// A stream that ends behind an HVM_CONTEXT with this body.
pub fn with_context(before: &[u8], body: &[u8]) -> Vec<u8> {
    const HVM_CONTEXT: u32 = 10;
    let length = u32::try_from(body.len()).expect("an input is small");
    let padding = vec![0; body.len().next_multiple_of(8) - body.len()];
    [before, &HVM_CONTEXT.to_le_bytes(), &length.to_le_bytes(), body, &padding].concat()
}

/// A whole stream, brought into the model as far as it goes.
pub fn normalise(bytes: impl Read) {
    let mut policy = Policy::default();
    for refusal in refusal::ALL.iter().filter(|refusal| refusal.can_allow) {
        let _ = policy.allow(refusal.name);
    }
    if let Ok(source) = Source::open(bytes, policy) {
        let _ = source.pump(|_, _| Ok(()));
    }
}
