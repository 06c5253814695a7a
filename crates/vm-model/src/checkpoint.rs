//! Our own file of a VM between two hypervisors: `hyperferry convert IN OUT --to model`.
//!
//! ```text
//! offset size field
//! 0      16   magic "hyperferry vm\r\n\x1a"
//! 16     4    version of this layout, little-endian
//! 20     ..   chunks
//! chunk:  u32 kind, u32 body length, u32 CRC-32 of the body, then the body
//!   4 OUTLINE  the model as far as it is known before memory (configuration, layout, CPUID), in bincode 2; first
//!   1 PAGES    u32 count (1 to 256), count x u64 guest-physical address, count x 4096 bytes; a later page wins
//!   2 STATE    the whole model in bincode 2 (standard configuration)
//!   3 END      empty; last
//! ```
//!
//! Magic, version, length and checksum stand outside the bincode body and are verified before a byte of it is
//! decoded. All numbers are little-endian. Memory comes first because it streams by; the state is known last.

use std::io::{self, Read, Write};

use crate::Vm;

/// First bytes of the file.
pub const MAGIC: [u8; 16] = *b"hyperferry vm\r\n\x1a";
/// Version of the layout that this code writes.
pub const VERSION: u32 = 2;
/// Most pages in one chunk: 1 MiB, so that memory stays flat on both sides.
pub const MAX_PAGES: usize = 256;
/// Bytes of one page.
const PAGE: usize = 4096;
/// Largest state: a model of 128 vCPUs with a full device set is below 8 MiB.
const MAX_STATE: usize = 64 << 20;
/// Largest chunk of pages: count, addresses, pages.
const MAX_PAGES_BODY: usize = 4 + MAX_PAGES * (8 + PAGE);

const PAGES: u32 = 1;
const STATE: u32 = 2;
const END: u32 = 3;
const OUTLINE: u32 = 4;

/// A fault in a checkpoint file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not one of our files.
    #[error("checkpoint @0x0: magic: found {0:02x?}, wanted \"hyperferry vm\"")]
    Magic([u8; 16]),
    /// Another version wrote it.
    #[error(
        "checkpoint @0x10: version: found {0}, wanted {VERSION}; read it with the hyperferry that wrote it"
    )]
    Version(u32),
    /// A field holds what it may not.
    #[error("checkpoint @{offset:#x}: {field}: found {found:#x}, wanted {wanted}")]
    Invalid {
        /// Offset of the chunk.
        offset: u64,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What is allowed.
        wanted: &'static str,
    },
    /// The body does not match its checksum.
    #[error(
        "checkpoint @{offset:#x}: checksum: found {found:#010x}, wanted {wanted:#010x}; the file is damaged"
    )]
    Checksum {
        /// Offset of the chunk.
        offset: u64,
        /// Checksum of the bytes that are there.
        found: u32,
        /// Checksum that stands in the file.
        wanted: u32,
    },
    /// The state does not decode although its checksum is right.
    #[error("checkpoint @{offset:#x}: state: {source}")]
    State {
        /// Offset of the chunk.
        offset: u64,
        /// What bincode says.
        source: Box<bincode::error::DecodeError>,
    },
    /// The state is larger than we allow, or does not encode.
    #[error("the VM's state does not fit a checkpoint: {0}")]
    TooLarge(String),
    /// The file ends early, or the operating system failed.
    #[error("checkpoint @{offset:#x}: {source}")]
    Io {
        /// Offset of the chunk.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
}

