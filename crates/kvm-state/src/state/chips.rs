//! The chips that KVM emulates for the whole VM: `kvm_pic_state`, `kvm_ioapic_state`, `kvm_pit_state2`,
//! `kvm_clock_data`.

use serde::{Deserialize, Serialize};

use super::mirror;
use crate::hex;

/// `KVM_GET_IRQCHIP` of all three chips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Irqchip {
    /// `KVM_IRQCHIP_PIC_MASTER`.
    pub pic_master: PicState,
    /// `KVM_IRQCHIP_PIC_SLAVE`.
    pub pic_slave: PicState,
    /// `KVM_IRQCHIP_IOAPIC`.
    pub ioapic: IoapicState,
}

/// `kvm_pic_state`: one 8259.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PicState {
    /// Levels of the lines when they last changed.
    pub last_irr: u8,
    /// Requests.
    pub irr: u8,
    /// Mask.
    pub imr: u8,
    /// In service.
    pub isr: u8,
    /// Line of highest priority.
    pub priority_add: u8,
    /// First vector.
    pub irq_base: u8,
    /// Reads give ISR, not IRR.
    pub read_reg_select: u8,
    /// Poll mode.
    pub poll: u8,
    /// Special mask mode.
    pub special_mask: u8,
    /// Which initialization word comes next, 0 when done.
    pub init_state: u8,
    /// Ends interrupts by itself.
    pub auto_eoi: u8,
    /// Rotates priorities on automatic end of interrupt.
    pub rotate_on_auto_eoi: u8,
    /// Special fully nested mode.
    pub special_fully_nested_mode: u8,
    /// ICW4 will come.
    pub init4: u8,
    /// Level-triggered lines.
    pub elcr: u8,
    /// Lines that may be level-triggered: 0xf8 on the master, 0xde on the slave.
    pub elcr_mask: u8,
}

mirror!(
    PicState = kvm_pic_state {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask
    }
);

/// `kvm_ioapic_state`: the I/O APIC, always with 24 pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct IoapicState {
    /// Physical address of its registers.
    #[serde(with = "hex")] pub base_address: u64,
    /// Index register.
    #[serde(with = "hex")] pub ioregsel: u32,
    /// The four bits of the id register.
    pub id: u32,
    /// Asserted pins; KVM services each of them again on `KVM_SET_IRQCHIP`.
    #[serde(with = "hex")] pub irr: u32,
    /// Redirection entries in the data sheet's layout.
    #[serde(with = "hex")] pub redirtbl: [u64; 24],
}

/// `kvm_pit_state2`: the 8254.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PitState2 {
    /// The three channels.
    pub channels: [PitChannelState; 3],
    /// Bit 0 `KVM_PIT_FLAGS_HPET_LEGACY`, bit 1 `KVM_PIT_FLAGS_SPEAKER_DATA_ON` (Linux 5.18).
    pub flags: u32,
}

/// `kvm_pit_channel_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PitChannelState {
    /// Reload value, 1 to 0x10000.
    pub count: u32,
    /// Latched count.
    pub latched_count: u16,
    /// How much of the latched count is still to be read.
    pub count_latched: u8,
    /// A status byte is latched.
    pub status_latched: u8,
    /// The latched status byte.
    pub status: u8,
    /// Byte that the next read gives.
    pub read_state: u8,
    /// Byte that the next write takes.
    pub write_state: u8,
    /// Low byte of a count half written.
    pub write_latch: u8,
    /// Access mode.
    pub rw_mode: u8,
    /// Counting mode 0 to 5; 0xff when it was never programmed.
    pub mode: u8,
    /// Counts in decimal.
    pub bcd: u8,
    /// Gate input.
    pub gate: u8,
    /// Host's monotonic clock when the count was loaded, ns. `KVM_SET_PIT2` loads every count anew: it replaces this
    /// on channels 1 and 2 and starts a full period on channel 0.
    pub count_load_time: i64,
}

mirror!(
    PitChannelState = kvm_pit_channel_state {
        count,
        latched_count,
        count_latched,
        status_latched,
        status,
        read_state,
        write_state,
        write_latch,
        rw_mode,
        mode,
        bcd,
        gate,
        count_load_time
    }
);

impl From<&kvm_bindings::kvm_pit_state2> for PitState2 {
    fn from(theirs: &kvm_bindings::kvm_pit_state2) -> Self {
        Self { channels: theirs.channels.each_ref().map(Into::into), flags: theirs.flags }
    }
}

impl From<&PitState2> for kvm_bindings::kvm_pit_state2 {
    fn from(ours: &PitState2) -> Self {
        Self { channels: ours.channels.each_ref().map(Into::into), flags: ours.flags, ..Default::default() }
    }
}

/// `kvm_clock_data`: the clock that KVM shows to the guest. Its `flags`, `realtime` and `host_tsc` describe the host
/// at the instant of the capture and are not state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockData {
    /// Nanoseconds the VM has existed for.
    pub clock: u64,
}

mirror!(ClockData = kvm_clock_data { clock });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_kernel_s() {
        assert_eq!(size_of::<kvm_bindings::kvm_pic_state>(), 16);
        assert_eq!(size_of::<kvm_bindings::kvm_ioapic_state>(), 216);
        assert_eq!(size_of::<kvm_bindings::kvm_pit_state2>(), 112);
        assert_eq!(size_of::<kvm_bindings::kvm_clock_data>(), 48);
    }

    #[test]
    fn the_pit_keeps_every_field() {
        let channel = |n: u8| PitChannelState {
            count: 0x10000 + u32::from(n),
            latched_count: 2,
            count_latched: 3,
            status_latched: 4,
            status: 5,
            read_state: 6,
            write_state: 7,
            write_latch: 8,
            rw_mode: 9,
            mode: 10,
            bcd: 11,
            gate: 12,
            count_load_time: -13,
        };
        let pit = PitState2 { channels: [channel(0), channel(1), channel(2)], flags: 3 };
        assert_eq!(PitState2::from(&kvm_bindings::kvm_pit_state2::from(&pit)), pit);
    }
}
