//! Where guest memory goes: RAM, video memory, and the window for Xen's ACPI tables.
//!
//! Xen's firmware puts ACPI tables into RAM at 0xfc000000, where QEMU's `pc` has a hole for devices. A PCI device
//! that brings RAM of its own fills the hole: `ivshmem-plain`, whose range the stream places there. The guest never
//! looked for it, and finds its tables where they were.

use hyperferry_qemu_stream::Template;
use hyperferry_vm_model::{MemoryLayout, VgaKind, Vm};

use super::{Sections, args::ACPI_WINDOW};
use crate::{
    Error, Result,
    component::devices,
    refusal::{self, Policy},
    report::{Report, Severity},
    xen::HeldPages,
};

const STAGE: &str = "Xen -> QEMU";
/// First address of the firmware's reserved memory (tools/firmware/hvmloader/config.h, RESERVED_MEMBASE).
pub(crate) const ACPI_WINDOW_BASE: u64 = 0xfc00_0000;
/// The smallest size that a range of memory-mapped RAM can have and still reach 0xfc100fff.
pub(crate) const ACPI_WINDOW_SIZE: u64 = 2 << 20;
/// First of the pages that libxl keeps for itself, to the end of its range (tools/libs/guest/xg_dom_x86.c).
const SPECIAL_PAGES: std::ops::Range<u64> = 0xfeff_0000..0xff00_0000;
/// Most memory that a Xen device model hides above RAM for its option ROMs.
const ROM_SPACE: u64 = 32 << 20;
const MAIN_RAM: &str = "pc.ram";
const FIRMWARE: &str = "pc.bios";
/// Where a PC's firmware ends; the largest that QEMU takes has 16 MiB (hw/i386/x86.c, max-fw-size of pc_sysfw).
const FIRMWARE_END: u64 = 1 << 32;
const FIRMWARE_LIMIT: u64 = 16 << 20;
const PAGE: u64 = hyperferry_vm_model::PAGE_SIZE;

/// The RAM blocks of a destination that pages go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Main memory, low part first.
    pub main: usize,
    /// Video memory and its size.
    pub video: Option<(usize, u64)>,
    /// The window for ACPI tables.
    pub acpi: Option<usize>,
    /// The firmware, and its size.
    pub firmware: Option<(usize, u64)>,
}

impl Blocks {
    /// Finds the blocks, and checks that main memory is as large as the guest's.
    pub fn find(template: &Template, layout: &MemoryLayout) -> Result<Self> {
        let position = |suffix: &str| {
            template.blocks().iter().position(|block| block.name.rsplit('/').next() == Some(suffix))
        };
        let size = |index: usize| template.blocks().get(index).map_or(0, |block| block.used_length);
        let main = position(MAIN_RAM).ok_or_else(|| Error::NoSection(format!("for RAM block {MAIN_RAM}")))?;
        if size(main) != layout.size() {
            let found = format!("of {} bytes of RAM: it has {}", layout.size(), size(main));
            return Err(Error::NoSection(found));
        }
        let sized = |name| position(name).map(|index| (index, size(index)));
        let (video, firmware) = (sized("vga.vram"), sized(FIRMWARE));
        Ok(Self { main, video, acpi: position(ACPI_WINDOW), firmware })
    }
}

/// Where one page outside RAM goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement<'a> {
    /// Index of the RAM block.
    pub block: usize,
    /// Offset in it.
    pub offset: u64,
    /// The page.
    pub page: &'a [u8],
}

