//! The model to a Xen save stream, written as memory comes in.

use std::{collections::BTreeSet, io::Write};

use hyperferry_vm_model::{PAGE_SIZE, Vm};
use hyperferry_wire::PAGE_SIZE as PAGE;
use hyperferry_xen_stream::{Event, StreamWriter, libxc, libxl, xl};

use super::{
    HeldPages, Relocation, Target, Template, config, domain, emulator, judge,
    pages::{self, Pages},
    video,
};
use crate::{Error, Result, refusal::Policy, report::Report};

const STAGE: &str = "model -> Xen";
/// Most entries in one PAGE_DATA record, as Xen's own sender has it (tools/libs/guest/xg_sr_common.h, MAX_BATCH_SIZE).
const BATCH: usize = 1024;

/// The Xen host that takes a guest.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// What its save files look like.
    pub template: &'a Template,
    /// What the guest's disks and bridges are called there.
    pub relocation: &'a Relocation,
    /// What the user allows.
    pub policy: &'a Policy,
}

/// Writes a Xen stream: headers and policies at once, pages as they come, the state at the end.
#[derive(Debug)]
pub struct XenSink<'a, W: Write> {
    writer: StreamWriter<W>,
    destination: Destination<'a>,
    outline: Vm,
    entries: Vec<libxc::PfnEntry>,
    /// Frames outside RAM that the domain has got.
    outside: BTreeSet<u64>,
}

impl<'a, W: Write> XenSink<'a, W> {
    /// Writes what comes before memory. Refuses what can be refused by then.
    pub fn new(out: W, outline: &Vm, destination: Destination<'a>, report: &mut Report) -> Result<Self> {
        let template = destination.template;
        video::judge(&outline.config, destination.policy, report);
        let json = config::localise(outline, destination.relocation, report);
        let mut writer = StreamWriter::new(out);
        writer.write(&Event::XlHeader(xl::Header::with_text(&json)))?;
        writer.write(&Event::LibxlHeader(libxl::StreamHeader::default()))?;
        writer.write(&Event::Libxl(libxl::Record::LibxcContext))?;
        writer.write(&Event::ImageHeader(libxc::ImageHeader::default()))?;
        let [xen_major, xen_minor] = template.version;
        let domain_type = libxc::DomainType::HVM;
        writer.write(&Event::DomainHeader(libxc::DomainHeader { domain_type, xen_major, xen_minor }))?;
        for record in domain::policies(template.cpuid_for(outline), report) {
            writer.write(&Event::Libxc(record))?;
        }
        writer.write(&Event::Libxc(libxc::Record::StaticDataEnd))?;
        Error::unless_allowed(report)?;
        let (outline, entries) = (outline.clone(), Vec::with_capacity(BATCH));
        Ok(Self { writer, destination, outline, entries, outside: BTreeSet::new() })
    }

    /// Bytes written so far.
    pub fn offset(&self) -> u64 {
        self.writer.offset()
    }

    /// Writes the video memory that the guest has at the destination only, where the place of all of it is known by now.
    pub fn more_video(&mut self, base: u64) -> Result<()> {
        let pages = pages::more_video(&self.outline.config, base);
        self.outside.extend(pages.keys());
        self.write_outside(pages)
    }

    /// Writes pages: one address each, and the pages in the same order. Of those outside RAM it takes note: the end has
    /// the others.
    pub fn pages(&mut self, addresses: &[u64], data: &[u8]) -> Result<()> {
        let layout = &self.outline.memory;
        let outside = addresses.iter().filter(|address| layout.ram_offset(**address).is_none());
        self.outside.extend(outside.map(|address| address / PAGE_SIZE));
        // Where VGA's window is, Xen has no RAM: a page there would hide the adapter.
        if addresses.iter().any(|address| pages::VGA_WINDOW.contains(address)) {
            for (address, page) in addresses.iter().zip(data.chunks(PAGE)) {
                if !pages::VGA_WINDOW.contains(address) {
                    self.batch(&[*address], page)?;
                }
            }
            return Ok(());
        }
        let batches = addresses.chunks(BATCH).zip(data.chunks(BATCH * PAGE));
        for (addresses, data) in batches {
            self.batch(addresses, data)?;
        }
        Ok(())
    }

    fn batch(&mut self, addresses: &[u64], data: &[u8]) -> Result<()> {
        self.entries.clear();
        let entry = |address: &u64| libxc::PfnEntry::new(address / PAGE_SIZE, libxc::PageType::NOTAB);
        self.entries.extend(addresses.iter().map(entry));
        self.writer.write(&Event::PageData(&self.entries))?;
        let chunks =
            self.entries.chunks(libxc::PAGES_PER_CHUNK).zip(data.chunks(libxc::PAGES_PER_CHUNK * PAGE));
        for (entries, data) in chunks {
            self.writer.write(&Event::Pages(libxc::PageChunk { entries, data }))?;
        }
        Ok(())
    }

    /// In as few records as can be: for each, the receiver asks Xen for memory and maps it.
    fn write_outside(&mut self, pages: Pages<'_>) -> Result<()> {
        let pages: Vec<_> = pages.into_iter().collect();
        for pages in pages.chunks(libxc::PAGES_PER_CHUNK) {
            let addresses: Vec<_> = pages.iter().map(|(pfn, _)| pfn.saturating_mul(PAGE_SIZE)).collect();
            let data: Vec<_> = pages.iter().flat_map(|(_, page)| page.iter().copied()).collect();
            self.batch(&addresses, &data)?;
        }
        Ok(())
    }

    /// Writes the pages outside RAM that are not yet there, the state and the end; gives the output back.
    pub fn finish(mut self, vm: &Vm, held: &HeldPages, report: &mut Report) -> Result<W> {
        let template = self.destination.template;
        let target = Target {
            cpuid: template.cpuid_for(&self.outline),
            version: template.version,
            lapic_elided: template.lapic_elided,
            home: vm.xen.is_some(),
            policy: self.destination.policy,
        };
        judge::judge(vm, self.destination.policy, report);
        // All of it is made, and refused where it must be, before any of it is written.
        let params = domain::params(vm, report);
        let tsc_info = domain::tsc_info(vm, report);
        let context = domain::context(vm, template, &target, report);
        let emulator = emulator::localise(vm, template, self.destination.policy, report)?;
        let outside = pages::outside(vm, held, &self.outside, &params, report);
        Error::unless_allowed(report)?;

        self.write_outside(outside)?;
        report.record(STAGE, "PAGE_DATA").carried(&["pages"]);
        for record in [
            libxc::Record::X86TscInfo(tsc_info),
            libxc::Record::HvmContext(context),
            libxc::Record::HvmParams(params),
            libxc::Record::End,
        ] {
            self.writer.write(&Event::Libxc(record))?;
        }
        self.writer.write(&Event::Libxl(libxl::Record::EmulatorContext(emulator)))?;
        self.writer.write(&Event::Libxl(libxl::Record::End))?;
        self.writer.flush()?;
        Ok(self.writer.into_inner())
    }
}
