//! `xen-cpuid -p DOMID`: a domain's CPUID and MSR policy, as text.
//!
//! Source: tools/misc/xen-cpuid.c of Xen 4.17, print_policy.

use hyperferry_vm_model::{CpuidLeaf, CpuidPolicy, MsrPolicyEntry};

/// No subleaf (XEN_CPUID_NO_SUBLEAF).
const NO_SUBLEAF: u32 = u32::MAX;

/// Lines that are none of the policy's are passed over; nothing at all is an empty policy.
pub(super) fn parse(text: &str) -> CpuidPolicy {
    let mut policy = CpuidPolicy::default();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" -> ") else { continue };
        let words = |text: &str| {
            text.trim()
                .split(':')
                .map(|word| u32::from_str_radix(word.trim(), 16))
                .collect::<Result<Vec<_>, _>>()
                .unwrap_or_default()
        };
        match (words(left).as_slice(), words(right).as_slice()) {
            (&[leaf, subleaf], &[eax, ebx, ecx, edx]) => {
                let subleaf = (subleaf != NO_SUBLEAF).then_some(subleaf);
                policy.leaves.push(CpuidLeaf { leaf, subleaf, eax, ebx, ecx, edx });
            }
            (&[index], _) => {
                if let Ok(value) = u64::from_str_radix(right.trim(), 16) {
                    policy.msrs.push(MsrPolicyEntry { index, value });
                }
            }
            _ => {}
        }
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_is_printed() {
        let policy = parse(
            "Domain 1 policy: 2 leaves, 1 MSRs\n CPUID:\n  leaf     subleaf  -> eax      ebx      ecx      edx     \n  \
             00000000:ffffffff -> 0000000d:68747541:444d4163:69746e65\n  \
             0000000d:00000001 -> 00000001:00000000:00000000:00000000\n MSRs:\n  index    -> value           \n  \
             000000ce -> 0000000080000000\n",
        );
        let leaves: Vec<_> = policy.leaves.iter().map(|leaf| (leaf.leaf, leaf.subleaf, leaf.eax)).collect();
        assert_eq!(leaves, [(0, None, 0xd), (0xd, Some(1), 1)]);
        assert_eq!(policy.msrs, [MsrPolicyEntry { index: 0xce, value: 0x8000_0000 }]);
    }
}
