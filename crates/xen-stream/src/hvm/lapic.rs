//! LAPIC: what a local APIC holds beside its register page.

layout! {
    /// LAPIC: hidden state of a local APIC.
    ///
    /// Pre-4.21 didn't have `pending_esr`: 24 bytes.
    pub struct Lapic: AtMost 32 {
        /// IA32_APIC_BASE.
        apic_base_msr: u64,
        /// Bit 0: disabled by hardware, bit 1: by software.
        disabled: u32,
        /// Divisor of the timer, decoded: 1 to 128.
        timer_divisor: u32 as dec,
        /// IA32_TSC_DEADLINE in guest TSC units.
        tdt_msr: u64,
        /// Errors not yet latched into ESR.
        pending_esr: u32 => pad: 4,
    }
}

impl Lapic {
    /// [`Entry::elided`](super::Entry::elided) of an entry for Xen before 4.21, which refuses a longer one.
    pub const SINCE_4_21: usize = 8;
}
