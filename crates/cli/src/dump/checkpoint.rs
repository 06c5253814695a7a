//! Our own checkpoint.

use std::{
    cell::Cell,
    io::{self, Read, Write},
    rc::Rc,
};

use hyperferry_translate::source::Format;
use hyperferry_vm_model::{
    PAGE_SIZE,
    checkpoint::{Item, MAGIC, Reader},
};

use super::{Element, Fields, Printer, Value, runs::Run, text_fields};
use crate::{exit::Result, model};

/// Shows the outline, pages in runs, and the state.
pub(super) fn show<W: Write>(reader: impl Read, printer: &mut Printer<W>) -> Result<()> {
    printer.head(Format::Model)?;
    let offset = Rc::new(Cell::new(0));
    let counted = Counted { inner: reader, offset: Rc::clone(&offset) };
    let (mut reader, outline) = Reader::new(counted)?;
    let header = (MAGIC.len() + 4) as u64;
    let fields = text_fields(model::lines(&outline));
    printer.element(&Element { path: "OUTLINE".to_owned(), offset: header, fields })?;
    let mut run: Option<(u64, u64, Run)> = None;
    loop {
        let start = offset.get();
        let item = match reader.next_item() {
            Ok(item) => item,
            Err(error) => {
                end_run(&mut run, printer)?;
                return Err(error.into());
            }
        };
        match item {
            None => break,
            Some(Item::Pages { addresses, data }) => {
                if run.as_ref().is_some_and(|(_, _, run)| run.is_full()) {
                    end_run(&mut run, printer)?;
                }
                let (_, chunks, run) = run.get_or_insert_with(|| (start, 0, Run::default()));
                *chunks += 1;
                addresses.iter().for_each(|address| run.frame(address / PAGE_SIZE));
                run.data(addresses.len() as u64, data);
            }
            Some(Item::State(vm)) => {
                end_run(&mut run, printer)?;
                let fields = text_fields(model::lines(&vm));
                printer.element(&Element { path: "STATE".to_owned(), offset: start, fields })?;
            }
        }
    }
    printer.end(offset.get())
}

fn end_run<W: Write>(run: &mut Option<(u64, u64, Run)>, printer: &mut Printer<W>) -> Result<()> {
    let Some((offset, chunks, run)) = run.take() else { return Ok(()) };
    let fields = run.describe(Fields::new().with("chunks", Value::Dec(chunks)));
    printer.element(&Element { path: "PAGES".to_owned(), offset, fields })
}

/// Counts what is read: a checkpoint's reader takes no more than it needs.
struct Counted<R> {
    inner: R,
    offset: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.offset.set(self.offset.get() + count as u64);
        Ok(count)
    }
}
