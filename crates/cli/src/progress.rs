//! How far it is: a line that changes on a terminal, plain lines elsewhere, lines of JSON, metrics.
//!
//! All of it is made from the [`Update`]s of one [`Progress`], and of its [`Summary`] at the end.

mod http;
mod json;
mod metrics;
mod people;

use std::{
    io::{self, IsTerminal},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use hyperferry_relay::progress::{Phase, Progress, Summary, Update};
use serde::Serialize;

use self::{
    json::Json,
    metrics::Metrics,
    people::{Bar, Plain},
};
use crate::{
    args::{ProgressMode, Words},
    exit::Result,
    stay::named,
};

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// As it should.
    Done,
    /// Otherwise.
    Failed,
}

impl Outcome {
    /// The name that machines read.
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// Somebody who watches.
trait View: Send {
    /// It went on.
    fn update(&mut self, update: &Update);
    /// From here on others speak.
    fn clear(&mut self) {}
    /// It ended.
    fn end(&mut self, summary: &Summary, outcome: Outcome);
}

type Views = Arc<Mutex<Vec<Box<dyn View>>>>;

/// A progress and those who watch it. Dropped before [`Shown::done`], the transfer has failed.
pub(crate) struct Shown {
    /// What the work reports through.
    pub(crate) progress: Progress,
    views: Views,
}

impl Shown {
    /// Takes the terminal's line away: what is said from here on stands alone.
    pub(crate) fn clear(&self) {
        each(&self.views, |view| view.clear());
    }

    /// All went well.
    pub(crate) fn done(self) {
        if self.progress.now().phase != Phase::Done {
            self.progress.enter(Phase::Done);
        }
        self.end(Outcome::Done);
    }

    /// Says how it ended, once.
    fn end(&self, outcome: Outcome) {
        let summary = self.progress.summary();
        each(&self.views, |view| {
            view.clear();
            view.end(&summary, outcome);
        });
        self.views.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.end(Outcome::Failed);
    }
}

/// A progress for this guest, shown as was asked for.
pub(crate) fn start(words: &Words, guest: &str) -> Result<Shown> {
    let mut views: Vec<Box<dyn View>> = Vec::new();
    match words.progress {
        ProgressMode::Auto if io::stderr().is_terminal() => views.push(Box::new(Bar::new())),
        ProgressMode::Tty => views.push(Box::new(Bar::new())),
        ProgressMode::Auto | ProgressMode::Plain => views.push(Box::new(Plain::default())),
        ProgressMode::Json => views.push(Box::new(Json::new(io::stderr(), guest))),
        ProgressMode::None => {}
    }
    let of_guest = |path: &Path| named(path, guest);
    if let Some(path) = words.progress_file.as_deref().map(of_guest) {
        views.push(Box::new(Json::to_file(&path, guest)?));
    }
    let metrics_file = words.metrics_file.as_deref().map(of_guest);
    if metrics_file.is_some() || words.metrics_listen.is_some() {
        views.push(Box::new(Metrics::new(guest, metrics_file, words.metrics_listen)?));
    }
    let views = Arc::new(Mutex::new(views));
    let watched = Arc::clone(&views);
    let progress = Progress::new(move |update| each(&watched, |view| view.update(&update)));
    Ok(Shown { progress, views })
}

fn each(views: &Views, act: impl FnMut(&mut Box<dyn View>)) {
    views.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().for_each(act);
}
