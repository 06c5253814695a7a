//! RAM with the capability `mapped-ram`: each block's pages stand at a fixed place of the file, and a bitmap tells
//! which of them mean anything.
//!
//! ```text
//! block     u8 length + name, u64 used_length
//!           u32 version, u64 page_size, u64 bitmap_offset, u64 pages_offset     offsets in the whole file
//! bitmap    one bit a page, in 64-bit words, little-endian; clear: the page is zero, whatever stands in its place
//!           up to the next MiB: nothing
//! pages     used_length bytes; the next block follows
//! ```
//!
//! The file is written at random and read from the first byte to the last: nothing in it points backwards.
//!
//! Source: `docs/devel/migration/mapped-ram.rst`, `migration/ram.c` (`MappedRamHeader`), QEMU 9.0 to 10.0. Page:
//! `formats/qemu/ram.md`.

use std::io::Read;

use hyperferry_wire::{Error, ErrorKind, PAGE_SIZE, Result, StreamPath};

use crate::ram::{PageContent, RamBlock, RamPage};
use crate::window::{WINDOW, Window};

/// The capability.
pub const MAPPED_RAM: &str = "mapped-ram";

const VERSION: u32 = 1;
/// `u32` and three `u64`.
const HEADER_LENGTH: usize = 28;
/// What `pages_offset` is rounded up to.
const ALIGNMENT: u64 = 1 << 20;
/// Largest block taken, 4 TiB: its bitmap, which has to be kept while its pages pass, has 128 MiB.
const USED_LENGTH_LIMIT: u64 = 1 << 42;

/// A block whose pages are being read.
#[derive(Debug)]
pub(crate) struct MappedBlock {
    block: usize,
    bitmap: Vec<u8>,
    /// Number of the next page, and of all.
    next: usize,
    pages: usize,
}

impl MappedBlock {
    /// Reads what stands between a block's entry and its first page. `block` is the entry's number.
    pub(crate) fn read<R: Read>(
        window: &mut Window<R>,
        path: &StreamPath,
        block: usize,
        entry: &RamBlock,
    ) -> Result<Self> {
        let path = path.child(&entry.name);
        let at = window.offset();
        if entry.used_length > USED_LENGTH_LIMIT {
            let (field, found) = ("used_length".to_owned(), entry.used_length);
            let kind = ErrorKind::Limit { field, found, limit: USED_LENGTH_LIMIT };
            return Err(Error::new(path, at, kind));
        }
        let mut header = window.frame(&path, "mapped-ram header", HEADER_LENGTH)?;
        let version = header.u32("version")?;
        if version != VERSION {
            return Err(header.invalid("version", 4, version, VERSION));
        }
        let page_size = header.u64("page_size")?;
        if page_size != PAGE_SIZE as u64 {
            return Err(header.invalid("page_size", 8, page_size, PAGE_SIZE));
        }
        let (bitmap_offset, pages_offset) = (header.u64("bitmap_offset")?, header.u64("pages_offset")?);
        let here = window.offset();
        if bitmap_offset != here {
            let found = format_args!("{bitmap_offset:#x}");
            let wanted = format!("{here:#x}, behind the header; give the file from its first byte on");
            return Err(Error::invalid(&path, at + 12, "bitmap_offset", found, wanted));
        }
        let pages = usize::try_from(entry.used_length.div_ceil(PAGE_SIZE as u64)).unwrap_or(usize::MAX);
        let bitmap_length = pages.div_ceil(64) * 8;
        let after = here + bitmap_length as u64;
        if !(after..after + ALIGNMENT).contains(&pages_offset) {
            let found = format_args!("{pages_offset:#x}");
            let wanted = format!("the first MiB from {after:#x} on");
            return Err(Error::invalid(&path, at + 20, "pages_offset", found, wanted));
        }
        let bitmap = window.frame(&path, "bitmap", bitmap_length)?.rest().to_vec();
        let gap = usize::try_from(pages_offset - after).unwrap_or(usize::MAX);
        window.frame(&path, "room before pages", gap)?;
        Ok(Self { block, bitmap, next: 0, pages })
    }

