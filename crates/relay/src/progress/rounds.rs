//! Which pages came, how often, and when it may end: what a receiver can tell of a pre-copy that another host drives.
//!
//! Source: Xen `tools/libs/guest/xg_sr_save.c` (4.23-unstable; 4.14 to 4.20 agree): `send_dirty_pages` walks the
//! dirty bitmap from page 0 up, once a round; `simple_precopy_policy` stops behind round 5, or behind a round of fewer
//! than 50 pages; `suspend_and_send_dirty` then sends what is left, with the guest suspended.
//!
//! A stream has no mark between rounds, so a round begins here where page numbers start again from a lower one. Two
//! rounds count as one if the second has no page below the first one's last: never the first two, as the first round
//! has every page.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Pages that one piece of the map stands for: 128 MiB of memory in 4 KiB.
const PIECE_PAGES: u64 = 1 << 15;

/// Pieces that we keep at most, 16 MiB in all: page numbers are the sender's word. Of a guest over 512 GiB, pages
/// behind that count as sent once.
const PIECES_MAX: usize = 4096;

/// How the sender decides when to stop the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Precopy {
    /// Pages of the guest's memory.
    pub pages: u64,
    /// Rounds there can be, the last one included; none where the sender knows no limit.
    pub rounds_max: Option<u32>,
    /// A round of fewer pages is followed by the last one.
    pub few_pages: u64,
}

impl Precopy {
    /// As `xl` decides it.
    pub fn of_xen(pages: u64) -> Self {
        Self { pages, rounds_max: Some(6), few_pages: 50 }
    }
}

/// What is to be expected of the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Forecast {
    /// Every page comes for the first time. Of a saved guest there is no other round.
    FirstRound,
    /// Each round has fewer pages than the one before.
    Converges,
    /// Rounds do not get smaller: only the sender's limit, if it has one, ends them.
    WillNotConverge,
    /// The sender makes no more rounds: the guest is stopped.
    LastRound,
}

/// How far the guest's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Pages of the guest's memory.
    pub pages_total: u64,
    /// Pages that came at least once.
    pub pages_sent: u64,
    /// Pages that came again, each time counted.
    pub pages_resent: u64,
    /// The round, from 1; 0 before the first page.
    pub round: u32,
    /// Rounds there can be; none where nobody knows.
    pub rounds_max: Option<u32>,
    /// Pages of this round so far.
    pub round_pages: u64,
    /// Pages that the guest wrote to in a second: those of the last whole round but the first (or of this one so far),
    /// over the time of the round in front of it. None in the first round.
    pub dirty_pages_per_second: Option<u64>,
    /// What is to be expected; none while that is not known.
    pub forecast: Option<Forecast>,
    /// Milliseconds to the end of memory, at the present rate; none while that is not known.
    pub eta_ms: Option<u64>,
}

/// The pages so far.
#[derive(Debug)]
pub(super) struct Rounds {
    precopy: Precopy,
    seen: Vec<Option<Box<Piece>>>,
    sent: u64,
    resent: u64,
    last_page: Option<u64>,
    round: u32,
    current: Round,
    /// The last whole round, and the one in front of it.
    before: [Option<Round>; 2],
}

type Piece = [u64; (PIECE_PAGES / 64) as usize];

#[derive(Clone, Copy, Debug)]
struct Round {
    pages: u64,
    began: Instant,
    /// When its last page came.
    ended: Instant,
}

impl Rounds {
    pub(super) fn new(precopy: Precopy, now: Instant) -> Self {
        let current = Round { pages: 0, began: now, ended: now };
        Self {
            precopy,
            seen: Vec::new(),
            sent: 0,
            resent: 0,
            last_page: None,
            round: 0,
            current,
            before: [None; 2],
        }
    }

