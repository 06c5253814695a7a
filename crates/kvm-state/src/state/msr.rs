//! `kvm_msr_entry`, and the names of the MSRs that appear in messages.

use serde::{Deserialize, Serialize};

use super::mirror;
use crate::hex;

/// `kvm_msr_entry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[rustfmt::skip]
pub struct MsrEntry {
    /// MSR number.
    #[serde(with = "hex")] pub index: u32,
    /// Its value.
    #[serde(with = "hex")] pub data: u64,
}

mirror!(MsrEntry = kvm_msr_entry { index, data });

/// MTRRfix64K_00000, MTRRfix16K_80000, _A0000, MTRRfix4K_C0000 to _F8000.
pub(crate) const MTRR_FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// MTRRphysBase0; base and mask of eight ranges follow one another.
pub(crate) const MTRR_VARIABLE: u32 = 0x200;

macro_rules! names {
    ($($name:ident = $number:literal),* $(,)?) => {
        /// Numbers of the MSRs that the code handles by name.
        #[allow(dead_code, reason = "the table serves messages too")]
        pub(crate) mod number {
            $(pub(crate) const $name: u32 = $number;)*
        }

        const NAMES: &[(u32, &str)] = &[$(($number, stringify!($name))),*];
    };
}

names! {
    IA32_TSC = 0x10,
    IA32_APIC_BASE = 0x1b,
    IA32_FEATURE_CONTROL = 0x3a,
    IA32_TSC_ADJUST = 0x3b,
    IA32_SPEC_CTRL = 0x48,
    IA32_BIOS_SIGN_ID = 0x8b,
    IA32_SMBASE = 0x9e,
    MSR_PLATFORM_INFO = 0xce,
    IA32_UMWAIT_CONTROL = 0xe1,
    MTRRCAP = 0xfe,
    IA32_ARCH_CAPABILITIES = 0x10a,
    IA32_TSX_CTRL = 0x122,
    MSR_MISC_FEATURES_ENABLES = 0x140,
    IA32_SYSENTER_CS = 0x174,
    IA32_SYSENTER_ESP = 0x175,
    IA32_SYSENTER_EIP = 0x176,
    IA32_MCG_CAP = 0x179,
    IA32_MCG_STATUS = 0x17a,
    IA32_MCG_CTL = 0x17b,
    IA32_MISC_ENABLE = 0x1a0,
    IA32_XFD = 0x1c4,
    IA32_XFD_ERR = 0x1c5,
    IA32_DEBUGCTL = 0x1d9,
    IA32_PAT = 0x277,
    MTRR_DEF_TYPE = 0x2ff,
    IA32_PERF_CAPABILITIES = 0x345,
    IA32_MCG_EXT_CTL = 0x4d0,
    IA32_PKRS = 0x6e1,
    IA32_TSC_DEADLINE = 0x6e0,
    IA32_BNDCFGS = 0xd90,
    IA32_XSS = 0xda0,
    MSR_KVM_WALL_CLOCK_NEW = 0x4b56_4d00,
    MSR_KVM_SYSTEM_TIME_NEW = 0x4b56_4d01,
    MSR_KVM_ASYNC_PF_EN = 0x4b56_4d02,
    MSR_KVM_STEAL_TIME = 0x4b56_4d03,
    MSR_KVM_PV_EOI_EN = 0x4b56_4d04,
    MSR_KVM_POLL_CONTROL = 0x4b56_4d05,
    IA32_EFER = 0xc000_0080,
    MSR_STAR = 0xc000_0081,
    MSR_LSTAR = 0xc000_0082,
    MSR_CSTAR = 0xc000_0083,
    MSR_SYSCALL_MASK = 0xc000_0084,
    MSR_KERNEL_GS_BASE = 0xc000_0102,
    MSR_TSC_AUX = 0xc000_0103,
    MSR_AMD64_TSC_RATIO = 0xc000_0104,
    MSR_K7_HWCR = 0xc001_0015,
    MSR_VM_HSAVE_PA = 0xc001_0117,
    MSR_AMD64_VIRT_SPEC_CTRL = 0xc001_011f,
    MSR_AMD64_DR1_ADDRESS_MASK = 0xc001_1019,
    MSR_AMD64_DR2_ADDRESS_MASK = 0xc001_101a,
    MSR_AMD64_DR3_ADDRESS_MASK = 0xc001_101b,
    MSR_AMD64_DR0_ADDRESS_MASK = 0xc001_1027,
}

/// Name of an MSR, for people.
pub fn msr_name(index: u32) -> &'static str {
    if let Some((_, name)) = NAMES.iter().find(|(number, _)| *number == index) {
        return name;
    }
    match index {
        0x200..=0x21f => "MTRR variable range",
        0x250..=0x26f => "MTRR fixed range",
        0x0c1..=0x0c8 | 0x186..=0x18d | 0x309..=0x30c | 0x38d..=0x390 | 0x4c1..=0x4c8 => {
            "performance counter"
        }
        0x280..=0x29f | 0x400..=0x47f => "machine-check bank",
        0x480..=0x493 => "VMX capability",
        0x4000_0000..=0x4000_01ff => "Hyper-V",
        0x4b56_4d00..=0x4b56_4dff | 0x11 | 0x12 => "KVM paravirtual",
        0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b => "AMD performance counter",
        _ => "MSR",
    }
}
