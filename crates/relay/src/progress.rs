//! How far a transfer is, for whoever watches: a bar, lines of JSON, a log, metrics.
//!
//! A [`Progress`] is a cheap handle that any thread may hold. It counts, and hands an [`Update`] to its watcher at
//! each change of phase, at each round of a pre-copy, and at most ten times a second in between. It knows nothing of
//! who sends to whom: a sender and a receiver report alike.

mod rounds;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

pub use self::rounds::{Forecast, Memory, Precopy};
use self::rounds::{Rounds, per_second};

/// The shortest time between two updates of one phase.
const INTERVAL: Duration = Duration::from_millis(100);

/// The time that rates are means of.
const RATE_WINDOW: Duration = Duration::from_secs(3);

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
    /// The destination holds the guest, and the sender has yet to give it away.
    HandOver,
    /// The destination was told to run the guest.
    Resume,
    /// The guest runs.
    Running,
    /// All is done.
    Done,
}

impl Phase {
    /// The name that machines read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Template => "template",
            Self::Launch => "launch",
            Self::Stream => "stream",
            Self::Load => "load",
            Self::HandOver => "hand-over",
            Self::Resume => "resume",
            Self::Running => "running",
            Self::Done => "done",
        }
    }
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Update {
    /// What is being done.
    pub phase: Phase,
    /// Milliseconds since the progress was made.
    pub elapsed_ms: u64,
    /// Milliseconds since the phase began.
    pub phase_ms: u64,
    /// Bytes written in this phase.
    pub bytes: u64,
    /// The rate of the last three seconds.
    pub bytes_per_second: u64,
    /// How far the guest's memory is, once that is known.
    pub memory: Option<Memory>,
}

/// What a transfer came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Milliseconds since the progress was made.
    pub elapsed_ms: u64,
    /// The phases, as they came.
    pub phases: Vec<PhaseSummary>,
    /// How far the guest's memory came.
    pub memory: Option<Memory>,
    /// Milliseconds for which the guest stood still, about: from the end of the last round but one to its first step
    /// here. None where there was one round, or where it does not run.
    pub pause_ms: Option<u64>,
}

/// What a phase came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PhaseSummary {
    /// What was done.
    pub phase: Phase,
    /// How long it took.
    pub ms: u64,
    /// Bytes written in it.
    pub bytes: u64,
}

type Watcher = dyn FnMut(Update) + Send;

/// A handle to report through; clones report to the same watcher.
#[derive(Clone)]
pub struct Progress(Arc<Mutex<State>>);

struct State {
    watcher: Option<Box<Watcher>>,
    began: Instant,
    phase: Phase,
    phase_began: Instant,
    bytes: u64,
    rounds: Option<Rounds>,
    resumed: Option<Instant>,
    whole_phases: Vec<PhaseSummary>,
    reported: Instant,
    /// Bytes and pages at some moments of the last seconds, oldest first.
    samples: VecDeque<(Instant, u64, u64)>,
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
        let state = State {
            watcher,
            began: now,
            phase: Phase::Start,
            phase_began: now,
            bytes: 0,
            rounds: None,
            resumed: None,
            whole_phases: Vec::new(),
            reported: now,
            samples: VecDeque::new(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// A new phase begins; bytes start from zero. The phase that ends is reported once more, in full.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.state();
        if state.bytes > 0 {
            state.report();
        }
        let ended = state.phase_summary();
        if ended.phase != Phase::Start {
            state.whole_phases.push(ended);
        }
        state.phase = phase;
        state.bytes = 0;
        state.phase_began = Instant::now();
        if phase == Phase::Running {
            state.resumed = Some(state.phase_began);
        }
        state.samples.clear();
        state.report();
    }

    /// Pages will come, counted by [`Progress::pages`].
    pub fn expect(&self, precopy: Precopy) {
        self.state().rounds = Some(Rounds::new(precopy, Instant::now()));
    }

    /// Bytes were written.
    pub fn add(&self, bytes: u64) {
        let mut state = self.state();
        state.bytes += bytes;
        if state.reported.elapsed() >= INTERVAL {
            state.report();
        }
    }

    /// Pages of the guest were moved: their numbers, in the order of the stream.
    pub fn pages(&self, numbers: impl IntoIterator<Item = u64>) {
        let mut state = self.state();
        let now = Instant::now();
        let Some(rounds) = &mut state.rounds else { return };
        let mut begins = false;
        for number in numbers {
            begins |= rounds.page(number, now);
        }
        if begins || state.reported.elapsed() >= INTERVAL {
            state.report();
        }
    }

    /// How far it is now.
    pub fn now(&self) -> Update {
        self.state().update()
    }

    /// What it came to, up to now.
    pub fn summary(&self) -> Summary {
        let state = self.state();
        let mut phases = state.whole_phases.clone();
        if !matches!(state.phase, Phase::Start | Phase::Done) {
            phases.push(state.phase_summary());
        }
        let stopped = state.rounds.as_ref().and_then(Rounds::stopped);
        let pause = stopped.zip(state.resumed).map(|(from, to)| millis(to.duration_since(from)));
        let Update { elapsed_ms, memory, .. } = state.update();
        Summary { elapsed_ms, phases, memory, pause_ms: pause }
    }

    fn state(&self) -> MutexGuard<'_, State> {
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
        let (began, bytes, pages) =
            self.samples.front().copied().unwrap_or((self.phase_began, 0, self.pages()));
        let time = began.elapsed();
        let rate = |now: u64, then: u64| per_second(now.saturating_sub(then), time).unwrap_or(0);
        let pages_per_second = rate(self.pages(), pages);
        Update {
            phase: self.phase,
            elapsed_ms: millis(self.began.elapsed()),
            phase_ms: millis(self.phase_began.elapsed()),
            bytes: self.bytes,
            bytes_per_second: rate(self.bytes, bytes),
            memory: self.rounds.as_ref().map(|rounds| rounds.memory(pages_per_second)),
        }
    }

