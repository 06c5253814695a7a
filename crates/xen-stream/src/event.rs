//! What a stream consists of, in order.

use std::borrow::Cow;

use crate::describe::{Fields, Value};
use crate::{libxc, libxl, xl};

/// One element of a stream.
///
/// ```text
/// XlHeader  LibxlHeader  Libxl(LibxcContext)
///           ImageHeader  DomainHeader  Libxc(…)  { PageData  Pages … }  Libxc(…)  Libxc(End)
///           Libxl(EmulatorContext)  Libxl(End)  [PermissionToGo]
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The xl header with the domain's configuration.
    XlHeader(xl::Header),
    /// The header of libxl's stream.
    LibxlHeader(libxl::StreamHeader),
    /// A record of libxl's stream.
    Libxl(libxl::Record),
    /// The header of the libxc image.
    ImageHeader(libxc::ImageHeader),
    /// The domain header of the libxc image.
    DomainHeader(libxc::DomainHeader),
    /// A record of the libxc image, but for PAGE_DATA.
    Libxc(libxc::Record),
    /// The head of one PAGE_DATA record: all its entries.
    PageData(&'a [libxc::PfnEntry]),
    /// The next pages of that record, at most [`libxc::PAGES_PER_CHUNK`].
    Pages(libxc::PageChunk<'a>),
    /// What the sender of an `xl migrate` adds when it hands the domain over; a save file has none.
    PermissionToGo,
}

impl Event<'_> {
    /// The element's name in the specification.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Self::XlHeader(_) => "xl header".into(),
            Self::LibxlHeader(_) => "libxl header".into(),
            Self::Libxl(record) => record.name(),
            Self::ImageHeader(_) => "libxc image header".into(),
            Self::DomainHeader(_) => "libxc domain header".into(),
            Self::Libxc(record) => record.name(),
            Self::PageData(_) | Self::Pages(_) => "PAGE_DATA".into(),
            Self::PermissionToGo => "permission to go".into(),
        }
    }

    /// What the element holds, field by field.
    pub fn describe(&self) -> Fields {
        match self {
            Self::XlHeader(header) => header.describe(),
            Self::LibxlHeader(header) => header.describe(),
            Self::Libxl(record) => record.describe(),
            Self::ImageHeader(header) => header.describe(),
            Self::DomainHeader(header) => header.describe(),
            Self::Libxc(record) => record.describe(),
            Self::PageData(entries) => {
                let pages = entries.iter().filter(|entry| entry.has_data()).count();
                Fields::new()
                    .with("count", Value::Dec(entries.len() as u64))
                    .with("pages", Value::Dec(pages as u64))
            }
            Self::Pages(chunk) => Fields::new().with("pages", Value::Dec(chunk.entries.len() as u64)),
            Self::PermissionToGo => Fields::new(),
        }
    }
}
