//! A full, distinctive state goes into the KVM of this host and comes back. Skipped where there is no usable KVM.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails"
)]

use std::collections::BTreeMap;

use hyperferry_kvm_state::*;
use kvm_ioctls::Kvm;
use serde_json::Value;

/// The host's KVM, or none with a message.
fn usable() -> Option<(Kvm, Capabilities)> {
    let Probe { reason, capabilities, .. } = probe();
    let Some(capabilities) = capabilities.filter(|found| found.irqchip && found.pit2) else {
        eprintln!("skipped: no usable KVM here: {}", reason.unwrap_or("no in-kernel chips".into()));
        return None;
    };
    Some((Kvm::new().unwrap(), capabilities))
}

fn capture_all(kvm: &Kvm, created: &Created, state: &KvmVm) -> KvmVm {
    let vcpus: Vec<_> = created
        .vcpus
        .iter()
        .zip(&state.vcpus)
        .map(|(fd, vcpu)| CapturedVcpu { vcpu_id: vcpu.vcpu_id, fd })
        .collect();
    capture(kvm, &created.vm, &vcpus, Some(state.apic_bus_cycle_ns)).unwrap()
}

/// A state for a fresh VM with two vCPUs, ids 0 and 2, that see what the host supports.
fn fresh(kvm: &Kvm, capabilities: &Capabilities) -> KvmVm {
    let vcpu = |vcpu_id: u32| KvmVcpu {
        vcpu_id,
        cpuid2: capabilities
            .cpuid
            .iter()
            .map(|leaf| match leaf.function {
                1 => CpuidEntry2 { ebx: leaf.ebx & 0xff_ffff | vcpu_id << 24, ..*leaf },
                0xb | 0x1f => CpuidEntry2 { edx: vcpu_id, ..*leaf },
                0x8000_001e => CpuidEntry2 { eax: vcpu_id, ..*leaf },
                _ => *leaf,
            })
            .collect(),
        ..KvmVcpu::default()
    };
    let blank = KvmVm { apic_bus_cycle_ns: 1, vcpus: vec![vcpu(0), vcpu(2)], ..KvmVm::default() };
    let created = create(kvm, &blank).unwrap();
    for (fd, vcpu) in created.vcpus.iter().zip(&blank.vcpus) {
        let entries: Vec<_> = vcpu.cpuid2.iter().map(Into::into).collect();
        fd.set_cpuid2(&kvm_bindings::CpuId::from_entries(&entries).unwrap()).unwrap();
    }
    capture_all(kvm, &created, &blank)
}

fn set_msr(vcpu: &mut KvmVcpu, index: u32, data: u64) {
    match vcpu.msrs.iter_mut().find(|entry| entry.index == index) {
        Some(entry) => entry.data = data,
        None => vcpu.msrs.push(MsrEntry { index, data }),
    }
}

