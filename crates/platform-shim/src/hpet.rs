//! Xen's HPET: a main counter at 62.5 MHz and three comparators (IA-PC HPET specification 1.0a;
//! `xen/arch/x86/hvm/hpet.c` of Xen 4.17 to 4.21 for what it leaves open).

mod model;
mod registers;

use hyperferry_vm_model::Hpet;
use serde::{Deserialize, Serialize};

pub(crate) use self::model::{Model, Wires};
pub(crate) use self::registers::offset;

/// Version of the state's document.
const VERSION: u32 = 1;

/// The chip's state, as hyperferry and we hand it to each other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    /// None where the guest has no such chip.
    hpet: Option<Hpet>,
}

/// Why a state is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("HPET state: {0}")]
    Json(#[from] serde_json::Error),
    #[error("HPET state: version: found {0}, wanted {VERSION}")]
    Version(u32),
    #[error("HPET state: period_fs: found {0}, wanted 1 to 100000000")]
    Period(u64),
    #[error("HPET state: timers: found {0}, wanted 3")]
    Timers(usize),
}

/// Reads a state.
pub(crate) fn from_json(text: &[u8]) -> Result<Option<Model>, Error> {
    let document: Document = serde_json::from_slice(text)?;
    if document.version != VERSION {
        return Err(Error::Version(document.version));
    }
    document.hpet.as_ref().map(Model::from_state).transpose()
}

/// Writes a state.
pub(crate) fn to_json(model: &Model) -> Vec<u8> {
    let document = Document { version: VERSION, hpet: Some(model.state()) };
    // Numbers in a structure: nothing that JSON could not hold.
    serde_json::to_vec(&document).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = r#"{"version":1,"hpet":{"period_fs":16000000,"capabilities":2156306945,"config":1,"isr":0,
        "counter":1000,"timers":[{"config":67555089183997952,"comparator":5,"period":0,"fsb":0},
        {"config":0,"comparator":6,"period":0,"fsb":0},{"config":0,"comparator":7,"period":0,"fsb":0}]}}"#;

    #[test]
    fn a_state_that_was_read_is_written_again() {
        let model = from_json(STATE.as_bytes()).unwrap().unwrap();
        let again: Document = serde_json::from_slice(&to_json(&model)).unwrap();
        let first: Document = serde_json::from_str(STATE).unwrap();
        assert_eq!(again.hpet, first.hpet);
    }

    #[test]
    fn a_guest_may_have_no_such_chip() {
        assert!(from_json(br#"{"version":1,"hpet":null}"#).unwrap().is_none());
    }

    #[test]
    fn what_is_no_state_is_refused_with_the_reason() {
        let refused =
            |from: &str, to: &str| from_json(STATE.replace(from, to).as_bytes()).unwrap_err().to_string();
        assert_eq!(refused("\"version\":1", "\"version\":2"), "HPET state: version: found 2, wanted 1");
        assert!(refused("16000000", "0").contains("period_fs: found 0"));
        assert!(refused("16000000", "100000001").contains("period_fs"));
        assert!(refused("\"comparator\":7,", "").contains("missing field"));
        assert!(
            refused(",\n        {\"config\":0,\"comparator\":6,\"period\":0,\"fsb\":0}", "")
                .contains("found 2")
        );
        assert!(refused("counter", "counted").contains("HPET state: "));
    }
}
