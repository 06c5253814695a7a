//! `hyperferry verify`: a strict judge of streams.

use std::io::{self, Read};

use hyperferry_qemu_stream::{self as qemu, DeviceState, VmDesc};
use hyperferry_relay::endpoint::open_input;
use hyperferry_translate::{
    Error as TranslateError,
    source::{Format, peek},
};
use hyperferry_vm_model::checkpoint;
use hyperferry_wire::{Error as WireError, ErrorKind, StreamPath, Strictness};
use hyperferry_xen_stream::{self as xen, hvm, libxc, libxl};
use serde_json::Value;

use crate::{
    args::{Verify, Words},
    dump::{is_qemu, place_sections},
    exit::{self, Error, Result},
};

/// What a judge returns: where the stream ends.
type Judged = std::result::Result<u64, TranslateError>;

/// Bytes before QEMU's state in EMULATOR_CONTEXT: the record's header, emulator_id and index.
const TO_BLOB: u64 = 16;

/// Judges the stream.
pub(super) fn run(arguments: &Verify, words: &Words) -> Result<u8> {
    let input = open_input(&arguments.file)?;
    let (format, end) = judge(input.reader).map_err(|error| Error::NotValid(Box::new(error)))?;
    if words.verbose > 0 {
        say!("{}: a valid {} of {end} bytes", arguments.file.display(), format.name());
    }
    Ok(exit::OK)
}

fn judge(reader: impl Read) -> std::result::Result<(Format, u64), TranslateError> {
    let (format, reader) = peek(reader).map_err(|error| match error {
        TranslateError::Input(error) => WireError::new(StreamPath::root(), 0, ErrorKind::Io(error)).into(),
        other => other,
    })?;
    let format = format.unwrap_or(Format::Xen);
    let end = match format {
        Format::Xen => judge_xen(reader),
        Format::Qemu => judge_qemu(reader),
        Format::Model => judge_checkpoint(reader),
    }?;
    Ok((format, end))
}

fn judge_xen(reader: impl Read) -> Judged {
    let mut reader = xen::StreamReader::new(reader).with_strictness(Strictness::Strict);
    loop {
        let offset = reader.offset();
        let found = match reader.next_event()? {
            None => return Ok(reader.offset()),
            Some(xen::Event::XlHeader(header)) => {
                header.config()?;
                continue;
            }
            Some(xen::Event::Libxl(libxl::Record::EmulatorContext(context))) if is_qemu(&context) => {
                Found::Emulator(context)
            }
            Some(xen::Event::Libxl(record @ libxl::Record::Unknown { .. })) if record.is_mandatory() => {
                Found::Unknown(record.name().into_owned())
            }
            Some(xen::Event::Libxc(record @ libxc::Record::Unknown { .. })) if record.is_mandatory() => {
                Found::Unknown(record.name().into_owned())
            }
            Some(xen::Event::Libxc(libxc::Record::HvmContext(context))) => {
                let unknown = |entry: &&hvm::Entry| matches!(entry.record, hvm::Record::Unknown { .. });
                match context.entries.iter().find(unknown) {
                    Some(entry) => Found::UnknownEntry(entry.record.name().into_owned()),
                    None => continue,
                }
            }
            Some(_) => continue,
        };
        let path = reader.path();
        match found {
            Found::Unknown(name) => {
                let wanted = "a record of the specification, or one marked optional (0x80000000)";
                return Err(WireError::invalid(path, offset, "type", name, wanted).into());
            }
            Found::UnknownEntry(name) => {
                let wanted = "an entry that Xen knows";
                return Err(WireError::invalid(path, offset, "typecode", name, wanted).into());
            }
            Found::Emulator(context) => judge_emulator(&context.blob, offset + TO_BLOB, path)?,
        }
    }
}

/// What a judge looks at more closely.
enum Found {
    Emulator(libxl::EmulatorContext),
    Unknown(String),
    UnknownEntry(String),
}

/// The device model's state decodes, and says the same when written again.
fn judge_emulator(blob: &[u8], offset: u64, path: &StreamPath) -> std::result::Result<(), TranslateError> {
    let state = DeviceState::decode_emulator_context(blob, offset, path.clone())?;
    let again = state.encode_emulator_context()?;
    match again.iter().zip(blob).position(|(left, right)| left != right) {
        None if again.len() == blob.len() => Ok(()),
        at => {
            let at = at.unwrap_or_else(|| again.len().min(blob.len()));
            let byte =
                |bytes: &[u8]| bytes.get(at).map_or("the end".to_owned(), |byte| format!("{byte:#04x}"));
            let (found, wanted) = (byte(blob), byte(&again));
            Err(WireError::invalid(path, offset + at as u64, "device state", found, wanted).into())
        }
    }
}

fn judge_qemu(reader: impl Read) -> Judged {
    let mut reader = qemu::StreamReader::new(reader);
    let mut seen = false;
    loop {
        let offset = reader.offset();
        match reader.next_event()? {
            None => break,
            Some(qemu::Event::DeviceState(state)) => {
                seen = true;
                let (_, end) = place_sections(&state, offset)?;
                if let Some(vmdesc) = &state.vmdesc {
                    agree(&state, vmdesc, end + 1)?;
                }
            }
            Some(_) => {}
        }
    }
    if !seen {
        let kind = ErrorKind::OutOfOrder { found: "the end".to_owned(), wanted: "device state".to_owned() };
        return Err(WireError::new(StreamPath::root(), reader.offset(), kind).into());
    }
    Ok(reader.offset())
}

/// The sections are those that the stream describes, in that order.
fn agree(state: &DeviceState, vmdesc: &VmDesc, offset: u64) -> std::result::Result<(), TranslateError> {
    let described: Value = serde_json::from_str(vmdesc.text()).unwrap_or_default();
    let devices = described.get("devices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut described = devices.iter().filter_map(|device| {
        let name = device.get("name")?.as_str()?;
        Some(format!("{name} {}", device.get("instance_id")?.as_u64()?))
    });
    let mut sections =
        state.sections.iter().map(|section| format!("{} {}", section.idstr, section.instance_id));
    loop {
        let (found, wanted) = (sections.next(), described.next());
        if found.is_none() && wanted.is_none() {
            return Ok(());
        }
        if found != wanted {
            let path = StreamPath::root().child("VMDESCRIPTION");
            let words = |name: Option<String>| name.unwrap_or_else(|| "no more sections".to_owned());
            return Err(WireError::invalid(&path, offset, "devices", words(wanted), words(found)).into());
        }
    }
}

fn judge_checkpoint(reader: impl Read) -> Judged {
    let mut counted = Counted { inner: reader, count: 0 };
    let (mut reader, _) = checkpoint::Reader::new(&mut counted)?;
    while reader.next_item()?.is_some() {}
    drop(reader);
    let end = counted.count;
    let mut rest = Vec::new();
    counted.take(1).read_to_end(&mut rest).map_err(TranslateError::Input)?;
    if rest.is_empty() {
        return Ok(end);
    }
    let path = StreamPath::root().child("checkpoint");
    Err(WireError::new(path, end, ErrorKind::Trailing { found: 1 }).into())
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}
