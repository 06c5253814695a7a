//! Bytes to events.

use std::io::Read;

use hyperferry_wire::{Cursor, Endian, Error, ErrorKind, PAGE_SIZE, Result, Source, StreamPath, Strictness};

use crate::order::{Element, Expect};
use crate::registry::length_of;
use crate::{Event, Length, Row, libxc, libxl, xl};

/// Set in the type of a record that a reader may skip without knowing it.
pub(crate) const OPTIONAL: u32 = 0x8000_0000;
/// Bodies are padded to a multiple of this.
pub(crate) const ALIGN: u32 = 8;

/// Reads a Xen save file, or what the sender of an `xl migrate` sends.
///
/// It reads no further than the element that it returns. Behind libxl's END a live sender waits for an
/// answer, so a live receiver must not ask for the next event before it has given that answer.
///
/// A body of state is held whole, with a limit; pages pass through a buffer of 128 KiB.
#[derive(Debug)]
pub struct StreamReader<R> {
    source: Source<R>,
    strictness: Strictness,
    expect: Expect,
    finished: bool,
    path: StreamPath,
    libxl_path: StreamPath,
    libxl_count: usize,
    libxc_count: usize,
    /// Why what follows the header just returned cannot be read.
    unreadable: Option<Error>,
    body: Vec<u8>,
    entries: Vec<libxc::PfnEntry>,
    with_data: Vec<libxc::PfnEntry>,
    pages_read: usize,
    pages: Vec<u8>,
}

/// What one step found; pages stay in the reader's buffers.
enum Step {
    Finished,
    Found(Event<'static>),
    PageData,
    Pages { first: usize, count: usize },
}

/// A record's type, where it stands, and its body's length.
struct RecordHeader {
    start: u64,
    kind: u32,
    length: u32,
}

impl<R: Read> StreamReader<R> {
    /// Starts at the xl header.
    pub fn new(reader: R) -> Self {
        Self {
            source: Source::new(reader),
            strictness: Strictness::default(),
            expect: Expect::XlHeader,
            finished: false,
            path: xl::path(),
            libxl_path: StreamPath::root(),
            libxl_count: 0,
            libxc_count: 0,
            unreadable: None,
            body: Vec::new(),
            entries: Vec::new(),
            with_data: Vec::new(),
            pages_read: 0,
            pages: Vec::new(),
        }
    }

    /// The same reader, judging or receiving.
    ///
    /// Judging, reserved bits must be zero, and nothing but the sender's permission to go may follow
    /// the stream; receiving, what follows is left alone.
    #[must_use]
    pub fn with_strictness(mut self, strictness: Strictness) -> Self {
        self.strictness = strictness;
        self
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.source.offset()
    }

    /// The element last read.
    pub fn path(&self) -> &StreamPath {
        &self.path
    }

    /// The reader, from the current position.
    pub fn into_inner(self) -> R {
        self.source.into_inner()
    }

    /// The next element, or `None` at the end; after an error there is no more.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>> {
        match self.step() {
            Ok(Step::Finished) => Ok(None),
            Ok(Step::Found(event)) => Ok(Some(event)),
            Ok(Step::PageData) => Ok(Some(Event::PageData(&self.entries))),
            Ok(Step::Pages { first, count }) => Ok(Some(Event::Pages(libxc::PageChunk {
                entries: self.with_data.get(first..first + count).unwrap_or_default(),
                data: self.pages.get(..count * PAGE_SIZE).unwrap_or_default(),
            }))),
            Err(error) => {
                self.finished = true;
                Err(error)
            }
        }
    }

    fn step(&mut self) -> Result<Step> {
        if self.finished {
            return Ok(Step::Finished);
        }
        if let Some(error) = self.unreadable.take() {
            return Err(error);
        }
        if self.pages_read < self.with_data.len() {
            return self.pages();
        }
        match self.expect {
            Expect::XlHeader => self.xl_header(),
            Expect::LibxlHeader => self.libxl_header(),
            Expect::ImageHeader => self.image_header(),
            Expect::DomainHeader { .. } => self.domain_header(),
            Expect::LibxcContext | Expect::CheckpointEnd { .. } | Expect::Emulator => self.libxl_record(),
            Expect::StaticData { .. } | Expect::GuestState { .. } => self.libxc_record(),
            Expect::Permission | Expect::EndOfStream => self.trailer(),
        }
    }

