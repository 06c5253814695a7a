//! What the tests of this workspace share: fixtures with their origin, golden text, and where the tools are.
//!
//! * [`fixtures`] walks `fixtures/`; a [`Fixture`] gives its stream and its typed [`Origin`].
//! * [`golden`] compares a text with a file beside the fixture, or rewrites that file.
//! * [`tools`] finds the QEMU versions and the `hyperferry` binary.
//! * [`witness`] reads what the witness guests print.
//! * [`lab`] reaches the two hosts of the lab.
//! * [`said`] takes a Xen stream apart, for comparing it with another.
//! * [`cut`] stands between the two ends of a live move.

pub mod cut;
mod fixture;
pub mod golden;
pub mod lab;
mod origin;
pub mod said;
pub mod tools;
pub mod witness;

pub use fixture::{Fixture, Pair, fixtures, pairs};
pub use origin::{Kind, Origin};

use std::path::{Path, PathBuf};

/// The checkout that this crate was built in.
pub fn checkout() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}
