//! A local APIC in Xen's HVM_CONTEXT: LAPIC and LAPIC_REGS (`formats/xen/hvm.md`).

use hyperferry_vm_model::{ApicTimer, Lapic, LocalVectorTable};
use hyperferry_xen_stream::hvm;

use crate::{
    report::{Report, Severity},
    xen::{Target, judge::APIC_BUS_HZ as BUS_HZ},
};

const STAGE: &str = "Xen -> model";
const BACK: &str = "model -> Xen";
/// LVT timer: masked.
const LVT_MASKED: u32 = 1 << 16;
/// LVT timer, bits 18:17: 0 one-shot, 1 periodic, 2 TSC deadline.
const LVT_MODE_SHIFT: u32 = 17;
/// IA32_APIC_BASE.EN: the APIC is on.
const APIC_BASE_EN: u64 = 1 << 11;
/// Spurious vector register: the APIC is on, as far as software goes.
const SVR_ENABLED: u32 = 1 << 8;
/// IA32_APIC_BASE.EXTD: x2APIC mode.
const APIC_BASE_EXTD: u64 = 1 << 10;

/// Wire to model.
pub(crate) fn normalise(
    id: u32,
    hidden: &hvm::Lapic,
    registers: &hvm::LapicRegs,
    report: &mut Report,
) -> Lapic {
    let register = |offset: usize| {
        let bytes = registers.data.get(offset..).and_then(|rest| rest.first_chunk::<4>());
        u32::from_le_bytes(*bytes.unwrap_or(&[0; 4]))
    };
    let bank = |offset: usize| std::array::from_fn(|n| register(offset + 0x10 * n));
    let x2apic = hidden.apic_base_msr & APIC_BASE_EXTD != 0;
    let lapic = Lapic {
        apic_base: hidden.apic_base_msr,
        id: if x2apic { register(0x20) } else { register(0x20) >> 24 },
        version: register(0x30),
        tpr: register(0x80),
        ldr: register(0xd0),
        dfr: register(0xe0),
        svr: register(0xf0),
        isr: bank(0x100),
        tmr: bank(0x180),
        irr: bank(0x200),
        esr: register(0x280),
        pending_esr: hidden.pending_esr,
        icr: [register(0x300), register(0x310)],
        lvt: LocalVectorTable {
            timer: register(0x320),
            thermal: register(0x330),
            performance: register(0x340),
            lint0: register(0x350),
            lint1: register(0x360),
            error: register(0x370),
        },
        timer: ApicTimer {
            bus_hz: BUS_HZ,
            initial_count: register(0x380),
            divide_configuration: register(0x3e0),
            // Xen does not keep TMCCT up to date: the phase of a running timer is not in the stream.
            remaining_ns: None,
            tsc_deadline: hidden.tdt_msr,
        },
    };
    report
        .record(STAGE, format_args!("HVM_CONTEXT LAPIC[{id}]"))
        .carried(&["apic_base_msr", "tdt_msr", "pending_esr"])
        .derived("disabled", "follows from apic_base_msr and the spurious vector register")
        .derived("timer_divisor", "follows from the divide configuration register");
    report
        .record(STAGE, format_args!("HVM_CONTEXT LAPIC_REGS[{id}]"))
        .carried(&["data"])
        .derived("data TMCCT", "not kept up to date by Xen; a running timer starts a full period again");
    lapic
}

