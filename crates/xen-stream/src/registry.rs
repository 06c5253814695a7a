//! How the records of one layer are registered: one row each.

use crate::Length;

/// What is known of one record without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its type on the wire.
    pub code: u32,
    /// Its name in the specification.
    pub name: &'static str,
    /// The lengths its body may have.
    pub length: Length,
}

/// The lengths that the body of this type may have; of one that no row names nothing is known.
pub(crate) fn length_of(rows: &[Row], code: u32) -> Option<Length> {
    rows.iter().find(|row| row.code == code).map(|row| row.length)
}

/// The type that a row names, in a pattern.
macro_rules! bind {
    ($ty:ty, $bind:ident) => {
        $bind
    };
}

/// The records of one layer: `code "NAME" Variant(Body);`, or without a body `code "NAME" Variant;`.
///
/// Makes the enum, its decoder, encoder and description, and the table `ROWS`.
macro_rules! records {
    (
        $(#[$meta:meta])*
        pub enum $record:ident($code:ty: $unknown:ident) {
            $($(#[$doc:meta])* $number:literal $name:literal $variant:ident $(($body:ty))?;)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $record {
            $($(#[$doc])* $variant $(($body))?,)*
            /// A record that no row names; it is kept as it came.
            Unknown {
                /// Its type.
                $unknown: $code,
                /// Its body.
                body: Vec<u8>,
            },
        }

        /// Every record that is known, by its type.
        pub const ROWS: &[$crate::Row] = &[
            $($crate::Row {
                code: $number,
                name: $name,
                length: [$(<$body as $crate::codec::Body>::LENGTH,)? $crate::Length::Exact(0)][0],
            },)*
        ];

        impl $record {
            /// The record's type on the wire.
            pub fn code(&self) -> $code {
                match self {
                    $(Self::$variant { .. } => $number,)*
                    Self::Unknown { $unknown, .. } => *$unknown,
                }
            }

            /// The record's name in the specification.
            pub fn name(&self) -> std::borrow::Cow<'static, str> {
                name_of(self.code())
            }

            /// What the record holds, field by field.
            pub fn describe(&self) -> $crate::describe::Fields {
                match self {
                    $(Self::$variant $((bind!($body, body)))? =>
                        [$(<$body as $crate::codec::Body>::describe(body),)?
                         $crate::describe::Fields::new()].into_iter().next().unwrap_or_default(),)*
                    Self::Unknown { body, .. } => $crate::describe::Fields::new()
                        .with("body", $crate::describe::Value::Bytes(body.clone())),
                }
            }

            /// Reads a body to its end.
            pub(crate) fn decode(
                code: $code,
                mut cursor: hyperferry_wire::Cursor<'_>,
            ) -> hyperferry_wire::Result<Self> {
                let record = match code {
                    $($number => Self::$variant $((<$body as $crate::codec::Body>::decode(&mut cursor)?))?,)*
                    _ => Self::Unknown { $unknown: code, body: cursor.rest().to_vec() },
                };
                cursor.finish()?;
                Ok(record)
            }

            /// Writes the body in its full form.
            pub(crate) fn encode(&self, encoder: &mut hyperferry_wire::Encoder) {
                match self {
                    $(Self::$variant $((bind!($body, body)))? => {
                        $(<$body as $crate::codec::Body>::encode(body, encoder);)?
                    })*
                    Self::Unknown { body, .. } => {
                        encoder.bytes(body);
                    }
                }
            }
        }

        /// The name of a type, or its number where no row names it.
        pub(crate) fn name_of(code: $code) -> std::borrow::Cow<'static, str> {
            match code {
                $($number => $name.into(),)*
                _ => format!("{code:#x}").into(),
            }
        }
    };
}