    fn xl_header(&mut self) -> Result<Step> {
        let header = xl::Header::read(&mut self.source, self.strictness)?;
        self.accept(0, Element::XlHeader)?;
        self.unreadable = header.check_readable().err();
        Ok(Step::Found(Event::XlHeader(header)))
    }

    fn libxl_header(&mut self) -> Result<Step> {
        self.path = libxl::header_path();
        let start = self.source.offset();
        let bytes = self.source.take_array::<{ libxl::StreamHeader::LENGTH }>(&self.path, "header")?;
        let header = libxl::StreamHeader::decode(self.cursor(&bytes, start, Endian::Big))?;
        self.accept(start, Element::LibxlHeader)?;
        self.unreadable = header.check_readable(start).err();
        Ok(Step::Found(Event::LibxlHeader(header)))
    }

    fn image_header(&mut self) -> Result<Step> {
        self.path = libxc::image_header_path();
        let start = self.source.offset();
        let bytes = self.source.take_array::<{ libxc::ImageHeader::LENGTH }>(&self.path, "header")?;
        let header = libxc::ImageHeader::decode(self.cursor(&bytes, start, Endian::Big))?;
        self.accept(start, Element::ImageHeader(&header))?;
        self.unreadable = header.check_readable(start).err();
        Ok(Step::Found(Event::ImageHeader(header)))
    }

    fn domain_header(&mut self) -> Result<Step> {
        self.path = libxc::domain_header_path();
        let start = self.source.offset();
        let bytes = self.source.take_array::<{ libxc::DomainHeader::LENGTH }>(&self.path, "header")?;
        let header = libxc::DomainHeader::decode(self.cursor(&bytes, start, Endian::Little))?;
        self.accept(start, Element::DomainHeader(&header))?;
        Ok(Step::Found(Event::DomainHeader(header)))
    }

    fn libxl_record(&mut self) -> Result<Step> {
        self.path = StreamPath::root().child(format_args!("libxl[{}]", self.libxl_count));
        let header = self.record_header()?;
        let name = libxl::name_of(header.kind);
        self.path = StreamPath::root().child(format_args!("libxl[{}] {name}", self.libxl_count));
        self.libxl_count += 1;
        self.read_body(&header, libxl::RECORD_LIMIT, libxl::ROWS)?;
        let record = libxl::Record::decode(header.kind, self.body_cursor(&header))?;
        self.accept(header.start, Element::Libxl(&record))?;
        if matches!(record, libxl::Record::LibxcContext) {
            self.libxl_path = self.path.clone();
        }
        Ok(Step::Found(Event::Libxl(record)))
    }

    fn libxc_record(&mut self) -> Result<Step> {
        self.path = self.libxl_path.child(format_args!("libxc[{}]", self.libxc_count));
        let header = self.record_header()?;
        let name = match header.kind {
            libxc::PAGE_DATA => "PAGE_DATA".into(),
            kind => libxc::name_of(kind),
        };
        self.path = self.libxl_path.child(format_args!("libxc[{}] {name}", self.libxc_count));
        self.libxc_count += 1;
        if header.kind == libxc::PAGE_DATA {
            return self.page_data(&header);
        }
        self.read_body(&header, libxc::STATE_RECORD_LIMIT, libxc::ROWS)?;
        let record = libxc::Record::decode(header.kind, self.body_cursor(&header))?;
        self.accept(header.start, Element::Libxc(&record))?;
        Ok(Step::Found(Event::Libxc(record)))
    }

    /// The head of a PAGE_DATA record, to the last entry.
    fn page_data(&mut self, header: &RecordHeader) -> Result<Step> {
        self.accept(header.start, Element::PageData)?;
        let (at, length) = (header.start + 4, u64::from(header.length));
        self.limit(at, "body_length", length, libxc::RECORD_LENGTH_MAX.into())?;
        let start = self.source.offset();
        let head = self.source.take_array::<8>(&self.path, "count")?;
        let mut cursor = self.cursor(&head, start, Endian::Little);
        let count = cursor.u32("count")?;
        if count == 0 {
            return Err(cursor.invalid("count", 4, count, "at least 1"));
        }
        cursor.reserved("reserved", 4)?;
        self.limit(start, "count", count.into(), libxc::COUNT_LIMIT.into())?;
        let size = 8 * usize::try_from(count).unwrap_or(usize::MAX);
        self.check_length(at, header.length, Length::AtLeast(8 + size))?;

        let start = self.source.offset();
        self.source.take_into(&self.path, "pfn", size, &mut self.body)?;
        let mut cursor = Cursor::new(&self.body, start, self.path.clone(), Endian::Little)
            .with_strictness(self.strictness);
        libxc::decode_entries(&mut cursor, &mut self.entries)?;
        let wanted = libxc::body_length(&self.entries);
        if length != wanted {
            return Err(Error::invalid(&self.path, at, "body_length", length, wanted));
        }
        self.with_data.clear();
        self.with_data.extend(self.entries.iter().filter(|entry| entry.has_data()));
        self.pages_read = 0;
        Ok(Step::PageData)
    }

