//! The local APIC and its timer.
//!
//! The guest has measured the bus clock: Xen's is 100 MHz, KVM's 1 GHz unless told otherwise. A duration in
//! nanoseconds is what must stay the same: count * divisor * cycle.

use hyperferry_vm_model::{ApicTimer, Lapic, LocalVectorTable};

use super::NS;
use crate::fate::Fates;
use crate::state::LapicState;
use crate::{Error, Result};

/// LVT timer mode, bits 18:17: TSC deadline.
const TSC_DEADLINE: u32 = 0b10;
/// Mask bit of an LVT entry.
const MASKED: u32 = 1 << 16;

/// The id that the vCPU must be created with.
pub(super) fn vcpu_id(lapic: &Lapic) -> Result<u32> {
    if lapic.id > 0xff {
        // Without KVM_CAP_X2APIC_API the register page holds 8 bits of it.
        return Err(Error::field("lapic.id", lapic.id, "at most 255"));
    }
    Ok(lapic.id)
}

pub(super) fn localise(lapic: &Lapic, cycle_ns: u32, fates: &mut Fates) -> Result<LapicState> {
    let Lapic {
        id: _,
        apic_base: _,
        version,
        tpr,
        ldr,
        dfr,
        svr,
        isr,
        tmr,
        irr,
        esr,
        pending_esr,
        icr,
        lvt,
        timer,
    } = *lapic;
    let id = vcpu_id(lapic)?;
    fates.carried(&["lapic.apic_base"], "sregs.apic_base");
    fates.carried(&["lapic.id"], "lapic.id, and the id of KVM_CREATE_VCPU");
    fates.carried(
        &[
            "lapic.tpr",
            "lapic.ldr",
            "lapic.dfr",
            "lapic.svr",
            "lapic.isr",
            "lapic.tmr",
            "lapic.irr",
            "lapic.esr",
            "lapic.icr",
            "lapic.lvt",
        ],
        "",
    );
    fates.carried(&["lapic.version"], "KVM replaces it by its own, 0x50014");
    fates.dropped("lapic.pending_esr", drop_note(pending_esr, "KVM has no errors that wait for ESR"));
    let LocalVectorTable { timer: lvt_timer, thermal, performance, lint0, lint1, error } = lvt;
    let counts = localise_timer(&timer, lvt_timer, cycle_ns, fates);
    Ok(LapicState {
        id: id << 24,
        version,
        tpr,
        ldr,
        dfr,
        svr,
        isr,
        tmr,
        irr,
        esr,
        icr,
        lvt_timer,
        lvt_thermal: thermal,
        lvt_performance: performance,
        lvt_lint0: lint0,
        lvt_lint1: lint1,
        lvt_error: error,
        initial_count: counts.initial,
        current_count: counts.current,
        divide_configuration: timer.divide_configuration,
        // KVM computes PPR and never had a guest that programs CMCI on the other side.
        ..LapicState::default()
    })
}

struct Counts {
    initial: u32,
    current: u32,
}

fn localise_timer(timer: &ApicTimer, lvt_timer: u32, cycle_ns: u32, fates: &mut Fates) -> Counts {
    fates.carried(&["lapic.timer.divide_configuration"], "");
    fates.carried(&["lapic.timer.tsc_deadline"], "MSR IA32_TSC_DEADLINE");
    let cycle_hz = NS / u64::from(cycle_ns.max(1));
    let initial = if timer.bus_hz == 0 {
        fates.defaulted("lapic.timer.bus_hz", format!("unknown: taken for {cycle_hz} Hz"));
        timer.initial_count
    } else if timer.bus_hz.checked_mul(cycle_ns.into()) == Some(NS) {
        fates.carried(&["lapic.timer.bus_hz", "lapic.timer.initial_count"], "apic_bus_cycle_ns");
        timer.initial_count
    } else {
        let bus_hz = timer.bus_hz;
        fates.derived(
            "lapic.timer.bus_hz",
            format!("{bus_hz} Hz becomes {cycle_hz} Hz; the guest measured the former"),
        );
        let scaled =
            u128::from(timer.initial_count) * u128::from(NS) / (u128::from(bus_hz) * u128::from(cycle_ns));
        let count = u32::try_from(scaled).unwrap_or(u32::MAX);
        let fit = if u128::from(count) == scaled {
            "the same time"
        } else {
            "cut to 32 bits: the shot comes early"
        };
        fates.derived("lapic.timer.initial_count", format!("{} becomes {count}: {fit}", timer.initial_count));
        count
    };
    let tick_ns = tick_ns(timer, cycle_ns);
    let current = match timer.remaining_ns {
        _ if initial == 0 || mode(lvt_timer) == TSC_DEADLINE => {
            if timer.remaining_ns.is_some() {
                fates.dropped("lapic.timer.remaining_ns", "the counter stands");
            } else {
                fates.carried(&["lapic.timer.remaining_ns"], "the counter stands");
            }
            0
        }
        None => {
            fates.defaulted("lapic.timer.remaining_ns", "phase unknown: a full count from the load on");
            initial
        }
        Some(remaining) => {
            let current = u32::try_from(remaining.div_ceil(tick_ns)).unwrap_or(u32::MAX).min(initial);
            if u64::from(current) * tick_ns == remaining {
                fates.carried(&["lapic.timer.remaining_ns"], "lapic.current_count");
            } else {
                let rounded = u64::from(current) * tick_ns;
                fates.derived("lapic.timer.remaining_ns", format!("{remaining} ns becomes {rounded} ns"));
            }
            current
        }
    };
    Counts { initial, current }
}

