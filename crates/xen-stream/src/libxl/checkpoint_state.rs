//! CHECKPOINT_STATE: control of a COLO checkpoint.

layout! {
    /// CHECKPOINT_STATE: COLO only.
    pub struct CheckpointState: Exact 8 {
        /// 0 new checkpoint, 1 secondary suspended, 2 ready, 3 resumed.
        control_id: u32 => padding: 4,
    }
}
