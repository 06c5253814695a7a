//! Builds the disk images of the lab hosts, once for every state of the recipe (`tests/lab`).

use super::host::Host;
use crate::sh::{Run, as_root, command, step};
use crate::{apt, paths, qemu};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Makes sure that the images of `host` are there and of today's recipe.
pub(super) fn provide(host: Host) -> Result<()> {
    qemu::provide(false)?;
    let guest = linux_guest()?;
    let recipe = recipe(host)?;
    let dir = host.dir();
    if fs::read_to_string(dir.join("recipe")).is_ok_and(|built| built == recipe) {
        return Ok(());
    }
    host.down()?;
    step(format!("building the {host} host (about 2 min)"));
    apt::install(&["mmdebstrap", "e2fsprogs", "openssh-client", "debian-archive-keyring"])?;

    let key = super::host::key();
    if !key.exists() {
        command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"]).arg(&key).quiet()?;
    }
    let apt_options = dir.with_extension("apt");
    let building = dir.with_extension("new");
    fs::create_dir_all(&building)?;
    fs::write(&apt_options, apt::transport_options()?)?;
    // By env and not by Command::env: sudo passes its arguments on, not always the environment.
    let set = |name: &str, value: &Path| format!("{name}={}", value.display());
    let arguments = [
        format!("SOURCES={}", apt::sources(true)?.join("\n")),
        set("APT_OPTIONS", &apt_options),
        set("KEY", &key.with_extension("pub")),
        set("QEMU", &qemu::all()),
        set("GUEST", &guest),
        "bash".to_owned(),
        sources().join("build-host.sh").display().to_string(),
        host.to_string(),
        building.display().to_string(),
    ];
    as_root("env", arguments)?.quiet()?;
    if dir.exists() {
        as_root("rm", ["-rf".as_ref(), dir.as_os_str()])?.quiet()?;
    }
    fs::rename(&building, &dir)?;
    as_root("chmod", ["a+rwx".as_ref(), dir.as_os_str()])?.quiet()?;
    fs::write(dir.join("recipe"), recipe).context("cannot note the recipe")
}

fn sources() -> PathBuf {
    paths::checkout().join("tests/lab")
}

/// Everything that decides what the image of `host` holds, as one text.
fn recipe(host: Host) -> Result<String> {
    let mut recipe = String::new();
    let shared = ["build-host.sh", "init", "packages", "linux-guest/init", "linux-guest/witness.c"];
    let mut paths: Vec<PathBuf> = shared.iter().map(|name| sources().join(name)).collect();
    for entry in fs::read_dir(sources().join(host.to_string()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        recipe.push_str(&text);
    }
    Ok(recipe)
}

/// The Linux guest: Debian's own kernel, and an initrd whose only program is the memory witness.
fn linux_guest() -> Result<PathBuf> {
    let dir = paths::lab().join("linux-guest");
    let witness = sources().join("linux-guest/witness.c");
    let recipe = fs::read_to_string(&witness)? + &fs::read_to_string(sources().join("linux-guest/init"))?;
    if fs::read_to_string(dir.join("recipe")).is_ok_and(|built| built == recipe) {
        return Ok(dir);
    }
    step("building the Linux guest (about 20 s)");
    apt::install(&["gcc", "libc6-dev", "cpio"])?;
    fs::create_dir_all(&dir)?;
    let download = tempfile::tempdir()?;
    let unpacked = download.path().join("unpacked");
    for deb in apt::fetch(&["linux-image-amd64", "busybox-static"], false, download.path())? {
        let name = deb.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("linux-image-6") || name.starts_with("busybox-static") {
            apt::unpack(&deb, &unpacked)?;
        }
    }
    let shell = r#"
        mkdir -p initrd/bin
        cp unpacked/bin/busybox initrd/bin/
        gcc -O2 -Wall -static -o initrd/bin/witness "$1/witness.c"
        cp "$1/init" initrd/init
        chmod +x initrd/init
        (cd initrd && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) | gzip -9n > "$2/initrd.gz"
        cp unpacked/boot/vmlinuz-* "$2/vmlinuz"
    "#;
    let mut build = command("bash", ["-euc", shell, "linux-guest"]);
    build.arg(sources().join("linux-guest")).arg(&dir).current_dir(download.path()).quiet()?;
    fs::write(dir.join("recipe"), recipe)?;
    Ok(dir)
}
