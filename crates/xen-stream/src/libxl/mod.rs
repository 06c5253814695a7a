//! libxl's stream: a header, then records around the libxc image.
//!
//! Source: Xen `docs/specs/libxl-migration-stream.pandoc` revision 2, `tools/libs/light/libxl_sr_stream_format.h`
//! and `libxl_stream_read.c` (4.23-unstable), checked on a save file of 4.17.7.
//!
//! ```text
//! u32 type | u32 body_length | body | zeros to a multiple of 8        relative to the record, not to the file
//! ```

mod checkpoint_state;
mod emulator;
mod emulator_context;
mod emulator_xenstore_data;
mod header;
mod registry;

pub use checkpoint_state::CheckpointState;
pub use emulator::EmulatorId;
pub use emulator_context::EmulatorContext;
pub use emulator_xenstore_data::{EmulatorXenstoreData, XENSTORE_DATA_LIMIT, XenstorePair};
pub use header::StreamHeader;
pub(crate) use header::path as header_path;
pub(crate) use registry::name_of;
pub use registry::{ROWS, Record};

/// The longest body that we accept.
///
/// The longest real one is the device model's state, which Xen keeps without video memory: some 6 KB for a
/// plain guest, some hundred KB for one with many devices. The bound keeps a lying sender from our memory.
pub const RECORD_LIMIT: u32 = 16 << 20;

impl Record {
    /// Whether a reader that does not know the record must refuse it.
    pub fn is_mandatory(&self) -> bool {
        self.code() & crate::reader::OPTIONAL == 0
    }
}
