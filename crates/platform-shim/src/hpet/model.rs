//! The chip: registers, counter and deadlines. It has no clock of its own, every call says what time it is; and no
//! wires, they come with the call.
//!
//! Where the specification leaves room, or Xen goes its own way, we are as Xen is:
//! * A comparator behind the counter has expired, except that a narrow one more than a millisecond behind is ahead.
//! * A period has 100 µs at least.
//! * A level-triggered timer waits for its acknowledgement before it goes on, a periodic one too.
//! * Writing the counter while it runs has no effect.
//!
//! Unlike Xen, ticks that nobody could take are not made up for: a periodic timer that comes late fires once, as
//! QEMU's does.

use hyperferry_vm_model::{Hpet, HpetTimer};

use super::{
    Error,
    registers::{
        ENABLE, INTERRUPTS, LEGACY, LEVEL, NARROW, PERIODIC, Part, ROUTE, ROUTE_SHIFT, ROUTES_SHIFT,
        Register, SET_VALUE, WRITABLE,
    },
};

const TIMERS: usize = 3;
/// Femtoseconds in a nanosecond.
const FS_PER_NS: u64 = 1_000_000;
/// The longest tick that the specification allows.
const MAX_PERIOD_FS: u64 = 100_000_000;
/// The shortest period of a timer that Xen lets a guest have.
const MIN_TIMER_NS: u64 = 100_000;
/// How far a narrow comparator may be behind and count as expired (1/1024 s in Xen).
const JUST_PAST_NS: u64 = 976_562;
/// Bits of the interrupts that a timer of Xen's can take.
const XEN_ROUTES: u64 = 0x00f0_0000 << ROUTES_SHIFT;
/// Timer: it has 64 bits and can be periodic.
const XEN_ABILITIES: u64 = 1 << 5 | 1 << 4;

/// Where the chip's outputs go.
pub(crate) trait Wires {
    /// A rising edge on an interrupt line.
    fn pulse(&mut self, gsi: u32);
    /// An interrupt line goes up or down.
    fn level(&mut self, gsi: u32, level: bool);
    /// The interval timer loses interrupt 0, or gets it back.
    fn block_pit(&mut self, blocked: bool);
}

/// The chip.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// Low half: capabilities; high half: length of a tick.
    capabilities: u64,
    config: u64,
    isr: u64,
    counter: Counter,
    timers: [Timer; TIMERS],
    /// Interrupt lines that are up, by timer.
    lines: [Option<u32>; TIMERS],
    pit_blocked: bool,
}

/// The main counter.
#[derive(Clone, Copy, Debug)]
struct Counter {
    period_fs: u64,
    /// Where it stands, or stood when it began to run.
    ticks: u64,
    /// When it began to run.
    since: Option<u64>,
    /// The VM runs.
    vm_runs: bool,
}

impl Counter {
    fn at(&self, now: u64) -> u64 {
        self.ticks.wrapping_add(self.to_ticks(self.since.map_or(0, |since| now.saturating_sub(since))))
    }

    /// Runs from now on, or stands.
    fn run(&mut self, now: u64, runs: bool) {
        self.ticks = self.at(now);
        self.since = runs.then_some(now);
    }

    fn to_ticks(self, nanoseconds: u64) -> u64 {
        saturated(u128::from(nanoseconds) * u128::from(FS_PER_NS) / u128::from(self.period_fs))
    }

    fn to_nanoseconds(self, ticks: u64) -> u64 {
        saturated((u128::from(ticks) * u128::from(self.period_fs)).div_ceil(u128::from(FS_PER_NS)))
    }
}

