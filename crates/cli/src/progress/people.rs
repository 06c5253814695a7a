//! Progress for people: a line that changes on a terminal, plain lines elsewhere. Under `xl migrate` the plain lines
//! come out on the source's terminal.

use std::time::Duration;

use hyperferry_relay::progress::{Forecast, Memory, Phase, Summary, Update};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::{Outcome, View};

/// How often a terminal's line changes while nothing else does.
const TICK: Duration = Duration::from_millis(100);

/// How often a plain line comes while nothing else does, milliseconds.
const PLAIN_INTERVAL_MS: u64 = 10_000;

/// One line when a phase or a round begins, and every ten seconds.
#[derive(Default)]
pub(super) struct Plain {
    said: Option<(Phase, u32)>,
    said_ms: u64,
}

impl View for Plain {
    fn update(&mut self, update: &Update) {
        // Of the end of it all, the command itself has more to say.
        if matches!(update.phase, Phase::Running | Phase::Done) {
            return;
        }
        let round = update.memory.map_or(0, |memory| memory.round);
        let begins = self.said.is_none_or(|(phase, _)| phase != update.phase);
        let next_round =
            update.phase == Phase::Stream && round > 1 && self.said != Some((update.phase, round));
        if begins {
            say!("{}", words(update.phase));
        } else if next_round || update.elapsed_ms >= self.said_ms + PLAIN_INTERVAL_MS {
            say!("{}", sentence(update));
        } else {
            return;
        }
        (self.said, self.said_ms) = (Some((update.phase, round)), update.elapsed_ms);
    }

    fn end(&mut self, summary: &Summary, outcome: Outcome) {
        conclude(summary, outcome);
    }
}

/// A line that changes.
pub(super) struct Bar {
    line: ProgressBar,
    measured: bool,
}

impl Bar {
    pub(super) fn new() -> Self {
        let line = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            line.set_style(style);
        }
        line.enable_steady_tick(TICK);
        Self { line, measured: false }
    }
}

impl View for Bar {
    fn update(&mut self, update: &Update) {
        if let Some(memory) = update.memory.filter(|_| !self.measured) {
            if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:24}] {percent:>3}% {wide_msg}") {
                self.line.set_style(style.progress_chars("=> "));
            }
            self.line.set_length(memory.pages_total);
            self.measured = true;
        }
        if let Some(memory) = update.memory {
            self.line.set_position(memory.pages_sent.min(memory.pages_total));
        }
        self.line.set_message(sentence(update));
    }

    fn clear(&mut self) {
        self.line.finish_and_clear();
    }

    fn end(&mut self, summary: &Summary, outcome: Outcome) {
        conclude(summary, outcome);
    }
}

/// What a stream came to. A failure has words of its own.
fn conclude(summary: &Summary, outcome: Outcome) {
    let stream = summary.phases.iter().find(|phase| phase.phase == Phase::Stream);
    let (Outcome::Done, Some(stream), Some(memory)) = (outcome, stream, summary.memory) else { return };
    let mut line = format!(
        "moved {} in {} (all: {}), {}",
        HumanBytes(stream.bytes),
        seconds(stream.ms),
        seconds(summary.elapsed_ms),
        counted(memory.round.into(), "round"),
    );
    if memory.pages_resent > 0 {
        line += &format!(": {} pages, {} again", memory.pages_sent, memory.pages_resent);
    }
    if let Some(rate) = memory.dirty_pages_per_second {
        line += &format!("; the guest wrote to {rate} pages/s");
    }
    if let Some(pause) = summary.pause_ms {
        line += &format!("; it stood still for about {}", seconds(pause));
    }
    say!("{line}");
}

fn sentence(update: &Update) -> String {
    let mut line = words(update.phase).to_owned();
    if update.bytes > 0 {
        line += &format!(": {}, {}/s", HumanBytes(update.bytes), HumanBytes(update.bytes_per_second));
    }
    if update.phase == Phase::Stream
        && let Some(memory) = update.memory
    {
        line += &of_memory(&memory);
    }
    line
}

fn of_memory(memory: &Memory) -> String {
    let mut words = String::new();
    if memory.round > 1 {
        let limit = memory.rounds_max.map_or_else(String::new, |max| format!(" of at most {max}"));
        words += &format!(", round {}{limit}, {} pages again", memory.round, memory.pages_resent);
    }
    if let Some(rate) = memory.dirty_pages_per_second {
        words += &format!(", the guest writes to {rate} pages/s");
    }
    words += match memory.forecast {
        Some(Forecast::WillNotConverge) => {
            ", will not converge: the sender stops the guest behind its last round"
        }
        Some(Forecast::LastRound) => ", the guest is stopped for the last round",
        _ => "",
    };
    if let Some(eta) = memory.eta_ms.filter(|eta| *eta >= 1000) {
        words += &format!(", about {} left", seconds(eta));
    }
    words
}

fn seconds(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms} ms");
    }
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Start => "starting",
        Phase::Template => "learning the destination's dialect from its QEMU",
        Phase::Launch => "starting the destination",
        Phase::Stream => "moving memory and state",
        Phase::Load => "the destination loads the state",
        Phase::HandOver => "the destination is ready, the sender decides",
        Phase::Resume => "letting the guest run",
        Phase::Running => "the guest runs",
        Phase::Done => "done",
        _ => "working",
    }
}
