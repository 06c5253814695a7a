//! A local APIC in QEMU's stream: section `apic` (`formats/qemu/sections.md`).

use hyperferry_qemu_stream::{Section, Tree};
use hyperferry_vm_model::{ApicTimer, Device, Lapic, LocalVectorTable};

use crate::{
    Result,
    component::fields::Fields,
    qemu::{Accelerator, Target},
    refusal,
    report::{Report, Severity},
};

const STAGE: &str = "model -> QEMU";
/// LVT timer: masked.
const LVT_MASKED: u32 = 1 << 16;
/// LVT timer, bits 18:17: 0 one-shot, 1 periodic, 2 TSC deadline.
const LVT_MODE_SHIFT: u32 = 17;

/// IA32_APIC_BASE.EXTD: x2APIC mode.
const APIC_BASE_EXTD: u64 = 1 << 10;
/// Version register: six vectors, as every local APIC of QEMU and of KVM has (hw/intc/apic.c; arch/x86/kvm/lapic.c).
const VERSION: u32 = 0x0005_0014;

/// Wire to model: section `apic`, and what is left of it. `clock_ns` is QEMU's virtual clock.
pub(crate) fn normalise(
    section: &Section,
    accelerator: Accelerator,
    bus_hz: u64,
    clock_ns: i64,
    report: &mut Report,
) -> Result<(Lapic, Device)> {
    let mut fields = Fields::of(section);
    let apic_base = fields.number("apicbase")?;
    let id: u32 = fields.number("id")?;
    let logical: u32 = fields.number("log_dest")?;
    // An x2APIC's logical id follows from its id (Intel SDM vol. 3, 12.12.10.2), and QEMU's field is too small for it.
    let ldr = if apic_base & APIC_BASE_EXTD == 0 { logical << 24 } else { (id >> 4) << 16 | 1 << (id & 0xf) };
    let [timer, thermal, performance, lint0, lint1, error] = fields.numbers("lvt")?;
    // Under KVM the phase is not in the stream: QEMU makes deadlines up, of a full period from the save on.
    let expiry = fields.peek_i64("timer_expiry")?;
    let known = accelerator == Accelerator::Tcg && expiry >= 0;
    let lapic = Lapic {
        apic_base,
        id,
        version: VERSION,
        tpr: fields.number("tpr")?,
        ldr,
        dfr: fields.number::<u32>("dest_mode")? << 28 | 0x0fff_ffff,
        svr: fields.number("spurious_vec")?,
        isr: fields.numbers("isr")?,
        tmr: fields.numbers("tmr")?,
        irr: fields.numbers("irr")?,
        esr: fields.number("esr")?,
        pending_esr: 0,
        icr: fields.numbers("icr")?,
        lvt: LocalVectorTable { timer, thermal, performance, lint0, lint1, error },
        timer: ApicTimer {
            bus_hz,
            initial_count: fields.number("initial_count")?,
            divide_configuration: fields.number("divide_conf")?,
            remaining_ns: known.then(|| u64::try_from(expiry.saturating_sub(clock_ns)).unwrap_or(0)),
            tsc_deadline: 0,
        },
    };
    fields.derived("count_shift", "follows from the divide configuration register");
    Ok((lapic, fields.finish(section, report)))
}

