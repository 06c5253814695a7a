use std::collections::{BTreeMap, BTreeSet};

use hyperferry_vm_model::PAGE_SIZE;

/// Pages outside RAM, kept until the state tells what they are: video memory, ACPI tables, Xen's own pages.
///
/// Of pages of zeros only the number is kept: that is what every place they may go to starts with.
#[derive(Clone, Debug, Default)]
pub struct HeldPages {
    pages: BTreeMap<u64, Box<[u8]>>,
    zeros: BTreeSet<u64>,
    overflow: Option<u64>,
}

/// Most pages kept, 24 MiB: 16 MiB of video memory, option ROMs, ACPI tables, and Xen's own pages, with room.
const LIMIT: usize = 6144;
/// Most pages of zeros counted: 256 MiB of video memory that was never drawn on.
const ZEROS_LIMIT: usize = 65_536;

impl HeldPages {
    /// Keeps a page; a later one takes the place of an earlier one.
    pub(crate) fn put(&mut self, pfn: u64, page: &[u8]) {
        let zero = page.iter().all(|byte| *byte == 0);
        let room = if zero { self.zeros.len() < ZEROS_LIMIT } else { self.pages.len() < LIMIT };
        if !room {
            self.overflow.get_or_insert(pfn);
        } else if zero {
            self.pages.remove(&pfn);
            self.zeros.insert(pfn);
        } else {
            self.zeros.remove(&pfn);
            self.pages.insert(pfn, page.into());
        }
    }

    /// Takes over all pages of another, whose numbers count from the address `base`.
    ///
    /// The limits count for the sum as well: the first page without room is the [`overflow`](Self::overflow).
    pub(crate) fn append(&mut self, base: u64, others: Self) {
        let first = base / PAGE_SIZE;
        for number in others.zeros {
            let pfn = first.saturating_add(number);
            if self.zeros.len() < ZEROS_LIMIT {
                self.zeros.insert(pfn);
            } else {
                self.overflow.get_or_insert(pfn);
            }
        }
        for (number, page) in others.pages {
            let pfn = first.saturating_add(number);
            if self.pages.len() < LIMIT {
                self.pages.insert(pfn, page);
            } else {
                self.overflow.get_or_insert(pfn);
            }
        }
    }

    /// The pages that are not all zeros, and nothing of the others.
    pub(crate) fn without_zeros(self) -> Self {
        Self { zeros: BTreeSet::new(), ..self }
    }

    /// The first page for which there was no room.
    pub(crate) fn overflow(&self) -> Option<u64> {
        self.overflow
    }

    /// A page, if it came and is not all zeros.
    pub fn page(&self, pfn: u64) -> Option<&[u8]> {
        self.pages.get(&pfn).map(AsRef::as_ref)
    }

    /// The numbers of the pages that came and are all zeros, in order.
    pub fn zeros(&self) -> impl Iterator<Item = u64> {
        self.zeros.iter().copied()
    }

    /// The pages that are not all zeros and their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|(pfn, page)| (*pfn, page.as_ref()))
    }

    /// The pages that lie in a range of guest-physical addresses.
    pub fn range(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.range(start / PAGE_SIZE..end.div_ceil(PAGE_SIZE)).map(|(pfn, page)| (*pfn, page.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_copy_counts_and_zeros_take_no_room() {
        let mut held = HeldPages::default();
        held.put(7, &[1; 4096]);
        held.put(7, &[2; 4096]);
        held.put(8, &[0; 4096]);
        assert_eq!(held.page(7).unwrap()[0], 2);
        assert_eq!(held.iter().count(), 1);
        held.put(7, &[0; 4096]);
        assert_eq!(held.iter().count(), 0);
        assert_eq!(held.zeros().collect::<Vec<_>>(), [7, 8]);
        assert_eq!(held.without_zeros().zeros().count(), 0);
    }

    #[test]
    fn there_is_an_end_to_it() {
        let mut held = HeldPages::default();
        for pfn in 0..=LIMIT as u64 {
            held.put(pfn, &[1; 4096]);
        }
        assert_eq!(held.overflow(), Some(LIMIT as u64));

        let (mut sum, mut half) = (HeldPages::default(), HeldPages::default());
        for pfn in 0..LIMIT as u64 / 2 + 1 {
            half.put(pfn, &[1; 4096]);
        }
        sum.append(0, half.clone());
        assert_eq!(sum.overflow(), None);
        sum.append(1 << 32, half);
        assert_eq!(sum.overflow(), Some((1 << 20) + LIMIT as u64 / 2 - 1));
    }
}
