//! Where the programs are that tests start.

use crate::checkout;
use anyhow::{Result, bail};
use std::path::PathBuf;

/// The QEMU versions that every test meets.
pub const QEMU_VERSIONS: [&str; 2] = ["7.2", "10.0"];

/// What is fetched and built for the lab: `target/lab`, or `HYPERFERRY_LAB`.
pub fn lab() -> PathBuf {
    std::env::var_os("HYPERFERRY_LAB").map_or_else(|| checkout().join("target/lab"), PathBuf::from)
}

/// The `qemu-system-x86_64` of a version; an error says how to get it.
pub fn qemu(version: &str) -> Result<PathBuf> {
    let path = lab().join("qemu").join(version).join("qemu-system-x86_64");
    if !path.exists() {
        bail!("{} is not there; run `cargo xtask qemu`", path.display());
    }
    Ok(path)
}

/// The kernel of the witness, `tests/guests/witness`; an error says how to get it.
pub fn witness() -> Result<PathBuf> {
    let path = lab().join("guests/witness/witness.bzimage");
    if !path.exists() {
        bail!("{} is not there; `cargo xtask test` builds it", path.display());
    }
    Ok(path)
}

/// The platform shim's library, built for the lab's KVM host: `HYPERFERRY_SHIM`.
pub fn platform_shim() -> Result<PathBuf> {
    match std::env::var_os("HYPERFERRY_SHIM") {
        Some(path) => Ok(PathBuf::from(path)),
        None => bail!("HYPERFERRY_SHIM is not set; use `cargo xtask lab test`"),
    }
}

/// The `hyperferry` binary: `HYPERFERRY_BIN`, or the one that was built beside the running test.
///
/// Tests of the package `hyperferry` itself use `env!("CARGO_BIN_EXE_hyperferry")` instead.
pub fn hyperferry() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HYPERFERRY_BIN") {
        return Ok(PathBuf::from(path));
    }
    let test = std::env::current_exe()?;
    let beside =
        test.ancestors().skip(1).take(2).map(|dir| dir.join("hyperferry")).find(|path| path.exists());
    match beside {
        Some(path) => Ok(path),
        None => {
            bail!("no hyperferry beside {}; run `cargo build` first or set HYPERFERRY_BIN", test.display())
        }
    }
}
