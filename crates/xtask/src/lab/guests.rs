//! The guests that run in the lab, built from `tests/guests`.

use crate::sh::{Run, command, step};
use crate::{apt, paths};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The driver of the network card that both QEMU and Xen's device model emulate best.
const DRIVER: &str = "e1000.ko";

/// The bare-metal witness, a kernel image.
pub(crate) fn witness() -> Result<Vec<u8>> {
    let out = paths::lab().join("guests/witness");
    make("witness", &out, &[])?;
    fs::read(out.join("witness.bzimage")).context("the witness was not built")
}

/// A directory with the Linux witness: Debian's own kernel as `vmlinuz`, and `initrd.gz`.
pub(super) fn linux() -> Result<PathBuf> {
    let out = paths::lab().join("guests/linux");
    if !out.join(DRIVER).exists() {
        step("fetching the Linux guest's kernel (about 20 s)");
        fetch_kernel(&out)?;
    }
    let file = |variable: &str, name: &str| format!("{variable}={}", out.join(name).display());
    make("linux", &out, &[file("BUSYBOX", "busybox"), file("DRIVERS", DRIVER)])?;
    Ok(out)
}

fn make(guest: &str, out: &Path, variables: &[String]) -> Result<()> {
    apt::install(&["gcc", "libc6-dev", "make", "binutils", "cpio"])?;
    let mut make = command("make", ["-C"]);
    make.arg(paths::checkout().join("tests/guests").join(guest)).arg(format!("OUT={}", out.display()));
    make.args(variables);
    make.quiet()
}

fn fetch_kernel(out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let download = tempfile::tempdir()?;
    let unpacked = download.path().join("unpacked");
    for deb in apt::fetch(&["linux-image-amd64", "busybox-static"], false, download.path())? {
        let name = deb.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("linux-image-6") || name.starts_with("busybox-static") {
            apt::unpack(&deb, &unpacked)?;
        }
    }
    fs::copy(unpacked.join("bin/busybox"), out.join("busybox"))?;
    let kernels: Vec<PathBuf> = fs::read_dir(unpacked.join("boot"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    let kernel = kernels.iter().find(|path| path.to_string_lossy().contains("vmlinuz"));
    fs::copy(kernel.context("the kernel's package holds no kernel")?, out.join("vmlinuz"))?;
    let modules =
        fs::read_dir(unpacked.join("lib/modules"))?.next().context("the kernel has no modules")??;
    let driver = modules.path().join("kernel/drivers/net/ethernet/intel/e1000").join(DRIVER);
    fs::copy(&driver, out.join(DRIVER)).with_context(|| format!("no {}", driver.display()))?;
    Ok(())
}
