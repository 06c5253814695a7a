//! What we were told, through the environment.
//!
//! | variable | value |
//! |---|---|
//! | `HYPERFERRY_APIC_BUS_NS` | length of a cycle of the local APIC timer's clock; 10 for a guest from Xen |
//! | `HYPERFERRY_HPET` | file with the HPET's state: read when the guest first runs, written whenever it stops |

use std::{env, path::PathBuf};

/// Variable with the cycle of the APIC bus.
const APIC_BUS: &str = "HYPERFERRY_APIC_BUS_NS";
/// Variable with the HPET's file.
const HPET: &str = "HYPERFERRY_HPET";

/// What we were told.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Cycle of the APIC bus, nanoseconds.
    pub(crate) apic_bus_ns: Option<u64>,
    /// File with the HPET's state.
    pub(crate) hpet: Option<PathBuf>,
}

impl Settings {
    /// What this process was told.
    pub(crate) fn from_environment() -> Self {
        Self {
            apic_bus_ns: env::var(APIC_BUS).ok().and_then(|text| text.parse().ok()),
            hpet: env::var_os(HPET).map(PathBuf::from),
        }
    }
}
