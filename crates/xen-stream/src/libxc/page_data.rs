//! PAGE_DATA: pages of guest memory. They pass through in chunks and are never kept.
//!
//! ```text
//! u32 count | u32 reserved | count × u64 pfn | 4096 bytes for each pfn whose type carries data
//! ```

use std::fmt;

use hyperferry_wire::{Cursor, PAGE_SIZE, Result, Strictness};

/// The record's type.
pub const PAGE_DATA: u32 = 0x0000_0001;

/// Entries that we accept in one record: as many as there are pages in the longest record allowed.
///
/// Xen sends at most 1024 (`MAX_BATCH_SIZE`).
pub const COUNT_LIMIT: u32 = super::RECORD_LENGTH_MAX / 4096;

/// Pages in one step of a record's data: 128 KiB, about what a socket holds.
///
/// Whoever reads much more before he writes leaves the sender without room and the receiver without bytes in turn: steps
/// of 1 MiB took half as long again between sockets, at the same processor time.
pub const PAGES_PER_CHUNK: usize = 32;

/// One entry of a PAGE_DATA record: bits 51:0 frame number, 59:52 reserved, 63:60 type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PfnEntry(pub u64);

/// What stands at a frame number (`XEN_DOMCTL_PFINFO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageType(pub u8);

/// Some of the pages of a PAGE_DATA record, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageChunk<'a> {
    /// Their entries, only those with data.
    pub entries: &'a [PfnEntry],
    /// Their contents, 4096 bytes each.
    pub data: &'a [u8],
}

impl PfnEntry {
    const PFN_MASK: u64 = 0x000f_ffff_ffff_ffff;
    const RESERVED_MASK: u64 = 0x0ff0_0000_0000_0000;

    /// An entry for this frame.
    pub fn new(pfn: u64, page_type: PageType) -> Self {
        Self(pfn & Self::PFN_MASK | u64::from(page_type.0) << 60)
    }

    /// The frame number: of an HVM domain, the guest-physical one.
    pub fn pfn(self) -> u64 {
        self.0 & Self::PFN_MASK
    }

    /// What stands there.
    pub fn page_type(self) -> PageType {
        PageType(u8::try_from(self.0 >> 60).unwrap_or(u8::MAX))
    }

    /// Whether the record carries the page's contents.
    pub fn has_data(self) -> bool {
        self.page_type().has_data()
    }
}

impl PageType {
    /// A plain page.
    pub const NOTAB: Self = Self(0x0);
    /// A page that the hardware lost.
    pub const BROKEN: Self = Self(0xd);
    /// A page to allocate, without contents.
    pub const XALLOC: Self = Self(0xe);
    /// No page; on a receiver it does not undo an earlier one.
    pub const XTAB: Self = Self(0xf);

    /// Whether the record carries the page's contents.
    pub fn has_data(self) -> bool {
        self.0 < Self::BROKEN.0
    }

    /// The name, where the type is not reserved.
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0x0 => "NOTAB",
            0x1 => "L1TAB",
            0x2 => "L2TAB",
            0x3 => "L3TAB",
            0x4 => "L4TAB",
            0x9 => "L1TAB_PIN",
            0xa => "L2TAB_PIN",
            0xb => "L3TAB_PIN",
            0xc => "L4TAB_PIN",
            0xd => "BROKEN",
            0xe => "XALLOC",
            0xf => "XTAB",
            _ => return None,
        })
    }
}

impl fmt::Display for PageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

/// Reads the entries into `entries`, replacing what it held.
pub(crate) fn decode_entries(cursor: &mut Cursor<'_>, entries: &mut Vec<PfnEntry>) -> Result<()> {
    entries.clear();
    while cursor.remaining() > 0 {
        let entry = PfnEntry(cursor.u64("pfn")?);
        let reserved = entry.0 & PfnEntry::RESERVED_MASK;
        if entry.page_type().name().is_none() {
            let field = format!("type of pfn[{}]", entries.len());
            return Err(cursor.invalid(&field, 8, entry.page_type().0, "0x0 to 0x4 or 0x9 to 0xf"));
        }
        if cursor.strictness() == Strictness::Strict && reserved != 0 {
            let field = format!("pfn[{}]", entries.len());
            return Err(cursor.invalid(&field, 8, entry.0, "reserved bits 59:52 zero"));
        }
        entries.push(entry);
    }
    Ok(())
}

/// The body's length with these entries.
pub(crate) fn body_length(entries: &[PfnEntry]) -> u64 {
    let pages = entries.iter().filter(|entry| entry.has_data()).count();
    (8 + 8 * entries.len() + PAGE_SIZE * pages) as u64
}
