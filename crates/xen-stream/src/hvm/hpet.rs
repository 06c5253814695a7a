//! HPET: the high precision event timer.

layout! {
    /// HPET: its registers as the guest maps them, then what it hides.
    pub struct Hpet: Exact 1048 {
        /// Capabilities and period.
        capability: u64 => res0: 8,
        /// General configuration.
        config: u64 => res1: 8,
        /// Interrupt status.
        isr: u64 => res2: 200,
        /// Main counter, advanced to the moment of saving when it runs.
        mc64: u64 => res3: 8,
        /// Timers 0 to 2.
        timers: [HpetTimer; 3] => res5: 672,
        /// Value last written to each comparator: the period of a periodic timer.
        period: [u64; 3],
    }
}

layout! {
    /// One timer of the HPET.
    pub struct HpetTimer: Exact 32 {
        /// Configuration and capabilities.
        config: u64,
        /// Comparator, 64 bits also in 32-bit mode.
        cmp: u64,
        /// FSB route, which Xen does not support.
        fsb: u64 => res4: 8,
    }
}