/// Writes a checkpoint: pages as they come, then the state.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    offset: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header and what is known of the VM before its memory.
    pub fn new(out: W, outline: &Vm) -> Result<Self, Error> {
        let mut writer = Self { out, offset: 0 };
        writer.put(&MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.state(OUTLINE, outline)?;
        Ok(writer)
    }

    /// Writes pages: `data` holds one page for each address.
    pub fn pages(&mut self, addresses: &[u64], data: &[u8]) -> Result<(), Error> {
        for (addresses, data) in addresses.chunks(MAX_PAGES).zip(data.chunks(MAX_PAGES * PAGE)) {
            let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
            let mut head = Vec::with_capacity(4 + addresses.len() * 8);
            head.extend_from_slice(&count.to_le_bytes());
            for address in addresses {
                head.extend_from_slice(&address.to_le_bytes());
            }
            self.chunk(PAGES, &[&head, data])?;
        }
        Ok(())
    }

    /// Writes the state and the end, and gives the output back.
    pub fn finish(mut self, vm: &Vm) -> Result<W, Error> {
        self.state(STATE, vm)?;
        self.chunk(END, &[])?;
        self.out.flush().map_err(|source| Error::Io { offset: self.offset, source })?;
        Ok(self.out)
    }

    fn state(&mut self, kind: u32, vm: &Vm) -> Result<(), Error> {
        let state = bincode::serde::encode_to_vec(vm, bincode::config::standard())
            .map_err(|error| Error::TooLarge(error.to_string()))?;
        if state.len() > MAX_STATE {
            return Err(Error::TooLarge(format!("{} bytes, at most {MAX_STATE}", state.len())));
        }
        self.chunk(kind, &[&state])
    }

    fn chunk(&mut self, kind: u32, parts: &[&[u8]]) -> Result<(), Error> {
        let mut hasher = crc32fast::Hasher::new();
        let mut length = 0_usize;
        for part in parts {
            hasher.update(part);
            length += part.len();
        }
        let length = u32::try_from(length).map_err(|error| Error::TooLarge(error.to_string()))?;
        for word in [kind, length, hasher.finalize()] {
            self.put(&word.to_le_bytes())?;
        }
        parts.iter().try_for_each(|part| self.put(part))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(|source| Error::Io { offset: self.offset, source })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

/// What a checkpoint holds, in the order of the file.
#[derive(Debug)]
pub enum Item<'a> {
    /// Pages: one guest-physical address each, and their bytes in the same order.
    Pages {
        /// Guest-physical addresses.
        addresses: Vec<u64>,
        /// 4096 bytes for each.
        data: &'a [u8],
    },
    /// The state.
    State(Box<Vm>),
}

/// Reads a checkpoint.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    offset: u64,
    body: Vec<u8>,
    last: u32,
}

impl<R: Read> Reader<R> {
    /// Reads and checks the header, and gives what is known of the VM before its memory.
    pub fn new(input: R) -> Result<(Self, Vm), Error> {
        let mut reader = Self { input, offset: 0, body: Vec::new(), last: 0 };
        let magic: [u8; 16] = reader.take()?;
        if magic != MAGIC {
            return Err(Error::Magic(magic));
        }
        let version = u32::from_le_bytes(reader.take()?);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let (offset, _) = reader.chunk()?;
        let outline = reader.decode_state(offset)?;
        Ok((reader, outline))
    }

