//! The chip at its own pace: a tick is 16 ns, and the tests say what time it is.

use super::*;

const MS: u64 = 1_000_000;
/// Ticks of a millisecond.
const TICKS: u64 = 62_500;
const CONFIG: u64 = 0x10;
const STATUS: u64 = 0x20;
const COUNTER: u64 = 0xf0;

/// What came out of the wires.
#[derive(Debug, Default)]
struct Record(Vec<String>);

impl Wires for Record {
    fn pulse(&mut self, gsi: u32) {
        self.0.push(format!("pulse {gsi}"));
    }

    fn level(&mut self, gsi: u32, level: bool) {
        self.0.push(format!("{gsi} {}", if level { "up" } else { "down" }));
    }

    fn block_pit(&mut self, blocked: bool) {
        self.0.push(format!("pit {}", if blocked { "off" } else { "on" }));
    }
}

impl Record {
    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.0)
    }
}

/// What Xen's chip is like after power on.
fn power_on() -> Hpet {
    let timer =
        HpetTimer { config: XEN_ROUTES | XEN_ABILITIES, comparator: u64::MAX, ..HpetTimer::default() };
    Hpet {
        period_fs: 16_000_000,
        capabilities: 0x8086_a201,
        config: 0,
        isr: 0,
        counter: 0,
        timers: vec![timer; 3],
    }
}

/// The counter runs, and no comparator is near it.
fn counting() -> Hpet {
    let mut state = Hpet { config: ENABLE, ..power_on() };
    state.timers.iter_mut().for_each(|timer| timer.comparator = 1 << 40);
    state
}

/// A chip whose VM runs since time 0.
struct Bench {
    chip: Model,
    wires: Record,
}

impl Bench {
    fn new(state: &Hpet) -> Self {
        let mut bench = Self { chip: Model::from_state(state).unwrap(), wires: Record::default() };
        bench.chip.start(0, &mut bench.wires);
        bench
    }

    fn write(&mut self, offset: u64, value: u64, now: u64) {
        self.chip.write(offset, 8, value, now, &mut self.wires);
    }

    fn read(&mut self, offset: u64, now: u64) -> u64 {
        self.chip.read(offset, 8, now)
    }

    /// Sleeps from deadline to deadline as the time keeper does, and says when something came out.
    fn until(&mut self, end: u64) -> Vec<(u64, String)> {
        let mut seen = Vec::new();
        while let Some(at) = self.chip.next_deadline().filter(|at| *at <= end) {
            self.chip.expire(at, &mut self.wires);
            seen.extend(self.wires.take().into_iter().map(|what| (at, what)));
        }
        seen
    }
}

fn timer(n: u64) -> u64 {
    0x100 + 0x20 * n
}

fn comparator(n: u64) -> u64 {
    timer(n) + 8
}

fn pulses(times: &[u64], gsi: u32) -> Vec<(u64, String)> {
    times.iter().map(|time| (*time, format!("pulse {gsi}"))).collect()
}

#[test]
fn it_says_what_xens_says_of_itself() {
    let mut bench = Bench::new(&power_on());
    assert_eq!(bench.read(0, 0), 0x00f4_2400_8086_a201);
    assert_eq!(bench.read(timer(2), 0), 0x00f0_0000_0000_0030);
    assert_eq!(bench.read(comparator(0), 0), u64::MAX);
    assert_eq!((bench.read(0x160, 0), bench.chip.read(0xf1, 4, 0)), (0, u64::MAX));
}

#[test]
fn the_counter_runs_at_62_5_mhz_while_the_vm_does() {
    let mut bench = Bench::new(&Hpet { config: 1, counter: 1_000, ..power_on() });
    assert_eq!(bench.read(COUNTER, MS), 1_000 + TICKS);
    bench.chip.stop(2 * MS);
    assert_eq!(bench.chip.state().counter, 1_000 + 2 * TICKS);
    assert_eq!(bench.read(COUNTER, 9 * MS), 1_000 + 2 * TICKS);
    bench.chip.start(10 * MS, &mut bench.wires);
    assert_eq!(bench.read(COUNTER, 11 * MS), 1_000 + 3 * TICKS);
    assert_eq!(bench.chip.read(COUNTER + 4, 4, 11 * MS), 0);
}

#[test]
fn the_guest_stops_sets_and_starts_the_counter() {
    let mut bench = Bench::new(&counting());
    bench.write(COUNTER, 5, MS);
    assert_eq!(bench.read(COUNTER, MS), TICKS, "not while it runs");
    bench.write(CONFIG, 0, MS);
    assert_eq!(bench.read(COUNTER, 5 * MS), TICKS);
    bench.chip.write(COUNTER + 4, 4, 1, 5 * MS, &mut bench.wires);
    bench.chip.write(COUNTER, 4, 7, 5 * MS, &mut bench.wires);
    assert_eq!(bench.read(COUNTER, 6 * MS), 1 << 32 | 7);
    bench.write(CONFIG, 1, 6 * MS);
    assert_eq!(bench.read(COUNTER, 7 * MS), (1 << 32 | 7) + TICKS);
}

