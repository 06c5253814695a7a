//! The QEMU migration stream (QEVM version 3), read and written: framing, RAM, and device sections that
//! schemas explain.
//!
//! ```text
//! header         "QEVM", version
//! CONFIGURATION  machine name
//! RAM            START (blocks), PART …, END (pages)        COMMANDs may stand between
//! FULL …         one section a device
//! EOF            then VMDESCRIPTION: JSON that says what the device sections hold
//! ```
//!
//! [`StreamReader`] hands a stream out event by event, [`StreamWriter`] writes it, byte for byte the same;
//! [`Template`] makes streams in the dialect of one particular QEMU. [`DeviceState`] also reads the blob that
//! qemu-xen leaves in a Xen stream's EMULATOR_CONTEXT.
//!
//! Source: QEMU 7.2 and 10.0, `migration/`. Pages: `formats/qemu/`. All integers are big-endian.

pub mod command;
pub mod configuration;
mod device_state;
mod header;
pub mod mapped_ram;
pub mod ram;
mod reader;
pub mod registry;
pub mod section;
mod template;
mod vmdesc;
pub mod vmstate;
mod window;
mod writer;

pub use command::{Command, CommandKind};
pub use configuration::{Configuration, ConfigurationSubsection};
pub use device_state::{DEVICE_STATE_LIMIT, DeviceState, Section};
pub use header::Header;
pub use ram::{PageContent, RamBlock, RamChunk, RamPage, RamStart};
pub use reader::{Event, StreamReader};
pub use registry::Registry;
pub use section::{SectionHeader, SectionKind};
pub use template::{Absent, SectionKey, Template};
pub use vmdesc::{VMDESC_LIMIT, VmDesc};
pub use vmstate::schema::Schema;
pub use vmstate::value::{FieldError, FieldRef, Subsection, Tree, Value};
pub use writer::StreamWriter;
