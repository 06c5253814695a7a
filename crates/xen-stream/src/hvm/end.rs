//! END: closes the context.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::Length;
use crate::codec::Body;
use crate::describe::Fields;

/// END: no state; bytes behind it are an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End;

impl Body for End {
    const LENGTH: Length = Length::Exact(0);

    fn decode(_: &mut Cursor<'_>) -> Result<Self> {
        Ok(Self)
    }

    fn encode(&self, _: &mut Encoder) {}

    fn describe(&self) -> Fields {
        Fields::new()
    }
}
