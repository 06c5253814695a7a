//! Who made the processor, as the guest was told.

use hyperferry_translate::cpu_features;

use super::{Facts, cpu_features::policy};
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "cpu-vendor", worst: Severity::Warning, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let (Some(kvm), Some(guest)) = (facts.capabilities(), &facts.guest) else { return };
    let (Some(shown), Some(here)) =
        (cpu_features::vendor(&guest.vm.cpuid), cpu_features::vendor(&policy(kvm)))
    else {
        return;
    };
    if shown == here {
        return say.ok(shown);
    }
    let reason = format!(
        "the guest was told {shown}, and the processor here is {here}: instructions and errata that depend on the vendor \
         differ"
    );
    say.warn(reason, "use a host with a processor of the same vendor");
}
