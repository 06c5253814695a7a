//! The interrupt controllers outside the CPUs, and the wires into them.

pub(crate) mod qemu;
pub(crate) mod xen;