    /// A page came. True if a round began with it.
    pub(super) fn page(&mut self, number: u64, now: Instant) -> bool {
        let begins = self.last_page.is_none_or(|last| number <= last);
        if begins {
            if self.round > 0 {
                self.before = [Some(self.current), self.before[0]];
            }
            self.round = self.round.saturating_add(1);
            self.current = Round { pages: 0, began: now, ended: now };
        }
        self.last_page = Some(number);
        self.current.pages += 1;
        self.current.ended = now;
        if self.mark(number) {
            self.resent += 1;
        } else {
            self.sent += 1;
        }
        begins
    }

    /// Pages that came, each time counted.
    pub(super) fn pages(&self) -> u64 {
        self.sent + self.resent
    }

    /// Since when the guest has stood still, if these were all the pages: since the last round but one.
    pub(super) fn stopped(&self) -> Option<Instant> {
        self.before[0].map(|round| round.ended)
    }

    pub(super) fn memory(&self, pages_per_second: u64) -> Memory {
        Memory {
            pages_total: self.precopy.pages,
            pages_sent: self.sent,
            pages_resent: self.resent,
            round: self.round,
            rounds_max: self.precopy.rounds_max,
            round_pages: self.current.pages,
            dirty_pages_per_second: self.dirty_rate(),
            forecast: self.forecast(),
            eta_ms: self
                .pages_left()
                .and_then(|pages| pages.saturating_mul(1000).checked_div(pages_per_second)),
        }
    }

    fn dirty_rate(&self) -> Option<u64> {
        // A round has the pages that were written to since the one in front of it began.
        let (pages, since, until) = match self.before {
            [Some(last), Some(first)] => (last.pages, first.began, last.began),
            [Some(first), None] => (self.current.pages, first.began, self.current.began),
            [None, _] => return None,
        };
        per_second(pages, until.duration_since(since))
    }

    fn forecast(&self) -> Option<Forecast> {
        if self.precopy.rounds_max.is_some_and(|max| self.round >= max) {
            return Some(Forecast::LastRound);
        }
        match self.before {
            [None, _] => Some(Forecast::FirstRound),
            [Some(last), _] if last.pages < self.precopy.few_pages => Some(Forecast::LastRound),
            [Some(last), _] if self.current.pages >= last.pages => Some(Forecast::WillNotConverge),
            [Some(last), Some(first)] if last.pages >= first.pages => Some(Forecast::WillNotConverge),
            [Some(_), Some(_)] => Some(Forecast::Converges),
            // The first round had every page: it says nothing about how many there will be.
            [Some(_), None] => None,
        }
    }

    /// Pages that are still to come, if each round goes to the next as the last two did.
    fn pages_left(&self) -> Option<u64> {
        let (last, first) = match self.before {
            [None, _] => return Some(self.precopy.pages.saturating_sub(self.sent)),
            [Some(last), Some(first)] => (last.pages, first.pages.max(1)),
            [Some(_), None] => return None,
        };
        let next = |pages: u64| {
            u64::try_from(u128::from(pages) * u128::from(last) / u128::from(first)).unwrap_or(u64::MAX)
        };
        let mut pages = next(last).max(self.current.pages);
        let mut left = pages - self.current.pages;
        let mut rounds = match self.precopy.rounds_max {
            _ if last < self.precopy.few_pages => 0,
            Some(max) => max.saturating_sub(self.round),
            None if last >= first => return None,
            // Halved or less each time, no count of pages lasts longer.
            None => 64,
        };
        while rounds > 0 && pages >= self.precopy.few_pages {
            pages = next(pages);
            left = left.saturating_add(pages);
            rounds -= 1;
        }
        Some(left)
    }

    /// Marks a page, and says whether it was marked.
    fn mark(&mut self, number: u64) -> bool {
        let Ok(piece) = usize::try_from(number / PIECE_PAGES) else { return false };
        let Ok(word) = usize::try_from(number % PIECE_PAGES / 64) else { return false };
        if piece >= PIECES_MAX {
            return false;
        }
        if self.seen.len() <= piece {
            self.seen.resize_with(piece + 1, || None);
        }
        let Some(piece) = self.seen.get_mut(piece) else { return false };
        let piece = piece.get_or_insert_with(|| Box::new([0; (PIECE_PAGES / 64) as usize]));
        let Some(word) = piece.get_mut(word) else { return false };
        let bit = 1 << (number % 64);
        let marked = *word & bit != 0;
        *word |= bit;
        marked
    }
}

