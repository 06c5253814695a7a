//! Runs of pages, squashed into one element.

use super::{Fields, Value};

/// Ranges that are shown.
const SHOWN: usize = 32;
/// Ranges that a run may have; beyond, a new run begins, so that memory stays bounded on any stream.
const LIMIT: usize = 1 << 16;

/// Page frames as ranges, and a checksum of contents.
#[derive(Debug, Default)]
pub(super) struct Run {
    ranges: Vec<(u64, u64)>,
    pages: u64,
    checksum: crc32fast::Hasher,
}

impl Run {
    /// A page stands here.
    pub(super) fn frame(&mut self, frame: u64) {
        match self.ranges.last_mut() {
            Some((_, last)) if *last + 1 == frame => *last = frame,
            _ => self.ranges.push((frame, frame)),
        }
    }

    /// The contents of some pages.
    pub(super) fn data(&mut self, pages: u64, data: &[u8]) {
        self.pages += pages;
        self.checksum.update(data);
    }

    /// Whether no more frames should be added.
    pub(super) fn is_full(&self) -> bool {
        self.ranges.len() >= LIMIT
    }

    /// Appends what there is to say.
    pub(super) fn describe(mut self, fields: Fields) -> Fields {
        self.ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (first, last) in self.ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        let mut text: Vec<String> = merged.iter().take(SHOWN).map(range).collect();
        if merged.len() > SHOWN {
            text.push(format!("and {} ranges more", merged.len() - SHOWN));
        }
        fields
            .with("pages", Value::Dec(self.pages))
            .with("frames", Value::Text(text.join(" ")))
            .with("data_crc32", Value::Hex(self.checksum.finalize().into()))
    }
}

fn range((first, last): &(u64, u64)) -> String {
    if first == last { format!("{first:#x}") } else { format!("{first:#x}-{last:#x}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_in_order_and_joined() {
        let mut run = Run::default();
        for frame in [0, 1, 2, 0x10, 3, 4, 1] {
            run.frame(frame);
        }
        run.data(7, &[1, 2, 3]);
        let text = run.describe(Fields::new()).to_string();
        assert_eq!(text, "pages = 7\nframes = 0x0-0x4 0x10\ndata_crc32 = 0x55bc801d\n");
    }

    #[test]
    fn a_scattered_run_ends_in_time() {
        let mut run = Run::default();
        for frame in 0..2 * LIMIT as u64 {
            if run.is_full() {
                break;
            }
            run.frame(2 * frame);
        }
        assert_eq!(run.ranges.len(), LIMIT);
    }
}