/// A guest in 64-bit mode with a value of its own in everything that can hold one.
fn make_distinctive(vcpu: &mut KvmVcpu, capabilities: &Capabilities) {
    let id = u64::from(vcpu.vcpu_id);
    let mut next = 0x1111_0000_0000 + id * 0x1_0000;
    let mut n = || {
        next += 0x101;
        next
    };
    vcpu.regs = Regs {
        rax: n(),
        rbx: n(),
        rcx: n(),
        rdx: n(),
        rsi: n(),
        rdi: n(),
        rsp: n(),
        rbp: n(),
        r8: n(),
        r9: n(),
        r10: n(),
        r11: n(),
        r12: n(),
        r13: n(),
        r14: n(),
        r15: n(),
        rip: n(),
        rflags: 0x246,
    };
    let segment = |selector, type_, s, l, db, g| Segment {
        base: 0,
        limit: if g == 1 { u32::MAX } else { 0xfff },
        selector,
        type_,
        present: 1,
        dpl: 0,
        db,
        s,
        l,
        g,
        avl: 0,
        unusable: 0,
    };
    vcpu.sregs = Sregs {
        cs: segment(0x10, 0xb, 1, 1, 0, 1),
        ds: segment(0x18, 3, 1, 0, 1, 1),
        es: segment(0x18, 3, 1, 0, 1, 1),
        ss: segment(0x18, 3, 1, 0, 1, 1),
        fs: Segment { base: n(), ..segment(0x28, 3, 1, 0, 1, 1) },
        gs: Segment { base: n(), ..segment(0x30, 3, 1, 0, 1, 1) },
        tr: Segment { base: n(), ..segment(0x40, 0xb, 0, 0, 0, 0) },
        ldt: Segment { base: n(), ..segment(0x50, 2, 0, 0, 0, 0) },
        gdt: Dtable { base: n(), limit: 0x7f },
        idt: Dtable { base: n(), limit: 0xfff },
        cr0: 0x8005_0033,
        cr2: n(),
        cr3: 0x12_3000 + id * 0x1000,
        cr4: 0x6a0 | if vcpu.xcrs.is_empty() || capabilities.xcr0 == 0 { 0 } else { 1 << 18 },
        cr8: 3,
        efer: 0xd01,
        apic_base: vcpu.sregs.apic_base,
        interrupt_bitmap: [0; 4],
    };
    if capabilities.xcr0 & 7 == 7 {
        vcpu.xcrs = vec![Xcr { xcr: 0, value: 7 }];
    }
    let avx = vcpu.xcr0() & 4 != 0;
    vcpu.xsave = Xsave {
        fcw: 0x27f,
        fsw: 0x3800,
        ftw: 0x81,
        fop: 0x123,
        fip: 0x4_5678,
        fdp: 0x9_abcd,
        mxcsr: 0x9fc0,
        mxcsr_mask: vcpu.xsave.mxcsr_mask,
        st: std::array::from_fn(|at| 0x4000_8000_0000_0000_0001 + at as u128 + u128::from(id)),
        xmm: std::array::from_fn(|at| (0x1234_5678_9abc_def0_u128 << 32) + at as u128 + u128::from(id)),
        xstate_bv: if avx { 7 } else { 3 },
        ymm_high: avx.then(|| std::array::from_fn(|at| (0xfedc_u128 << 100) + at as u128)),
        ..Xsave::default()
    };
    vcpu.debugregs = DebugRegs { db: [n(), n(), n(), n()], dr6: 0xffff_4ff0, dr7: 0x400 };
    for (index, value) in [
        (0x174, 0x10),
        (0x175, n()),
        (0x176, n()),
        (0xc000_0081, n()),
        (0xc000_0082, n()),
        (0xc000_0083, n()),
        (0xc000_0084, 0x4_7700),
        (0xc000_0102, n()),
        (0x277, 0x0407_0501_0600_0106),
        (0x2ff, 0xc06),
        (0x250, 0x0606_0606_0606_0606),
        (0x26f, 0x0505_0505_0505_0505),
        (0x200, 0xf000_0000),
        (0x201, 0xf_f000_0800),
        (0x10, 0x1234_5678_9abc),
    ] {
        set_msr(vcpu, index, value);
    }
    vcpu.lapic = LapicState {
        tpr: 0x30,
        svr: 0x1ff,
        ldr: 0x100_0000 << (id / 2),
        dfr: u32::MAX,
        isr: [0, 1 << 5, 0, 0, 0, 0, 0, 0],
        tmr: [0, 1 << 5, 0, 0, 0, 0, 0, 0],
        irr: [0, 0, 0, 0, 0, 0, 0, 1 << 12],
        esr: 0x40,
        icr: [0xc08fc & !0x1000, 0x200_0000],
        lvt_timer: 0x2_00ec,
        lvt_thermal: 0x1_00f9,
        lvt_performance: 0x1_0400,
        lvt_lint0: 0x1_0700,
        lvt_lint1: 0x1_0400,
        lvt_error: 0xfe,
        initial_count: 0xffff_fff0,
        current_count: 0xf000_0000,
        divide_configuration: 0b1010,
        ..vcpu.lapic.clone()
    };
    vcpu.mp_state = if id == 0 { MpState::RUNNABLE } else { MpState::HALTED };
    vcpu.vcpu_events = VcpuEvents {
        interrupt: EventInterrupt { injected: 1, nr: 0x31, soft: 0, shadow: 0 },
        nmi: EventNmi { masked: 1, ..EventNmi::default() },
        flags: vcpu.vcpu_events.flags,
        ..VcpuEvents::default()
    };
}

