use crate::Endian;

/// The mirror image of a [`Cursor`](crate::Cursor): appends fields in one byte order.
#[derive(Clone, Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
    endian: Endian,
}

macro_rules! append {
    ($($name:ident)*) => {$(
        #[doc = concat!("Appends a `", stringify!($name), "` in the encoder's byte order.")]
        pub fn $name(&mut self, value: $name) -> &mut Self {
            match self.endian {
                Endian::Little => self.bytes.extend_from_slice(&value.to_le_bytes()),
                Endian::Big => self.bytes.extend_from_slice(&value.to_be_bytes()),
            }
            self
        }
    )*};
}

impl Encoder {
    /// An empty encoder.
    pub fn new(endian: Endian) -> Self {
        Self { bytes: Vec::new(), endian }
    }

    append!(u8 u16 u32 u64 i32 i64);

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends `length` zero bytes.
    pub fn zeros(&mut self, length: usize) -> &mut Self {
        self.bytes.resize(self.bytes.len() + length, 0);
        self
    }

    /// Appends zero bytes until the length is a multiple of `alignment`.
    pub fn align(&mut self, alignment: usize) -> &mut Self {
        let length = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(length, 0);
        self
    }

    /// Number of bytes appended so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes appended.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The bytes appended so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_the_cursor() {
        let mut encoder = Encoder::new(Endian::Big);
        encoder.u8(1).u16(0x0203).bytes(b"x").align(8).i64(-1);
        assert_eq!(encoder.into_bytes(), [1, 2, 3, b'x', 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    }
}
