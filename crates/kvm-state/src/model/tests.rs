//! Model to KVM to model, without `/dev/kvm`: what the list calls carried comes back, and nothing is left unlisted.

#![allow(clippy::cast_possible_truncation, reason = "values are made from small counters")]

use hyperferry_vm_model::*;
use serde_json::Value;

use super::*;
use crate::{Fate, from_json, to_json};

/// A VM in which no field has its default value and all values differ.
fn sample() -> Vm {
    let vcpu = |id: u32| {
        let mut next = u64::from(id) * 0x1_0000 + 0x100;
        let mut n = || {
            next += 1;
            next
        };
        let mut segment = |attributes| Segment {
            selector: (n() & 0xffff) as u16,
            base: n(),
            limit: n() as u32,
            attributes: SegmentAttributes(attributes),
        };
        let segments = Segments {
            es: segment(0xc93),
            cs: segment(0xa9b),
            ss: segment(0xc92),
            ds: segment(0xcf3),
            fs: segment(0x4f3),
            gs: segment(0x0f7),
            ldtr: segment(0x082),
            tr: segment(0x08b),
        };
        Vcpu {
            id,
            run_state: if id == 0 { RunState::Halted } else { RunState::WaitForSipi },
            general: GeneralRegisters {
                rax: n(),
                rbx: n(),
                rcx: n(),
                rdx: n(),
                rsi: n(),
                rdi: n(),
                rbp: n(),
                rsp: n(),
                r8_r15: std::array::from_fn(|_| n()),
                rip: n(),
                rflags: n(),
            },
            segments,
            tables: DescriptorTables {
                gdtr: DescriptorTable { base: n(), limit: 0x7f },
                idtr: DescriptorTable { base: n(), limit: 0xfff },
            },
            system: SystemRegisters {
                cr0: n(),
                cr2: n(),
                cr3: n(),
                cr4: n(),
                xcr0: 0x2ff,
                efer: n(),
                dr: [n(), n(), n(), n()],
                dr6: n(),
                dr7: n(),
            },
            fpu: Fpu {
                fcw: 0x27f,
                fsw: 0x3800,
                ftw: 0x81,
                fop: 0x123,
                fip: n(),
                fdp: n(),
                selectors: None,
                st: std::array::from_fn(|at| [at as u8 + 1; 10]),
                mxcsr: 0x9fc0,
            },
            vectors: Vectors {
                xmm: std::array::from_fn(|at| [at as u8 + 0x10; 16]),
                ymm_high: std::array::from_fn(|at| [at as u8 + 0x20; 16]),
            },
            avx512: Some(Avx512 {
                opmask: std::array::from_fn(|_| n()),
                zmm_high: std::array::from_fn(|at| std::array::from_fn(|byte| (at * 2 + byte) as u8)),
                zmm_16_31: std::array::from_fn(|at| [[at as u8 + 0x60; 32], [at as u8 + 0x80; 32]]),
            }),
            mpx: Some(Mpx {
                bounds: [[n(), n()], [n(), n()], [n(), n()], [n(), n()]],
                bndcfgu: n(),
                bndstatus: n(),
            }),
            pkru: Some(0x5555_5554),
            xstate_bv: 0x2ff,
            xcr0_accumulated: Some(0x2ff),
            msrs: Msrs {
                sysenter_cs: n(),
                sysenter_esp: n(),
                sysenter_eip: n(),
                star: n(),
                lstar: n(),
                cstar: n(),
                sfmask: n(),
                kernel_gs_base: n(),
                tsc_aux: n(),
                tsc_adjust: n(),
                pat: n(),
                spec_ctrl: Some(n()),
                xss: Some(n()),
                pkrs: Some(n()),
                bndcfgs: Some(n()),
                virt_spec_ctrl: Some(n()),
                misc_features_enables: Some(n()),
                dr_mask: [Some(n()), None, None, Some(n())],
            },
            mtrrs: Mtrrs {
                cap: 0x508,
                def_type: 0xc06,
                fixed: std::array::from_fn(|_| n()),
                variable: std::array::from_fn(|_| VariableRange { base: n(), mask: n() }),
            },
            machine_check: MachineCheck { cap: n(), ctl2: [n(), n()], ext_ctl: n() },
            tsc: n(),
            lapic: Lapic {
                apic_base: 0xfee0_0900,
                id: id * 2,
                version: 0x50014,
                tpr: 0x20,
                ldr: 0x100_0000 << id,
                dfr: u32::MAX,
                svr: 0x1ff,
                isr: std::array::from_fn(|_| n() as u32),
                tmr: std::array::from_fn(|_| n() as u32),
                irr: std::array::from_fn(|_| n() as u32),
                esr: 0x40,
                pending_esr: 0x20,
                icr: [0xc08fc, 0x200_0000],
                lvt: LocalVectorTable {
                    timer: 0x200ec,
                    thermal: 0x100f9,
                    performance: 0x400,
                    lint0: 0x10700,
                    lint1: 0x10400,
                    error: 0xfe,
                },
                timer: ApicTimer {
                    bus_hz: 100_000_000,
                    initial_count: 0x5024,
                    divide_configuration: 3,
                    remaining_ns: Some(160 * 77),
                    tsc_deadline: n(),
                },
            },
            pending_event: Some(PendingEvent {
                kind: EventKind::HardwareException,
                vector: 14,
                error_code: Some(2),
            }),
            interrupt_shadow: true,
            nmi_blocked: true,
        }
    };
    let pic = |n: u8| Pic {
        irr: 0x10 + n,
        imr: 0x82 + n,
        isr: 0,
        irq_base: 0x30 + n * 8,
        elcr: 0x20,
        init_state: 1 + n,
        init4: true,
        single: false,
        priority_add: 3,
        read_isr: true,
        poll: true,
        auto_eoi: true,
        rotate_on_auto_eoi: true,
        special_fully_nested: true,
        special_mask: true,
        int_output: true,
    };
    let leaf = |leaf, subleaf| CpuidLeaf { leaf, subleaf, eax: leaf + 1, ebx: 2, ecx: 3, edx: 4 };
    let channel = |n: u8| PitChannel {
        count: 0x10000 - u32::from(n),
        latched_count: 0x1234,
        count_latched: 3,
        status_latched: true,
        status: 0x36,
        read_state: 1,
        write_state: 2,
        write_latch: 0x77,
        rw_mode: 3,
        mode: (n > 0).then_some(n),
        bcd: true,
        gate: true,
        elapsed_ns: Some(5),
    };
    Vm {
        origin: "Xen 4.17".into(),
        config: GuestConfig { name: "guest".into(), ..GuestConfig::default() },
        memory: MemoryLayout::split(1 << 28, 3 << 30),
        cpuid: CpuidPolicy {
            leaves: vec![
                leaf(0, None),
                leaf(1, None),
                leaf(7, Some(0)),
                leaf(0xd, Some(1)),
                leaf(0x8000_0001, None),
            ],
            msrs: vec![
                MsrPolicyEntry { index: 0xce, value: 0x8000_0000 },
                MsrPolicyEntry { index: 0x10a, value: 0x2b },
                MsrPolicyEntry { index: 0x3a, value: 1 },
            ],
        },
        vcpus: vec![vcpu(0), vcpu(1)],
        clock: Clock { tsc_khz: 2_499_998, guest_ns: 77_777_777, tsc_emulated: true },
        irq: Irq {
            pic: [pic(0), pic(1)],
            ioapic: Ioapic {
                base: 0xfec0_0000,
                ioregsel: 0x11,
                id: 5,
                redirection: (0..48)
                    .map(|pin| if pin < 24 { pin << 56 | 0xa930 } else { 0x1_0000 } & !0x1000)
                    .collect(),
                requests: None,
            },
            pci_links: PciLinks([5, 10, 11, 5]),
            lines: IrqLines { isa: 0x8213, pci: 1 << 17 },
        },
        timers: Timers {
            pit: Pit { channels: [channel(0), channel(1), channel(2)], speaker_data_on: true },
            rtc: Rtc { registers: [1; 14], index: 3, offset_seconds: Some(9) },
            hpet: Some(Hpet {
                period_fs: 16_000_000,
                config: 3,
                timers: vec![HpetTimer::default(); 3],
                ..Hpet::default()
            }),
            pm_timer: PmTimer { counter: 4, pm1_status: 1, pm1_enable: 0x20, io_base: 0xb000 },
        },
        remainder: None,
        xen: None,
        devices: vec![Device {
            name: "serial".into(),
            address: None,
            instance: 0,
            version: 3,
            state: DeviceState::default(),
        }],
    }
}

