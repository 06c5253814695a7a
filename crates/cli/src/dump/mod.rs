//! What a stream holds, element by element: the same elements as paragraphs of text and as lines of JSON.
//!
//! The text is the golden file beside each fixture, so it must not change from run to run.

mod checkpoint;
mod emulator;
mod qemu;
mod runs;
mod xen;

use std::io::{self, Read, Write};

use hyperferry_translate::source::{Format, peek};
pub(crate) use hyperferry_xen_stream::describe::{Fields, Value};
use serde::Serialize;

pub(crate) use self::{emulator::place_sections, xen::is_qemu};
use crate::exit::{Error, Result};

/// Version of the JSON documents.
const VERSION: u32 = 1;

/// One element of a stream.
#[derive(Debug, Serialize)]
pub(crate) struct Element {
    /// Where in nested formats it stands.
    pub(crate) path: String,
    /// Byte offset in the whole stream, after decompression.
    pub(crate) offset: u64,
    /// What it holds.
    pub(crate) fields: Fields,
}

/// The first JSON document.
#[derive(Serialize)]
struct Head {
    schema: &'static str,
    version: u32,
    format: &'static str,
}

/// Writes elements as they come.
pub(crate) struct Printer<W> {
    out: W,
    json: bool,
}

impl<W: Write> Printer<W> {
    /// Text or JSON.
    pub(crate) fn new(out: W, json: bool) -> Self {
        Self { out, json }
    }

    fn head(&mut self, format: Format) -> Result<()> {
        let format = format.name();
        if self.json {
            return self.line(&Head { schema: "hyperferry-inspect", version: VERSION, format });
        }
        writeln!(self.out, "{format}").map_err(Error::stdout)
    }

    /// Writes one element.
    pub(crate) fn element(&mut self, element: &Element) -> Result<()> {
        if self.json {
            return self.line(element);
        }
        self.paragraph(element).map_err(Error::stdout)
    }

    fn paragraph(&mut self, element: &Element) -> io::Result<()> {
        writeln!(self.out, "{} @{:#x}", element.path, element.offset)?;
        for line in element.fields.to_string().lines() {
            writeln!(self.out, "  {line}")?;
        }
        Ok(())
    }

    fn line(&mut self, document: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.out, document).map_err(|error| Error::stdout(error.into()))?;
        self.out.write_all(b"\n").map_err(Error::stdout)
    }

    fn end(&mut self, offset: u64) -> Result<()> {
        self.element(&Element { path: "end".to_owned(), offset, fields: Fields::new() })?;
        self.flush()
    }

    /// Makes all of it visible.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(Error::stdout)
    }
}

/// Shows a stream of any known format. What was read before an error is shown.
pub(crate) fn stream<W: Write>(reader: impl Read, printer: &mut Printer<W>) -> Result<()> {
    let (format, reader) = peek(reader)?;
    // What has no known magic is given to the Xen reader, which says what it found instead.
    let format = format.unwrap_or(Format::Xen);
    let shown = match format {
        Format::Xen => xen::show(reader, printer),
        Format::Qemu => qemu::show(reader, printer),
        Format::Model => checkpoint::show(reader, printer),
    };
    printer.flush()?;
    shown
}

/// Fields out of paths and values.
fn text_fields(lines: Vec<crate::model::Line>) -> Fields {
    lines.into_iter().fold(Fields::new(), |fields, (name, value)| fields.with(name, Value::Text(value)))
}
