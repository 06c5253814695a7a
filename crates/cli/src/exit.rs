//! From what went wrong to the exit code, in one place. The page for users is `docs/exit-codes.md`.

use std::{fmt, io, process::ExitCode};

use hyperferry_translate::Error as TranslateError;
use hyperferry_vm_model::checkpoint;
use hyperferry_wire::ErrorKind;

/// All went well.
pub(crate) const OK: u8 = 0;
/// `diff` found a difference.
pub(crate) const DIFFERENT: u8 = 1;
/// The command line makes no sense; clap uses the same code.
pub(crate) const USAGE: u8 = 2;
/// The stream is not what its format says.
pub(crate) const INVALID: u8 = 3;
/// The stream is sound and is not translated; nothing was touched.
pub(crate) const UNSUPPORTED: u8 = 4;
/// Something failed on the way; the source is intact.
pub(crate) const FAILED: u8 = 5;
/// The guest may have run on the destination.
pub(crate) const UNKNOWN: u8 = 6;

/// What a command returns.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Arguments that each make sense, and not together.
    #[error("{0}")]
    Usage(String),
    /// A stream that a strict judge does not accept.
    #[error(transparent)]
    NotValid(Box<TranslateError>),
    /// The libraries below.
    #[error(transparent)]
    Relay(#[from] hyperferry_relay::Error),
    /// KVM's state or the KVM of this host.
    #[error(transparent)]
    Kvm(#[from] hyperferry_kvm_state::Error),
    /// What was asked for does not exist yet, or not for this guest.
    #[error("{0}")]
    Unsupported(String),
    /// Standard output or a report file.
    #[error("{path}: {source}")]
    Output {
        /// Where to.
        path: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// This host lacks something.
    #[error("{0}")]
    Host(String),
    /// QEMU ended and said that it failed.
    #[error("{0}")]
    Ended(String),
    /// The guest ran, and what became of it is not known.
    #[error("the guest ran, and its QEMU is out of reach: {0}")]
    Lost(hyperferry_relay::Error),
    /// We were told to stop before the guest ran.
    #[error("stopped by {0}; nothing was changed at the source")]
    Interrupted(&'static str),
}

impl Error {
    /// A fault in standard output.
    pub(crate) fn stdout(source: io::Error) -> Self {
        Self::Output { path: "standard output".to_owned(), source }
    }

    /// Whether whoever reads our output has had enough, which is no fault.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::NotValid(error) => match of_translation(error) {
                UNSUPPORTED => INVALID,
                code => code,
            },
            Self::Relay(error) => of_relay(error),
            Self::Unsupported(_) => UNSUPPORTED,
            Self::Lost(_) => UNKNOWN,
            Self::Kvm(hyperferry_kvm_state::Error::Field { .. }) => UNSUPPORTED,
            Self::Kvm(_) | Self::Output { .. } | Self::Host(_) | Self::Ended(_) | Self::Interrupted(_) => {
                FAILED
            }
        }
    }
}

impl From<TranslateError> for Error {
    fn from(error: TranslateError) -> Self {
        Self::Relay(error.into())
    }
}

impl From<hyperferry_wire::Error> for Error {
    fn from(error: hyperferry_wire::Error) -> Self {
        TranslateError::from(error).into()
    }
}

impl From<checkpoint::Error> for Error {
    fn from(error: checkpoint::Error) -> Self {
        TranslateError::from(error).into()
    }
}

/// Says what went wrong, and gives the exit code.
pub(crate) fn code_of(outcome: Result<u8>) -> ExitCode {
    let code = match outcome {
        Ok(code) => code,
        Err(error) if error.is_broken_pipe() => OK,
        Err(error) => {
            tell(&error);
            error.code()
        }
    };
    ExitCode::from(code)
}

/// Refusals speak for themselves, line by line; everything else gets a word in front.
fn tell(error: &dyn fmt::Display) {
    let text = error.to_string();
    if text.starts_with("refused [") {
        say!("{text}");
    } else {
        say!("error: {text}");
    }
}

