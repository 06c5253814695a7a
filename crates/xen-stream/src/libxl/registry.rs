//! libxl's records, one row each.

use super::{CheckpointState, EmulatorContext, EmulatorXenstoreData};

records! {
    /// One record of libxl's stream.
    pub enum Record(u32: kind) {
        /// Ends the stream.
        0x0000_0000 "END" End;
        /// The libxc image follows at once, outside any record.
        0x0000_0001 "LIBXC_CONTEXT" LibxcContext;
        /// Keys of the device model in xenstore.
        0x0000_0002 "EMULATOR_XENSTORE_DATA" EmulatorXenstoreData(EmulatorXenstoreData);
        /// State of the device model.
        0x0000_0003 "EMULATOR_CONTEXT" EmulatorContext(EmulatorContext);
        /// Ends a checkpoint (Remus, COLO); the libxc image goes on.
        0x0000_0004 "CHECKPOINT_END" CheckpointEnd;
        /// Control of a checkpoint (COLO).
        0x0000_0005 "CHECKPOINT_STATE" CheckpointState(CheckpointState);
    }
}