/// What the model holds after a stay in KVM.
fn there_and_back(vm: &Vm) -> Result<(Vm, Vec<FieldFate>)> {
    let (state, fates) = localise(vm, &Target::default())?;
    Ok((normalise(&state)?.0, fates))
}

#[test]
fn what_kvm_holds_comes_back() {
    let vm = sample();
    let (back, _) = there_and_back(&vm).unwrap();
    let mut wanted = vm;
    wanted.config = GuestConfig::default();
    wanted.memory = MemoryLayout::default();
    wanted.devices.clear();
    wanted.cpuid.msrs.pop();
    wanted.clock.tsc_emulated = false;
    wanted.irq.ioapic.redirection.truncate(24);
    wanted.irq.pci_links = PciLinks::default();
    wanted.irq.lines.pci = 0;
    wanted.timers = Timers { pit: wanted.timers.pit, ..Timers::default() };
    wanted.timers.pit.channels.iter_mut().for_each(|channel| channel.elapsed_ns = None);
    for vcpu in &mut wanted.vcpus {
        vcpu.xcr0_accumulated = None;
        vcpu.msrs.pkrs = None;
        vcpu.msrs.dr_mask = [None; 4];
        vcpu.machine_check = MachineCheck::default();
        vcpu.lapic.pending_esr = 0;
    }
    assert_same(&back, &wanted);
    let (state, _) = localise(&sample(), &Target::default()).unwrap();
    assert_same(&from_json(&to_json(&state).unwrap()).unwrap(), &state);
}