fn saturated(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// A comparator.
#[derive(Clone, Copy, Debug, Default)]
struct Timer {
    config: u64,
    comparator: u64,
    period: u64,
    fsb: u64,
    /// The count at which it fires.
    deadline: Option<u64>,
}

impl Timer {
    fn has(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    /// The part of a count that the timer sees.
    fn seen(&self, count: u64) -> u64 {
        if self.has(NARROW) { count & 0xffff_ffff } else { count }
    }

    /// By how much the comparator is behind the counter, if it is.
    fn behind(&self, count: u64) -> Option<u64> {
        let distance = self.seen(count.wrapping_sub(self.comparator));
        let half = if self.has(NARROW) { 1 << 31 } else { 1 << 63 };
        (distance < half).then_some(distance)
    }

    /// Moves a periodic comparator past the counter.
    fn catch_up(&mut self, count: u64) {
        if self.has(PERIODIC)
            && let Some(behind) = self.behind(count)
            && let Some(periods) = behind.checked_div(self.period)
        {
            let ahead = (periods + 1).wrapping_mul(self.period);
            self.comparator = self.seen(self.comparator.wrapping_add(ahead));
        }
    }

    fn route(&self) -> u64 {
        (self.config & ROUTE) >> ROUTE_SHIFT
    }

    fn can_take(&self, route: u64) -> bool {
        self.config >> ROUTES_SHIFT >> route & 1 != 0
    }
}

fn low(value: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation)]
    let low = value as u32;
    low
}

impl Model {
    /// A chip in a state that was saved. It stands until [`Self::start`].
    pub(crate) fn from_state(state: &Hpet) -> Result<Self, Error> {
        if state.period_fs == 0 || state.period_fs > MAX_PERIOD_FS {
            return Err(Error::Period(state.period_fs));
        }
        let timer = |timer: &HpetTimer| Timer {
            config: timer.config,
            comparator: timer.comparator,
            period: timer.period,
            fsb: timer.fsb,
            deadline: None,
        };
        let timers: Vec<Timer> = state.timers.iter().map(timer).collect();
        let timers = timers.try_into().map_err(|timers: Vec<Timer>| Error::Timers(timers.len()))?;
        let counter =
            Counter { period_fs: state.period_fs, ticks: state.counter, since: None, vm_runs: false };
        let mut model = Self {
            capabilities: state.capabilities & 0xffff_ffff | state.period_fs << 32,
            config: state.config,
            isr: state.isr,
            counter,
            timers,
            lines: [None; TIMERS],
            pit_blocked: false,
        };
        model.each_timer(|model, n| model.arm(n, state.counter, true));
        Ok(model)
    }

    /// The state to be saved; the chip stands.
    pub(crate) fn state(&self) -> Hpet {
        let timer = |timer: &Timer| HpetTimer {
            config: timer.config,
            comparator: timer.comparator,
            period: timer.period,
            fsb: timer.fsb,
        };
        Hpet {
            period_fs: self.counter.period_fs,
            capabilities: self.capabilities & 0xffff_ffff,
            config: self.config,
            isr: self.isr,
            counter: self.counter.ticks,
            timers: self.timers.iter().map(timer).collect(),
        }
    }

    /// The VM begins to run.
    pub(crate) fn start(&mut self, now: u64, wires: &mut dyn Wires) {
        self.counter.vm_runs = true;
        self.counter.run(now, self.enabled());
        self.settle(wires);
    }

    /// The VM stops: the counter stands, and what the guest would read is what is saved.
    pub(crate) fn stop(&mut self, now: u64) {
        self.counter.run(now, false);
        self.counter.vm_runs = false;
    }

    /// As after power on, while the VM runs.
    pub(crate) fn reset(&mut self, wires: &mut dyn Wires) {
        self.config = 0;
        self.isr = 0;
        self.counter.ticks = 0;
        self.counter.since = None;
        self.timers =
            [Timer { config: XEN_ROUTES | XEN_ABILITIES, comparator: u64::MAX, ..Timer::default() }; TIMERS];
        self.settle(wires);
    }

    /// What the guest reads.
    pub(crate) fn read(&mut self, offset: u64, length: u32, now: u64) -> u64 {
        match (Part::new(offset, length), Register::at(offset)) {
            (None, _) => u64::MAX,
            (Some(_), None) => 0,
            (Some(part), Some(register)) => part.of(self.register(register, now)),
        }
    }

    fn register(&mut self, register: Register, now: u64) -> u64 {
        match register {
            Register::Capabilities => self.capabilities,
            Register::Configuration => self.config,
            Register::Status => self.isr,
            Register::Counter => self.counter.at(now),
            Register::TimerConfiguration(n) => self.timer(n).config,
            Register::TimerFsb(n) => self.timer(n).fsb,
            Register::TimerComparator(n) => {
                let count = self.counter.at(now);
                let enabled = self.enabled();
                let timer = self.timer(n);
                if enabled {
                    timer.catch_up(count);
                }
                timer.seen(timer.comparator)
            }
        }
    }

