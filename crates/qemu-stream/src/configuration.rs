//! CONFIGURATION (0x07): the machine that the stream was saved from, and what the stream relies on.
//!
//! Source: `migration/savevm.c` (`vmstate_configuration`), QEMU 7.2 and 10.0. Page: `formats/qemu/stream.md`.

use std::io::Read;

use hyperferry_wire::{Encoder, Error, ErrorKind, Result, StreamPath};
use serde::{Deserialize, Serialize};

use crate::section::{SUBSECTION, SectionKind, name_from, put_name};
use crate::window::Window;

/// Longest machine name taken. QEMU's longest is under 40 characters.
pub const MACHINE_NAME_LIMIT: u64 = 256;

/// Most capabilities taken. QEMU 10.0 defines 25.
pub const CAPABILITY_LIMIT: u64 = 256;

/// The CONFIGURATION section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Exact versioned machine name, such as `pc-i440fx-10.0`.
    pub machine: String,
    /// What follows it, in stream order.
    pub subsections: Vec<ConfigurationSubsection>,
}

/// An optional part of the configuration, sent when it differs from the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigurationSubsection {
    /// `configuration/capabilities`: those that the destination must have too.
    Capabilities(Vec<String>),
    /// `configuration/target-page-bits`: sent when a page is not 4 KiB.
    TargetPageBits(u32),
    /// `configuration/uuid`: sent with the capability `validate-uuid`.
    Uuid([u8; 16]),
}

impl ConfigurationSubsection {
    fn name(&self) -> &'static str {
        match self {
            Self::Capabilities(_) => "configuration/capabilities",
            Self::TargetPageBits(_) => "configuration/target-page-bits",
            Self::Uuid(_) => "configuration/uuid",
        }
    }
}

/// Capabilities that change the framing or the RAM format into one that is not read here.
const UNREADABLE_CAPABILITIES: [&str; 2] = ["multifd", "x-ignore-shared"];

/// All subsections are at version 1.
const SUBSECTION_VERSION: u32 = 1;

impl Configuration {
    /// Reads what follows the type byte.
    pub(crate) fn read<R: Read>(window: &mut Window<R>) -> Result<Self> {
        let path = StreamPath::root().child("CONFIGURATION");
        let at = window.offset();
        let length = window.frame(&path, "len", 4)?.u32("len")?;
        if u64::from(length) > MACHINE_NAME_LIMIT {
            let kind =
                ErrorKind::Limit { field: "len".to_owned(), found: length.into(), limit: MACHINE_NAME_LIMIT };
            return Err(Error::new(path, at, kind));
        }
        let machine = read_text(window, &path, "name", length as usize)?;
        let mut subsections = Vec::new();
        while window.peek(&path)? == Some(SUBSECTION) {
            subsections.push(ConfigurationSubsection::read(window, &path)?);
        }
        Ok(Self { machine, subsections })
    }

    /// Appends type byte and body.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.u8(SectionKind::Configuration.byte());
        encoder.u32(u32::try_from(self.machine.len()).unwrap_or(u32::MAX)).bytes(self.machine.as_bytes());
        for subsection in &self.subsections {
            subsection.encode(encoder);
        }
    }

    /// The capabilities that the stream relies on.
    pub fn capabilities(&self) -> impl Iterator<Item = &str> {
        self.subsections
            .iter()
            .flat_map(|subsection| match subsection {
                ConfigurationSubsection::Capabilities(names) => names.as_slice(),
                _ => &[],
            })
            .map(String::as_str)
    }

    /// The guest's UUID, in the order of its text.
    pub fn uuid(&self) -> Option<[u8; 16]> {
        self.subsections.iter().find_map(|subsection| match subsection {
            ConfigurationSubsection::Uuid(uuid) => Some(*uuid),
            _ => None,
        })
    }
}

