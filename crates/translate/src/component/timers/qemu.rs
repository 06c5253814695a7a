//! Timer chips in QEMU's stream: `i8254`, `pcspk`, `mc146818rtc`, `hpet`, `timer` and the PM timer's part of
//! `piix4_pm` (`formats/qemu/sections.md`).
//!
//! Deadlines are absolute nanoseconds on QEMU's virtual clock, those of `mc146818rtc` on the host's wall clock.

//! The other direction is `qemu_in.rs`.

use hyperferry_qemu_stream::{Subsection, Tree, Value};
use hyperferry_vm_model::{Hpet, Pit, PitChannel, PmTimer, Rtc};

use super::qemu_in::pm_counter;
use crate::{Result, qemu::Target, refusal, report::Report};

const STAGE: &str = "model -> QEMU";
pub(super) const SECOND: u64 = 1_000_000_000;

/// The virtual clock at which QEMU's PM timer shows what the guest's showed: QEMU computes the one from the other.
///
/// The guest's age is that clock where the guest comes from a QEMU.
pub(crate) fn virtual_clock(pm: &PmTimer, guest_ns: u64) -> u64 {
    if pm_counter(guest_ns) == pm.counter {
        return guest_ns;
    }
    (u64::from(pm.counter) * SECOND).div_ceil(PmTimer::HZ)
}

/// Model to wire: section `timer`.
pub(crate) fn localise_clock(tsc: u64, tree: &mut Tree, target: &Target<'_>) -> Result<()> {
    tree.set_i64("cpu_clock_offset", signed(target.clock_ns))?;
    // The TSC under emulation; KVM keeps its own, in the `cpu` sections.
    tree.set_i64("cpu_ticks_offset", i64::from_ne_bytes(tsc.to_ne_bytes()))?;
    Ok(())
}

/// Model to wire: section `i8254`.
pub(crate) fn localise_pit(
    pit: &Pit,
    hpet_legacy: bool,
    tree: &mut Tree,
    target: &Target<'_>,
    report: &mut Report,
) -> Result<()> {
    tree.set_u64("channels[0].irq_disabled", u64::from(hpet_legacy))?;
    let mut first = -1;
    for (index, channel) in pit.channels.iter().enumerate() {
        let loaded = target.clock_ns.saturating_sub(channel.elapsed_ns.unwrap_or(0));
        let next = if index == 0 { signed(loaded + pit_period_ns(channel)) } else { -1 };
        if index == 0 {
            first = next;
        }
        let Value::Struct(to) = tree.element_mut("channels", index)? else { continue };
        to.set_u64("count", channel.count.into())?;
        to.set_u64("latched_count", channel.latched_count.into())?;
        to.set_u64("count_latched", channel.count_latched.into())?;
        to.set_u64("status_latched", channel.status_latched.into())?;
        to.set_u64("status", channel.status.into())?;
        to.set_u64("read_state", channel.read_state.into())?;
        to.set_u64("write_state", channel.write_state.into())?;
        to.set_u64("write_latch", channel.write_latch.into())?;
        to.set_u64("rw_mode", channel.rw_mode.into())?;
        // QEMU resets a channel to mode 3.
        to.set_u64("mode", channel.mode.unwrap_or(3).into())?;
        to.set_u64("bcd", channel.bcd.into())?;
        to.set_u64("gate", channel.gate.into())?;
        to.set_i64("count_load_time", signed(loaded))?;
        to.set_i64("next_transition_time", next)?;
    }
    tree.set_i64("channels[0].next_transition_time", first)?;
    report
        .record(STAGE, "timers.pit")
        .carried(&["channels"])
        .derived("count_load_time, next_transition_time", "the save's instant on QEMU's virtual clock");
    Ok(())
}

/// Time from loading a count to the first edge of the output.
fn pit_period_ns(channel: &PitChannel) -> u64 {
    let count = if channel.count == 0 { 0x1_0000 } else { u64::from(channel.count) };
    // The square wave of mode 3 has an edge after half its period.
    let ticks = if channel.mode == Some(3) { count.div_ceil(2) } else { count };
    (ticks * SECOND).div_ceil(Pit::HZ)
}

/// Model to wire: section `pcspk`.
pub(crate) fn localise_speaker(pit: &Pit, tree: &mut Tree, report: &mut Report) -> Result<()> {
    tree.set_u64("data_on", pit.speaker_data_on.into())?;
    report.record(STAGE, "timers.pit").carried(&["speaker_data_on"]);
    Ok(())
}

