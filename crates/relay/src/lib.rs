//! The pipeline between two ends: files, a QEMU driven over QMP, live streams.
//!
//! * [`endpoint`] opens an input (decompressing as it reads) and an output (there in full or not at all).
//! * [`qmp`] speaks QEMU's machine protocol, [`qemu`] starts and ends a QEMU process.
//! * [`template`] lets the destination QEMU write an empty guest of its own, so that its dialect is known.
//! * [`landing`] hands a stream to a QEMU that waits for it, and lets the guest run.
//! * [`receive`] answers the sender of an `xl migrate`, [`journal`] keeps what was done about it.
//! * [`home`] is what only Xen knows of a guest, kept for its way back.
//! * [`send`] is the other direction: it takes a guest out of a running QEMU and plays the sender of an `xl migrate`.
//! * [`gateway`] stands between a sender and a receiver on two other hosts, a [`link`] connects it to one of them.
//! * [`progress`] tells whoever watches, as bars or as lines of JSON.
//!
//! Control is asynchronous. Pages are not: a stream is produced by one blocking thread that writes straight
//! into QEMU's socket, so memory stays bounded by that thread's own buffers and QEMU's pace is its pace.

pub mod endpoint;
mod error;
pub mod gateway;
pub mod home;
mod interrupt;
pub mod journal;
pub mod landing;
mod lane;
pub mod link;
mod metered;
pub mod progress;
pub mod qemu;
pub mod qmp;
pub mod receive;
pub mod send;
pub mod session;
pub mod template;

pub use error::{BoxError, Error, Result};
pub use interrupt::interrupted;
