//! The registers: where they are and what their bits mean (IA-PC HPET specification 1.0a, section 2.3).

/// Where the chip is.
const BASE: u64 = 0xfed0_0000;
/// How far it reaches.
const SIZE: u64 = 0x400;

/// General configuration: the counter runs.
pub(super) const ENABLE: u64 = 1;
/// General configuration: timers 0 and 1 take the place of the interval timer and the clock.
pub(super) const LEGACY: u64 = 1 << 1;

/// Timer: level triggered.
pub(super) const LEVEL: u64 = 1 << 1;
/// Timer: raises interrupts.
pub(super) const INTERRUPTS: u64 = 1 << 2;
/// Timer: periodic.
pub(super) const PERIODIC: u64 = 1 << 3;
/// Timer: the next write to the comparator sets it even though the timer is periodic.
pub(super) const SET_VALUE: u64 = 1 << 6;
/// Timer: 32 bits wide.
pub(super) const NARROW: u64 = 1 << 8;
/// Timer: the interrupt it takes.
pub(super) const ROUTE: u64 = 0x1f << ROUTE_SHIFT;
pub(super) const ROUTE_SHIFT: u32 = 9;
/// Timer: the interrupts it could take begin here.
pub(super) const ROUTES_SHIFT: u32 = 32;
/// Timer: what the guest can write. FSB delivery is not offered.
pub(super) const WRITABLE: u64 = LEVEL | INTERRUPTS | PERIODIC | SET_VALUE | NARROW | ROUTE;

/// A register of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Capabilities,
    Configuration,
    Status,
    Counter,
    TimerConfiguration(usize),
    TimerComparator(usize),
    TimerFsb(usize),
}

impl Register {
    /// The register that an offset lies in.
    pub(super) fn at(offset: u64) -> Option<Self> {
        Some(match offset & !7 {
            0x000 => Self::Capabilities,
            0x010 => Self::Configuration,
            0x020 => Self::Status,
            0x0f0 => Self::Counter,
            0x100 => Self::TimerConfiguration(0),
            0x108 => Self::TimerComparator(0),
            0x110 => Self::TimerFsb(0),
            0x120 => Self::TimerConfiguration(1),
            0x128 => Self::TimerComparator(1),
            0x130 => Self::TimerFsb(1),
            0x140 => Self::TimerConfiguration(2),
            0x148 => Self::TimerComparator(2),
            0x150 => Self::TimerFsb(2),
            _ => return None,
        })
    }
}

/// The offset of a physical address, if it is one of the chip's.
pub(crate) fn offset(address: u64) -> Option<u64> {
    address.checked_sub(BASE).filter(|offset| *offset < SIZE)
}

/// A part of a register: `length` bytes at `offset`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    shift: u32,
    mask: u64,
}

impl Part {
    /// None where an access has an odd length or crosses registers.
    pub(super) fn new(offset: u64, length: u32) -> Option<Self> {
        if !matches!(length, 1 | 2 | 4 | 8) || offset & u64::from(length - 1) != 0 {
            return None;
        }
        let byte = u32::try_from(offset & 7).ok()?;
        Some(Self { shift: byte * 8, mask: u64::MAX >> (64 - 8 * length) })
    }

    /// What is read of a register.
    pub(super) fn of(self, register: u64) -> u64 {
        register >> self.shift & self.mask
    }

    /// What is written, at its place.
    pub(super) fn placed(self, value: u64) -> u64 {
        (value & self.mask) << self.shift
    }

    /// A register after a write to this part.
    pub(super) fn written(self, register: u64, value: u64) -> u64 {
        register & !(self.mask << self.shift) | self.placed(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chip_has_its_page_and_no_more() {
        assert_eq!(offset(0xfed0_00f0), Some(0xf0));
        assert_eq!(offset(0xfed0_03ff), Some(0x3ff));
        assert_eq!((offset(0xfed0_0400), offset(0xfecf_ffff), offset(0)), (None, None, None));
    }

    #[test]
    fn parts_are_read_and_written_where_they_are() {
        let high = Part::new(0xf4, 4).unwrap();
        assert_eq!(high.of(0x1122_3344_5566_7788), 0x1122_3344);
        assert_eq!(high.written(0x1122_3344_5566_7788, 0xaabb_ccdd_0000_0001), 0x0000_0001_5566_7788);
        let all = Part::new(0xf0, 8).unwrap();
        assert_eq!((all.of(u64::MAX), all.written(7, 9)), (u64::MAX, 9));
        assert_eq!(Part::new(0xf3, 1).unwrap().of(0x1122_3344_5566_7788), 0x55);
        assert!(Part::new(0xf2, 4).is_none() && Part::new(0xf0, 3).is_none() && Part::new(0xf4, 8).is_none());
    }

    #[test]
    fn unknown_offsets_are_no_register() {
        assert_eq!(Register::at(0x12c), Some(Register::TimerComparator(1)));
        assert_eq!((Register::at(0x8), Register::at(0x160), Register::at(0x118)), (None, None, None));
    }
}
