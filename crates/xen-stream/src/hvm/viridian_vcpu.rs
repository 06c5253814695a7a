//! VIRIDIAN_VCPU: a vCPU's part of the Hyper-V interface.

layout! {
    /// VIRIDIAN_VCPU: only written for domains with the `viridian` option.
    ///
    /// Pre-4.7 had 8 bytes, pre-4.13 had 16: no synthetic interrupts and timers.
    pub struct ViridianVcpu: AtMost 216 {
        /// HV_X64_MSR_VP_ASSIST_PAGE.
        vp_assist_msr: u64,
        /// Whether an EOI assist is pending; from 4.7 to 4.10 its vector.
        apic_assist_pending: u8 => _pad: 7,
        /// HV_X64_MSR_SIMP.
        simp_msr: u64,
        /// HV_X64_MSR_SINT0 to 15.
        sint_msr: [u64; 16],
        /// HV_X64_MSR_STIMER0_CONFIG to 3.
        stimer_config_msr: [u64; 4],
        /// HV_X64_MSR_STIMER0_COUNT to 3.
        stimer_count_msr: [u64; 4],
    }
}
