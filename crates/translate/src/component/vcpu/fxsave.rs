//! The FXSAVE image and the XSAVE area in its standard format (Intel SDM vol. 1, 10.5 and 13.4; AMD APM vol. 2, 11.5).

use hyperferry_vm_model::{
    Avx512, CpuidPolicy, Fpu, Mpx, Vcpu, Vectors,
    xstate::{self, AVX, BNDCSR, BNDREGS, HI16_ZMM, OPMASK, PKRU, SSE, X87, ZMM_HI256},
};

/// Legacy region: x87, MXCSR and XMM.
pub(crate) struct Legacy {
    pub(crate) fpu: Fpu,
    pub(crate) xmm: [[u8; 16]; 16],
}

/// Where Xen notes the width of the pointers, among the bytes that FXSAVE leaves to software
/// (xen/arch/x86/include/asm/xstate.h, FPU_WORD_SIZE_OFFSET).
const POINTER_WIDTH: usize = 511;
/// Bits that MXCSR may have, as FXSAVE names them on every CPU since SSE2; nothing reads them back.
const MXCSR_MASK: u32 = 0xffff;

/// Reads an FXSAVE image, as Xen keeps it: pointers of 64 bits, or of 32 bits with a selector each.
pub(crate) fn legacy(image: &[u8; 512]) -> Legacy {
    let pointer = |at: usize| u64::from_le_bytes(self::at(image, at));
    let narrow = matches!(image[POINTER_WIDTH], 2 | 4);
    let (fip, fdp) = (pointer(8), pointer(16));
    let selector = |pointer: u64| (pointer >> 32 & 0xffff) as u16;
    let fpu = Fpu {
        fcw: u16::from_le_bytes(at(image, 0)),
        fsw: u16::from_le_bytes(at(image, 2)),
        ftw: at::<1>(image, 4)[0],
        fop: u16::from_le_bytes(at(image, 6)),
        fip: if narrow { fip & 0xffff_ffff } else { fip },
        fdp: if narrow { fdp & 0xffff_ffff } else { fdp },
        selectors: narrow.then(|| [selector(fip), selector(fdp)]),
        st: std::array::from_fn(|n| at(image, 32 + 16 * n)),
        mxcsr: u32::from_le_bytes(at(image, 24)),
    };
    Legacy { fpu, xmm: std::array::from_fn(|n| at(image, 160 + 16 * n)) }
}

/// Writes the image that [`legacy`] reads.
pub(crate) fn legacy_image(fpu: &Fpu, xmm: &[[u8; 16]; 16]) -> [u8; 512] {
    let mut image = [0; 512];
    let [cs, ds] = fpu.selectors.unwrap_or_default().map(u64::from);
    put(&mut image, 0, &fpu.fcw.to_le_bytes());
    put(&mut image, 2, &fpu.fsw.to_le_bytes());
    put(&mut image, 4, &[fpu.ftw]);
    put(&mut image, 6, &fpu.fop.to_le_bytes());
    put(&mut image, 8, &(fpu.fip | cs << 32).to_le_bytes());
    put(&mut image, 16, &(fpu.fdp | ds << 32).to_le_bytes());
    put(&mut image, 24, &fpu.mxcsr.to_le_bytes());
    put(&mut image, 28, &MXCSR_MASK.to_le_bytes());
    for (n, register) in fpu.st.iter().enumerate() {
        put(&mut image, 32 + 16 * n, register);
    }
    for (n, register) in xmm.iter().enumerate() {
        put(&mut image, 160 + 16 * n, register);
    }
    image[POINTER_WIDTH] = if fpu.selectors.is_some() { 4 } else { 8 };
    image
}

/// Where the components of an XSAVE area lie, and how long it is, in the standard format of a CPUID policy.
struct Places<'a>(&'a CpuidPolicy);

impl Places<'_> {
    /// Offset and size of a component.
    fn of(&self, component: u64) -> Option<(usize, usize)> {
        match self.0.leaf(0xd, component.trailing_zeros()) {
            Some(leaf) if leaf.ebx != 0 => Some((leaf.ebx as usize, leaf.eax as usize)),
            // The policy may be missing (streams before Xen 4.14): AVX lies at 576 on every CPU made.
            _ if component == AVX => Some((576, 256)),
            _ => None,
        }
    }
}

