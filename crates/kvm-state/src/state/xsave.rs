//! `kvm_xsave`: x87, SSE and everything that XSAVE saves, in the standard (not compacted) layout.
//!
//! ```text
//! offset size field                                offset size field
//! 0      2    FCW                                  32     128  ST(0) to ST(7), 16 bytes each, 10 used
//! 2      2    FSW; TOP in bits 13:11               160    256  XMM0 to XMM15
//! 4      1    FTW, abridged                        416    96   free for software
//! 6      2    FOP                                  512    8    XSTATE_BV
//! 8      8    FIP                                  520    8    XCOMP_BV, 0 here
//! 16     8    FDP                                  528    48   reserved
//! 24     4    MXCSR                                576    ..   components, where CPUID leaf 0xd says
//! 28     4    MXCSR_MASK
//! ```
//!
//! Source: Intel SDM vol. 1, 10.5.1 and 13.4; `KVM_GET_XSAVE2` in `api.rst`. The offsets of the components are those
//! of the *host's* CPU and differ between vendors (PKRU: 2688 on Intel, 2432 on AMD), so the bytes are taken apart
//! at capture and put together at load.

use serde::{Deserialize, Serialize};

use super::CpuidEntry2;
use crate::{Error, Result, hex};

/// `kvm_xsave`, component by component. A component is absent where XCR0 does not enable it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct Xsave {
    /// x87 control word.
    #[serde(with = "hex")] pub fcw: u32,
    /// x87 status word.
    #[serde(with = "hex")] pub fsw: u32,
    /// x87 tag byte: bit n is 1 when physical register n holds a value.
    #[serde(with = "hex")] pub ftw: u32,
    /// Last x87 opcode.
    #[serde(with = "hex")] pub fop: u32,
    /// Last x87 instruction pointer.
    #[serde(with = "hex")] pub fip: u64,
    /// Last x87 data pointer.
    #[serde(with = "hex")] pub fdp: u64,
    /// SSE control and status.
    #[serde(with = "hex")] pub mxcsr: u32,
    /// Bits of MXCSR that the host's CPU has; KVM ignores it on load.
    #[serde(with = "hex")] pub mxcsr_mask: u32,
    /// ST(0) to ST(7), 80 bits each: in the order of the stack, not of the physical registers.
    #[serde(with = "hex")] pub st: [u128; 8],
    /// XMM0 to XMM15.
    #[serde(with = "hex")] pub xmm: [u128; 16],
    /// Components that are not in their initial state.
    #[serde(with = "hex")] pub xstate_bv: u64,
    /// Component 2: bits 255:128 of YMM0 to YMM15.
    #[serde(with = "hex")] pub ymm_high: Option<[u128; 16]>,
    /// Component 3: BND0 to BND3, lower and upper bound each.
    #[serde(with = "hex")] pub bndregs: Option<[[u64; 2]; 4]>,
    /// Component 4: BNDCFGU and BNDSTATUS.
    #[serde(with = "hex")] pub bndcsr: Option<[u64; 2]>,
    /// Component 5: K0 to K7.
    #[serde(with = "hex")] pub opmask: Option<[u64; 8]>,
    /// Component 6: bits 511:256 of ZMM0 to ZMM15.
    #[serde(with = "hex")] pub zmm_high: Option<[[u128; 2]; 16]>,
    /// Component 7: ZMM16 to ZMM31.
    #[serde(with = "hex")] pub zmm_16_31: Option<[[u128; 4]; 16]>,
    /// Component 9: protection keys of user pages.
    #[serde(with = "hex")] pub pkru: Option<u32>,
    /// Components that have no name here, where they are not in their initial state.
    pub other: Vec<XsaveComponent>,
}

/// A component without a name of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XsaveComponent {
    /// Its number: its bit in XCR0.
    pub number: u32,
    /// Its bytes, eight to a word, little-endian.
    #[serde(with = "hex")]
    pub words: Vec<u64>,
}

/// Where a host's CPU puts the components.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XsaveLayout {
    /// The user components from 2 on, by number.
    pub components: Vec<XsavePlace>,
}

/// Where one component stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XsavePlace {
    /// Its number.
    pub number: u32,
    /// Its offset in the area, bytes.
    pub offset: u32,
    /// Its length, bytes.
    pub size: u32,
}

