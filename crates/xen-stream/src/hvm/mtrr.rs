//! MTRR: a vCPU's memory types.

layout! {
    /// MTRR: PAT and the memory type range registers.
    ///
    /// Every Xen from 4.17 to 4.23-unstable writes variable range 0 eight times, so ranges 1 to 7 are lost.
    pub struct Mtrr: Exact 240 {
        /// IA32_PAT.
        msr_pat_cr: u64,
        /// Base and mask of each variable range.
        msr_mtrr_var: [u64; 16],
        /// MSRs 0x250, 0x258, 0x259, 0x268 to 0x26f.
        msr_mtrr_fixed: [u64; 11],
        /// IA32_MTRRCAP.
        msr_mtrr_cap: u64,
        /// IA32_MTRR_DEF_TYPE.
        msr_mtrr_def_type: u64,
    }
}
