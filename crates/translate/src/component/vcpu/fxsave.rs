//! The FXSAVE image and the XSAVE area in its standard format (Intel SDM vol. 1, 10.5 and 13.4; AMD APM vol. 2, 11.5).

use hyperferry_vm_model::{Avx512, CpuidPolicy, Fpu, Mpx, Vectors};

/// XSAVE state components, by their bit in XCR0.
pub(crate) mod bit {
    pub(crate) const X87: u32 = 0;
    pub(crate) const SSE: u32 = 1;
    pub(crate) const AVX: u32 = 2;
    pub(crate) const BNDREGS: u32 = 3;
    pub(crate) const BNDCSR: u32 = 4;
    pub(crate) const OPMASK: u32 = 5;
    pub(crate) const ZMM_HI256: u32 = 6;
    pub(crate) const HI16_ZMM: u32 = 7;
    pub(crate) const PKRU: u32 = 9;
}

/// Components that the model holds.
pub(crate) const KNOWN_COMPONENTS: u64 = 0x2ff;

/// Legacy region: x87, MXCSR and XMM.
pub(crate) struct Legacy {
    pub(crate) fpu: Fpu,
    pub(crate) xmm: [[u8; 16]; 16],
}

/// Reads an FXSAVE image in its 64-bit layout.
pub(crate) fn legacy(image: &[u8; 512]) -> Legacy {
    let fpu = Fpu {
        fcw: u16::from_le_bytes(at(image, 0)),
        fsw: u16::from_le_bytes(at(image, 2)),
        ftw: at::<1>(image, 4)[0],
        fop: u16::from_le_bytes(at(image, 6)),
        fip: u64::from_le_bytes(at(image, 8)),
        fdp: u64::from_le_bytes(at(image, 16)),
        st: std::array::from_fn(|n| at(image, 32 + 16 * n)),
        mxcsr: u32::from_le_bytes(at(image, 24)),
    };
    Legacy { fpu, xmm: std::array::from_fn(|n| at(image, 160 + 16 * n)) }
}

/// An XSAVE area in its standard format, read component by component.
pub(crate) struct XsaveArea<'a> {
    area: &'a [u8],
    policy: &'a CpuidPolicy,
    xstate_bv: u64,
}

impl<'a> XsaveArea<'a> {
    pub(crate) fn new(area: &'a [u8], policy: &'a CpuidPolicy) -> Self {
        Self { area, policy, xstate_bv: u64::from_le_bytes(at(area, 512)) }
    }

    pub(crate) fn xstate_bv(&self) -> u64 {
        self.xstate_bv
    }

    /// The compacted format, which no save stream may use.
    pub(crate) fn is_compacted(&self) -> bool {
        u64::from_le_bytes(at(self.area, 520)) >> 63 == 1
    }

    /// x87 and SSE; a component in its initial state leaves stale bytes in the area, so it is put right here.
    pub(crate) fn legacy(&self) -> Legacy {
        let Legacy { mut fpu, mut xmm } = legacy(&at(self.area, 0));
        if !self.has(bit::X87) {
            fpu = Fpu { mxcsr: fpu.mxcsr, ..Fpu::default() };
        }
        if !self.has(bit::SSE) {
            xmm = [[0; 16]; 16];
        }
        if !self.has(bit::SSE) && !self.has(bit::AVX) {
            fpu.mxcsr = Fpu::default().mxcsr;
        }
        Legacy { fpu, xmm }
    }

    pub(crate) fn vectors(&self, xmm: [[u8; 16]; 16]) -> Vectors {
        let high = self.component(bit::AVX);
        Vectors { xmm, ymm_high: std::array::from_fn(|n| at(high, 16 * n)) }
    }

    pub(crate) fn avx512(&self) -> Avx512 {
        let (opmask, high, upper) =
            (self.component(bit::OPMASK), self.component(bit::ZMM_HI256), self.component(bit::HI16_ZMM));
        Avx512 {
            opmask: std::array::from_fn(|n| u64::from_le_bytes(at(opmask, 8 * n))),
            zmm_high: std::array::from_fn(|n| at(high, 32 * n)),
            zmm_16_31: std::array::from_fn(|n| [at(upper, 64 * n), at(upper, 64 * n + 32)]),
        }
    }

    pub(crate) fn mpx(&self) -> Mpx {
        let (regs, csr) = (self.component(bit::BNDREGS), self.component(bit::BNDCSR));
        let word = |bytes, n: usize| u64::from_le_bytes(at(bytes, 8 * n));
        Mpx {
            bounds: std::array::from_fn(|n| [word(regs, 2 * n), word(regs, 2 * n + 1)]),
            bndcfgu: word(csr, 0),
            bndstatus: word(csr, 1),
        }
    }

    pub(crate) fn pkru(&self) -> u32 {
        u32::from_le_bytes(at(self.component(bit::PKRU), 0))
    }

    fn has(&self, component: u32) -> bool {
        self.xstate_bv >> component & 1 == 1
    }

    /// A component's bytes; empty, which reads as zeros, when it is in its initial state.
    fn component(&self, component: u32) -> &'a [u8] {
        if !self.has(component) {
            return &[];
        }
        let (offset, size) = match self.policy.leaf(0xd, component) {
            Some(leaf) if leaf.ebx != 0 => (leaf.ebx as usize, leaf.eax as usize),
            // The policy may be missing (streams before Xen 4.14): AVX lies at 576 on every CPU made.
            _ if component == bit::AVX => (576, 256),
            _ => return &[],
        };
        self.area.get(offset..).map(|rest| rest.get(..size).unwrap_or(rest)).unwrap_or_default()
    }
}

/// `N` bytes at an offset; what lies beyond the end reads as zeros, as it does for XRSTOR's initial state.
fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut found = [0; N];
    let available = bytes.get(offset..).unwrap_or_default();
    for (to, from) in found.iter_mut().zip(available) {
        *to = *from;
    }
    found
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::CpuidLeaf;

    use super::*;

    fn area(xstate_bv: u64) -> Vec<u8> {
        let mut area: Vec<u8> = (0..3000_u32).map(|n| (n % 251) as u8).collect();
        area[512..576].fill(0);
        area[512..520].copy_from_slice(&xstate_bv.to_le_bytes());
        area
    }

    fn policy() -> CpuidPolicy {
        let leaf = |subleaf, offset, size| CpuidLeaf {
            leaf: 0xd,
            subleaf: Some(subleaf),
            eax: size,
            ebx: offset,
            ..CpuidLeaf::default()
        };
        CpuidPolicy { leaves: vec![leaf(2, 576, 256), leaf(9, 832, 8)], msrs: vec![] }
    }

    #[test]
    fn components_lie_where_the_policy_says() {
        let (area, policy) = (area(0x207), policy());
        let area = XsaveArea::new(&area, &policy);
        assert_eq!(area.vectors([[0; 16]; 16]).ymm_high[1][0], ((576 + 16) % 251) as u8);
        assert_eq!(area.pkru().to_le_bytes()[0], (832 % 251) as u8);
    }

    #[test]
    fn a_component_in_its_initial_state_hides_stale_bytes() {
        let (area, policy) = (area(0), policy());
        let area = XsaveArea::new(&area, &policy);
        let Legacy { fpu, xmm } = area.legacy();
        assert_eq!((fpu, xmm), (Fpu::default(), [[0; 16]; 16]));
        assert_eq!(area.vectors(xmm), Vectors::default());
        assert_eq!(area.pkru(), 0);
    }
}
