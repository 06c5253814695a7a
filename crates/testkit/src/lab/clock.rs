//! A guest's own clock across a move, against this machine's.
//!
//! A line of the guest's tells its clock. A busy port or a busy host makes it late, and nothing makes it early: of many lines
//! the one that came soonest says how the two clocks stand to each other. How that differs from before a move to after it
//! is how long the guest's clock stood still.

use super::console::TimedBeat;
use crate::witness::Beat;

/// By how much a guest's clock may seem to stand still for longer than the guest was silent, or to have leapt, seconds.
pub const CLOCK_TOLERANCE: f64 = 0.5;
/// And by how much for each second that it was watched: the clocks of emulated hosts are not ours.
const DRIFT: f64 = 0.005;
/// The Linux witness prints its wall clock in whole seconds.
const WALL_TOLERANCE: f64 = 1.1;
/// Rate of the ACPI PM timer.
const PM_HZ: f64 = 3_579_545.0;

/// What a guest's clock did over a move.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// For how long it stood still; negative if it leapt ahead. Seconds.
    pub stood: f64,
    /// By how much its wall clock moved against the monotonic one, seconds.
    pub wall: f64,
    /// For how long it was watched, seconds.
    watched: f64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { stood: f64::NAN, wall: 0.0, watched: 0.0 }
    }
}

impl Clock {
    /// Judges by what came before a move, and what came after it.
    #[must_use]
    pub fn over(before: &[TimedBeat], after: &[TimedBeat]) -> Self {
        let walls =
            before.iter().chain(after).filter_map(|(_, beat)| Some(beat.number("wall")? - clock(beat)?));
        let (least, most) = walls.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), wall| {
            (least.min(wall), most.max(wall))
        });
        Self {
            stood: lag(after).zip(lag(before)).map_or(f64::NAN, |(after, before)| after - before),
            wall: (most - least).max(0.0),
            watched: before.first().zip(after.last()).map_or(0.0, |(first, last)| last.0 - first.0),
        }
    }

    /// What is wrong with it, for a guest that was silent for so long, and whose clock may leap ahead by so much.
    #[must_use]
    pub fn fault(&self, silence: f64, leap: f64) -> Option<String> {
        let tolerance = CLOCK_TOLERANCE + DRIFT * self.watched;
        if !(-leap - tolerance..=silence + tolerance).contains(&self.stood) {
            return Some(format!(
                "its clock stood still for {:.2} s and the guest for {silence:.2} s",
                self.stood
            ));
        }
        (self.wall > WALL_TOLERANCE).then(|| format!("its wall clock moved by {:.2} s", self.wall))
    }
}

/// What a guest's clock shows, seconds.
fn clock(beat: &Beat) -> Option<f64> {
    beat.number("mono").or_else(|| Some(beat.number("pm")? / PM_HZ))
}

/// How much later than the guest's clock ours was, by the line that came soonest.
fn lag(beats: &[TimedBeat]) -> Option<f64> {
    beats.iter().filter_map(|(came, beat)| Some(came - clock(beat)?)).min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::witness;

    /// A beat each half second of the guest's clock from `from`; our clock is ahead of it by `ahead`, and each line late by
    /// what `late` says.
    fn beats(from: u32, ahead: f64, late: impl Fn(u32) -> f64) -> Vec<TimedBeat> {
        let line = |number: u32| {
            let mono = f64::from(number) / 2.0;
            let line = format!("WITNESS beat={number} bad=0 mono={mono:.3} wall={:.0}", mono + 1000.0);
            (mono + ahead + late(number), witness::beat(&line).unwrap())
        };
        (from..from + 20).map(line).collect()
    }

    /// Lines as a busy port brings them: late by seconds, now and then on time.
    fn busy(number: u32) -> f64 {
        f64::from(number * 7 % 10) / 3.0
    }

    #[test]
    fn a_clock_may_stand_still_for_the_silence_and_no_longer() {
        let before = beats(0, 100.0, busy);
        for (ahead, wrong) in [(100.0, false), (102.0, false), (102.8, true), (99.2, true)] {
            let clock = Clock::over(&before, &beats(21, ahead, busy));
            assert!((clock.stood - (ahead - 100.0)).abs() < 1e-6, "{clock:?}");
            assert_eq!(clock.fault(2.0, 0.0).is_some(), wrong, "{clock:?}");
        }
    }

    #[test]
    fn lines_that_come_late_say_nothing_about_the_clock() {
        let clock = Clock::over(&beats(0, 100.0, |_| 0.01), &beats(21, 101.0, busy));
        assert_eq!(clock.fault(1.0, 0.0), None);
        let clock = Clock::over(&beats(0, 100.0, busy), &beats(21, 101.0, |_| 0.01));
        assert_eq!(clock.fault(1.0, 0.0), None);
    }

    #[test]
    fn a_wall_clock_that_was_set_is_seen() {
        let mut after = beats(21, 101.0, busy);
        assert_eq!(Clock::over(&beats(0, 100.0, busy), &after).fault(1.0, 0.0), None);
        let later = witness::beat("WITNESS beat=50 bad=0 mono=25.000 wall=1028").unwrap();
        after.push((126.5, later));
        assert!(Clock::over(&beats(0, 100.0, busy), &after).fault(1.0, 0.0).unwrap().contains("wall clock"));
    }

    #[test]
    fn a_guest_that_said_nothing_has_no_clock() {
        assert!(Clock::over(&beats(0, 100.0, busy), &[]).fault(1.0, 0.0).is_some());
    }
}
