use std::io::{self, Read};

use hyperferry_wire::{Cursor, Endian, Error, ErrorKind, Result, StreamPath};

/// The largest piece that the reader holds at once, apart from the device state: one batch of pages.
pub(crate) const WINDOW: usize = 1 << 20;

/// Most bytes read at once: they are still in a cache when they are parsed and passed on, and whoever sends them has room
/// again meanwhile.
const READ: usize = 128 << 10;

/// A sliding view of the stream: bytes are parsed where the operating system put them.
///
/// [`Source`](hyperferry_wire::Source) hands out exact pieces; RAM wants the opposite, whatever has arrived,
/// so that pages are neither copied nor waited for one by one.
#[derive(Debug)]
pub(crate) struct Window<R> {
    reader: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Stream offset of `start`.
    offset: u64,
    ended: bool,
}

impl<R: Read> Window<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; WINDOW], start: 0, end: 0, offset: 0, ended: false }
    }

    /// Offset of the next byte.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that have arrived and were not consumed.
    pub(crate) fn available(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads on until `wanted` bytes are available or the stream ends; says whether they are.
    ///
    /// The buffer grows in steps of [`WINDOW`] and only for bytes that really arrive.
    pub(crate) fn want(&mut self, path: &StreamPath, wanted: usize) -> Result<bool> {
        while self.end - self.start < wanted {
            if !self.read_more(path)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads what comes next, waiting for at least one byte; says whether there was one.
    pub(crate) fn read_more(&mut self, path: &StreamPath) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.end + WINDOW, 0);
        }
        loop {
            let end = self.buffer.len().min(self.end + READ);
            let room = self.buffer.get_mut(self.end..end).unwrap_or_default();
            match self.reader.read(room) {
                Ok(found) => {
                    self.end += found;
                    self.ended = found == 0;
                    return Ok(found > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let at = self.offset + (self.end - self.start) as u64;
                    return Err(Error::new(path.clone(), at, ErrorKind::Io(error)));
                }
            }
        }
    }

    /// A cursor over the next `length` bytes, which are consumed.
    pub(crate) fn frame(&mut self, path: &StreamPath, field: &str, length: usize) -> Result<Cursor<'_>> {
        let offset = self.offset;
        if !self.want(path, length)? {
            let found = self.available().len() as u64;
            let kind = ErrorKind::Truncated { field: field.to_owned(), found, wanted: length as u64 };
            return Err(Error::new(path.clone(), offset, kind));
        }
        let start = self.start;
        self.consume(length);
        let bytes = self.buffer.get(start..start + length).unwrap_or_default();
        Ok(Cursor::new(bytes, offset, path.clone(), Endian::Big))
    }

    /// The next byte, left in place; `None` at the end of the stream.
    pub(crate) fn peek(&mut self, path: &StreamPath) -> Result<Option<u8>> {
        self.want(path, 1)?;
        Ok(self.available().first().copied())
    }

    /// Bytes already consumed, by position in the buffer; valid until the next read.
    pub(crate) fn consumed(&self, length: usize) -> &[u8] {
        let start = self.start.saturating_sub(length);
        self.buffer.get(start..self.start).unwrap_or_default()
    }

    /// Takes back bytes just consumed; valid until the next read.
    pub(crate) fn rewind(&mut self, length: usize) {
        let length = length.min(self.start);
        self.start -= length;
        self.offset -= length as u64;
    }

    /// Leaves bytes behind.
    pub(crate) fn consume(&mut self, length: usize) {
        let length = length.min(self.end - self.start);
        self.start += length;
        self.offset += length as u64;
    }
}
