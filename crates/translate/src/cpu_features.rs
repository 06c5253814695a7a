//! CPU features by their names on QEMU's command line, and what a CPUID policy says about them.
//!
//! The table holds the bits whose meaning is architectural and that QEMU 7.2 and later name
//! (target/i386/cpu.c, feature_word_info; Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E).

use std::collections::BTreeMap;

use hyperferry_vm_model::CpuidPolicy;

/// One output register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// The features of one output register: (bit, name).
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    bits: &'static [(u8, &'static str)],
}

const WORDS: &[Word] = &[
    Word {
        leaf: 1,
        subleaf: 0,
        register: Register::Edx,
        bits: &[
            (0, "fpu"),
            (1, "vme"),
            (2, "de"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (7, "mce"),
            (8, "cx8"),
            (9, "apic"),
            (11, "sep"),
            (12, "mtrr"),
            (13, "pge"),
            (14, "mca"),
            (15, "cmov"),
            (16, "pat"),
            (17, "pse36"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
        ],
    },
    Word {
        leaf: 1,
        subleaf: 0,
        register: Register::Ecx,
        bits: &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4.1"),
            (20, "sse4.2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc-deadline"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: Register::Ebx,
        bits: &[
            (0, "fsgsbase"),
            (1, "tsc-adjust"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (11, "rtm"),
            (14, "mpx"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (26, "avx512pf"),
            (27, "avx512er"),
            (28, "avx512cd"),
            (29, "sha-ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: Register::Ecx,
        bits: &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512vnni"),
            (12, "avx512bitalg"),
            (14, "avx512-vpopcntdq"),
            (22, "rdpid"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
            (31, "pks"),
        ],
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: Register::Edx,
        bits: &[
            (2, "avx512-4vnniw"),
            (3, "avx512-4fmaps"),
            (4, "fsrm"),
            (8, "avx512-vp2intersect"),
            (14, "serialize"),
            (26, "spec-ctrl"),
            (27, "stibp"),
            (31, "ssbd"),
        ],
    },
    Word { leaf: 7, subleaf: 1, register: Register::Eax, bits: &[(4, "avx-vnni"), (5, "avx512-bf16")] },
    Word {
        leaf: 0xd,
        subleaf: 1,
        register: Register::Eax,
        bits: &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")],
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Register::Edx,
        bits: &[
            (11, "syscall"),
            (20, "nx"),
            (22, "mmxext"),
            (25, "fxsr-opt"),
            (26, "pdpe1gb"),
            (27, "rdtscp"),
            (29, "lm"),
        ],
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Register::Ecx,
        bits: &[
            (0, "lahf-lm"),
            (4, "cr8legacy"),
            (5, "abm"),
            (6, "sse4a"),
            (7, "misalignsse"),
            (8, "3dnowprefetch"),
            (11, "xop"),
            (16, "fma4"),
            (21, "tbm"),
        ],
    },
    Word {
        leaf: 0x8000_0008,
        subleaf: 0,
        register: Register::Ebx,
        bits: &[
            (0, "clzero"),
            (2, "xsaveerptr"),
            (9, "wbnoinvd"),
            (12, "ibpb"),
            (14, "ibrs"),
            (15, "amd-stibp"),
            (24, "amd-ssbd"),
        ],
    },
];

/// Features that a hypervisor provides itself, or that no running guest depends on: their absence is no reason to refuse.
const HARMLESS: [&str; 4] = ["x2apic", "tsc-adjust", "xsaveerptr", "cr8legacy"];

/// Each feature and whether the policy shows it to the guest.
pub fn offered(policy: &CpuidPolicy) -> impl Iterator<Item = (&'static str, bool)> {
    WORDS.iter().flat_map(|word| {
        let value = policy.leaf(word.leaf, word.subleaf).map_or(0, |leaf| match word.register {
            Register::Eax => leaf.eax,
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        });
        word.bits.iter().map(move |(bit, name)| (*name, value >> bit & 1 == 1))
    })
}

/// Features that the guest may be using and the destination does not have.
///
/// `available` is what the destination's QEMU says of its own CPU model (`query-cpu-model-expansion`). A name that
/// it does not know is taken as missing.
pub fn missing(policy: &CpuidPolicy, available: &BTreeMap<String, bool>) -> Vec<&'static str> {
    offered(policy)
        .filter(|(name, used)| *used && !HARMLESS.contains(name))
        .map(|(name, _)| name)
        .filter(|name| !available.get(*name).copied().unwrap_or(false))
        .collect()
}

/// The twelve-character vendor name of leaf 0.
pub fn vendor(policy: &CpuidPolicy) -> Option<String> {
    let leaf = policy.leaf(0, 0)?;
    let bytes: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx].iter().flat_map(|word| word.to_le_bytes()).collect();
    String::from_utf8(bytes).ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Family, model and stepping of leaf 1, with the extended fields added as the manuals say.
pub fn signature(policy: &CpuidPolicy) -> Option<(u32, u32, u32)> {
    let eax = policy.leaf(1, 0)?.eax;
    let (family, extended_family) = (eax >> 8 & 0xf, eax >> 20 & 0xff);
    let (model, extended_model) = (eax >> 4 & 0xf, eax >> 16 & 0xf);
    let family = if family == 0xf { family + extended_family } else { family };
    Some((family, extended_model << 4 | model, eax & 0xf))
}

/// Width of physical addresses, leaf 0x80000008.
pub fn physical_bits(policy: &CpuidPolicy) -> Option<u32> {
    policy.leaf(0x8000_0008, 0).map(|leaf| leaf.eax & 0xff).filter(|bits| (32..=52).contains(bits))
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::CpuidLeaf;

    use super::*;

    fn policy() -> CpuidPolicy {
        let leaf = |leaf, eax, ebx, ecx, edx| CpuidLeaf { leaf, subleaf: None, eax, ebx, ecx, edx };
        CpuidPolicy {
            leaves: vec![
                leaf(0, 0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
                leaf(1, 0x0080_0f12, 0, 1 << 26 | 1 << 28 | 1 << 21, 1 << 25),
            ],
            msrs: vec![],
        }
    }

    #[test]
    fn names_who_made_it() {
        assert_eq!(vendor(&policy()).as_deref(), Some("AuthenticAMD"));
        assert_eq!(signature(&policy()), Some((0x17, 0x01, 2)));
    }

    #[test]
    fn only_what_the_guest_saw_can_be_missing() {
        let available =
            BTreeMap::from([("sse".to_owned(), true), ("xsave".to_owned(), true), ("avx".to_owned(), false)]);
        // x2apic is offered too, and harmless.
        assert_eq!(missing(&policy(), &available), ["avx"]);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = offered(&CpuidPolicy::default()).map(|(name, _)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
