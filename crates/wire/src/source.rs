use std::io::{self, Read};

use crate::{Error, ErrorKind, Result, StreamPath};

/// Takes bytes from any reader, counts them, and cuts bounded frames.
///
/// The caller compares each length with a limit first ([`Source::limit`]); buffers then grow only as bytes
/// really arrive, so a stream that lies about a length costs its own size and no more.
#[derive(Debug)]
pub struct Source<R> {
    reader: R,
    offset: u64,
}

/// How much a buffer grows ahead of the bytes that fill it.
const GROWTH: usize = 1 << 20;

impl<R: Read> Source<R> {
    /// Starts counting at 0.
    pub fn new(reader: R) -> Self {
        Self { reader, offset: 0 }
    }

    /// Bytes taken so far, which is the offset of the next one.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The reader, from the current position.
    pub fn into_inner(self) -> R {
        self.reader
    }

    /// Refuses a length or count over its limit; `at` is where the length itself stood.
    pub fn limit(path: &StreamPath, at: u64, field: &str, found: u64, limit: u64) -> Result<()> {
        if found <= limit {
            return Ok(());
        }
        Err(Error::new(path.clone(), at, ErrorKind::Limit { field: field.to_owned(), found, limit }))
    }

    /// Takes exactly `N` bytes.
    pub fn take_array<const N: usize>(&mut self, path: &StreamPath, field: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(path, field, &mut bytes)?;
        Ok(bytes)
    }

    /// Takes exactly `length` bytes into `buffer`, replacing what it held.
    pub fn take_into(
        &mut self,
        path: &StreamPath,
        field: &str,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        let start = self.offset;
        let mut filled = 0;
        while filled < length {
            let step = (length - filled).min(GROWTH);
            // Bytes that stand there from an earlier frame are overwritten, not cleared first.
            if buffer.len() < filled + step {
                buffer.resize(filled + step, 0);
            }
            let found = self.fill_some(path, buffer.get_mut(filled..filled + step).unwrap_or_default())?;
            filled += found;
            if found < step {
                return Err(truncated(path, start, field, filled, length));
            }
        }
        buffer.truncate(length);
        Ok(())
    }

    /// Takes exactly `length` bytes.
    pub fn take(&mut self, path: &StreamPath, field: &str, length: usize) -> Result<Vec<u8>> {
        let mut buffer = Vec::new();
        self.take_into(path, field, length, &mut buffer)?;
        Ok(buffer)
    }

    /// Takes up to `limit` bytes to the end of the stream; more than that is an error.
    pub fn take_to_end(&mut self, path: &StreamPath, field: &str, limit: usize) -> Result<Vec<u8>> {
        let start = self.offset;
        let mut bytes = Vec::new();
        let mut limited = (&mut self.reader).take(limit as u64 + 1);
        let found = limited.read_to_end(&mut bytes).map_err(|error| io_error(path, start, error))?;
        self.offset += found as u64;
        Self::limit(path, start, field, found as u64, limit as u64)?;
        Ok(bytes)
    }

    /// Fills `bytes` or says how many there were.
    pub fn fill(&mut self, path: &StreamPath, field: &str, bytes: &mut [u8]) -> Result<()> {
        let start = self.offset;
        let found = self.fill_some(path, bytes)?;
        if found < bytes.len() {
            return Err(truncated(path, start, field, found, bytes.len()));
        }
        Ok(())
    }

    /// Takes one byte, or `None` at the end of the stream.
    pub fn next_byte(&mut self, path: &StreamPath) -> Result<Option<u8>> {
        let mut byte = [0];
        let found = self.fill_some(path, &mut byte)?;
        Ok((found == 1).then_some(byte[0]))
    }

    /// Fills as much of `bytes` as there is before the end of the stream.
    fn fill_some(&mut self, path: &StreamPath, bytes: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.reader.read(rest) {
                Ok(0) => break,
                Ok(found) => filled += found,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(path, self.offset + filled as u64, error)),
            }
        }
        self.offset += filled as u64;
        Ok(filled)
    }
}

fn truncated(path: &StreamPath, at: u64, field: &str, found: usize, wanted: usize) -> Error {
    let kind = ErrorKind::Truncated { field: field.to_owned(), found: found as u64, wanted: wanted as u64 };
    Error::new(path.clone(), at, kind)
}

fn io_error(path: &StreamPath, at: u64, error: io::Error) -> Error {
    Error::new(path.clone(), at, ErrorKind::Io(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_names_what_is_missing() {
        let mut source = Source::new(&[1_u8, 2, 3, 4, 5][..]);
        let path = StreamPath::root().child("header");
        assert_eq!(source.take_array::<4>(&path, "magic").unwrap(), [1, 2, 3, 4]);
        let error = source.take_array::<4>(&path, "version").unwrap_err();
        assert_eq!(error.to_string(), "header @0x4: version: found 1 bytes, wanted 4");
    }

    #[test]
    fn a_lying_length_costs_no_more_than_the_bytes_that_came() {
        let mut source = Source::new(&[7_u8; 10][..]);
        let mut buffer = Vec::new();
        let error = source.take_into(&StreamPath::root(), "body", 1 << 40, &mut buffer).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Truncated { found: 10, .. }));
        assert!(buffer.capacity() <= 2 * GROWTH);
    }

    #[test]
    fn the_end_is_no_error_for_a_byte_that_may_come() {
        let mut source = Source::new(&[9_u8][..]);
        assert_eq!(source.next_byte(&StreamPath::root()).unwrap(), Some(9));
        assert_eq!(source.next_byte(&StreamPath::root()).unwrap(), None);
    }

    #[test]
    fn the_rest_is_bounded() {
        let error = Source::new(&[0_u8; 9][..]).take_to_end(&StreamPath::root(), "rest", 8).unwrap_err();
        assert_eq!(error.to_string(), "stream @0x0: rest: found 9, wanted at most 8");
    }
}
