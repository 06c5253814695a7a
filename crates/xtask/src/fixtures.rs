//! Captures the fixtures: the witness guest, saved by real Xen and by real QEMU in every configuration worth having.

mod cases;
mod qemu;
mod xen;

use crate::paths;
use crate::sh::{Run, command, step};
use anyhow::{Context, Result, bail, ensure};
use cases::{Case, Source};
use clap::Subcommand;
use hyperferry_testkit::Origin;
use std::fs;
use std::path::PathBuf;

/// What can be done with the fixtures.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// List what `capture` captures.
    List,
    /// Capture fixtures anew in the lab (booted for it; about a minute each) and write them under fixtures/.
    Capture {
        /// Only those whose name contains this.
        #[arg(long, default_value = "")]
        only: String,
    },
}

/// A fixture lies in the repository: it has to stay small.
const LARGEST: usize = 1_000_000;
/// The strongest level without special memory needs on the reading side, over a window that holds the whole guest.
const LEVEL: i32 = 19;
const WINDOW_LOG: u32 = 27;

const ATTEMPTS: u32 = 3;

/// Does it.
pub(crate) fn act(action: Action) -> Result<()> {
    match action {
        Action::List => {
            for case in cases::all() {
                step(format!("{:32} {}", case.name, case.what));
            }
            Ok(())
        }
        Action::Capture { only } => capture(&only),
    }
}

fn capture(only: &str) -> Result<()> {
    let chosen: Vec<_> = cases::all().into_iter().filter(|case| case.name.contains(only)).collect();
    ensure!(!chosen.is_empty(), "no fixture is named like {only:?}; see `cargo xtask fixtures list`");
    let witness = witness()?;
    for case in chosen {
        step(format!("capturing {}: {} (about 1 min)", case.name, case.what));
        let (stream, origin) =
            take(&case, &witness).with_context(|| format!("fixture {} was not captured", case.name))?;
        store(&case.name, &stream, &origin)?;
    }
    Ok(())
}

/// The emulated processor loses a guest now and then, by mixing up its state and Xen's at an exit: such an attempt is
/// repeated.
fn take(case: &Case, witness: &[u8]) -> Result<(Vec<u8>, Origin)> {
    let mut attempt = 1;
    loop {
        let taken = match &case.source {
            Source::Xen(guest) => xen::capture(guest, witness, case.what),
            Source::Qemu(guest) => qemu::capture(guest, witness, case.what),
        };
        match taken {
            Err(error) if attempt < ATTEMPTS => step(format!("attempt {attempt} failed: {error:#}")),
            taken => return taken,
        }
        attempt += 1;
    }
}

/// The bare-metal witness, built from its sources.
fn witness() -> Result<Vec<u8>> {
    crate::apt::install(&["gcc", "make", "binutils"])?;
    let out = paths::lab().join("witness");
    fs::create_dir_all(&out)?;
    let sources = paths::checkout().join("tests/guests/witness");
    command("make", ["-C"]).arg(sources).arg(format!("OUT={}", out.display())).quiet()?;
    fs::read(out.join("witness.bzimage")).context("the witness was not built")
}

fn store(name: &str, stream: &[u8], origin: &Origin) -> Result<()> {
    let dir = dir(name);
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.long_distance_matching(true)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(stream.len() as u64))?;
    std::io::Write::write_all(&mut encoder, stream)?;
    let packed = encoder.finish()?;
    if packed.len() > LARGEST {
        bail!("{name} packs into {} bytes, the limit is {LARGEST}", packed.len());
    }
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("stream.zst"), &packed)?;
    fs::write(dir.join("origin.toml"), toml::to_string_pretty(origin)?)?;
    step(format!("{}: {} bytes, packed {}", dir.display(), stream.len(), packed.len()));
    Ok(())
}

fn dir(name: &str) -> PathBuf {
    paths::checkout().join("fixtures").join(name)
}
