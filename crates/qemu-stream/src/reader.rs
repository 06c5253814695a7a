use std::io::Read;

use hyperferry_wire::{Error, ErrorKind, Result, StreamPath};

use crate::command::{Command, CommandKind};
use crate::configuration::Configuration;
use crate::device_state::{DEVICE_STATE_LIMIT, DeviceState};
use crate::header::Header;
use crate::mapped_ram::{MAPPED_RAM, MappedBlock};
use crate::ram::{
    self, BLOCK_LENGTH_LIMIT, BLOCK_LIMIT, RamBlock, RamChunk, RamPage, RamStart, Scan, Scanner,
};
use crate::section::{FOOTER, FOOTER_LENGTH, SectionHeader, SectionKind, name_from};
use crate::vmdesc::VmDesc;
use crate::window::{WINDOW, Window};

/// What comes next in a stream.
#[derive(Debug)]
pub enum Event<'a> {
    /// Magic and version.
    Header(Header),
    /// The machine.
    Configuration(Configuration),
    /// A message between sections.
    Command(Command),
    /// RAM begins: its blocks, or the first of them where each is followed by its pages (capability `mapped-ram`).
    RamStart(RamStart),
    /// The next block, where each is followed by its pages.
    RamBlock(RamBlock),
    /// A PART or END section of RAM begins.
    RamSection {
        /// PART or END.
        kind: SectionKind,
        /// The label of the START section.
        section_id: u32,
    },
    /// Pages of the RAM section that is open.
    RamPages(RamChunk<'a>),
    /// The RAM section that is open ends.
    RamSectionEnd {
        /// START, PART or END.
        kind: SectionKind,
        /// The label of the START section.
        section_id: u32,
        /// Whether a footer follows.
        footer: bool,
    },
    /// Everything else, to the end of the stream.
    DeviceState(DeviceState),
}

/// Reads a stream, event by event. Pages are handed out as they arrive; device state waits for the end of the
/// stream, where its description is.
#[derive(Debug)]
pub struct StreamReader<R> {
    window: Window<R>,
    state: State,
    ram: Option<Ram>,
    /// The capability `mapped-ram` is on.
    mapped: bool,
    pages: Vec<RamPage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ExpectHeader,
    ExpectConfiguration,
    ExpectSection,
    InRam(SectionKind),
    /// Among blocks that are followed by their pages, with so many bytes of blocks to come.
    InMapped(u64),
    Ended,
}

#[derive(Debug)]
struct Ram {
    section_id: u32,
    blocks: Vec<RamBlock>,
    scanner: Scanner,
    /// The block whose pages come next, where each is followed by them.
    mapped: Option<MappedBlock>,
    ended: bool,
}

impl<R: Read> StreamReader<R> {
    /// A reader at the first byte of a stream.
    pub fn new(reader: R) -> Self {
        let (state, pages) = (State::ExpectHeader, Vec::new());
        Self { window: Window::new(reader), state, ram: None, mapped: false, pages }
    }

