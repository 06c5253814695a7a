//! What a virtual machine is, in no hypervisor's terms.
//!
//! Every translation goes through [`Vm`]: a format's `normalise` fills it, another format's `localise` reads it.
//! The crate knows no wire format and does no I/O but its own [`checkpoint`] file. Field names are those of the
//! architecture manuals (Intel SDM, AMD APM) and of the chips' data sheets; units stand in the names or the docs.
//!
//! Guest memory is not part of the model: pages stream past it. [`MemoryLayout`] says where they belong.

pub mod checkpoint;
mod clock;
mod config;
mod cpu;
mod cpuid;
mod device;
mod fpu;
mod irq;
mod lapic;
mod memory;
mod remainder;
mod timer;
mod xen;
pub mod xstate;

use serde::{Deserialize, Serialize};

pub use clock::Clock;
pub use config::{Boot, Disk, GuestConfig, Nic, VgaKind};
pub use cpu::{
    DescriptorTable, DescriptorTables, EventKind, GeneralRegisters, MachineCheck, Msrs, Mtrrs, PendingEvent,
    RunState, Segment, SegmentAttributes, Segments, SystemRegisters, VariableRange, Vcpu,
};
pub use cpuid::{CpuidLeaf, CpuidPolicy, MsrPolicyEntry};
pub use device::{Device, DeviceState, DeviceSubsection, DeviceValue, PciAddress};
pub use fpu::{Avx512, Fpu, Mpx, Vectors};
pub use irq::{Ioapic, IrqLines, PciLinks, Pic};
pub use lapic::{ApicTimer, Lapic, LocalVectorTable};
pub use memory::{MemoryLayout, PAGE_SIZE};
pub use remainder::Remainder;
pub use timer::{Hpet, HpetTimer, Pit, PitChannel, PmTimer, Rtc};
pub use xen::XenDomain;

/// A virtual machine at one instant, without its memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    /// Who wrote the state: `Xen 4.17`, `QEMU pc-i440fx-10.0`.
    pub origin: String,
    /// The guest as its administrator described it.
    pub config: GuestConfig,
    /// Where guest memory lies.
    pub memory: MemoryLayout,
    /// What `CPUID` shows, and the read-only MSRs that go with it.
    pub cpuid: CpuidPolicy,
    /// The virtual CPUs in the order of their ids.
    pub vcpus: Vec<Vcpu>,
    /// Rates and origins of the guest's clocks.
    pub clock: Clock,
    /// The interrupt controllers outside the CPUs.
    pub irq: Irq,
    /// The timer chips.
    pub timers: Timers,
    /// Everything the device model emulates besides the chips above.
    pub devices: Vec<Device>,
    /// What the parts above have no name for, where the source is a QEMU.
    pub remainder: Option<Remainder>,
    /// What only Xen knows of the guest, where it comes from there.
    pub xen: Option<XenDomain>,
}

/// The interrupt controllers outside the CPUs, and the wires into them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Irq {
    /// The 8259 pair: master, then slave.
    pub pic: [Pic; 2],
    /// The I/O APIC.
    pub ioapic: Ioapic,
    /// Routes of the four PCI interrupt links to ISA interrupts.
    pub pci_links: PciLinks,
    /// Levels of the wires at the instant of the save.
    pub lines: IrqLines,
}

/// The timer chips of a PC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timers {
    /// The 8254 interval timer.
    pub pit: Pit,
    /// The MC146818 clock.
    pub rtc: Rtc,
    /// The high precision event timer, where the machine has one.
    pub hpet: Option<Hpet>,
    /// The ACPI power-management timer and its event registers.
    pub pm_timer: PmTimer,
}
