//! Register values in JSON: `"0x80050033"`. A JSON number loses the low bits of a 64-bit value in many readers.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that stands in JSON as hexadecimal text, or as nested lists of it.
pub(crate) trait Hex: Sized {
    /// Writes the value.
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    /// Reads it back.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

pub(crate) fn serialize<T: Hex, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.write(serializer)
}

pub(crate) fn deserialize<'de, T: Hex, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::read(deserializer)
}

/// Lends serde's own traits to an element of a list.
struct Element<T>(T);

impl<T: Hex> Serialize for Element<&T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.write(serializer)
    }
}

impl<'de, T: Hex> Deserialize<'de> for Element<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(deserializer).map(Self)
    }
}

macro_rules! number {
    ($($number:ty),*) => {$(
        impl Hex for $number {
            fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&format_args!("{self:#x}"))
            }

            fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.strip_prefix("0x")
                    .filter(|digits| !digits.starts_with('+'))
                    .and_then(|digits| Self::from_str_radix(digits, 16).ok())
                    .ok_or_else(|| {
                        let bits = Self::BITS;
                        D::Error::custom(format!("found {text:?}, wanted \"0x…\" of at most {bits} bits"))
                    })
            }
        }
    )*};
}

number!(u32, u64, u128);

impl<T: Hex> Hex for Vec<T> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Element))
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<Element<T>>::deserialize(deserializer)?.into_iter().map(|element| element.0).collect())
    }
}

impl<T: Hex, const N: usize> Hex for [T; N] {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Element))
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = Vec::<T>::read(deserializer)?;
        let found = values.len();
        values.try_into().map_err(|_| D::Error::custom(format!("found {found} values, wanted {N}")))
    }
}

impl<T: Hex> Hex for Option<T> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_ref().map(Element).serialize(serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<Element<T>>::deserialize(deserializer)?.map(|element| element.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        #[serde(with = "super")]
        register: u64,
        #[serde(with = "super")]
        vectors: Option<[[u128; 2]; 2]>,
    }

    #[test]
    fn goes_there_and_back() {
        let sample = Sample { register: u64::MAX, vectors: Some([[u128::MAX, 0], [1, 2]]) };
        let json = serde_json::to_string(&sample).unwrap();
        assert!(json.starts_with(r#"{"register":"0xffffffffffffffff","vectors":[["0xfff"#), "{json}");
        assert_eq!(serde_json::from_str::<Sample>(&json).unwrap(), sample);
    }

    #[test]
    fn says_what_was_wanted() {
        for (json, wanted) in [
            (r#"{"register":"0x10000000000000000","vectors":null}"#, "at most 64 bits"),
            (r#"{"register":"12","vectors":null}"#, "wanted \"0x"),
            (r#"{"register":"0x+1","vectors":null}"#, "wanted \"0x"),
            (r#"{"register":"0x1","vectors":[["0x0","0x1"]]}"#, "found 1 values, wanted 2"),
        ] {
            let error = serde_json::from_str::<Sample>(json).unwrap_err().to_string();
            assert!(error.contains(wanted), "{json}: {error}");
        }
    }
}