/// Model to wire.
pub(crate) fn localise(
    vcpu: u32,
    lapic: &Lapic,
    target: &Target<'_>,
    report: &mut Report,
) -> (hvm::Lapic, hvm::LapicRegs) {
    let x2apic = lapic.apic_base & APIC_BASE_EXTD != 0;
    let mut registers = hvm::LapicRegs::default();
    let bank = |offset: usize, words: [u32; 8]| (offset..).step_by(0x10).zip(words).collect::<Vec<_>>();
    let LocalVectorTable { timer, thermal, performance, lint0, lint1, error } = lapic.lvt;
    let single = [
        (0x20, if x2apic { lapic.id } else { lapic.id << 24 }),
        (0x30, lapic.version),
        (0x80, lapic.tpr),
        (0xd0, lapic.ldr),
        (0xe0, lapic.dfr),
        (0xf0, lapic.svr),
        (0x280, lapic.esr),
        (0x300, lapic.icr[0]),
        (0x310, lapic.icr[1]),
        (0x320, timer),
        (0x330, thermal),
        (0x340, performance),
        (0x350, lint0),
        (0x360, lint1),
        (0x370, error),
        (0x380, localise_count(vcpu, lapic, report)),
        (0x3e0, lapic.timer.divide_configuration),
    ];
    let banks = [bank(0x100, lapic.isr), bank(0x180, lapic.tmr), bank(0x200, lapic.irr)];
    for (offset, value) in single.into_iter().chain(banks.into_iter().flatten()) {
        registers.set_register(offset, value);
    }
    let hidden = hvm::Lapic {
        apic_base_msr: lapic.apic_base,
        disabled: u32::from(lapic.apic_base & APIC_BASE_EN == 0)
            | u32::from(lapic.svr & SVR_ENABLED == 0) << 1,
        timer_divisor: lapic.timer.divisor(),
        tdt_msr: lapic.timer.tsc_deadline,
        pending_esr: if target.lapic_elided == 0 { lapic.pending_esr } else { 0 },
    };
    let mut ledger = report.record(BACK, format_args!("lapic[{vcpu}]"));
    ledger.carried(&[
        "apic_base",
        "id",
        "version",
        "tpr",
        "ldr",
        "dfr",
        "svr",
        "isr",
        "tmr",
        "irr",
        "esr",
        "icr",
    ]);
    ledger.carried(&["lvt", "timer.divide_configuration", "timer.tsc_deadline"]);
    if target.lapic_elided == 0 || lapic.pending_esr == 0 {
        ledger.carried(&["pending_esr"]);
    } else {
        ledger.dropped(
            "pending_esr",
            format!("no place in the LAPIC record of this Xen (value {:#x})", lapic.pending_esr),
        );
    }
    ledger.dropped("timer.remaining_ns", "Xen starts a running timer with a full count");
    if lapic.id != vcpu * 2 {
        let what = format!(
            "vCPU {vcpu} has APIC id {}; Xen keeps it, and shows {} where the guest asks CPUID",
            lapic.id,
            vcpu * 2
        );
        report.find("apic-id", Severity::Note, what, "");
    }
    (hidden, registers)
}

/// The initial count: as it is where the clock is Xen's, else of the same length in time. What the guest programs
/// afterwards is judged in [`crate::xen::judge`].
fn localise_count(vcpu: u32, lapic: &Lapic, report: &mut Report) -> u32 {
    let timer = &lapic.timer;
    let mode = lapic.lvt.timer >> LVT_MODE_SHIFT & 3;
    let running = timer.initial_count != 0 && lapic.lvt.timer & LVT_MASKED == 0 && mode != 2;
    let mut ledger = report.record(BACK, format_args!("lapic[{vcpu}]"));
    if timer.bus_hz == BUS_HZ || timer.bus_hz == 0 || !running {
        ledger.carried(&["timer.initial_count"]);
        ledger.derived("timer.bus_hz", "the timer does not run, or counts at the same rate");
        return timer.initial_count;
    }
    // One shot goes on from where it is, a periodic timer with its period: a count of this length in nanoseconds.
    let ticks = u128::from(timer.initial_count) * u128::from(timer.divisor());
    let whole_ns = ticks * 1_000_000_000 / u128::from(timer.bus_hz);
    let left_ns = if mode == 0 { timer.remaining_ns.map_or(whole_ns, u128::from) } else { whole_ns };
    let count = left_ns * u128::from(BUS_HZ) / 1_000_000_000 / u128::from(timer.divisor());
    let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    ledger.derived(
        "timer.initial_count",
        format!("{:#x} at {} Hz became {count:#x} at {BUS_HZ} Hz", timer.initial_count, timer.bus_hz),
    );
    ledger.dropped("timer.bus_hz", format!("{} Hz in the source, {BUS_HZ} Hz in Xen", timer.bus_hz));
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(mode: u32, bus_hz: u64, remaining_ns: Option<u64>) -> Lapic {
        let timer = ApicTimer {
            bus_hz,
            initial_count: 1_000_000,
            divide_configuration: 0xb,
            remaining_ns,
            ..ApicTimer::default()
        };
        let lvt = LocalVectorTable { timer: mode << LVT_MODE_SHIFT | 0x40, ..LocalVectorTable::default() };
        Lapic { timer, lvt, ..Lapic::default() }
    }

    fn count(lapic: &Lapic) -> u32 {
        localise_count(0, lapic, &mut Report::default())
    }

    #[test]
    fn a_shot_keeps_its_length_and_a_tick_its_period() {
        const GHZ: u64 = 1_000_000_000;
        // 1 ms at 1 GHz are 100,000 counts at 100 MHz; of a shot, what is left.
        assert_eq!(count(&running(1, GHZ, Some(400_000))), 100_000);
        assert_eq!(count(&running(0, GHZ, None)), 100_000);
        assert_eq!(count(&running(0, GHZ, Some(400_000))), 40_000);
        assert_eq!(count(&running(0, GHZ, Some(0))), 1);
        assert_eq!(count(&running(1, BUS_HZ, Some(400_000))), 1_000_000);
        // The TSC's deadline is no count.
        assert_eq!(count(&running(2, GHZ, None)), 1_000_000);
    }
}
