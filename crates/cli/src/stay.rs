//! How a guest stays on this host: its clocks, its display, what owns its QEMU, and how it is started next time.
//!
//! Shared by `land` and `receive`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use hyperferry_relay::{
    endpoint::{Output, open_output},
    qemu::Scope,
    session::Landing,
};
use hyperferry_translate::{
    cpu_features,
    qemu::{Accelerator, args},
};
use hyperferry_vm_model::{VgaKind, Vm};

use crate::{
    commands::libvirt_xml,
    exit::{Error, Result},
    unit::{self, Start},
};

/// Stands for the guest's name in a file name.
const NAME: &str = "{name}";
/// Name of the platform shim's library.
const PLATFORM_SHIM: &str = "libhyperferry_platform_shim.so";
/// Where scripts go unless somebody says otherwise.
const SCRIPTS: &str = "/var/lib/hyperferry";

/// Where logind keeps whose managers outlive their logins, a file for each user (systemd 252, `man loginctl`).
const LINGER: &str = "/var/lib/systemd/linger";

/// How the guest stays here.
#[derive(Args, Debug)]
pub(crate) struct Stay {
    /// Show the guest's display by VNC there, as QEMU's -vnc takes it: `127.0.0.1:1`, `unix:/run/{name}.vnc`
    #[arg(long, value_name = "PLACE")]
    pub(crate) vnc: Option<String>,
    /// Give the guest Xen's APIC bus clock and HPET by a library preloaded into QEMU: `auto` where the guest may need
    /// it, KVM is there and the library lies beside hyperferry; `on`; `off`; or the library's path
    #[arg(long, value_name = "WHEN", default_value = "auto", default_missing_value = "on", num_args = 0..=1,
          require_equals = true)]
    pub(crate) platform_shim: PathBuf,
    /// What owns the guest's QEMU, and starts the guest the next time
    #[arg(long, value_enum, default_value_t = Unit::None)]
    pub(crate) unit: Unit,
    /// Where the unit or script for the next start goes [default: where systemd looks; for scripts /var/lib/hyperferry]
    #[arg(long, value_name = "DIR")]
    pub(crate) unit_directory: Option<PathBuf>,
    /// Write a libvirt domain for the guest's later life there; `{name}` is the guest's name
    #[arg(long, value_name = "FILE")]
    pub(crate) libvirt_xml: Option<PathBuf>,
}

/// What owns QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Unit {
    /// A scope of the system's systemd; a service for the next start.
    Systemd,
    /// The same of the user's own systemd.
    SystemdUser,
    /// Nobody; a shell script for the next start.
    Script,
    /// Nobody.
    None,
}

impl Unit {
    fn user(self) -> Option<bool> {
        match self {
            Self::Systemd => Some(false),
            Self::SystemdUser => Some(true),
            Self::Script | Self::None => None,
        }
    }
}

/// Files that appear once the guest runs.
#[derive(Debug, Default)]
pub(crate) struct Papers {
    /// The user's own arguments for QEMU.
    extra: Vec<String>,
    start: Option<(Start, Output)>,
    libvirt: Option<(PathBuf, Output)>,
}

impl Stay {
    /// Tells the destination what of this concerns QEMU, and opens the files that will be written: what cannot be
    /// had is an error before anything moves.
    pub(crate) fn prepare(&self, vm: &Vm, landing: &mut Landing, extra: &[String]) -> Result<Papers> {
        let guest = &vm.config.name;
        landing.options.vnc = self.vnc.as_ref().map(|place| place.replace(NAME, &harmless(guest)));
        if landing.options.vnc.is_none()
            && vm.config.vga != VgaKind::None
            && let Some(place) = &vm.config.vnc
        {
            say!(
                "note [display]: VNC showed it at {place} at the source; here nobody sees it unless --vnc PLACE"
            );
        }
        landing.shim = shim(&self.platform_shim, vm, landing.options.accelerator)?;
        let mut papers = Papers { extra: extra.to_vec(), ..Papers::default() };
        if self.unit != Unit::None {
            let name = unit::name(guest);
            landing.scope = self.unit.user().map(|user| Scope { name: name.clone(), user });
            if self.unit == Unit::SystemdUser && !lingers(Path::new(LINGER), user()) {
                say!(
                    "warning [linger]: the user's systemd ends with the last login, and the guest with it: \
                     `loginctl enable-linger`"
                );
            }
            let folder = self.unit_directory.clone().map_or_else(|| self.usual_directory(), Ok)?;
            std::fs::create_dir_all(&folder)
                .map_err(|source| Error::Output { path: folder.display().to_string(), source })?;
            let start = Start { user: self.unit.user(), folder, name };
            let output = open_output(start.path())?;
            papers.start = Some((start, output));
        }
        if let Some(path) = &self.libvirt_xml {
            let path = named(path, guest);
            let output = open_output(&path)?;
            papers.libvirt = Some((path, output));
        }
        Ok(papers)
    }

    fn usual_directory(&self) -> Result<PathBuf> {
        match self.unit.user() {
            None => Ok(SCRIPTS.into()),
            Some(false) => Ok(unit::SYSTEM_UNITS.into()),
            Some(true) => {
                let configuration = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
                let configuration =
                    configuration.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
                let why = "--unit systemd-user: there is no HOME; name the directory with --unit-directory";
                let configuration = configuration.ok_or_else(|| Error::Usage(why.to_owned()))?;
                Ok(configuration.join("systemd/user"))
            }
        }
    }
}

