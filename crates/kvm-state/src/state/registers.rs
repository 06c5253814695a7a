//! `kvm_regs`, `kvm_sregs`, `kvm_xcrs`, `kvm_debugregs`, `kvm_mp_state`, `kvm_cpuid_entry2`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::mirror;
use crate::hex;

/// `kvm_regs`: the registers of ordinary programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are the registers' own")]
#[rustfmt::skip]
pub struct Regs {
    #[serde(with = "hex")] pub rax: u64,
    #[serde(with = "hex")] pub rbx: u64,
    #[serde(with = "hex")] pub rcx: u64,
    #[serde(with = "hex")] pub rdx: u64,
    #[serde(with = "hex")] pub rsi: u64,
    #[serde(with = "hex")] pub rdi: u64,
    #[serde(with = "hex")] pub rsp: u64,
    #[serde(with = "hex")] pub rbp: u64,
    #[serde(with = "hex")] pub r8: u64,
    #[serde(with = "hex")] pub r9: u64,
    #[serde(with = "hex")] pub r10: u64,
    #[serde(with = "hex")] pub r11: u64,
    #[serde(with = "hex")] pub r12: u64,
    #[serde(with = "hex")] pub r13: u64,
    #[serde(with = "hex")] pub r14: u64,
    #[serde(with = "hex")] pub r15: u64,
    #[serde(with = "hex")] pub rip: u64,
    #[serde(with = "hex")] pub rflags: u64,
}

mirror!(
    Regs = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags
    }
);

/// `kvm_segment`: a segment register with its hidden part, each attribute in a byte of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct Segment {
    /// Linear address of the segment.
    #[serde(with = "hex")] pub base: u64,
    /// Last valid offset, bytes.
    #[serde(with = "hex")] pub limit: u32,
    /// The visible selector.
    pub selector: u16,
    /// Type, 4 bits.
    #[serde(rename = "type")]
    pub type_: u8,
    /// Present.
    pub present: u8,
    /// Privilege level.
    pub dpl: u8,
    /// Default size: 32-bit code or stack.
    pub db: u8,
    /// Code or data, not a system segment.
    pub s: u8,
    /// 64-bit code.
    pub l: u8,
    /// Limit counts pages.
    pub g: u8,
    /// Free for the operating system.
    pub avl: u8,
    /// Intel's mark of a segment without a descriptor; KVM on AMD tells it from `present`.
    pub unusable: u8,
}

mirror!(Segment = kvm_segment { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable });

/// `kvm_dtable`: GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct Dtable {
    /// Linear address of the table.
    #[serde(with = "hex")] pub base: u64,
    /// Last valid offset.
    pub limit: u16,
}

mirror!(Dtable = kvm_dtable { base, limit });

/// `kvm_sregs`: segments, tables, control registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are the registers' own")]
#[rustfmt::skip]
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: Dtable,
    pub idt: Dtable,
    #[serde(with = "hex")] pub cr0: u64,
    #[serde(with = "hex")] pub cr2: u64,
    #[serde(with = "hex")] pub cr3: u64,
    #[serde(with = "hex")] pub cr4: u64,
    /// TPR bits 7:4. KVM writes it into the APIC before `KVM_SET_LAPIC` replaces the whole register.
    #[serde(with = "hex")] pub cr8: u64,
    #[serde(with = "hex")] pub efer: u64,
    #[serde(with = "hex")] pub apic_base: u64,
    /// One bit for the external interrupt whose delivery was cut short; `vcpu_events.interrupt` says the same.
    #[serde(with = "hex")] pub interrupt_bitmap: [u64; 4],
}

mirror!(Sregs = kvm_sregs { cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap }
    nested { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt });

/// `kvm_debugregs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct DebugRegs {
    /// DR0 to DR3.
    #[serde(with = "hex")] pub db: [u64; 4],
    /// DR6.
    #[serde(with = "hex")] pub dr6: u64,
    /// DR7.
    #[serde(with = "hex")] pub dr7: u64,
}

mirror!(DebugRegs = kvm_debugregs { db, dr6, dr7 });

/// `kvm_xcr`: an extended control register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct Xcr {
    /// Its number; KVM knows 0 only.
    pub xcr: u32,
    /// Its value.
    #[serde(with = "hex")] pub value: u64,
}

mirror!(Xcr = kvm_xcr { xcr, value });

/// `kvm_mp_state`: whether a vCPU runs. Numbers without a name here round-trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MpState(pub u32);

#[allow(missing_docs, reason = "the names are KVM's own")]
impl MpState {
    pub const RUNNABLE: Self = Self(kvm_bindings::KVM_MP_STATE_RUNNABLE);
    pub const UNINITIALIZED: Self = Self(kvm_bindings::KVM_MP_STATE_UNINITIALIZED);
    pub const INIT_RECEIVED: Self = Self(kvm_bindings::KVM_MP_STATE_INIT_RECEIVED);
    pub const HALTED: Self = Self(kvm_bindings::KVM_MP_STATE_HALTED);
    pub const SIPI_RECEIVED: Self = Self(kvm_bindings::KVM_MP_STATE_SIPI_RECEIVED);
}

impl fmt::Display for MpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RUNNABLE => f.write_str("RUNNABLE"),
            Self::UNINITIALIZED => f.write_str("UNINITIALIZED"),
            Self::INIT_RECEIVED => f.write_str("INIT_RECEIVED"),
            Self::HALTED => f.write_str("HALTED"),
            Self::SIPI_RECEIVED => f.write_str("SIPI_RECEIVED"),
            Self(other) => write!(f, "{other:#x}"),
        }
    }
}

/// `kvm_cpuid_entry2`: one `CPUID` leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct CpuidEntry2 {
    /// Input EAX.
    #[serde(with = "hex")] pub function: u32,
    /// Input ECX, where `flags` says that it counts.
    #[serde(with = "hex")] pub index: u32,
    /// Bit 0 `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`.
    pub flags: u32,
    /// Output EAX.
    #[serde(with = "hex")] pub eax: u32,
    /// Output EBX.
    #[serde(with = "hex")] pub ebx: u32,
    /// Output ECX.
    #[serde(with = "hex")] pub ecx: u32,
    /// Output EDX.
    #[serde(with = "hex")] pub edx: u32,
}

impl CpuidEntry2 {
    /// The leaf depends on ECX.
    pub fn index_is_significant(&self) -> bool {
        self.flags & kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0
    }
}

mirror!(CpuidEntry2 = kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_keep_every_field() {
        let segment = Segment {
            base: 1,
            limit: 2,
            selector: 3,
            type_: 4,
            present: 5,
            dpl: 6,
            db: 7,
            s: 8,
            l: 9,
            g: 10,
            avl: 11,
            unusable: 12,
        };
        let theirs = kvm_bindings::kvm_segment::from(&segment);
        assert_eq!((theirs.type_, theirs.avl, theirs.unusable, theirs.padding), (4, 11, 12, 0));
        assert_eq!(Segment::from(&theirs), segment);
    }

    #[test]
    fn sizes_are_the_kernel_s() {
        assert_eq!(size_of::<kvm_bindings::kvm_regs>(), 144);
        assert_eq!(size_of::<kvm_bindings::kvm_sregs>(), 312);
        assert_eq!(size_of::<kvm_bindings::kvm_debugregs>(), 128);
        assert_eq!(size_of::<kvm_bindings::kvm_xcrs>(), 392);
        assert_eq!(size_of::<kvm_bindings::kvm_cpuid_entry2>(), 40);
    }
}
