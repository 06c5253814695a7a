//! What a Xen stream says: every value by its place, so that two streams can be compared.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use hyperferry_qemu_stream::{
    DeviceState,
    vmstate::value::{Tree, Value},
};
use hyperferry_wire::StreamPath;
use hyperferry_xen_stream::{Event, StreamReader, describe::Fields, libxl};

/// Each value by its place, and each frame's last contents.
#[derive(Debug, Default)]
pub struct Said {
    /// `HVM_CONTEXT.RTC[0].cmos_data`, and what stands there.
    pub values: BTreeMap<String, String>,
    /// Checksums of pages, by their page frame.
    pub frames: BTreeMap<u64, u32>,
}

/// A value that two streams have differently: its place, the one and the other.
pub type Difference<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

impl Said {
    /// Reads a stream to its end.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let mut said = Self::default();
        let mut reader = StreamReader::new(bytes);
        let mut order = Vec::new();
        while let Some(event) = reader.next_event()? {
            match &event {
                Event::Pages(chunk) => {
                    for (entry, page) in chunk.entries.iter().zip(chunk.data.chunks(4096)) {
                        said.frames.insert(entry.pfn(), crc32fast::hash(page));
                    }
                    continue;
                }
                Event::PageData(_) => continue,
                Event::XlHeader(header) => {
                    said.values.insert("xl config".to_owned(), header.text().to_owned());
                }
                Event::Libxl(libxl::Record::EmulatorContext(record)) => {
                    let state = DeviceState::decode_emulator_context(&record.blob, 0, StreamPath::root())?;
                    let mut sections = Vec::new();
                    for section in &state.sections {
                        let place = format!("EMULATOR_CONTEXT.{} {}", section.idstr, section.instance_id);
                        sections.push(place.clone());
                        said.values.insert(format!("{place}.section_id"), section.section_id.to_string());
                        said.values.insert(format!("{place}.version_id"), section.version_id.to_string());
                        said.tree(&place, &section.tree);
                    }
                    said.values.insert("EMULATOR_CONTEXT".to_owned(), sections.join(" "));
                    order.push(event.name().into_owned());
                    continue;
                }
                _ => {}
            }
            said.flatten(&event.name(), &event.describe());
            order.push(event.name().into_owned());
        }
        said.values.insert("records".to_owned(), order.join(" "));
        Ok(said)
    }

    fn flatten(&mut self, place: &str, fields: &Fields) {
        for line in fields.to_string().lines() {
            let (name, value) = line.split_once(" = ").unwrap_or((line, ""));
            self.values.insert(format!("{place}.{}", name.trim()), value.to_owned());
        }
    }

    fn tree(&mut self, place: &str, tree: &Tree) {
        for (name, value) in &tree.fields {
            self.value(format!("{place}.{name}"), value);
        }
        for part in &tree.subsections {
            let place = format!("{place}.{}", part.name);
            self.values.insert(format!("{place}.version"), part.version.to_string());
            self.tree(&place, &part.tree);
        }
    }

    fn value(&mut self, place: String, value: &Value) {
        match value {
            Value::Struct(tree) => self.tree(&place, tree),
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    self.value(format!("{place}[{index}]"), value);
                }
            }
            Value::Bytes(bytes) => {
                for (index, byte) in bytes.iter().enumerate() {
                    self.values.insert(format!("{place}[{index:#x}]"), byte.to_string());
                }
            }
            value => drop(self.values.insert(place, format!("{value:?}"))),
        }
    }

    /// What another stream says otherwise, memory aside.
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<Difference<'a>> {
        let places: BTreeSet<_> = self.values.keys().chain(other.values.keys()).collect();
        let both = |place: &'a String| {
            let (was, is) = (self.values.get(place), other.values.get(place));
            (was != is).then(|| (place.as_str(), was.map(String::as_str), is.map(String::as_str)))
        };
        places.into_iter().filter_map(both).collect()
    }
}
