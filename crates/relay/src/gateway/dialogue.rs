//! How far a receiver has come, by what it has said.

use crate::receive::{BANNER, READY, REPORT};

/// The last thing that was said in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing.
    Nothing,
    /// It waits for the guest.
    Banner,
    /// It holds the guest, stopped.
    Ready,
    /// How it went: 0, or the guest is given back.
    Report(u8),
}

/// What a receiver says, word by word.
#[derive(Debug, Default)]
pub(super) struct Dialogue {
    heard: usize,
    status: Option<u8>,
    strange: Option<String>,
    closed: bool,
}

impl Dialogue {
    /// More bytes. None if the dialogue was closed: they are not to be passed on.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Option<Said> {
        if self.closed {
            return None;
        }
        for byte in bytes {
            let wanted = BANNER.iter().chain(READY).chain(REPORT).nth(self.heard);
            match wanted {
                Some(wanted) if wanted != byte && self.strange.is_none() => {
                    self.strange =
                        Some(bytes.iter().take(80).map(|byte| byte.escape_ascii().to_string()).collect());
                }
                None if self.status.is_none() => self.status = Some(*byte),
                _ => {}
            }
            self.heard += 1;
        }
        Some(self.said())
    }

    pub(super) fn said(&self) -> Said {
        let ready = BANNER.len() + READY.len();
        match (self.status, &self.strange) {
            (_, Some(_)) => Said::Nothing,
            (Some(status), _) => Said::Report(status),
            _ if self.heard >= ready => Said::Ready,
            _ if self.heard >= BANNER.len() => Said::Banner,
            _ => Said::Nothing,
        }
    }

    /// What was no word of a receiver.
    pub(super) fn strange(&self) -> Option<String> {
        self.strange.clone()
    }

    /// Nothing is passed on any more; false if it is too late for that.
    pub(super) fn close(&mut self) -> bool {
        self.closed |= matches!(self.said(), Said::Nothing | Said::Banner);
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_recognised_however_they_are_cut() {
        let all = [&BANNER[..], READY, REPORT, &[0]].concat();
        for step in 1..all.len() {
            let mut dialogue = Dialogue::default();
            let said: Vec<_> = all.chunks(step).filter_map(|bytes| dialogue.hear(bytes)).collect();
            assert_eq!(said.last(), Some(&Said::Report(0)), "in steps of {step}");
        }
        let mut dialogue = Dialogue::default();
        assert_eq!(dialogue.hear(BANNER), Some(Said::Banner));
        assert_eq!(dialogue.hear(&READY[..33]), Some(Said::Banner));
        assert_eq!(dialogue.hear(b"\0"), Some(Said::Ready));
    }

    #[test]
    fn before_ready_it_can_be_closed_and_not_behind() {
        let mut dialogue = Dialogue::default();
        assert!(dialogue.close());
        assert_eq!(dialogue.hear(BANNER), None);
        let mut dialogue = Dialogue::default();
        dialogue.hear(&[&BANNER[..], READY].concat());
        assert!(!dialogue.close());
        assert_eq!(dialogue.hear(REPORT), Some(Said::Ready));
    }

    #[test]
    fn other_words_are_kept_for_a_message() {
        let mut dialogue = Dialogue::default();
        assert_eq!(dialogue.hear(b"Last login: today\n"), Some(Said::Nothing));
        assert_eq!(dialogue.strange().as_deref(), Some("Last login: today\\n"));
    }
}
