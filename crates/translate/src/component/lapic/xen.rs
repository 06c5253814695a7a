//! A local APIC in Xen's HVM_CONTEXT: LAPIC and LAPIC_REGS (`formats/xen/hvm.md`).

use hyperferry_vm_model::{ApicTimer, Lapic, LocalVectorTable};
use hyperferry_xen_stream::hvm;

use crate::report::Report;

const STAGE: &str = "Xen -> model";
/// Xen's APIC timer counts 10 ns a bus cycle (xen/arch/x86/include/asm/hvm/vlapic.h, APIC_BUS_CYCLE_NS).
pub(crate) const BUS_HZ: u64 = 100_000_000;
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
