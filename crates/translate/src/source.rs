//! Any input that a VM can be read from, told apart by its first bytes.

use std::io::{Chain, Cursor, Read};

use hyperferry_qemu_stream::StreamReader as QemuStreamReader;
use hyperferry_vm_model::{
    PAGE_SIZE, Vm,
    checkpoint::{self, Item},
};
use hyperferry_xen_stream::StreamReader;

use crate::{
    Error, Result,
    qemu::{self, args},
    refusal::Policy,
    report::Report,
    xen::{HeldPages, Intake, Taken},
};

/// The formats that a VM can be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Xen save file or migration stream.
    Xen,
    /// A QEMU migration stream.
    Qemu,
    /// Our own checkpoint.
    Model,
}

/// Bytes that tell a format.
pub const MAGIC_LENGTH: usize = 16;

impl Format {
    /// Tells a format by its first bytes.
    pub fn detect(magic: &[u8]) -> Option<Self> {
        if magic.starts_with(b"Xen saved domain") {
            Some(Self::Xen)
        } else if magic.starts_with(b"QEVM") {
            Some(Self::Qemu)
        } else if magic.starts_with(&checkpoint::MAGIC) {
            Some(Self::Model)
        } else {
            None
        }
    }

    /// What a user calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xen => "Xen save stream",
            Self::Qemu => "QEMU migration stream",
            Self::Model => "hyperferry checkpoint",
        }
    }
}

/// An input with its first bytes put back.
pub type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// Takes the first bytes of an input, tells its format by them, and puts them back.
pub fn peek<R: Read>(mut reader: R) -> Result<(Option<Format>, Peeked<R>)> {
    let mut magic = Vec::with_capacity(MAGIC_LENGTH);
    (&mut reader).take(MAGIC_LENGTH as u64).read_to_end(&mut magic).map_err(Error::Input)?;
    Ok((Format::detect(&magic), Cursor::new(magic).chain(reader)))
}

/// Reads an input to its end if its beginning says too little: QEMU's streams name the devices last.
pub fn survey<R: Read>(reader: R) -> Result<qemu::Hint> {
    match peek(reader)? {
        (Some(Format::Qemu), reader) => qemu::survey(reader, qemu::Hint::default()),
        (Some(Format::Model), reader) => {
            let checkpoint = Checkpoint::open(reader, Vm::default())?;
            let mut hint = qemu::Hint::default();
            if checkpoint.tells_little() {
                hint.vm = checkpoint.pump(|_, _| Ok(()))?.vm;
            }
            Ok(hint)
        }
        _ => Ok(qemu::Hint::default()),
    }
}

/// A VM that is being read: what is known before memory, then memory, then the state.
#[derive(Debug)]
pub enum Source<R: Read> {
    /// From a Xen stream.
    Xen(Box<Intake<Peeked<R>>>),
    /// From a QEMU stream.
    Qemu(Box<qemu::Intake<Peeked<R>>>),
    /// From a checkpoint.
    Model(Box<Checkpoint<Peeked<R>>>),
}

impl<R: Read> Source<R> {
    /// Reads up to memory, and refuses what can be refused by then.
    pub fn open(reader: R, policy: Policy) -> Result<Self> {
        Self::open_with(reader, policy, qemu::Hint::default())
    }

    /// The same, with what is known of a QEMU's guest beforehand.
    pub fn open_with(reader: R, policy: Policy, hint: qemu::Hint) -> Result<Self> {
        match peek(reader)? {
            (Some(Format::Model), reader) => Ok(Self::Model(Box::new(Checkpoint::open(reader, hint.vm)?))),
            (Some(Format::Qemu), reader) => {
                let intake = qemu::Intake::open(QemuStreamReader::new(reader), hint, policy)?;
                Ok(Self::Qemu(Box::new(intake)))
            }
            // A stream of no known kind is given to the Xen reader, which says what it found in place of the magic.
            (_, reader) => Ok(Self::Xen(Box::new(Intake::open(StreamReader::new(reader), policy)?))),
        }
    }

    /// The same source of a sender that waits for an answer: it reads no byte behind the end.
    ///
    /// A checkpoint has no sender, and a QEMU stream that describes itself is read to the end of its description.
    #[must_use]
    pub fn live(self) -> Self {
        match self {
            Self::Xen(intake) => Self::Xen(Box::new(intake.live())),
            other @ (Self::Qemu(_) | Self::Model(_)) => other,
        }
    }

    /// What is known before memory.
    pub fn outline(&self) -> &Vm {
        match self {
            Self::Xen(intake) => intake.outline(),
            Self::Qemu(intake) => intake.outline(),
            Self::Model(checkpoint) => &checkpoint.outline,
        }
    }

    /// Reads the rest; `page_lane` gets the guest-physical addresses of RAM pages and the pages.
    pub fn pump(self, page_lane: impl FnMut(&[u64], &[u8]) -> Result<()>) -> Result<Taken> {
        match self {
            Self::Xen(intake) => intake.pump(page_lane),
            Self::Qemu(intake) => intake.pump(page_lane),
            Self::Model(checkpoint) => checkpoint.pump(page_lane),
        }
    }
}