/// An XSAVE area in its standard format with room for `components`, or the first of them that has no place.
pub(crate) fn area(vcpu: &Vcpu, components: u64, policy: &CpuidPolicy) -> Result<Vec<u8>, u64> {
    let places = Places(policy);
    let mut area = legacy_image(&vcpu.fpu, &vcpu.vectors.xmm).to_vec();
    area.extend([0; 64]);
    let in_use = xstate::in_use(vcpu);
    put(&mut area, 512, &(in_use & components).to_le_bytes());
    let extended = (2..u64::BITS).map(|number| 1 << number);
    for component in extended.filter(|component| components & component != 0) {
        let (offset, size) = places.of(component).ok_or(component)?;
        let end = offset + size;
        if area.len() < end {
            area.resize(end, 0);
        }
        // A component in its initial state is told by XSTATE_BV; its bytes say nothing.
        if in_use & component != 0 {
            put(&mut area, offset, &component_bytes(vcpu, component));
        }
    }
    Ok(area)
}

fn component_bytes(vcpu: &Vcpu, component: u64) -> Vec<u8> {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let avx512 = || vcpu.avx512.clone().unwrap_or_default();
    let mpx = vcpu.mpx.unwrap_or_default();
    match component {
        AVX => vcpu.vectors.ymm_high.concat(),
        BNDREGS => words(mpx.bounds.as_flattened()),
        BNDCSR => words(&[mpx.bndcfgu, mpx.bndstatus]),
        OPMASK => words(&avx512().opmask),
        ZMM_HI256 => avx512().zmm_high.concat(),
        HI16_ZMM => avx512().zmm_16_31.as_flattened().concat(),
        PKRU => vcpu.pkru.unwrap_or_default().to_le_bytes().to_vec(),
        _ => Vec::new(),
    }
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
        if !self.has(X87) {
            fpu = Fpu { mxcsr: fpu.mxcsr, ..Fpu::default() };
        }
        if !self.has(SSE) {
            xmm = [[0; 16]; 16];
        }
        if !self.has(SSE | AVX) {
            fpu.mxcsr = Fpu::default().mxcsr;
        }
        Legacy { fpu, xmm }
    }

    pub(crate) fn vectors(&self, xmm: [[u8; 16]; 16]) -> Vectors {
        let high = self.component(AVX);
        Vectors { xmm, ymm_high: std::array::from_fn(|n| at(high, 16 * n)) }
    }

    pub(crate) fn avx512(&self) -> Avx512 {
        let (opmask, high, upper) =
            (self.component(OPMASK), self.component(ZMM_HI256), self.component(HI16_ZMM));
        Avx512 {
            opmask: std::array::from_fn(|n| u64::from_le_bytes(at(opmask, 8 * n))),
            zmm_high: std::array::from_fn(|n| at(high, 32 * n)),
            zmm_16_31: std::array::from_fn(|n| [at(upper, 64 * n), at(upper, 64 * n + 32)]),
        }
    }

    pub(crate) fn mpx(&self) -> Mpx {
        let (regs, csr) = (self.component(BNDREGS), self.component(BNDCSR));
        let word = |bytes, n: usize| u64::from_le_bytes(at(bytes, 8 * n));
        Mpx {
            bounds: std::array::from_fn(|n| [word(regs, 2 * n), word(regs, 2 * n + 1)]),
            bndcfgu: word(csr, 0),
            bndstatus: word(csr, 1),
        }
    }

    pub(crate) fn pkru(&self) -> u32 {
        u32::from_le_bytes(at(self.component(PKRU), 0))
    }

    fn has(&self, components: u64) -> bool {
        self.xstate_bv & components != 0
    }

    /// A component's bytes; empty, which reads as zeros, when it is in its initial state.
    fn component(&self, component: u64) -> &'a [u8] {
        if !self.has(component) {
            return &[];
        }
        let Some((offset, size)) = Places(self.policy).of(component) else { return &[] };
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

/// Puts bytes at an offset; what does not fit is left out.
fn put(to: &mut [u8], offset: usize, bytes: &[u8]) {
    for (to, from) in to.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
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
    fn registers_that_xstate_bv_forgets_are_written() {
        let mpx = Mpx { bounds: [[1, 2]; 4], ..Mpx::default() };
        let vcpu = Vcpu { xstate_bv: 0, mpx: Some(mpx), ..Vcpu::default() };
        let mut policy = policy();
        let bounds = CpuidLeaf { leaf: 0xd, subleaf: Some(3), eax: 64, ebx: 960, ..CpuidLeaf::default() };
        policy.leaves.push(bounds);
        let written = super::area(&vcpu, BNDREGS, &policy).unwrap();
        let read = XsaveArea::new(&written, &policy);
        assert_eq!((read.xstate_bv(), read.mpx()), (BNDREGS, mpx));
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
