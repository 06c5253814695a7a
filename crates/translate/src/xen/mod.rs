//! Between a Xen stream and the model: drives the components over the stream's records.
//!
//! ```text
//! Intake: Xen stream -> model
//! open   xl header, libxl header, libxc headers, static data     -> outline: configuration, layout, CPUID
//! pump   PAGE_DATA …                                             -> pages, in batches, as they come
//!        X86_TSC_INFO, HVM_CONTEXT, HVM_PARAMS, EMULATOR_CONTEXT -> the model, and the pages outside RAM
//!
//! XenSink: model -> Xen stream, in the dialect of a Template
//! new    outline                                                 -> headers, configuration, static data
//! pages  …                                                       -> PAGE_DATA
//! finish the model, and the pages outside RAM                    -> the rest
//! ```

mod config;
mod domain;
mod emulator;
mod held;
pub mod judge;
mod pages;
mod pv_drivers;
mod records;
mod sink;
mod template;
mod video;

use std::io::Read;

use hyperferry_vm_model::{CpuidLeaf, CpuidPolicy, MemoryLayout, MsrPolicyEntry, PAGE_SIZE, Vm, XenDomain};
use hyperferry_wire::PAGE_SIZE as PAGE;
use hyperferry_xen_stream::{Event, StreamReader, libxc, libxl};
use serde_json::Value;

pub use self::config::{Identity, Relocation};
pub use self::held::HeldPages;
pub use self::sink::{Destination, XenSink};
pub use self::template::Template;
use self::{
    pv_drivers::{PvDrivers, STORE_PFN},
    records::StateRecords,
};
use crate::{
    Error, Result,
    refusal::{self, Policy},
    report::{Report, Severity},
};

const STAGE: &str = "Xen -> model";
/// Where libxl puts the hole for devices unless told otherwise (tools/include/xen/hvm/e820.h, HVM_BELOW_4G_MMIO_START).
const DEFAULT_LOW_LIMIT: u64 = 0xf000_0000;
const FOUR_GIB: u64 = 1 << 32;
/// A leaf of CPUID that does not look at ECX.
const NO_SUBLEAF: u32 = libxc::CpuidLeaf::NO_SUBLEAF;

/// What components need to know about the Xen host that a guest goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// What the guest is shown there.
    pub(crate) cpuid: &'a CpuidPolicy,
    /// Its Xen: major and minor version.
    pub(crate) version: [u32; 2],
    /// Bytes that its LAPIC records lack at the end: all of `pending_esr`, or none.
    pub(crate) lapic_elided: usize,
    /// The guest comes from a Xen, and what only Xen knows of it is its own.
    pub(crate) home: bool,
    pub(crate) policy: &'a Policy,
}

impl Target<'_> {
    /// The bits that a guest-physical address may have (CPUID leaf 0x80000008).
    pub(crate) fn physical_mask(&self) -> u64 {
        let bits = self.cpuid.leaf(0x8000_0008, 0).map_or(0, |leaf| leaf.eax & 0xff);
        if (1..64).contains(&bits) { (1 << bits) - 1 } else { u64::MAX }
    }
}

fn cpuid_leaf(leaf: &libxc::CpuidLeaf) -> CpuidLeaf {
    CpuidLeaf {
        leaf: leaf.leaf,
        subleaf: (leaf.subleaf != NO_SUBLEAF).then_some(leaf.subleaf),
        eax: leaf.a,
        ebx: leaf.b,
        ecx: leaf.c,
        edx: leaf.d,
    }
}

fn msr_entry(entry: &libxc::MsrEntry) -> MsrPolicyEntry {
    MsrPolicyEntry { index: entry.idx, value: entry.val }
}

/// A Xen stream that is being read.
#[derive(Debug)]
pub struct Intake<R: Read> {
    reader: StreamReader<R>,
    vm: Vm,
    report: Report,
    policy: Policy,
    held: HeldPages,
    records: StateRecords,
    pv_drivers: PvDrivers,
    pages: u64,
    live: bool,
}

/// What a stream leaves behind: the model, the pages outside RAM, and the account of it all.
#[derive(Debug)]
pub struct Taken {
    /// The VM.
    pub vm: Vm,
    /// Pages outside RAM: video memory, ACPI tables, Xen's own.
    pub held: HeldPages,
    /// What became of every record.
    pub report: Report,
    /// Pages read, counting a page that came twice twice.
    pub pages: u64,
}

