use std::{io, path::PathBuf, process::ExitStatus};

use crate::{home::Fault, qmp};

/// What a fallible step returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Any error of whoever produces or reads a stream; `downcast_ref` finds the original.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a step at one of the ends failed, grouped by what a user can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or a pipe at one end.
    #[error("{path}: {doing}: {source}")]
    File {
        /// The file, or `-`.
        path: PathBuf,
        /// What was being done with it.
        doing: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// QEMU's program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Path of the program.
        program: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// An option of the QEMU command line that we cannot work with.
    #[error("QEMU option {option}: {why}")]
    Option {
        /// The option as it was given.
        option: String,
        /// Why not, and what to do instead.
        why: String,
    },
    /// QEMU ended when it should have gone on.
    #[error("QEMU ended ({status}) while {doing}{}", quoted(stderr))]
    Ended {
        /// What we were waiting for.
        doing: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// QEMU went on and did not do its part in time.
    #[error("QEMU did not finish {doing} within {seconds} s{}", quoted(stderr))]
    Slow {
        /// What we were waiting for.
        doing: &'static str,
        /// How long we waited.
        seconds: u64,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// QEMU goes on but says that a migration failed.
    #[error("QEMU failed {doing}: {desc}{}", quoted(stderr))]
    Migration {
        /// What it was doing.
        doing: &'static str,
        /// Its own words.
        desc: String,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// `cont` was sent and QEMU did not confirm it: the guest may have run for a moment.
    #[error("QEMU was told to run the guest and did not confirm it: {0}")]
    Unconfirmed(Box<Error>),
    /// A QEMU that somebody else started did not do its part as the source of a move.
    #[error("the guest's QEMU: {0}")]
    Guest(String),
    /// The receiver of a guest did not do its part.
    #[error("the destination {0}")]
    Destination(String),
    /// A move came to nothing, and the guest does not run on where it was.
    #[error("{first}; then the guest could not be resumed here: {stranded}")]
    Stranded {
        /// Why the move failed.
        first: String,
        /// Why the guest does not run.
        stranded: Box<Error>,
    },
    /// The receiver of a guest was told to run it, and nobody knows whether it does.
    #[error("the destination was told to run the guest, and it is not known whether it does: {0}")]
    Unreported(Box<Error>),
    /// One of the stretches of a relayed move.
    #[error("{hop}: {source}")]
    Hop {
        /// Which one.
        hop: String,
        /// What was wrong there.
        source: Box<Error>,
    },
    /// The receiver at the far end of a relayed move ended, and has said why.
    #[error("{hop}: the receiver there ended with exit code {code}; its words stand above")]
    FarEnd {
        /// Where it was.
        hop: String,
        /// Its exit code.
        code: u8,
    },
    /// What Xen knows of a guest, in a file that cannot be used.
    #[error("{path}: {fault}")]
    Home {
        /// The file.
        path: PathBuf,
        /// Why not.
        fault: Fault,
    },
    /// The machine protocol.
    #[error(transparent)]
    Qmp(#[from] qmp::Error),
    /// Whoever produced or read the stream failed first; the error is theirs.
    #[error(transparent)]
    Stream(BoxError),
    /// The operating system failed us elsewhere.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }

    pub(crate) fn option(option: &str, why: impl Into<String>) -> Self {
        Self::Option { option: option.to_owned(), why: why.into() }
    }
}

/// QEMU's own words, where it had any.
fn quoted(stderr: &str) -> String {
    match stderr.trim() {
        "" => ", without a word".to_owned(),
        words => format!(":\n{words}"),
    }
}
