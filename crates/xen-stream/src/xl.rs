//! The xl header: what `xl save` and `xl migrate` put in front of libxl's stream.
//!
//! Source: Xen `tools/xl/xl.h`, `tools/xl/xl_saverestore.c`, `tools/xl/xl_vmcontrol.c` (4.23-unstable), checked
//! on a save file of 4.17.7.
//!
//! ```text
//! magic 32 | byteorder u32 | mandatory_flags u32 | optional_flags u32 | optional_data_len u32
//! optional data: config_len u32 | config | whatever later versions add
//! ```

use std::io::Read;

use hyperferry_wire::{Cursor, Encoder, Endian, Error, ErrorKind, Result, Source, StreamPath, Strictness};

use crate::describe::{Fields, Value};

const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
const BYTEORDER: u32 = 0x0102_0304;
pub(crate) const HEADER_LENGTH: usize = 48;

/// Optional data that we accept: the configuration of a domain with hundreds of devices is below 256 KiB.
pub const OPTIONAL_DATA_LIMIT: u32 = 1 << 20;

/// What the sender of an `xl migrate` writes behind the stream once the receiver has acknowledged it.
pub const PERMISSION_TO_GO: &[u8; 44] = b"domain is yours, you are cleared to unpause\0";

/// Offset of the configuration in a stream: behind the header and `config_len`.
const CONFIG_OFFSET: u64 = HEADER_LENGTH as u64 + 4;

/// The xl header with the domain's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// What a reader must understand: [`Header::JSON`], [`Header::STREAM_V2`].
    pub mandatory_flags: u32,
    /// What a reader may ignore.
    pub optional_flags: u32,
    /// The configuration as it was sent, its closing NUL included; `None` when there is none.
    pub config: Option<Vec<u8>>,
    /// Optional data behind the configuration, which readers skip.
    pub extra: Vec<u8>,
}

impl Header {
    /// [`Header::mandatory_flags`]: the configuration is libxl's JSON, not the text of a configuration file.
    pub const JSON: u32 = 1 << 0;
    /// [`Header::mandatory_flags`]: libxl's stream has records (Xen 4.6 and newer).
    pub const STREAM_V2: u32 = 1 << 1;

    /// A header as current senders write it.
    pub fn with_config(config: &serde_json::Value) -> Self {
        Self::with_text(&format!("{config:#}\n"))
    }

    /// A header as current senders write it, around the JSON of a configuration.
    pub fn with_text(config: &str) -> Self {
        let mut text = config.as_bytes().to_vec();
        text.push(0);
        Self {
            mandatory_flags: Self::JSON | Self::STREAM_V2,
            optional_flags: 0,
            config: Some(text),
            extra: Vec::new(),
        }
    }

    /// The configuration as text, without its closing NUL; empty where there is none, or where it is no text.
    pub fn text(&self) -> &str {
        let config = self.config.as_deref().unwrap_or_default();
        std::str::from_utf8(config.strip_suffix(&[0]).unwrap_or(config)).unwrap_or_default()
    }

    /// The configuration, read as JSON.
    pub fn config(&self) -> Result<serde_json::Value> {
        let path = StreamPath::root().child("xl config");
        let unreadable = |what: &str, why: &str| {
            let kind = ErrorKind::Unreadable { what: what.to_owned(), why: why.to_owned() };
            Error::new(path.clone(), CONFIG_OFFSET, kind)
        };
        let Some(config) = &self.config else {
            return Err(unreadable("no configuration", "save the domain again without a configuration file"));
        };
        if self.mandatory_flags & Self::JSON == 0 {
            let why = "written by Xen 4.3 or older; restore it there and save it with a current xl";
            return Err(unreadable("configuration in xl.cfg syntax", why));
        }
        let text = config.strip_suffix(&[0]).unwrap_or(config);
        serde_json::from_slice(text).map_err(|error| {
            let at = CONFIG_OFFSET + offset_of(text, error.line(), error.column());
            Error::invalid(&path, at, "config", error, "JSON of libxl_domain_config")
        })
    }

