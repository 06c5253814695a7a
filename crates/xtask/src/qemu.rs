//! The two QEMU versions that every test meets, unpacked from Debian packages beside whatever this machine runs.

use crate::apt;
use crate::paths;
use crate::sh::{Run, command, step};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Versions by the name of their directory, and whether they come from the backports.
const VERSIONS: [(&str, bool); 2] = [("7.2", false), ("10.0", true)];

/// The programs that get a wrapper.
const PROGRAMS: [&str; 4] = ["qemu-system-x86_64", "qemu-img", "qemu-nbd", "qemu-io"];

/// Makes sure that both versions are there. About half a minute the first time.
pub(crate) fn provide(fresh: bool) -> Result<()> {
    for (version, backports) in VERSIONS {
        let dir = dir(version);
        if dir.join("packages").exists() && !fresh {
            continue;
        }
        step(format!("unpacking QEMU {version} into {} (about 15 s)", dir.display()));
        unpack(version, backports, &dir)?;
    }
    Ok(())
}

/// Where a version lives.
pub(crate) fn dir(version: &str) -> PathBuf {
    paths::lab().join("qemu").join(version)
}

/// Where all versions live.
pub(crate) fn all() -> PathBuf {
    paths::lab().join("qemu")
}

fn unpack(version: &str, backports: bool, dir: &Path) -> Result<()> {
    let building = dir.with_extension("new");
    if building.exists() {
        fs::remove_dir_all(&building)?;
    }
    let root = building.join("root");
    fs::create_dir_all(&root)?;
    let download = tempfile::tempdir()?;
    let debs = apt::fetch(&["qemu-system-x86", "qemu-utils", "ipxe-qemu"], backports, download.path())?;
    let mut names = String::new();
    for deb in &debs {
        let name = deb.file_name().and_then(|name| name.to_str()).context("package file without a name")?;
        // The C library stays this machine's own: it is the same or newer, and what is preloaded into QEMU is
        // built against it.
        if name.starts_with("libc6_") {
            continue;
        }
        apt::unpack(deb, &root)?;
        names.push_str(name);
        names.push('\n');
    }
    for unused in ["usr/share/doc", "usr/share/man", "usr/share/locale"] {
        let unused = root.join(unused);
        if unused.exists() {
            fs::remove_dir_all(unused)?;
        }
    }
    for program in PROGRAMS {
        let path = building.join(program);
        fs::write(&path, wrapper(program, version))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let told = command(building.join("qemu-system-x86_64"), ["--version"]).read()?;
    if !told.contains(&format!("version {version}.")) {
        bail!("wanted QEMU {version}, the packages brought {}", told.lines().next().unwrap_or_default());
    }
    // Written last: a directory with this list is complete.
    fs::write(building.join("packages"), names)?;
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::rename(&building, dir).with_context(|| format!("cannot move {} into place", building.display()))
}

/// The wrapper finds everything relative to itself, so that the directory can be copied into a lab host. It names
/// the libraries to the loader and not to the environment: what QEMU starts must not inherit them.
fn wrapper(program: &str, version: &str) -> String {
    let firmware = if program.starts_with("qemu-system") {
        r#" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu""#
    } else {
        ""
    };
    format!(
        r#"#!/bin/sh
# {program} {version}, run from where its Debian packages were unpacked.
here=$(readlink -f "$0")
root=${{here%/*}}/root
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec /lib64/ld-linux-x86-64.so.2 --argv0 "$0" \
  --library-path "$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu" \
  "$root/usr/bin/{program}"{firmware} "$@"
"#
    )
}