/// The platform shim's library, where it is wanted.
pub(crate) fn shim(named: &Path, vm: &Vm, accelerator: Accelerator) -> Result<Option<PathBuf>> {
    let kvm = accelerator == Accelerator::Kvm;
    match named.to_str() {
        Some("off") => return Ok(None),
        Some("auto") => {
            let library = beside_us()?.filter(|_| kvm && may_need_clocks(vm));
            if library.is_some() {
                say!(
                    "platform shim: on, for the guest may use Xen's HPET or APIC timer (--platform-shim=off)"
                );
            }
            return Ok(library);
        }
        _ if !kvm => {
            let why = "--platform-shim tells KVM what to do, and this guest would run in QEMU's emulation";
            return Err(Error::Usage(why.to_owned()));
        }
        Some("on") => {}
        _ => return Ok(Some(named.to_owned())),
    }
    let missing = || {
        let why = format!(
            "there is no {PLATFORM_SHIM} beside hyperferry; say where it is with --platform-shim=PATH"
        );
        Error::Host(why)
    };
    Ok(Some(beside_us()?.ok_or_else(missing)?))
}

impl Papers {
    /// Writes them. The guest runs by now: what fails is said, and changes nothing.
    pub(crate) fn write(self, vm: &Vm, landing: &Landing, machine: &str, pid: Option<u32>) {
        let mut options = landing.options.clone();
        machine.clone_into(&mut options.machine);
        if let Some((start, output)) = self.start {
            let arguments = [args::cold_start(vm, &options), self.extra.clone()].concat();
            match start.write(output, &landing.qemu, &arguments, vm, pid) {
                Ok(()) => say!("{}", start.hint()),
                Err(error) => say!("warning: {} is not there: {error}", start.path().display()),
            }
        }
        if let Some((path, output)) = self.libvirt {
            let emulator = landing.qemu.display().to_string();
            let written = libvirt_xml::domain(vm, &options, Some(&emulator), &self.extra);
            let written = written.map_err(Error::stdout).and_then(|text| unit::put(output, &text));
            match written {
                Ok(()) => say!("libvirt domain for its later life: {}", path.display()),
                Err(error) => say!("warning: {} is not there: {error}", path.display()),
            }
        }
    }
}

/// Whether a user's manager goes on while nobody is logged in; so it is taken to where nobody says who that is.
fn lingers(folder: &Path, user: Option<OsString>) -> bool {
    user.is_none_or(|user| folder.join(user).exists())
}

fn user() -> Option<OsString> {
    ["USER", "LOGNAME"].iter().find_map(std::env::var_os)
}

/// The library that is installed with us.
fn beside_us() -> Result<Option<PathBuf>> {
    let program =
        std::env::current_exe().map_err(|error| Error::Host(format!("our own program: {error}")))?;
    Ok(Some(program.with_file_name(PLATFORM_SHIM)).filter(|path| path.is_file()))
}

/// Whether a guest was offered clocks that run at another rate here: the HPET, or a local APIC timer that counts the bus
/// for want of a deadline mode. Which of them it uses, only its state tells, and QEMU has to be started before that.
fn may_need_clocks(vm: &Vm) -> bool {
    let deadline = cpu_features::offered(&vm.cpuid).any(|(name, offered)| name == "tsc-deadline" && offered);
    vm.config.hpet || !deadline
}

/// A file's name with the guest's in it, which the sender chose: it must not lead elsewhere.
pub(crate) fn named(path: &Path, guest: &str) -> PathBuf {
    path.to_str().map_or_else(|| path.to_owned(), |path| path.replace(NAME, &harmless(guest)).into())
}

fn harmless(guest: &str) -> String {
    let harmless = |c: char| if c.is_ascii_alphanumeric() || "-_.+".contains(c) { c } else { '_' };
    let guest: String = guest.chars().map(harmless).collect();
    guest.trim_start_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_name_leads_nowhere_else() {
        assert_eq!(named(Path::new("/log/{name}.log"), "web"), Path::new("/log/web.log"));
        assert_eq!(named(Path::new("/log/{name}"), "../../etc/passwd"), Path::new("/log/_.._etc_passwd"));
        assert_eq!(named(Path::new("/log/all"), "web"), Path::new("/log/all"));
    }

    #[test]
    fn a_user_lingers_by_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let lingers = |user: Option<&str>| lingers(folder.path(), user.map(OsString::from));
        assert!(!lingers(Some("web")));
        std::fs::write(folder.path().join("web"), "").unwrap();
        assert!(lingers(Some("web")) && !lingers(Some("db")) && lingers(None));
    }

    #[test]
    fn a_guest_without_hpet_and_with_a_deadline_timer_needs_no_shim() {
        let mut vm = Vm::default();
        assert!(may_need_clocks(&vm), "nobody knows its processor");
        let leaf = hyperferry_vm_model::CpuidLeaf { leaf: 1, ecx: 1 << 24, ..Default::default() };
        vm.cpuid.leaves.push(leaf);
        assert!(!may_need_clocks(&vm));
        vm.config.hpet = true;
        assert!(may_need_clocks(&vm));
    }
}