#[test]
fn a_second_stay_changes_nothing() {
    let (once, _) = there_and_back(&sample()).unwrap();
    let (state, _) = localise(&once, &Target::default()).unwrap();
    let (twice, _) = there_and_back(&once).unwrap();
    assert_eq!(twice, once);
    assert_eq!(localise(&twice, &Target::default()).unwrap().0, state);
}

/// Names the values that differ; the whole structures would fill pages.
fn assert_same<T: serde::Serialize + PartialEq>(found: &T, wanted: &T) {
    let [found_tree, wanted_tree] = [found, wanted].map(|value| serde_json::to_value(value).unwrap());
    let mut paths = Vec::new();
    leaves(&wanted_tree, "", &mut paths);
    for path in paths {
        assert_eq!(found_tree.pointer(&path), wanted_tree.pointer(&path), "{path}");
    }
    assert!(found == wanted);
}

/// Paths of all values in a JSON tree: `/vcpus/0/general/rax`.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| leaves(value, &format!("{path}/{name}"), found))
        }
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(index, value)| leaves(value, &format!("{path}/{index}"), found));
        }
        _ => found.push(path.to_owned()),
    }
}

/// `/vcpus/0/general/rax` as the list writes it: `vcpus[0].general.rax`.
fn field_name(path: &str) -> String {
    path.split('/').skip(1).fold(String::new(), |name, part| match part.parse::<usize>() {
        Ok(index) => format!("{name}[{index}]"),
        Err(_) if name.is_empty() => part.to_owned(),
        Err(_) => format!("{name}.{part}"),
    })
}

