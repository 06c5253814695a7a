//! `kvm_lapic_state`: the register page of a local APIC, 1024 bytes, one register each 16 bytes.

use kvm_bindings::kvm_lapic_state;
use serde::{Deserialize, Serialize};

use crate::hex;

/// `kvm_lapic_state`, register by register (Intel SDM vol. 3, "Local APIC Register Address Map").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct LapicState {
    /// 0x020: the id in bits 31:24, in x2APIC mode too (unless `KVM_CAP_X2APIC_API` is enabled).
    #[serde(with = "hex")] pub id: u32,
    /// 0x030: version and number of LVT entries; KVM writes its own.
    #[serde(with = "hex")] pub version: u32,
    /// 0x080: task priority.
    #[serde(with = "hex")] pub tpr: u32,
    /// 0x090: arbitration priority.
    #[serde(with = "hex")] pub apr: u32,
    /// 0x0a0: processor priority; KVM computes it.
    #[serde(with = "hex")] pub ppr: u32,
    /// 0x0d0: logical destination; KVM computes it in x2APIC mode.
    #[serde(with = "hex")] pub ldr: u32,
    /// 0x0e0: destination format.
    #[serde(with = "hex")] pub dfr: u32,
    /// 0x0f0: spurious interrupt vector.
    #[serde(with = "hex")] pub svr: u32,
    /// 0x100 to 0x170: in service.
    #[serde(with = "hex")] pub isr: [u32; 8],
    /// 0x180 to 0x1f0: trigger mode.
    #[serde(with = "hex")] pub tmr: [u32; 8],
    /// 0x200 to 0x270: requests.
    #[serde(with = "hex")] pub irr: [u32; 8],
    /// 0x280: error status.
    #[serde(with = "hex")] pub esr: u32,
    /// 0x2f0: LVT of corrected machine checks.
    #[serde(with = "hex")] pub lvt_cmci: u32,
    /// 0x300, 0x310: interrupt command.
    #[serde(with = "hex")] pub icr: [u32; 2],
    /// 0x320: LVT of the timer; bits 18:17 are its mode.
    #[serde(with = "hex")] pub lvt_timer: u32,
    /// 0x330: LVT of the thermal sensor.
    #[serde(with = "hex")] pub lvt_thermal: u32,
    /// 0x340: LVT of the performance counters.
    #[serde(with = "hex")] pub lvt_performance: u32,
    /// 0x350: LVT of LINT0.
    #[serde(with = "hex")] pub lvt_lint0: u32,
    /// 0x360: LVT of LINT1.
    #[serde(with = "hex")] pub lvt_lint1: u32,
    /// 0x370: LVT of errors.
    #[serde(with = "hex")] pub lvt_error: u32,
    /// 0x380: initial count of the timer; 0 is stopped.
    #[serde(with = "hex")] pub initial_count: u32,
    /// 0x390: current count. `KVM_SET_LAPIC` arms the timer with it: 0 fires at once in one-shot mode.
    #[serde(with = "hex")] pub current_count: u32,
    /// 0x3e0: divide configuration.
    #[serde(with = "hex")] pub divide_configuration: u32,
    /// Words at other places that are not zero.
    pub other: Vec<LapicWord>,
}

/// A word of the page that has no name here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct LapicWord {
    /// Offset in the page, a multiple of 4 below 0x400.
    #[serde(with = "hex")] pub offset: u32,
    /// Its value.
    #[serde(with = "hex")] pub value: u32,
}

/// Bytes of the page.
const PAGE: usize = 1024;

impl LapicState {
    /// Shows each register with its offset.
    fn visit(&mut self, mut visit: impl FnMut(usize, &mut u32)) {
        visit(0x020, &mut self.id);
        visit(0x030, &mut self.version);
        visit(0x080, &mut self.tpr);
        visit(0x090, &mut self.apr);
        visit(0x0a0, &mut self.ppr);
        visit(0x0d0, &mut self.ldr);
        visit(0x0e0, &mut self.dfr);
        visit(0x0f0, &mut self.svr);
        for (first, registers) in [(0x100, &mut self.isr), (0x180, &mut self.tmr), (0x200, &mut self.irr)] {
            for (index, register) in registers.iter_mut().enumerate() {
                visit(first + index * 0x10, register);
            }
        }
        visit(0x280, &mut self.esr);
        visit(0x2f0, &mut self.lvt_cmci);
        let [icr_low, icr_high] = &mut self.icr;
        visit(0x300, icr_low);
        visit(0x310, icr_high);
        visit(0x320, &mut self.lvt_timer);
        visit(0x330, &mut self.lvt_thermal);
        visit(0x340, &mut self.lvt_performance);
        visit(0x350, &mut self.lvt_lint0);
        visit(0x360, &mut self.lvt_lint1);
        visit(0x370, &mut self.lvt_error);
        visit(0x380, &mut self.initial_count);
        visit(0x390, &mut self.current_count);
        visit(0x3e0, &mut self.divide_configuration);
    }
}

impl From<&kvm_lapic_state> for LapicState {
    fn from(theirs: &kvm_lapic_state) -> Self {
        let bytes = theirs.regs.map(i8::cast_unsigned);
        let mut words: Vec<u32> =
            bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let mut state = Self::default();
        state.visit(|offset, register| {
            *register = words.get_mut(offset / 4).map(std::mem::take).unwrap_or_default();
        });
        state.other = (0..)
            .step_by(4)
            .zip(words)
            .filter(|(_, value)| *value != 0)
            .map(|(offset, value)| LapicWord { offset, value })
            .collect();
        state
    }
}

impl From<&LapicState> for kvm_lapic_state {
    fn from(ours: &LapicState) -> Self {
        let mut bytes = [0; PAGE];
        let mut write = |offset: usize, value: u32| {
            if let Some(place) = bytes.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<4>()) {
                *place = value.to_le_bytes();
            }
        };
        for word in &ours.other {
            write(word.offset as usize, word.value);
        }
        ours.clone().visit(|offset, register| write(offset, *register));
        Self { regs: bytes.map(u8::cast_signed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_comes_back_byte_by_byte() {
        let mut page = kvm_lapic_state { regs: [0; PAGE] };
        for (at, byte) in page.regs.iter_mut().enumerate() {
            *byte = ((at * 7 + at / 256).to_le_bytes()[0] | 1).cast_signed();
        }
        let state = LapicState::from(&page);
        assert_eq!(state.other.len(), 256 - 8 - 24 - 2 - 2 - 9);
        assert_eq!(kvm_lapic_state::from(&state).regs, page.regs);
    }

    #[test]
    fn registers_stand_where_the_manual_says() {
        let state = LapicState { id: 0x0600_0000, irr: [0, 0, 0, 0, 0, 0, 0, 5], ..LapicState::default() };
        let page = kvm_lapic_state::from(&state);
        assert_eq!((page.regs[0x23], page.regs[0x270]), (6, 5));
    }
}
