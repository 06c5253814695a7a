//! The output of a page lane.

use std::{
    io::{self, IoSlice, Write},
    iter,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{lane::STEP, progress::Progress};

/// What is shorter waits for company: nearly a page.
const SMALL: usize = 4 << 10;

/// Collects what is small, passes pages on as they are, counts what is written, and remembers whether the reader at the other
/// end stopped reading.
///
/// Not over a `BufWriter`: that one copies pages unless it knows that the writer below takes several pieces at once, and
/// only the standard library can tell it so.
pub(crate) struct MeteredWriter<W> {
    inner: W,
    small: Vec<u8>,
    progress: Progress,
    broken: Arc<AtomicBool>,
}

impl<W: Write> MeteredWriter<W> {
    /// `broken` becomes true with the first write that nobody takes.
    pub(crate) fn new(inner: W, progress: Progress, broken: Arc<AtomicBool>) -> Self {
        Self { inner, small: Vec::with_capacity(STEP), progress, broken }
    }

    /// The writer below, with all bytes handed to it.
    pub(crate) fn into_inner(mut self) -> io::Result<W> {
        self.flush()?;
        Ok(self.inner)
    }

    /// Passes on what was collected.
    fn catch_up(&mut self) -> io::Result<()> {
        let result = self.inner.write_all(&self.small);
        self.note(result.map(|()| self.small.len()))?;
        self.small.clear();
        Ok(())
    }

    fn note(&self, result: io::Result<usize>) -> io::Result<usize> {
        match &result {
            Ok(count) => self.progress.add(*count as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.broken.store(true, Ordering::Release),
        }
        result
    }
}

impl<W: Write> Write for MeteredWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        if length < SMALL {
            if self.small.len() + length > STEP {
                self.catch_up()?;
            }
            pieces.iter().for_each(|piece| self.small.extend_from_slice(piece));
            return Ok(length);
        }
        loop {
            let small = self.small.len();
            // In one go: a reader that was woken for a few bytes would come between.
            let all: Vec<_> = iter::once(IoSlice::new(&self.small)).chain(pieces.iter().copied()).collect();
            let result = self.inner.write_vectored(&all);
            let written = self.note(result)?;
            if written == 0 {
                return Ok(0);
            }
            self.small.drain(..written.min(small));
            if written > small {
                return Ok(written - small);
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.catch_up()?;
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes at most so many bytes at a time, and notes how much each time.
    struct Slow {
        most: usize,
        found: Vec<u8>,
        times: Vec<usize>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
            let before = self.found.len();
            let bytes = pieces.iter().flat_map(|piece| piece.iter());
            self.found.extend(bytes.take(self.most));
            self.times.push(self.found.len() - before);
            Ok(self.found.len() - before)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn through(most: usize, parts: &[Vec<u8>]) -> Slow {
        let slow = Slow { most, found: Vec::new(), times: Vec::new() };
        let mut writer = MeteredWriter::new(slow, Progress::silent(), Arc::default());
        for part in parts {
            writer.write_all(part).unwrap();
        }
        writer.into_inner().unwrap()
    }

    #[test]
    fn bytes_come_out_in_order_however_few_are_taken_at_a_time() {
        let parts: Vec<_> = [3, SMALL - 1, SMALL, 0, 1, 3 * SMALL, 2].iter().zip(1..).collect();
        let parts: Vec<_> = parts.into_iter().map(|(length, byte)| vec![byte; *length]).collect();
        for most in [1, 2, 7, SMALL - 1, SMALL, SMALL + 5, usize::MAX] {
            assert_eq!(through(most, &parts).found, parts.concat(), "{most} at a time");
        }
    }

    #[test]
    fn what_is_small_goes_with_the_pages_behind_it() {
        let out = through(usize::MAX, &[vec![1; 10], vec![2; 20], vec![3; SMALL], vec![4; 5]]);
        assert_eq!(out.times, [30 + SMALL, 5]);
        // Nothing but small things: in steps all the same.
        let out = through(usize::MAX, &vec![vec![1; SMALL / 2]; 2 * STEP / (SMALL / 2) + 1]);
        assert_eq!(out.times, [STEP, STEP, SMALL / 2]);
    }

    #[test]
    fn a_reader_that_is_gone_is_remembered() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let broken = Arc::new(AtomicBool::new(false));
        let mut writer = MeteredWriter::new(writer, Progress::silent(), Arc::clone(&broken));
        writer.write_all(b"small").unwrap();
        assert!(!broken.load(Ordering::Acquire), "nothing was said yet");
        writer.write_all(&[0; SMALL]).unwrap_err();
        assert!(broken.load(Ordering::Acquire));
    }
}
