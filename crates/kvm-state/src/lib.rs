//! State of a VM as KVM's ioctls carry it: captured from `/dev/kvm`, loaded into it, and mapped to the neutral
//! model in both directions.
//!
//! [`KvmVm`] is the state, in structures of our own with named fields: what [`capture`] reads and [`load`] writes.
//! [`localise`] makes it from a [`hyperferry_vm_model::Vm`], [`normalise`] turns it back; both say of every field
//! what became of it ([`FieldFate`]). [`to_json`] and [`from_json`] keep it in a file. [`probe`] asks what the KVM of
//! this host offers.
//!
//! Only [`capture`], [`load`], [`create`] and [`probe`] need `/dev/kvm`.
//!
//! Source: the structures of kvm-bindings 0.14 (Linux's `arch/x86/include/uapi/asm/kvm.h`), and what a KVM of Linux
//! 6.18 gave back in the tests. The page is `formats/kvm/state.md`.

mod capture;
mod error;
mod fate;
mod hex;
mod json;
mod load;
mod model;
mod probe;
mod raw;
mod state;

pub use capture::{CapturedVcpu, capture, capture_vcpu};
pub use error::{Error, Result};
pub use fate::{Fate, FieldFate};
pub use json::{FORMAT, VERSION, from_json, to_json};
pub use load::{ChangedMsr, Created, Loaded, SkippedMsr, create, load, load_vcpu};
pub use model::{Target, localise, normalise};
pub use probe::{Access, Capabilities, Probe, probe};
pub use state::{
    ClockData, CpuidEntry2, DebugRegs, Dtable, EventException, EventInterrupt, EventNmi, EventSmi,
    IoapicState, Irqchip, KvmVcpu, KvmVm, LapicState, LapicWord, MpState, MsrEntry, PicState,
    PitChannelState, PitState2, Regs, Segment, Sregs, VcpuEvents, Xcr, Xsave, XsaveComponent, XsaveLayout,
    XsavePlace, msr_name,
};