    /// The next item, or `None` after the end.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, Error> {
        match self.chunk()? {
            (offset, PAGES) => self.decode_pages(offset).map(Some),
            (offset, STATE) => Ok(Some(Item::State(Box::new(self.decode_state(offset)?)))),
            _ => Ok(None),
        }
    }

    /// Takes one chunk and verifies it; its kind must be one that may follow the last.
    fn chunk(&mut self) -> Result<(u64, u32), Error> {
        let offset = self.offset;
        let kind = u32::from_le_bytes(self.take()?);
        let length = u32::from_le_bytes(self.take()?);
        let wanted = u32::from_le_bytes(self.take()?);
        let limit = match (self.last, kind) {
            (0, OUTLINE) | (OUTLINE | PAGES, STATE) => MAX_STATE,
            (OUTLINE | PAGES, PAGES) => MAX_PAGES_BODY,
            (STATE, END) => 0,
            _ => {
                let wanted = "OUTLINE (4), then PAGES (1), then STATE (2), then END (3)";
                return Err(Error::Invalid { offset, field: "kind", found: kind.into(), wanted });
            }
        };
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if size > limit {
            let wanted = "no more than the limit of its kind";
            return Err(Error::Invalid { offset, field: "length", found: length.into(), wanted });
        }
        self.read_body(size)?;
        let found = crc32fast::hash(&self.body);
        if found != wanted {
            return Err(Error::Checksum { offset, found, wanted });
        }
        self.last = kind;
        Ok((offset, kind))
    }

    fn decode_state(&self, offset: u64) -> Result<Vm, Error> {
        let config = bincode::config::standard().with_limit::<MAX_STATE>();
        let (vm, used) = bincode::serde::decode_from_slice::<Vm, _>(&self.body, config)
            .map_err(|source| Error::State { offset, source: Box::new(source) })?;
        if used != self.body.len() {
            let wanted = "the whole body";
            return Err(Error::Invalid { offset, field: "state length", found: used as u64, wanted });
        }
        Ok(vm)
    }

    fn decode_pages(&self, offset: u64) -> Result<Item<'_>, Error> {
        let invalid =
            |found| Error::Invalid { offset, field: "count", found, wanted: "as many as the body holds" };
        let (count, rest) = self.body.split_first_chunk::<4>().ok_or_else(|| invalid(0))?;
        let count = u32::from_le_bytes(*count) as usize;
        if count == 0 || rest.len() != count * (8 + PAGE) {
            return Err(invalid(count as u64));
        }
        let (addresses, data) = rest.split_at(count * 8);
        let addresses = addresses.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        Ok(Item::Pages { addresses, data })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|source| Error::Io { offset: self.offset, source })?;
        self.offset += N as u64;
        Ok(bytes)
    }

    fn read_body(&mut self, length: usize) -> Result<(), Error> {
        self.body.clear();
        // `take` grows the buffer as bytes arrive: a length that lies costs no memory.
        let found = (&mut self.input)
            .take(length as u64)
            .read_to_end(&mut self.body)
            .map_err(|source| Error::Io { offset: self.offset, source })?;
        self.offset += found as u64;
        if found < length {
            let source = io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends inside a chunk");
            return Err(Error::Io { offset: self.offset, source });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Vcpu;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &Vm::default()).unwrap();
        writer.pages(&[0x1000, 0x5000], &[7; 8192]).unwrap();
        let vm = Vm {
            origin: "test".into(),
            vcpus: vec![Vcpu { id: 0, tsc: 9, ..Vcpu::default() }],
            ..Vm::default()
        };
        writer.finish(&vm).unwrap()
    }

    fn read_all(bytes: &[u8]) -> Result<(usize, Option<Vm>), Error> {
        let (mut reader, _) = Reader::new(bytes)?;
        let (mut pages, mut state) = (0, None);
        while let Some(item) = reader.next_item()? {
            match item {
                Item::Pages { addresses, data } => {
                    assert_eq!(data.len(), addresses.len() * 4096);
                    pages += addresses.len();
                }
                Item::State(vm) => state = Some(*vm),
            }
        }
        Ok((pages, state))
    }

    #[test]
    fn comes_back_as_it_was() {
        let (pages, vm) = read_all(&sample()).unwrap();
        assert_eq!(pages, 2);
        assert_eq!(vm.unwrap().vcpus[0].tsc, 9);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(read_all(&bytes[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn every_flipped_byte_is_an_error() {
        let bytes = sample();
        for at in (0..bytes.len()).filter(|at| *at < 64 || at % 61 == 0 || *at > bytes.len() - 200) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x40;
            assert!(read_all(&bytes).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = sample();
        bytes[16] = 9;
        assert!(read_all(&bytes).unwrap_err().to_string().contains("found 9, wanted 2"));
    }
}
