//! Where the guest sees the memory of a block that is not its RAM: behind a device's range, or instead of RAM.

use std::collections::BTreeMap;

use hyperferry_qemu_stream::RamBlock;
use hyperferry_vm_model::{Device, PAGE_SIZE, PciAddress, Vm};
use hyperferry_wire::PAGE_SIZE as PAGE;

use super::MAIN_RAM;
use crate::{
    Result,
    component::{devices, fields::STAGE},
    qemu::{args::ACPI_WINDOW, memory::ACPI_WINDOW_BASE},
    refusal::{self, Policy},
    report::{Report, Severity},
    xen::HeldPages,
};

/// Section of the device that brings the window for Xen's ACPI tables.
pub(super) const WINDOW_DEVICE: &str = "ivshmem";
/// Block of a PC's firmware, which ends at 4 GiB.
const FIRMWARE: &str = "pc.bios";
/// Block of a display adapter's memory, below the device's address.
const VIDEO: &str = "vga.vram";
const FOUR_GIB: u64 = 1 << 32;
/// First of the areas that the chipset shows as RAM or as ROM, each on its own.
const SHADOW_START: u64 = 0xc_0000;
/// Pages of each.
const AREA_PAGES: u64 = 4;

/// Whether a block is the window for Xen's ACPI tables.
pub(super) fn is_acpi_window(name: &str) -> bool {
    name.rsplit('/').next() == Some(ACPI_WINDOW)
}

/// Where the pages of a block go.
#[derive(Debug)]
pub(super) enum Place {
    /// To the guest's RAM.
    Ram,
    /// To where the guest sees them, from this address on, which somebody knew beforehand.
    At(u64),
    /// Aside, by their numbers in the block, until the state tells where the guest sees them.
    Aside(HeldPages),
}

impl Place {
    /// Of the block with this name.
    pub(super) fn of(name: &str, known: &BTreeMap<String, u64>) -> Self {
        match known.get(name) {
            _ if name == MAIN_RAM => Self::Ram,
            Some(base) => Self::At(*base),
            None => Self::Aside(HeldPages::default()),
        }
    }

    /// Puts a page aside, and those that follow it.
    pub(super) fn put_aside(&mut self, offset: u64, data: Option<&[u8]>) {
        if let Self::Aside(held) = self {
            held.put(offset / PAGE_SIZE, data.unwrap_or(&[0; PAGE]));
        } else {
            *self = Self::Aside(HeldPages::default());
            self.put_aside(offset, data);
        }
    }
}

/// Brings the pages of one block to where the guest sees them, or judges whether they are there.
pub(super) fn settle(
    block: &RamBlock,
    place: Place,
    vm: &Vm,
    held: &mut HeldPages,
    page_lane: &mut impl FnMut(&[u64], &[u8]) -> Result<()>,
    policy: &Policy,
    report: &mut Report,
) -> Result<()> {
    let (path, name) = block.name.rsplit_once('/').unwrap_or(("", &block.name));
    let record = format!("ram > {}", block.name);
    let base = seen_at(block, vm);
    let pages = match place {
        Place::Ram => return Ok(()),
        Place::At(sent_to) => {
            report.record(STAGE, record).carried(&["pages"]);
            judge_place(block, sent_to, base, policy, report);
            return Ok(());
        }
        Place::Aside(pages) => pages,
    };
    if let Some(number) = pages.overflow() {
        refuse_size(block, number, policy, report);
        return Ok(());
    }
    // The window is larger than the tables in it, and Xen counts every page that a domain has.
    let pages = if is_acpi_window(name) { pages.without_zeros() } else { pages };
    match name {
        // Its last 128 KiB are seen below 1 MiB too, where the chipset shows ROM.
        FIRMWARE => {
            shadow(&pages, block.used_length.saturating_sub(0x2_0000), 0xe_0000, vm, page_lane, report)?;
        }
        "pc.rom" => {
            shadow(&pages, 0, 0xc_0000, vm, page_lane, report)?;
            report
                .record(STAGE, record)
                .derived("pages", "option ROMs; the guest sees the copies in its RAM");
            return Ok(());
        }
        _ if base.is_some() => {}
        _ if path.starts_with("/rom@") || block.name.starts_with("/rom@") => {
            report.record(STAGE, record).dropped(
                "pages",
                "what the firmware was to read; the guest's copy lies in its RAM, and the destination has its own",
            );
            return Ok(());
        }
        _ if name.ends_with(".rom") => {
            report
                .record(STAGE, record)
                .dropped("pages", "a device's ROM; it has run, and the destination has its own");
            return Ok(());
        }
        _ => {}
    }
    match base {
        Some(base) => {
            held.append(base, pages);
            report.record(STAGE, record).carried(&["pages"]);
            if let Some(pfn) = held.overflow() {
                refuse_size(block, pfn.saturating_sub(base / PAGE_SIZE), policy, report);
            }
        }
        None if pages.iter().next().is_none() => {
            report.record(STAGE, record).derived("pages", "nothing but zeros");
        }
        None if name == VIDEO => {
            report.record(STAGE, record).dropped("pages", "the guest has switched the display's memory off");
            let what = "the guest has switched the memory of its display adapter off; the picture is lost";
            report.find("video-memory", Severity::Warning, what, "the guest draws it again when it needs it");
        }
        None => {
            report.record(STAGE, record).dropped("pages", "memory of a device that we do not know");
            let what = format!("the guest has memory called {}, which no destination has", block.name);
            policy.refuse(report, refusal::DEVICE, what, "remove the device that brings it before the move");
        }
    }
    Ok(())
}

