use std::fmt::LowerHex;

use nom::{IResult, Parser, bytes::complete::take, number::Endianness, number::complete as number};

use crate::{Endian, Error, ErrorKind, Result, StreamPath};

/// How to treat bytes that a format reserves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strictness {
    /// Receive: reserved bits are ignored, as the specifications ask of a receiver.
    #[default]
    Tolerant,
    /// Judge: reserved bits must be what the specification says a sender writes.
    Strict,
}

/// Walks one bounded frame, field by field.
///
/// It knows the frame's path and its offset in the whole stream, so that each error can say where.
/// [`Cursor::finish`] makes bytes left over an error: call it when the last field was read.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    offset: u64,
    path: StreamPath,
    endian: Endian,
    strictness: Strictness,
}

impl<'a> Cursor<'a> {
    /// A cursor over `bytes`, which start at `offset` of the stream.
    pub fn new(bytes: &'a [u8], offset: u64, path: StreamPath, endian: Endian) -> Self {
        Self { rest: bytes, offset, path, endian, strictness: Strictness::default() }
    }

    /// The same cursor, judging or receiving.
    #[must_use]
    pub fn with_strictness(mut self, strictness: Strictness) -> Self {
        self.strictness = strictness;
        self
    }

    /// Whether reserved bytes are judged.
    pub fn strictness(&self) -> Strictness {
        self.strictness
    }

    /// Where the next byte stands in the stream.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The element that is being read.
    pub fn path(&self) -> &StreamPath {
        &self.path
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The bytes not read yet, without reading them.
    pub fn peek(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads a `u8`.
    pub fn u8(&mut self, field: &str) -> Result<u8> {
        self.run(field, 1, number::u8)
    }

    /// Reads a `u16` in the cursor's byte order.
    pub fn u16(&mut self, field: &str) -> Result<u16> {
        let parse = number::u16(self.nom_endian());
        self.run(field, 2, parse)
    }

    /// Reads a `u32` in the cursor's byte order.
    pub fn u32(&mut self, field: &str) -> Result<u32> {
        let parse = number::u32(self.nom_endian());
        self.run(field, 4, parse)
    }

    /// Reads a `u64` in the cursor's byte order.
    pub fn u64(&mut self, field: &str) -> Result<u64> {
        let parse = number::u64(self.nom_endian());
        self.run(field, 8, parse)
    }

    /// Reads an `i32` in the cursor's byte order.
    pub fn i32(&mut self, field: &str) -> Result<i32> {
        let parse = number::i32(self.nom_endian());
        self.run(field, 4, parse)
    }

    /// Reads an `i64` in the cursor's byte order.
    pub fn i64(&mut self, field: &str) -> Result<i64> {
        let parse = number::i64(self.nom_endian());
        self.run(field, 8, parse)
    }

    /// Reads `length` bytes.
    pub fn bytes(&mut self, field: &str, length: usize) -> Result<&'a [u8]> {
        self.run(field, length, take(length))
    }

    /// Reads `N` bytes.
    pub fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let bytes = self.bytes(field, N)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    /// Reads `N` values of one kind: `cursor.many("isr", Cursor::u32)`.
    pub fn many<T: Copy + Default, const N: usize>(
        &mut self,
        field: &str,
        mut read: impl FnMut(&mut Self, &str) -> Result<T>,
    ) -> Result<[T; N]> {
        let mut values = [T::default(); N];
        for value in &mut values {
            *value = read(self, field)?;
        }
        Ok(values)
    }

    /// Reads what is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = self.rest;
        self.advance(rest.len());
        rest
    }