impl<R: Read> Intake<R> {
    /// Reads what comes before memory, and refuses what can be refused by then.
    pub fn open(reader: StreamReader<R>, policy: Policy) -> Result<Self> {
        let mut intake = Self {
            reader,
            vm: Vm::default(),
            report: Report::default(),
            policy,
            held: HeldPages::default(),
            records: StateRecords::default(),
            pv_drivers: PvDrivers::default(),
            pages: 0,
            live: false,
        };
        intake.read_outline()?;
        Error::unless_allowed(&intake.report)?;
        Ok(intake)
    }

    /// The same intake of a sender that waits for an answer: it reads no byte behind the stream's END.
    #[must_use]
    pub fn live(mut self) -> Self {
        self.live = true;
        self
    }

    /// What is known before memory: configuration, memory layout, CPUID policy.
    pub fn outline(&self) -> &Vm {
        &self.vm
    }

    /// What there is to say so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    fn read_outline(&mut self) -> Result<()> {
        let mut version = 3;
        loop {
            let Some(event) = self.reader.next_event()? else { return Ok(()) };
            match event {
                Event::XlHeader(header) => {
                    let json = header.config()?;
                    self.vm = outline(&json, &self.policy, &mut self.report);
                    self.pv_drivers = PvDrivers::of_config(&json);
                    let xen = XenDomain { config: header.text().to_owned(), ..XenDomain::default() };
                    self.vm.xen = Some(xen);
                }
                Event::ImageHeader(header) => version = header.version,
                Event::DomainHeader(header) => {
                    self.vm.origin = format!("Xen {}.{}", header.xen_major, header.xen_minor);
                    if let Some(xen) = &mut self.vm.xen {
                        xen.version = [header.xen_major, header.xen_minor];
                    }
                    if header.domain_type != libxc::DomainType::HVM {
                        let what = "this is a PV domain: its kernel calls Xen instead of using hardware";
                        let remedy =
                            "only HVM domains can move; convert the guest to HVM on the Xen host first";
                        self.policy.refuse(&mut self.report, refusal::DOMAIN_TYPE, what, remedy);
                        return Ok(());
                    }
                    // Version 2 has no static data: memory comes next.
                    if version < 3 {
                        return Ok(());
                    }
                }
                Event::Libxc(libxc::Record::X86CpuidPolicy(record)) => {
                    self.vm.cpuid.leaves = record.leaves.iter().map(cpuid_leaf).collect();
                    self.report.record(STAGE, "X86_CPUID_POLICY").carried(&["leaves"]);
                }
                Event::Libxc(libxc::Record::X86MsrPolicy(record)) => {
                    self.vm.cpuid.msrs = record.msrs.iter().map(msr_entry).collect();
                    self.report.record(STAGE, "X86_MSR_POLICY").carried(&["msrs"]);
                }
                Event::Libxc(libxc::Record::StaticDataEnd) => return Ok(()),
                Event::Libxc(record) => self.records.libxc(record, &self.policy, &mut self.report),
                Event::Libxl(record) => self.records.libxl(record, &self.policy, &mut self.report),
                _ => {}
            }
        }
    }

    /// Reads the rest of the stream: `page_lane` gets the guest-physical addresses of RAM pages and the pages.
    pub fn pump(mut self, mut page_lane: impl FnMut(&[u64], &[u8]) -> Result<()>) -> Result<Taken> {
        let mut addresses = Vec::with_capacity(libxc::PAGES_PER_CHUNK);
        while let Some(event) = self.reader.next_event()? {
            match event {
                Event::PageData(entries) => {
                    let Vm { memory, config, .. } = &self.vm;
                    self.pv_drivers.entries(entries, memory, &config.name, &self.policy, &mut self.report);
                }
                Event::Pages(chunk) => {
                    self.pages += chunk.entries.len() as u64;
                    route(&chunk, &self.vm.memory, &mut self.held, &mut addresses, &mut page_lane)?;
                    if chunk.entries.iter().any(|entry| entry.pfn() == STORE_PFN) {
                        let name = &self.vm.config.name;
                        self.pv_drivers.store(STORE_PFN, &self.held, name, &self.policy, &mut self.report);
                    }
                    if let Some(pfn) = self.held.overflow() {
                        refuse_layout(pfn, &self.vm, &self.policy, &mut self.report);
                    }
                }
                Event::Libxl(libxl::Record::EmulatorContext(record)) => {
                    let end = self.reader.offset();
                    self.records.emulator_context(&record, end, &mut self.report)?;
                }
                // The next event is the answer to ours, which the caller has yet to give.
                Event::Libxl(libxl::Record::End) if self.live => break,
                Event::Libxc(record) => {
                    // A live sender has paused the guest before it says anything but pages.
                    self.report.paused |= self.live;
                    self.records.libxc(record, &self.policy, &mut self.report);
                }
                Event::Libxl(record) => self.records.libxl(record, &self.policy, &mut self.report),
                _ => continue,
            }
            Error::unless_allowed(&self.report)?;
        }
        let note = format!("{} pages", self.pages);
        self.report.record(STAGE, "PAGE_DATA").carried(&["pages"]).derived("pfn", note);
        let Self { mut vm, held, records, pv_drivers, policy, mut report, pages, .. } = self;
        records.finish(&mut vm, &held, pv_drivers, &policy, &mut report)?;
        Error::unless_allowed(&report)?;
        Ok(Taken { vm, held, report, pages })
    }
}