    /// The next pages of the record whose head was read.
    fn pages(&mut self) -> Result<Step> {
        let first = self.pages_read;
        let count = (self.with_data.len() - first).min(libxc::PAGES_PER_CHUNK);
        let size = count * PAGE_SIZE;
        if self.pages.len() < size {
            self.pages.resize(size, 0);
        }
        let pages = self.pages.get_mut(..size).unwrap_or_default();
        self.source.fill(&self.path, "page_data", pages)?;
        self.pages_read += count;
        Ok(Step::Pages { first, count })
    }

    /// What stands behind libxl's END: nothing, or the permission to go.
    ///
    /// A receiver looks no further than its own message; only a judge minds other bytes.
    fn trailer(&mut self) -> Result<Step> {
        self.path = StreamPath::root().child("trailer");
        let start = self.source.offset();
        let mut found = Vec::new();
        if self.expect == Expect::Permission || self.strictness == Strictness::Strict {
            while found.len() < xl::PERMISSION_TO_GO.len() {
                let Some(byte) = self.source.next_byte(&self.path)? else { break };
                found.push(byte);
            }
        }
        if found == xl::PERMISSION_TO_GO && self.expect == Expect::Permission {
            self.accept(start, Element::PermissionToGo)?;
            return Ok(Step::Found(Event::PermissionToGo));
        }
        self.finished = true;
        if self.strictness == Strictness::Strict && !found.is_empty() {
            let found = format!("\"{}\"", found.escape_ascii());
            let wanted = "the end of the stream or the permission to go";
            return Err(Error::invalid(&self.path, start, "bytes behind END", found, wanted));
        }
        Ok(Step::Finished)
    }

    fn record_header(&mut self) -> Result<RecordHeader> {
        let start = self.source.offset();
        let bytes = self.source.take_array::<8>(&self.path, "record header")?;
        let mut cursor = self.cursor(&bytes, start, Endian::Little);
        Ok(RecordHeader { start, kind: cursor.u32("type")?, length: cursor.u32("body_length")? })
    }

    /// Reads a body with its padding, whose length was compared with its limit and its row first.
    fn read_body(&mut self, header: &RecordHeader, limit: u32, rows: &[Row]) -> Result<()> {
        let at = header.start + 4;
        if let Some(rule) = length_of(rows, header.kind) {
            self.check_length(at, header.length, rule)?;
        }
        self.limit(at, "body_length", header.length.into(), limit.into())?;
        let start = self.source.offset();
        let padded = usize::try_from(header.length.next_multiple_of(ALIGN)).unwrap_or(usize::MAX);
        self.source.take_into(&self.path, "body", padded, &mut self.body)?;
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let padding = self.body.get(length..).unwrap_or_default();
        self.cursor(padding, start + u64::from(header.length), Endian::Little)
            .reserved("padding", padding.len())
    }

    /// The body last read, without its padding.
    fn body_cursor(&self, header: &RecordHeader) -> Cursor<'_> {
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        self.cursor(self.body.get(..length).unwrap_or_default(), header.start + 8, Endian::Little)
    }

    fn cursor<'a>(&self, bytes: &'a [u8], offset: u64, endian: Endian) -> Cursor<'a> {
        Cursor::new(bytes, offset, self.path.clone(), endian).with_strictness(self.strictness)
    }

    fn accept(&mut self, at: u64, element: Element<'_>) -> Result<()> {
        self.expect.accept(element).map_err(|kind: ErrorKind| Error::new(self.path.clone(), at, kind))
    }

    fn limit(&self, at: u64, field: &str, found: u64, limit: u64) -> Result<()> {
        Source::<R>::limit(&self.path, at, field, found, limit)
    }

    fn check_length(&self, at: u64, length: u32, rule: Length) -> Result<()> {
        if rule.allows(usize::try_from(length).unwrap_or(usize::MAX)) {
            return Ok(());
        }
        Err(Error::invalid(&self.path, at, "body_length", length, rule))
    }
}
