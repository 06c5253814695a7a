use serde::{Deserialize, Serialize};

/// x87 state and MXCSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fpu {
    /// Control word.
    pub fcw: u16,
    /// Status word; TOP in bits 13:11.
    pub fsw: u16,
    /// Abridged tag byte: bit n is 1 when *physical* register n holds a value.
    pub ftw: u8,
    /// Last opcode.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// FCS and FDS, where the source has saved them: the pointers then have 32 bits.
    pub selectors: Option<[u16; 2]>,
    /// ST(0) to ST(7), each an 80-bit number in memory order.
    pub st: [[u8; 10]; 8],
    /// SSE control and status.
    pub mxcsr: u32,
}

impl Default for Fpu {
    /// The state after `FNINIT`, with MXCSR at its reset value.
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            selectors: None,
            st: [[0; 10]; 8],
            mxcsr: 0x1f80,
        }
    }
}

impl Fpu {
    /// Physical register that is ST(0).
    pub fn top(&self) -> usize {
        usize::from(self.fsw >> 11 & 7)
    }
}

/// SSE and AVX registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vectors {
    /// XMM0 to XMM15, in memory order.
    pub xmm: [[u8; 16]; 16],
    /// Bits 255:128 of YMM0 to YMM15, in memory order.
    pub ymm_high: [[u8; 16]; 16],
}

/// AVX-512 registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Avx512 {
    /// K0 to K7.
    pub opmask: [u64; 8],
    /// Bits 511:256 of ZMM0 to ZMM15, in memory order.
    pub zmm_high: [[u8; 32]; 16],
    /// ZMM16 to ZMM31 (low and high half), in memory order.
    pub zmm_16_31: [[[u8; 32]; 2]; 16],
}

/// MPX registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mpx {
    /// BND0 to BND3: lower bound, upper bound.
    pub bounds: [[u64; 2]; 4],
    /// BNDCFGU.
    pub bndcfgu: u64,
    /// BNDSTATUS.
    pub bndstatus: u64,
}
