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
    /// Our time at which the longest silence on the serial port began.
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
    ensure!(lines.len() > 10, "the guest printed {} lines", lines.len());
    let (serial, usual_serial, silent_from) = silence(&lines).context("no lines")?;
    // Not every guest has a network.
    let (ping, usual_ping, _) = silence(&answers).unwrap_or((f64::NAN, f64::NAN, 0.0));
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

/// The rounds that hyperferry's progress tells of.
pub(super) fn rounds(progress: &str) -> u64 {
    let round = |line| {
        let update: Value = serde_json::from_str(line).ok()?;
        update.pointer("/memory/round").and_then(Value::as_u64)
    };
    progress.lines().filter_map(round).max().unwrap_or_default()
}

/// The time for which a guest stood still, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Pause {
    /// The source suspends it and sends the last pages and its state.
    pub(super) source: f64,
    /// The destination loads what has come.
    pub(super) load: f64,
    /// The source gives it away.
    pub(super) hand_over: f64,
    /// The destination lets it run.
    pub(super) resume: f64,
}

/// What hyperferry's progress says of that in its last line; nothing if it does not know when the guest stopped.
pub(super) fn pause(progress: &str) -> Option<Pause> {
    let outcome: Value = serde_json::from_str(progress.lines().last()?).ok()?;
    let seconds = |milliseconds: &Value| milliseconds.as_f64().map(|milliseconds| milliseconds / 1e3);
    let of = |name: &str| {
        let phase = outcome.get("phases")?.as_array()?.iter().find(|phase| phase["phase"] == name)?;
        seconds(&phase["ms"])
    };
    let (load, hand_over, resume) = (of("load")?, of("hand-over")?, of("resume")?);
    let source = seconds(outcome.get("pause_ms")?)? - load - hand_over - resume;
    Some(Pause { source, load, hand_over, resume })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log of a host in which the guest was from one time to another: a beat and an answer every tenth of a second.
    fn log(from: u32, to: u32) -> String {
        (from..to)
            .map(|tenth| {
                let time = f64::from(tenth) / 10.0;
                format!("{time:.3} ping {tenth}\n{time:.3} line WITNESS beat={tenth} bad=0 fx=1.0\n")
            })
            .collect()
    }

    #[test]
    fn silence_is_the_time_between_two_hosts() {
        // The guest stood still for half a second; the second host's clock is set by what is added.
        let mut events = parse(&log(100, 150), |time| time);
        let late = log(150, 200);
        events.extend(parse(&late, |time| time + 0.4));
        let seen = judge(events, 0.0..100.0).unwrap();
        assert!((seen.serial - 0.5).abs() < 0.01 && (seen.ping - 0.5).abs() < 0.01, "{}", seen.serial);
        assert!((seen.usual_serial - 0.1).abs() < 0.01 && (seen.silent_from - 14.9).abs() < 0.01);
        assert_eq!((seen.bad, seen.lost), (0, 0));
    }

    #[test]
    fn damage_and_lost_beats_are_seen() {
        let broken = log(100, 150).replace("beat=120 bad=0", "beat=120 bad=3");
        assert_eq!(judge(parse(&broken, |time| time), 0.0..100.0).unwrap().bad, 3);
        let torn = log(100, 120) + &log(130, 150);
        assert_eq!(judge(parse(&torn, |time| time), 0.0..100.0).unwrap().lost, 1);
        assert!(judge(parse(&log(100, 105), |time| time), 0.0..100.0).is_err(), "too little to judge");
    }

    #[test]
    fn a_pause_has_its_parts() {
        let line = r#"{"outcome":"done","phases":[{"phase":"stream","ms":9000},{"phase":"load","ms":45},
            {"phase":"hand-over","ms":95},{"phase":"resume","ms":24}],"pause_ms":664}"#;
        let found = pause(&format!("{{}}\n{}", line.replace('\n', ""))).unwrap();
        assert_eq!((found.load, found.hand_over, found.resume), (0.045, 0.095, 0.024));
        assert!((found.source - 0.5).abs() < 1e-9);
        assert_eq!(pause(&line.replace("664", "null").replace('\n', "")), None);
    }

    #[test]
    fn rounds_are_read_from_progress() {
        let progress =
            "{\"phase\":\"stream\",\"memory\":{\"round\":4}}\n{\"phase\":\"load\",\"memory\":null}\ncut off";
        assert_eq!((rounds(progress), rounds("")), (4, 0));
    }
}