/// A checkpoint that is being read.
#[derive(Debug)]
pub struct Checkpoint<R: Read> {
    reader: checkpoint::Reader<R>,
    outline: Vm,
}

impl<R: Read> Checkpoint<R> {
    /// What is known beforehand, if it is anything, takes the place of what the file says first.
    fn open(reader: R, known: Vm) -> Result<Self> {
        let (reader, outline) = checkpoint::Reader::new(reader)?;
        let outline = if known.vcpus.is_empty() { outline } else { known };
        Ok(Self { reader, outline })
    }

    /// It was made of a stream that told its devices last, and nobody had known them before.
    fn tells_little(&self) -> bool {
        args::know_devices(&self.outline).is_err()
    }

    fn pump(mut self, mut page_lane: impl FnMut(&[u64], &[u8]) -> Result<()>) -> Result<Taken> {
        let layout = self.outline.memory.clone();
        let mut held = HeldPages::default();
        let (mut vm, mut pages) = (None, 0);
        while let Some(item) = self.reader.next_item()? {
            match item {
                Item::State(state) => vm = Some(*state),
                Item::Pages { addresses, data } => {
                    pages += addresses.len() as u64;
                    if addresses.iter().all(|address| layout.ram_offset(*address).is_some()) {
                        page_lane(&addresses, data)?;
                        continue;
                    }
                    for (address, page) in addresses.iter().zip(data.chunks(hyperferry_wire::PAGE_SIZE)) {
                        match layout.ram_offset(*address) {
                            Some(_) => page_lane(&[*address], page)?,
                            None => held.put(address / PAGE_SIZE, page),
                        }
                    }
                }
            }
        }
        // None of ours holds that many; a page that has no room is not lost in silence.
        if let Some(pfn) = held.overflow() {
            return Err(Error::PagesOutsideRam { address: pfn.saturating_mul(PAGE_SIZE) });
        }
        // The reader ends only after a state.
        Ok(Taken { vm: vm.unwrap_or(self.outline), held, report: Report::default(), pages })
    }
}

/// Writes a checkpoint as memory comes in.
#[derive(Debug)]
pub struct CheckpointSink<W: std::io::Write>(checkpoint::Writer<W>);

impl<W: std::io::Write> CheckpointSink<W> {
    /// Starts with what is known before memory.
    pub fn new(out: W, outline: &Vm) -> Result<Self> {
        Ok(Self(checkpoint::Writer::new(out, outline)?))
    }

    /// Writes pages of RAM: one address each, and the pages in the same order.
    pub fn pages(&mut self, addresses: &[u64], data: &[u8]) -> Result<()> {
        Ok(self.0.pages(addresses, data)?)
    }

    /// Writes the pages outside RAM and the state; gives the output back.
    pub fn finish(mut self, vm: &Vm, held: &HeldPages) -> Result<W> {
        for (pfn, page) in held.iter() {
            self.0.pages(&[pfn.saturating_mul(PAGE_SIZE)], page)?;
        }
        for pfn in held.zeros() {
            self.0.pages(&[pfn.saturating_mul(PAGE_SIZE)], &[0; hyperferry_wire::PAGE_SIZE])?;
        }
        Ok(self.0.finish(vm)?)
    }
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::MemoryLayout;

    use super::*;

    #[test]
    fn a_checkpoint_is_a_source_like_any_other() {
        let outline = Vm { memory: MemoryLayout::split(1 << 20, 0xf000_0000), ..Vm::default() };
        let vm = Vm { origin: "Xen 4.17".into(), ..outline.clone() };
        let mut sink = CheckpointSink::new(Vec::new(), &outline).unwrap();
        sink.pages(&[0x1000], &[1; 4096]).unwrap();
        let mut held = HeldPages::default();
        held.put(0xfc000, &[2; 4096]);
        let bytes = sink.finish(&vm, &held).unwrap();

        let source = Source::open(bytes.as_slice(), Policy::default()).unwrap();
        assert_eq!(source.outline(), &outline);
        let mut ram = Vec::new();
        let taken = source.pump(|addresses, data| {
            ram.push((addresses.to_vec(), data[0]));
            Ok(())
        });
        let taken = taken.unwrap();
        assert_eq!(ram, [(vec![0x1000], 1)]);
        assert_eq!(taken.held.page(0xfc000).unwrap()[0], 2);
        assert_eq!(taken.vm, vm);
    }

    #[test]
    fn what_is_no_stream_at_all_is_named_by_what_was_found() {
        let error = Source::open(&b"#!/bin/sh\necho no stream here, not at all\n"[..], Policy::default())
            .unwrap_err();
        assert!(error.to_string().starts_with("xl header @0x0: magic: found #!/bin/sh"), "{error}");
    }
}