/// First byte after the legacy area and the header.
const EXTENDED: u32 = 576;
/// Largest area that we take: AMX needs 11,008 bytes, no CPU more.
const MAX_AREA: u32 = 65536;
/// First byte of the header.
const HEADER: usize = 512;

impl XsaveLayout {
    /// The layout that CPUID leaf 0xd describes.
    pub fn from_cpuid(leaves: &[CpuidEntry2]) -> Result<Self> {
        let mut components = Vec::new();
        // Subleaf bit 0 of ECX: a supervisor component, which has no place in the standard layout.
        for leaf in leaves.iter().filter(|leaf| leaf.function == 0xd && leaf.index >= 2 && leaf.ecx & 1 == 0)
        {
            let (number, offset, size) = (leaf.index, leaf.ebx, leaf.eax);
            if size == 0 {
                continue;
            }
            if number > 62 || offset < EXTENDED || offset.checked_add(size).is_none_or(|end| end > MAX_AREA) {
                let found = format!("component {number} at {offset} + {size}");
                let wanted = format!("component 2 to 62 between {EXTENDED} and {MAX_AREA}");
                return Err(Error::field("CPUID leaf 0xd", found, wanted));
            }
            components.push(XsavePlace { number, offset, size });
        }
        components.sort_by_key(|place| place.number);
        Ok(Self { components })
    }

    /// Where a component stands.
    pub fn place(&self, number: u32) -> Option<XsavePlace> {
        self.components.iter().copied().find(|place| place.number == number)
    }
}

/// Components with a name: (number, bytes of content, content).
type Named<'a> = [(u32, Content<'a>); 7];