/// Model to wire: section `mc146818rtc`. What lies above register 0x0d comes from the device model's own section.
pub(crate) fn localise_rtc(
    rtc: &Rtc,
    tree: &mut Tree,
    target: &Target<'_>,
    report: &mut Report,
) -> Result<()> {
    for (index, value) in rtc.registers.iter().enumerate() {
        tree.set_u64_at("cmos_data", index, (*value).into())?;
    }
    let (now, offset) = (target.wall_ns, rtc.offset_seconds.unwrap_or(0));
    let base = i128::from(now / SECOND) + i128::from(offset);
    let base = u64::try_from(base).unwrap_or(0);
    tree.set_u64("cmos_index", rtc.index.into())?;
    tree.set_u64("base_rtc", base)?;
    tree.set_u64("last_update", now - now % SECOND)?;
    tree.set_i64("offset", 0)?;
    tree.set_u64("irq_coalesced", 0)?;

    let [control_a, control_b] = [rtc.registers[0xa], rtc.registers[0xb]];
    let (periodic, alarm, update) = (control_b & 0x40 != 0, control_b & 0x20 != 0, control_b & 0x10 != 0);
    let period = if periodic { rtc_period(control_a & 0xf) } else { 0 };
    let next = if period == 0 { 0 } else { now + period * SECOND / 32_768 };
    tree.set_u64("period", period)?;
    tree.set_i64("next_periodic_time", signed(next))?;
    tree.set_i64("periodic_timer", if period == 0 { -1 } else { signed(next) })?;
    let edge = now - now % SECOND + SECOND;
    tree.set_i64("update_timer", if alarm || update { signed(edge) } else { -1 })?;
    // Without an alarm the time is one that never comes.
    let wait = if alarm { seconds_to_alarm(&rtc.registers, base) } else { None };
    tree.set_u64(
        "next_alarm_time",
        wait.map_or(i64::MAX.unsigned_abs(), |seconds| edge - SECOND + seconds * SECOND),
    )?;

    let mut ledger = report.record(STAGE, "timers.rtc");
    ledger.carried(&["registers", "index"]);
    ledger.derived("offset_seconds", "base_rtc: the guest's clock goes on with the host's wall clock");
    if rtc.offset_seconds.is_none() {
        ledger.defaulted("base_rtc", "the stream has no offset; UTC is taken");
    }
    Ok(())
}

/// Ticks of 1/32768 s between periodic interrupts (MC146818 data sheet, table 3).
fn rtc_period(rate: u8) -> u64 {
    match rate {
        0 => 0,
        1 | 2 => 1 << (rate + 6),
        _ => 1 << (rate - 1),
    }
}

/// Seconds until hour, minute and second match the alarm registers; 0xc0 and above match always.
fn seconds_to_alarm(registers: &[u8; 14], base_rtc: u64) -> Option<u64> {
    let binary = registers[0xb] & 4 != 0;
    let hours_24 = registers[0xb] & 2 != 0;
    let decode = |value: u8| u64::from(if binary { value } else { (value >> 4) * 10 + (value & 0xf) });
    let matches = |register: u8, value: u64| register >= 0xc0 || decode(register) == value;
    let hour_matches = |register: u8, hour: u64| {
        if hours_24 || register >= 0xc0 {
            return matches(register, hour);
        }
        let twelve = decode(register & 0x7f) % 12;
        twelve + if register & 0x80 == 0 { 0 } else { 12 } == hour
    };
    (1..=86_400).find(|wait| {
        let day = (base_rtc + wait) % 86_400;
        matches(registers[1], day % 60)
            && matches(registers[3], day / 60 % 60)
            && hour_matches(registers[5], day / 3600)
    })
}

/// QEMU's HPET ticks every 10 ns (hw/timer/hpet.c, HPET_CLK_PERIOD).
pub(super) const QEMU_HPET_PERIOD_FS: u64 = 10_000_000;