/// Model to wire: fills in an `apic` section that the destination's own QEMU wrote.
pub(crate) fn localise(
    lapic: &Lapic,
    vcpu: u32,
    tree: &mut Tree,
    target: &Target<'_>,
    report: &mut Report,
) -> Result<()> {
    tree.set_u64("apicbase", lapic.apic_base & 0xffff_ffff)?;
    tree.set_u64("id", u64::from(lapic.id & 0xff))?;
    tree.set_u64("arb_id", 0)?;
    tree.set_u64("tpr", u64::from(lapic.tpr & 0xff))?;
    tree.set_u64("spurious_vec", lapic.svr.into())?;
    tree.set_u64("log_dest", u64::from(lapic.ldr >> 24))?;
    tree.set_u64("dest_mode", u64::from(lapic.dfr >> 28))?;
    for (name, bank) in [("isr", lapic.isr), ("tmr", lapic.tmr), ("irr", lapic.irr)] {
        for (index, value) in bank.iter().enumerate() {
            tree.set_u64_at(name, index, (*value).into())?;
        }
    }
    let lvt = &lapic.lvt;
    let vectors = [lvt.timer, lvt.thermal, lvt.performance, lvt.lint0, lvt.lint1, lvt.error];
    for (index, value) in vectors.iter().enumerate() {
        tree.set_u64_at("lvt", index, (*value).into())?;
    }
    tree.set_u64("esr", lapic.esr.into())?;
    for (index, value) in lapic.icr.iter().enumerate() {
        tree.set_u64_at("icr", index, (*value).into())?;
    }
    timer(lapic, vcpu, tree, target, report)?;

    let mut ledger = report.record(STAGE, format_args!("lapic[{vcpu}]"));
    ledger.carried(&[
        "apic_base",
        "id",
        "tpr",
        "ldr",
        "dfr",
        "svr",
        "isr",
        "tmr",
        "irr",
        "esr",
        "icr",
        "lvt",
        "timer.divide_configuration",
        "timer.tsc_deadline",
    ]);
    ledger.dropped("version", "QEMU has its own, with the same six vectors");
    if lapic.pending_esr != 0 {
        ledger.dropped("pending_esr", format!("no place in QEMU's stream (value {:#x})", lapic.pending_esr));
    }
    Ok(())
}

fn timer(lapic: &Lapic, vcpu: u32, tree: &mut Tree, target: &Target<'_>, report: &mut Report) -> Result<()> {
    let timer = &lapic.timer;
    let mode = lapic.lvt.timer >> LVT_MODE_SHIFT & 3;
    let running = timer.initial_count != 0 && lapic.lvt.timer & LVT_MASKED == 0 && mode != 2;
    let ratio = target.apic_bus_hz.checked_div(timer.bus_hz).unwrap_or(1);

    // The shot that is under way keeps its length in nanoseconds; what the guest programs afterwards does not.
    let scaled = u64::from(timer.initial_count) * ratio.max(1);
    let shift = timer.divisor().trailing_zeros();
    let length = (scaled + 1) << shift;
    let expiry = target.clock_ns + timer.remaining_ns.unwrap_or(length);
    // KVM takes that length from the count; emulation has it apart, and may leave the guest the count that it wrote. A
    // periodic timer goes on with its count: there the ticks matter more than what a read of the register gives.
    let apart = target.accelerator == Accelerator::Tcg && mode == 0;
    let count = if apart { timer.initial_count } else { u32::try_from(scaled).unwrap_or(u32::MAX) };
    let loaded = if apart { target.clock_ns } else { expiry.saturating_sub(length) };
    tree.set_u64("divide_conf", timer.divide_configuration.into())?;
    tree.set_u64("count_shift", shift.into())?;
    tree.set_u64("initial_count", count.into())?;
    let nanoseconds = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    tree.set_i64("initial_count_load_time", nanoseconds(loaded))?;
    tree.set_i64("next_time", nanoseconds(expiry))?;
    tree.set_i64("timer_expiry", if running { nanoseconds(expiry) } else { -1 })?;

    let mut ledger = report.record(STAGE, format_args!("lapic[{vcpu}]"));
    if count == timer.initial_count {
        ledger.carried(&["timer.initial_count"]);
    } else {
        ledger.derived(
            "timer.initial_count",
            format!(
                "{:#x} at {} Hz became {count:#x} at {} Hz",
                timer.initial_count, timer.bus_hz, target.apic_bus_hz
            ),
        );
    }
    if running && ratio > 1 {
        let remedy = "use a destination whose KVM can set the APIC bus clock (Linux 6.11 or newer) with \
                      `--platform-shim`, or boot the guest with another tick (TSC deadline, PIT)";
        if mode == 1 {
            let what = format!(
                "vCPU {vcpu} uses its local APIC timer in periodic mode; once the guest programs it again it ticks {ratio}x too fast"
            );
            target.policy.refuse(report, refusal::LAPIC_TIMER, what, remedy);
        } else {
            let what = format!(
                "vCPU {vcpu} uses its local APIC timer in one-shot mode; later shots come {ratio}x early and the guest re-arms them"
            );
            report.find(refusal::LAPIC_TIMER.name, Severity::Warning, what, remedy);
        }
    }
    Ok(())
}
