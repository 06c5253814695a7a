//! Between wire formats and the neutral model.
//!
//! A *component* is a part of the machine: a vCPU, a local APIC, a timer chip. It has a folder below `component/`
//! with one file for each format, and in that file two functions: `normalise` (wire to model) and `localise`
//! (model to wire). Both account for every field in the [`report::Report`].
//!
//! * [`xen`] drives the components over a Xen stream.
//! * [`qemu`] drives them towards a destination QEMU, in the dialect of its [`Template`](hyperferry_qemu_stream::Template).
//! * [`source`] opens any input that a VM can be read from.
//! * [`refusal`] names what we refuse by default.

mod component;
pub mod cpu_features;
mod error;
mod kvm_services;
pub mod qemu;
pub mod refusal;
pub mod report;
pub mod source;
pub mod xen;

pub use error::{Error, Result};
