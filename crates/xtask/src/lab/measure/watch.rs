//! What was seen and heard of a move: the logs of `tests/lab/measure/probe`, and the words of `xl`.

use super::clock;
use anyhow::{Context, Result, ensure};
use hyperferry_testkit::witness;
use serde::Serialize;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::process::{Command, ExitStatus, Stdio};

/// What the guest looked like from outside while it was moved. Times in seconds.
#[derive(Serialize)]
pub(super) struct Seen {
    /// The longest time between two lines on the serial port.
    pub(super) serial: f64,
    /// What it usually is.
    pub(super) usual_serial: f64,
    /// The longest time between two answers to pings.
    pub(super) ping: f64,
    /// What it usually is.
    pub(super) usual_ping: f64,
    /// Our time at which the longest silence of the network card began.
    pub(super) silent_from: f64,
    /// How often the guest rewrites its pages.
    pub(super) beats_per_second: f64,
    /// Damaged words.
    pub(super) bad: u64,
    /// Beats out of order.
    pub(super) lost: u64,
}

/// One line of a log, by our clock.
pub(super) struct Event {
    time: f64,
    what: What,
}

enum What {
    Answer,
    Beat { beat: u64, bad: u64 },
}

/// How many beats a log holds.
pub(super) fn beats(log: &str) -> usize {
    log.lines().filter(|line| line.contains(" line WITNESS ")).count()
}

/// Reads a log; `ours` makes our time of the host's.
pub(super) fn parse(log: &str, ours: impl Fn(f64) -> f64) -> Vec<Event> {
    let event = |line: &str| {
        let (time, rest) = line.split_once(' ')?;
        let time = ours(time.parse().ok()?);
        if rest.starts_with("ping ") {
            return Some(Event { time, what: What::Answer });
        }
        let beat = witness::beats(&format!("{}\n", rest.strip_prefix("line ")?)).pop()?;
        Some(Event { time, what: What::Beat { beat: beat.beat, bad: beat.bad } })
    };
    log.lines().filter_map(event).collect()
}

/// What the logs of both hosts come to within a time.
pub(super) fn judge(mut events: Vec<Event>, within: Range<f64>) -> Result<Seen> {
    events.retain(|event| within.contains(&event.time));
    events.sort_by(|a, b| a.time.total_cmp(&b.time));
    let answers: Vec<f64> =
        events.iter().filter(|event| matches!(event.what, What::Answer)).map(|event| event.time).collect();
    let (mut lines, mut bad, mut lost, mut last) = (Vec::new(), 0, 0, None);
    for event in &events {
        let What::Beat { beat, bad: damaged } = event.what else { continue };
        bad += damaged;
        // A line that was under way may have been cut in two, or printed on both sides.
        lost += u64::from(last.is_some_and(|last| beat < last || beat > last + 2));
        last = Some(beat);
        lines.push(event.time);
    }
    ensure!(answers.len() > 10, "the network card answered {} pings", answers.len());
    ensure!(lines.len() > 10, "the guest printed {} lines", lines.len());
    let (ping, usual_ping, silent_from) = silence(&answers).context("no answers")?;
    let (serial, usual_serial, _) = silence(&lines).context("no lines")?;
    let beats_per_second = 1.0 / usual_serial;
    Ok(Seen { serial, usual_serial, ping, usual_ping, silent_from, beats_per_second, bad, lost })
}

/// The longest time between two, the median, and when the longest began.
fn silence(times: &[f64]) -> Option<(f64, f64, f64)> {
    let mut gaps: Vec<(f64, f64)> =
        times.iter().zip(times.iter().skip(1)).map(|(from, to)| (to - from, *from)).collect();
    gaps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (longest, from) = gaps.last().copied()?;
    Some((longest, gaps.get(gaps.len() / 2)?.0, from))
}

/// Runs a command and notes its words, each with our time.
pub(super) fn listen(command: &mut Command) -> Result<(Vec<(f64, String)>, ExitStatus)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let from = BufReader::new(child.stdout.take().context("no pipe from ssh")?);
    let said = from.split(b'\n').map(|line| {
        let line = line?;
        Ok((clock::now(), String::from_utf8_lossy(&line).trim_end().to_owned()))
    });
    let said = said.collect::<Result<Vec<_>>>()?;
    Ok((said, child.wait()?))
}

/// The round that a line of hyperferry's progress says to be under way.
pub(super) fn round(line: &str) -> Option<u64> {
    let update: Value = serde_json::from_str(line).ok()?;
    update.pointer("/memory/round").and_then(Value::as_u64)
}