fn distinctive(kvm: &Kvm, capabilities: &Capabilities) -> KvmVm {
    let mut state = fresh(kvm, capabilities);
    for vcpu in &mut state.vcpus {
        make_distinctive(vcpu, capabilities);
    }
    state.clock.clock = 77_000_000_000;
    state.irqchip.pic_master = PicState {
        imr: 0xfb,
        irq_base: 0x30,
        elcr: 0x20,
        priority_add: 3,
        init4: 1,
        last_irr: 0x02,
        ..state.irqchip.pic_master
    };
    state.irqchip.pic_slave = PicState {
        irr: 0x02,
        imr: 0xff,
        irq_base: 0x38,
        elcr: 0x0c,
        special_mask: 1,
        ..state.irqchip.pic_slave
    };
    state.irqchip.ioapic.id = 5;
    state.irqchip.ioapic.ioregsel = 0x11;
    for (pin, entry) in (0_u64..).zip(&mut state.irqchip.ioapic.redirtbl) {
        *entry = (pin % 3) << 56 | (0x1_8030 + pin);
    }
    for (channel, state) in (0_u8..).zip(&mut state.pit2.channels) {
        *state = PitChannelState {
            count: 0x8000 + u32::from(channel),
            latched_count: 0x1234,
            count_latched: 3,
            status_latched: 1,
            status: 0x36,
            read_state: 3,
            write_state: 3,
            write_latch: 0x77,
            rw_mode: 3,
            mode: 2,
            bcd: 0,
            gate: 1,
            count_load_time: 0,
        };
    }
    state.pit2.flags = 2;
    state
}

/// Values of a JSON tree by path.
fn flatten(value: &Value, path: String, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| flatten(value, format!("{path}.{name}"), found))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| flatten(value, format!("{path}[{at}]"), found));
        }
        value => drop(found.insert(path, value.clone())),
    }
}

/// Fields that differ: path, found, wanted.
fn differences<T: serde::Serialize>(found: &T, wanted: &T) -> Vec<(String, String, String)> {
    let [found, wanted] = [found, wanted].map(|value| {
        let mut map = BTreeMap::new();
        flatten(&serde_json::to_value(value).unwrap(), String::new(), &mut map);
        map
    });
    let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
    let paths = found.keys().chain(wanted.keys()).collect::<std::collections::BTreeSet<_>>();
    paths
        .into_iter()
        .filter(|path| found.get(*path) != wanted.get(*path))
        .map(|path| (path.clone(), show(found.get(path)), show(wanted.get(path))))
        .collect()
}

/// Whether a write of IA32_TSC has an effect, asked without the code under test: PVM ignores it.
fn tsc_takes_writes(kvm: &Kvm) -> bool {
    const WANTED: u64 = 0x7000_0000_0000;
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let entry = kvm_bindings::kvm_msr_entry { index: 0x10, data: WANTED, ..Default::default() };
    let mut msrs = kvm_bindings::Msrs::from_entries(&[entry]).unwrap();
    assert_eq!(fd.set_msrs(&msrs).unwrap(), 1);
    assert_eq!(fd.get_msrs(&mut msrs).unwrap(), 1);
    let takes = msrs.as_slice()[0].data.wrapping_sub(WANTED) < 1 << 36;
    if !takes {
        eprintln!("skipped: the time-stamp counter: this host's KVM ignores writes of it");
    }
    takes
}

/// CPUID bits that mirror CR4.OSXSAVE and CR4.PKE.
const OSXSAVE: u32 = 1 << 27;
const OSPKE: u32 = 1 << 4;

/// Puts aside what runs on by itself, after checking that it ran forwards, and what KVM tells by other means.
fn settle(kvm: &Kvm, found: &mut KvmVm, wanted: &KvmVm) {
    let tsc_takes_writes = tsc_takes_writes(kvm);
    assert!(
        found.clock.clock >= wanted.clock.clock && found.clock.clock < wanted.clock.clock + 60_000_000_000
    );
    found.clock = wanted.clock;
    for (found, wanted) in found.pit2.channels.iter_mut().zip(&wanted.pit2.channels) {
        found.count_load_time = wanted.count_load_time;
    }
    for (found, wanted) in found.vcpus.iter_mut().zip(&wanted.vcpus) {
        let (tsc, from) = (found.msr(0x10).unwrap(), wanted.msr(0x10).unwrap());
        if tsc_takes_writes {
            assert!(
                tsc >= from && tsc < from + u64::from(found.tsc_khz) * 10_000,
                "TSC {tsc:#x} from {from:#x}"
            );
        }
        set_msr(found, 0x10, from);
        found.msrs.sort_by_key(|entry| entry.index);
        // KVM keeps these in step with CR4 and XCR0, whatever KVM_SET_CPUID2 said.
        for (leaf, wanted) in found.cpuid2.iter_mut().zip(&wanted.cpuid2) {
            match (leaf.function, leaf.index) {
                (1, _) => leaf.ecx = leaf.ecx & !OSXSAVE | wanted.ecx & OSXSAVE,
                (7, 0) => leaf.ecx = leaf.ecx & !OSPKE | wanted.ecx & OSPKE,
                (0xd, 0 | 1) => leaf.ebx = wanted.ebx,
                _ => {}
            }
        }
        let counts = (found.lapic.current_count, wanted.lapic.current_count);
        assert!(counts.0 <= counts.1 && counts.0 > counts.1 / 2, "timer {counts:#x?}");
        found.lapic.current_count = wanted.lapic.current_count;
    }
}

