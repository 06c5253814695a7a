//! Timer chips in Xen's HVM_CONTEXT: PIT, RTC, HPET and PMTIMER (`formats/xen/hvm.md`).

use hyperferry_vm_model::{Hpet, HpetTimer, Pit, PitChannel, PmTimer, Rtc};
use hyperferry_xen_stream::hvm;

use crate::report::Report;

const STAGE: &str = "Xen -> model";
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
        // Before Xen 4.19 a channel that was never programmed had mode 0xff.
        mode: (channel.mode <= 7).then_some(if channel.mode > 5 { channel.mode - 4 } else { channel.mode }),
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
