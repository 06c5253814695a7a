//! Captures the fixtures: the witness guest, saved by real Xen and by real QEMU in every configuration worth having.

mod cases;
mod qemu;
mod xen;

use crate::sh::step;
use crate::{lab, paths};
use anyhow::{Context, Result, bail, ensure};
use cases::{Case, Source};
use clap::Subcommand;
use hyperferry_testkit::Origin;
use std::fs;
use std::io::Write;
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
const LEVEL: i32 = 19;
/// Which window packs best cannot be foretold: pages of the witness come out three times as large with the wrong one.
const WINDOW_LOGS: [u32; 2] = [23, 25];
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
    let witness = lab::witness()?;
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

fn store(name: &str, stream: &[u8], origin: &Origin) -> Result<()> {
    let dir = dir(name);
    let packings = WINDOW_LOGS.into_iter().map(|window_log| pack(stream, window_log));
    let packed = packings.collect::<Result<Vec<_>>>()?.into_iter().min_by_key(Vec::len).unwrap_or_default();
    if packed.len() > LARGEST {
        bail!("{name} packs into {} bytes, the limit is {LARGEST}", packed.len());
    }
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("stream.zst"), &packed)?;
    fs::write(dir.join("origin.toml"), toml::to_string_pretty(origin)?)?;
    step(format!("{}: {} bytes, packed {}", dir.display(), stream.len(), packed.len()));
    Ok(())
}

fn pack(stream: &[u8], window_log: u32) -> Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.window_log(window_log)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(stream.len() as u64))?;
    encoder.write_all(stream)?;
    Ok(encoder.finish()?)
}

fn dir(name: &str) -> PathBuf {
    paths::checkout().join("fixtures").join(name)
}
