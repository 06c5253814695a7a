//! A virtual CPU without its local APIC.

mod fxsave;
pub(crate) mod qemu;
pub(crate) mod qemu_in;
pub(crate) mod xen;
