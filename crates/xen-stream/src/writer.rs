//! Events to bytes.

use std::io::Write;

use hyperferry_wire::{Encoder, Endian, Error, ErrorKind, PAGE_SIZE, Result, Source, StreamPath};

use crate::order::{Element, Expect};
use crate::reader::ALIGN;
use crate::{Event, libxc, libxl, xl};

/// Writes what [`StreamReader`](crate::StreamReader) reads, byte for byte.
///
/// It keeps the same order, so that it cannot write a stream that nobody could read. Pages go straight
/// from the event to the writer; everything else is written in one piece an event.
#[derive(Debug)]
pub struct StreamWriter<W> {
    writer: W,
    expect: Expect,
    offset: u64,
    /// Pages that the PAGE_DATA record under way still has to carry.
    pages_owed: usize,
}

impl<W: Write> StreamWriter<W> {
    /// Starts at the xl header.
    pub fn new(writer: W) -> Self {
        Self { writer, expect: Expect::XlHeader, offset: 0, pages_owed: 0 }
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The writer, with all bytes handed to it; what it holds back itself it must still flush.
    pub fn into_inner(self) -> W {
        self.writer
    }

    /// Makes the writer pass on what it holds back.
    pub fn flush(&mut self) -> Result<()> {
        let path = StreamPath::root().child("output");
        self.writer.flush().map_err(|error| Error::new(path, self.offset, ErrorKind::Io(error)))
    }

    /// Writes one element.
    pub fn write(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Pages(chunk) = event {
            return self.pages(chunk);
        }
        if self.pages_owed > 0 {
            let wanted = format!("{} more pages of PAGE_DATA", self.pages_owed);
            let kind = ErrorKind::OutOfOrder { found: event.name().into_owned(), wanted };
            return Err(self.error(event, kind));
        }
        if let Some(element) = element(event) {
            self.expect.accept(element).map_err(|kind| self.error(event, kind))?;
        }
        let mut encoder = Encoder::new(Endian::Little);
        match event {
            Event::XlHeader(header) => {
                header.encode(&mut encoder);
                let data = encoder.len().saturating_sub(xl::HEADER_LENGTH);
                self.limit(event, data, xl::OPTIONAL_DATA_LIMIT)?;
            }
            Event::LibxlHeader(header) => header.encode(&mut encoder),
            Event::ImageHeader(header) => header.encode(&mut encoder),
            Event::DomainHeader(header) => header.encode(&mut encoder),
            Event::Libxl(record) => {
                let mut body = Encoder::new(Endian::Little);
                record.encode(&mut body);
                self.record(event, &mut encoder, record.code(), &body, libxl::RECORD_LIMIT)?;
            }
            Event::Libxc(record) => {
                let mut body = Encoder::new(Endian::Little);
                record.encode(&mut body);
                self.record(event, &mut encoder, record.code(), &body, libxc::STATE_RECORD_LIMIT)?;
            }
            Event::PageData(entries) => {
                let count = self.limit(event, entries.len(), libxc::COUNT_LIMIT)?;
                let length = u32::try_from(libxc::body_length(entries)).unwrap_or(u32::MAX);
                encoder.u32(libxc::PAGE_DATA).u32(length).u32(count).zeros(4);
                for entry in *entries {
                    encoder.u64(entry.0);
                }
                self.pages_owed = entries.iter().filter(|entry| entry.has_data()).count();
            }
            Event::PermissionToGo => {
                encoder.bytes(xl::PERMISSION_TO_GO);
            }
            Event::Pages(_) => {}
        }
        self.put(event, encoder.as_bytes())
    }

    fn pages(&mut self, chunk: &libxc::PageChunk<'_>) -> Result<()> {
        let event = Event::Pages(*chunk);
        let count = chunk.entries.len();
        if count > self.pages_owed || chunk.data.len() != count * PAGE_SIZE {
            let found = format!("{count} entries with {} bytes", chunk.data.len());
            let wanted = format!("at most {} entries with {PAGE_SIZE} bytes each", self.pages_owed);
            return Err(self.error(&event, ErrorKind::OutOfOrder { found, wanted }));
        }
        self.pages_owed -= count;
        self.put(&event, chunk.data)
    }

    fn record(
        &self,
        event: &Event<'_>,
        encoder: &mut Encoder,
        kind: u32,
        body: &Encoder,
        limit: u32,
    ) -> Result<()> {
        let length = self.limit(event, body.len(), limit)?;
        let padded = usize::try_from(length.next_multiple_of(ALIGN)).unwrap_or(usize::MAX);
        encoder.u32(kind).u32(length).bytes(body.as_bytes()).zeros(padded - body.len());
        Ok(())
    }

    /// The length as a wire number, if a reader would accept it.
    fn limit(&self, event: &Event<'_>, length: usize, limit: u32) -> Result<u32> {
        let path = path(event);
        Source::<&[u8]>::limit(&path, self.offset, "length", length as u64, limit.into())?;
        Ok(u32::try_from(length).unwrap_or(limit))
    }

    fn put(&mut self, event: &Event<'_>, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|error| self.error(event, ErrorKind::Io(error)))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn error(&self, event: &Event<'_>, kind: ErrorKind) -> Error {
        Error::new(path(event), self.offset, kind)
    }
}

fn path(event: &Event<'_>) -> StreamPath {
    StreamPath::root().child("output").child(event.name())
}

fn element<'a>(event: &'a Event<'_>) -> Option<Element<'a>> {
    Some(match event {
        Event::XlHeader(_) => Element::XlHeader,
        Event::LibxlHeader(_) => Element::LibxlHeader,
        Event::Libxl(record) => Element::Libxl(record),
        Event::ImageHeader(header) => Element::ImageHeader(header),
        Event::DomainHeader(header) => Element::DomainHeader(header),
        Event::Libxc(record) => Element::Libxc(record),
        Event::PageData(_) => Element::PageData,
        Event::Pages(_) => return None,
        Event::PermissionToGo => Element::PermissionToGo,
    })
}
