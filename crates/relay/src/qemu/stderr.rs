//! What QEMU says on its standard error: kept, so that our errors can quote it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::ChildStderr, task::JoinHandle, time::timeout};

/// The most that is kept; what matters is at the end.
const KEPT: usize = 16 << 10;

/// How long the rest may take to arrive once QEMU is gone: a helper that it started may hold the pipe open.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Stderr {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stderr {
    /// Reads the pipe from now on, so that QEMU never waits for us to.
    pub(super) fn capture(pipe: Option<ChildStderr>) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let reader = pipe.map(|pipe| tokio::spawn(read(pipe, Arc::clone(&kept))));
        Self { kept, reader }
    }

    /// What is kept so far.
    pub(super) fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }

    /// What is kept once QEMU is gone.
    pub(super) async fn whole_text(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
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
