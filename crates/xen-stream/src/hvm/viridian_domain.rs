//! VIRIDIAN_DOMAIN: the domain's part of the Hyper-V interface.

layout! {
    /// VIRIDIAN_DOMAIN: only written for domains with the `viridian` option.
    ///
    /// Pre-4.5 had 16 bytes, 4.5 had 24: without `reference_tsc`.
    pub struct ViridianDomain: AtMost 32 {
        /// HV_X64_MSR_HYPERCALL.
        hypercall_gpa: u64,
        /// HV_X64_MSR_GUEST_OS_ID.
        guest_os_id: u64,
        /// Reference time, in units of 100 ns.
        time_ref_count: u64,
        /// HV_X64_MSR_REFERENCE_TSC.
        reference_tsc: u64,
    }
}
