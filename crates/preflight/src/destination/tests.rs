use hyperferry_testkit::Fixture;
use hyperferry_vm_model::{Disk as ModelDisk, Nic};

use super::{surroundings::Fault, *};
use crate::{
    Severity,
    guest::{Clocks, LapicTimer},
};

/// A host that can take the fixture's guest.
fn host() -> Facts {
    let guest = Guest::read(Fixture::named("xen/witness-2vcpu").unwrap().open().unwrap()).unwrap();
    let leaves = guest.vm.cpuid.leaves.iter();
    let cpuid = leaves.map(|leaf| hyperferry_kvm_state::CpuidEntry2 {
        function: leaf.leaf,
        index: leaf.subleaf.unwrap_or(0),
        flags: 0,
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
    });
    let capabilities = Capabilities {
        api_version: 12,
        max_vcpus: 64,
        max_vcpu_id: 256,
        irqchip: true,
        ioapic_pins: 24,
        pit2: true,
        tsc_control: true,
        tsc_khz: 2_000_000,
        tsc_deadline_timer: true,
        apic_bus_cycles_ns: true,
        xen_hvm: 0,
        xen_hvm_flags: Vec::new(),
        cpuid: cpuid.collect(),
        msrs: (0..0x1000).chain(0xc000_0080..0xc000_0110).collect(),
        xcr0: 7,
        xsave: Default::default(),
        xsave_size: 832,
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let offered = hyperferry_translate::cpu_features::offered(&guest.vm.cpuid);
    let features = offered.map(|(name, offered)| (name.to_owned(), offered));
    let options = args::Options::new(Accelerator::Kvm);
    let qemu = Qemu {
        version: Version { major: 10, minor: 0, micro: 2, package: String::new() },
        machines: names(&["pc", "pc-i440fx-7.2", "q35"]),
        devices: names(&["ivshmem-plain", "host-x86_64-cpu"]),
        features: Some(features.collect()),
        template: Some(Ok("pc-i440fx-10.0".to_owned())),
    };
    Facts {
        guest: Some(guest),
        options,
        platform_shim: false,
        kvm: Probe { access: Access::Usable, reason: None, capabilities: Some(capabilities) },
        qemu: Some(Ok(qemu)),
        memory: Some(4 << 30),
        disks: Vec::new(),
        bridges: names(&["br0"]),
        journal: Some(("/var/lib/hyperferry".into(), Ok(()))),
        xl: Some(Some(("/usr/local/sbin/xl".into(), true))),
    }
}

fn severity(facts: &Facts, name: &str) -> Severity {
    let findings = facts.findings(&Policy::default());
    let found = findings.iter().filter(|finding| finding.name == name);
    found.map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = host();
    change(&mut facts);
    facts
}

fn kvm(change: impl FnOnce(&mut Capabilities)) -> Facts {
    with(|facts| change(facts.kvm.capabilities.as_mut().unwrap()))
}

fn qemu(change: impl FnOnce(&mut Qemu)) -> Facts {
    with(|facts| change(facts.qemu.as_mut().unwrap().as_mut().unwrap()))
}

fn guest(change: impl FnOnce(&mut Guest)) -> Facts {
    with(|facts| change(facts.guest.as_mut().unwrap()))
}

#[test]
fn a_host_that_fits_has_nothing_against_it() {
    let findings = host().findings(&Policy::default());
    assert!(findings.iter().all(|finding| !finding.refuses()), "{findings:#?}");
    let judged: BTreeSet<_> = findings.iter().map(|finding| finding.name.as_str()).collect();
    let silent: Vec<_> =
        CHECKS.iter().map(|check| check.name).filter(|name| !judged.contains(name)).collect();
    assert_eq!(silent, ["disk", "bridge"], "the guest has neither");
}

#[test]
fn each_check_sees_what_it_is_there_for() {
    use Severity::{Note, Ok, Refusal, Warning};
    let clocks = |hpet, lapic_timer| guest(|guest| guest.clocks = Some(Clocks { hpet, lapic_timer }));
    let disk = |fault| {
        with(|facts| {
            facts.disks =
                vec![Disk { vdev: "hda".into(), path: "/x".into(), writable: true, fault: Some(fault) }];
        })
    };
    let card = |bridge: &str| {
        let nic = Nic { bridge: Some("xenbr0".into()), emulated: true, ..Nic::default() };
        let mut facts = guest(|guest| guest.vm.config.nics = vec![nic]);
        facts.options.bridges.insert("xenbr0".into(), bridge.into());
        facts
    };
    for (name, facts, severity_wanted) in [
        ("kvm", with(|facts| facts.kvm.access = Access::Absent), Refusal),
        ("kvm", with(|facts| facts.options.accelerator = Accelerator::Tcg), Note),
        ("kvm-chips", kvm(|kvm| kvm.pit2 = false), Refusal),
        ("vcpus", kvm(|kvm| kvm.max_vcpus = 1), Refusal),
        ("vcpus", kvm(|kvm| kvm.max_vcpu_id = 2), Refusal),
        ("cpu-vendor", kvm(|kvm| kvm.cpuid[0].ebx = 0x756e_6547), Warning),
        ("cpu-features", qemu(|qemu| qemu.features = Some(BTreeMap::new())), Refusal),
        ("cpu-features", guest(|guest| guest.vm.cpuid = Default::default()), Note),
        ("xstate", kvm(|kvm| kvm.xcr0 = 1), Refusal),
        ("msrs", kvm(|kvm| kvm.msrs.retain(|index| *index != 0x277)), Refusal),
        ("tsc-frequency", kvm(|kvm| kvm.tsc_control = false), Note),
        ("apic-bus-clock", kvm(|kvm| kvm.apic_bus_cycles_ns = false), Note),
        ("hpet", clocks(true, LapicTimer::Unused), Refusal),
        ("hpet", clocks(false, LapicTimer::Periodic), Ok),
        ("lapic-timer", clocks(false, LapicTimer::Periodic), Refusal),
        ("lapic-timer", clocks(false, LapicTimer::OneShot), Warning),
        ("qemu", with(|facts| facts.qemu = Some(Err("no".into()))), Refusal),
        ("qemu", qemu(|qemu| qemu.version.major = 6), Warning),
        ("machine-type", with(|facts| facts.options.machine = "isapc".into()), Refusal),
        ("machine-type", with(|facts| facts.options.machine = "q35".into()), Refusal),
        ("machine-type", with(|facts| facts.options.machine = "pc-i440fx-7.2".into()), Ok),
        ("qemu-devices", qemu(|qemu| qemu.devices.clear()), Refusal),
        ("template", qemu(|qemu| qemu.template = Some(Err("no".into()))), Refusal),
        ("memory-layout", guest(|guest| guest.vm.memory.low_end = 0xf800_0000), Refusal),
        ("host-memory", with(|facts| facts.memory = Some(64 << 20)), Warning),
        ("disk", disk(Fault::Absent), Refusal),
        ("disk", disk(Fault::Denied("no".into())), Refusal),
        ("disk", disk(Fault::Locked), Refusal),
        ("bridge", card("br0"), Ok),
        ("bridge", card("br1"), Refusal),
        ("journal", with(|facts| facts.journal = Some(("/x".into(), Err("no".into())))), Refusal),
        ("xl-name", with(|facts| facts.xl = Some(None)), Note),
    ] {
        assert_eq!(severity(&facts, name), severity_wanted, "{name}");
    }
    let mut unmapped = card("br0");
    unmapped.options.bridges.clear();
    assert_eq!(severity(&unmapped, "bridge"), Warning);
}

#[test]
fn a_rate_that_cannot_be_had_is_refused() {
    let at = |khz| {
        let mut facts = kvm(|kvm| kvm.tsc_control = false);
        facts.guest.as_mut().unwrap().vm.clock.tsc_khz = khz;
        severity(&facts, "tsc-frequency")
    };
    assert_eq!((at(2_000_500), at(2_100_000)), (Severity::Ok, Severity::Refusal));
}

#[test]
fn the_shim_keeps_the_clocks() {
    let mut facts =
        guest(|guest| guest.clocks = Some(Clocks { hpet: true, lapic_timer: LapicTimer::Periodic }));
    facts.platform_shim = true;
    assert_eq!((severity(&facts, "hpet"), severity(&facts, "lapic-timer")), (Severity::Ok, Severity::Ok));
    facts.kvm.capabilities.as_mut().unwrap().apic_bus_cycles_ns = false;
    assert_eq!(severity(&facts, "lapic-timer"), Severity::Refusal);
}

#[test]
fn no_check_says_worse_than_its_row() {
    let mut bad = host();
    bad.options.machine = "isapc".into();
    bad.memory = Some(0);
    let guest = bad.guest.as_mut().unwrap();
    guest.vm.config.disks =
        vec![ModelDisk { vdev: "hda".into(), path: Some("/nowhere".into()), ..ModelDisk::default() }];
    bad.disks = surroundings::disks(&guest.vm, &bad.options);
    for facts in [host(), bad] {
        for finding in facts.findings(&Policy::default()) {
            let check = CHECKS.iter().find(|check| check.name == finding.name).unwrap();
            assert!(finding.severity <= check.worst, "{finding}");
        }
    }
}
