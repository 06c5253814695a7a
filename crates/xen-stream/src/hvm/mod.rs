//! The HVM context: what Xen itself knows of an HVM domain, one entry for each device or each device of a vCPU.
//!
//! Source: Xen `xen/include/public/hvm/save.h` and `xen/include/public/arch-x86/hvm/save.h` (4.23-unstable),
//! lengths and load rules from `xen/arch/x86/hvm/` (4.17 and 4.23-unstable), checked on a context of 4.17.7.
//!
//! ```text
//! u16 typecode | u16 instance | u32 length | length bytes        no padding between entries
//! ```

mod context;
mod cpu;
mod cpu_msr;
mod cpu_xsave;
mod end;
mod header;
mod hpet;
mod ioapic;
mod isa_irq;
mod lapic;
mod lapic_regs;
mod mtrr;
mod pci_irq;
mod pci_link;
mod pic;
mod pit;
mod pmtimer;
mod registry;
mod rtc;
mod tsc_adjust;
mod viridian_domain;
mod viridian_vcpu;
mod vmce_vcpu;

pub use context::{Context, ENTRY_LIMIT, Entry};
pub use cpu::{Cpu, Segment, Segments, Table};
pub use cpu_msr::{CpuMsr, Msr};
pub use cpu_xsave::CpuXsave;
pub use end::End;
pub use header::Header;
pub use hpet::{Hpet, HpetTimer};
pub use ioapic::IoApic;
pub use isa_irq::IsaIrq;
pub use lapic::Lapic;
pub use lapic_regs::LapicRegs;
pub use mtrr::Mtrr;
pub use pci_irq::PciIrq;
pub use pci_link::PciLink;
pub use pic::Pic;
pub use pit::{Pit, PitChannel};
pub use pmtimer::PmTimer;
pub use registry::{ROWS, Record};
pub use rtc::Rtc;
pub use tsc_adjust::TscAdjust;
pub use viridian_domain::ViridianDomain;
pub use viridian_vcpu::ViridianVcpu;
pub use vmce_vcpu::VmceVcpu;
