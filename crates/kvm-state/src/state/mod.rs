//! What KVM's ioctls carry, in structures with named fields: one file for each family of ioctls.
//!
//! Names are those of `arch/x86/include/uapi/asm/kvm.h`. Padding and fields that KVM neither reads nor writes are
//! left out: it wants them zero.

mod chips;
mod events;
mod lapic;
mod msr;
mod registers;
mod xsave;

use serde::{Deserialize, Serialize};

pub use chips::{ClockData, IoapicState, Irqchip, PicState, PitChannelState, PitState2};
pub use events::{EventException, EventInterrupt, EventNmi, EventSmi, VcpuEvents};
pub use lapic::{LapicState, LapicWord};
pub(crate) use msr::{MTRR_FIXED, MTRR_VARIABLE, number as msr_number};
pub use msr::{MsrEntry, msr_name};
pub use registers::{CpuidEntry2, DebugRegs, Dtable, MpState, Regs, Segment, Sregs, Xcr};
pub use xsave::{Xsave, XsaveComponent, XsaveLayout, XsavePlace};

/// A VM at one instant, without its memory and without the devices outside the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvmVm {
    /// Who wrote the state.
    pub origin: String,
    /// Nanoseconds of one cycle of the APIC bus: 1 unless `KVM_CAP_X86_APIC_BUS_CYCLES_NS` was enabled.
    pub apic_bus_cycle_ns: u32,
    /// `KVM_GET_CLOCK`.
    pub clock: ClockData,
    /// `KVM_GET_IRQCHIP`, three times.
    pub irqchip: Irqchip,
    /// `KVM_GET_PIT2`.
    pub pit2: PitState2,
    /// The vCPUs, in the order of their creation.
    pub vcpus: Vec<KvmVcpu>,
}

/// A vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvmVcpu {
    /// Argument of `KVM_CREATE_VCPU`: it is the APIC id too.
    pub vcpu_id: u32,
    /// `KVM_GET_TSC_KHZ`.
    pub tsc_khz: u32,
    /// `KVM_GET_CPUID2`.
    pub cpuid2: Vec<CpuidEntry2>,
    /// `KVM_GET_MP_STATE`.
    pub mp_state: MpState,
    /// `KVM_GET_REGS`.
    pub regs: Regs,
    /// `KVM_GET_SREGS`.
    pub sregs: Sregs,
    /// `KVM_GET_XSAVE2`; it holds all of `KVM_GET_FPU`.
    pub xsave: Xsave,
    /// `KVM_GET_XCRS`; empty on a host without XSAVE.
    pub xcrs: Vec<Xcr>,
    /// `KVM_GET_DEBUGREGS`.
    pub debugregs: DebugRegs,
    /// `KVM_GET_LAPIC`.
    pub lapic: LapicState,
    /// `KVM_GET_MSRS`.
    pub msrs: Vec<MsrEntry>,
    /// `KVM_GET_VCPU_EVENTS`.
    pub vcpu_events: VcpuEvents,
}

impl KvmVcpu {
    /// Value of an MSR, where the state holds it.
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|entry| entry.index == index).map(|entry| entry.data)
    }

    /// XCR0; 1 (x87 only) on a host without XSAVE.
    pub fn xcr0(&self) -> u64 {
        self.xcrs.iter().find(|entry| entry.xcr == 0).map_or(1, |entry| entry.value)
    }
}

/// Conversions between one of our structures and the kernel's, field by field in both directions.
macro_rules! mirror {
    ($ours:ident = $theirs:ident { $($field:ident),* } $(nested { $($nested:ident),* })?) => {
        impl From<&kvm_bindings::$theirs> for $ours {
            fn from(theirs: &kvm_bindings::$theirs) -> Self {
                Self { $($field: theirs.$field,)* $($($nested: (&theirs.$nested).into(),)*)? }
            }
        }

        impl From<&$ours> for kvm_bindings::$theirs {
            #[allow(clippy::needless_update, reason = "the rest is padding, and not every structure has some")]
            fn from(ours: &$ours) -> Self {
                Self {
                    $($field: ours.$field,)*
                    $($($nested: (&ours.$nested).into(),)*)?
                    ..Default::default()
                }
            }
        }
    };
}
use mirror;
