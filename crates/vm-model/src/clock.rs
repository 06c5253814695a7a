use serde::{Deserialize, Serialize};

/// Rates and origins of the guest's clocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Rate of the guest's time-stamp counter, kHz.
    pub tsc_khz: u32,
    /// Nanoseconds the guest has existed for, on any monotonic clock of its host.
    pub guest_ns: u64,
    /// Whether `RDTSC` was intercepted and emulated by the source.
    pub tsc_emulated: bool,
}