/// Memory outside RAM is kept until the state tells where it belongs, and there is an end to what we keep.
fn refuse_size(block: &RamBlock, number: u64, policy: &Policy, report: &mut Report) {
    let what = format!("block {} has more memory in use than we keep (page {number})", block.name);
    let remedy = "give the display adapter less memory (vgamem_mb=16) and boot the guest again";
    policy.refuse(report, refusal::MEMORY_LAYOUT, what, remedy);
}

/// Pages that went to another place than the guest sees them at cannot be taken back: a Xen has memory there by then.
fn judge_place(block: &RamBlock, sent_to: u64, seen: Option<u64>, policy: &Policy, report: &mut Report) {
    if seen == Some(sent_to) {
        return;
    }
    let seen = seen.map_or("nowhere".to_owned(), |base| format!("at {base:#x}"));
    let what = format!(
        "the guest saw {} at {sent_to:#x} when the move began, and sees it {seen} now: its driver has moved it",
        block.name
    );
    policy.refuse(report, refusal::MEMORY_LAYOUT, what, "try again once its display is set up");
}

/// Where the guest sees the first byte of a block that is not its RAM.
fn seen_at(block: &RamBlock, vm: &Vm) -> Option<u64> {
    let (path, name) = block.name.rsplit_once('/').unwrap_or(("", &block.name));
    match name {
        FIRMWARE => FOUR_GIB.checked_sub(block.used_length),
        VIDEO => range(vm, path, 0),
        _ => is_acpi_window(name).then_some(ACPI_WINDOW_BASE),
    }
}

/// The guest-physical address of a device's memory range.
fn range(vm: &Vm, path: &str, bar: usize) -> Option<u64> {
    let address = devices::qemu::address_of(&format!("{path}/"));
    let device = device_at(vm, address?)?;
    devices::pci::memory_bar(devices::qemu::model_config(device)?, bar)
}

fn device_at(vm: &Vm, address: PciAddress) -> Option<&Device> {
    vm.devices.iter().find(|device| device.address == Some(address))
}

/// Where the chipset shows ROM below 1 MiB, what the guest reads is the ROM's. RAM behind it becomes that, for a
/// destination may have no other firmware there. `rom` are the pages of a ROM, `from` the first that is seen at
/// `start`, and 128 KiB are.
fn shadow(
    rom: &HeldPages,
    from: u64,
    start: u64,
    vm: &Vm,
    page_lane: &mut impl FnMut(&[u64], &[u8]) -> Result<()>,
    report: &mut Report,
) -> Result<()> {
    let bridge = vm.devices.iter().find(|device| device.name == "I440FX");
    let Some(config) = bridge.and_then(devices::qemu::model_config) else { return Ok(()) };
    let zeros = [0; PAGE];
    for area in (0..16).filter(|area| !reads_ram(config, *area)) {
        let address = SHADOW_START + u64::from(area) * AREA_PAGES * PAGE_SIZE;
        if !(start..start + 0x2_0000).contains(&address) {
            continue;
        }
        for number in 0..AREA_PAGES {
            let address = address + number * PAGE_SIZE;
            let page = rom.page((from + address - start) / PAGE_SIZE).unwrap_or(&zeros);
            page_lane(&[address], page)?;
        }
        let what = format!("the guest reads ROM at {address:#x}; the ROM's contents became RAM there");
        report.find("rom-shadow", Severity::Note, what, "");
    }
    Ok(())
}

/// Whether the chipset shows RAM to a guest that reads in one of the 16 areas from 0xc0000 on. The last four share a
/// register (82441FX, PAM0 to PAM6).
fn reads_ram(config: &[u8], area: u8) -> bool {
    let (register, shift) = if area >= 12 { (0x59, 4) } else { (0x5a + usize::from(area / 2), area % 2 * 4) };
    config.get(register).is_none_or(|bits| bits >> shift & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_area_has_a_bit_of_its_own() {
        let mut config = vec![0xff; 256];
        config[0x59] = 0x0f;
        config[0x5a] = 0x10;
        config[0x5f] = 0x01;
        let rom: Vec<u8> = (0..16).filter(|area| !reads_ram(&config, *area)).collect();
        // 0xc0000; 0xec000; 0xf0000 to 0xfffff.
        assert_eq!(rom, [0, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn a_place_has_to_be_the_same_at_the_end() {
        let block = RamBlock { name: "0000:00:02.0/vga.vram".to_owned(), used_length: 16 << 20 };
        let said = |seen| {
            let mut report = Report::default();
            judge_place(&block, 0xfd00_0000, seen, &Policy::allow_all(), &mut report);
            report.refusals().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(said(Some(0xfd00_0000)), [""; 0]);
        assert!(said(Some(0xe000_0000))[0].contains("and sees it at 0xe0000000 now"));
        assert!(said(None)[0].contains("and sees it nowhere now"));
    }

    #[test]
    fn a_page_put_aside_has_those_behind_it_with_it() {
        let known = BTreeMap::from([("a".to_owned(), 0x1000)]);
        assert!(matches!(Place::of(MAIN_RAM, &known), Place::Ram));
        assert!(matches!(Place::of("b", &known), Place::Aside(_)));
        let mut place = Place::of("a", &known);
        assert!(matches!(place, Place::At(0x1000)));
        place.put_aside(0x2000, Some(&[7; PAGE]));
        let Place::Aside(held) = &place else { panic!("not aside") };
        assert_eq!(held.page(2).unwrap()[0], 7);
    }
}