    /// Whether libxl's stream follows in a form that can be read; if not, why and what to do.
    pub(crate) fn check_readable(&self) -> Result<()> {
        let unreadable = |at: u64, what: String, why: &str| {
            let kind = ErrorKind::Unreadable { what, why: why.to_owned() };
            Err(Error::new(path(), at, kind))
        };
        let unknown = self.mandatory_flags & !(Self::JSON | Self::STREAM_V2);
        if unknown != 0 {
            let why = "only a newer xl knows them, and they must be understood";
            return unreadable(36, format!("mandatory_flags {unknown:#x}"), why);
        }
        if self.mandatory_flags & Self::STREAM_V2 == 0 {
            let why = "written by Xen 4.5 or older; restore it with Xen 4.6 or newer and save it again";
            return unreadable(36, "legacy stream without records".to_owned(), why);
        }
        Ok(())
    }

    pub(crate) fn read<R: Read>(source: &mut Source<R>, strictness: Strictness) -> Result<Self> {
        let path = path();
        let magic = source.take_array::<32>(&path, "magic")?;
        if &magic != MAGIC {
            let found = magic.escape_ascii();
            return Err(Error::invalid(&path, 0, "magic", found, MAGIC.escape_ascii()));
        }
        let fixed = source.take_array::<16>(&path, "header")?;
        let mut cursor = Cursor::new(&fixed, 32, path.clone(), Endian::Little);
        match cursor.u32("byteorder")? {
            BYTEORDER => {}
            swapped if swapped.swap_bytes() == BYTEORDER => {
                let what = "big-endian stream".to_owned();
                let why = "written on a big-endian machine; only x86 domains can be moved".to_owned();
                return Err(Error::new(path, 32, ErrorKind::Unreadable { what, why }));
            }
            other => return Err(cursor.invalid("byteorder", 4, other, format_args!("{BYTEORDER:#x}"))),
        }
        let mandatory_flags = cursor.u32("mandatory_flags")?;
        let optional_flags = cursor.u32("optional_flags")?;
        if strictness == Strictness::Strict && optional_flags != 0 {
            return Err(cursor.invalid("optional_flags", 4, optional_flags, "0x0"));
        }
        let length = cursor.u32("optional_data_len")?;
        cursor.finish()?;
        Source::<R>::limit(&path, 44, "optional_data_len", length.into(), OPTIONAL_DATA_LIMIT.into())?;

        let mut header = Self { mandatory_flags, optional_flags, ..Self::default() };
        if length > 0 {
            let offset = source.offset();
            let size = usize::try_from(length).unwrap_or(usize::MAX);
            let data = source.take(&path, "optional data", size)?;
            let mut cursor = Cursor::new(&data, offset, path, Endian::Little);
            let config_len = cursor.u32("config_len")?;
            let config_len = usize::try_from(config_len).unwrap_or(usize::MAX);
            header.config = Some(cursor.bytes("config", config_len)?.to_vec());
            header.extra = cursor.rest().to_vec();
        }
        Ok(header)
    }

    pub(crate) fn encode(&self, encoder: &mut Encoder) {
        let mut data = Encoder::new(Endian::Little);
        if self.config.is_some() || !self.extra.is_empty() {
            let config = self.config.as_deref().unwrap_or_default();
            data.u32(saturated(config.len())).bytes(config).bytes(&self.extra);
        }
        encoder
            .bytes(MAGIC)
            .u32(BYTEORDER)
            .u32(self.mandatory_flags)
            .u32(self.optional_flags)
            .u32(saturated(data.len()))
            .bytes(data.as_bytes());
    }

    /// What the header holds, field by field.
    pub fn describe(&self) -> Fields {
        let config = self.config.as_deref().unwrap_or_default();
        Fields::new()
            .with("mandatory_flags", Value::Text(flags(self.mandatory_flags)))
            .with("optional_flags", Value::Hex(self.optional_flags.into()))
            .with("config_len", Value::Dec(config.len() as u64))
            .with("config_crc32", Value::Hex(crc32fast::hash(config).into()))
            .with("extra", Value::Bytes(self.extra.clone()))
    }
}

pub(crate) fn path() -> StreamPath {
    StreamPath::root().child("xl header")
}

/// A length over 4 GiB cannot be written; the writer's limit refuses it before it comes here.
fn saturated(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn flags(flags: u32) -> String {
    let mut names = format!("{flags:#x}");
    for (bit, name) in [(Header::JSON, " JSON"), (Header::STREAM_V2, " STREAMv2")] {
        if flags & bit != 0 {
            names.push_str(name);
        }
    }
    names
}

/// Byte offset of a line and column, both counted from 1.
fn offset_of(text: &[u8], line: usize, column: usize) -> u64 {
    let before: usize =
        text.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    (before + column.saturating_sub(1)) as u64
}