    fn pages(&self) -> u64 {
        self.rounds.as_ref().map_or(0, Rounds::pages)
    }

    fn phase_summary(&self) -> PhaseSummary {
        PhaseSummary { phase: self.phase, ms: millis(self.phase_began.elapsed()), bytes: self.bytes }
    }

    fn report(&mut self) {
        self.reported = Instant::now();
        let update = self.update();
        self.samples.push_back((self.reported, self.bytes, self.pages()));
        while self.samples.get(1).is_some_and(|(then, ..)| then.elapsed() >= RATE_WINDOW) {
            self.samples.pop_front();
        }
        if let Some(watcher) = &mut self.watcher {
            watcher(update);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
        progress.add(4096);
        progress.clone().add(4096);
        progress.enter(Phase::Load);
        let seen: Vec<_> = receiver.try_iter().map(|update| (update.phase, update.bytes)).collect();
        assert_eq!(seen, [(Phase::Stream, 0), (Phase::Stream, 8192), (Phase::Load, 0)]);
        let phases: Vec<_> =
            progress.summary().phases.iter().map(|phase| (phase.phase, phase.bytes)).collect();
        assert_eq!(phases, [(Phase::Stream, 8192), (Phase::Load, 0)]);
    }

    #[test]
    fn a_round_is_reported_when_it_begins() {
        let (sender, receiver) = mpsc::channel();
        let progress = Progress::new(move |update: Update| sender.send(update.memory).unwrap());
        progress.enter(Phase::Stream);
        progress.expect(Precopy::of_xen(4));
        progress.pages(0..4);
        progress.pages([1]);
        progress.pages([3]);
        let rounds: Vec<_> = receiver.try_iter().flatten().map(|memory| memory.round).collect();
        assert_eq!(rounds, [1, 2]);
        assert_eq!(progress.summary().pause_ms, None);
        progress.enter(Phase::Running);
        assert!(progress.summary().pause_ms.is_some());
        assert_eq!(progress.now().memory.map(|memory| memory.pages_resent), Some(2));
    }

    #[test]
    fn updates_are_lines_of_json() {
        let line = serde_json::to_string(&Update { phase: Phase::HandOver, bytes: 7, ..Update::default() });
        assert_eq!(
            line.unwrap(),
            r#"{"phase":"hand-over","elapsed_ms":0,"phase_ms":0,"bytes":7,"bytes_per_second":0,"memory":null}"#
        );
        assert_eq!(
            serde_json::to_string(&Phase::HandOver).unwrap(),
            format!("\"{}\"", Phase::HandOver.name())
        );
    }
}
