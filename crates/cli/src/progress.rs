//! How far it is: a line that changes on a terminal, plain lines elsewhere, or lines of JSON.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use hyperferry_relay::progress::{Phase, Progress, Update};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::args::ProgressMode;

/// How often a terminal's line changes while nothing else does.
const TICK: Duration = Duration::from_millis(100);

/// A progress, and the terminal's line where it is shown on one.
pub(crate) struct Shown {
    /// What the work reports through.
    pub(crate) progress: Progress,
    line: Option<ProgressBar>,
}

impl Shown {
    /// Takes the line away: what is said from here on stands alone.
    pub(crate) fn clear(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}

/// A progress for this mode; all of it goes to standard error.
pub(crate) fn start(mode: ProgressMode) -> Shown {
    let terminal = io::stderr().is_terminal();
    let progress = match mode {
        ProgressMode::Auto if terminal => return on_terminal(),
        ProgressMode::Tty => return on_terminal(),
        ProgressMode::Auto | ProgressMode::Plain => {
            let mut last = None;
            Progress::new(move |update| plain(update, &mut last))
        }
        ProgressMode::Json => Progress::new(|update| {
            if let Ok(line) = serde_json::to_string(&update) {
                eprintln!("{line}");
            }
        }),
        ProgressMode::None => Progress::silent(),
    };
    Shown { progress, line: None }
}

fn on_terminal() -> Shown {
    let line = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        line.set_style(style);
    }
    line.enable_steady_tick(TICK);
    let watched = line.clone();
    let progress = Progress::new(move |update| watched.set_message(sentence(update)));
    Shown { progress, line: Some(line) }
}

/// One line when a phase begins; of the end of it all, the command itself has more to say.
fn plain(update: Update, last: &mut Option<Phase>) {
    let begins = *last != Some(update.phase);
    *last = Some(update.phase);
    if begins && !matches!(update.phase, Phase::Running | Phase::Done) {
        eprintln!("{}", words(update.phase));
    }
}

fn sentence(update: Update) -> String {
    let words = words(update.phase);
    if update.bytes == 0 {
        return words.to_owned();
    }
    format!("{words}: {}, {}/s", HumanBytes(update.bytes), HumanBytes(update.bytes_per_second))
}

fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Start => "starting",
        Phase::Template => "learning the destination's dialect from its QEMU",
        Phase::Launch => "starting the destination",
        Phase::Stream => "moving memory and state",
        Phase::Load => "the destination loads the state",
        Phase::Resume => "letting the guest run",
        Phase::Running => "the guest runs",
        Phase::Done => "done",
        _ => "working",
    }
}
