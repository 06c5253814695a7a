//! Model-specific registers that come with the guest's state.

use hyperferry_translate::cpu_features;

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "msrs", worst: Severity::Refusal, judge };

/// Register, its name, and the feature that it comes with; none: every guest has it.
const MSRS: [(u32, &str, Option<&str>); 15] = [
    (0x10, "TSC", None),
    (0x174, "SYSENTER_CS", None),
    (0x175, "SYSENTER_ESP", None),
    (0x176, "SYSENTER_EIP", None),
    (0x277, "PAT", None),
    (0xc000_0081, "STAR", None),
    (0xc000_0082, "LSTAR", Some("lm")),
    (0xc000_0083, "CSTAR", Some("lm")),
    (0xc000_0084, "SFMASK", Some("lm")),
    (0xc000_0102, "KERNEL_GS_BASE", Some("lm")),
    (0xc000_0103, "TSC_AUX", Some("rdtscp")),
    (0x3b, "TSC_ADJUST", Some("tsc-adjust")),
    (0x48, "SPEC_CTRL", Some("spec-ctrl")),
    (0x6e0, "TSC_DEADLINE", Some("tsc-deadline")),
    (0xda0, "XSS", Some("xsaves")),
];

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let (Some(kvm), Some(guest)) = (facts.capabilities(), &facts.guest) else { return };
    let shown = |feature: &str| {
        cpu_features::offered(&guest.vm.cpuid).any(|(name, offered)| name == feature && offered)
    };
    let missing: Vec<_> = MSRS
        .iter()
        .filter(|(_, _, feature)| feature.is_none_or(shown))
        .filter(|(index, ..)| !kvm.msrs.contains(index))
        .map(|(index, name, _)| format!("{name} ({index:#x})"))
        .collect();
    if missing.is_empty() {
        return say.ok("all that the guest's state has");
    }
    let reason = format!("KVM here does not know MSRs of the guest: {}", missing.join(", "));
    say.refuse(reason, "use a host with a newer kernel, or mask the features they belong to (cpuid=)");
}
