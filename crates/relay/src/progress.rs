//! How far a transfer is, for whoever watches: a bar, lines of JSON, a log.
//!
//! A [`Progress`] is a cheap handle that any thread may hold. It counts, and hands an [`Update`] to its watcher at
//! each change of phase and at most ten times a second in between.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

/// The shortest time between two updates of one phase.
const INTERVAL: Duration = Duration::from_millis(100);

/// What is being done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Phase {
    /// Nothing yet.
    #[default]
    Start,
    /// The destination writes its template.
    Template,
    /// The destination is started and told to wait.
    Launch,
    /// Memory and state flow.
    Stream,
    /// All is sent, the destination takes it in.
    Load,
    /// The destination was told to run the guest.
    Resume,
    /// The guest runs.
    Running,
    /// All is done.
    Done,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Update {
    /// What is being done.
    pub phase: Phase,
    /// Bytes written in this phase.
    pub bytes: u64,
    /// Guest pages written in this phase.
    pub pages: u64,
    /// Milliseconds since the phase began.
    pub elapsed_ms: u64,
    /// Mean rate since the phase began.
    pub bytes_per_second: u64,
}

type Watcher = dyn FnMut(Update) + Send;

/// A handle to report through; clones report to the same watcher.
#[derive(Clone)]
pub struct Progress(Arc<Mutex<State>>);

struct State {
    watcher: Option<Box<Watcher>>,
    phase: Phase,
    bytes: u64,
    pages: u64,
    began: Instant,
    last: Instant,
}

impl Progress {
    /// Reports to `watcher`, on the thread that made the progress: it must not block for long.
    pub fn new(watcher: impl FnMut(Update) + Send + 'static) -> Self {
        Self::with(Some(Box::new(watcher)))
    }

    /// Reports to nobody.
    pub fn silent() -> Self {
        Self::with(None)
    }

    fn with(watcher: Option<Box<Watcher>>) -> Self {
        let now = Instant::now();
        let state = State { watcher, phase: Phase::Start, bytes: 0, pages: 0, began: now, last: now };
        Self(Arc::new(Mutex::new(state)))
    }

    /// A new phase begins; counts start from zero. The phase that ends is reported once more, in full.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.state();
        if state.bytes > 0 || state.pages > 0 {
            state.report();
        }
        state.phase = phase;
        (state.bytes, state.pages) = (0, 0);
        state.began = Instant::now();
        state.report();
    }

    /// Bytes and pages were written.
    pub fn add(&self, bytes: u64, pages: u64) {
        let mut state = self.state();
        state.bytes += bytes;
        state.pages += pages;
        if state.last.elapsed() >= INTERVAL {
            state.report();
        }
    }

    /// How far it is now.
    pub fn now(&self) -> Update {
        self.state().update()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::silent()
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Progress").field(&self.now()).finish()
    }
}

impl State {
    fn update(&self) -> Update {
        let elapsed = self.began.elapsed();
        let micros = elapsed.as_micros().max(1);
        let rate = u128::from(self.bytes) * 1_000_000 / micros;
        Update {
            phase: self.phase,
            bytes: self.bytes,
            pages: self.pages,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            bytes_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
        }
    }

    fn report(&mut self) {
        self.last = Instant::now();
        let update = self.update();
        if let Some(watcher) = &mut self.watcher {
            watcher(update);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_phase_is_reported_when_it_begins_and_in_full_when_it_ends() {
        let (sender, receiver) = mpsc::channel();
        let progress = Progress::new(move |update| sender.send(update).unwrap());
        progress.enter(Phase::Stream);
        progress.add(4096, 1);
        progress.clone().add(4096, 1);
        progress.enter(Phase::Load);
        let seen: Vec<_> =
            receiver.try_iter().map(|update| (update.phase, update.bytes, update.pages)).collect();
        assert_eq!(seen, [(Phase::Stream, 0, 0), (Phase::Stream, 8192, 2), (Phase::Load, 0, 0)]);
    }

    #[test]
    fn updates_are_lines_of_json() {
        let line = serde_json::to_string(&Update { phase: Phase::Stream, bytes: 7, ..Update::default() });
        assert_eq!(
            line.unwrap(),
            r#"{"phase":"stream","bytes":7,"pages":0,"elapsed_ms":0,"bytes_per_second":0}"#
        );
    }
}
