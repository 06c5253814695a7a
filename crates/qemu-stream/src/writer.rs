use std::io::{IoSlice, Write};

use hyperferry_wire::{Encoder, Endian, Error, ErrorKind, PAGE_SIZE, Result, StreamPath};

use crate::command::Command;
use crate::configuration::Configuration;
use crate::device_state::DeviceState;
use crate::header::Header;
use crate::ram::{
    FLAG_CONTINUE, FLAG_EOS, FLAG_MEM_SIZE, FLAG_PAGE, FLAG_ZERO, FLAGS, RAM, RamBlock, RamChunk, RamStart,
    is_zero, path as ram_path,
};
use crate::reader::Event;
use crate::section::{SectionHeader, SectionKind, put_footer, put_name};
use crate::vmstate::value::FieldError;

/// Pages sent with one system call: with a header each, half of what `writev` takes (1024), and 1 MiB.
const STEP: usize = 256;

/// Writes a stream. Pages go out from where they are: only their headers are put together here.
#[derive(Debug)]
pub struct StreamWriter<W> {
    writer: W,
    offset: u64,
    ram: Option<Ram>,
    heads: Vec<u8>,
}

#[derive(Debug)]
struct Ram {
    section_id: u32,
    blocks: Vec<RamBlock>,
    /// The block of the last page: it survives the end of a section.
    current: Option<usize>,
    open: Option<SectionKind>,
}

impl<W: Write> StreamWriter<W> {
    /// A writer at the first byte of a stream.
    pub fn new(writer: W) -> Self {
        Self { writer, offset: 0, ram: None, heads: Vec::new() }
    }

    /// Bytes written so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The writer, after the last byte.
    pub fn into_inner(self) -> W {
        self.writer
    }