/// What libxl's JSON configuration tells of a guest: its devices and its memory's layout.
pub fn outline(json: &Value, policy: &Policy, report: &mut Report) -> Vm {
    let config = config::normalise(json, report);
    config::judge(json, &config, policy, report);
    let low_limit = config.mmio_hole.map_or(DEFAULT_LOW_LIMIT, |hole| FOUR_GIB - hole.min(FOUR_GIB));
    Vm { memory: MemoryLayout::split(config.memory, low_limit), config, ..Vm::default() }
}

/// Sends the pages of one chunk on their way: RAM to the page lane in as few pieces as can be, the rest aside.
fn route(
    chunk: &libxc::PageChunk<'_>,
    layout: &MemoryLayout,
    held: &mut HeldPages,
    addresses: &mut Vec<u64>,
    page_lane: &mut impl FnMut(&[u64], &[u8]) -> Result<()>,
) -> Result<()> {
    addresses.clear();
    let mut start = 0;
    for (index, entry) in chunk.entries.iter().enumerate() {
        let address = entry.pfn().saturating_mul(PAGE_SIZE);
        if layout.ram_offset(address).is_some() {
            addresses.push(address);
            continue;
        }
        if let Some(data) = chunk.data.get(start * PAGE..index * PAGE).filter(|data| !data.is_empty()) {
            page_lane(addresses, data)?;
        }
        addresses.clear();
        start = index + 1;
        if let Some(page) = chunk.data.get(index * PAGE..start * PAGE) {
            held.put(entry.pfn(), page);
        }
    }
    match chunk.data.get(start * PAGE..).filter(|data| !data.is_empty()) {
        Some(data) => page_lane(addresses, data),
        None => Ok(()),
    }
}

/// Memory lies where the configuration does not say it does.
fn refuse_layout(pfn: u64, vm: &Vm, policy: &Policy, report: &mut Report) {
    let what = format!(
        "page {:#x} holds memory outside the guest's RAM (below {:#x}, and from 4 GiB to {:#x})",
        pfn.saturating_mul(PAGE_SIZE),
        vm.memory.low_end,
        vm.memory.high_end
    );
    let remedy = "the firmware moved RAM to make room for devices: set mmio_hole in the guest's configuration, \
                  boot it again, and move it then";
    policy.refuse(report, refusal::MEMORY_LAYOUT, what, remedy);
}

/// A stream without CPUID policy leaves the CPU model to the user.
fn note_missing_policy(vm: &Vm, report: &mut Report) {
    if vm.cpuid.leaves.is_empty() {
        let what = "the stream has no CPUID policy (it comes from a Xen older than 4.14)";
        let remedy = "name the CPU model yourself with --cpu, the one the guest was booted on";
        report.find("cpuid-missing", Severity::Warning, what, remedy);
    }
}
