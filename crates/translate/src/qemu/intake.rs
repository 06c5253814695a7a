//! From a QEMU stream to the model: drives the components over the stream's sections.
//!
//! ```text
//! open   header, CONFIGURATION, RAM START      -> outline: machine, memory layout, and what the caller knows
//! pump   pages of pc.ram, round after round    -> page lane, in batches, as they come
//!        pages of a block whose place is known -> the same
//!        pages of other blocks                 -> held until the device state says where the guest sees them
//!        device state, explained at its end    -> the model
//! ```
//!
//! A QEMU stream says little before memory: neither how many vCPUs there are nor which devices. Whoever knows more
//! says so in a [`Hint`]: the sender that has asked a live QEMU, or [`survey`], which reads a file once beforehand.

mod config;
mod place;
mod state;

use std::{collections::BTreeMap, io::Read};

use hyperferry_qemu_stream::{Configuration, DeviceState, Event, RamBlock, RamChunk, StreamReader};
use hyperferry_vm_model::{MemoryLayout, Vm};
use hyperferry_wire::PAGE_SIZE as PAGE;

use self::place::Place;
use super::{APIC_BUS_HZ, Accelerator};
use crate::{
    Error, Result,
    component::fields::STAGE,
    refusal::{self, Policy},
    report::Report,
    xen::{HeldPages, Taken},
};

/// The block with the guest's RAM.
const MAIN_RAM: &str = "pc.ram";
/// Most pages handed to the page lane at once, and so in one PAGE_DATA record of Xen's: 256 KiB, which stay in a cache.
///
/// With 1 MiB `hyperferry send` took twice as long between pipes. A Xen that restores 128 MB does so in 2.6 s and took 2.5
/// with records of 1 MiB (the emulated one of `cargo xtask lab`, medians of four).
const BATCH: usize = 64;
/// Prefix of the machine types that can be read: PC with the 440FX chipset.
const MACHINE_PREFIX: &str = "pc-i440fx-";

/// What is known of the guest that its stream does not say, or says too late.
#[derive(Clone, Debug)]
pub struct Hint {
    /// The VM as far as it is known: configuration, memory layout, CPUID, TSC rate; whatever is left at its default
    /// is taken from the stream.
    pub vm: Vm,
    /// What executes the guest, if it is known.
    pub accelerator: Option<Accelerator>,
    /// Rate of its local APIC timers' clock, Hz. It is another than usual beside the platform shim.
    pub apic_bus_hz: u64,
    /// Where the guest sees RAM blocks that are not its RAM, by their names. Pages of these go there as they come, and the
    /// stream is refused if it says at its end that they are seen elsewhere by then.
    pub places: BTreeMap<String, u64>,
}

impl Default for Hint {
    fn default() -> Self {
        Self { vm: Vm::default(), accelerator: None, apic_bus_hz: APIC_BUS_HZ, places: BTreeMap::new() }
    }
}

/// Reads a stream to its end for what it says of the guest; memory is passed over.
///
/// What can be allowed is not refused here: that is for the reading that moves the guest.
pub fn survey<R: Read>(reader: R, hint: Hint) -> Result<Hint> {
    let mut intake = Intake::open(StreamReader::new(reader), hint.clone(), Policy::allow_all())?;
    intake.survey = true;
    let taken = intake.pump(|_, _| Ok(()))?;
    let accelerator = taken.vm.remainder.as_ref().map(|remainder| match remainder.kvm {
        true => Accelerator::Kvm,
        false => Accelerator::Tcg,
    });
    Ok(Hint { vm: taken.vm, accelerator, ..hint })
}

/// A QEMU stream that is being read.
#[derive(Debug)]
pub struct Intake<R: Read> {
    reader: StreamReader<R>,
    hint: Hint,
    vm: Vm,
    report: Report,
    policy: Policy,
    blocks: Vec<RamBlock>,
    /// Where the pages of each go.
    places: Vec<Place>,
    batch: Batch,
    pages: u64,
    /// The layout may still be corrected: no page has gone anywhere.
    survey: bool,
}

