//! What continuous integration runs, and what a developer runs before a push.

use crate::sh::{Run, command, step};
use crate::{apt, lab, paths, qemu};
use anyhow::{Context, Result, ensure};
use hyperferry_testkit::{golden, lab::Host};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Formatting, lints, tests, lab tests.
pub(crate) fn ci() -> Result<()> {
    check()?;
    test(&[])?;
    lab_test(&[], 1)
}

/// Formatting and lints.
fn check() -> Result<()> {
    step("checking format and lints");
    cargo(["fmt", "--all", "--check"]).run()?;
    cargo(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]).run()
}

/// All tests that need no lab: with both QEMU versions and a release build of the binary at hand.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    apt::install(&["gcc", "libc6-dev", "make", "binutils", "cpio", "busybox-static"])?;
    // A libvirt that a test starts for itself; what would run it as a service is in packages of its own.
    apt::install(&["libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients", "libxml2-utils"])?;
    qemu::provide(false)?;
    lab::witness()?;
    let binary = release_binary()?;
    step("testing the workspace (some minutes)");
    let mut test = cargo(["test", "--workspace", "--quiet", "--no-fail-fast"]);
    test.args(arguments).env("HYPERFERRY_BIN", binary).run()
}

/// The tests of `tests/lab`, against both hosts. What fails has this many more chances, each on hosts booted anew: the
/// emulation fails the hosts themselves now and then (tests/lab/README.md).
pub(crate) fn lab_test(arguments: &[String], chances: u32) -> Result<()> {
    let mut failed = lab_test_once(arguments)?;
    for _ in 0..chances {
        if failed.is_empty() {
            break;
        }
        step(format!("once more, on hosts booted anew: {}", failed.join(", ")));
        Host::PAIR.into_iter().try_for_each(lab::down)?;
        failed.push("--exact".to_owned());
        failed = lab_test_once(&failed)?;
    }
    ensure!(failed.is_empty(), "failed in the lab: {}", failed.join(", "));
    Ok(())
}

/// Gives the names of those that failed.
fn lab_test_once(arguments: &[String]) -> Result<Vec<String>> {
    lab::up(&Host::PAIR)?;
    let [binary, cut] = portable_binaries()?;
    step("testing in the lab (half an hour and more)");
    let mut test =
        cargo(["test", "--quiet", "--package", "hyperferry-testkit", "--features", "lab", "--test", "lab"]);
    // One after the other: the hosts are slow, and their guests share two emulated cores.
    let mut running = test
        .args(["--", "--test-threads=1", "--nocapture"])
        .args(arguments)
        .env("HYPERFERRY_BIN", binary)
        .env("CUT_BIN", cut)
        .env("HYPERFERRY_SHIM", platform_shim()?)
        .stdout(Stdio::piped())
        .spawn()?;
    // The tests' own words go to standard error, what is said about them to standard output.
    let mut failed = Vec::new();
    for line in BufReader::new(running.stdout.take().context("no pipe")?).lines() {
        let line = line?;
        failed.extend(line.strip_suffix(" --- FAILED").map(|name| name.trim().to_owned()));
        step(line);
    }
    let status = running.wait()?;
    ensure!(status.success() || !failed.is_empty(), "the tests in the lab ended with {status}");
    Ok(failed)
}

/// Rewrites the golden dumps beside the fixtures.
pub(crate) fn golden() -> Result<()> {
    golden::check_dumps(&release_binary()?, true)
}

/// A release build of the platform shim. It is loaded into a QEMU, so it cannot bring its own C library along.
pub(crate) fn platform_shim() -> Result<PathBuf> {
    cargo(["build", "--release", "--quiet", "--package", "hyperferry-platform-shim"]).run()?;
    Ok(target_dir().join("release/libhyperferry_platform_shim.so"))
}

/// A release build of the binary, and where it is.
pub(crate) fn release_binary() -> Result<PathBuf> {
    step("building hyperferry (release)");
    cargo(["build", "--release", "--quiet", "--package", "hyperferry"]).run()?;
    Ok(target_dir().join("release/hyperferry"))
}

/// `hyperferry` and `cut`, which bring their C library along: the lab's hosts may have an older one than this machine.
pub(crate) fn portable_binaries() -> Result<[PathBuf; 2]> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    step("building hyperferry (release, static)");
    let mut build =
        cargo(["build", "--release", "--quiet", "--target", TARGET, "--bin", "hyperferry", "--bin", "cut"]);
    build.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static").run()?;
    Ok(["hyperferry", "cut"].map(|name| target_dir().join(TARGET).join("release").join(name)))
}

fn target_dir() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    paths::checkout().join(set.unwrap_or_else(|| PathBuf::from("target")))
}

fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut cargo = command(env!("CARGO"), arguments);
    cargo.current_dir(paths::checkout());
    cargo
}
