//! Timer chips in Xen's HVM_CONTEXT: PIT, RTC, HPET and PMTIMER (`formats/xen/hvm.md`).

use hyperferry_vm_model::{Hpet, HpetTimer, Pit, PitChannel, PmTimer, Rtc};
use hyperferry_xen_stream::hvm;

use crate::{
    report::Report,
    xen::{Target, judge::HPET_PERIOD_FS},
};

const STAGE: &str = "Xen -> model";
const BACK: &str = "model -> Xen";
/// HVM_PARAM_ACPI_IOPORTS_LOCATION = 1: the ports that hvmloader names in the FADT since Xen 4.0.
const PM_BASE: u16 = 0xb000;
/// The same, 0: where the oldest device models had them.
const PM_BASE_OLD: u16 = 0x1f40;

/// Wire to model: the interval timer.
pub(crate) fn normalise_pit(pit: &hvm::Pit, report: &mut Report) -> Pit {
    report
        .record(STAGE, "HVM_CONTEXT PIT")
        .carried(&["channels", "speaker_data_on"])
        .defaulted("phase", "not in the stream; each channel starts a full count again");
    let channel = |channel: &hvm::PitChannel| PitChannel {
        count: channel.count,
        latched_count: channel.latched_count,
        count_latched: channel.count_latched,
        status_latched: channel.status_latched != 0,
        status: channel.status,
        read_state: channel.read_state,
        write_state: channel.write_state,
        write_latch: channel.write_latch,
        rw_mode: channel.rw_mode,
        // 7 is a channel that was never programmed, 0xff the same before Xen 4.19; what a guest programs as 6 or 7 is
        // kept as 2 or 3 (xen/arch/x86/emul-i8254.c).
        mode: match channel.mode {
            0..=5 => Some(channel.mode),
            6 => Some(2),
            _ => None,
        },
        bcd: channel.bcd != 0,
        gate: channel.gate != 0,
        elapsed_ns: None,
    };
    Pit { channels: pit.channels.each_ref().map(channel), speaker_data_on: pit.speaker_data_on != 0 }
}

/// Wire to model: the clock.
pub(crate) fn normalise_rtc(rtc: &hvm::Rtc, report: &mut Report) -> Rtc {
    report.record(STAGE, "HVM_CONTEXT RTC").carried(&["cmos_data", "cmos_index", "rtc_offset"]);
    Rtc { registers: rtc.cmos_data, index: rtc.cmos_index, offset_seconds: Some(rtc.rtc_offset) }
}

/// Wire to model: the high precision event timer.
pub(crate) fn normalise_hpet(hpet: &hvm::Hpet, report: &mut Report) -> Hpet {
    report.record(STAGE, "HVM_CONTEXT HPET").carried(&[
        "capability",
        "config",
        "isr",
        "mc64",
        "timers",
        "period",
    ]);
    let timer = |(timer, period): (&hvm::HpetTimer, &u64)| HpetTimer {
        config: timer.config,
        comparator: timer.cmp,
        period: *period,
        fsb: timer.fsb,
    };
    Hpet {
        period_fs: hpet.capability >> 32,
        capabilities: hpet.capability & 0xffff_ffff,
        config: hpet.config,
        isr: hpet.isr,
        counter: hpet.mc64,
        timers: hpet.timers.iter().zip(&hpet.period).map(timer).collect(),
    }
}

/// Wire to model: the PM timer. `new_location` is HVM_PARAM_ACPI_IOPORTS_LOCATION.
pub(crate) fn normalise_pm_timer(pm: &hvm::PmTimer, new_location: bool, report: &mut Report) -> PmTimer {
    report.record(STAGE, "HVM_CONTEXT PMTIMER").carried(&["tmr_val", "pm1a_sts", "pm1a_en"]);
    PmTimer {
        counter: pm.tmr_val,
        pm1_status: pm.pm1a_sts,
        pm1_enable: pm.pm1a_en,
        io_base: if new_location { PM_BASE } else { PM_BASE_OLD },
    }
}

