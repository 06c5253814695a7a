//! The parts of a machine, each with its formats.

pub(crate) mod devices;
pub(crate) mod fields;
pub(crate) mod irq;
pub(crate) mod lapic;
pub(crate) mod pending;
pub(crate) mod timers;
pub(crate) mod vcpu;
