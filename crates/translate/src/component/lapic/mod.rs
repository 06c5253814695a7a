//! A local APIC.

pub(crate) mod qemu;
pub(crate) mod xen;
