//! Memory that a Xen domain has outside its RAM: the pages that Xen and its toolstack talk through, video memory,
//! option ROMs, ACPI tables.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use hyperferry_vm_model::{GuestConfig, PAGE_SIZE, Vm};
use hyperferry_wire::PAGE_SIZE as PAGE;
use hyperferry_xen_stream::libxc::HvmParams;

use super::{HeldPages, video};
use crate::{qemu::video_range, report::Report};

const STAGE: &str = "model -> Xen";
/// Where a VGA adapter's window is, and no RAM (tools/libs/guest/xg_dom_x86.c, VGA_HOLE_SIZE).
pub(super) const VGA_WINDOW: Range<u64> = 0xa_0000..0xc_0000;
/// First of the pages that libxl keeps for itself, and how many: eight for device models, eight of their own.
const SPECIAL_PFN: u64 = 0xfeff0;
const SPECIAL_PAGES: u64 = 16;
const IDENT_PT_PFN: u64 = 0xfeffe;
/// Where QEMU's `pc` has its firmware, up to 4 GiB; a Xen domain has nothing there.
const FIRMWARE: Range<u64> = 0xff00_0000..1 << 32;
const PARAM_IDENT_PT: u64 = 12;

/// HVM_PARAMS of a domain that libxl has just made, in the order of `write_hvm_params` (xg_sr_save_x86_hvm.c) and with
/// the places of `special_pfn` (xg_dom_x86.c).
pub(super) const PARAMS: [(u64, u64); 10] = [
    (1, 0xfeffc),                         // STORE_PFN
    (5, 0xfeffd),                         // IOREQ_PFN
    (6, 0xfeffb),                         // BUFIOREQ_PFN
    (27, 0xfeff8),                        // PAGING_RING_PFN
    (28, 0xfeff9),                        // MONITOR_RING_PFN
    (29, 0xfeffa),                        // SHARING_RING_PFN
    (17, 0xfefff),                        // CONSOLE_PFN
    (PARAM_IDENT_PT, IDENT_PT_PFN << 12), // IDENT_PT
    (32, SPECIAL_PFN),                    // IOREQ_SERVER_PFN
    (33, 8),                              // NR_IOREQ_SERVER_PAGES
];

/// Pages by their frames.
pub(super) type Pages<'a> = BTreeMap<u64, Cow<'a, [u8]>>;

const ZEROS: &[u8] = &[0; PAGE];

/// The video memory at `base` that libxl gives an adapter and QEMU does not.
pub(super) fn more_video(config: &GuestConfig, base: u64) -> Pages<'static> {
    let frames = (base + config.video_memory) / PAGE_SIZE..(base + video::memory(config)) / PAGE_SIZE;
    frames.map(|pfn| (pfn, ZEROS.into())).collect()
}

/// The pages outside RAM that the domain must have and has not got, by their frames: the guest's own that were held, and
/// those that it lacks.
pub(super) fn outside<'a>(
    vm: &Vm,
    held: &'a HeldPages,
    written: &BTreeSet<u64>,
    params: &HvmParams,
    report: &mut Report,
) -> Pages<'a> {
    let all =
        held.iter().map(|(pfn, page)| (pfn, page.into())).chain(held.zeros().map(|pfn| (pfn, ZEROS.into())));
    let (roms, mut pages): (Pages<'a>, Pages<'a>) =
        all.partition(|(pfn, _)| FIRMWARE.contains(&pfn.saturating_mul(PAGE_SIZE)));
    let had = pages.len() + written.len();
    let mut made = 0_u64;
    let mut make = |pages: &mut Pages<'a>, frames: Range<u64>| {
        for pfn in frames.filter(|pfn| !written.contains(pfn)) {
            pages.entry(pfn).or_insert_with(|| {
                made += 1;
                ZEROS.into()
            });
        }
    };
    if params.get(PARAM_IDENT_PT) == Some(IDENT_PT_PFN << 12) {
        pages.entry(IDENT_PT_PFN).or_insert_with(|| identity_page_table().into());
    }
    make(&mut pages, SPECIAL_PFN..SPECIAL_PFN + SPECIAL_PAGES);
    // All of the video memory has to be there, also what was never drawn on.
    if let Some((base, _)) = video_range(vm) {
        let size = video::memory(&vm.config);
        make(&mut pages, base / PAGE_SIZE..(base + size) / PAGE_SIZE);
    }
    let mut ledger = report.record(STAGE, "PAGE_DATA");
    ledger.derived("pages outside RAM", format!("{had} of the guest's own"));
    if !roms.is_empty() {
        let note = format!("{} pages below 4 GiB; it has run, and Xen's host has its own", roms.len());
        ledger.dropped("firmware", note);
    }
    if made > 0 {
        ledger
            .defaulted("special pages, video memory", format!("{made} pages of zeros that the guest lacked"));
    }
    pages
}

/// The page directory that maps the first 4 GiB to themselves, which Xen on Intel runs a guest without paging on: 4 MiB
/// pages, present, writable, for users, accessed, dirty (xg_dom_x86.c, alloc_magic_pages_hvm).
fn identity_page_table() -> Vec<u8> {
    (0..1024_u32).flat_map(|entry| (entry << 22 | 0xe7).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::VgaKind;

    use super::*;

    #[test]
    fn firmware_stays_behind_and_zeros_come_along() {
        let mut held = HeldPages::default();
        held.put(0xfffff, &[1; PAGE]);
        held.put(0xfd000, &[0; PAGE]);
        let pages =
            outside(&Vm::default(), &held, &BTreeSet::new(), &HvmParams::default(), &mut Report::default());
        assert!(pages.contains_key(&0xfd000) && !pages.contains_key(&0xfffff));
    }

    #[test]
    fn a_guest_that_no_xen_has_seen_gets_the_pages_that_xen_needs() {
        let params = HvmParams {
            params: PARAMS
                .map(|(index, value)| hyperferry_xen_stream::libxc::HvmParam { index, value })
                .to_vec(),
        };
        let held = HeldPages::default();
        let pages = outside(&Vm::default(), &held, &BTreeSet::new(), &params, &mut Report::default());
        assert_eq!(pages.keys().copied().collect::<Vec<_>>(), (0xfeff0..0xff000).collect::<Vec<_>>());
        let identity = &pages[&0xfeffe];
        assert_eq!((&identity[..4], &identity[4092..]), (&[0xe7, 0, 0, 0][..], &[0xe7, 0, 0xc0, 0xff][..]));
    }

    #[test]
    fn pages_that_are_there_are_not_made_again() {
        let written = BTreeSet::from([0xfeff0, 0xfeff1]);
        let (held, params) = (HeldPages::default(), HvmParams::default());
        let pages = outside(&Vm::default(), &held, &written, &params, &mut Report::default());
        assert_eq!(pages.keys().copied().collect::<Vec<_>>(), (0xfeff2..0xff000).collect::<Vec<_>>());
    }

    #[test]
    fn a_cirrus_adapter_has_more_memory_in_xen() {
        let config = |vga| GuestConfig { vga, video_memory: 4 << 20, ..GuestConfig::default() };
        let more = more_video(&config(VgaKind::Cirrus), 0xfa00_0000);
        assert_eq!(more.keys().copied().collect::<Vec<_>>(), (0xfa400..0xfa800).collect::<Vec<_>>());
        assert!(more_video(&config(VgaKind::Std), 0xfa00_0000).is_empty());
    }
}