fn of_relay(error: &hyperferry_relay::Error) -> u8 {
    use hyperferry_relay::{Error as Relay, home::Fault};
    match error {
        Relay::Unconfirmed(_) | Relay::Unreported(_) | Relay::Stranded { .. } => UNKNOWN,
        Relay::Option { .. } => USAGE,
        Relay::Hop { source, .. } => of_relay(source),
        Relay::Home { fault: Fault::Damaged(_), .. } => INVALID,
        Relay::Home { fault: Fault::Stream(error), .. } => of_translation(error),
        Relay::Home { fault: Fault::NotWanted(_), .. } => USAGE,
        Relay::Home { .. } => UNSUPPORTED,
        // Its codes are ours; ssh has others.
        Relay::FarEnd { code: code @ (USAGE..=UNKNOWN), .. } => *code,
        Relay::Stream(inner) => {
            if let Some(error) = inner.downcast_ref::<TranslateError>() {
                of_translation(error)
            } else if let Some(error) = inner.downcast_ref::<hyperferry_wire::Error>() {
                of_wire(error)
            } else if let Some(error) = inner.downcast_ref::<checkpoint::Error>() {
                of_checkpoint(error)
            } else {
                FAILED
            }
        }
        _ => FAILED,
    }
}

fn of_translation(error: &TranslateError) -> u8 {
    match error {
        TranslateError::Stream(error) => of_wire(error),
        TranslateError::Checkpoint(error) => of_checkpoint(error),
        TranslateError::Input(error) => of_io(error),
        // A legal stream without a device model: a PVH guest's.
        TranslateError::Missing { record: "EMULATOR_CONTEXT", .. } => UNSUPPORTED,
        TranslateError::Missing { .. } => INVALID,
        // A destination that does not fit, a source that we do not know, a guest that must not move.
        _ => UNSUPPORTED,
    }
}

fn of_wire(error: &hyperferry_wire::Error) -> u8 {
    match error.kind() {
        ErrorKind::Io(error) => of_io(error),
        ErrorKind::Unreadable { .. } => UNSUPPORTED,
        _ => INVALID,
    }
}

fn of_checkpoint(error: &checkpoint::Error) -> u8 {
    match error {
        checkpoint::Error::Io { source, .. } => of_io(source),
        checkpoint::Error::Version(_) => UNSUPPORTED,
        checkpoint::Error::TooLarge(_) => FAILED,
        _ => INVALID,
    }
}

/// An error with a number is the system's; one without is a decompressor's word on the bytes, or their early end.
fn of_io(error: &io::Error) -> u8 {
    if error.raw_os_error().is_some() { FAILED } else { INVALID }
}

#[cfg(test)]
mod tests {
    use hyperferry_wire::{Error as WireError, StreamPath};

    use super::*;

    fn wire(kind: ErrorKind) -> TranslateError {
        WireError::new(StreamPath::root(), 0, kind).into()
    }

    #[test]
    fn every_code_has_its_error() {
        let truncated = || ErrorKind::Truncated { field: "x".into(), found: 0, wanted: 1 };
        let unreadable = || ErrorKind::Unreadable { what: "x".into(), why: "y".into() };
        let lost = hyperferry_relay::Error::Option { option: "x".into(), why: "y".into() };
        for (error, code) in [
            (Error::Usage("x".into()), USAGE),
            (wire(truncated()).into(), INVALID),
            (wire(unreadable()).into(), UNSUPPORTED),
            (Error::NotValid(Box::new(wire(unreadable()))), INVALID),
            (wire(ErrorKind::Io(io::Error::from_raw_os_error(5))).into(), FAILED),
            (wire(ErrorKind::Io(io::ErrorKind::UnexpectedEof.into())).into(), INVALID),
            (TranslateError::Refused(Box::default()).into(), UNSUPPORTED),
            (checkpoint::Error::Version(9).into(), UNSUPPORTED),
            (Error::Host("x".into()), FAILED),
            (Error::Interrupted("SIGINT"), FAILED),
            (hyperferry_relay::Error::Unconfirmed(Box::new(lost)).into(), UNKNOWN),
        ] {
            assert_eq!(error.code(), code, "{error:?}");
        }
    }

    #[test]
    fn a_reader_that_has_had_enough_is_no_fault() {
        assert!(Error::stdout(io::ErrorKind::BrokenPipe.into()).is_broken_pipe());
        assert!(!Error::stdout(io::ErrorKind::StorageFull.into()).is_broken_pipe());
    }
}
