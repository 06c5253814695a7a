//! PMTIMER: the ACPI PM timer.

layout! {
    /// PMTIMER: the timer and its event block; PM1a_CNT is in the device model.
    pub struct PmTimer: Exact 8 {
        /// Free-running counter, 32 bits, advanced to the moment of saving.
        tmr_val: u32,
        /// PM1a status.
        pm1a_sts: u16,
        /// PM1a enable.
        pm1a_en: u16,
    }
}
