//! A QEMU stream.

use std::io::{Read, Write};

use hyperferry_qemu_stream::{
    Configuration, ConfigurationSubsection, DeviceState, Event, RamBlock, RamChunk, StreamReader,
};
use hyperferry_translate::source::Format;
use hyperferry_wire::PAGE_SIZE;

use super::{Element, Fields, Printer, Value, emulator::place_sections, runs::Run};
use crate::exit::Result;

/// Shows every element, pages in runs: one for each RAM block of a section.
pub(super) fn show<W: Write>(reader: impl Read, printer: &mut Printer<W>) -> Result<()> {
    printer.head(Format::Qemu)?;
    let mut reader = StreamReader::new(reader);
    let mut blocks: Vec<RamBlock> = Vec::new();
    let mut pages: Vec<Pages> = Vec::new();
    loop {
        let offset = reader.offset();
        let event = match reader.next_event() {
            Ok(event) => event,
            Err(error) => {
                end_run(&mut pages, printer)?;
                return Err(error.into());
            }
        };
        let element = |path: &str, fields| Element { path: path.to_owned(), offset, fields };
        match event {
            None => break,
            Some(Event::Header(_)) => {
                let fields = Fields::new().with("version", Value::Dec(3));
                printer.element(&element("header", fields))?;
            }
            Some(Event::Configuration(found)) => {
                printer.element(&element("CONFIGURATION", configuration(&found)))?;
            }
            Some(Event::Command(command)) => {
                let fields = Fields::new()
                    .with("command", Value::named(command.kind.0.into(), command.kind.name()))
                    .with("data", Value::Bytes(command.data));
                printer.element(&element("COMMAND", fields))?;
            }
            Some(Event::RamStart(start)) => {
                let mut fields = Fields::new()
                    .with("section_id", Value::Dec(start.section_id.into()))
                    .with("version", Value::Dec(start.version.into()));
                for block in &start.blocks {
                    fields = fields.with(format!("block {}", block.name), Value::Hex(block.used_length));
                }
                printer.element(&element("START ram", fields))?;
                blocks = start.blocks;
            }
            Some(Event::RamBlock(block)) => {
                end_run(&mut pages, printer)?;
                let name = format!("block {}", block.name);
                let fields = Fields::new().with(name, Value::Hex(block.used_length));
                printer.element(&element("START ram", fields))?;
                blocks.push(block);
            }
            Some(Event::RamSection { kind, section_id }) => {
                let fields = Fields::new().with("section_id", Value::Dec(section_id.into()));
                printer.element(&element(
                    &format!("{kind:?} ram").replace("Part", "PART").replace("End", "END"),
                    fields,
                ))?;
            }
            Some(Event::RamPages(chunk)) => count(&chunk, &blocks, &mut pages, printer)?,
            Some(Event::RamSectionEnd { .. }) => end_run(&mut pages, printer)?,
            Some(Event::DeviceState(state)) => devices(&state, offset, printer)?,
        }
    }
    printer.end(reader.offset())
}

fn configuration(found: &Configuration) -> Fields {
    let mut fields = Fields::new().with("machine", Value::Text(found.machine.clone()));
    for subsection in &found.subsections {
        fields = match subsection {
            ConfigurationSubsection::Capabilities(names) => {
                fields.with("capabilities", Value::Text(names.join(", ")))
            }
            ConfigurationSubsection::TargetPageBits(bits) => {
                fields.with("target_page_bits", Value::Dec((*bits).into()))
            }
            ConfigurationSubsection::Uuid(uuid) => fields.with("uuid", Value::Bytes(uuid.to_vec())),
        };
    }
    fields
}

fn devices<W: Write>(state: &DeviceState, offset: u64, printer: &mut Printer<W>) -> Result<()> {
    let end = match place_sections(state, offset) {
        Ok((sections, end)) => {
            sections.iter().try_for_each(|section| printer.element(&section.element("")))?;
            end
        }
        Err(error) => {
            let fields = Fields::new().with("error", Value::Text(error.to_string()));
            printer.element(&Element { path: "unreadable".to_owned(), offset, fields })?;
            offset
        }
    };
    let Some(vmdesc) = &state.vmdesc else { return Ok(()) };
    let text = vmdesc.text();
    let fields = Fields::new()
        .with("length", Value::Dec(text.len() as u64))
        .with("crc32", Value::Hex(crc32fast::hash(text.as_bytes()).into()));
    // Behind the end of sections, one byte.
    printer.element(&Element { path: "VMDESCRIPTION".to_owned(), offset: end + 1, fields })
}

/// Pages of one block.
struct Pages {
    block: usize,
    name: String,
    offset: u64,
    zeros: u64,
    frames: Run,
}

fn count<W: Write>(
    chunk: &RamChunk<'_>,
    blocks: &[RamBlock],
    pages: &mut Vec<Pages>,
    printer: &mut Printer<W>,
) -> Result<()> {
    for page in chunk.pages() {
        let block = page.block;
        let index = match pages.iter().position(|pages| pages.block == block) {
            Some(index) if pages.get(index).is_some_and(|pages| pages.frames.is_full()) => {
                end_run(pages, printer)?;
                None
            }
            found => found,
        };
        if index.is_none() {
            let name = blocks.get(block).map(|block| block.name.clone()).unwrap_or_default();
            pages.push(Pages { block, name, offset: page.at, zeros: 0, frames: Run::default() });
        }
        let Some(pages) = pages.iter_mut().find(|pages| pages.block == block) else { continue };
        pages.frames.frame(page.offset / PAGE_SIZE as u64);
        match chunk.data(page) {
            Some(data) => pages.frames.data(1, data),
            None => pages.zeros += 1,
        }
    }
    Ok(())
}

fn end_run<W: Write>(pages: &mut Vec<Pages>, printer: &mut Printer<W>) -> Result<()> {
    for pages in pages.drain(..) {
        let fields = Fields::new().with("zero_pages", Value::Dec(pages.zeros));
        let (path, offset) = (format!("ram > {}", pages.name), pages.offset);
        printer.element(&Element { path, offset, fields: pages.frames.describe(fields) })?;
    }
    Ok(())
}
