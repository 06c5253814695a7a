//! `xen-hvmctx DOMID`: the state of a domain that runs, as text.
//!
//! Source: tools/misc/xen-hvmctx.c of Xen 4.17; type codes from xen/include/public/arch-x86/hvm/save.h.

use crate::guest::{self, Clocks};

/// What the checks need of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    /// Rate of the guest's time-stamp counter, kHz.
    pub(super) tsc_khz: u32,
    /// The HPET's configuration register.
    pub(super) hpet: Option<u64>,
    /// One for each vCPU.
    pub(super) lapic_timers: Vec<LapicTimer>,
    /// Hyper-V enlightenments are in use.
    pub(super) viridian: bool,
}

/// A local APIC's timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LapicTimer {
    pub(super) vcpu: u32,
    /// Its entry of the local vector table.
    pub(super) lvt: u64,
    /// Its initial count.
    pub(super) count: u64,
}

/// HPET_CFG_ENABLE.
const HPET_ENABLED: u64 = 1;
/// Of an entry of the local vector table: masked, and the timer's mode in bits 18:17.
const MASKED: u64 = 1 << 16;
const MODE: u64 = 3 << 17;
const ONE_SHOT: u64 = 0;
const PERIODIC: u64 = 1 << 17;

const LAPIC_REGS: u32 = 6;
const VIRIDIAN: [u32; 2] = [15, 17];

impl LapicTimer {
    fn used(self) -> guest::LapicTimer {
        match self.lvt & MODE {
            _ if self.lvt & MASKED != 0 || self.count == 0 => guest::LapicTimer::Unused,
            PERIODIC => guest::LapicTimer::Periodic,
            ONE_SHOT => guest::LapicTimer::OneShot,
            _ => guest::LapicTimer::Unused,
        }
    }
}

impl Context {
    /// The clocks that matter to a move.
    pub(super) fn clocks(&self) -> Clocks {
        let used = self.lapic_timers.iter().map(|timer| timer.used()).max();
        Clocks {
            hpet: self.hpet.is_some_and(|config| config & HPET_ENABLED != 0),
            lapic_timer: used.unwrap_or(guest::LapicTimer::Unused),
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut context = Self::default();
        let mut record = (0, 0);
        for line in text.lines() {
            if let Some(entry) = line.strip_prefix("Entry ") {
                // Entry 6: type 6 instance 0, length 1024
                let mut words = entry.split([' ', ',']);
                let mut after = |word| {
                    words.by_ref().find(|found| *found == word)?;
                    words.next()?.parse().ok()
                };
                record = (after("type")?, after("instance")?);
                context.viridian |= VIRIDIAN.contains(&record.0);
                if record.0 == LAPIC_REGS {
                    context.lapic_timers.push(LapicTimer { vcpu: record.1, ..LapicTimer::default() });
                }
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["gtsc_khz", khz] = words.as_slice() {
                context.tsc_khz = khz.parse().ok()?;
            }
            if let ["HPET:", "capability", _, "config", config, ..] = words.as_slice() {
                context.hpet = Some(number(config)?);
            }
            if record.0 == LAPIC_REGS
                && let Some(timer) = context.lapic_timers.last_mut()
            {
                for pair in words.windows(2) {
                    match pair {
                        ["0x320:", value] => timer.lvt = number(value)?,
                        ["0x380:", value] => timer.count = number(value)?,
                        _ => {}
                    }
                }
            }
        }
        (context.tsc_khz > 0).then_some(context)
    }
}

/// As `%#x` and `0x%x` print it.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
