//! Who runs on which processors.
//!
//! Whoever feeds and whoever drains have one each, and what is measured has all others. Left to itself the scheduler puts
//! two of the three on one processor every now and then, and a run takes two to five times as long: that is a lottery, and
//! not a difference between two programs.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::thread;

/// A place in the bench.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seat {
    Feeder,
    Sink,
    Measured,
}

/// Takes a seat for this thread, and for the processes and threads that it starts. With fewer than three processors there
/// are none.
pub(super) fn take(seat: Seat) {
    let Ok(all) = sched_getaffinity(None) else { return };
    let mut processors = (0..CpuSet::MAX_CPU).filter(|processor| all.is_set(*processor));
    let (Some(feeder), Some(sink), Some(first)) = (processors.next(), processors.next(), processors.next())
    else {
        return;
    };
    let mut set = CpuSet::new();
    match seat {
        Seat::Feeder => set.set(feeder),
        Seat::Sink => set.set(sink),
        Seat::Measured => std::iter::once(first).chain(processors).for_each(|processor| set.set(processor)),
    }
    // Where it may not, all run as they would.
    let _unchanged = sched_setaffinity(None, &set);
}

/// Runs something in a seat of its own, and leaves this thread where it is.
pub(super) fn within<T: Send>(seat: Seat, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            take(seat);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