    /// What the guest writes.
    pub(crate) fn write(&mut self, offset: u64, length: u32, value: u64, now: u64, wires: &mut dyn Wires) {
        let (Some(part), Some(register)) = (Part::new(offset, length), Register::at(offset)) else { return };
        // What is due comes before what changes.
        self.expire(now, wires);
        let old = self.register(register, now);
        let new = part.written(old, value);
        match register {
            Register::Capabilities => {}
            Register::Configuration => self.configure(new, now),
            Register::Status => self.acknowledge(part.placed(value), now),
            Register::Counter => {
                if !self.enabled() {
                    self.counter.ticks = new;
                }
            }
            Register::TimerConfiguration(n) => self.configure_timer(n, new, now),
            Register::TimerComparator(n) => self.compare(n, part, value, now),
            Register::TimerFsb(n) => self.timer(n).fsb = new,
        }
        self.settle(wires);
    }

    /// Lets everything fire that is due.
    pub(crate) fn expire(&mut self, now: u64, wires: &mut dyn Wires) {
        let count = self.counter.at(now);
        self.each_timer(|model, n| {
            let due = |deadline: u64| count.wrapping_sub(deadline).cast_signed() >= 0;
            if model.counter.since.is_some() && model.timer(n).deadline.is_some_and(due) {
                model.fire(n, count, wires);
            }
        });
        self.settle(wires);
    }

