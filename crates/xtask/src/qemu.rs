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
        make_relocatable(&root.join("usr/bin").join(program))?;
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

/// Where Debian's QEMU looks for its modules, after `QEMU_MODULE_DIR`.
const MODULES: &[u8] = b"/usr/lib/x86_64-linux-gnu/qemu\0";
/// As long, and nowhere: a module of another build, should this machine have a QEMU installed, ends ours.
const NO_MODULES: &[u8] = b"/nonexistent/no-other-modules!\0";

/// Lets a program find its libraries relative to itself (what it starts must not inherit a library path) and keeps
/// it from this machine's own QEMU modules.
fn make_relocatable(program: &Path) -> Result<()> {
    apt::install(&["patchelf"])?;
    let path = "$ORIGIN/../lib/x86_64-linux-gnu:$ORIGIN/../../lib/x86_64-linux-gnu";
    command("patchelf", ["--force-rpath", "--set-rpath", path]).arg(program).quiet()?;
    let mut bytes = fs::read(program)?;
    let found = bytes.windows(MODULES.len()).position(|window| window == MODULES);
    if let Some(place) = found.and_then(|at| bytes.get_mut(at..at + MODULES.len())) {
        place.copy_from_slice(NO_MODULES);
        fs::write(program, bytes)?;
    }
    Ok(())
}

/// The wrapper finds everything relative to itself, so that the directory can be copied into a lab host.
fn wrapper(program: &str, version: &str) -> String {
    let firmware = if program.starts_with("qemu-system") {
        r#" \
  -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu""#
    } else {
        ""
    };
    format!(
        r#"#!/bin/sh
# {program} {version}, run from where its Debian packages were unpacked.
here=$(readlink -f "$0")
root=${{here%/*}}/root
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
exec "$root/usr/bin/{program}"{firmware} "$@"
"#
    )
}
