use hyperferry_qemu_stream::FieldError;

use crate::report::{Finding, Report};

/// What a fallible translation returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a translation did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The stream is at fault.
    #[error(transparent)]
    Stream(#[from] hyperferry_wire::Error),
    /// The input cannot be read.
    #[error("{0}")]
    Input(std::io::Error),
    /// A checkpoint is at fault.
    #[error(transparent)]
    Checkpoint(#[from] hyperferry_vm_model::checkpoint::Error),
    /// The stream is sound and we do not translate it; nothing was touched.
    #[error("{}", list(.0))]
    Refused(Box<Report>),
    /// A record that every stream of this kind has is missing.
    #[error("{record} is missing{}; {why}", instance.map(|id| format!(" for vCPU {id}")).unwrap_or_default())]
    Missing {
        /// The record.
        record: &'static str,
        /// The vCPU whose record it is.
        instance: Option<u32>,
        /// What it would have said.
        why: &'static str,
    },
    /// A QEMU stream through a pipe, for a destination that has to know the devices before memory.
    #[error(
        "a QEMU stream tells at its end which devices the guest has, and a destination needs them first: give it \
         as a file instead of a pipe"
    )]
    DevicesUnknown,
    /// A checkpoint with more memory outside RAM than any that we write.
    #[error(
        "the checkpoint holds more than 24 MiB of memory outside the guest's RAM (page {address:#x}): make it anew"
    )]
    PagesOutsideRam {
        /// The first page for which there is no room.
        address: u64,
    },
    /// A section of the source QEMU lacks a field that every machine of its kind has.
    #[error("the stream's device state is not that of a pc machine: {0}")]
    Section(FieldError),
    /// The destination QEMU's own stream lacks something that every machine of its kind has.
    #[error("the destination's template does not fit: {0}")]
    Template(#[from] FieldError),
    /// The destination QEMU's own stream lacks a section.
    #[error(
        "the destination's template has no section {0}; it is not a pc machine as `hyperferry qemu-args` asks for"
    )]
    NoSection(String),
}

fn list(report: &Report) -> String {
    report.refusals().map(Finding::to_string).collect::<Vec<_>>().join("\n")
}

impl Error {
    /// Refuses with what the report holds, if it holds a refusal that nobody allowed.
    pub fn unless_allowed(report: &Report) -> Result<()> {
        if report.refusals().next().is_none() {
            return Ok(());
        }
        Err(Self::Refused(Box::new(report.clone())))
    }
}