/// A count over a time; none where the time is too short to say.
pub(super) fn per_second(count: u64, time: Duration) -> Option<u64> {
    let rate = (u128::from(count) * 1_000_000).checked_div(time.as_micros())?;
    u64::try_from(rate).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of these many pages, from page 0 up, a page each millisecond.
    fn rounds(precopy: Precopy, counts: &[u64]) -> Rounds {
        let mut now = Instant::now();
        let mut rounds = Rounds::new(precopy, now);
        for count in counts {
            for number in 0..*count {
                rounds.page(number, now);
                now += Duration::from_millis(1);
            }
        }
        rounds
    }

    fn forecast(counts: &[u64]) -> (Option<Forecast>, Option<u64>) {
        let memory = rounds(Precopy::of_xen(10_000), counts).memory(1000);
        (memory.forecast, memory.eta_ms)
    }

    #[test]
    fn pages_that_come_again_are_counted_and_rounds_begin_where_numbers_start_again() {
        let memory = rounds(Precopy::of_xen(10_000), &[10_000, 500, 20]).memory(1000);
        assert_eq!((memory.pages_sent, memory.pages_resent), (10_000, 520));
        assert_eq!((memory.round, memory.round_pages), (3, 20));
        // 500 pages were written to in the ten seconds of the first round.
        assert_eq!(memory.dirty_pages_per_second, Some(50));
    }

    #[test]
    fn a_round_is_not_begun_by_a_hole_in_memory() {
        let now = Instant::now();
        let mut rounds = Rounds::new(Precopy::of_xen(3), now);
        let begins = [0, 0xeffff, 0x10_0000, 0x10_0000, 7].map(|number| rounds.page(number, now));
        assert_eq!(begins, [true, false, false, true, true]);
        assert_eq!((rounds.sent, rounds.resent), (4, 1));
    }

    #[test]
    fn the_forecast_follows_the_last_rounds() {
        assert_eq!(forecast(&[4000]), (Some(Forecast::FirstRound), Some(6000)));
        assert_eq!(forecast(&[10_000, 100]), (None, None));
        // A tenth each time: the rest of 100, then 10, which are few.
        assert_eq!(forecast(&[10_000, 1000, 1]), (Some(Forecast::Converges), Some(99 + 10)));
        // Up to the sender's limit: the rest of round 4, then rounds 5 and 6.
        assert_eq!(forecast(&[10_000, 1000, 1000, 1]), (Some(Forecast::WillNotConverge), Some(999 + 2000)));
        assert_eq!(forecast(&[10_000, 100, 200]).0, Some(Forecast::WillNotConverge));
        assert_eq!(forecast(&[10_000, 100, 100, 100, 100, 1]).0, Some(Forecast::LastRound));
        assert_eq!(forecast(&[10_000, 100, 49, 60]).0, Some(Forecast::LastRound), "49 were few enough");
    }

    #[test]
    fn without_a_limit_rounds_that_do_not_shrink_have_no_end() {
        let precopy = Precopy { rounds_max: None, ..Precopy::of_xen(10_000) };
        assert_eq!(rounds(precopy, &[10_000, 1000, 1000, 1]).memory(1000).eta_ms, None);
        assert_eq!(rounds(precopy, &[10_000, 1000, 1]).memory(1000).eta_ms, Some(109));
    }

    #[test]
    fn page_numbers_beyond_all_memory_cost_nothing() {
        let now = Instant::now();
        let mut rounds = Rounds::new(Precopy::of_xen(3), now);
        for number in [PIECE_PAGES * PIECES_MAX as u64, u64::MAX, u64::MAX] {
            rounds.page(number, now);
        }
        assert_eq!((rounds.sent, rounds.seen.len()), (3, 0));
    }
}