/// What KVM computes instead of taking: the reason stands in `formats/kvm/state.md`.
fn is_computed(path: &str) -> bool {
    [".vcpu_events.flags", ".lapic.ppr", ".lapic.version", ".sregs.interrupt_bitmap[0]", ".xsave.mxcsr_mask"]
        .iter()
        .any(|end| path.ends_with(end))
}

#[test]
fn a_loaded_state_reads_back_field_by_field() {
    let Some((kvm, capabilities)) = usable() else { return };
    let mut wanted = distinctive(&kvm, &capabilities);
    wanted.vcpus.iter_mut().for_each(|vcpu| vcpu.msrs.sort_by_key(|entry| entry.index));
    let wanted = from_json(&to_json(&wanted).unwrap()).unwrap();
    let created = create(&kvm, &wanted).unwrap();
    let loaded = load(&kvm, &created.vm, &created.vcpus, &wanted).unwrap();
    assert_eq!(loaded.skipped, []);
    // A host that ignores the TSC is reported for each vCPU, and nothing else is.
    let ignored = if tsc_takes_writes(&kvm) { vec![] } else { vec![0x10, 0x10] };
    assert_eq!(loaded.changed.iter().map(|change| change.index).collect::<Vec<_>>(), ignored);
    let mut found = capture_all(&kvm, &created, &wanted);
    settle(&kvm, &mut found, &wanted);
    let left: Vec<_> =
        differences(&found, &wanted).into_iter().filter(|(path, ..)| !is_computed(path)).collect();
    assert!(left.is_empty(), "(field, found, wanted): {left:#?}");
}