    /// Collects the pages that have arrived, at most as many as fit the window; gives how many bytes they are, with
    /// those that are passed over. None once the block is at its end.
    pub(crate) fn scan<R: Read>(
        &mut self,
        window: &mut Window<R>,
        path: &StreamPath,
        pages: &mut Vec<RamPage>,
    ) -> Result<Option<usize>> {
        if self.next == self.pages {
            return Ok(None);
        }
        while window.available().len() < PAGE_SIZE {
            if !window.read_more(path)? {
                let (found, wanted) = (window.available().len() as u64, PAGE_SIZE as u64);
                let kind = ErrorKind::Truncated { field: "page".to_owned(), found, wanted };
                return Err(Error::new(path.clone(), window.offset(), kind));
            }
        }
        let first = window.offset();
        let whole = (window.available().len().min(WINDOW) / PAGE_SIZE).min(self.pages - self.next);
        for index in 0..whole {
            let number = self.next + index;
            let start = index * PAGE_SIZE;
            let content = match self.bitmap.get(number / 8) {
                Some(byte) if byte >> (number % 8) & 1 == 1 => PageContent::Data(start..start + PAGE_SIZE),
                _ => PageContent::Zero,
            };
            let offset = number as u64 * PAGE_SIZE as u64;
            let at = first + start as u64;
            pages.push(RamPage { at, block: self.block, offset, continues: true, content });
        }
        self.next += whole;
        Ok(Some(whole * PAGE_SIZE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, StreamReader};

    /// Where the block's entry ends: header, CONFIGURATION with the capability, START, total, name, length.
    const ENTRY_END: usize = 8 + 55 + 16 + 8 + 7 + 8;

    /// The first MiB after that.
    const PAGES_AT: usize = 1 << 20;

    /// A file with one block of three pages, of which the first and the last are there.
    fn file() -> Vec<u8> {
        let mut file = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc".to_vec();
        file.extend(b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0amapped-ram");
        file.extend(b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
        file.extend((0x3000_u64 | 4).to_be_bytes());
        file.extend(b"\x06pc.ram");
        file.extend(0x3000_u64.to_be_bytes());
        assert_eq!(file.len(), ENTRY_END);
        let bitmap = (ENTRY_END + HEADER_LENGTH) as u64;
        file.extend(1_u32.to_be_bytes());
        for number in [0x1000, bitmap, ALIGNMENT] {
            file.extend(number.to_be_bytes());
        }
        file.extend([0b101, 0, 0, 0, 0, 0, 0, 0]);
        file.resize(PAGES_AT, 0);
        // What was there before the second page became zero.
        file.extend([[7; PAGE_SIZE], [8; PAGE_SIZE], [9; PAGE_SIZE]].concat());
        file.extend(0x10_u64.to_be_bytes());
        file
    }

    fn read(file: &[u8]) -> Result<Vec<(u64, Option<u8>)>> {
        let mut reader = StreamReader::new(file);
        let mut pages = Vec::new();
        loop {
            match reader.next_event()? {
                Some(Event::RamPages(chunk)) => {
                    pages.extend(chunk.iter().map(|(_, offset, data)| (offset, data.map(|page| page[0]))));
                }
                Some(Event::RamSectionEnd { .. }) | None => return Ok(pages),
                Some(_) => {}
            }
        }
    }

    fn fault(at: usize, bytes: &[u8]) -> String {
        let mut file = file();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        read(&file).unwrap_err().to_string()
    }

    #[test]
    fn pages_whose_bit_is_clear_are_zero_whatever_stands_there() {
        assert_eq!(read(&file()).unwrap(), [(0, Some(7)), (0x1000, None), (0x2000, Some(9))]);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let file = file();
        for length in [ENTRY_END + 5, ENTRY_END + 30, PAGES_AT - 1, file.len() - 9, file.len() - 1] {
            assert!(read(&file[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn faults_say_where() {
        assert_eq!(fault(ENTRY_END + 3, &[2]), "ram > pc.ram @0x66: version: found 0x2, wanted 1");
        assert_eq!(
            fault(ENTRY_END + 18, &[9]),
            "ram > pc.ram @0x72: bitmap_offset: found 0x982, wanted 0x82, behind the header; give the file from its first byte on"
        );
        assert_eq!(
            fault(ENTRY_END + 25, &[0x30]),
            "ram > pc.ram @0x7a: pages_offset: found 0x300000, wanted the first MiB from 0x8a on"
        );
        assert!(fault(ENTRY_END - 8, &[0x10]).contains("used_length"));
    }
}
