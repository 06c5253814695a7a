//! Bytes, nothing else: what every format in this workspace is read and written with.
//!
//! * [`Source`] takes bytes from any `Read`, counts them, and cuts bounded frames.
//! * [`Cursor`] walks one bounded frame, field by field; what is left over at its end is an error.
//! * [`Encoder`] is the mirror image of a cursor.
//! * [`Error`] says where (stream path and byte offset), which field, what was found and what was wanted.
//!
//! No length that came from a stream is ever allocated before it was compared with a named limit.

mod cursor;
mod encoder;
mod error;
mod path;
mod source;

pub use cursor::{Cursor, Strictness};
pub use encoder::Encoder;
pub use error::{Error, ErrorKind, Result};
pub use path::StreamPath;
pub use source::Source;

/// Byte order of a format or of one header inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// Least significant byte first: Xen's records.
    Little,
    /// Most significant byte first: QEMU, and the fixed headers of libxl and libxc.
    Big,
}

/// Size of one guest page in every format we know.
pub const PAGE_SIZE: usize = 4096;