#[test]
fn a_captured_state_survives_the_neutral_model() {
    let Some((kvm, capabilities)) = usable() else { return };
    let source = distinctive(&kvm, &capabilities);
    let created = create(&kvm, &source).unwrap();
    load(&kvm, &created.vm, &created.vcpus, &source).unwrap();
    let mut captured = capture_all(&kvm, &created, &source);

    let (vm, fates) = normalise(&captured).unwrap();
    let (mut localised, _) = localise(&vm, &Target::from(&capabilities)).unwrap();
    // The model has no place for some MSRs, and this KVM none for some of the model's: each must be listed.
    for (index, (vcpu, kept)) in captured.vcpus.iter_mut().zip(&mut localised.vcpus).enumerate() {
        let listed = |fate: Fate, msr: u32| {
            let name = format!("vcpus[{index}].msrs[{msr:#x}]");
            fates.iter().any(|found| found.field == name && found.fate == fate)
        };
        kept.msrs.sort_by_key(|entry| entry.index);
        kept.msrs.retain(|entry| vcpu.msr(entry.index).is_some() || !listed(Fate::Defaulted, entry.index));
        vcpu.msrs.retain(|entry| kept.msr(entry.index).is_some() || !listed(Fate::Dropped, entry.index));
    }
    let carried = |path: &str| {
        let covers = |fate: &&FieldFate| {
            let rest = path.strip_prefix('.').and_then(|path| path.strip_prefix(fate.field.as_str()));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let fate = fates.iter().filter(covers).max_by_key(|fate| fate.field.len());
        fate.is_none_or(|fate| fate.fate == Fate::Carried)
    };
    let left: Vec<_> =
        differences(&localised, &captured).into_iter().filter(|(path, ..)| carried(path)).collect();
    assert!(left.is_empty(), "called carried, yet (field, found, wanted): {left:#?}");

    let second = create(&kvm, &localised).unwrap();
    load(&kvm, &second.vm, &second.vcpus, &localised).unwrap();
    let mut again = capture_all(&kvm, &second, &localised);
    for (vcpu, wanted) in again.vcpus.iter_mut().zip(&localised.vcpus) {
        vcpu.msrs.retain(|entry| wanted.msr(entry.index).is_some());
    }
    settle(&kvm, &mut again, &localised);
    let left: Vec<_> =
        differences(&again, &localised).into_iter().filter(|(path, ..)| !is_computed(path)).collect();
    assert!(left.is_empty(), "(field, found, wanted): {left:#?}");
}

#[test]
fn a_refused_msr_is_named() {
    let Some((kvm, capabilities)) = usable() else { return };
    let mut state = fresh(&kvm, &capabilities);
    set_msr(&mut state.vcpus[1], 0xdead_0000, 7);
    let created = create(&kvm, &state).unwrap();
    let error = load(&kvm, &created.vm, &created.vcpus, &state).unwrap_err();
    assert!(matches!(error, Error::Msr { vcpu: 2, index: 0xdead_0000, value: 7 }), "{error}");
}

#[test]
fn an_unknown_msr_that_is_zero_is_skipped_and_listed() {
    let Some((kvm, capabilities)) = usable() else { return };
    let mut state = fresh(&kvm, &capabilities);
    set_msr(&mut state.vcpus[0], 0xdead_0000, 0);
    let created = create(&kvm, &state).unwrap();
    let loaded = load(&kvm, &created.vm, &created.vcpus, &state).unwrap();
    assert_eq!(loaded.skipped, [SkippedMsr { vcpu: 0, index: 0xdead_0000 }]);
}

#[test]
fn a_refused_register_names_ioctl_and_vcpu() {
    let Some((kvm, capabilities)) = usable() else { return };
    let mut state = fresh(&kvm, &capabilities);
    // Paging without protection.
    state.vcpus[1].sregs.cr0 = 0x8000_0000;
    let created = create(&kvm, &state).unwrap();
    let error = load(&kvm, &created.vm, &created.vcpus, &state).unwrap_err().to_string();
    assert!(error.starts_with("KVM_SET_SREGS on vCPU 2: Invalid argument"), "{error}");
}

#[test]
fn save_areas_of_another_cpu_are_refused() {
    let Some((kvm, capabilities)) = usable() else { return };
    if capabilities.xcr0 & 7 != 7 {
        eprintln!("skipped: this host has no AVX");
        return;
    }
    let mut state = fresh(&kvm, &capabilities);
    let vcpu = &mut state.vcpus[0];
    vcpu.xcrs = vec![Xcr { xcr: 0, value: 7 }];
    vcpu.cpuid2
        .iter_mut()
        .filter(|leaf| (leaf.function, leaf.index) == (0xd, 2))
        .for_each(|leaf| leaf.ebx += 64);
    let created = create(&kvm, &state).unwrap();
    let error = load(&kvm, &created.vm, &created.vcpus, &state).unwrap_err().to_string();
    assert!(error.starts_with("vCPU 0: CPUID leaf 0xd, component 2: found 256 bytes at 640"), "{error}");
}

#[test]
fn the_apic_bus_clock_is_set_or_refused() {
    let Some((kvm, capabilities)) = usable() else { return };
    let mut state = distinctive(&kvm, &capabilities);
    state.apic_bus_cycle_ns = 10;
    state.vcpus[0].lapic.lvt_timer = 0xec;
    match create(&kvm, &state) {
        Ok(created) => {
            assert!(capabilities.apic_bus_cycles_ns);
            load(&kvm, &created.vm, &created.vcpus, &state).unwrap();
            let start = capture_all(&kvm, &created, &state).vcpus[0].lapic.current_count;
            std::thread::sleep(std::time::Duration::from_millis(200));
            let passed = start - capture_all(&kvm, &created, &state).vcpus[0].lapic.current_count;
            // 200 ms at 10 ns a cycle and 128 cycles a count.
            let wanted = 200_000_000 / 10 / 128;
            assert!((wanted..wanted * 2).contains(&passed), "{passed} counts, wanted {wanted}");
        }
        Err(error) => {
            assert!(!capabilities.apic_bus_cycles_ns);
            assert!(error.to_string().contains("KVM_CAP_X86_APIC_BUS_CYCLES_NS"), "{error}");
        }
    }
}
