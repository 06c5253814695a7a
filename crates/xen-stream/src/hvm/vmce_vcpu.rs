//! VMCE_VCPU: a vCPU's machine check configuration.

layout! {
    /// VMCE_VCPU: capabilities and bank control.
    ///
    /// Pre-4.10 didn't have `mcg_ext_ctl`: 24 bytes.
    pub struct VmceVcpu: AtMost 32 {
        /// IA32_MCG_CAP.
        caps: u64,
        /// IA32_MC0_CTL2.
        mci_ctl2_bank0: u64,
        /// IA32_MC1_CTL2.
        mci_ctl2_bank1: u64,
        /// IA32_MCG_EXT_CTL.
        mcg_ext_ctl: u64,
    }
}
