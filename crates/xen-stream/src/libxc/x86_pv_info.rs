//! X86_PV_INFO: shape of a PV domain.

layout! {
    /// X86_PV_INFO: PV domains only.
    pub struct X86PvInfo: Exact 8 {
        /// 4 or 8 octets.
        guest_width: u8 as dec,
        /// 3 or 4.
        pt_levels: u8 as dec => reserved: 6,
    }
}