    /// Cuts the next `length` bytes off as a frame of its own, one path level deeper.
    pub fn sub(&mut self, segment: &str, length: usize) -> Result<Cursor<'a>> {
        let offset = self.offset;
        let bytes = self.bytes(segment, length)?;
        Ok(Cursor {
            rest: bytes,
            offset,
            path: self.path.child(segment),
            endian: self.endian,
            strictness: self.strictness,
        })
    }

    /// Reads `length` reserved bytes; a judge wants them zero, a receiver ignores them.
    pub fn reserved(&mut self, field: &str, length: usize) -> Result<()> {
        let offset = self.offset;
        let bytes = self.bytes(field, length)?;
        if self.strictness == Strictness::Strict
            && let Some((index, byte)) = bytes.iter().enumerate().find(|(_, byte)| **byte != 0)
        {
            let at = offset + index as u64;
            return Err(Error::invalid(&self.path, at, field, format_args!("{byte:#x}"), "0x0"));
        }
        Ok(())
    }

    /// Ends the frame: bytes left over are an error.
    pub fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let kind = ErrorKind::Trailing { found: self.rest.len() as u64 };
        Err(Error::new(self.path, self.offset, kind))
    }

    /// An error about a field that was just read and is `width` bytes wide.
    pub fn invalid(
        &self,
        field: &str,
        width: u64,
        found: impl LowerHex,
        wanted: impl std::fmt::Display,
    ) -> Error {
        let at = self.offset.saturating_sub(width);
        Error::invalid(&self.path, at, field, format_args!("{found:#x}"), wanted)
    }

    fn nom_endian(&self) -> Endianness {
        match self.endian {
            Endian::Little => Endianness::Little,
            Endian::Big => Endianness::Big,
        }
    }

    fn advance(&mut self, length: usize) {
        self.rest = self.rest.get(length..).unwrap_or_default();
        self.offset += length as u64;
    }

    /// Runs a nom parser of fixed width and turns its failure into ours.
    fn run<T>(
        &mut self,
        field: &str,
        width: usize,
        mut parser: impl Parser<&'a [u8], Output = T, Error = nom::error::Error<&'a [u8]>>,
    ) -> Result<T> {
        let parsed: IResult<&[u8], T> = parser.parse(self.rest);
        match parsed {
            Ok((rest, value)) => {
                self.advance(self.rest.len() - rest.len());
                Ok(value)
            }
            Err(_) => {
                let kind = ErrorKind::Truncated {
                    field: field.to_owned(),
                    found: self.rest.len() as u64,
                    wanted: width as u64,
                };
                Err(Error::new(self.path.clone(), self.offset, kind))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(bytes: &[u8], endian: Endian) -> Cursor<'_> {
        Cursor::new(bytes, 0x100, StreamPath::root().child("frame"), endian)
    }

    #[test]
    fn reads_both_byte_orders() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(cursor(&bytes, Endian::Little).u32("x").unwrap(), 0x0403_0201);
        assert_eq!(cursor(&bytes, Endian::Big).u64("x").unwrap(), 0x0102_0304_0506_0708);
        let pair: [u16; 2] = cursor(&bytes, Endian::Big).many("x", Cursor::u16).unwrap();
        assert_eq!(pair, [0x0102, 0x0304]);
    }

    #[test]
    fn truncation_names_field_and_offset() {
        let mut frame = cursor(&[1, 2, 3], Endian::Little);
        frame.u8("kind").unwrap();
        let error = frame.u32("length").unwrap_err();
        assert_eq!(error.to_string(), "frame @0x101: length: found 2 bytes, wanted 4");
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut frame = cursor(&[1, 2], Endian::Little);
        frame.u8("kind").unwrap();
        let error = frame.finish().unwrap_err();
        assert_eq!(error.to_string(), "frame @0x101: 1 bytes left over after the last field, wanted 0");
    }

    #[test]
    fn only_a_judge_minds_reserved_bytes() {
        cursor(&[0, 7], Endian::Little).reserved("pad", 2).unwrap();
        let mut strict = cursor(&[0, 7], Endian::Little).with_strictness(Strictness::Strict);
        let error = strict.reserved("pad", 2).unwrap_err();
        assert_eq!(error.to_string(), "frame @0x101: pad: found 0x7, wanted 0x0");
    }
}
