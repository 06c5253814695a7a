//! Inputs: a file, a pipe or standard input, decompressed on the way if its first bytes say so.
//!
//! Source: RFC 8878 §3.1 (Zstandard frames and skippable frames), RFC 1952 §2.3.1 (gzip).

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read, Seek},
    os::fd::AsFd,
    path::Path,
};

use flate2::bufread::MultiGzDecoder;

use super::STANDARD;
use crate::{Error, Result, lane::STEP};

/// log2 of the largest window that a Zstandard stream may ask us to keep: 32 MiB, so that a conversion stays within
/// 64 MiB. All levels up to `zstd -19` and `--long=25` stay below.
const WINDOW_LOG_MAX: u32 = 25;

/// How an input is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// Zstandard.
    Zstd,
    /// gzip.
    Gzip,
}

impl Compression {
    fn detect(magic: &[u8]) -> Self {
        match magic {
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            _ => Self::None,
        }
    }
}

/// An opened input.
pub struct Input {
    /// How it was compressed.
    pub compression: Compression,
    /// Bytes that will be read from the outside, if that is known; compressed ones count as they are.
    pub size: Option<u64>,
    /// The bytes, decompressed. Small reads are buffered, large ones go straight to the source.
    pub reader: Box<dyn Read + Send>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("compression", &self.compression).finish_non_exhaustive()
    }
}

/// Opens a file, or standard input for `-`.
pub fn open_input(path: impl AsRef<Path>) -> Result<Input> {
    let path = path.as_ref();
    let failed = |source| Error::File { path: path.to_owned(), doing: "opening it to read", source };
    if path.as_os_str() == STANDARD {
        let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        return decompress(File::from(stdin)).map_err(failed);
    }
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    if metadata.is_file() {
        return decompress_file(file, metadata.len()).map_err(failed);
    }
    decompress(file).map_err(failed)
}

/// Goes back to the start once the first bytes were seen, so that later steps begin where pages do.
fn decompress_file(mut file: File, size: u64) -> io::Result<Input> {
    let magic = first_bytes(&mut file)?;
    file.rewind()?;
    decompress_as(Compression::detect(&magic), file, Some(size))
}

fn decompress(mut source: impl Read + Send + 'static) -> io::Result<Input> {
    let magic = first_bytes(&mut source)?;
    decompress_as(Compression::detect(&magic), Cursor::new(magic).chain(source), None)
}

fn first_bytes(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4);
    source.take(4).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn decompress_as(
    compression: Compression,
    whole: impl Read + Send + 'static,
    size: Option<u64>,
) -> io::Result<Input> {
    let reader: Box<dyn Read + Send> = match compression {
        Compression::None => Box::new(BufReader::with_capacity(STEP, whole)),
        Compression::Zstd => Box::new(BufReader::with_capacity(STEP, zstd(whole)?)),
        Compression::Gzip => {
            let compressed = BufReader::with_capacity(STEP, whole);
            Box::new(BufReader::with_capacity(STEP, MultiGzDecoder::new(compressed)))
        }
    };
    Ok(Input { compression, size, reader })
}

fn zstd(source: impl Read + Send + 'static) -> io::Result<impl Read + Send> {
    let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(STEP, source))?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(Explained(decoder))
}

/// Says what to do about a window that is over our limit.
struct Explained<'a, R: BufRead>(zstd::Decoder<'a, R>);

impl<R: BufRead> Read for Explained<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| {
            if !error.to_string().contains("too much memory") {
                return error;
            }
            let limit = 1 << (WINDOW_LOG_MAX - 20);
            io::Error::other(format!(
                "compressed with a window over {limit} MiB; pipe it through `zstd -dc --long=31` and read `-`"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text() -> Vec<u8> {
        (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
    }

    /// What comes out, from a pipe and from a file alike.
    fn read(bytes: Vec<u8>) -> (Compression, io::Result<Vec<u8>>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let [piped, filed] =
            [decompress(Cursor::new(bytes)).unwrap(), open_input(file.path()).unwrap()].map(|mut input| {
                let mut all = Vec::new();
                let result = input.reader.read_to_end(&mut all);
                (input.compression, result.map(|_| all))
            });
        assert_eq!(piped.0, filed.0);
        assert_eq!(piped.1.as_ref().ok(), filed.1.as_ref().ok());
        filed
    }

    #[test]
    fn what_is_compressed_is_seen_by_its_first_bytes() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text()).unwrap();
        let zstd = zstd::encode_all(&*text(), 3).unwrap();
        for (bytes, wanted) in [
            (text(), Compression::None),
            (zstd, Compression::Zstd),
            (gzip.finish().unwrap(), Compression::Gzip),
        ] {
            let (compression, content) = read(bytes);
            assert_eq!(compression, wanted);
            assert!(content.unwrap() == text(), "{wanted:?}: other bytes came out");
        }
    }

    #[test]
    fn frames_one_after_the_other_are_one_input() {
        let half = zstd::encode_all(&b"one "[..], 3).unwrap();
        let both = [half, zstd::encode_all(&b"two"[..], 3).unwrap()].concat();
        assert_eq!(read(both).1.unwrap(), b"one two");
    }

    #[test]
    fn inputs_shorter_than_a_magic_are_read_as_they_are() {
        for bytes in [&b""[..], b"\x28\xb5\x2f"] {
            assert_eq!(read(bytes.to_vec()).1.unwrap(), bytes);
        }
    }

    #[test]
    fn a_cut_off_compressed_input_is_an_error_and_not_a_short_one() {
        let mut cut = zstd::encode_all(&*text(), 3).unwrap();
        cut.truncate(cut.len() / 2);
        assert_eq!(read(cut).1.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_window_over_the_limit_says_what_to_do() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(WINDOW_LOG_MAX + 1).unwrap();
        encoder.write_all(&text()).unwrap();
        // Of unknown size, so the frame states its window and not its length.
        let error = read(encoder.finish().unwrap()).1.unwrap_err();
        assert!(error.to_string().contains("zstd -dc --long=31"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = open_input("/nowhere/x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/nowhere/x: opening it to read: No such file or directory (os error 2)"
        );
    }
}
