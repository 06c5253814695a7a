//! The Xen save and migration stream, read and written byte for byte.
//!
//! Layers, outermost first, each a module and each with its page in `formats/xen/`:
//!
//! ```text
//! xl      header and domain configuration             Xen tools/xl/xl.h
//! libxl   header, records                             Xen docs/specs/libxl-migration-stream.pandoc, revision 2
//! libxc   image header, domain header, records        Xen docs/specs/libxc-migration-stream.pandoc, revision 3
//! hvm     entries inside the HVM_CONTEXT record       Xen public/arch-x86/hvm/save.h
//! ```
//!
//! [`StreamReader`] turns bytes into [`Event`]s and [`StreamWriter`] turns events into bytes; both keep the
//! same legal order. Guest pages pass through in steps of at most 128 KiB and are never kept.
//!
//! ```
//! use hyperferry_xen_stream::{Event, StreamReader, StreamWriter};
//!
//! fn copy(from: impl std::io::Read, to: impl std::io::Write) -> hyperferry_wire::Result<u64> {
//!     let (mut reader, mut writer) = (StreamReader::new(from), StreamWriter::new(to));
//!     let mut pages = 0;
//!     while let Some(event) = reader.next_event()? {
//!         if let Event::Pages(chunk) = &event {
//!             pages += chunk.entries.len() as u64;
//!         }
//!         writer.write(&event)?;
//!     }
//!     Ok(pages)
//! }
//! # assert!(copy(&b"no stream"[..], Vec::new()).is_err());
//! ```
//!
//! What a record holds can be shown to people and as JSON through [`describe`].
//!
//! Checked against Xen 4.17.7 (a real save file) and the sources of 4.23-unstable.

#[macro_use]
mod codec;
#[macro_use]
mod registry;

pub mod describe;
mod event;
pub mod hvm;
pub mod libxc;
pub mod libxl;
mod order;
mod reader;
mod writer;
pub mod xl;

pub use codec::Length;
pub use event::Event;
pub use reader::StreamReader;
pub use registry::Row;
pub use writer::StreamWriter;
