//! Where things lie: the checkout, and what is built for the lab.

use std::path::{Path, PathBuf};

/// The checkout.
pub(crate) fn checkout() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// What is fetched and built for the lab, kept between runs: `target/lab`, or `HYPERFERRY_LAB`.
pub(crate) fn lab() -> PathBuf {
    std::env::var_os("HYPERFERRY_LAB").map_or_else(|| checkout().join("target/lab"), PathBuf::from)
}
