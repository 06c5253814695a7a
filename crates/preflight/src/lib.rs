//! Whether a guest can move, asked on both hosts before a page is taken.
//!
//! A *check* looks at facts and says what it found. One check is one file, and one row in its folder's table:
//!
//! * [`guest`]: what the guest's configuration tells, on either host.
//! * [`source`]: what the Xen host tells about a running domain, by its own tools, here or over ssh.
//! * [`destination`]: what this host offers to the guest: KVM, QEMU, memory, disks.
//!
//! Facts are gathered first and judged then, so that checks are functions without surroundings. The page for users is
//! `docs/preflight.md`; a test holds its tables and ours together.

pub mod destination;
mod finding;
pub mod guest;
pub mod source;

pub use finding::{Check, Finding, Say, Severity, Side, run};
