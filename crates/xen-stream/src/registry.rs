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

/// The tests that every record gets by its row; those of an HVM context are beside it.
#[cfg(test)]
mod tests {
    use hyperferry_wire::{Cursor, Encoder, Endian, ErrorKind, StreamPath, Strictness};

    use super::*;
    use crate::{libxc, libxl};

    /// A body of an allowed length, no two neighbours equal.
    fn sample(row: &Row) -> Vec<u8> {
        let size = match row.length {
            Length::Exact(size) | Length::AtMost(size) => size,
            Length::AtLeast(size) => size.next_multiple_of(8) + 48,
        };
        let mut bytes: Vec<u8> = (1..=size).map(|at| u8::try_from(at % 251 + 1).unwrap()).collect();
        match row.name {
            "HVM_PARAMS" => bytes[..4].copy_from_slice(&3_u32.to_le_bytes()),
            "HVM_CONTEXT" => {
                bytes[..16].copy_from_slice(b"\x01\0\0\0\x18\0\0\0\x86\x12\x38\x54\x01\0\0\0");
                bytes.truncate(40);
                bytes[32..].fill(0);
            }
            "EMULATOR_XENSTORE_DATA" => {
                bytes.truncate(8);
                bytes.extend(b"key\0value\0");
            }
            _ => {}
        }
        bytes
    }

    fn cursor(bytes: &[u8], strictness: Strictness) -> Cursor<'_> {
        Cursor::new(bytes, 0, StreamPath::root(), Endian::Little).with_strictness(strictness)
    }

    macro_rules! walk {
        ($layer:ident) => {
            for row in $layer::ROWS {
                let encode = |record: &$layer::Record| {
                    let mut encoder = Encoder::new(Endian::Little);
                    record.encode(&mut encoder);
                    encoder.into_bytes()
                };
                let decode = |bytes: &[u8], mode| $layer::Record::decode(row.code, cursor(bytes, mode));

                let read = decode(&sample(row), Strictness::Tolerant).unwrap();
                let body = encode(&read);
                assert_eq!(body.len(), sample(row).len(), "{}", row.name);
                let again = decode(&body, Strictness::Strict).unwrap();
                assert!(again == read && encode(&again) == body, "{}", row.name);
                assert_eq!((again.code(), again.name().as_ref()), (row.code, row.name));
                assert_eq!(body.is_empty(), again.describe().iter().next().is_none(), "{}", row.name);

                for length in (0..body.len()).filter(|length| row.length.allows(*length)) {
                    match decode(&body[..length], Strictness::Strict) {
                        Ok(short) => assert_eq!(encode(&short), body[..length], "{} at {length}", row.name),
                        Err(error) => assert!(
                            matches!(error.kind(), ErrorKind::Truncated { .. } | ErrorKind::Invalid { .. }),
                            "{} at {length}: {error}",
                            row.name
                        ),
                    }
                }
            }
        };
    }

    #[test]
    fn every_libxl_record_round_trips_and_may_be_cut() {
        walk!(libxl);
    }

    #[test]
    fn every_libxc_record_round_trips_and_may_be_cut() {
        walk!(libxc);
    }

    #[test]
    fn each_type_and_name_has_one_row() {
        for rows in [libxl::ROWS, libxc::ROWS, crate::hvm::ROWS] {
            for (index, row) in rows.iter().enumerate() {
                let twin =
                    rows[..index].iter().find(|other| other.code == row.code || other.name == row.name);
                assert_eq!(twin, None);
            }
        }
        assert!(libxc::ROWS.iter().all(|row| row.code != libxc::PAGE_DATA));
    }
}
