//! The interval timer; and that the other timer chips are not KVM's.

use hyperferry_vm_model::{Hpet, Pit, PitChannel, Timers};
use kvm_bindings::{KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON};

use crate::fate::Fates;
use crate::state::{PitChannelState, PitState2};

/// Mode of a channel that was never programmed.
const NO_MODE: u8 = 0xff;

pub(super) fn localise(timers: &Timers, fates: &mut Fates) -> PitState2 {
    fates.carried(&["timers.pit"], "pit2");
    for (index, channel) in timers.pit.channels.iter().enumerate() {
        let phase = if channel.elapsed_ns.is_some() { "phase lost" } else { "phase unknown" };
        fates.dropped(
            &format!("timers.pit.channels[{index}].elapsed_ns"),
            format!("{phase}: KVM loads each count anew"),
        );
    }
    fates.dropped("timers.rtc", "not part of KVM's state: the clock lies in the VMM");
    fates.dropped("timers.hpet", "not part of KVM's state: the HPET lies in the VMM");
    fates.dropped("timers.pm_timer", "not part of KVM's state: the PM timer lies in the VMM");
    let legacy = timers.hpet.as_ref().is_some_and(Hpet::legacy_replacement);
    if legacy {
        fates.derived("timers.hpet.config", "legacy replacement: pit2.flags HPET_LEGACY");
    }
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    PitState2 {
        channels: timers.pit.channels.each_ref().map(localise_channel),
        flags: flag(legacy, KVM_PIT_FLAGS_HPET_LEGACY)
            | flag(timers.pit.speaker_data_on, KVM_PIT_FLAGS_SPEAKER_DATA_ON),
    }
}

fn localise_channel(channel: &PitChannel) -> PitChannelState {
    PitChannelState {
        count: channel.count,
        latched_count: channel.latched_count,
        count_latched: channel.count_latched,
        status_latched: channel.status_latched.into(),
        status: channel.status,
        read_state: channel.read_state,
        write_state: channel.write_state,
        write_latch: channel.write_latch,
        rw_mode: channel.rw_mode,
        mode: channel.mode.unwrap_or(NO_MODE),
        bcd: channel.bcd.into(),
        gate: channel.gate.into(),
        count_load_time: 0,
    }
}

pub(super) fn normalise(state: &PitState2, fates: &mut Fates) -> Pit {
    fates.carried(&["pit2"], "timers.pit");
    for index in 0..state.channels.len() {
        let note = "a time of the host's clock: the phase is lost";
        fates.dropped(&format!("pit2.channels[{index}].count_load_time"), note);
    }
    if state.flags & KVM_PIT_FLAGS_HPET_LEGACY != 0 {
        fates.dropped("pit2.flags", "HPET_LEGACY: told by the HPET, which lies in the VMM");
    }
    Pit {
        channels: state.channels.each_ref().map(normalise_channel),
        speaker_data_on: state.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0,
    }
}

fn normalise_channel(channel: &PitChannelState) -> PitChannel {
    PitChannel {
        count: channel.count,
        latched_count: channel.latched_count,
        count_latched: channel.count_latched,
        status_latched: channel.status_latched != 0,
        status: channel.status,
        read_state: channel.read_state,
        write_state: channel.write_state,
        write_latch: channel.write_latch,
        rw_mode: channel.rw_mode,
        mode: (channel.mode != NO_MODE).then_some(channel.mode),
        bcd: channel.bcd != 0,
        gate: channel.gate != 0,
        elapsed_ns: None,
    }
}
