use std::{fmt, io};

use crate::StreamPath;

/// What a fallible read returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A fault in a stream: where it stands and what it is.
///
/// Displayed as `libxc[17] PAGE_DATA @0x1f40: reserved: found 0x1, wanted 0x0`.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    path: StreamPath,
    offset: u64,
    kind: ErrorKind,
}

/// What is wrong, grouped by what a user can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes end before the field does.
    #[error("{field}: found {found} bytes, wanted {wanted}")]
    Truncated {
        /// Field being read.
        field: String,
        /// Bytes that were there.
        found: u64,
        /// Bytes the field needs.
        wanted: u64,
    },
    /// A field holds a value that the format does not allow there.
    #[error("{field}: found {found}, wanted {wanted}")]
    Invalid {
        /// Field that was read.
        field: String,
        /// Its value.
        found: String,
        /// What the format asks for.
        wanted: String,
    },
    /// Bytes are left over after the last field.
    #[error("{found} bytes left over after the last field, wanted 0")]
    Trailing {
        /// Number of bytes left over.
        found: u64,
    },
    /// A length or count is over the limit that we set for it.
    #[error("{field}: found {found}, wanted at most {limit}")]
    Limit {
        /// Field that holds the length or count.
        field: String,
        /// Its value.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A known element stands where it may not.
    #[error("found {found}, wanted {wanted}")]
    OutOfOrder {
        /// The element that came.
        found: String,
        /// The elements that may come here.
        wanted: String,
    },
    /// The format allows it and we cannot read it, by name and with the reason.
    #[error("{what}: {why}")]
    Unreadable {
        /// What cannot be read.
        what: String,
        /// Why, and what to do instead.
        why: String,
    },
    /// The operating system failed us.
    #[error("{0}")]
    Io(io::Error),
}

impl Error {
    /// A fault of this kind at this place.
    pub fn new(path: StreamPath, offset: u64, kind: ErrorKind) -> Self {
        Self(Box::new(Inner { path, offset, kind }))
    }

    /// A field whose value the format does not allow.
    pub fn invalid(
        path: &StreamPath,
        offset: u64,
        field: impl Into<String>,
        found: impl fmt::Display,
        wanted: impl fmt::Display,
    ) -> Self {
        let kind =
            ErrorKind::Invalid { field: field.into(), found: found.to_string(), wanted: wanted.to_string() };
        Self::new(path.clone(), offset, kind)
    }

    /// The element of the nested formats that is at fault.
    pub fn path(&self) -> &StreamPath {
        &self.0.path
    }

    /// Byte offset in the whole stream, after decompression.
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// What is wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Whether the operating system failed, rather than the bytes being wrong.
    pub fn is_io(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Io(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} @{:#x}: {}", self.0.path, self.0.offset, self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.kind {
            ErrorKind::Io(error) => error.source(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_what_found_and_wanted() {
        let path = StreamPath::root().child("libxc[17] PAGE_DATA");
        let error = Error::invalid(&path, 0x1f40, "reserved", "0x1", "0x0");
        assert_eq!(error.to_string(), "libxc[17] PAGE_DATA @0x1f40: reserved: found 0x1, wanted 0x0");
    }
}
