//! X86_TSC_INFO: the domain's TSC.

layout! {
    /// X86_TSC_INFO.
    pub struct X86TscInfo: Exact 24 {
        /// 0 default, 1 always emulate, 2 never emulate, 3 pvrdtscp (until 4.14).
        mode: u32 as dec,
        /// Its rate in kHz.
        khz: u32 as dec,
        /// Time that the guest has seen, in nanoseconds.
        nsec: u64 as dec,
        /// How often the domain was moved.
        incarnation: u32 as dec => reserved: 4,
    }
}