impl ConfigurationSubsection {
    fn read<R: Read>(window: &mut Window<R>, path: &StreamPath) -> Result<Self> {
        let at = window.offset();
        let length = usize::from(window.frame(path, "subsection", 2)?.peek().get(1).copied().unwrap_or(0));
        let name = read_text(window, path, "subsection", length)?;
        let path = path.child(&name);
        let version = window.frame(&path, "version", 4)?.u32("version")?;
        if version != SUBSECTION_VERSION {
            return Err(Error::invalid(&path, window.offset() - 4, "version", version, SUBSECTION_VERSION));
        }
        match name.as_str() {
            "configuration/capabilities" => {
                let at = window.offset();
                let count = window.frame(&path, "caps_count", 4)?.u32("caps_count")?;
                if u64::from(count) > CAPABILITY_LIMIT {
                    let field = "caps_count".to_owned();
                    let kind = ErrorKind::Limit { field, found: count.into(), limit: CAPABILITY_LIMIT };
                    return Err(Error::new(path, at, kind));
                }
                let mut names = Vec::new();
                for _ in 0..count {
                    let at = window.offset();
                    let length = usize::from(window.frame(&path, "capability", 1)?.u8("capability")?);
                    let name = read_text(window, &path, "capability", length)?;
                    if UNREADABLE_CAPABILITIES.contains(&name.as_str()) {
                        return Err(Error::new(path, at, unreadable_capability(&name)));
                    }
                    names.push(name);
                }
                Ok(Self::Capabilities(names))
            }
            "configuration/target-page-bits" => {
                let bits = window.frame(&path, "target_page_bits", 4)?.u32("target_page_bits")?;
                if bits != 12 {
                    let at = window.offset() - 4;
                    return Err(Error::invalid(&path, at, "target_page_bits", bits, "12 (4 KiB pages)"));
                }
                Ok(Self::TargetPageBits(bits))
            }
            "configuration/uuid" => Ok(Self::Uuid(window.frame(&path, "uuid", 16)?.array("uuid")?)),
            _ => {
                let wanted = "configuration/{capabilities, target-page-bits, uuid}";
                Err(Error::invalid(&path, at, "subsection", name, wanted))
            }
        }
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.u8(SUBSECTION);
        put_name(encoder, self.name());
        encoder.u32(SUBSECTION_VERSION);
        match self {
            Self::Capabilities(names) => {
                encoder.u32(u32::try_from(names.len()).unwrap_or(u32::MAX));
                for name in names {
                    put_name(encoder, name);
                }
            }
            Self::TargetPageBits(bits) => {
                encoder.u32(*bits);
            }
            Self::Uuid(uuid) => {
                encoder.bytes(uuid);
            }
        }
    }
}

fn unreadable_capability(name: &str) -> ErrorKind {
    let why = match name {
        "multifd" => "its pages travel on other connections; switch the capability off at the source",
        _ => "shared RAM is left out of the stream; switch the capability off at the source",
    };
    ErrorKind::Unreadable { what: format!("capability {name}"), why: why.to_owned() }
}

fn read_text<R: Read>(
    window: &mut Window<R>,
    path: &StreamPath,
    field: &str,
    length: usize,
) -> Result<String> {
    let mut cursor = window.frame(path, field, length)?;
    name_from(&mut cursor, field, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperferry_wire::Endian;

    fn round_trip(configuration: &Configuration) -> Vec<u8> {
        let mut encoder = Encoder::new(Endian::Big);
        configuration.encode(&mut encoder);
        let bytes = encoder.into_bytes();
        let mut window = Window::new(&bytes[1..]);
        assert_eq!(&Configuration::read(&mut window).unwrap(), configuration);
        assert_eq!(window.offset(), bytes.len() as u64 - 1);
        bytes
    }

    #[test]
    fn machine_name_as_captured_from_7_2() {
        let configuration = Configuration { machine: "pc-i440fx-7.2".to_owned(), subsections: Vec::new() };
        assert_eq!(round_trip(&configuration), b"\x07\0\0\0\x0dpc-i440fx-7.2");
    }

    #[test]
    fn every_subsection_round_trips() {
        let subsections = vec![
            ConfigurationSubsection::Capabilities(vec!["events".to_owned(), "xbzrle".to_owned()]),
            ConfigurationSubsection::TargetPageBits(12),
            ConfigurationSubsection::Uuid([7; 16]),
        ];
        round_trip(&Configuration { machine: "x".to_owned(), subsections });
    }

    #[test]
    fn a_capability_that_moves_the_pages_elsewhere_is_refused_by_name() {
        for name in UNREADABLE_CAPABILITIES {
            let subsections = vec![ConfigurationSubsection::Capabilities(vec![name.to_owned()])];
            let mut encoder = Encoder::new(Endian::Big);
            Configuration { machine: "x".to_owned(), subsections }.encode(&mut encoder);
            let error = Configuration::read(&mut Window::new(&encoder.as_bytes()[1..])).unwrap_err();
            assert!(error.to_string().contains(&format!("capability {name}: ")), "{error}");
        }
    }

    #[test]
    fn lengths_are_judged_before_they_are_used() {
        let error = Configuration::read(&mut Window::new(&[0xff; 4][..])).unwrap_err();
        assert_eq!(error.to_string(), "CONFIGURATION @0x0: len: found 4294967295, wanted at most 256");
    }
}