impl<R: Read> Intake<R> {
    /// Reads what comes before memory, and refuses what can be refused by then.
    pub fn open(mut reader: StreamReader<R>, hint: Hint, policy: Policy) -> Result<Self> {
        let mut report = Report::default();
        let mut configuration = Configuration::default();
        let (mut blocks, mut places): (Vec<RamBlock>, Vec<Place>) = (Vec::new(), Vec::new());
        let place = |block: &RamBlock| Place::of(&block.name, &hint.places);
        let mut pages = 0;
        // Where pages follow each block (mapped-ram), others may come before the guest's RAM.
        let main = loop {
            places.extend(blocks.iter().skip(places.len()).map(place));
            if let Some(main) = blocks.iter().find(|block| block.name == MAIN_RAM) {
                break Some(main);
            }
            match reader.next_event()? {
                Some(Event::Configuration(found)) => configuration = found,
                Some(Event::RamStart(ram)) => blocks = ram.blocks,
                Some(Event::RamBlock(block)) => blocks.push(block),
                Some(Event::RamPages(chunk)) => {
                    pages += chunk.pages().len() as u64;
                    for (block, offset, data) in chunk.iter() {
                        if let Some(place) = places.get_mut(block) {
                            place.put_aside(offset, data);
                        }
                    }
                }
                Some(Event::Header(_) | Event::Command(_)) => {}
                _ => break None,
            }
        };
        if blocks.is_empty() {
            let why = "the stream holds devices alone, as Xen's device models write them";
            return Err(Error::Missing { record: "RAM", instance: None, why });
        }
        let Configuration { machine, .. } = &configuration;
        judge_machine(machine, &policy, &mut report);
        let Some(main) = main else {
            let names: Vec<_> = blocks.iter().map(|block| block.name.as_str()).collect();
            let what = format!("the guest's RAM is not called {MAIN_RAM}: {}", names.join(", "));
            let remedy = "start it with the memory backend called pc.ram (libvirt does), or with -m alone";
            policy.refuse(&mut report, refusal::MEMORY_LAYOUT, what, remedy);
            return Err(Error::Refused(Box::new(report)));
        };
        let size = main.used_length;
        let mut vm = hint.vm.clone();
        vm.origin = format!("QEMU {machine}");
        vm.config.memory = size;
        if vm.memory.size() != size {
            vm.memory = layout(size);
        }
        report.record(STAGE, "CONFIGURATION").carried(&["machine"]);
        if let Some(uuid) = configuration.uuid() {
            vm.config.uuid = Some(text_of(uuid));
            report.record(STAGE, "CONFIGURATION").carried(&["uuid"]);
        }
        report.record(STAGE, "START ram").carried(&["blocks"]).derived("section_id, version", "framing");
        Error::unless_allowed(&report)?;
        let batch = Batch::default();
        Ok(Self { reader, hint, vm, report, policy, blocks, places, batch, pages, survey: false })
    }

    /// What is known before the end: the machine, the memory layout, and what the caller knew.
    pub fn outline(&self) -> &Vm {
        &self.vm
    }

    /// What there is to say so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The RAM blocks of the machine, in the stream's order.
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Reads the rest of the stream: `page_lane` gets the guest-physical addresses of RAM pages and the pages, and those
    /// of blocks whose place was [known](Hint::places).
    ///
    /// RAM is what QEMU calls so: it has pages at 0xa0000 to 0xbffff too, which a guest sees in system management
    /// mode only.
    pub fn pump(mut self, mut page_lane: impl FnMut(&[u64], &[u8]) -> Result<()>) -> Result<Taken> {
        let mut state = None;
        while let Some(event) = self.reader.next_event()? {
            match event {
                Event::RamPages(chunk) => {
                    self.pages += chunk.pages().len() as u64;
                    route(&chunk, &self.vm.memory, &mut self.places, &mut self.batch, &mut page_lane)?;
                }
                Event::RamBlock(block) => {
                    self.places.push(Place::of(&block.name, &self.hint.places));
                    self.blocks.push(block);
                }
                Event::DeviceState(found) => state = Some(found),
                // Nothing but the rate of a round's pages hangs on these.
                _ => {}
            }
        }
        self.batch.flush(&mut page_lane)?;
        let Some(state) = state else {
            let why = "the devices' state, without which there is no guest";
            return Err(Error::Missing { record: "device state", instance: None, why });
        };
        self.finish(&state, &mut page_lane)
    }

    fn finish(
        mut self,
        state: &DeviceState,
        page_lane: &mut impl FnMut(&[u64], &[u8]) -> Result<()>,
    ) -> Result<Taken> {
        let note = format!("{} pages", self.pages);
        self.report.record(STAGE, "ram").carried(&["pages"]).derived("rounds", note);
        let from_xen = self.blocks.iter().any(|block| place::is_acpi_window(&block.name));
        state::normalise(state, &mut self.vm, &self.hint, from_xen, &self.policy, &mut self.report)?;
        config::complete(state, &self.blocks, &mut self.vm);
        self.judge_layout();
        let mut held = HeldPages::default();
        for (block, place) in self.blocks.iter().zip(self.places) {
            place::settle(block, place, &self.vm, &mut held, page_lane, &self.policy, &mut self.report)?;
        }
        Error::unless_allowed(&self.report)?;
        Ok(Taken { vm: self.vm, held, report: self.report, pages: self.pages })
    }

