//! The platform shim beside a QEMU: what it is told, what it answers, and the file that it keeps.
//!
//! The shim is a library of its own (`crates/platform-shim`). It is told what to do by the environment, says on QEMU's
//! standard error what KVM made of that, and reads the HPET's state when the guest first runs; later it writes it
//! there whenever the guest stops.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use hyperferry_translate::qemu::APIC_BUS_HZ;
use hyperferry_vm_model::Vm;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{Error, Result, qemu::Launch, qemu::Process};

/// How every line of the shim's begins.
const WORD: &str = "hyperferry-platform-shim: ";
/// How long its first line may take to reach us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Xen's APIC bus: a cycle of 10 ns (xen/arch/x86/include/asm/hvm/vlapic.h, APIC_BUS_CYCLE_NS).
const APIC_BUS_NS: u64 = 10;
/// Version of the file.
const VERSION: u32 = 1;

/// The platform shim beside one QEMU. Dropped, it takes its file with it; [`Shim::keep`] leaves it.
#[derive(Debug)]
pub struct Shim {
    library: PathBuf,
    hpet: bool,
    state: PathBuf,
    /// Ours alone, where nobody said where the file is to be.
    folder: Option<tempfile::TempDir>,
    kept: bool,
}

impl Shim {
    /// Gets ready for a QEMU that takes this VM. `files` is where its files lie, up to their extension.
    pub fn new(library: &Path, vm: &Vm, files: Option<&Path>) -> Result<Self> {
        let option = |why: String| Error::option(&format!("--platform-shim {}", library.display()), why);
        let library = fs::canonicalize(library).map_err(|error| option(error.to_string()))?;
        // ld.so splits its list at both, and has no way to quote them.
        if library.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b' ' | b':')) {
            return Err(option("the path of a library to preload has no spaces and no colons".to_owned()));
        }
        let (state, folder) = match files {
            Some(files) => (files.with_extension("hpet.json"), None),
            None => {
                let folder = tempfile::Builder::new()
                    .prefix("hyperferry-platform-")
                    .permissions(fs::Permissions::from_mode(0o700))
                    .tempdir()
                    .map_err(Error::system("making a private directory"))?;
                (folder.path().join("hpet.json"), Some(folder))
            }
        };
        Ok(Self { library, hpet: vm.config.hpet, state, folder, kept: false })
    }

    /// A QEMU with the shim in it.
    #[must_use]
    pub fn beside(&self, launch: Launch) -> Launch {
        let mut preload: OsString = self.library.clone().into();
        if let Some(others) = std::env::var_os("LD_PRELOAD") {
            preload.push(":");
            preload.push(others);
        }
        let launch = launch
            .with_variable("LD_PRELOAD", preload)
            .with_variable("HYPERFERRY_APIC_BUS_NS", APIC_BUS_NS.to_string());
        if self.hpet { launch.with_variable("HYPERFERRY_HPET", &self.state) } else { launch }
    }

    /// The shim has the guest's HPET.
    pub fn has_hpet(&self) -> bool {
        self.hpet
    }

    /// File of the HPET's state.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The rate of the APIC bus that KVM agreed to. A shim that says nothing is not there.
    pub async fn apic_bus_hz(&self, qemu: &Process) -> Result<u64> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if let Some(hz) = apic_bus_hz(&qemu.stderr()) {
                return Ok(hz);
            }
            if Instant::now() > deadline {
                let said = qemu.stderr();
                let why = format!(
                    "it says nothing in QEMU after {} s (a QEMU that is linked statically, or to another C library, \
                     does not load it): --platform-shim=off goes without; QEMU said: {}",
                    ANSWER_TIMEOUT.as_secs(),
                    said.trim()
                );
                return Err(Error::option("--platform-shim", why));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Writes what the shim reads when the guest first runs.
    pub fn hand_over(&self, vm: &Vm) -> Result<()> {
        if !self.hpet {
            return Ok(());
        }
        let state = json!({ "version": VERSION, "hpet": vm.timers.hpet }).to_string();
        fs::write(&self.state, state).map_err(Error::system("writing the HPET's state"))
    }

    /// Leaves the file to a QEMU that lives on, and says where it is; nowhere if the guest has no HPET.
    pub fn keep(mut self) -> Option<PathBuf> {
        self.kept = true;
        if let Some(folder) = self.folder.take().filter(|_| self.hpet) {
            let _ = folder.keep();
        }
        self.hpet.then(|| self.state.clone())
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // A folder of ours goes by itself.
        if !self.kept
            && self.folder.is_none()
            && self.hpet
            && let Err(error) = fs::remove_file(&self.state)
        {
            tracing::debug!(%error, "no state was there yet");
        }
    }
}