/// Model to wire: section `hpet`.
pub(crate) fn localise_hpet(
    hpet: &Hpet,
    tree: &mut Tree,
    target: &Target<'_>,
    report: &mut Report,
) -> Result<()> {
    tree.set_u64("config", hpet.config)?;
    tree.set_u64("isr", hpet.isr)?;
    tree.set_u64("hpet_counter", hpet.counter)?;
    tree.remove_subsection("hpet/offset");
    if hpet.enabled() {
        let mut body = Tree::new("hpet/offset");
        let value = (hpet.counter.wrapping_mul(10)).wrapping_sub(target.clock_ns);
        body.fields.push(("hpet_offset".to_owned(), Value::Unsigned { width: 8, value }));
        tree.put_subsection(Subsection { name: "hpet/offset".to_owned(), version: 1, tree: body });
    }
    for (index, timer) in hpet.timers.iter().enumerate() {
        let Ok(Value::Struct(to)) = tree.element_mut("timer", index) else { continue };
        // Which interrupts the timer may use is the destination's to say: the high word of its configuration.
        let routes = to.field("config")?.as_u64()? & 0xffff_ffff_0000_0000;
        to.set_u64("config", routes | timer.config & 0xffff_ffff)?;
        to.set_u64("cmp", timer.comparator)?;
        to.set_u64("period", timer.period)?;
        to.set_u64("fsb", timer.fsb)?;
        to.set_u64("wrap_flag", 0)?;
        let armed = hpet.enabled() && timer.config & 4 != 0;
        let narrow = timer.config & 0x100 != 0;
        let ticks = timer.comparator.wrapping_sub(hpet.counter) & if narrow { 0xffff_ffff } else { u64::MAX };
        let deadline = signed(target.clock_ns.saturating_add(ticks.saturating_mul(10)));
        to.set_i64("qemu_timer", if armed { deadline } else { -1 })?;
    }
    let mut ledger = report.record(STAGE, "timers.hpet");
    ledger
        .carried(&["config", "isr", "counter", "timers"])
        .dropped("capabilities", "the destination has its own");
    if !hpet.enabled() {
        ledger.derived("period_fs", "the counter does not run");
    } else if hpet.period_fs == QEMU_HPET_PERIOD_FS {
        ledger.carried(&["period_fs"]);
    } else {
        ledger.dropped("period_fs", format!("{} in the source, {QEMU_HPET_PERIOD_FS} here", hpet.period_fs));
        let tenths = hpet.period_fs * 100 / QEMU_HPET_PERIOD_FS;
        let what = format!(
            "the HPET's counter runs; QEMU's is clocked at 100 MHz, the source's at {:.1} MHz, so a guest that takes its time from it runs {}.{:02}x too fast",
            1e9 / hpet.period_fs as f64,
            tenths / 100,
            tenths % 100
        );
        let remedy = "give the guest its own HPET with --platform-shim (KVM); or, in the guest: echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource \
                      (or acpi_pm), or boot it with hpet=disable; then --allow hpet";
        target.policy.refuse(report, refusal::HPET, what, remedy);
    }
    Ok(())
}

/// The HPET of the platform shim takes the model's as it is.
pub(crate) fn hand_over_hpet(report: &mut Report) {
    report.record(STAGE, "timers.hpet").carried(&[
        "period_fs",
        "capabilities",
        "config",
        "isr",
        "counter",
        "timers",
    ]);
}

/// Model to wire: the PM timer's part of section `piix4_pm`.
pub(crate) fn localise_pm_timer(pm: &PmTimer, tree: &mut Tree, report: &mut Report) -> Result<()> {
    tree.set_u64("ar.pm1.evt.sts", pm.pm1_status.into())?;
    tree.set_u64("ar.pm1.evt.en", pm.pm1_enable.into())?;
    // The timer's interrupt comes when bit 23 changes.
    let overflow = (u64::from(pm.counter) & !0x7f_ffff) + 0x80_0000;
    tree.set_i64("ar.tmr.overflow_time", signed(overflow))?;
    let deadline = (overflow * SECOND).div_ceil(PmTimer::HZ);
    tree.set_i64("ar.tmr.timer", if pm.pm1_enable & 1 == 1 { signed(deadline) } else { -1 })?;
    report
        .record(STAGE, "timers.pm_timer")
        .carried(&["pm1_status", "pm1_enable"])
        .derived("counter", "QEMU's virtual clock is set so that its PM timer shows the same")
        .derived("io_base", "configuration register 0x40 of piix4_pm");
    Ok(())
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pm_timer_reads_the_same_on_the_virtual_clock() {
        for counter in [1, 2, 0x10e0_4efe, u32::MAX] {
            let clock = virtual_clock(&PmTimer { counter, ..PmTimer::default() }, 1);
            assert_eq!(u128::from(clock) * u128::from(PmTimer::HZ) / u128::from(SECOND), u128::from(counter));
        }
    }

    #[test]
    fn an_alarm_is_found_in_bcd_and_with_wildcards() {
        let mut registers = [0; 14];
        registers[0xb] = 2;
        (registers[1], registers[3], registers[5]) = (0x30, 0x15, 0x12);
        // 12:15:00 -> 12:15:30
        assert_eq!(seconds_to_alarm(&registers, 12 * 3600 + 15 * 60), Some(30));
        registers[5] = 0xff;
        assert_eq!(seconds_to_alarm(&registers, 3600 + 16 * 60), Some(59 * 60 + 30));
        registers[1] = 0x75;
        assert_eq!(seconds_to_alarm(&registers, 0), None);
    }

    #[test]
    fn periodic_rates_follow_the_data_sheet() {
        // 0x6: 976.5625 us = 32 ticks; 0xf: 500 ms; 1 and 2 stand for 8 and 9.
        assert_eq!((rtc_period(6), rtc_period(15), rtc_period(1), rtc_period(2)), (32, 16_384, 128, 256));
    }
}
