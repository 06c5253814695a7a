use serde::{Deserialize, Serialize};

/// A local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lapic {
    /// IA32_APIC_BASE: address, BSP, EXTD and EN bits.
    pub apic_base: u64,
    /// APIC id (the whole word in x2APIC mode).
    pub id: u32,
    /// Version register.
    pub version: u32,
    /// Task priority.
    pub tpr: u32,
    /// Logical destination register.
    pub ldr: u32,
    /// Destination format register.
    pub dfr: u32,
    /// Spurious interrupt vector register.
    pub svr: u32,
    /// In-service bits.
    pub isr: [u32; 8],
    /// Trigger mode bits.
    pub tmr: [u32; 8],
    /// Request bits.
    pub irr: [u32; 8],
    /// Error status.
    pub esr: u32,
    /// Errors gathered and not yet latched into ESR.
    pub pending_esr: u32,
    /// Interrupt command register, low and high word.
    pub icr: [u32; 2],
    /// The local vector table.
    pub lvt: LocalVectorTable,
    /// The timer.
    pub timer: ApicTimer,
}

/// The local vector table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the registers' own")]
pub struct LocalVectorTable {
    pub timer: u32,
    pub thermal: u32,
    pub performance: u32,
    pub lint0: u32,
    pub lint1: u32,
    pub error: u32,
}

/// The timer of a local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicTimer {
    /// Rate of the timer's clock before the divider, Hz. The guest has measured it and relies on it.
    pub bus_hz: u64,
    /// Initial count register; 0 is stopped.
    pub initial_count: u32,
    /// Divide configuration register.
    pub divide_configuration: u32,
    /// Nanoseconds to the next shot, where the source knows the phase.
    pub remaining_ns: Option<u64>,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
}

impl ApicTimer {
    /// The divisor that the divide configuration register selects: 1, 2, 4, … 128.
    pub fn divisor(&self) -> u32 {
        let code = self.divide_configuration & 3 | self.divide_configuration >> 1 & 4;
        1 << ((code + 1) & 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisor_follows_the_data_sheet() {
        // Intel SDM vol. 3, figure "Divide Configuration Register".
        for (register, divisor) in
            [(0b0000, 2), (0b0001, 4), (0b0011, 16), (0b1000, 32), (0b1010, 128), (0b1011, 1)]
        {
            let timer = ApicTimer { divide_configuration: register, ..ApicTimer::default() };
            assert_eq!(timer.divisor(), divisor, "{register:#06b}");
        }
    }
}
