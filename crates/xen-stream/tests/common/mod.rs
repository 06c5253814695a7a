//! Streams built byte by byte, apart from the crate's own encoders.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

use hyperferry_wire::{Result, Strictness};
use hyperferry_xen_stream::{Event, StreamReader, StreamWriter};

/// HEADER of a 4.17.7 capture.
pub const HVM_HEADER: &str = "0100 0000 18000000  86123854 01000000 ffffffffffffffff 120f8000 189d2700";
/// The same, then END.
pub const HVM_CONTEXT: &str = "
    0100 0000 18000000  86123854 01000000 ffffffffffffffff 120f8000 189d2700
    0000 0000 00000000";
/// Four PFN entries at work: a page, a hole, a page, a hole.
pub const MIXED_PFNS: [u64; 4] = [0x0, 0xf000_0000_0000_00a0, 0x1, 0xf000_0000_0001_0000];

/// The bytes that hexadecimal digits stand for; spaces and line ends are free.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap();
    digits.chunks(2).map(|pair| u8::try_from(digit(pair[0]) << 4 | digit(pair[1])).unwrap()).collect()
}

/// A stream as it grows.
#[derive(Clone, Default)]
pub struct Stream {
    pub bytes: Vec<u8>,
    /// Where each element starts.
    pub starts: Vec<usize>,
}

impl Stream {
    /// xl header and libxl header.
    pub fn start() -> Self {
        let config = b"{\n    \"c_info\": {\n        \"type\": \"hvm\"\n    }\n}\n\0";
        let mut header = b"Xen saved domain, xl format\n \0 \r".to_vec();
        header.extend(hex("04030201 03000000 00000000"));
        header.extend(u32::try_from(config.len() + 4).unwrap().to_le_bytes());
        header.extend(u32::try_from(config.len()).unwrap().to_le_bytes());
        header.extend(config);
        Self::default().raw(&header).raw(&hex("4c6962786c466d74 00000002 00000000"))
    }

    /// LIBXC_CONTEXT, image header of this version, domain header of this type (from Xen 4.17).
    pub fn image(self, version: u8, domain: u8) -> Self {
        self.record(1, &[])
            .raw(&hex(&format!("ffffffffffffffff 58454e46 000000{version:02x} 0000 0000 00000000")))
            .raw(&hex(&format!("{domain:02x}000000 0c00 0000 04000000 11000000")))
    }

    /// The start of an HVM stream up to STATIC_DATA_END.
    pub fn hvm() -> Self {
        Self::start()
            .image(3, 2)
            .record(0x11, &hex("00000000 ffffffff 0d000000 68747541 444d4163 656e7469"))
            .record(0x12, &hex("ce000000 00000000 0000008000000000"))
            .record(0x10, &[])
    }

    /// X86_TSC_INFO, HVM_CONTEXT, HVM_PARAMS, END, as Xen orders them.
    pub fn state(self) -> Self {
        self.record(0x08, &hex("00000000 189d2700 87654321 00000000 01000000 00000000"))
            .record(0x09, &hex(HVM_CONTEXT))
            .record(0x0a, &hex("01000000 00000000 0100000000000000 fcef0f0000000000"))
            .record(0x00, &[])
    }

    /// EMULATOR_CONTEXT with a blob of odd length, END.
    pub fn finish(self) -> Self {
        self.record(3, &hex("02000000 00000000 5145564d 00000003 00")).record(0, &[])
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.starts.push(self.bytes.len());
        self.bytes.extend(bytes);
        self
    }

    /// Where the last element starts.
    pub fn last(&self) -> usize {
        *self.starts.last().unwrap()
    }

    /// A record, padded.
    pub fn record(self, kind: u32, body: &[u8]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        self.raw(&bytes)
    }

    /// A PAGE_DATA record; each page with data is filled with the next byte from `fill` on.
    pub fn pages(self, pfns: &[u64], fill: u8) -> Self {
        let mut body = u32::try_from(pfns.len()).unwrap().to_le_bytes().to_vec();
        body.extend([0; 4]);
        body.extend(pfns.iter().flat_map(|pfn| pfn.to_le_bytes()));
        let with_data = pfns.iter().filter(|pfn| *pfn >> 60 < 0xd).count();
        for page in 0..with_data {
            body.extend([fill.wrapping_add(u8::try_from(page % 256).unwrap()); 4096]);
        }
        self.record(1, &body)
    }
}

/// Reads all of a stream and writes it again.
pub fn round_trip(bytes: &[u8], strictness: Strictness) -> Result<(Vec<String>, Vec<u8>)> {
    let mut reader = StreamReader::new(bytes).with_strictness(strictness);
    let mut writer = StreamWriter::new(Vec::new());
    let mut names = Vec::new();
    while let Some(event) = reader.next_event()? {
        let name = match &event {
            Event::Pages(chunk) => format!("{} pages", chunk.entries.len()),
            event => event.name().into_owned(),
        };
        names.push(name);
        writer.write(&event)?;
    }
    Ok((names, writer.into_inner()))
}

/// The error of a stream that must have one, as text.
pub fn fault(bytes: &[u8], strictness: Strictness) -> String {
    round_trip(bytes, strictness).unwrap_err().to_string()
}
