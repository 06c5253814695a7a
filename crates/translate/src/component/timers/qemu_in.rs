//! Timer chips from QEMU's stream: `i8254`, `pcspk`, `mc146818rtc`, `hpet`, `timer` and the PM timer's part of
//! `piix4_pm` (`formats/qemu/sections.md`). The other direction is `qemu.rs`.

use hyperferry_qemu_stream::Section;
use hyperferry_vm_model::{Device, Hpet, HpetTimer, Pit, PitChannel, PmTimer, Rtc};

use super::qemu::{QEMU_HPET_PERIOD_FS, SECOND};
use crate::{
    Result,
    component::{devices::pci, fields::Fields},
    report::Report,
};

/// Wire to model: section `timer`: the virtual clock, the time-stamp counter under emulation, and what is left.
pub(crate) fn normalise_clock(section: &Section, report: &mut Report) -> Result<(i64, u64, Device)> {
    let mut fields = Fields::of(section);
    let clock = fields.signed("cpu_clock_offset")?;
    let ticks = fields.peek_i64("cpu_ticks_offset")?;
    Ok((clock, ticks.cast_unsigned(), fields.finish(section, report)))
}

/// Wire to model: sections `i8254` and `pcspk`, and what is left of them. `clock` is QEMU's virtual clock.
pub(crate) fn normalise_pit(
    section: &Section,
    speaker: &Section,
    clock: i64,
    report: &mut Report,
) -> Result<(Pit, [Device; 2])> {
    let mut fields = Fields::of(section);
    let mut parts = fields.structures("channels")?;
    let mut pit = Pit::default();
    for (channel, from) in pit.channels.iter_mut().zip(&mut parts) {
        let elapsed = clock.saturating_sub(from.peek_i64("count_load_time")?);
        *channel = PitChannel {
            count: from.number("count")?,
            latched_count: from.number("latched_count")?,
            count_latched: from.number("count_latched")?,
            status_latched: from.flag("status_latched")?,
            status: from.number("status")?,
            read_state: from.number("read_state")?,
            write_state: from.number("write_state")?,
            write_latch: from.number("write_latch")?,
            rw_mode: from.number("rw_mode")?,
            mode: Some(from.number("mode")?),
            bcd: from.flag("bcd")?,
            gate: from.flag("gate")?,
            elapsed_ns: Some(u64::try_from(elapsed).unwrap_or(0)),
        };
    }
    fields.put_back("channels", parts);
    let mut sound = Fields::of(speaker);
    pit.speaker_data_on = sound.flag("data_on")?;
    Ok((pit, [fields.finish(section, report), sound.finish(speaker, report)]))
}

/// Wire to model: section `mc146818rtc`, and what is left of it. Its memory above register 0x0d stays the device's.
pub(crate) fn normalise_rtc(section: &Section, report: &mut Report) -> Result<(Rtc, Device)> {
    let mut fields = Fields::of(section);
    let mut rtc = Rtc { index: fields.number("cmos_index")?, ..Rtc::default() };
    let memory = fields.bytes("cmos_data")?;
    for (to, from) in rtc.registers.iter_mut().zip(&memory) {
        *to = *from;
    }
    // The guest's clock showed base_rtc and `offset` when the host's showed last_update.
    let guest =
        i128::from(fields.peek("base_rtc")?) * i128::from(SECOND) + i128::from(fields.peek_i64("offset")?);
    let ahead = guest - i128::from(fields.peek("last_update")?);
    let seconds = (ahead + i128::from(SECOND / 2)).div_euclid(i128::from(SECOND));
    rtc.offset_seconds = i64::try_from(seconds).ok();
    Ok((rtc, fields.finish(section, report)))
}

/// Wire to model: section `hpet`, and what is left of it.
pub(crate) fn normalise_hpet(section: &Section, report: &mut Report) -> Result<(Hpet, Device)> {
    let mut fields = Fields::of(section);
    let mut parts = fields.structures("timer")?;
    let mut timers = Vec::new();
    for from in &mut parts {
        timers.push(HpetTimer {
            config: from.number("config")?,
            comparator: from.number("cmp")?,
            period: from.number("period")?,
            fsb: from.number("fsb")?,
        });
    }
    fields.put_back("timer", parts);
    let hpet = Hpet {
        period_fs: QEMU_HPET_PERIOD_FS,
        // Intel's, 64 bits wide, legacy replacement, revision 1 (hw/timer/hpet.c, hpet_reset).
        capabilities: 0x8086_a001 | (timers.len().saturating_sub(1) as u64) << 8,
        config: fields.number("config")?,
        isr: fields.number("isr")?,
        counter: fields.number("hpet_counter")?,
        timers,
    };
    Ok((hpet, fields.finish(section, report)))
}

/// The PM timer's counter at an instant of QEMU's virtual clock (hw/acpi/core.c, acpi_pm_tmr_get). QEMU shows 24 bits.
pub(super) fn pm_counter(clock_ns: u64) -> u32 {
    let ticks = u128::from(clock_ns) * u128::from(PmTimer::HZ) / u128::from(SECOND);
    (ticks & 0xffff_ffff) as u32
}

/// Wire to model: the PM timer's part of section `piix4_pm`, and what is left of that. The rest is the device's.
pub(crate) fn normalise_pm_timer(section: &Section, clock: i64) -> Result<(PmTimer, Device)> {
    /// Configuration register with the base of the power management's I/O ports, and the bits that are its address.
    const PMBA: usize = 0x40;
    const PMBA_ADDRESS: u32 = 0xffc0;
    let mut fields = Fields::of(section);
    let config = pci::config(&section.tree).unwrap_or_default();
    let timer = PmTimer {
        counter: pm_counter(u64::try_from(clock).unwrap_or(0)),
        pm1_status: fields.number("ar.pm1.evt.sts")?,
        pm1_enable: fields.number("ar.pm1.evt.en")?,
        io_base: (pci::dword(config, PMBA) & PMBA_ADDRESS) as u16,
    };
    let left = fields.keep(&["ar.tmr.timer", "ar.tmr.overflow_time"]);
    Ok((timer, left.finish_silent(section)))
}
