//! TSC_ADJUST: a vCPU's IA32_TSC_ADJUST.

layout! {
    /// TSC_ADJUST.
    pub struct TscAdjust: Exact 8 {
        /// IA32_TSC_ADJUST.
        tsc_adjust: u64,
    }
}
