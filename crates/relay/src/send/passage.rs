//! What becomes of a guest's stream on its way: QEMU's goes in, Xen's comes out.

use std::{
    io::{Read, Write},
    time::Instant,
};

use hyperferry_translate::{
    Error as TranslateError, Result, cpu_features,
    qemu::{Accelerator, Hint},
    refusal::{self, Policy},
    report::Report,
    source::Source,
    xen::{Destination, Relocation, Template, XenSink},
};
use hyperferry_vm_model::{CpuidPolicy, PAGE_SIZE, Vm};

use super::{Facts, Pace, Platform};
use crate::{
    home::WayHome,
    progress::{Precopy, Progress},
    session::page_numbers,
};

/// Everything that the page lane needs to translate on its own.
#[derive(Clone, Debug)]
pub struct Passage {
    hint: Hint,
    template: Template,
    relocation: Relocation,
    policy: Policy,
    admitted: Report,
    platform: Platform,
    way: WayHome,
}

/// The destination as the user describes it.
#[derive(Clone, Debug)]
pub struct Xen {
    /// What its save files look like.
    pub template: Template,
    /// What the guest and its surroundings are called there.
    pub relocation: Relocation,
    /// What the user allows.
    pub policy: Policy,
}

impl Passage {
    /// Refuses what can be refused by QEMU's word.
    ///
    /// `way` is what is known of a guest that came from Xen, `tsc_khz` the rate of its time-stamp counter where the
    /// stream does not tell it.
    pub fn admit(facts: &Facts, way: WayHome, tsc_khz: Option<u32>, to: Xen) -> Result<Self> {
        let Xen { template, relocation, policy } = to;
        let mut vm = facts.outline();
        way.give(&mut vm);
        if vm.clock.tsc_khz == 0 {
            vm.clock.tsc_khz = tsc_khz.unwrap_or(0);
        }
        let mut report = facts.judge(&policy);
        report.findings.extend_from_slice(&way.report().findings);
        if way.home().is_none() {
            judge_cpu(&vm.cpuid, &template.cpuid, &policy, &mut report);
            // A Xen shows its guests what it can carry; this one has seen no more.
            vm.cpuid = CpuidPolicy::default();
        }
        vm.config.name = relocation.name.clone().unwrap_or(vm.config.name);
        TranslateError::unless_allowed(&report)?;
        let accelerator = if facts.kvm { Accelerator::Kvm } else { Accelerator::Tcg };
        let platform = facts.platform.clone();
        let usual = Hint::default();
        let apic_bus_hz = platform.apic_bus_hz.unwrap_or(usual.apic_bus_hz);
        let hint = Hint { vm, accelerator: Some(accelerator), apic_bus_hz, places: facts.places.clone() };
        Ok(Self { hint, template, relocation, policy, admitted: report, platform, way })
    }

    /// What is known of the guest.
    pub fn outline(&self) -> &Vm {
        &self.hint.vm
    }

    /// Translates a stream up to its end, and accounts for it.
    pub fn translate<R: Read>(
        self,
        from: R,
        out: &mut dyn Write,
        pace: &Pace,
        progress: &Progress,
    ) -> Result<Report> {
        let places = self.hint.places.clone();
        let source = Source::open_with(from, self.policy.clone(), self.hint)?;
        let destination =
            Destination { template: &self.template, relocation: &self.relocation, policy: &self.policy };
        let mut report = self.admitted;
        let mut sink = XenSink::new(out, source.outline(), destination, &mut report)?;
        for base in places.into_values() {
            sink.more_video(base)?;
        }
        let mut last_page = Instant::now();
        let layout = source.outline().memory.clone();
        progress.expect(Precopy {
            pages: source.outline().memory.size() / PAGE_SIZE,
            // The first, and the one that the guest stands still for.
            rounds_max: u32::try_from(pace.rounds.saturating_add(2)).ok(),
            few_pages: 0,
        });
        let mut taken = source.pump(|addresses, data| {
            sink.pages(addresses, data)?;
            last_page = Instant::now();
            // A round begins where its numbers do, and memory of devices lies between the two parts of RAM.
            let of_ram = |number: &u64| layout.ram_offset(number * PAGE_SIZE).is_some();
            progress.pages(page_numbers(addresses).filter(of_ram));
            Ok(())
        })?;
        self.way.give(&mut taken.vm);
        taken.vm.timers.hpet = self.platform.hpet()?.or(taken.vm.timers.hpet);
        report.fields.extend(taken.report.fields);
        report.findings.extend(taken.report.findings);
        sink.finish(&taken.vm, &taken.held, &mut report)?;
        report.state_us = u64::try_from(last_page.elapsed().as_micros()).ok();
        Ok(report)
    }
}

/// A guest goes on using what it has seen of its CPU.
fn judge_cpu(seen: &CpuidPolicy, there: &CpuidPolicy, policy: &Policy, report: &mut Report) {
    let (vendor, other) = (cpu_features::vendor(seen), cpu_features::vendor(there));
    if let (Some(vendor), Some(other)) = (&vendor, &other)
        && vendor != other
    {
        let what = format!("the guest's CPU is of {vendor}, and the destination shows one of {other}");
        let remedy = format!("boot it with -cpu …,vendor={other} before the move, or choose another host");
        policy.refuse(report, refusal::CPU_FEATURES, what, remedy);
    }
    let available = cpu_features::offered(there).map(|(name, offered)| (name.to_owned(), offered)).collect();
    let missing = cpu_features::missing(seen, &available);
    if !missing.is_empty() {
        let what = format!(
            "the guest may use CPU features that the destination does not show: {}",
            missing.join(" ")
        );
        let remedy = "switch them off (-cpu MODEL,-FEATURE) and boot the guest again before the move; --template \
                      tells what the destination shows";
        policy.refuse(report, refusal::CPU_FEATURES, what, remedy);
    }
}
