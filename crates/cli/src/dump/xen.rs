//! A Xen stream.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
};

use hyperferry_qemu_stream::DeviceState;
use hyperferry_wire::StreamPath;
use hyperferry_xen_stream::{
    Event, StreamReader,
    libxc::{PageChunk, PfnEntry},
    libxl::{EmulatorContext, EmulatorId, Record},
    xl,
};

use super::{Element, Fields, Printer, Value, emulator::place_sections, runs::Run, text_fields};
use crate::{exit::Result, model};

/// Bytes of a record's header, and of EMULATOR_CONTEXT's before QEMU's state; QEMU's own header has 8 more.
const TO_BLOB: u64 = 16;
const QEMU_HEADER: u64 = 8;

/// Shows every element, PAGE_DATA in runs.
pub(super) fn show<W: Write>(reader: impl Read, printer: &mut Printer<W>) -> Result<()> {
    printer.head(hyperferry_translate::source::Format::Xen)?;
    let mut reader = StreamReader::new(reader);
    let mut run: Option<Pages> = None;
    loop {
        let offset = reader.offset();
        let event = match reader.next_event() {
            Ok(event) => event,
            Err(error) => {
                end_run(&mut run, printer)?;
                return Err(error.into());
            }
        };
        let found = match event {
            None => break,
            Some(Event::PageData(entries)) => {
                if run.as_ref().is_some_and(|run| run.frames.is_full()) {
                    end_run(&mut run, printer)?;
                }
                run.get_or_insert_with(|| Pages::at(offset)).record(entries);
                None
            }
            Some(Event::Pages(chunk)) => {
                if let Some(run) = &mut run {
                    run.chunk(&chunk);
                }
                continue;
            }
            Some(event) => Some(Found::of(&event)),
        };
        let path = reader.path().to_string();
        let Some(found) = found else {
            if let Some(run) = &mut run {
                run.reached(path);
            }
            continue;
        };
        end_run(&mut run, printer)?;
        printer.element(&Element { path: path.clone(), offset, fields: found.fields })?;
        if let Some(context) = found.emulator {
            show_emulator(&context, &path, offset + TO_BLOB, printer)?;
        }
    }
    end_run(&mut run, printer)?;
    printer.end(reader.offset())
}

/// What an event holds.
struct Found {
    fields: Fields,
    emulator: Option<EmulatorContext>,
}

impl Found {
    fn of(event: &Event<'_>) -> Self {
        let fields = event.describe();
        match event {
            Event::XlHeader(header) => Self { fields: with_config(fields, header), emulator: None },
            Event::Libxl(Record::EmulatorContext(context)) if is_qemu(context) => {
                Self { fields, emulator: Some(context.clone()) }
            }
            _ => Self { fields, emulator: None },
        }
    }
}

/// The header's fields, and the configuration in it.
fn with_config(fields: Fields, header: &xl::Header) -> Fields {
    match header.config() {
        Ok(json) => fields.with("config", Value::Fields(text_fields(model::flatten_document(&json)))),
        Err(error) => fields.with("config", Value::Text(format!("unreadable: {error}"))),
    }
}

/// Whether the state is of the QEMU that Xen uses today.
pub(crate) fn is_qemu(context: &EmulatorContext) -> bool {
    context.emulator_id == EmulatorId::QEMU_UPSTREAM
}

/// The sections inside EMULATOR_CONTEXT; one that cannot be told apart is a line that says so.
fn show_emulator<W: Write>(
    context: &EmulatorContext,
    path: &str,
    offset: u64,
    printer: &mut Printer<W>,
) -> Result<()> {
    let unreadable = |error: String| Element {
        path: format!("{path} > unreadable"),
        offset,
        fields: Fields::new().with("error", Value::Text(error)),
    };
    let stream_path = StreamPath::root().child(path);
    let state = match DeviceState::decode_emulator_context(&context.blob, offset, stream_path) {
        Ok(state) => state,
        Err(error) => return printer.element(&unreadable(error.to_string())),
    };
    match place_sections(&state, offset + QEMU_HEADER) {
        Ok((sections, _)) => {
            sections.iter().try_for_each(|section| printer.element(&section.element(&format!("{path} > "))))
        }
        Err(error) => printer.element(&unreadable(error.to_string())),
    }
}

/// A run of PAGE_DATA records.
struct Pages {
    offset: u64,
    path: String,
    last: String,
    records: u64,
    types: BTreeMap<u8, (String, u64)>,
    frames: Run,
}

impl Pages {
    fn at(offset: u64) -> Self {
        Self {
            offset,
            path: String::new(),
            last: String::new(),
            records: 0,
            types: BTreeMap::new(),
            frames: Run::default(),
        }
    }

    fn record(&mut self, entries: &[PfnEntry]) {
        self.records += 1;
        for entry in entries {
            let kind = entry.page_type();
            self.types.entry(kind.0).or_insert_with(|| (kind.to_string(), 0)).1 += 1;
            if kind.has_data() {
                self.frames.frame(entry.pfn());
            }
        }
    }

    fn chunk(&mut self, chunk: &PageChunk<'_>) {
        self.frames.data(chunk.entries.len() as u64, chunk.data);
    }

    fn reached(&mut self, path: String) {
        if self.path.is_empty() {
            self.path.clone_from(&path);
        }
        self.last = path;
    }

    fn element(self) -> Element {
        let types = self.types.values().map(|(name, count)| format!("{name} {count}"));
        let fields = Fields::new()
            .with("last", Value::Text(self.last))
            .with("records", Value::Dec(self.records))
            .with("types", Value::Text(types.collect::<Vec<_>>().join(", ")));
        Element { path: self.path, offset: self.offset, fields: self.frames.describe(fields) }
    }
}

fn end_run<W: Write>(run: &mut Option<Pages>, printer: &mut Printer<W>) -> Result<()> {
    match run.take() {
        Some(run) => printer.element(&run.element()),
        None => Ok(()),
    }
}