/// The shim's line about the APIC bus, once it is there in full.
pub(crate) fn apic_bus_hz(stderr: &str) -> Option<u64> {
    let lines = stderr.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let answer = lines.filter_map(|line| line.strip_prefix(WORD)?.strip_prefix("apic-bus-ns")).next()?;
    let nanoseconds: Option<u64> = answer.strip_prefix('=').and_then(|number| number.parse().ok());
    Some(nanoseconds.and_then(|ns| 1_000_000_000_u64.checked_div(ns)).unwrap_or(APIC_BUS_HZ))
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::Hpet;

    use super::*;

    fn vm() -> Vm {
        let mut vm = Vm::default();
        vm.config.hpet = true;
        vm.timers.hpet = Some(Hpet { counter: 7, ..Hpet::default() });
        vm
    }

    #[test]
    fn the_answer_is_read_when_it_is_there_in_full() {
        assert_eq!(apic_bus_hz("warning\nhyperferry-platform-shim: apic-bus-ns=10\n"), Some(100_000_000));
        assert_eq!(apic_bus_hz("hyperferry-platform-shim: apic-bus-ns=10"), None);
        assert_eq!(apic_bus_hz("hyperferry-platform-shim: apic-bus-ns unavailable: no\n"), Some(APIC_BUS_HZ));
        assert_eq!(apic_bus_hz("hyperferry-platform-shim: apic-bus-ns=0\n"), Some(APIC_BUS_HZ));
        assert_eq!(apic_bus_hz("qemu: apic-bus-ns=10\n"), None);
    }

    #[test]
    fn the_state_lies_in_a_place_of_our_own_and_goes_with_us() {
        let shim = Shim::new(Path::new("/bin/sh"), &vm(), None).unwrap();
        shim.hand_over(&vm()).unwrap();
        let path = shim.state().to_owned();
        let written: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((&written["version"], &written["hpet"]["counter"]), (&1.into(), &7.into()));
        drop(shim);
        assert!(!path.exists());
    }

    #[test]
    fn the_state_lies_where_it_is_wanted_and_stays_if_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().join("17-4");
        let shim = || {
            let shim = Shim::new(Path::new("/bin/sh"), &vm(), Some(&files)).unwrap();
            shim.hand_over(&vm()).unwrap();
            shim
        };
        drop(shim());
        assert!(!files.with_extension("hpet.json").exists());
        let kept = shim().keep().unwrap();
        assert!(kept == files.with_extension("hpet.json") && kept.exists());
        let without = Shim::new(Path::new("/bin/sh"), &Vm::default(), Some(&files)).unwrap();
        assert_eq!(without.keep(), None);
    }

    #[test]
    fn a_library_that_cannot_be_preloaded_is_refused() {
        let refused = |path: &Path| Shim::new(path, &vm(), None).unwrap_err().to_string();
        assert!(refused(Path::new("/nowhere/shim.so")).contains("No such file"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a shim.so");
        fs::write(&path, "").unwrap();
        assert!(refused(&path).contains("no spaces"));
    }
}
