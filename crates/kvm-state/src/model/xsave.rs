//! x87, SSE, AVX, MPX, AVX-512, protection keys: the model's registers and the components of an XSAVE area.
//!
//! KVM keeps the x87 registers in the order of the stack (FXSAVE), as the model does; the tag byte counts physical
//! registers on both sides. A component whose XSTATE_BV bit is 0 has its initial values, whatever bytes it holds.

use hyperferry_vm_model::{
    Avx512, Fpu, Mpx, Vcpu, Vectors,
    xstate::{self, AVX, BNDCSR, BNDREGS, HI16_ZMM, NAMED, OPMASK, PKRU, SSE, X87, ZMM_HI256},
};

use crate::fate::Fates;
use crate::state::{KvmVcpu, Xsave};
use crate::{Error, Result};

pub(super) fn localise(vcpu: &Vcpu, fates: &mut Fates) -> Xsave {
    // The selectors have no place beside 64-bit pointers.
    let Fpu { fcw, fsw, ftw, fop, fip, fdp, selectors: _, st, mxcsr } = vcpu.fpu;
    fates.carried(&["fpu", "vectors", "avx512", "mpx", "pkru"], "xsave");
    // KVM would not look at a component without its bit.
    let xstate_bv = xstate::in_use(vcpu);
    if xstate_bv == vcpu.xstate_bv {
        fates.carried(&["xstate_bv"], "xsave.xstate_bv");
    } else {
        let forgotten = xstate_bv & !vcpu.xstate_bv;
        fates.derived("xstate_bv", format!("components {forgotten:#x} hold values: set to {xstate_bv:#x}"));
    }
    Xsave {
        fcw: fcw.into(),
        fsw: fsw.into(),
        ftw: ftw.into(),
        fop: fop.into(),
        fip,
        fdp,
        mxcsr,
        // KVM ignores it: the CPU has its own.
        mxcsr_mask: 0,
        st: st.map(|bytes| {
            let mut wide = [0; 16];
            wide.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
            u128::from_le_bytes(wide)
        }),
        xmm: vcpu.vectors.xmm.map(u128::from_le_bytes),
        xstate_bv,
        ymm_high: Some(vcpu.vectors.ymm_high.map(u128::from_le_bytes)),
        bndregs: vcpu.mpx.map(|mpx| mpx.bounds),
        bndcsr: vcpu.mpx.map(|mpx| [mpx.bndcfgu, mpx.bndstatus]),
        opmask: vcpu.avx512.as_ref().map(|avx512| avx512.opmask),
        zmm_high: vcpu.avx512.as_ref().map(|avx512| avx512.zmm_high.map(halves)),
        zmm_16_31: vcpu.avx512.as_ref().map(|avx512| {
            avx512.zmm_16_31.map(|[low, high]| {
                let ([a, b], [c, d]) = (halves(low), halves(high));
                [a, b, c, d]
            })
        }),
        pkru: vcpu.pkru,
        other: Vec::new(),
    }
}

/// Fills the model's registers from the area.
pub(super) fn normalise(from: &KvmVcpu, vcpu: &mut Vcpu, fates: &mut Fates) -> Result<()> {
    let area = &from.xsave;
    let set = |bit: u64| area.xstate_bv & bit != 0;
    fates.carried(&["xsave"], "fpu, vectors, avx512, mpx, pkru, xstate_bv");
    fates.dropped("xsave.mxcsr_mask", "a fact of the host's CPU");
    vcpu.fpu = if set(X87) { normalise_x87(area)? } else { Fpu::default() };
    vcpu.fpu.mxcsr = if set(SSE | AVX) { area.mxcsr } else { Fpu::default().mxcsr };
    vcpu.vectors = Vectors {
        xmm: if set(SSE) { area.xmm.map(u128::to_le_bytes) } else { Default::default() },
        ymm_high: area
            .ymm_high
            .filter(|_| set(AVX))
            .map(|high| high.map(u128::to_le_bytes))
            .unwrap_or_default(),
    };
    vcpu.mpx = (area.bndregs.is_some() || area.bndcsr.is_some()).then(|| {
        let [bndcfgu, bndstatus] = area.bndcsr.filter(|_| set(BNDCSR)).unwrap_or_default();
        Mpx { bounds: area.bndregs.filter(|_| set(BNDREGS)).unwrap_or_default(), bndcfgu, bndstatus }
    });
    let avx512 = area.opmask.is_some() || area.zmm_high.is_some() || area.zmm_16_31.is_some();
    vcpu.avx512 = avx512.then(|| Avx512 {
        opmask: area.opmask.filter(|_| set(OPMASK)).unwrap_or_default(),
        zmm_high: area.zmm_high.filter(|_| set(ZMM_HI256)).unwrap_or_default().map(whole),
        zmm_16_31: area.zmm_16_31.filter(|_| set(HI16_ZMM)).map_or_else(Default::default, |registers| {
            registers.map(|[a, b, c, d]| [whole([a, b]), whole([c, d])])
        }),
    });
    vcpu.pkru = area.pkru.map(|pkru| if set(PKRU) { pkru } else { 0 });
    vcpu.xstate_bv = area.xstate_bv & NAMED;
    for component in &area.other {
        let note = format!("component {} has no place in the model", component.number);
        fates.dropped("xsave.other", note);
    }
    if area.xstate_bv & !NAMED != 0 {
        fates.dropped(
            "xsave.xstate_bv",
            format!("bits {:#x}: no place in the model", area.xstate_bv & !NAMED),
        );
    }
    Ok(())
}