#[test]
fn a_shot_fires_once_on_its_route() {
    let mut bench = Bench::new(&counting());
    bench.write(timer(2), 21 << 9 | INTERRUPTS, 0);
    bench.write(comparator(2), 3 * TICKS, 0);
    assert_eq!(bench.until(100 * MS), pulses(&[3 * MS], 21));
    assert_eq!(bench.read(STATUS, 100 * MS), 0, "edges leave no status");
    assert_eq!(bench.chip.next_deadline(), None);
}

#[test]
fn a_route_that_the_timer_cannot_take_becomes_one_that_it_can() {
    let mut bench = Bench::new(&counting());
    bench.write(timer(0), 5 << 9, 0);
    assert_eq!(bench.read(timer(0), 0) & ROUTE, 0);
    bench.write(timer(0), 5 << 9 | INTERRUPTS, 0);
    assert_eq!((bench.read(timer(0), 0) & ROUTE) >> ROUTE_SHIFT, 20);
    bench.write(timer(0), 1 << 14 | INTERRUPTS, 0);
    assert_eq!(bench.read(timer(0), 0) & 1 << 14, 0, "no FSB delivery");
}

#[test]
fn a_period_begins_at_the_accumulator_and_goes_on_for_ever() {
    // As Linux and the witness program it: accumulator first, then the period.
    let mut bench = Bench::new(&power_on());
    bench.write(timer(0), INTERRUPTS | PERIODIC | SET_VALUE | NARROW, 0);
    bench.write(comparator(0), 2 * TICKS, 0);
    assert_eq!(bench.read(timer(0), 0) & SET_VALUE, 0);
    bench.write(comparator(0), 10 * TICKS, 0);
    bench.write(CONFIG, ENABLE | LEGACY, 0);
    assert_eq!(bench.wires.take(), ["pit off"]);
    assert_eq!(bench.until(40 * MS), pulses(&[2 * MS, 12 * MS, 22 * MS, 32 * MS], 0));
    assert_eq!(bench.read(comparator(0), 40 * MS), 42 * TICKS);
    bench.write(CONFIG, ENABLE, 40 * MS);
    assert_eq!(bench.wires.take(), ["pit on"]);
}

#[test]
fn a_period_that_comes_late_fires_once_and_keeps_its_phase() {
    let mut bench = Bench::new(&Hpet { config: ENABLE | LEGACY, ..counting() });
    bench.write(timer(1), INTERRUPTS | PERIODIC | SET_VALUE, 0);
    bench.write(comparator(1), TICKS, 0);
    bench.write(comparator(1), TICKS, 0);
    bench.wires.take();
    bench.chip.expire(5 * MS + 1, &mut bench.wires);
    assert_eq!(bench.wires.take(), ["pulse 8"]);
    assert_eq!(bench.chip.next_deadline(), Some(6 * MS));
}

#[test]
fn periods_too_short_for_xen_are_stretched() {
    let mut bench = Bench::new(&counting());
    bench.write(timer(0), INTERRUPTS | PERIODIC, 0);
    bench.write(comparator(0), 1, 0);
    assert_eq!(bench.chip.state().timers[0].period, 6_250);
}

#[test]
fn a_level_holds_until_the_guest_has_seen_it() {
    let mut bench = Bench::new(&counting());
    bench.write(timer(2), 22 << 9 | INTERRUPTS | LEVEL | PERIODIC | SET_VALUE, 0);
    bench.write(comparator(2), TICKS, 0);
    bench.write(comparator(2), TICKS, 0);
    assert_eq!(bench.until(9 * MS), [(MS, "22 up".to_owned())], "no further tick before the acknowledgement");
    assert_eq!(bench.read(STATUS, 9 * MS), 4);
    bench.write(comparator(2), 2 * TICKS, 9 * MS);
    assert_eq!(bench.chip.next_deadline(), None);
    bench.write(STATUS, 3, 9 * MS);
    assert!(bench.wires.take().is_empty(), "others' bits do nothing");
    bench.write(STATUS, 4, 9 * MS + 1);
    assert_eq!(bench.wires.take(), ["22 down"]);
    assert_eq!(bench.chip.next_deadline(), Some(10 * MS));
}

#[test]
fn a_timer_that_is_switched_off_does_not_fire() {
    let mut bench = Bench::new(&counting());
    bench.write(timer(0), 20 << 9 | INTERRUPTS, 0);
    bench.write(comparator(0), TICKS, 0);
    bench.write(timer(0), 20 << 9, 0);
    assert_eq!(bench.until(5 * MS), []);
}

#[test]
fn a_level_falls_when_the_timer_is_switched_off() {
    let mut bench = Bench::new(&counting());
    bench.write(timer(2), 22 << 9 | INTERRUPTS | LEVEL, 0);
    bench.write(comparator(2), TICKS, 0);
    bench.until(MS);
    bench.write(timer(2), 22 << 9 | LEVEL, 2 * MS);
    assert_eq!(bench.wires.take(), ["22 down"]);
}

