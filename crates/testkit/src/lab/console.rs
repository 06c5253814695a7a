//! A guest's serial port on a host of the lab, with the time at which each line came to this machine.

use std::{
    io::Read,
    ops::Range,
    process::{Child, ChildStdout, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use super::{Host, clock::Clock};
use crate::witness::{self, Beat};

/// How long to wait before a connection is made again, or lines are looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long lines may go on coming late.
const LATE: Duration = Duration::from_secs(60);
/// How many failed checks are shown.
const SHOWN: usize = 12;

/// A line and when it came, in seconds since 1970.
pub type Line = (f64, String);

/// What has been seen of a serial port so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Its lines.
    pub lines: Vec<Line>,
    /// A last line that has no end yet.
    pub rest: String,
}

/// A beat and when it came, in seconds since 1970.
pub type TimedBeat = (f64, Beat);

/// A serial port that is being watched. A connection that breaks is made again where it broke: what is silent then is the
/// network, and not the guest.
#[derive(Debug)]
pub struct Console {
    watching: Arc<Watching>,
}

#[derive(Debug, Default)]
struct Watching {
    seen: Mutex<Seen>,
    ssh: Mutex<Option<Child>>,
    over: AtomicBool,
}

impl Console {
    /// Watches a file of a host from its beginning; it may come later.
    pub fn watch(host: Host, file: &str) -> Result<Self> {
        let watching = Arc::new(Watching::default());
        let mut from = watching.connect(host, file, 0)?;
        let (shared, file) = (Arc::clone(&watching), file.to_owned());
        thread::spawn(move || {
            let mut count = shared.follow(&mut from);
            while !shared.over.load(Ordering::Acquire) {
                thread::sleep(AGAIN);
                if let Ok(mut from) = shared.connect(host, &file, count) {
                    count += shared.follow(&mut from);
                }
            }
        });
        Ok(Self { watching })
    }

    /// What has come so far.
    pub fn seen(&self) -> Seen {
        self.watching.seen().clone()
    }

    /// Forgets the lines so far.
    pub fn forget(&self) {
        self.watching.seen().lines.clear();
    }

    /// Waits until a number of beats has come; tells whether it did.
    pub fn waits_for_beats(&self, count: usize, limit: Duration) -> bool {
        let began = Instant::now();
        while self.seen().beats().len() < count {
            if began.elapsed() > limit {
                return false;
            }
            thread::sleep(Duration::from_millis(200));
        }
        true
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.watching.over.store(true, Ordering::Release);
        self.watching.hang_up();
    }
}

impl Watching {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the file, from behind so many bytes.
    fn connect(&self, host: Host, file: &str, behind: usize) -> Result<ChildStdout> {
        self.hang_up();
        let line = format!("touch {file}; exec tail -c +{} -F {file} 2>/dev/null", behind + 1);
        let mut ssh =
            host.ssh(&line).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let from = ssh.stdout.take().context("no pipe from ssh")?;
        self.ssh.lock().unwrap_or_else(PoisonError::into_inner).replace(ssh);
        if self.over.load(Ordering::Acquire) {
            self.hang_up();
        }
        Ok(from)
    }

    fn hang_up(&self) {
        let ssh = self.ssh.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut ssh) = ssh {
            drop(ssh.kill());
            drop(ssh.wait());
        }
    }

    /// Notes what comes, to the connection's end, and counts its bytes.
    fn follow(&self, from: &mut impl Read) -> usize {
        let (mut some, mut total) = ([0; 4096], 0);
        while let Ok(count @ 1..) = from.read(&mut some) {
            total += count;
            let text = String::from_utf8_lossy(some.get(..count).unwrap_or_default()).into_owned();
            let now = now();
            let mut seen = self.seen();
            for piece in text.split_inclusive('\n') {
                seen.rest.push_str(piece);
                if piece.ends_with('\n') {
                    let line = std::mem::take(&mut seen.rest);
                    seen.lines.push((now, line.trim_end().to_owned()));
                }
            }
        }
        total
    }
}

impl Seen {
    /// What a guest said here and then there: a line under way when it left is whole again.
    #[must_use]
    pub fn then(mut self, there: Self) -> Self {
        let mut lines = there.lines.into_iter();
        if let Some((time, end)) = lines.next() {
            self.lines.push((time, std::mem::take(&mut self.rest) + &end));
        }
        self.lines.extend(lines);
        Self { lines: self.lines, rest: there.rest }
    }

