//! The destination's stream, written as memory comes in.

use std::io::Write;

use hyperferry_qemu_stream::{Header, SectionKind, StreamWriter};
use hyperferry_vm_model::{MemoryLayout, Vm};
use hyperferry_wire::PAGE_SIZE;

use super::{Blocks, Destination, localise, memory};
use crate::{Error, Result, report::Report, xen::HeldPages};

/// Writes a QEMU stream: header and RAM blocks at once, pages as they come, device state at the end.
#[derive(Debug)]
pub struct QemuSink<'a, W: Write> {
    writer: StreamWriter<W>,
    destination: Destination<'a>,
    layout: MemoryLayout,
    blocks: Blocks,
}

impl<'a, W: Write> QemuSink<'a, W> {
    /// Writes header, configuration and the list of RAM blocks.
    pub fn new(out: W, destination: Destination<'a>, layout: &MemoryLayout) -> Result<Self> {
        let template = destination.template;
        let blocks = Blocks::find(template, layout)?;
        let mut writer = StreamWriter::new(out);
        writer.header(Header)?;
        if let Some(configuration) = &template.configuration {
            writer.configuration(configuration)?;
        }
        writer.ram_start(&template.ram)?;
        writer.ram_end(template.footers)?;
        writer.ram_section(SectionKind::Part)?;
        Ok(Self { writer, destination, layout: layout.clone(), blocks })
    }

    /// Bytes written so far.
    pub fn offset(&self) -> u64 {
        self.writer.offset()
    }

    /// Writes pages of RAM: one address each, and the pages in the same order.
    pub fn pages(&mut self, addresses: &[u64], data: &[u8]) -> Result<()> {
        let (pages, _) = data.as_chunks::<PAGE_SIZE>();
        let offsets = addresses.iter().filter_map(|address| self.layout.ram_offset(*address));
        self.writer.pages(self.blocks.main, offsets.zip(pages.iter().map(<[u8; PAGE_SIZE]>::as_slice)))?;
        Ok(())
    }

    /// Writes the pages outside RAM, the device state and the end; gives the output back.
    pub fn finish(mut self, vm: &Vm, held: &HeldPages, report: &mut Report) -> Result<W> {
        let placements = memory::place(vm, held, &self.blocks, self.destination.policy, report);
        let state = localise(vm, &self.destination, report)?;
        Error::unless_allowed(report)?;
        for placement in placements {
            self.writer.pages(placement.block, [(placement.offset, placement.page)])?;
        }
        let template = self.destination.template;
        self.writer.ram_end(template.footers)?;
        for command in &template.commands {
            self.writer.command(command)?;
        }
        self.writer.ram_section(SectionKind::End)?;
        self.writer.ram_end(template.footers)?;
        self.writer.device_state(&state)?;
        Ok(self.writer.into_inner())
    }
}