/// Model to wire: the interval timer.
pub(crate) fn localise_pit(pit: &Pit, target: &Target<'_>, report: &mut Report) -> hvm::Pit {
    // Before Xen 4.19 a channel that was never programmed had this mode.
    let unprogrammed = if target.version < [4, 19] { 0xff } else { 7 };
    let channel = |(index, channel): (usize, &PitChannel)| hvm::PitChannel {
        count: if channel.count == 0 { 0x1_0000 } else { channel.count },
        latched_count: channel.latched_count,
        count_latched: channel.count_latched,
        status_latched: channel.status_latched.into(),
        status: channel.status,
        read_state: channel.read_state,
        write_state: channel.write_state,
        write_latch: channel.write_latch,
        rw_mode: channel.rw_mode,
        mode: channel.mode.unwrap_or(unprogrammed),
        bcd: channel.bcd.into(),
        // Only channel 2 has a gate that can be closed.
        gate: u8::from(index < 2 || channel.gate),
    };
    let [a, b, c] = &pit.channels;
    report
        .record(BACK, "timers.pit")
        .carried(&["channels", "speaker_data_on"])
        .dropped("channels.elapsed_ns", "not in Xen's stream; each channel starts a full count again");
    hvm::Pit { channels: [(0, a), (1, b), (2, c)].map(channel), speaker_data_on: pit.speaker_data_on.into() }
}

/// Model to wire: the clock.
pub(crate) fn localise_rtc(rtc: &Rtc, report: &mut Report) -> hvm::Rtc {
    let mut ledger = report.record(BACK, "timers.rtc");
    ledger.carried(&["registers", "index"]);
    let rtc_offset = match rtc.offset_seconds {
        Some(offset) => {
            ledger.carried(&["offset_seconds"]);
            offset
        }
        None => {
            ledger.defaulted("offset_seconds", "not known: the guest's clock is taken for UTC");
            0
        }
    };
    hvm::Rtc { cmos_data: rtc.registers, cmos_index: rtc.index, rtc_offset }
}

/// Xen's HPET: 62.5 MHz, three 64-bit timers, legacy replacement (xen/arch/x86/hvm/hpet.c, hpet_set).
const XEN_HPET_CAPABILITY: u64 = 0x00f4_2400_8086_a201;
/// Interrupts that a timer of Xen's may use: the high word of its configuration.
const XEN_HPET_ROUTES: u64 = 0x00f0_0000 << 32;
/// A timer as after reset: periodic mode and 64 bits are possible.
const XEN_HPET_TIMER: hvm::HpetTimer =
    hvm::HpetTimer { config: XEN_HPET_ROUTES | 0x30, cmp: u64::MAX, fsb: 0 };

/// Model to wire: the high precision event timer. Xen's record is there for a guest without one too.
pub(crate) fn localise_hpet(hpet: Option<&Hpet>, report: &mut Report) -> hvm::Hpet {
    let mut record = hvm::Hpet {
        capability: XEN_HPET_CAPABILITY,
        config: 0,
        isr: 0,
        mc64: 0,
        timers: [XEN_HPET_TIMER; 3],
        period: [0; 3],
    };
    let mut ledger = report.record(BACK, "timers.hpet");
    let Some(hpet) = hpet else {
        ledger.defaulted("*", "the source has none: as after reset");
        return record;
    };
    (record.config, record.isr, record.mc64) = (hpet.config, hpet.isr, hpet.counter);
    for ((timer, period), from) in record.timers.iter_mut().zip(&mut record.period).zip(&hpet.timers) {
        *period = from.period;
        timer.config = XEN_HPET_ROUTES | from.config & 0xffff_ffff;
        (timer.cmp, timer.fsb) = (from.comparator, from.fsb);
    }
    ledger.carried(&["config", "isr", "counter", "timers"]);
    ledger.derived("capabilities", "Xen's own");
    if hpet.period_fs == HPET_PERIOD_FS || !hpet.enabled() {
        ledger.derived("period_fs", "the counter does not run, or at the same rate");
        return record;
    }
    ledger.dropped("period_fs", format!("{} in the source, {HPET_PERIOD_FS} in Xen", hpet.period_fs));
    record
}

/// Model to wire: the PM timer.
pub(crate) fn localise_pm_timer(pm: &PmTimer, report: &mut Report) -> hvm::PmTimer {
    report
        .record(BACK, "timers.pm_timer")
        .carried(&["counter", "pm1_status", "pm1_enable"])
        .derived("io_base", "HVM_PARAM_ACPI_IOPORTS_LOCATION, or the device model's own PM timer");
    hvm::PmTimer { tmr_val: pm.counter, pm1a_sts: pm.pm1_status, pm1a_en: pm.pm1_enable }
}

/// HVM_PARAM_ACPI_IOPORTS_LOCATION for a guest whose firmware put the PM timer there; none where Xen has none.
pub(crate) fn io_ports_location(pm: &PmTimer) -> Option<u64> {
    match pm.io_base {
        PM_BASE => Some(1),
        PM_BASE_OLD => Some(0),
        _ => None,
    }
}