/// Finds a place for each page outside RAM.
pub(crate) fn place<'a>(
    vm: &Vm,
    held: &'a HeldPages,
    blocks: &Blocks,
    policy: &Policy,
    report: &mut Report,
) -> Vec<Placement<'a>> {
    let mut placements = Vec::new();
    let video = video_range(vm);
    let rom_start = vm.config.memory + vm.config.video_memory;
    let (mut special, mut roms, mut acpi, mut firmware) = (0_u32, 0_u32, 0_u32, 0_u32);
    let mut lost = Vec::new();
    for (pfn, page) in held.iter() {
        let address = pfn.saturating_mul(PAGE);
        if let (Some((base, size)), Some((block, room))) = (video, blocks.video)
            && (base..base + size.min(room)).contains(&address)
        {
            placements.push(Placement { block, offset: address - base, page });
        } else if (ACPI_WINDOW_BASE..ACPI_WINDOW_BASE + ACPI_WINDOW_SIZE).contains(&address) {
            acpi += 1;
            if let Some(block) = blocks.acpi {
                placements.push(Placement { block, offset: address - ACPI_WINDOW_BASE, page });
            }
        } else if SPECIAL_PAGES.contains(&address) {
            special += 1;
        } else if (FIRMWARE_END - FIRMWARE_LIMIT..FIRMWARE_END).contains(&address) {
            firmware += 1;
            // Another firmware of the destination starts elsewhere; the guest has used this one, and starts with that.
            let inside = |(_, size): &(usize, u64)| address >= FIRMWARE_END - size;
            if let Some((block, size)) = blocks.firmware.filter(inside) {
                let offset = address - (FIRMWARE_END - size);
                placements.push(Placement { block, offset, page });
            }
        } else if (rom_start..rom_start + ROM_SPACE).contains(&address) {
            roms += 1;
        } else {
            lost.push(address);
        }
    }
    let mut ledger = report.record(STAGE, "PAGE_DATA");
    if special > 0 {
        ledger.dropped(
            "special pages",
            format!("{special} pages at 0xfeff0000 that Xen and its toolstack talk through"),
        );
    }
    if firmware > 0 {
        ledger.derived("firmware", format!("{firmware} pages up to 4 GiB, for the guest's next start"));
    }
    if roms > 0 {
        ledger.dropped(
            "option ROMs",
            format!("{roms} pages behind devices' ROMs; the destination has its own"),
        );
    }
    if acpi > 0 && blocks.acpi.is_none() {
        ledger.dropped("ACPI tables", format!("{acpi} pages at {ACPI_WINDOW_BASE:#x}"));
        let what = "the guest's ACPI tables lie at 0xfc000000, where the destination has no memory";
        let remedy = "start the destination as `hyperferry qemu-args` says: it brings memory for them";
        policy.refuse(report, refusal::ACPI_PAGES, what, remedy);
    } else if acpi > 0 {
        report.find(
            refusal::ACPI_PAGES.name,
            Severity::Note,
            format!("{acpi} pages of ACPI tables moved into the ivshmem window at {ACPI_WINDOW_BASE:#x}"),
            "",
        );
    }
    if let Some(first) = lost.first() {
        let what =
            format!("{} pages, the first at {first:#x}, lie where the destination has no memory", lost.len());
        let remedy = "the firmware moved RAM to make room for devices: set mmio_hole in the guest's configuration, \
                      boot it again, and move it then";
        policy.refuse(report, refusal::MEMORY_LAYOUT, what, remedy);
    }
    placements
}

/// Where the guest has mapped its video memory, and how much there is.
pub(crate) fn video_range(vm: &Vm) -> Option<(u64, u64)> {
    if vm.config.vga == VgaKind::None {
        return None;
    }
    let vga = vm.devices.iter().find(|device| matches!(device.name.as_str(), "vga" | "cirrus_vga"))?;
    let base = devices::pci::memory_bar(devices::qemu::model_config(vga)?, 0)?;
    Some((base, vm.config.video_memory))
}

/// Places the window's range where Xen's firmware put its tables.
pub(super) fn map_acpi_window(sections: &mut Sections<'_>) -> Result<()> {
    let Some(tree) = sections.find_prefixed("ivshmem") else { return Ok(()) };
    // Range 2 is the RAM; 64 bits wide, and prefetchable.
    let [b0, b1, b2, b3, ..] = ACPI_WINDOW_BASE.to_le_bytes();
    let config = [(0x04, 0x02), (0x18, b0 | 0xc), (0x19, b1), (0x1a, b2), (0x1b, b3)];
    for (register, value) in config {
        devices::pci::set_config_byte(tree, register, value)?;
    }
    for register in 0x1c..0x20 {
        devices::pci::set_config_byte(tree, register, 0)?;
    }
    Ok(())
}