    /// The writer itself, to flush it or to ask about it.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.writer
    }

    /// Writes what a reader read, byte for byte.
    pub fn event(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Header(header) => self.header(*header),
            Event::Configuration(configuration) => self.configuration(configuration),
            Event::Command(command) => self.command(command),
            Event::RamStart(start) => self.ram_start(start),
            Event::RamBlock(_) => Err(out_of_order(
                self.offset,
                "a block amid pages",
                "all blocks first: mapped-ram is read only",
            )),
            Event::RamSection { kind, .. } => self.ram_section(*kind),
            Event::RamPages(chunk) => self.chunk(chunk),
            Event::RamSectionEnd { footer, .. } => self.ram_end(*footer),
            Event::DeviceState(state) => self.device_state(state),
        }
    }

    /// Magic and version.
    pub fn header(&mut self, header: Header) -> Result<()> {
        self.put(|encoder| header.encode(encoder))
    }

    /// The machine.
    pub fn configuration(&mut self, configuration: &Configuration) -> Result<()> {
        self.put(|encoder| configuration.encode(encoder))
    }

    /// A message between sections.
    pub fn command(&mut self, command: &Command) -> Result<()> {
        self.put(|encoder| command.encode(encoder))
    }

    /// Opens the START section of RAM; [`StreamWriter::ram_end`] closes it.
    pub fn ram_start(&mut self, start: &RamStart) -> Result<()> {
        let header = SectionHeader {
            section_id: start.section_id,
            idstr: RAM.to_owned(),
            instance_id: 0,
            version_id: start.version,
        };
        let lengths = start.blocks.iter().map(|block| block.used_length);
        let total = lengths.fold(0_u64, u64::saturating_add);
        if total & FLAGS != 0 {
            let found = format_args!("{total:#x}");
            return Err(Error::invalid(&ram_path(), self.offset, "total", found, "whole pages"));
        }
        if let Some(block) = start.blocks.iter().find(|block| block.name.len() > usize::from(u8::MAX)) {
            let found = format_args!("{} bytes", block.name.len());
            return Err(Error::invalid(&ram_path(), self.offset, "block name", found, "at most 255 bytes"));
        }
        self.put(|encoder| {
            header.encode(SectionKind::Start, encoder);
            encoder.u64(total | FLAG_MEM_SIZE);
            for block in &start.blocks {
                put_name(encoder, &block.name);
                encoder.u64(block.used_length);
            }
        })?;
        self.ram = Some(Ram {
            section_id: start.section_id,
            blocks: start.blocks.clone(),
            current: None,
            open: Some(SectionKind::Start),
        });
        Ok(())
    }

    /// Opens a PART or END section of RAM.
    pub fn ram_section(&mut self, kind: SectionKind) -> Result<()> {
        let at = self.offset;
        let section_id = match (&mut self.ram, kind) {
            (Some(ram), SectionKind::Part | SectionKind::End) if ram.open.is_none() => {
                ram.open = Some(kind);
                ram.section_id
            }
            _ => return Err(out_of_order(at, "a RAM section", "Part or End after ram_start and ram_end")),
        };
        self.put(|encoder| {
            encoder.u8(kind.byte()).u32(section_id);
        })
    }

    /// Closes the RAM section that is open.
    pub fn ram_end(&mut self, footer: bool) -> Result<()> {
        let at = self.offset;
        let ram = self.ram.as_mut().filter(|ram| ram.open.is_some());
        let Some(ram) = ram else { return Err(out_of_order(at, "ram_end", "an open RAM section")) };
        ram.open = None;
        let section_id = ram.section_id;
        self.put(|encoder| {
            encoder.u64(FLAG_EOS);
            if footer {
                put_footer(encoder, section_id);
            }
        })
    }

    /// Writes `data`, whole pages that stand one after another from `offset` of the block on.
    pub fn run(&mut self, block: usize, offset: u64, data: &[u8]) -> Result<()> {
        let (pages, rest) = data.as_chunks::<PAGE_SIZE>();
        if !rest.is_empty() {
            let found = format_args!("{:#x}", data.len());
            return Err(Error::invalid(&ram_path(), self.offset, "run", found, "whole pages"));
        }
        let offsets = (offset..).step_by(PAGE_SIZE);
        self.pages(block, offsets.zip(pages.iter().map(<[u8; PAGE_SIZE]>::as_slice)))
    }

    /// Writes pages of one block, each with its offset; those that are all zeros take nine bytes.
    pub fn pages<'p>(
        &mut self,
        block: usize,
        pages: impl IntoIterator<Item = (u64, &'p [u8])>,
    ) -> Result<()> {
        let pages = pages.into_iter().map(|(offset, page)| {
            let content = if is_zero(page) { None } else { Some(page) };
            (block, offset, None, content)
        });
        self.batches(pages)
    }

    /// Writes zero pages of one block.
    pub fn zero_pages(&mut self, block: usize, offsets: impl IntoIterator<Item = u64>) -> Result<()> {
        self.batches(offsets.into_iter().map(|offset| (block, offset, None, None)))
    }

    /// Writes a batch of pages as it was read.
    pub fn chunk(&mut self, chunk: &RamChunk<'_>) -> Result<()> {
        let pages = chunk.pages().iter();
        self.batches(pages.map(|page| (page.block, page.offset, Some(page.continues), chunk.data(page))))
    }

    /// Device sections, end and description.
    pub fn device_state(&mut self, state: &DeviceState) -> Result<()> {
        let mut encoder = Encoder::new(Endian::Big);
        state.encode(&mut encoder).map_err(|error| self.field_error(&error))?;
        self.bytes(encoder.as_bytes())
    }

    /// Bytes that are already a piece of a stream, such as an encoded device state.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let offset = self.offset;
        self.writer.write_all(bytes).map_err(|error| io_error(offset, error))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn put(&mut self, fill: impl FnOnce(&mut Encoder)) -> Result<()> {
        let mut encoder = Encoder::new(Endian::Big);
        fill(&mut encoder);
        self.bytes(encoder.as_bytes())
    }

    fn field_error(&self, error: &FieldError) -> Error {
        let path = StreamPath::root().child("device state");
        Error::invalid(&path, self.offset, error.place.as_str(), &error.found, &error.wanted)
    }

    /// Puts headers together and sends them with their pages, [`STEP`] pages at a time.
    fn batches<'p>(
        &mut self,
        pages: impl Iterator<Item = (usize, u64, Option<bool>, Option<&'p [u8]>)>,
    ) -> Result<()> {
        let at = self.offset;
        let Some(ram) = self.ram.as_mut().filter(|ram| ram.open.is_some()) else {
            return Err(out_of_order(at, "pages", "an open RAM section"));
        };
        // Where the headers before each page end, and the page.
        let mut plan: Vec<(usize, &'p [u8])> = Vec::with_capacity(STEP);
        self.heads.clear();
        for (block, offset, continues, content) in pages {
            let known = ram.blocks.get(block).ok_or_else(|| {
                Error::invalid(&ram_path(), self.offset, "block", block, "a block of the START section")
            })?;
            if offset & FLAGS != 0
                || offset >= known.used_length
                || content.is_some_and(|page| page.len() != PAGE_SIZE)
            {
                let wanted = format_args!("a page of {} ({:#x} bytes)", known.name, known.used_length);
                let found = format_args!("{offset:#x}");
                return Err(Error::invalid(&ram_path(), self.offset, "page offset", found, wanted));
            }
            let continues = continues.unwrap_or(ram.current == Some(block));
            let flags = if content.is_some() { FLAG_PAGE } else { FLAG_ZERO };
            let head = offset | flags | if continues { FLAG_CONTINUE } else { 0 };
            self.heads.extend_from_slice(&head.to_be_bytes());
            if !continues {
                let name = known.name.as_bytes();
                self.heads.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
                self.heads.extend_from_slice(name.get(..usize::from(u8::MAX)).unwrap_or(name));
                ram.current = Some(block);
            }
            match content {
                Some(page) => plan.push((self.heads.len(), page)),
                None => self.heads.push(0),
            }
            if plan.len() == STEP || self.heads.len() >= STEP * PAGE_SIZE {
                self.offset += send(&mut self.writer, self.offset, &self.heads, &plan)?;
                self.heads.clear();
                plan.clear();
            }
        }
        self.offset += send(&mut self.writer, self.offset, &self.heads, &plan)?;
        Ok(())
    }
}