/// The content of a named component, to read into or to write from.
enum Content<'a> {
    U32(&'a mut Option<u32>),
    Pair(&'a mut Option<[u64; 2]>),
    Pairs(&'a mut Option<[[u64; 2]; 4]>),
    U64(&'a mut Option<[u64; 8]>),
    U128(&'a mut Option<[u128; 16]>),
    Double(&'a mut Option<[[u128; 2]; 16]>),
    Quad(&'a mut Option<[[u128; 4]; 16]>),
}

impl Content<'_> {
    /// Reads the component from its bytes; bytes that are missing count as zero.
    fn decode(self, bytes: &[u8]) {
        match self {
            Self::U32(content) => *content = Some(u32_at(bytes, 0)),
            Self::Pair(content) => *content = Some(u64s(bytes)),
            Self::Pairs(content) => {
                let flat: [u64; 8] = u64s(bytes);
                *content = Some(nest(&flat));
            }
            Self::U64(content) => *content = Some(u64s(bytes)),
            Self::U128(content) => *content = Some(u128s(bytes)),
            Self::Double(content) => {
                let flat: [u128; 32] = u128s(bytes);
                *content = Some(nest(&flat));
            }
            Self::Quad(content) => {
                let flat: [u128; 64] = u128s(bytes);
                *content = Some(nest(&flat));
            }
        }
    }

    /// The component's bytes, where it is there.
    fn encode(self) -> Option<Vec<u8>> {
        match self {
            Self::U32(content) => content.map(|value| value.to_le_bytes().to_vec()),
            Self::Pair(content) => {
                content.map(|words| words.iter().flat_map(|word| word.to_le_bytes()).collect())
            }
            Self::Pairs(content) => {
                content.map(|pairs| pairs.iter().flatten().flat_map(|word| word.to_le_bytes()).collect())
            }
            Self::U64(content) => {
                content.map(|words| words.iter().flat_map(|word| word.to_le_bytes()).collect())
            }
            Self::U128(content) => {
                content.map(|words| words.iter().flat_map(|word| word.to_le_bytes()).collect())
            }
            Self::Double(content) => {
                content.map(|words| words.iter().flatten().flat_map(|word| word.to_le_bytes()).collect())
            }
            Self::Quad(content) => {
                content.map(|words| words.iter().flatten().flat_map(|word| word.to_le_bytes()).collect())
            }
        }
    }
}

impl Xsave {
    fn named(&mut self) -> Named<'_> {
        [
            (2, Content::U128(&mut self.ymm_high)),
            (3, Content::Pairs(&mut self.bndregs)),
            (4, Content::Pair(&mut self.bndcsr)),
            (5, Content::U64(&mut self.opmask)),
            (6, Content::Double(&mut self.zmm_high)),
            (7, Content::Quad(&mut self.zmm_16_31)),
            (9, Content::U32(&mut self.pkru)),
        ]
    }

    /// Takes the area apart. `enabled` has the bits of the components to look for: XCR0.
    pub fn decode(bytes: &[u8], layout: &XsaveLayout, enabled: u64) -> Self {
        let mut state = Self {
            fcw: u16_at(bytes, 0),
            fsw: u16_at(bytes, 2),
            ftw: u16_at(bytes, 4) & 0xff,
            fop: u16_at(bytes, 6),
            fip: u64_at(bytes, 8),
            fdp: u64_at(bytes, 16),
            mxcsr: u32_at(bytes, 24),
            mxcsr_mask: u32_at(bytes, 28),
            st: u128s(tail(bytes, 32)).map(|register: u128| register & ST_MASK),
            xmm: u128s(tail(bytes, 160)),
            xstate_bv: u64_at(bytes, HEADER),
            ..Self::default()
        };
        let (enabled, in_use) = (enabled | state.xstate_bv, state.xstate_bv);
        let named = state.named();
        let names = named.each_ref().map(|(number, _)| *number);
        for (number, content) in named {
            if let Some(place) = layout.place(number).filter(|_| bit(enabled, number)) {
                content.decode(cut(bytes, place));
            }
        }
        state.other = layout
            .components
            .iter()
            .filter(|place| !names.contains(&place.number) && bit(in_use, place.number))
            .map(|place| XsaveComponent {
                number: place.number,
                words: (0..place.size as usize).step_by(8).map(|at| u64_at(cut(bytes, *place), at)).collect(),
            })
            .collect();
        state
    }

    /// Puts an area of `size` bytes together. A component in use for which the host has no place is an error.
    pub fn encode(&self, layout: &XsaveLayout, size: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        let mut put = |offset: usize, value: &[u8]| {
            if let Some(place) = bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..value.len())) {
                place.copy_from_slice(value);
                Ok(())
            } else {
                let found = format!("{} bytes at {offset}", value.len());
                Err(Error::field("xsave", found, format!("an area of at most {size} bytes")))
            }
        };
        let words = [(0, self.fcw), (2, self.fsw), (4, self.ftw), (6, self.fop)];
        for (at, word) in words {
            let word = u16::try_from(word)
                .map_err(|_| Error::field(format!("xsave, byte {at}"), format!("{word:#x}"), "16 bits"))?;
            put(at, &word.to_le_bytes())?;
        }
        put(8, &self.fip.to_le_bytes())?;
        put(16, &self.fdp.to_le_bytes())?;
        put(24, &self.mxcsr.to_le_bytes())?;
        put(28, &self.mxcsr_mask.to_le_bytes())?;
        for (offset, registers) in [(32, self.st.as_slice()), (160, &self.xmm)] {
            for (index, register) in registers.iter().enumerate() {
                put(offset + index * 16, &register.to_le_bytes())?;
            }
        }
        put(HEADER, &self.xstate_bv.to_le_bytes())?;
        let mut copy = self.clone();
        let named =
            copy.named().into_iter().filter_map(|(number, content)| Some((number, content.encode()?)));
        let other = self.other.iter().map(|component| {
            (component.number, component.words.iter().flat_map(|word| word.to_le_bytes()).collect())
        });
        for (number, content) in named.chain(other).collect::<Vec<_>>() {
            let used = content.iter().any(|byte| *byte != 0) || bit(self.xstate_bv, number);
            match layout.place(number) {
                // Words are eight bytes each: the last may be longer than the component.
                Some(place) if content.len() <= (place.size as usize).next_multiple_of(8) => {
                    put(place.offset as usize, content.get(..place.size as usize).unwrap_or(&content))?;
                }
                None if !used => {}
                place => {
                    let found = format!("{} bytes of component {number}", content.len());
                    let wanted = match place {
                        Some(place) => format!("{} bytes on this host", place.size),
                        None => "a component that this host's XSAVE has".to_owned(),
                    };
                    return Err(Error::field("xsave", found, wanted));
                }
            }
        }
        Ok(bytes)
    }
}

/// The 80 bits of an x87 register.
const ST_MASK: u128 = (1 << 80) - 1;

fn bit(bits: u64, number: u32) -> bool {
    bits.checked_shr(number).is_some_and(|bits| bits & 1 == 1)
}

fn cut(bytes: &[u8], place: XsavePlace) -> &[u8] {
    let rest = tail(bytes, place.offset as usize);
    rest.get(..place.size as usize).unwrap_or(rest)
}

fn tail(bytes: &[u8], offset: usize) -> &[u8] {
    bytes.get(offset..).unwrap_or_default()
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.iter_mut().zip(tail(bytes, offset)).for_each(|(place, byte)| *place = *byte);
    array
}

fn u16_at(bytes: &[u8], offset: usize) -> u32 {
    u16::from_le_bytes(array_at(bytes, offset)).into()
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

fn u64s<const N: usize>(bytes: &[u8]) -> [u64; N] {
    std::array::from_fn(|index| u64_at(bytes, index * 8))
}

fn u128s<const N: usize>(bytes: &[u8]) -> [u128; N] {
    std::array::from_fn(|index| u128::from_le_bytes(array_at(bytes, index * 16)))
}

fn nest<T: Copy + Default, const INNER: usize, const OUTER: usize>(flat: &[T]) -> [[T; INNER]; OUTER] {
    let mut nested = [[T::default(); INNER]; OUTER];
    nested.iter_mut().flatten().zip(flat).for_each(|(place, value)| *place = *value);
    nested
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Intel's layout, and a component 18 as AMX has it.
    fn layout() -> XsaveLayout {
        let leaf = |index, eax, ebx| CpuidEntry2 { function: 0xd, index, eax, ebx, ..CpuidEntry2::default() };
        let leaves = [
            leaf(0, 0x7, 0),
            leaf(2, 256, 576),
            leaf(3, 64, 960),
            leaf(4, 64, 1024),
            leaf(5, 64, 1088),
            leaf(6, 512, 1152),
            leaf(7, 1024, 1664),
            leaf(9, 8, 2688),
            leaf(18, 64, 2816),
        ];
        XsaveLayout::from_cpuid(&leaves).unwrap()
    }

    fn area() -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..4096_u32).map(|at| (at * 31 / 8).to_le_bytes()[0] | 1).collect();
        bytes[5] = 0;
        for st in 0..8 {
            bytes[32 + st * 16 + 10..32 + st * 16 + 16].fill(0);
        }
        bytes[416..512].fill(0);
        bytes[512..576].fill(0);
        bytes[512..516].copy_from_slice(&0x402ff_u32.to_le_bytes());
        for gap in [832..960, 1040..1088, 2692..2816, 2880..4096] {
            bytes[gap].fill(0);
        }
        bytes
    }

    #[test]
    fn an_area_comes_back_byte_by_byte() {
        let bytes = area();
        let state = Xsave::decode(&bytes, &layout(), 0x402ff);
        assert_eq!(state.pkru, Some(u32_at(&bytes, 2688)));
        assert_eq!(state.other.len(), 1);
        assert_eq!(state.encode(&layout(), 4096).unwrap(), bytes);
    }

    #[test]
    fn amd_puts_components_elsewhere() {
        let state = Xsave { pkru: Some(0x5555_5554), xstate_bv: 0x200, ..Xsave::default() };
        let amd = XsaveLayout { components: vec![XsavePlace { number: 9, offset: 2432, size: 8 }] };
        assert_eq!(u32_at(&state.encode(&amd, 4096).unwrap(), 2432), 0x5555_5554);
    }

    #[test]
    fn a_component_in_use_that_the_host_lacks_is_an_error() {
        let state = Xsave { opmask: Some([1; 8]), xstate_bv: 0x20, ..Xsave::default() };
        let error = state.encode(&XsaveLayout::default(), 4096).unwrap_err().to_string();
        assert_eq!(
            error,
            "xsave: found 64 bytes of component 5, wanted a component that this host's XSAVE has"
        );
        let unused = Xsave { opmask: Some([0; 8]), ..Xsave::default() };
        unused.encode(&XsaveLayout::default(), 4096).unwrap();
    }

    #[test]
    fn an_area_too_small_is_an_error() {
        let state = Xsave { pkru: Some(1), ..Xsave::default() };
        assert!(state.encode(&layout(), 2690).is_err());
        assert!(Xsave::default().encode(&layout(), 400).is_err());
    }

    #[test]
    fn a_layout_outside_the_area_is_an_error() {
        for (eax, ebx) in [(8, 100), (8, 65535), (u32::MAX, 576)] {
            let leaf = CpuidEntry2 { function: 0xd, index: 2, eax, ebx, ..CpuidEntry2::default() };
            assert!(XsaveLayout::from_cpuid(&[leaf]).is_err(), "{eax} at {ebx}");
        }
    }
}
