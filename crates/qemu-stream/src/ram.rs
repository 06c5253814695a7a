//! The `ram` section, version 4: block list, then pages in chunks.
//!
//! ```text
//! START        u64 total | 0x04, blocks { u8 length + name, u64 used_length } until their sum is total, u64 0x10
//! PART, END    chunks, u64 0x10
//! chunk        u64 page offset | flags, [u8 length + block name unless CONTINUE],
//!              ZERO: u8 0, PAGE: 4096 bytes
//! ```
//!
//! Source: `migration/ram.c`, QEMU 7.2 and 10.0. Page: `formats/qemu/ram.md`.

use std::ops::Range;

use hyperferry_wire::{Error, ErrorKind, PAGE_SIZE, Result, StreamPath};
use serde::{Deserialize, Serialize};

/// idstr of the section.
pub const RAM: &str = "ram";

/// The version that QEMU has written since 1.0.
pub const RAM_VERSION: u32 = 4;

/// Most RAM blocks taken. A machine has one for each of its memory backends, ROMs and framebuffers.
pub const BLOCK_LIMIT: u64 = 4096;

/// Most RAM taken in one block: what 52 bits of physical address reach.
pub const BLOCK_LENGTH_LIMIT: u64 = 1 << 52;

pub(crate) const FLAG_ZERO: u64 = 0x02;
pub(crate) const FLAG_MEM_SIZE: u64 = 0x04;
pub(crate) const FLAG_PAGE: u64 = 0x08;
pub(crate) const FLAG_EOS: u64 = 0x10;
pub(crate) const FLAG_CONTINUE: u64 = 0x20;
const FLAG_XBZRLE: u64 = 0x40;
const FLAG_HOOK: u64 = 0x80;
const FLAG_COMPRESS_PAGE: u64 = 0x100;
const FLAG_MULTIFD_FLUSH: u64 = 0x200;

/// The bits of a chunk header that are flags.
pub(crate) const FLAGS: u64 = PAGE_SIZE as u64 - 1;

/// A RAM block: a piece of memory with a name of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamBlock {
    /// `pc.ram`, `pc.bios`, `0000:00:02.0/vga.vram`, …
    pub name: String,
    /// Bytes in use.
    pub used_length: u64,
}

/// The START section: the blocks that pages will belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamStart {
    /// A label that the sender chose, repeated by PART and END.
    pub section_id: u32,
    /// Version of the format: 4.
    pub version: u32,
    /// In stream order.
    pub blocks: Vec<RamBlock>,
}

/// One page of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamPage {
    /// Where it begins in the stream.
    pub at: u64,
    /// Which block, by its position in the START section.
    pub block: usize,
    /// Byte offset in the block.
    pub offset: u64,
    /// Whether the stream relies on the block of the page before (CONTINUE).
    pub continues: bool,
    /// Zero, or where in the chunk its bytes are.
    pub content: PageContent,
}

/// What a page holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageContent {
    /// Zeros.
    Zero,
    /// Bytes; see [`RamChunk::data`].
    Data(Range<usize>),
}

/// A batch of pages, as many as arrived together and at most 1 MiB.
#[derive(Clone, Copy, Debug)]
pub struct RamChunk<'a> {
    pub(crate) pages: &'a [RamPage],
    pub(crate) bytes: &'a [u8],
}

impl<'a> RamChunk<'a> {
    /// The pages in stream order. A later one overrides an earlier one.
    pub fn pages(&self) -> &'a [RamPage] {
        self.pages
    }

    /// The bytes of a page of this batch; `None` if it is zero.
    pub fn data(&self, page: &RamPage) -> Option<&'a [u8]> {
        match &page.content {
            PageContent::Zero => None,
            PageContent::Data(range) => self.bytes.get(range.clone()),
        }
    }

    /// Block, offset and bytes (`None`: zero) of each page.
    pub fn iter(&self) -> impl Iterator<Item = (usize, u64, Option<&'a [u8]>)> + use<'a> {
        let chunk = *self;
        chunk.pages.iter().map(move |page| (page.block, page.offset, chunk.data(page)))
    }
}

/// Whether a page is all zeros: 256 bytes at a step, which the compiler turns into vector instructions.
pub fn is_zero(page: &[u8]) -> bool {
    let (steps, rest) = page.as_chunks::<256>();
    steps.iter().all(|step| {
        let (words, _) = step.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    }) && rest.iter().all(|byte| *byte == 0)
}