/// The fate with the longest name that covers the field; the last of several, for it was added for a reason.
fn fate_of<'a>(fates: &'a [FieldFate], field: &str) -> Option<&'a FieldFate> {
    let covers = |fate: &&FieldFate| {
        field
            .strip_prefix(fate.field.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    fates.iter().filter(covers).max_by_key(|fate| fate.field.len())
}

/// Another value of the same kind.
fn changed(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Bool(flag) => Value::from(!flag),
        Value::Number(number) => Value::from(number.as_u64()? ^ 1),
        Value::String(text) if text == "halted" => Value::from("running"),
        Value::String(text) if text == "wait-for-sipi" => Value::from("halted"),
        Value::String(text) if text == "hardware-exception" => Value::from("nmi"),
        Value::String(text) => Value::from(format!("{text}+")),
        _ => return None,
    })
}

#[test]
fn every_field_is_listed_and_every_carried_one_survives_a_change() {
    let vm = sample();
    let tree = serde_json::to_value(&vm).unwrap();
    let (_, fates) = there_and_back(&vm).unwrap();
    let mut paths = Vec::new();
    leaves(&tree, "", &mut paths);
    let mut survived = 0;
    for path in paths {
        let field = field_name(&path);
        let fate = fate_of(&fates, &field).unwrap_or_else(|| panic!("{field} is not listed"));
        let Some(value) = changed(tree.pointer(&path).unwrap()) else { continue };
        let mut changed = tree.clone();
        *changed.pointer_mut(&path).unwrap() = value.clone();
        let Ok(changed) = serde_json::from_value::<Vm>(changed) else { continue };
        // A refusal names the field; that is not silence.
        let Ok((back, fates)) = there_and_back(&changed) else { continue };
        let back = serde_json::to_value(&back).unwrap();
        if back.pointer(&path) == Some(&value) {
            survived += 1;
            continue;
        }
        // The change itself may have changed the fate: the list of the changed VM counts.
        let now = fate_of(&fates, &field).unwrap();
        assert_ne!(now.fate, Fate::Carried, "{field}: {value} is called carried ({}) and is lost", fate.note);
    }
    assert!(survived > 2000, "only {survived} values were put to the test");
}

#[test]
fn the_other_direction_lists_every_field_too() {
    let (state, _) = localise(&sample(), &Target::default()).unwrap();
    let (_, fates) = normalise(&state).unwrap();
    let mut paths = Vec::new();
    leaves(&serde_json::to_value(&state).unwrap(), "", &mut paths);
    for path in paths {
        let field = field_name(&path);
        assert!(fate_of(&fates, &field).is_some(), "{field} is not listed");
    }
}

#[test]
fn the_bus_clock_follows_the_guest_where_it_can() {
    let vm = sample();
    let (state, _) = localise(&vm, &Target::default()).unwrap();
    assert_eq!((state.apic_bus_cycle_ns, state.vcpus[0].lapic.initial_count), (10, 0x5024));
    let (state, fates) = localise(&vm, &Target { apic_bus_cycles_ns: false }).unwrap();
    assert_eq!((state.apic_bus_cycle_ns, state.vcpus[0].lapic.initial_count), (1, 0x5024 * 10));
    assert_eq!(fate_of(&fates, "vcpus[0].lapic.timer.bus_hz").unwrap().fate, Fate::Derived);
}

#[test]
fn vcpus_are_created_with_their_apic_ids() {
    let (state, _) = localise(&sample(), &Target::default()).unwrap();
    assert_eq!(state.vcpus.iter().map(|vcpu| vcpu.vcpu_id).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(state.vcpus[1].lapic.id, 2 << 24);
    let leaf_1 = state.vcpus[1].cpuid2.iter().find(|leaf| leaf.function == 1).unwrap();
    assert_eq!(leaf_1.ebx >> 24, 2);
    let mut twins = sample();
    twins.vcpus[1].lapic.id = 0;
    assert!(localise(&twins, &Target::default()).unwrap_err().to_string().contains("vcpus[1].vcpu_id"));
}