/// Sends headers and pages in turn; gives the number of bytes.
fn send<W: Write>(writer: &mut W, offset: u64, heads: &[u8], plan: &[(usize, &[u8])]) -> Result<u64> {
    let mut slices = Vec::with_capacity(plan.len() * 2 + 1);
    let mut start = 0;
    for (end, page) in plan {
        slices.push(IoSlice::new(heads.get(start..*end).unwrap_or_default()));
        slices.push(IoSlice::new(page));
        start = *end;
    }
    slices.push(IoSlice::new(heads.get(start..).unwrap_or_default()));
    let total = (heads.len() + plan.len() * PAGE_SIZE) as u64;
    let mut rest = slices.as_mut_slice();
    // Empty slices at the front would look like a writer that takes nothing.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match writer.write_vectored(rest) {
            Ok(0) => return Err(io_error(offset, std::io::ErrorKind::WriteZero.into())),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error(offset, error)),
        }
    }
    Ok(total)
}

fn io_error(offset: u64, error: std::io::Error) -> Error {
    Error::new(StreamPath::root().child("output"), offset, ErrorKind::Io(error))
}

fn out_of_order(at: u64, found: &str, wanted: &str) -> Error {
    let kind = ErrorKind::OutOfOrder { found: found.to_owned(), wanted: wanted.to_owned() };
    Error::new(ram_path(), at, kind)
}
