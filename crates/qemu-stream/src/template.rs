use std::collections::HashMap;
use std::io::Read;

use hyperferry_wire::{Encoder, Endian, Error, ErrorKind, Result, StreamPath};

use crate::command::Command;
use crate::configuration::Configuration;
use crate::device_state::{DeviceState, Section};
use crate::ram::{RamBlock, RamStart};
use crate::reader::{Event, StreamReader};
use crate::vmdesc::VmDesc;
use crate::vmstate::value::{FieldError, Tree};

/// What a destination QEMU writes when it has no guest: its dialect, in its own hand.
///
/// Machine name, RAM blocks, the order, ids, versions and field lists of its sections: a stream that repeats
/// them is one that this QEMU loads.
#[derive(Clone, Debug)]
pub struct Template {
    /// The machine.
    pub configuration: Option<Configuration>,
    /// RAM blocks in order, with the section's id and version.
    pub ram: RamStart,
    /// Commands that it sent before its device state.
    pub commands: Vec<Command>,
    /// Its sections, as they are without a guest.
    pub state: DeviceState,
    /// Whether footers follow its sections.
    pub footers: bool,
}

/// Names a section: idstr and instance.
pub type SectionKey = (String, u32);

/// What becomes of sections of the template that no tree was given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// They are written as the template has them.
    AsTemplate,
    /// They are left out: the device keeps the state that it starts with.
    Omit,
}

impl Template {
    /// Reads a template from the stream of a destination that has no guest.
    pub fn from_stream<R: Read>(reader: R) -> Result<Self> {
        let mut reader = StreamReader::new(reader);
        let (mut configuration, mut ram, mut state) = (None, None, None);
        let mut commands = Vec::new();
        let mut footers = false;
        while let Some(event) = reader.next_event()? {
            match event {
                Event::Configuration(found) => configuration = Some(found),
                Event::RamStart(found) => ram = Some(found),
                Event::RamBlock(block) => ram.iter_mut().for_each(|ram| ram.blocks.push(block.clone())),
                Event::Command(found) => commands.push(found),
                Event::RamSectionEnd { footer, .. } => footers = footer,
                Event::DeviceState(found) => state = Some(found),
                Event::Header(_) | Event::RamSection { .. } | Event::RamPages(_) => {}
            }
        }
        match (ram, state) {
            (Some(ram), Some(state)) => Ok(Self { configuration, ram, commands, state, footers }),
            _ => {
                let found = "a stream without RAM".to_owned();
                let kind = ErrorKind::OutOfOrder { found, wanted: "a stream of a whole machine".to_owned() };
                Err(Error::new(StreamPath::root().child("template"), 0, kind))
            }
        }
    }

    /// Exact versioned machine name; empty if the stream does not say.
    pub fn machine(&self) -> &str {
        self.configuration.as_ref().map(|configuration| configuration.machine.as_str()).unwrap_or_default()
    }

    /// RAM blocks in order.
    pub fn blocks(&self) -> &[RamBlock] {
        &self.ram.blocks
    }

    /// The section of that name and instance.
    pub fn section(&self, idstr: &str, instance_id: u32) -> Option<&Section> {
        self.state.section(idstr, instance_id)
    }

    /// The section whose vmsd has that name, wherever the device sits.
    pub fn section_of(&self, vmsd: &str, instance_id: u32) -> Option<&Section> {
        let mut sections = self.state.sections.iter();
        sections.find(|section| section.vmsd() == vmsd && section.instance_id == instance_id)
    }

    /// The device state with the given trees in place of the template's, in the template's order and with its
    /// ids, versions and footers. A tree for a section that the template lacks is an error. If the template
    /// has a description, the result has one too, of its own contents.
    pub fn device_state(
        &self,
        trees: Vec<(SectionKey, Tree)>,
        absent: Absent,
    ) -> std::result::Result<DeviceState, FieldError> {
        let mut trees: HashMap<SectionKey, Tree> = trees.into_iter().collect();
        let mut sections = Vec::new();
        for section in &self.state.sections {
            match trees.remove(&(section.idstr.clone(), section.instance_id)) {
                Some(tree) => sections.push(section.with_tree(tree)),
                None if absent == Absent::AsTemplate => sections.push(section.clone()),
                None => {}
            }
        }
        if let Some((idstr, instance_id)) = trees.into_keys().min() {
            return Err(FieldError {
                place: format!("{idstr} {instance_id}"),
                found: "no such section in the destination".to_owned(),
                wanted: "a destination with that device".to_owned(),
            });
        }
        let vmdesc = self.state.vmdesc.is_some().then(|| VmDesc::of(&sections));
        Ok(DeviceState { sections, vmdesc })
    }

    /// Like [`Template::device_state`], as bytes: sections, end and description.
    pub fn encode_device_state(
        &self,
        trees: Vec<(SectionKey, Tree)>,
        absent: Absent,
    ) -> std::result::Result<Vec<u8>, FieldError> {
        let mut encoder = Encoder::new(Endian::Big);
        self.device_state(trees, absent)?.encode(&mut encoder)?;
        Ok(encoder.into_bytes())
    }
}