#[test]
fn what_is_past_fires_at_once_and_what_wrapped_is_ahead() {
    let mut bench = Bench::new(&Hpet { counter: 0xffff_ff00, ..counting() });
    bench.write(timer(0), 20 << 9 | INTERRUPTS, 0);
    bench.write(comparator(0), 0xffff_0000, 0);
    assert_eq!(bench.until(0), pulses(&[0], 20), "64 bits: past");
    bench.write(timer(0), 20 << 9 | INTERRUPTS | NARROW, 0);
    bench.until(0);
    bench.write(comparator(0), 0xffff_0000, 0);
    assert_eq!(bench.until(0), [], "32 bits, 1.04 ms behind: a round ahead");
    assert_eq!(bench.chip.next_deadline(), Some((0x1_0000_0000 - 0xff00) * 16));
    bench.write(comparator(0), 0xffff_fe00, 0);
    assert_eq!(bench.until(0), pulses(&[0], 20), "32 bits, 4 us behind: past");
    bench.write(comparator(0), 0x100, 0);
    assert_eq!(bench.until(10 * MS), pulses(&[0x200 * 16], 20), "32 bits: past the wrap");
}

#[test]
fn a_shot_that_was_fired_stays_fired_when_the_guest_only_touches_its_configuration() {
    let mut bench = Bench::new(&counting());
    bench.write(timer(0), 20 << 9 | INTERRUPTS, 0);
    bench.write(comparator(0), TICKS, 0);
    assert_eq!(bench.until(5 * MS).len(), 1);
    bench.write(timer(0), 21 << 9 | INTERRUPTS, 5 * MS);
    assert_eq!(bench.chip.next_deadline(), None);
    bench.write(timer(0), 21 << 9 | INTERRUPTS | PERIODIC, 5 * MS);
    assert!(bench.chip.next_deadline().is_some());
}

#[test]
fn a_state_that_was_loaded_goes_on_where_it_was() {
    let mut state = Hpet { config: ENABLE | LEGACY, counter: 100 * TICKS, isr: 4, ..power_on() };
    state.timers[0].config |= INTERRUPTS | PERIODIC | NARROW;
    (state.timers[0].comparator, state.timers[0].period) = (103 * TICKS, 10 * TICKS);
    state.timers[2].config |= INTERRUPTS | LEVEL | 23 << ROUTE_SHIFT;
    state.timers[2].comparator = 99 * TICKS;
    let mut bench = Bench::new(&state);
    assert_eq!(bench.wires.take(), ["pit off", "23 up"]);
    assert_eq!(bench.until(15 * MS), pulses(&[3 * MS, 13 * MS], 0));
    bench.chip.stop(15 * MS);
    assert_eq!(bench.chip.next_deadline(), None);
    let saved = bench.chip.state();
    assert_eq!((saved.counter, saved.isr), (115 * TICKS, 4));
    assert_eq!(saved.timers[0].comparator, 123 * TICKS);
}

#[test]
fn a_narrow_shot_that_was_on_its_way_across_the_wrap_is_kept() {
    let mut state = Hpet { config: ENABLE, counter: 0xffff_fff0, ..power_on() };
    state.timers[0].config |= INTERRUPTS | NARROW | 20 << ROUTE_SHIFT;
    state.timers[0].comparator = 0x10;
    assert_eq!(Bench::new(&state).until(MS), pulses(&[0x20 * 16], 20));
    state.timers[0].comparator = 0xfff0_0000;
    assert_eq!(Bench::new(&state).until(MS), pulses(&[0], 20), "past while the guest was on its way");
}

#[test]
fn a_comparator_of_all_ones_is_behind_as_in_xen() {
    let mut bench = Bench::new(&Hpet { config: ENABLE, ..power_on() });
    bench.write(timer(0), 20 << 9 | INTERRUPTS, 5);
    assert_eq!(bench.until(5), pulses(&[0], 20));
}

#[test]
fn a_reset_silences_everything() {
    let mut state = Hpet { config: ENABLE | LEGACY, isr: 4, counter: 9, ..power_on() };
    state.timers[2].config |= INTERRUPTS | LEVEL | 23 << ROUTE_SHIFT;
    let mut bench = Bench::new(&state);
    bench.wires.take();
    bench.chip.reset(&mut bench.wires);
    assert_eq!(bench.wires.take(), ["pit on", "23 down"]);
    assert_eq!(bench.chip.state(), power_on());
    bench.write(CONFIG, 1, 7 * MS);
    assert_eq!(bench.read(COUNTER, 8 * MS), TICKS);
}

#[test]
fn no_access_of_any_guest_brings_it_down() {
    // A little generator (xorshift) instead of a library: the same accesses each time.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut bench = Bench::new(&power_on());
    let mut now = 0;
    for _ in 0..200_000 {
        let (offset, value) = (next() % 0x180, next() >> (next() % 64));
        let length = 1 << (next() % 5);
        bench.chip.write(offset, length, value, now, &mut bench.wires);
        bench.chip.read(next() % 0x180, length, now);
        now += next() % MS;
        bench.chip.expire(now, &mut bench.wires);
        assert!(
            bench.chip.next_deadline().is_none_or(|at| at >= now.saturating_sub(16)),
            "all that was due has fired"
        );
        bench.wires.take();
    }
}