    /// The next event, or `None` after the last.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>> {
        match self.state {
            State::ExpectHeader => {
                let path = StreamPath::root().child("header");
                let header = Header::decode(&mut self.window.frame(&path, "header", Header::LENGTH)?)?;
                self.state = State::ExpectConfiguration;
                Ok(Some(Event::Header(header)))
            }
            State::ExpectConfiguration | State::ExpectSection => self.section().map(Some),
            State::InRam(kind) => self.ram(kind).map(Some),
            State::InMapped(left) => self.mapped(left).map(Some),
            State::Ended => Ok(None),
        }
    }

    /// Offset of the next byte that is not yet handed out.
    pub fn offset(&self) -> u64 {
        self.window.offset()
    }

    /// The RAM blocks, once the START section was read.
    pub fn blocks(&self) -> &[RamBlock] {
        self.ram.as_ref().map(|ram| ram.blocks.as_slice()).unwrap_or_default()
    }

    fn section(&mut self) -> Result<Event<'static>> {
        let path = StreamPath::root();
        let at = self.window.offset();
        let Some(byte) = self.window.peek(&path)? else {
            let kind = ErrorKind::Truncated { field: "section type".to_owned(), found: 0, wanted: 1 };
            return Err(Error::new(path, at, kind));
        };
        let Some(kind) = SectionKind::from_byte(byte) else {
            let found = format_args!("{byte:#x}");
            return Err(Error::invalid(&path, at, "section type", found, "a section type (0x00 to 0x08)"));
        };
        let first = self.state == State::ExpectConfiguration;
        self.state = State::ExpectSection;
        match (kind, &self.ram) {
            (SectionKind::Configuration, _) if first => {
                self.window.consume(1);
                let configuration = Configuration::read(&mut self.window)?;
                self.mapped = configuration.capabilities().any(|name| name == MAPPED_RAM);
                Ok(Event::Configuration(configuration))
            }
            (SectionKind::Command, _) => {
                self.window.consume(1);
                self.command(at).map(Event::Command)
            }
            (SectionKind::Start, None) => {
                self.window.consume(1);
                self.ram_start(at).map(Event::RamStart)
            }
            (SectionKind::Part | SectionKind::End, Some(ram)) if !ram.ended => {
                let wanted = ram.section_id;
                self.window.consume(1);
                let path = ram::path();
                let section_id = self.window.frame(&path, "section_id", 4)?.u32("section_id")?;
                if section_id != wanted {
                    return Err(Error::invalid(&path, at + 1, "section_id", section_id, wanted));
                }
                self.state = State::InRam(kind);
                Ok(Event::RamSection { kind, section_id })
            }
            (SectionKind::Full | SectionKind::Eof, ram) if ram.as_ref().is_none_or(|ram| ram.ended) => {
                self.device_state().map(Event::DeviceState)
            }
            (kind, ram) => {
                let wanted = match ram {
                    _ if first => "Configuration, Command, Start, Full or Eof",
                    None => "Command, Start, Full or Eof",
                    Some(ram) if ram.ended => "Command, Full or Eof, for RAM has ended",
                    Some(_) => "Command, Part or End, for RAM has not ended",
                };
                let kind = ErrorKind::OutOfOrder { found: format!("{kind:?}"), wanted: wanted.to_owned() };
                Err(Error::new(path, at, kind))
            }
        }
    }

    fn command(&mut self, at: u64) -> Result<Command> {
        let path = StreamPath::root().child("COMMAND");
        let mut head = self.window.frame(&path, "command", Command::HEADER)?;
        let kind = CommandKind(head.u16("cmd")?);
        let length = usize::from(head.u16("len")?);
        if kind.changes_the_stream() {
            let kind = ErrorKind::Unreadable {
                what: format!("command {kind:?}"),
                why: "postcopy and COLO need both sides to talk; switch the capability off at the source"
                    .to_owned(),
            };
            return Err(Error::new(path, at, kind));
        }
        let data = self.window.frame(&path, "data", length)?.rest().to_vec();
        Ok(Command { kind, data })
    }

    fn ram_start(&mut self, at: u64) -> Result<RamStart> {
        let path = StreamPath::root().child("START");
        let head = self.window.frame(&path, "section", 5)?;
        // Up to the idstr, then as long as its length byte says.
        let length = usize::from(head.peek().get(4).copied().unwrap_or_default());
        self.window.rewind(5);
        let header = SectionHeader::decode(&mut self.window.frame(&path, "section", 5 + length + 8)?)?;
        if header.idstr != ram::RAM || header.instance_id != 0 {
            let what = format!("section {} {}", header.idstr, header.instance_id);
            let why = "only RAM may be sent in rounds; remove the device or migrate its data another way";
            return Err(Error::new(path, at, ErrorKind::Unreadable { what, why: why.to_owned() }));
        }
        let path = ram::path();
        if header.version_id != ram::RAM_VERSION {
            let at = self.window.offset() - 4;
            return Err(Error::invalid(&path, at, "version_id", header.version_id, ram::RAM_VERSION));
        }
        let at = self.window.offset();
        let total = self.window.frame(&path, "total", 8)?.u64("total")?;
        if total & ram::FLAGS != ram::FLAG_MEM_SIZE {
            let found = format_args!("{total:#x}");
            return Err(Error::invalid(&path, at, "total", found, "a size with flag MEM_SIZE (0x4) alone"));
        }
        let mut left = total & !ram::FLAGS;
        let mut blocks: Vec<RamBlock> = Vec::new();
        while left > 0 && !(self.mapped && blocks.len() == 1) {
            blocks.push(self.ram_block(&path, &blocks, &mut left)?);
        }
        let mapped = match blocks.first().filter(|_| self.mapped) {
            Some(block) => Some(MappedBlock::read(&mut self.window, &path, 0, block)?),
            None => None,
        };
        self.state = if self.mapped { State::InMapped(left) } else { State::InRam(SectionKind::Start) };
        let section_id = header.section_id;
        let scanner = Scanner::default();
        self.ram = Some(Ram { section_id, blocks: blocks.clone(), scanner, mapped, ended: false });
        Ok(RamStart { section_id, version: header.version_id, blocks })
    }

    /// Reads one entry of the list of blocks; `left` are the bytes of all that follow.
    fn ram_block(&mut self, path: &StreamPath, known: &[RamBlock], left: &mut u64) -> Result<RamBlock> {
        let at = self.window.offset();
        limit(path, at, "blocks", known.len() as u64 + 1, BLOCK_LIMIT)?;
        let length = usize::from(self.window.frame(path, "block name length", 1)?.u8("length")?);
        let name = name_from(&mut self.window.frame(path, "block name", length)?, "block name", length)?;
        if known.iter().any(|block| block.name == name) {
            return Err(Error::invalid(path, at, "block name", name, "each block once"));
        }
        let at = self.window.offset();
        let used_length = self.window.frame(path, "used_length", 8)?.u64("used_length")?;
        limit(path, at, "used_length", used_length, (*left).min(BLOCK_LENGTH_LIMIT))?;
        *left -= used_length;
        Ok(RamBlock { name, used_length })
    }

    /// Hands out pages of a block that is followed by them, then the next block, then what ends the section.
    fn mapped(&mut self, mut left: u64) -> Result<Event<'_>> {
        let path = ram::path();
        let known = match &mut self.ram {
            Some(ram) => {
                self.pages.clear();
                while let Some(block) = &mut ram.mapped {
                    let Some(length) = block.scan(&mut self.window, &path, &mut self.pages)? else { break };
                    self.window.consume(length);
                    if !self.pages.is_empty() {
                        let bytes = self.window.consumed(length);
                        return Ok(Event::RamPages(RamChunk { pages: &self.pages, bytes }));
                    }
                }
                ram.blocks.clone()
            }
            None => Vec::new(),
        };
        if left == 0 {
            self.state = State::InRam(SectionKind::Start);
            return self.ram(SectionKind::Start);
        }
        let block = self.ram_block(&path, &known, &mut left)?;
        self.state = State::InMapped(left);
        if let Some(ram) = &mut self.ram {
            ram.mapped = Some(MappedBlock::read(&mut self.window, &path, known.len(), &block)?);
            ram.blocks.push(block.clone());
        }
        Ok(Event::RamBlock(block))
    }

    /// Hands out the pages that have arrived, or the end of the section.
    fn ram(&mut self, kind: SectionKind) -> Result<Event<'_>> {
        let path = ram::path();
        let Some(ram) = &mut self.ram else {
            let kind = ErrorKind::OutOfOrder { found: "pages".to_owned(), wanted: "Start".to_owned() };
            return Err(Error::new(path, self.window.offset(), kind));
        };
        self.pages.clear();
        loop {
            let (bytes, offset) = (self.window.available(), self.window.offset());
            let scan = ram.scanner.scan(&ram.blocks, bytes, offset, WINDOW, &mut self.pages)?;
            let (Scan::Pages(length) | Scan::End(length)) = scan;
            if length > 0 {
                self.window.consume(length);
                let bytes = self.window.consumed(length);
                return Ok(Event::RamPages(RamChunk { pages: &self.pages, bytes }));
            }
            if scan == Scan::End(0) {
                break;
            }
            if !self.window.read_more(&path)? {
                let found = self.window.available().len() as u64;
                let wanted = found + 1;
                let kind = ErrorKind::Truncated { field: "page chunk".to_owned(), found, wanted };
                return Err(Error::new(path, offset, kind));
            }
        }
        let section_id = ram.section_id;
        ram.ended = kind == SectionKind::End;
        self.window.consume(8);
        self.state = State::ExpectSection;
        let footer = self.window.peek(&path)? == Some(FOOTER);
        if footer {
            let at = self.window.offset() + 1;
            let mut cursor = self.window.frame(&path, "footer", FOOTER_LENGTH)?;
            cursor.u8("footer")?;
            let found = cursor.u32("footer section_id")?;
            if found != section_id {
                return Err(Error::invalid(&path, at, "footer section_id", found, section_id));
            }
        }
        Ok(Event::RamSectionEnd { kind, section_id, footer })
    }

    fn device_state(&mut self) -> Result<DeviceState> {
        let path = StreamPath::root();
        let offset = self.window.offset();
        // A source with an open return path keeps the connection: then the description ends the stream.
        while !(self.window.available().ends_with(b"}") && VmDesc::locate(self.window.available()).is_some())
        {
            limit(&path, offset, "device state", self.window.available().len() as u64, DEVICE_STATE_LIMIT)?;
            if !self.window.read_more(&path)? {
                break;
            }
        }
        let bytes = self.window.available();
        let length = bytes.len();
        let state = DeviceState::decode(bytes, offset, &path)?;
        self.window.consume(length);
        self.state = State::Ended;
        Ok(state)
    }
}

fn limit(path: &StreamPath, at: u64, field: &str, found: u64, limit: u64) -> Result<()> {
    if found <= limit {
        return Ok(());
    }
    Err(Error::new(path.clone(), at, ErrorKind::Limit { field: field.to_owned(), found, limit }))
}
