//! Everything that the device model emulates besides the chips that have a component of their own.
//!
//! Both sides run QEMU as the device model, so state moves field by field under QEMU's own names.

pub(crate) mod pci;
pub(crate) mod qemu;
