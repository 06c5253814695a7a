//! Builds the disk images of the lab hosts, once for every state of the recipe (`tests/lab`).

use super::host;
use crate::sh::{Run, as_root, command, step};
use crate::{apt, paths, qemu};
use anyhow::{Context, Result};
use hyperferry_testkit::lab::Host;
use std::fs;
use std::path::{Path, PathBuf};

/// Makes sure that the images of `host` are there and of today's recipe.
pub(super) fn provide(host: Host) -> Result<()> {
    qemu::provide(false)?;
    let recipe = recipe(host)?;
    let dir = host.dir();
    if fs::read_to_string(dir.join("recipe")).is_ok_and(|built| built == recipe) {
        return Ok(());
    }
    host::down(host)?;
    step(format!("building the {host} host (about 2 min)"));
    apt::install(&["mmdebstrap", "e2fsprogs", "openssh-client", "debian-archive-keyring"])?;

    let key = Host::key();
    if !key.exists() {
        command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"]).arg(&key).quiet()?;
    }
    let apt_options = paths::lab().join(format!("{host}.apt"));
    let building = paths::lab().join(format!("{host}.new"));
    fs::create_dir_all(&building)?;
    fs::write(&apt_options, apt::transport_options()?)?;
    // By env and not by Command::env: sudo passes its arguments on, not always the environment.
    let set = |name: &str, value: &Path| format!("{name}={}", value.display());
    let (suite, sources_of_apt) = match host {
        Host::Xen | Host::Kvm => (apt::RELEASE, apt::sources(true)?),
        Host::Xen414 => ("bullseye", vec![apt::source("bullseye")?]),
        Host::Xen420 => ("trixie", vec![apt::source("trixie")?]),
    };
    let arguments = [
        format!("SUITE={suite}"),
        format!("SOURCES={}", sources_of_apt.join("\n")),
        format!("XEN={}", host.xen_version().unwrap_or_default()),
        set("APT_OPTIONS", &apt_options),
        set("KEY", &key.with_extension("pub")),
        set("QEMU", &qemu::all()),
        "bash".to_owned(),
        sources().join("build-host.sh").display().to_string(),
        kind(host).to_owned(),
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

/// The directory of its recipe: every Xen host is built alike.
fn kind(host: Host) -> &'static str {
    if host.xen_version().is_some() { "xen" } else { "kvm" }
}

/// Everything that decides what the image of `host` holds, as one text.
fn recipe(host: Host) -> Result<String> {
    let mut recipe = String::new();
    let shared = ["build-host.sh", "init", "packages"];
    let mut paths: Vec<PathBuf> = shared.iter().map(|name| sources().join(name)).collect();
    for entry in fs::read_dir(sources().join(kind(host)))? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        recipe.push_str(&text);
    }
    Ok(recipe)
}
