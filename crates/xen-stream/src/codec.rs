//! How a fixed layout is written down once and decoded, encoded and described from that one place.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::describe::{Fields, Value};

/// The lengths in bytes that a record's body may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// This length and no other.
    Exact(usize),
    /// This length; a shorter body is an older form whose missing tail reads as zero.
    AtMost(usize),
    /// This length or more: the body ends in a list or a blob.
    AtLeast(usize),
}

impl Length {
    /// Whether a body may have this length.
    pub fn allows(self, length: usize) -> bool {
        match self {
            Self::Exact(size) => length == size,
            Self::AtMost(size) => length <= size,
            Self::AtLeast(size) => length >= size,
        }
    }
}

impl std::fmt::Display for Length {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(size) => write!(f, "{size}"),
            Self::AtMost(size) => write!(f, "at most {size}"),
            Self::AtLeast(size) => write!(f, "at least {size}"),
        }
    }
}

/// The body of one record.
pub(crate) trait Body: Sized {
    /// The lengths it may have.
    const LENGTH: Length;

    /// Reads the body; the frame has one of the lengths allowed, and a short form was made full.
    fn decode(cursor: &mut Cursor<'_>) -> Result<Self>;

    /// Writes the body in its full form.
    fn encode(&self, encoder: &mut Encoder);

    /// The body for people, field by field in wire order.
    fn describe(&self) -> Fields;
}

/// One field of a fixed layout.
pub(crate) trait Field: Sized {
    const SIZE: usize;
    const ZERO: Self;

    fn decode(cursor: &mut Cursor<'_>, name: &str) -> Result<Self>;
    fn encode(&self, encoder: &mut Encoder);
    fn value(&self) -> Value;

    /// Bytes are shown together, all else one by one.
    fn values(many: &[Self]) -> Value {
        Value::List(many.iter().map(Self::value).collect())
    }
}

impl Field for u8 {
    const SIZE: usize = 1;
    const ZERO: Self = 0;

    fn decode(cursor: &mut Cursor<'_>, name: &str) -> Result<Self> {
        cursor.u8(name)
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.u8(*self);
    }

    fn value(&self) -> Value {
        Value::Hex((*self).into())
    }

    fn values(many: &[Self]) -> Value {
        Value::Bytes(many.to_vec())
    }
}

impl Field for i64 {
    const SIZE: usize = 8;
    const ZERO: Self = 0;

    fn decode(cursor: &mut Cursor<'_>, name: &str) -> Result<Self> {
        cursor.i64(name)
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.i64(*self);
    }

    fn value(&self) -> Value {
        Value::Signed(*self)
    }
}

macro_rules! unsigned_field {
    ($($name:ident)*) => {$(
        impl Field for $name {
            const SIZE: usize = size_of::<Self>();
            const ZERO: Self = 0;

            fn decode(cursor: &mut Cursor<'_>, name: &str) -> Result<Self> {
                cursor.$name(name)
            }

            fn encode(&self, encoder: &mut Encoder) {
                encoder.$name(*self);
            }

            fn value(&self) -> Value {
                Value::Hex((*self).into())
            }
        }
    )*};
}

unsigned_field!(u16 u32 u64);

impl<T: Field, const N: usize> Field for [T; N] {
    const SIZE: usize = N * T::SIZE;
    const ZERO: Self = [T::ZERO; N];

    fn decode(cursor: &mut Cursor<'_>, name: &str) -> Result<Self> {
        let mut many = Self::ZERO;
        for one in &mut many {
            *one = T::decode(cursor, name)?;
        }
        Ok(many)
    }

    fn encode(&self, encoder: &mut Encoder) {
        for one in self {
            one.encode(encoder);
        }
    }

    fn value(&self) -> Value {
        T::values(self)
    }
}

/// Reads bodies until the frame ends; each takes at least one byte.
pub(crate) fn decode_all<T: Body>(cursor: &mut Cursor<'_>) -> Result<Vec<T>> {
    let mut all = Vec::new();
    while cursor.remaining() > 0 {
        all.push(T::decode(cursor)?);
    }
    Ok(all)
}

/// A record of fixed layout: its fields in wire order, once, for decoding, encoding and describing.
///
/// * `name: type` is a field; `as dec` or `as row` says how it is shown.
/// * `=> name: n` stands behind a field that is followed by `n` reserved bytes.
/// * The number behind the name is the length on the wire, checked against the fields when compiled.
macro_rules! layout {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $rule:ident $size:literal {
            $($(#[$doc:meta])* $field:ident: $ty:ty $(as $show:ident)? $(=> $pad:ident: $padding:literal)?,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$doc])* pub $field: $ty,)*
        }

        const _: () = assert!(
            $size == 0 $(+ <$ty as $crate::codec::Field>::SIZE $(+ $padding)?)*,
            "the fields do not add up to the length on the wire"
        );

        impl Default for $name {
            fn default() -> Self {
                <Self as $crate::codec::Field>::ZERO
            }
        }

        impl $crate::codec::Body for $name {
            const LENGTH: $crate::codec::Length = $crate::codec::Length::$rule($size);

            fn decode(cursor: &mut hyperferry_wire::Cursor<'_>) -> hyperferry_wire::Result<Self> {
                $(
                    let $field = <$ty as $crate::codec::Field>::decode(cursor, stringify!($field))?;
                    $(cursor.reserved(stringify!($pad), $padding)?;)?
                )*
                Ok(Self { $($field,)* })
            }

            fn encode(&self, encoder: &mut hyperferry_wire::Encoder) {
                $(
                    $crate::codec::Field::encode(&self.$field, encoder);
                    $(encoder.zeros($padding);)?
                )*
            }

            fn describe(&self) -> $crate::describe::Fields {
                $crate::describe::Fields::new()
                    $(.with(stringify!($field), $crate::codec::Field::value(&self.$field)$(.$show())?))*
            }
        }

        impl $crate::codec::Field for $name {
            const SIZE: usize = $size;
            const ZERO: Self = Self { $($field: <$ty as $crate::codec::Field>::ZERO,)* };

            fn decode(cursor: &mut hyperferry_wire::Cursor<'_>, _: &str) -> hyperferry_wire::Result<Self> {
                <Self as $crate::codec::Body>::decode(cursor)
            }

            fn encode(&self, encoder: &mut hyperferry_wire::Encoder) {
                $crate::codec::Body::encode(self, encoder);
            }

            fn value(&self) -> $crate::describe::Value {
                $crate::describe::Value::Fields($crate::codec::Body::describe(self))
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_lengths_a_rule_allows() {
        let allowed = |rule: Length| [7, 8, 9].map(|length| rule.allows(length));
        assert_eq!(allowed(Length::Exact(8)), [false, true, false]);
        assert_eq!(allowed(Length::AtMost(8)), [true, true, false]);
        assert_eq!(allowed(Length::AtLeast(8)), [false, true, true]);
    }
}
