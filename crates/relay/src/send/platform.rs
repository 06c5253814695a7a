//! The platform shim beside a guest that came from Xen: what it was told, and what it keeps of the guest.
//!
//! A QEMU with the shim in it was started with variables that say so (`session::Shim`). They are read from the
//! process: whoever may drive its monitor may as a rule read them too. The shim writes the HPET's state whenever the
//! guest stops, which is before QEMU sends its devices.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use hyperferry_translate::{Error as TranslateError, Result};
use hyperferry_vm_model::Hpet;
use serde::Deserialize;

use crate::session;

/// Part of the name of the shim's library.
const LIBRARY: &[u8] = b"hyperferry_platform_shim";

/// What the shim does for a guest; nothing without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// Rate of the clock of its local APIC timers, Hz, where it is not QEMU's.
    pub apic_bus_hz: Option<u64>,
    /// File with the state of its HPET.
    pub hpet: Option<PathBuf>,
}

/// The file.
#[derive(Deserialize)]
struct State {
    hpet: Option<Hpet>,
}

impl Platform {
    /// Beside this process, whose words lie in a file beside its monitor.
    pub fn of(pid: Option<u32>, monitor: &Path) -> Self {
        let Some(pid) = pid else { return Self::default() };
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_else(|error| {
            tracing::debug!(%error, "the environment of the guest's QEMU");
            Vec::new()
        });
        let said = fs::read_to_string(monitor.with_extension("log")).unwrap_or_default();
        Self::told(&environment, &said)
    }

    fn told(environment: &[u8], said: &str) -> Self {
        let variable = |name: &str| {
            let mut pairs = environment.split(|byte| *byte == 0);
            pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        };
        let preload = variable("LD_PRELOAD").unwrap_or_default();
        if !preload.windows(LIBRARY.len()).any(|part| part == LIBRARY) {
            return Self::default();
        }
        let wanted =
            variable("HYPERFERRY_APIC_BUS_NS").and_then(|text| str::from_utf8(text).ok()?.parse().ok());
        let wanted = wanted.and_then(|cycle: u64| 1_000_000_000_u64.checked_div(cycle));
        // What KVM made of it, if that is on record.
        let apic_bus_hz = session::apic_bus_hz(said).or(wanted);
        let hpet = variable("HYPERFERRY_HPET").map(|path| PathBuf::from(OsStr::from_bytes(path)));
        Self { apic_bus_hz, hpet }
    }

    /// The state of the guest's HPET as it stopped, if the shim has it.
    pub fn hpet(&self) -> Result<Option<Hpet>> {
        let Some(path) = &self.hpet else { return Ok(None) };
        let bytes = fs::read(path).map_err(TranslateError::Input)?;
        let state: State =
            serde_json::from_slice(&bytes).map_err(|error| TranslateError::Input(io::Error::from(error)))?;
        Ok(state.hpet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_told_from_a_qemu_without_one() {
        let with =
            b"PATH=/bin\0LD_PRELOAD=/x/libhyperferry_platform_shim.so:/y.so\0HYPERFERRY_APIC_BUS_NS=10\0\
                     HYPERFERRY_HPET=/j/1.hpet.json\0";
        let platform = Platform::told(with, "");
        assert_eq!(platform.apic_bus_hz, Some(100_000_000));
        assert_eq!(platform.hpet.as_deref(), Some(Path::new("/j/1.hpet.json")));
        let refused = Platform::told(with, "hyperferry-platform-shim: apic-bus-ns unavailable: no\n");
        assert_eq!(refused.apic_bus_hz, Some(1_000_000_000));
        assert_eq!(Platform::told(b"HYPERFERRY_APIC_BUS_NS=10\0", ""), Platform::default());
    }

    #[test]
    fn the_hpet_is_read_as_the_shim_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hpet.json");
        let hpet = Hpet { counter: 7, period_fs: 16_000_000, ..Hpet::default() };
        fs::write(&path, serde_json::json!({ "version": 1, "hpet": hpet }).to_string()).unwrap();
        let platform = Platform { hpet: Some(path), ..Platform::default() };
        assert_eq!(platform.hpet().unwrap(), Some(hpet));
        let nowhere = Platform { hpet: Some("/nowhere".into()), ..Platform::default() };
        assert!(nowhere.hpet().is_err());
        assert_eq!(Platform::default().hpet().unwrap(), None);
    }
}