/// What the first bytes of a batch turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// So many bytes are pages, and more may follow.
    Pages(usize),
    /// So many bytes are pages, and the end mark follows them.
    End(usize),
}

/// Walks chunk headers in bytes that have arrived.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// The block of the last page: it survives the end of a section.
    current: Option<usize>,
}

impl Scanner {
    /// Collects whole pages from `bytes`, which stand at `offset`, until they end, the end mark comes or
    /// `limit` bytes are taken. Bytes of an unfinished chunk are left.
    pub(crate) fn scan(
        &mut self,
        blocks: &[RamBlock],
        bytes: &[u8],
        offset: u64,
        limit: usize,
        pages: &mut Vec<RamPage>,
    ) -> Result<Scan> {
        let mut at = 0;
        while at < limit {
            let Some((head, mut rest)) = bytes.get(at..).and_then(<[u8]>::split_first_chunk::<8>) else {
                break;
            };
            let head = u64::from_be_bytes(*head);
            let (flags, page_offset) = (head & FLAGS, head & !FLAGS);
            if flags == FLAG_EOS && page_offset == 0 {
                return Ok(Scan::End(at));
            }
            let here = offset + at as u64;
            let continues = flags & FLAG_CONTINUE != 0;
            check_flags(flags & !FLAG_CONTINUE, head, here)?;
            let block = if continues {
                self.current.ok_or_else(|| {
                    let wanted = "a block name, for no page came before";
                    Error::invalid(&path(), here, "CONTINUE", format_args!("{head:#x}"), wanted)
                })?
            } else {
                let Some((name, after)) = split_name(rest) else { break };
                rest = after;
                find_block(blocks, name, here)?
            };
            let length = if flags & FLAG_PAGE != 0 { PAGE_SIZE } else { 1 };
            let Some(payload) = rest.get(..length) else { break };
            check_offset(blocks, block, page_offset, here)?;
            let start = bytes.len() - rest.len();
            let content = match payload {
                [0] => PageContent::Zero,
                [fill] => {
                    let at = offset + start as u64;
                    return Err(Error::invalid(&path(), at, "fill byte", format_args!("{fill:#x}"), "0x0"));
                }
                _ => PageContent::Data(start..start + length),
            };
            pages.push(RamPage { at: here, block, offset: page_offset, continues, content });
            self.current = Some(block);
            at = start + length;
        }
        Ok(Scan::Pages(at))
    }
}

pub(crate) fn path() -> StreamPath {
    StreamPath::root().child(RAM)
}

fn split_name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

fn find_block(blocks: &[RamBlock], name: &[u8], at: u64) -> Result<usize> {
    blocks.iter().position(|block| block.name.as_bytes() == name).ok_or_else(|| {
        let found = String::from_utf8_lossy(name).into_owned();
        Error::invalid(&path(), at + 8, "block name", found, "a block of the START section")
    })
}

fn check_offset(blocks: &[RamBlock], block: usize, offset: u64, at: u64) -> Result<()> {
    match blocks.get(block) {
        Some(block) if offset < block.used_length => Ok(()),
        Some(block) => {
            let found = format_args!("{offset:#x}");
            let wanted = format_args!("less than {:#x} of {}", block.used_length, block.name);
            Err(Error::invalid(&path(), at, "page offset", found, wanted))
        }
        None => Err(Error::invalid(&path(), at, "block", block, "a block of the START section")),
    }
}

