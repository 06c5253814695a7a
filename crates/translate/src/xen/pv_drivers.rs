//! Whether the guest's kernel talks to Xen, told as early as a stream can tell it.
//!
//! A sender pauses the guest after its last round of pages and names Xen's own pages (HVM_PARAMS) only then. Two signs
//! are in the first round, while the guest runs:
//!
//! * **Shared info in RAM.** The page through which Xen tells time and events is Xen's memory, which no sender sends.
//!   hvmloader keeps it behind RAM; a kernel that uses it maps it over a page of its own (Linux: the first usable one
//!   above 64 KiB; FreeBSD: any), and that page is gone from the stream (type XTAB). So is a page that the balloon
//!   driver has given back. Where RAM begins is where a stream begins: Linux is recognised in the first record.
//! * **The xenstore ring is in use.** libxl puts it into a fixed frame, and hvmloader leaves its indices zero. The frame
//!   lies below 4 GiB, behind RAM: it comes at the end of a small guest's first round.
//!
//! Source: Xen 4.17, tools/libs/guest/xg_dom_x86.c (special pages, VGA hole), tools/libs/guest/xg_sr_save.c,
//! tools/firmware/hvmloader/{pci,util,xenbus}.c, xen/include/public/io/xs_wire.h.

use hyperferry_vm_model::{MemoryLayout, PAGE_SIZE};
use hyperferry_xen_stream::libxc::{PageType, PfnEntry};
use serde_json::Value;

use super::HeldPages;
use crate::{
    refusal::{self, Policy},
    report::Report,
};

/// Where libxl puts the xenstore ring: special page 4 of the 8 below 0xff000.
pub(super) const STORE_PFN: u64 = 0xfeffc;
/// Offset of the ring indices in the xenstore page (xenstore_domain_interface).
const XENSTORE_INDICES: usize = 2048;
/// No memory was ever there: the legacy video window.
const VGA_HOLE: std::ops::Range<u64> = 0xa0..0xc0;
/// From here on hvmloader may have moved RAM out of the way of PCI devices.
const RELOCATABLE: u64 = 0x8000_0000 / PAGE_SIZE;

const REMEDY: &str = "boot it without them before the move: `nopv` on a Linux kernel's command line (and \
                      xen_platform_pci=0 in its configuration), with an emulated disk (hda) and network card";

/// What pages tell about paravirtual drivers, judged as they come.
#[derive(Debug, Default)]
pub(super) struct PvDrivers {
    /// The guest has fewer pages than its RAM has frames, by its configuration.
    populated_on_demand: bool,
    judged: bool,
}

impl PvDrivers {
    /// A guest that was given less memory than it may have has frames without a page, whatever its kernel.
    pub(super) fn of_config(json: &Value) -> Self {
        let kib = |key: &str| json.pointer(key).and_then(Value::as_u64);
        let (most, given) = (kib("/b_info/max_memkb"), kib("/b_info/target_memkb"));
        let populated_on_demand = most.zip(given).is_some_and(|(most, given)| given < most);
        Self { populated_on_demand, judged: false }
    }

    /// Judges the head of a PAGE_DATA record: frames of RAM that have no page.
    pub(super) fn entries(
        &mut self,
        entries: &[PfnEntry],
        layout: &MemoryLayout,
        name: &str,
        policy: &Policy,
        report: &mut Report,
    ) {
        if self.judged || self.populated_on_demand {
            return;
        }
        let taken = |entry: &&PfnEntry| {
            let pfn = entry.pfn();
            entry.page_type() == PageType::XTAB
                && !VGA_HOLE.contains(&pfn)
                && pfn < RELOCATABLE.min(layout.low_end / PAGE_SIZE)
        };
        let Some(entry) = entries.iter().find(taken) else { return };
        self.judged = true;
        let what = format!(
            "{} uses Xen's paravirtual drivers: page {:#x} of its RAM belongs to Xen (shared info) or to its balloon",
            guest(name),
            entry.pfn().saturating_mul(PAGE_SIZE)
        );
        policy.refuse(report, refusal::PV_DRIVERS, what, REMEDY);
    }

    /// Judges the xenstore ring, as soon as it is there.
    pub(super) fn store(
        &mut self,
        pfn: u64,
        held: &HeldPages,
        name: &str,
        policy: &Policy,
        report: &mut Report,
    ) {
        if self.judged || !in_use(held.page(pfn)) {
            return;
        }
        self.judged = true;
        let what = format!("{} uses Xen's paravirtual drivers: its xenstore ring is in use", guest(name));
        policy.refuse(report, refusal::PV_DRIVERS, what, REMEDY);
    }
}

fn in_use(store: Option<&[u8]>) -> bool {
    let ring = store.and_then(|page| page.get(XENSTORE_INDICES..XENSTORE_INDICES + 16));
    ring.is_some_and(|indices| indices.iter().any(|byte| *byte != 0))
}

fn guest(name: &str) -> &str {
    if name.is_empty() { "the guest" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(mut pv: PvDrivers, entries: &[PfnEntry]) -> bool {
        let layout = MemoryLayout::split(4 << 30, 0xf000_0000);
        let mut report = Report::default();
        pv.entries(entries, &layout, "web", &Policy::default(), &mut report);
        report.refusals().any(|finding| finding.name == "pv-drivers")
    }

    #[test]
    fn a_frame_of_ram_without_a_page_is_xens() {
        let none = |pfn| PfnEntry::new(pfn, PageType::XTAB);
        let page = |pfn| PfnEntry::new(pfn, PageType::NOTAB);
        assert!(refused(PvDrivers::default(), &[page(0xf), none(0x10)]));
        assert!(!refused(PvDrivers::default(), &[page(0xf), page(0x10)]));
        assert!(!refused(PvDrivers::default(), &[none(0xa0), none(0xbf)]), "the VGA hole");
        assert!(!refused(PvDrivers::default(), &[none(0x8_0000)]), "hvmloader moved it");
        assert!(!refused(PvDrivers::default(), &[none(0xf_0000)]), "behind RAM");
        assert!(!refused(PvDrivers::default(), &[PfnEntry::new(0x10, PageType::BROKEN)]));
    }

    #[test]
    fn memory_that_was_never_given_is_no_sign() {
        let config = |target| serde_json::json!({ "b_info": { "max_memkb": 4096, "target_memkb": target } });
        let entries = [PfnEntry::new(0x10, PageType::XTAB)];
        assert!(refused(PvDrivers::of_config(&config(4096)), &entries));
        assert!(!refused(PvDrivers::of_config(&config(2048)), &entries));
    }

    #[test]
    fn an_idle_ring_is_no_sign() {
        let judge = |offset: usize| {
            let (mut held, mut report) = (HeldPages::default(), Report::default());
            let mut page = [0; 4096];
            page[offset] = 1;
            held.put(STORE_PFN, &page);
            PvDrivers::default().store(STORE_PFN, &held, "", &Policy::default(), &mut report);
            report.refusals().count()
        };
        assert_eq!((judge(0), judge(2047), judge(2048), judge(2063), judge(2064)), (0, 0, 1, 1, 0));
    }
}
