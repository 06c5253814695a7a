use serde::{Deserialize, Serialize};

/// What `CPUID` shows, and the read-only MSRs that go with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidPolicy {
    /// The leaves, in the source's order.
    pub leaves: Vec<CpuidLeaf>,
    /// Read-only MSRs: platform information, architectural capabilities.
    pub msrs: Vec<MsrPolicyEntry>,
}

/// One `CPUID` leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// Input EAX.
    pub leaf: u32,
    /// Input ECX, where the leaf depends on it.
    pub subleaf: Option<u32>,
    /// Output EAX.
    pub eax: u32,
    /// Output EBX.
    pub ebx: u32,
    /// Output ECX.
    pub ecx: u32,
    /// Output EDX.
    pub edx: u32,
}

/// One read-only MSR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrPolicyEntry {
    /// MSR number.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

impl CpuidPolicy {
    /// The leaf, at subleaf 0 or the one named.
    pub fn leaf(&self, leaf: u32, subleaf: u32) -> Option<&CpuidLeaf> {
        self.leaves
            .iter()
            .find(|entry| entry.leaf == leaf && entry.subleaf.is_none_or(|found| found == subleaf))
    }
}