fn normalise_x87(area: &Xsave) -> Result<Fpu> {
    let word = |name: &str, value: u32| {
        u16::try_from(value)
            .map_err(|_| Error::field(format!("xsave.{name}"), format!("{value:#x}"), "16 bits"))
    };
    let ftw = u8::try_from(area.ftw)
        .map_err(|_| Error::field("xsave.ftw", format!("{:#x}", area.ftw), "the abridged byte, 8 bits"))?;
    Ok(Fpu {
        fcw: word("fcw", area.fcw)?,
        fsw: word("fsw", area.fsw)?,
        ftw,
        fop: word("fop", area.fop)?,
        fip: area.fip,
        fdp: area.fdp,
        selectors: None,
        st: area.st.map(|register| {
            let mut bytes = [0; 10];
            bytes.iter_mut().zip(register.to_le_bytes()).for_each(|(place, byte)| *place = byte);
            bytes
        }),
        mxcsr: area.mxcsr,
    })
}

/// Low and high half of 32 bytes.
fn halves(bytes: [u8; 32]) -> [u128; 2] {
    let half = |from: usize| {
        let mut half = [0; 16];
        half.iter_mut().zip(bytes.iter().skip(from)).for_each(|(place, byte)| *place = *byte);
        u128::from_le_bytes(half)
    };
    [half(0), half(16)]
}

fn whole(halves: [u128; 2]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes
        .iter_mut()
        .zip(halves.iter().flat_map(|half| half.to_le_bytes()))
        .for_each(|(place, byte)| *place = byte);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_bytes_of_unused_components_are_not_state() {
        let area = Xsave {
            fcw: 0x27f,
            mxcsr: 0x9fc0,
            st: [7; 8],
            xmm: [8; 16],
            ymm_high: Some([9; 16]),
            pkru: Some(4),
            xstate_bv: AVX,
            ..Xsave::default()
        };
        let mut vcpu = Vcpu::default();
        normalise(&KvmVcpu { xsave: area, ..KvmVcpu::default() }, &mut vcpu, &mut Fates::default()).unwrap();
        assert_eq!(vcpu.fpu, Fpu { mxcsr: 0x9fc0, ..Fpu::default() });
        assert_eq!(vcpu.vectors.xmm, [[0; 16]; 16]);
        assert_eq!(vcpu.vectors.ymm_high[3], 9_u128.to_le_bytes());
        assert_eq!(vcpu.pkru, Some(0));
    }

    #[test]
    fn registers_in_use_set_their_bits() {
        let mut vcpu = Vcpu { xstate_bv: 0, ..Vcpu::default() };
        assert_eq!(localise(&vcpu, &mut Fates::default()).xstate_bv, 0);
        vcpu.fpu.mxcsr = 0x9f80;
        assert_eq!(localise(&vcpu, &mut Fates::default()).xstate_bv, SSE);
        vcpu.fpu.fcw = 0x27f;
        vcpu.pkru = Some(1);
        let mut fates = Fates::default();
        assert_eq!(localise(&vcpu, &mut fates).xstate_bv, X87 | SSE | PKRU);
        assert!(fates.into_list().iter().any(|fate| fate.fate == crate::Fate::Derived));
    }
}