fn check_flags(flags: u64, head: u64, at: u64) -> Result<()> {
    let (what, why) = match flags {
        FLAG_PAGE | FLAG_ZERO => return Ok(()),
        FLAG_XBZRLE => {
            ("xbzrle pages", "they are differences; switch the capability xbzrle off at the source")
        }
        FLAG_COMPRESS_PAGE => ("compressed pages", "switch the capability compress off at the source"),
        FLAG_HOOK => ("RDMA hooks", "pages travel by RDMA; migrate over tcp or unix instead"),
        FLAG_MULTIFD_FLUSH => {
            ("multifd", "pages travel on other connections; switch the capability multifd off at the source")
        }
        _ => {
            let found = format_args!("{head:#x}");
            let wanted = "ZERO (0x2), PAGE (0x8) or EOS (0x10)";
            return Err(Error::invalid(&path(), at, "chunk flags", found, wanted));
        }
    };
    let kind = ErrorKind::Unreadable { what: what.to_owned(), why: why.to_owned() };
    Err(Error::new(path(), at, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks() -> Vec<RamBlock> {
        let block = |name: &str| RamBlock { name: name.to_owned(), used_length: 0x4000 };
        vec![block("pc.ram"), block("pc.bios")]
    }

    fn scan(bytes: &[u8], limit: usize) -> (Result<Scan>, Vec<RamPage>) {
        let mut pages = Vec::new();
        let found = Scanner::default().scan(&blocks(), bytes, 0x100, limit, &mut pages);
        (found, pages)
    }

    fn chunk(head: u64, name: &str, payload: &[u8]) -> Vec<u8> {
        let mut bytes = head.to_be_bytes().to_vec();
        if !name.is_empty() {
            bytes.push(name.len().try_into().unwrap());
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn walks_names_continue_zero_and_page() {
        let mut bytes = chunk(0x1000 | FLAG_PAGE, "pc.bios", &[7; PAGE_SIZE]);
        bytes.extend(chunk(0x2000 | FLAG_ZERO | FLAG_CONTINUE, "", &[0]));
        let end = bytes.len();
        bytes.extend(FLAG_EOS.to_be_bytes());
        let (found, pages) = scan(&bytes, usize::MAX);
        assert_eq!(found.unwrap(), Scan::End(end));
        assert_eq!(pages[0].content, PageContent::Data(16..16 + PAGE_SIZE));
        assert_eq!((pages[1].block, pages[1].offset, &pages[1].content), (1, 0x2000, &PageContent::Zero));
        assert_eq!((pages[0].at, pages[1].at), (0x100, 0x100 + 16 + PAGE_SIZE as u64));
    }

    #[test]
    fn an_unfinished_chunk_is_left_for_later() {
        let mut bytes = chunk(FLAG_ZERO, "pc.ram", &[0]);
        let whole = bytes.len();
        bytes.extend(chunk(0x1000 | FLAG_PAGE, "pc.bios", &[7; PAGE_SIZE]));
        for length in whole..bytes.len() {
            let (found, pages) = scan(&bytes[..length], usize::MAX);
            assert_eq!((found.unwrap(), pages.len()), (Scan::Pages(whole), 1), "{length}");
        }
    }

    #[test]
    fn what_we_cannot_read_is_refused_by_name() {
        for (flag, name) in [
            (FLAG_XBZRLE, "xbzrle"),
            (FLAG_COMPRESS_PAGE, "compress"),
            (FLAG_HOOK, "RDMA"),
            (FLAG_MULTIFD_FLUSH, "multifd"),
        ] {
            let error = scan(&chunk(flag, "pc.ram", &[0; 64]), usize::MAX).0.unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn faults_say_where() {
        let fault = |bytes: &[u8]| scan(bytes, usize::MAX).0.unwrap_err().to_string();
        assert_eq!(
            fault(&chunk(0x4000 | FLAG_ZERO, "pc.ram", &[0])),
            "ram @0x100: page offset: found 0x4000, wanted less than 0x4000 of pc.ram"
        );
        assert_eq!(
            fault(&chunk(FLAG_ZERO, "pc.rom", &[0])),
            "ram @0x108: block name: found pc.rom, wanted a block of the START section"
        );
        assert_eq!(fault(&chunk(FLAG_ZERO, "pc.ram", &[9])), "ram @0x10f: fill byte: found 0x9, wanted 0x0");
        assert_eq!(
            fault(&chunk(FLAG_ZERO | FLAG_CONTINUE, "", &[0])),
            "ram @0x100: CONTINUE: found 0x22, wanted a block name, for no page came before"
        );
        assert_eq!(
            fault(&chunk(FLAG_PAGE | FLAG_ZERO, "pc.ram", &[0])),
            "ram @0x100: chunk flags: found 0xa, wanted ZERO (0x2), PAGE (0x8) or EOS (0x10)"
        );
    }

    #[test]
    fn one_set_bit_anywhere_makes_a_page_not_zero() {
        let mut page = [0; PAGE_SIZE];
        assert!(is_zero(&page));
        for at in 0..PAGE_SIZE {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
    }
}
