//! The output of a page lane.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::progress::Progress;

/// Counts what is written, and remembers whether the reader at the other end stopped reading.
pub(crate) struct MeteredWriter<W> {
    inner: W,
    progress: Progress,
    broken: Arc<AtomicBool>,
}

impl<W> MeteredWriter<W> {
    /// `broken` becomes true with the first write that nobody takes.
    pub(crate) fn new(inner: W, progress: Progress, broken: Arc<AtomicBool>) -> Self {
        Self { inner, progress, broken }
    }
}

impl<W: Write> Write for MeteredWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(bytes);
        match &result {
            Ok(count) => self.progress.add(*count as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.broken.store(true, Ordering::Release),
        }
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
