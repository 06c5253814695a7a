//! The fixtures: `fixtures/xen/NAME`, `fixtures/qemu/NAME`, each a directory with `stream.zst` and `origin.toml`, and
//! `fixtures/pairs/NAME.toml`, which name one guest in both formats.

use crate::{Origin, checkout};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// One captured stream.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Its path below `fixtures/`, such as `xen/witness-1vcpu`.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// How it came about.
    pub origin: Origin,
}

impl Fixture {
    /// The fixture of that name.
    pub fn named(name: &str) -> Result<Self> {
        Self::read(name.to_owned(), checkout().join("fixtures").join(name))
    }

    /// The file with the compressed stream.
    pub fn path(&self) -> PathBuf {
        self.dir.join("stream.zst")
    }

    /// The stream, uncompressed while it is read.
    pub fn open(&self) -> Result<impl Read + use<>> {
        let file = fs::File::open(self.path()).with_context(|| format!("{} has no stream", self.name))?;
        Ok(zstd::Decoder::new(file)?)
    }

    /// The whole stream.
    pub fn stream(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open()?.read_to_end(&mut bytes).with_context(|| format!("{} does not unpack", self.name))?;
        Ok(bytes)
    }

    fn read(name: String, dir: PathBuf) -> Result<Self> {
        let path = dir.join("origin.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let origin = toml::from_str(&text).with_context(|| format!("{} is not an origin", path.display()))?;
        Ok(Self { name, dir, origin })
    }
}

/// All fixtures of a format, `xen` or `qemu`, by name.
pub fn fixtures(format: &str) -> Result<Vec<Fixture>> {
    let entries = sorted(&checkout().join("fixtures").join(format))?;
    let named = entries.into_iter().filter(|dir| dir.is_dir()).map(|dir| {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Fixture::read(format!("{format}/{name}"), dir)
    });
    named.collect()
}

/// One guest in both formats.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// What the two have in common.
    pub what: String,
    /// Name of the fixture from Xen.
    pub xen: String,
    /// Name of the fixture from QEMU.
    pub qemu: String,
}

/// All pairs.
pub fn pairs() -> Result<Vec<Pair>> {
    let read = |path: PathBuf| -> Result<Pair> {
        toml::from_str(&fs::read_to_string(&path)?)
            .with_context(|| format!("{} is not a pair", path.display()))
    };
    sorted(&checkout().join("fixtures/pairs"))?.into_iter().map(read).collect()
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}