/// Nanoseconds of one count.
fn tick_ns(timer: &ApicTimer, cycle_ns: u32) -> u64 {
    u64::from(timer.divisor()) * u64::from(cycle_ns.max(1))
}

fn mode(lvt_timer: u32) -> u32 {
    lvt_timer >> 17 & 3
}

fn drop_note(value: u32, why: &str) -> String {
    if value == 0 { format!("0: {why}") } else { format!("{value:#x}: {why}") }
}

pub(super) fn normalise(
    state: &LapicState,
    apic_base: u64,
    tsc_deadline: u64,
    cycle_ns: u32,
    fates: &mut Fates,
) -> Result<Lapic> {
    if state.id & 0x00ff_ffff != 0 {
        return Err(Error::field("lapic.id", format!("{:#x}", state.id), "an id in bits 31:24 alone"));
    }
    fates.carried(&["lapic"], "");
    fates.derived("lapic.ppr", "told from TPR and ISR");
    fates.derived("lapic.current_count", "lapic.timer.remaining_ns");
    for (field, value) in [("lapic.apr", state.apr), ("lapic.lvt_cmci", state.lvt_cmci & !MASKED)] {
        fates.dropped(field, drop_note(value, "no place in the model"));
    }
    for word in &state.other {
        fates.dropped(
            "lapic.other",
            format!("{:#x} at {:#x}: no place in the model", word.value, word.offset),
        );
    }
    let mut timer = ApicTimer {
        bus_hz: NS / u64::from(cycle_ns.max(1)),
        initial_count: state.initial_count,
        divide_configuration: state.divide_configuration,
        remaining_ns: None,
        tsc_deadline,
    };
    if state.initial_count != 0 && mode(state.lvt_timer) != TSC_DEADLINE {
        timer.remaining_ns = Some(u64::from(state.current_count) * tick_ns(&timer, cycle_ns));
    }
    Ok(Lapic {
        apic_base,
        id: state.id >> 24,
        version: state.version,
        tpr: state.tpr,
        ldr: state.ldr,
        dfr: state.dfr,
        svr: state.svr,
        isr: state.isr,
        tmr: state.tmr,
        irr: state.irr,
        esr: state.esr,
        pending_esr: 0,
        icr: state.icr,
        lvt: LocalVectorTable {
            timer: state.lvt_timer,
            thermal: state.lvt_thermal,
            performance: state.lvt_performance,
            lint0: state.lvt_lint0,
            lint1: state.lvt_lint1,
            error: state.lvt_error,
        },
        timer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fate;

    /// A one-shot of Xen: 100 MHz, divided by 16.
    fn xen(remaining_ns: Option<u64>) -> Lapic {
        let timer = ApicTimer {
            bus_hz: 100_000_000,
            initial_count: 0x5024,
            divide_configuration: 0b0011,
            remaining_ns,
            tsc_deadline: 0,
        };
        Lapic { timer, ..Lapic::default() }
    }

    #[test]
    fn a_bus_of_10_ns_keeps_the_counts() {
        let state = localise(&xen(Some(160_000)), 10, &mut Fates::default()).unwrap();
        assert_eq!((state.initial_count, state.current_count), (0x5024, 1000));
        let back = normalise(&state, 0, 0, 10, &mut Fates::default()).unwrap();
        assert_eq!(back.timer, xen(Some(160_000)).timer);
    }

    #[test]
    fn without_it_the_shot_takes_as_long() {
        let mut fates = Fates::default();
        let state = localise(&xen(Some(160_000)), 1, &mut fates).unwrap();
        assert_eq!((state.initial_count, state.current_count), (0x5024 * 10, 10_000));
        let derived: Vec<_> =
            fates.into_list().into_iter().filter(|fate| fate.fate == Fate::Derived).collect();
        assert_eq!(derived.len(), 2, "{derived:?}");
    }

    #[test]
    fn an_unknown_phase_is_a_full_count_and_never_zero() {
        // KVM takes a current count of 0 for a shot that is due.
        let state = localise(&xen(None), 10, &mut Fates::default()).unwrap();
        assert_eq!(state.current_count, 0x5024);
    }

    #[test]
    fn a_count_over_32_bits_is_cut_and_listed() {
        let mut lapic = xen(None);
        lapic.timer.initial_count = u32::MAX;
        let mut fates = Fates::default();
        assert_eq!(localise(&lapic, 1, &mut fates).unwrap().initial_count, u32::MAX);
        assert!(fates.into_list().iter().any(|fate| fate.note.contains("cut to 32 bits")));
    }

    #[test]
    fn a_deadline_timer_has_no_phase() {
        let mut lapic = xen(None);
        lapic.lvt.timer = TSC_DEADLINE << 17;
        let state = localise(&lapic, 10, &mut Fates::default()).unwrap();
        assert_eq!(state.current_count, 0);
        assert_eq!(normalise(&state, 0, 0, 10, &mut Fates::default()).unwrap().timer.remaining_ns, None);
    }

    #[test]
    fn an_id_over_255_is_an_error() {
        let lapic = Lapic { id: 256, ..Lapic::default() };
        assert!(localise(&lapic, 1, &mut Fates::default()).is_err());
        let state = LapicState { id: 0x0100_0001, ..LapicState::default() };
        assert!(normalise(&state, 0, 0, 1, &mut Fates::default()).is_err());
    }
}
