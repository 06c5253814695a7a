//! What QEMU says on its standard error: kept, so that our errors can quote it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::ChildStderr, task::JoinHandle, time::timeout};

use crate::{Error, Result};

/// The most that is kept; what matters is at the end.
const KEPT: usize = 16 << 10;

/// How long the rest may take to arrive once QEMU is gone: a helper that it started may hold the pipe open.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Stderr {
    /// Read by us as it comes.
    Pipe { kept: Arc<Mutex<Vec<u8>>>, reader: Option<JoinHandle<()>> },
    /// Written by QEMU into a file, where we look it up.
    Log(PathBuf),
}

impl Stderr {
    /// What QEMU gets as its standard error, and our end of it.
    pub(super) fn open(log: Option<&Path>) -> Result<(Stdio, Self)> {
        let Some(path) = log else {
            let pipe = Self::Pipe { kept: Arc::default(), reader: None };
            return Ok((Stdio::piped(), pipe));
        };
        let failed = |source| Error::File { path: path.to_owned(), doing: "opening QEMU's log", source };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        Ok((file.into(), Self::Log(path.to_owned())))
    }

    /// Reads the pipe, if there is one, from now on, so that QEMU never waits for us to.
    pub(super) fn capture(&mut self, pipe: Option<ChildStderr>) {
        if let Self::Pipe { kept, reader } = self {
            *reader = pipe.map(|pipe| tokio::spawn(read(pipe, Arc::clone(kept))));
        }
    }

    /// What is kept so far.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Pipe { kept, .. } => {
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                String::from_utf8_lossy(&kept).into_owned()
            }
            Self::Log(path) => end_of(path).unwrap_or_else(|error| format!("{}: {error}", path.display())),
        }
    }

    /// What is kept once QEMU is gone.
    pub(super) async fn whole_text(&mut self) -> String {
        if let Self::Pipe { reader, .. } = self
            && let Some(reader) = reader.take()
        {
            let _ = timeout(REST_TIMEOUT, reader).await;
        }
        self.text()
    }
}

async fn read(mut pipe: ChildStderr, kept: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = vec![0; 4096];
    while let Ok(count) = pipe.read(&mut buffer).await
        && count > 0
    {
        let words = buffer.get(..count).unwrap_or_default();
        tracing::debug!(stderr = %String::from_utf8_lossy(words).trim_end(), "qemu");
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(words);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }
}

/// The last part of a file.
fn end_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(KEPT as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.take(KEPT as u64).read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_what_counts() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let (_, stderr) = Stderr::open(Some(&log)).unwrap();
        assert_eq!(stderr.text(), "");
        std::fs::write(&log, "x".repeat(KEPT) + "the reason\n").unwrap();
        assert!(stderr.text().ends_with("the reason\n") && stderr.text().len() == KEPT);
        let (_, again) = Stderr::open(Some(&log)).unwrap();
        assert!(again.text().ends_with("the reason\n"), "what was said before stays");
        assert!(Stderr::open(Some(folder.path())).unwrap_err().to_string().contains("opening QEMU's log"));
    }
}