    /// When the next timer fires.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let since = self.counter.since?;
        let ticks = self.timers.iter().filter_map(|timer| timer.deadline);
        let ticks = ticks.map(|deadline| deadline.wrapping_sub(self.counter.ticks));
        // What is due already is a little behind.
        let nanoseconds =
            |ticks: u64| if ticks.cast_signed() < 0 { 0 } else { self.counter.to_nanoseconds(ticks) };
        ticks.map(|ticks| since.saturating_add(nanoseconds(ticks))).min()
    }

    fn timer(&mut self, n: usize) -> &mut Timer {
        let [first, second, third] = &mut self.timers;
        match n {
            0 => first,
            1 => second,
            _ => third,
        }
    }

    fn each_timer(&mut self, mut what: impl FnMut(&mut Self, usize)) {
        (0..TIMERS).for_each(|n| what(self, n));
    }

    fn enabled(&self) -> bool {
        self.config & ENABLE != 0
    }

    /// The timer takes an interrupt of the interval timer or the clock.
    fn is_legacy(&self, n: usize) -> bool {
        n <= 1 && self.config & LEGACY != 0
    }

    /// The interrupt that the timer takes. KVM's line 0 is pin 2 of the IOAPIC and input 0 of the PIC.
    fn gsi(&mut self, n: usize) -> u32 {
        match (self.is_legacy(n), n) {
            (true, 0) => 0,
            (true, _) => 8,
            (false, _) => low(self.timer(n).route()),
        }
    }

    fn configure(&mut self, new: u64, now: u64) {
        let was = self.enabled();
        self.config = self.config & !(ENABLE | LEGACY) | new & (ENABLE | LEGACY);
        self.each_timer(Self::mend_route);
        let is = self.enabled();
        if was == is {
            return;
        }
        let runs = is && self.counter.vm_runs;
        self.counter.run(now, runs);
        let count = self.counter.ticks;
        self.each_timer(|model, n| {
            let timer = model.timer(n);
            timer.comparator = timer.seen(timer.comparator);
            if is { model.arm(n, count, false) } else { timer.deadline = None }
        });
    }

    fn configure_timer(&mut self, n: usize, new: u64, now: u64) {
        let count = self.counter.at(now);
        let timer = self.timer(n);
        let old = timer.config;
        timer.config = old & !WRITABLE | new & WRITABLE;
        timer.comparator = timer.seen(timer.comparator);
        timer.period = timer.seen(timer.period);
        let (set, changed) = (timer.config & !old, timer.config ^ old);
        self.mend_route(n);
        if self.timer(n).config & INTERRUPTS == 0 {
            self.timer(n).deadline = None;
        } else if set & (INTERRUPTS | NARROW) != 0 || changed & PERIODIC != 0 {
            self.arm(n, count, false);
        }
    }

    /// Which interrupt a timer takes when it is told one that it cannot: none, or the first that it can.
    fn mend_route(&mut self, n: usize) {
        let legacy = self.is_legacy(n);
        let timer = self.timer(n);
        if legacy || timer.can_take(timer.route()) {
            return;
        }
        timer.config &= !ROUTE;
        if timer.has(INTERRUPTS) {
            let first = u64::from((timer.config >> ROUTES_SHIFT).trailing_zeros());
            timer.config |= first << ROUTE_SHIFT & ROUTE;
        }
    }

    /// The guest writes a comparator: in periodic mode the period, unless it has asked for the other.
    fn compare(&mut self, n: usize, part: Part, value: u64, now: u64) {
        let counter = self.counter;
        let timer = self.timer(n);
        if timer.has(PERIODIC) && !timer.has(SET_VALUE) {
            let longest = if timer.has(NARROW) { 0x7fff_ffff } else { u64::MAX >> 1 };
            let shortest = counter.to_ticks(MIN_TIMER_NS);
            timer.period = timer.seen(part.written(timer.period, value)).clamp(shortest, longest);
        } else {
            timer.config &= !SET_VALUE;
            timer.comparator = timer.seen(part.written(timer.comparator, value));
        }
        self.arm(n, counter.at(now), false);
    }

    /// The guest says which interrupts it has seen.
    fn acknowledge(&mut self, bits: u64, now: u64) {
        let count = self.counter.at(now);
        self.each_timer(|model, n| {
            let bit = 1 << n;
            if model.isr & bits & bit != 0 {
                model.isr &= !bit;
                if model.timer(n).has(LEVEL) && model.timer(n).has(PERIODIC) {
                    model.arm(n, count, false);
                }
            }
        });
    }

    /// Sets a timer's deadline. A state that was loaded has been on its way for longer than a tick: what is behind
    /// by less than half the counter's range has expired.
    fn arm(&mut self, n: usize, count: u64, loaded: bool) {
        let pending = self.isr & 1 << n != 0;
        let enabled = self.enabled();
        let just_past = self.counter.to_ticks(JUST_PAST_NS);
        let timer = self.timer(n);
        timer.deadline = None;
        if !enabled || !timer.has(INTERRUPTS) || timer.has(LEVEL) && pending {
            return;
        }
        timer.catch_up(count);
        let (comparator, seen) = (timer.seen(timer.comparator), timer.seen(count));
        let ahead = timer.seen(comparator.wrapping_sub(seen));
        let expired = if timer.has(NARROW) && !loaded {
            comparator < seen && seen - comparator <= just_past
        } else {
            timer.behind(count).is_some()
        };
        timer.deadline = Some(count.wrapping_add(if expired { 0 } else { ahead }));
    }

    fn fire(&mut self, n: usize, count: u64, wires: &mut dyn Wires) {
        let gsi = self.gsi(n);
        let timer = self.timer(n);
        timer.deadline = None;
        if timer.has(LEVEL) {
            self.isr |= 1 << n;
            return;
        }
        if timer.has(PERIODIC) && timer.period != 0 {
            self.arm(n, count, false);
        }
        wires.pulse(gsi);
    }

    /// Brings the outputs into line with the registers.
    fn settle(&mut self, wires: &mut dyn Wires) {
        let blocked = self.config & (ENABLE | LEGACY) == ENABLE | LEGACY;
        if blocked != self.pit_blocked {
            self.pit_blocked = blocked;
            wires.block_pit(blocked);
        }
        self.each_timer(|model, n| {
            let gsi = model.gsi(n);
            let up = model.enabled() && model.isr & 1 << n != 0 && {
                let timer = model.timer(n);
                timer.has(LEVEL) && timer.has(INTERRUPTS)
            };
            let wanted = up.then_some(gsi);
            let Some(line) = model.lines.get_mut(n) else { return };
            if *line != wanted {
                if let Some(old) = line.take() {
                    wires.level(old, false);
                }
                if let Some(new) = wanted {
                    wires.level(new, true);
                }
                *line = wanted;
            }
        });
    }
}

#[cfg(test)]
mod tests;
