//! Debian packages: installed on this machine, or only fetched with everything they need.

use crate::sh::{Run, as_root, command, step};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// The release that everything fetched here belongs to; its packages run on it and on every later one.
pub(crate) const RELEASE: &str = "bookworm";
/// The same release's newer versions.
pub(crate) const BACKPORTS: &str = "bookworm-backports";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Installs those of `packages` that this machine lacks.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    step(format!("installing Debian packages: {}", missing.join(" ")));
    update()?;
    let options = ["install", "-y", "--no-install-recommends"];
    as_root("apt-get", options.into_iter().chain(missing))?.env("DEBIAN_FRONTEND", "noninteractive").quiet()
}

fn is_installed(package: &str) -> bool {
    command("dpkg-query", ["-W", "-f", "${db:Status-Status}", package]).read().is_ok_and(|s| s == "installed")
}

fn update() -> Result<()> {
    as_root("apt-get", ["update", "-q"])?.quiet()
}

/// The Debian mirror that this machine itself uses, or `HYPERFERRY_MIRROR`.
pub(crate) fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("HYPERFERRY_MIRROR") {
        return Ok(mirror);
    }
    if let Some(mirror) = configured_mirror()? {
        return Ok(mirror);
    }
    // A fresh image has sources but no package lists, and only the lists say which source is Debian's archive.
    update()?;
    configured_mirror()?
        .context("apt has no source labelled Debian; set HYPERFERRY_MIRROR to a Debian mirror")
}

fn configured_mirror() -> Result<Option<String>> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let targets = command("apt-get", ["indextargets", "--format", format, "Created-By: Packages"]).read()?;
    let uri = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    Ok(uri.map(|uri| uri.trim_end_matches('/').to_owned()))
}

/// The source lines of [`RELEASE`], and of [`BACKPORTS`] where wanted, as apt reads them.
pub(crate) fn sources(backports: bool) -> Result<Vec<String>> {
    let own = source(RELEASE)?;
    Ok(if backports { vec![own, source(BACKPORTS)?] } else { vec![own] })
}

/// The source line of one suite.
pub(crate) fn source(suite: &str) -> Result<String> {
    Ok(format!("deb [signed-by={KEYRING}] {} {suite} main", mirror()?))
}

/// The machine's own settings for reaching a mirror (proxies, clock checks), for tools with an apt of their own.
pub(crate) fn transport_options() -> Result<String> {
    let all = command("apt-config", ["dump", "--no-empty"]).read()?;
    let kept = ["Acquire::http", "Acquire::https", "Acquire::Check", "Acquire::Retries"];
    let lines = all.lines().filter(|line| kept.iter().any(|prefix| line.starts_with(prefix)));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

/// Fetches `packages` and all that they depend on into `dir`, as if on an empty machine: the result does not
/// depend on what is installed here, and nothing here changes.
pub(crate) fn fetch(packages: &[&str], backports: bool, dir: &Path) -> Result<Vec<PathBuf>> {
    install(&["debian-archive-keyring"])?;
    let archives = dir.join("cache/archives");
    fs::create_dir_all(archives.join("partial"))?;
    fs::create_dir_all(dir.join("state/lists/partial"))?;
    fs::write(dir.join("status"), "")?;
    fs::write(dir.join("sources.list"), sources(backports)?.join("\n") + "\n")?;

    let own = |name: &str| dir.join(name).display().to_string();
    let options = [
        format!("Dir::Etc::SourceList={}", own("sources.list")),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        "Dir::Etc::Preferences=/dev/null".to_owned(),
        "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
        format!("Dir::State={}", own("state")),
        format!("Dir::State::status={}", own("status")),
        format!("Dir::Cache={}", own("cache")),
        "APT::Architecture=amd64".to_owned(),
        "APT::Install-Recommends=false".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        "Debug::NoLocking=true".to_owned(),
    ];
    let apt = |args: &[&str]| {
        let mut apt = command("apt-get", options.iter().flat_map(|option| ["-o", option]));
        apt.args(args).quiet()
    };
    apt(&["update", "-q"])?;
    let suite = if backports { BACKPORTS } else { RELEASE };
    apt(&[&["install", "-q", "-y", "--download-only", "-t", suite], packages].concat())?;

    let mut debs: Vec<PathBuf> =
        fs::read_dir(&archives)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    debs.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    debs.sort();
    if debs.is_empty() {
        bail!("apt fetched nothing for {packages:?}");
    }
    Ok(debs)
}

/// Unpacks a package without installing it.
pub(crate) fn unpack(deb: &Path, into: &Path) -> Result<()> {
    command("dpkg-deb", ["-x".as_ref(), deb.as_os_str(), into.as_os_str()]).quiet()
}