    /// The firmware was told where RAM ends, and keeps it in the clock's memory; pages went where we took it to end.
    fn judge_layout(&mut self) {
        let Some(told) = config::told_low_end(&self.vm) else { return };
        if told == self.vm.memory.low_end || self.vm.memory.low_end < config::LOW_END_TOLD_FROM {
            return;
        }
        if self.survey {
            self.vm.memory = MemoryLayout::split(self.vm.memory.size(), told);
            return;
        }
        let what = format!(
            "the guest's RAM below 4 GiB ends at {told:#x}, and was taken to end at {:#x}",
            self.vm.memory.low_end
        );
        let remedy = "QEMU's stream does not tell max-ram-below-4g before memory: give the stream as a file, not a pipe";
        self.policy.refuse(&mut self.report, refusal::MEMORY_LAYOUT, what, remedy);
    }
}

/// Where QEMU's `pc` puts RAM unless told otherwise: from 3.5 GiB on it leaves the gigabyte below 4 GiB free
/// (hw/i386/pc_piix.c, pc_init1).
fn layout(size: u64) -> MemoryLayout {
    let low_limit = if size >= 0xe000_0000 { 0xc000_0000 } else { size };
    MemoryLayout::split(size, low_limit)
}

/// A UUID as people write it.
fn text_of(uuid: [u8; 16]) -> String {
    let number = format!("{:032x}", u128::from_be_bytes(uuid));
    let mut digits = number.chars();
    let groups = [8, 4, 4, 4, 12].map(|length| digits.by_ref().take(length).collect::<String>());
    groups.join("-")
}

fn judge_machine(machine: &str, policy: &Policy, report: &mut Report) {
    if machine.starts_with(MACHINE_PREFIX) {
        return;
    }
    let what =
        format!("the guest's machine is {machine}, and only the 440FX one (pc) has a counterpart elsewhere");
    let remedy = "boot the guest with the machine type pc before the move";
    policy.refuse(report, refusal::MACHINE, what, remedy);
}

/// Sends the pages of one chunk on their way.
fn route(
    chunk: &RamChunk<'_>,
    layout: &MemoryLayout,
    places: &mut [Place],
    batch: &mut Batch,
    page_lane: &mut impl FnMut(&[u64], &[u8]) -> Result<()>,
) -> Result<()> {
    for (block, offset, data) in chunk.iter() {
        // The reader has checked that the block is there, and that the offset lies in it.
        let address = match places.get_mut(block) {
            Some(Place::Ram) => layout.address(offset),
            Some(Place::At(base)) => base.checked_add(offset),
            Some(place @ Place::Aside(_)) => {
                place.put_aside(offset, data);
                None
            }
            None => None,
        };
        let Some(address) = address else { continue };
        batch.put(address, data);
        if batch.addresses.len() == BATCH {
            batch.flush(page_lane)?;
        }
    }
    Ok(())
}

/// Pages on their way: the stream has eight bytes between any two, and the lane wants them in one piece.
#[derive(Debug, Default)]
struct Batch {
    addresses: Vec<u64>,
    data: Vec<u8>,
}

impl Batch {
    fn put(&mut self, address: u64, data: Option<&[u8]>) {
        self.addresses.push(address);
        match data {
            Some(page) => self.data.extend_from_slice(page),
            None => self.data.resize(self.addresses.len() * PAGE, 0),
        }
    }

    fn flush(&mut self, page_lane: &mut impl FnMut(&[u64], &[u8]) -> Result<()>) -> Result<()> {
        if !self.addresses.is_empty() {
            page_lane(&self.addresses, &self.data)?;
        }
        self.addresses.clear();
        self.data.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_splits_as_qemu_splits_it() {
        // Measured on QEMU 10.0.2, formats/qemu/ram.md.
        assert_eq!(layout(256 << 20).low_end, 256 << 20);
        assert_eq!(layout(3583 << 20), MemoryLayout { low_end: 3583 << 20, high_end: 1 << 32 });
        assert_eq!(layout(3584 << 20).low_end, 0xc000_0000);
        assert_eq!(layout(8 << 30).high_end, 9 << 30);
    }

    #[test]
    fn a_uuid_is_written_as_qemu_takes_it() {
        let uuid = 0x404e_d65b_3579_49d9_afd7_4b03_c526_326d_u128;
        assert_eq!(text_of(uuid.to_be_bytes()), "404ed65b-3579-49d9-afd7-4b03c526326d");
        assert_eq!(text_of([0; 16]), "00000000-0000-0000-0000-000000000000");
    }

    #[test]
    fn pages_come_in_order_and_zeros_too() {
        let mut batch = Batch::default();
        batch.put(0x1000, Some(&[7; PAGE]));
        batch.put(0x5000, None);
        let mut seen = Vec::new();
        let mut lane = |addresses: &[u64], data: &[u8]| {
            seen.push((addresses.to_vec(), data[0], data[PAGE], data.len()));
            Ok(())
        };
        batch.flush(&mut lane).unwrap();
        batch.flush(&mut lane).unwrap();
        assert_eq!(seen, [(vec![0x1000, 0x5000], 7, 0, 2 * PAGE)]);
    }
}
