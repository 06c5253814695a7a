//! State components of XSAVE, each by its bit in XCR0 and XSTATE_BV (Intel SDM vol. 1, 13.1; AMD APM vol. 2, 11.5.2).

use crate::{Fpu, Vcpu};

/// x87 registers.
pub const X87: u64 = 1 << 0;
/// XMM registers and MXCSR.
pub const SSE: u64 = 1 << 1;
/// Upper halves of the YMM registers.
pub const AVX: u64 = 1 << 2;
/// MPX: bounds.
pub const BNDREGS: u64 = 1 << 3;
/// MPX: BNDCFGU and BNDSTATUS.
pub const BNDCSR: u64 = 1 << 4;
/// AVX-512: K0 to K7.
pub const OPMASK: u64 = 1 << 5;
/// AVX-512: upper halves of ZMM0 to ZMM15.
pub const ZMM_HI256: u64 = 1 << 6;
/// AVX-512: ZMM16 to ZMM31.
pub const HI16_ZMM: u64 = 1 << 7;
/// Protection keys of user pages.
pub const PKRU: u64 = 1 << 9;
/// Components that the model has registers for.
pub const NAMED: u64 = X87 | SSE | AVX | BNDREGS | BNDCSR | OPMASK | ZMM_HI256 | HI16_ZMM | PKRU;

/// The components that hold something: those that XSTATE_BV names, and those whose registers differ from their initial
/// values, for QEMU's emulation does not keep it up to date.
pub fn in_use(vcpu: &Vcpu) -> u64 {
    let initial = Fpu { mxcsr: vcpu.fpu.mxcsr, ..Fpu::default() };
    let bit = |used: bool, component: u64| if used { component } else { 0 };
    vcpu.xstate_bv
        | bit(vcpu.fpu != initial, X87)
        // MXCSR belongs to SSE.
        | bit(vcpu.vectors.xmm != [[0; 16]; 16] || vcpu.fpu.mxcsr != Fpu::default().mxcsr, SSE)
        | bit(vcpu.vectors.ymm_high != [[0; 16]; 16], AVX)
        | vcpu.mpx.map_or(0, |mpx| {
            bit(mpx.bounds != [[0; 2]; 4], BNDREGS) | bit(mpx.bndcfgu != 0 || mpx.bndstatus != 0, BNDCSR)
        })
        | vcpu.avx512.as_ref().map_or(0, |avx512| {
            bit(avx512.opmask != [0; 8], OPMASK)
                | bit(avx512.zmm_high != [[0; 32]; 16], ZMM_HI256)
                | bit(avx512.zmm_16_31 != [[[0; 32]; 2]; 16], HI16_ZMM)
        })
        | bit(vcpu.pkru.is_some_and(|pkru| pkru != 0), PKRU)
}
