//! The timer chips: PIT, RTC, HPET and the PM timer.

pub(crate) mod qemu;
pub(crate) mod qemu_in;
pub(crate) mod xen;
