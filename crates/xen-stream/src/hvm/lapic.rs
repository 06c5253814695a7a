//! LAPIC: what a local APIC holds beside its register page.

layout! {
    /// LAPIC: hidden state of a local APIC.
    ///
    /// 24 bytes, without `pending_esr`, before 4.21 and Debian's 4.20.
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
    /// [`Entry::elided`](super::Entry::elided) of an entry without `pending_esr`: every Xen takes it, and an older
    /// one refuses a longer one.
    pub const PENDING_ESR: usize = 8;
}
