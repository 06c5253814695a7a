use serde::{Deserialize, Serialize};

/// Size of a guest page, bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Where guest memory lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLayout {
    /// First address after RAM below 4 GiB.
    pub low_end: u64,
    /// First address after RAM above 4 GiB; 4 GiB when there is none.
    pub high_end: u64,
}

/// Where RAM goes on after the hole.
const FOUR_GIB: u64 = 1 << 32;

impl MemoryLayout {
    /// A layout with `size` bytes of RAM, at most `low_limit` of it below 4 GiB.
    pub fn split(size: u64, low_limit: u64) -> Self {
        let low_end = size.min(low_limit);
        Self { low_end, high_end: FOUR_GIB + (size - low_end) }
    }

    /// Bytes of RAM above 4 GiB.
    pub fn high_size(&self) -> u64 {
        self.high_end.saturating_sub(FOUR_GIB)
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.low_end + self.high_size()
    }

    /// Offset of a guest-physical address in RAM taken as one piece, the low part first.
    pub fn ram_offset(&self, address: u64) -> Option<u64> {
        if address < self.low_end {
            Some(address)
        } else if (FOUR_GIB..self.high_end).contains(&address) {
            Some(self.low_end + (address - FOUR_GIB))
        } else {
            None
        }
    }

    /// The guest-physical address at an offset of RAM taken as one piece.
    pub fn address(&self, ram_offset: u64) -> Option<u64> {
        if ram_offset < self.low_end {
            Some(ram_offset)
        } else if ram_offset < self.size() {
            Some(FOUR_GIB + (ram_offset - self.low_end))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hole_is_no_ram() {
        let layout = MemoryLayout::split(5 << 30, 3 << 30);
        assert_eq!(layout, MemoryLayout { low_end: 3 << 30, high_end: 6 << 30 });
        assert_eq!(layout.size(), 5 << 30);
        assert_eq!(layout.ram_offset(0xbfff_f000), Some(0xbfff_f000));
        assert_eq!(layout.ram_offset(0xc000_0000), None);
        assert_eq!(layout.ram_offset(0x1_0000_0000), Some(0xc000_0000));
        assert_eq!(layout.ram_offset(6 << 30), None);
        assert_eq!(layout.address(0xc000_0000), Some(0x1_0000_0000));
        assert_eq!(layout.address(5 << 30), None);
    }
}