    /// Its beats.
    pub fn beats(&self) -> Vec<TimedBeat> {
        self.lines.iter().filter_map(|(time, line)| Some((*time, witness::beat(line)?))).collect()
    }
}

/// The judgement on a guest that went on elsewhere, or stayed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    /// Beats seen.
    pub beats: usize,
    /// Checks that failed.
    pub bad: u64,
    /// Beats that do not follow the one before.
    pub lost: usize,
    /// The longest time between two beats, seconds.
    pub silence: f64,
    /// The middle of them: what is usual without a move.
    pub usual: f64,
    /// What the guest's own clock did.
    pub clock: Clock,
}

impl Judged {
    /// Judges all beats. Those that came within `pause` say nothing about the clock.
    pub fn of(seen: &Seen, pause: Range<f64>) -> Self {
        let beats = seen.beats();
        let pairs = || beats.iter().zip(beats.iter().skip(1));
        let mut gaps: Vec<f64> = pairs().map(|(one, next)| next.0 - one.0).collect();
        gaps.sort_by(f64::total_cmp);
        let outside = beats.iter().filter(|beat| beat.0 <= pause.start || beat.0 >= pause.end).cloned();
        let (before, after): (Vec<_>, Vec<_>) = outside.partition(|beat| beat.0 <= pause.start);
        Self {
            beats: beats.len(),
            // The bare-metal witness counts on, the Linux one starts anew each round.
            bad: if beats.iter().any(|(_, beat)| beat.number("mono").is_some()) {
                beats.iter().map(|(_, beat)| beat.bad).sum()
            } else {
                beats.iter().map(|(_, beat)| beat.bad).max().unwrap_or(0)
            },
            lost: pairs().filter(|(one, next)| next.1.beat != one.1.beat + 1).count(),
            silence: gaps.last().copied().unwrap_or(f64::NAN),
            usual: gaps.get(gaps.len() / 2).copied().unwrap_or(f64::NAN),
            clock: Clock::over(&before, &after),
        }
    }

    /// What is wrong with it; its clock may leap ahead by so much, if it is to be judged.
    #[must_use]
    pub fn faults(&self, seen: &Seen, leap: Option<f64>) -> Vec<String> {
        let mut faults = Vec::new();
        if self.bad > 0 {
            let bad = seen.lines.iter().map(|(_, line)| line).filter(|line| line.starts_with("BAD "));
            faults.extend(bad.take(SHOWN).cloned());
            faults.push(format!("{} checks failed", self.bad));
        }
        if self.lost > 0 {
            faults.push(format!("{} beats are lost or repeated", self.lost));
        }
        faults.extend(leap.and_then(|leap| self.clock.fault(self.silence, leap)));
        faults
    }

    /// Judges once lines have come to an end that were late: those make a clock seem to stand still.
    #[must_use]
    pub fn once_settled(judge: impl Fn() -> Self) -> Self {
        let began = Instant::now();
        loop {
            let judged = judge();
            let late = judged.clock.stood > judged.silence;
            if !late || began.elapsed() > LATE {
                return judged;
            }
            thread::sleep(AGAIN);
        }
    }
}

/// Our time, seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(beats: &[(f64, u64)], rest: &str) -> Seen {
        let line = |(time, beat): &(f64, u64)| (*time, format!("WITNESS beat={beat} bad=0 mono={time}"));
        Seen { lines: beats.iter().map(line).collect(), rest: rest.to_owned() }
    }

    #[test]
    fn a_line_cut_in_two_by_a_move_is_one_beat() {
        let here = seen(&[(1.0, 1), (2.0, 2)], "WITNESS beat=3 bad=0 mo");
        let mut there = seen(&[(5.0, 4)], "");
        there.lines.insert(0, (4.5, "no=3.0".to_owned()));
        let judged = Judged::of(&here.then(there), 2.5..4.2);
        assert_eq!((judged.beats, judged.lost, judged.bad), (4, 0, 0));
        assert!((judged.silence - 2.5).abs() < 1e-9, "{judged:?}");
    }

    #[test]
    fn a_beat_lost_or_seen_twice_is_counted() {
        assert_eq!(Judged::of(&seen(&[(1.0, 1), (2.0, 3)], ""), 1.5..1.6).lost, 1);
        assert_eq!(Judged::of(&seen(&[(1.0, 1), (2.0, 1)], ""), 1.5..1.6).lost, 1);
    }
}
