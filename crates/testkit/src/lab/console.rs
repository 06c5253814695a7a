//! A guest's serial port on a host of the lab, with the time at which each line came to this machine.

use std::{
    io::Read,
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use super::{Host, live::CLOCK_TOLERANCE};
use crate::witness::{self, Beat};

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

/// A serial port that is being watched.
#[derive(Debug)]
pub struct Console {
    ssh: Child,
    seen: Arc<Mutex<Seen>>,
}

impl Console {
    /// Watches a file of a host from its beginning; it may come later.
    pub fn watch(host: Host, file: &str) -> Result<Self> {
        let line = format!("touch {file}; exec tail -c +1 -F {file} 2>/dev/null");
        let mut ssh = host.ssh(&line).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut from = ssh.stdout.take().context("no pipe from ssh")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut some) {
                let text = String::from_utf8_lossy(some.get(..count).unwrap_or_default()).into_owned();
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
                for piece in text.split_inclusive('\n') {
                    seen.rest.push_str(piece);
                    if piece.ends_with('\n') {
                        let line = std::mem::take(&mut seen.rest);
                        seen.lines.push((now, line.trim_end().to_owned()));
                    }
                }
            }
        });
        Ok(Self { ssh, seen })
    }

    /// What has come so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the lines so far.
    pub fn forget(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).lines.clear();
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
        drop(self.ssh.kill());
        drop(self.ssh.wait());
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
    pub fn beats(&self) -> Vec<(f64, Beat)> {
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
    /// By how much the guest's clock fell behind this machine's from the first to the last beat, seconds.
    pub behind: f64,
}

impl Judged {
    /// Judges all beats.
    pub fn of(seen: &Seen) -> Self {
        let beats = seen.beats();
        let pairs = || beats.iter().zip(beats.iter().skip(1));
        let mut gaps: Vec<f64> = pairs().map(|(one, next)| next.0 - one.0).collect();
        gaps.sort_by(f64::total_cmp);
        let behind = match (beats.first(), beats.last()) {
            (Some((began, first)), Some((ended, last))) => {
                let guest = |beat: &Beat| beat.number("mono").or(beat.number("pm").map(|pm| pm / PM_HZ));
                let passed = guest(last).zip(guest(first)).map_or(f64::NAN, |(last, first)| last - first);
                ended - began - passed
            }
            _ => f64::NAN,
        };
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
            behind,
        }
    }

    /// What is wrong with it. A guest that buffers its lines lets nobody judge how far its clock is behind.
    #[must_use]
    pub fn faults(&self, seen: &Seen, buffers: bool) -> Vec<String> {
        let mut faults = Vec::new();
        if self.bad > 0 {
            let bad = seen.lines.iter().map(|(_, line)| line).filter(|line| line.starts_with("BAD "));
            faults.extend(bad.take(SHOWN).cloned());
            faults.push(format!("{} checks failed", self.bad));
        }
        if self.lost > 0 {
            faults.push(format!("{} beats are lost or repeated", self.lost));
        }
        // Neither ahead, nor further behind than it was silent; on a busy machine its lines come the later. Linux keeps
        // minutes of them in its terminal's buffer when the port is slow, so that its lag says nothing.
        let tolerance = CLOCK_TOLERANCE + self.usual;
        let most = if buffers { f64::INFINITY } else { self.silence + tolerance };
        if !(-tolerance..=most).contains(&self.behind) {
            faults.push(format!("its clock is {:.2} s behind", self.behind));
        }
        faults
    }
}

/// How many failed checks are shown.
const SHOWN: usize = 12;

/// Rate of the ACPI PM timer.
const PM_HZ: f64 = 3_579_545.0;

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
        let judged = Judged::of(&here.then(there));
        assert_eq!((judged.beats, judged.lost, judged.bad), (4, 0, 0));
        assert!((judged.silence - 2.5).abs() < 1e-9, "{judged:?}");
    }

    #[test]
    fn a_beat_lost_or_seen_twice_is_counted() {
        assert_eq!(Judged::of(&seen(&[(1.0, 1), (2.0, 3)], "")).lost, 1);
        assert_eq!(Judged::of(&seen(&[(1.0, 1), (2.0, 1)], "")).lost, 1);
    }
}
