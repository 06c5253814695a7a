//! A vCPU in Xen's HVM_CONTEXT: CPU, CPU_XSAVE, CPU_MSR, MTRR, VMCE_VCPU and TSC_ADJUST (`formats/xen/hvm.md`).

use hyperferry_vm_model::{
    CpuidPolicy, DescriptorTable, DescriptorTables, EventKind, GeneralRegisters, MachineCheck, Mtrrs,
    PendingEvent, RunState, Segment, SegmentAttributes, Segments, SystemRegisters, VariableRange, Vcpu,
    Vectors, xstate,
};
use hyperferry_xen_stream::hvm;

use super::fxsave::{self, XsaveArea};
use crate::{
    refusal::{self, Policy},
    report::{Report, Severity},
    xen::Target,
};

const STAGE: &str = "Xen -> model";
const BACK: &str = "model -> Xen";
/// CR4.OSXSAVE: the guest uses XSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;

/// The records of one vCPU; those that a stream may leave out are optional.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    pub(crate) cpu: Option<hvm::Cpu>,
    pub(crate) xsave: Option<hvm::CpuXsave>,
    pub(crate) msr: Option<hvm::CpuMsr>,
    pub(crate) mtrr: Option<hvm::Mtrr>,
    pub(crate) vmce: Option<hvm::VmceVcpu>,
    pub(crate) tsc_adjust: Option<hvm::TscAdjust>,
}

/// Wire to model. The local APIC is a component of its own.
pub(crate) fn normalise(
    id: u32,
    records: &Records,
    cpuid: &CpuidPolicy,
    policy: &Policy,
    report: &mut Report,
) -> Vcpu {
    let mut vcpu = Vcpu { id, ..Vcpu::default() };
    match &records.cpu {
        Some(cpu) => normalise_cpu(&mut vcpu, cpu, report),
        None => {
            vcpu.run_state = RunState::WaitForSipi;
            let what = format!("vCPU {id} was never started, or waits halted with interrupts off");
            report.find("vcpu-down", Severity::Note, what, "it stays down until the guest starts it");
        }
    }
    normalise_xstate(&mut vcpu, records, cpuid, policy, report);
    if let Some(record) = &records.msr {
        normalise_msr(&mut vcpu, record, report);
    }
    if let Some(record) = &records.mtrr {
        normalise_mtrr(&mut vcpu, record, report);
    }
    if let Some(record) = &records.vmce {
        vcpu.machine_check = MachineCheck {
            cap: record.caps,
            ctl2: [record.mci_ctl2_bank0, record.mci_ctl2_bank1],
            ext_ctl: record.mcg_ext_ctl,
        };
        report.record(STAGE, name("VMCE_VCPU", id)).carried(&[
            "caps",
            "mci_ctl2_bank0",
            "mci_ctl2_bank1",
            "mcg_ext_ctl",
        ]);
    }
    if let Some(record) = &records.tsc_adjust {
        vcpu.msrs.tsc_adjust = record.tsc_adjust;
        report.record(STAGE, name("TSC_ADJUST", id)).carried(&["tsc_adjust"]);
    }
    vcpu
}

fn name(record: &str, id: u32) -> String {
    format!("HVM_CONTEXT {record}[{id}]")
}

fn normalise_cpu(vcpu: &mut Vcpu, cpu: &hvm::Cpu, report: &mut Report) {
    vcpu.general = GeneralRegisters {
        rax: cpu.rax,
        rbx: cpu.rbx,
        rcx: cpu.rcx,
        rdx: cpu.rdx,
        rsi: cpu.rsi,
        rdi: cpu.rdi,
        rbp: cpu.rbp,
        rsp: cpu.rsp,
        r8_r15: cpu.r8_r15,
        rip: cpu.rip,
        rflags: cpu.rflags,
    };
    let from = &cpu.segments;
    vcpu.segments = Segments {
        es: segment(&from.es),
        cs: segment(&from.cs),
        ss: segment(&from.ss),
        ds: segment(&from.ds),
        fs: segment(&from.fs),
        gs: segment(&from.gs),
        ldtr: segment(&from.ldtr),
        tr: segment(&from.tr),
    };
    vcpu.tables = DescriptorTables {
        gdtr: DescriptorTable { base: from.gdtr.base, limit: from.gdtr.limit },
        idtr: DescriptorTable { base: from.idtr.base, limit: from.idtr.limit },
    };
    vcpu.system = SystemRegisters {
        cr0: cpu.cr0,
        cr2: cpu.cr2,
        cr3: cpu.cr3,
        cr4: cpu.cr4,
        xcr0: 1,
        efer: cpu.msr_efer,
        dr: [cpu.dr0, cpu.dr1, cpu.dr2, cpu.dr3],
        dr6: cpu.dr6,
        dr7: cpu.dr7,
    };
    let legacy = fxsave::legacy(&cpu.fpu_regs);
    vcpu.fpu = if cpu.flags & hvm::Cpu::FPU_INITIALISED != 0 {
        legacy.fpu
    } else {
        hyperferry_vm_model::Fpu::default()
    };
    vcpu.vectors = Vectors { xmm: legacy.xmm, ..Vectors::default() };
    let msrs = &mut vcpu.msrs;
    msrs.sysenter_cs = cpu.sysenter_cs;
    msrs.sysenter_esp = cpu.sysenter_esp;
    msrs.sysenter_eip = cpu.sysenter_eip;
    msrs.kernel_gs_base = cpu.shadow_gs;
    msrs.star = cpu.msr_star;
    msrs.lstar = cpu.msr_lstar;
    msrs.cstar = cpu.msr_cstar;
    msrs.sfmask = cpu.msr_syscall_mask;
    msrs.tsc_aux = cpu.msr_tsc_aux;
    vcpu.tsc = cpu.tsc;
    vcpu.pending_event = pending_event(cpu.pending_event, cpu.error_code);

    report
        .record(STAGE, name("CPU", vcpu.id))
        .carried(&[
            "rax",
            "rbx",
            "rcx",
            "rdx",
            "rbp",
            "rsi",
            "rdi",
            "rsp",
            "r8_r15",
            "rip",
            "rflags",
            "cr0",
            "cr2",
            "cr3",
            "cr4",
            "dr0",
            "dr1",
            "dr2",
            "dr3",
            "dr6",
            "dr7",
            "segments",
            "sysenter_cs",
            "sysenter_esp",
            "sysenter_eip",
            "shadow_gs",
            "msr_lstar",
            "msr_star",
            "msr_cstar",
            "msr_syscall_mask",
            "msr_efer",
            "msr_tsc_aux",
            "tsc",
            "pending_event",
            "error_code",
        ])
        .derived("fpu_regs", "CPU_XSAVE, where there is one, holds the same and more")
        .derived("flags", "without FPU_INITIALISED the x87 registers are in their initial state")
        .dropped("msr_flags", "obsolete, always 0");
}

fn segment(segment: &hvm::Segment) -> Segment {
    // Streams from old Intel hosts hold VMX's packing, with AVL, L, D/B and G in bits 15:12; Xen's loader folds
    // them in the same case (xen/arch/x86/hvm/hvm.c, hvm_load_cpu_ctxt).
    let rights = segment.arbytes;
    let rights = if rights & 0xf000 != 0 && rights & 0xf00 == 0 {
        rights & 0xff | rights >> 4 & 0xf00
    } else {
        rights
    };
    Segment {
        // A selector has 16 bits; the record's field is wider.
        selector: (segment.selector & 0xffff) as u16,
        base: segment.base,
        limit: segment.limit,
        attributes: SegmentAttributes((rights & 0xfff) as u16),
    }
}

/// The event word: vector 7:0, type 10:8, error code valid 11, valid 31.
fn pending_event(event: u32, error_code: u32) -> Option<PendingEvent> {
    if event >> 31 == 0 {
        return None;
    }
    let kind = match event >> 8 & 7 {
        0 => EventKind::ExternalInterrupt,
        2 => EventKind::Nmi,
        3 => EventKind::HardwareException,
        4 => EventKind::SoftwareInterrupt,
        5 => EventKind::PrivilegedSoftwareException,
        _ => EventKind::SoftwareException,
    };
    let error_code = (event >> 11 & 1 == 1).then_some(error_code);
    Some(PendingEvent { kind, vector: (event & 0xff) as u8, error_code })
}

fn normalise_xstate(
    vcpu: &mut Vcpu,
    records: &Records,
    cpuid: &CpuidPolicy,
    policy: &Policy,
    report: &mut Report,
) {
    let id = vcpu.id;
    let Some(record) = &records.xsave else {
        // XMM and x87 come from CPU.fpu_regs: both may be live, unless the vCPU has never used them.
        let used = records.cpu.as_ref().is_some_and(|cpu| cpu.flags & hvm::Cpu::FPU_INITIALISED != 0);
        vcpu.xstate_bv = if used { xstate::X87 | xstate::SSE } else { 0 };
        if vcpu.system.cr4 & CR4_OSXSAVE != 0 {
            let available =
                cpuid.leaf(0xd, 0).map_or(3, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
            // The guest turned XSAVE on and Xen did not see XCR0 being written, as happens where the CPU that Xen
            // runs on is itself emulated. All that the policy offers is what an operating system turns on.
            vcpu.system.xcr0 = available & xstate::NAMED | xstate::X87;
            let what = format!(
                "vCPU {id} uses XSAVE and the stream has no CPU_XSAVE record; XCR0 is taken as {:#x}, all that its CPUID policy offers",
                vcpu.system.xcr0
            );
            report.find("xsave-missing", Severity::Warning, what, "AVX registers start as zero");
            report
                .record(STAGE, name("CPU_XSAVE", id))
                .defaulted("xcr0", "the record is missing; taken from CPUID leaf 0xd")
                .defaulted("ymm_high", "the record is missing; zero");
        }
        return;
    };
    let area = XsaveArea::new(&record.save_area, cpuid);
    let legacy = area.legacy();
    vcpu.system.xcr0 = record.xcr0;
    vcpu.xcr0_accumulated = Some(record.xcr0_accum);
    vcpu.xstate_bv = area.xstate_bv();
    vcpu.fpu = legacy.fpu;
    vcpu.vectors = area.vectors(legacy.xmm);
    let enabled = |component: u64| record.xcr0 & component != 0;
    vcpu.avx512 = enabled(xstate::OPMASK).then(|| area.avx512());
    vcpu.mpx = enabled(xstate::BNDREGS).then(|| area.mpx());
    vcpu.pkru = enabled(xstate::PKRU).then(|| area.pkru());

    let unknown = area.xstate_bv() & !xstate::NAMED;
    if unknown != 0 || area.is_compacted() {
        let what = format!(
            "vCPU {id} holds XSAVE state that we do not carry (components {unknown:#x}{})",
            if area.is_compacted() { ", compacted format" } else { "" }
        );
        policy.refuse(
            report,
            refusal::XSTATE,
            what,
            "disable the CPU feature for the guest (cpuid= in its configuration)",
        );
    }
    report
        .record(STAGE, name("CPU_XSAVE", id))
        .carried(&["xcr0", "xcr0_accum", "xstate_bv", "save_area"])
        .derived("xcomp_bv", "0 is the standard format; the compacted one is refused")
        .dropped("xfeature_mask", "the source host's components, ignored by Xen as well");
}

fn normalise_msr(vcpu: &mut Vcpu, record: &hvm::CpuMsr, report: &mut Report) {
    let mut ledger = report.record(STAGE, name("CPU_MSR", vcpu.id));
    for entry in &record.msr {
        let value = Some(entry.val);
        let field = format!("msr {:#x}", entry.index);
        let msrs = &mut vcpu.msrs;
        match entry.index {
            0x48 => msrs.spec_ctrl = value,
            0x140 => msrs.misc_features_enables = value,
            0x6e1 => msrs.pkrs = value,
            0xd90 => msrs.bndcfgs = value,
            0xda0 => msrs.xss = value,
            0xc001_011f => msrs.virt_spec_ctrl = value,
            0xc001_1027 => msrs.dr_mask[0] = value,
            0xc001_1019 => msrs.dr_mask[1] = value,
            0xc001_101a => msrs.dr_mask[2] = value,
            0xc001_101b => msrs.dr_mask[3] = value,
            _ => {
                ledger.dropped(&field, format!("no place in the model (value {:#x})", entry.val));
                continue;
            }
        }
        ledger.carried(&[&field]);
    }
}

fn normalise_mtrr(vcpu: &mut Vcpu, record: &hvm::Mtrr, report: &mut Report) {
    vcpu.msrs.pat = record.msr_pat_cr;
    let mut variable = [VariableRange::default(); 8];
    for (to, [base, mask]) in variable.iter_mut().zip(record.msr_mtrr_var.as_chunks::<2>().0) {
        *to = VariableRange { base: *base, mask: *mask };
    }
    let id = vcpu.id;
    let mut ledger = report.record(STAGE, name("MTRR", id));
    ledger.carried(&["msr_pat_cr", "msr_mtrr_fixed", "msr_mtrr_cap", "msr_mtrr_def_type"]);
    // Every Xen up to 4.20 writes range 0 into all eight places (xen/arch/x86/hvm/mtrr.c, hvm_save_mtrr_msr).
    if variable.iter().all(|range| *range == variable[0]) && variable[0].mask != 0 {
        variable[1..].fill(VariableRange::default());
        ledger.derived(
            "msr_mtrr_var",
            "eight equal ranges: only range 0 is known, the others are taken as unused",
        );
    } else {
        ledger.carried(&["msr_mtrr_var"]);
    }
    vcpu.mtrrs = Mtrrs {
        cap: record.msr_mtrr_cap,
        def_type: record.msr_mtrr_def_type,
        fixed: record.msr_mtrr_fixed,
        variable,
    };
}

/// Model to wire. The local APIC is a component of its own.
pub(crate) fn localise(vcpu: &Vcpu, target: &Target<'_>, report: &mut Report) -> Records {
    let id = vcpu.id;
    let records = Records {
        cpu: (vcpu.run_state != RunState::WaitForSipi).then(|| localise_cpu(vcpu)),
        xsave: localise_xsave(vcpu, target, report),
        msr: localise_msr(vcpu),
        mtrr: Some(localise_mtrr(vcpu, target)),
        vmce: Some(localise_vmce(vcpu, target)),
        tsc_adjust: Some(hvm::TscAdjust { tsc_adjust: vcpu.msrs.tsc_adjust }),
    };
    let mut ledger = report.record(BACK, format_args!("vcpu[{id}]"));
    ledger.carried(&["general", "segments", "tables", "system", "fpu", "vectors", "msrs", "tsc"]);
    ledger.carried(&["pending_event"]);
    match vcpu.run_state {
        RunState::Running => ledger.carried(&["run_state"]),
        RunState::WaitForSipi => ledger.derived("run_state", "no CPU record: the vCPU is down"),
        RunState::Halted => {
            let note = "Xen wakes every vCPU that has a CPU record; it runs the instruction after HLT once";
            ledger.derived("run_state", note)
        }
    };
    if records.xsave.is_some() {
        ledger.carried(&["avx512", "mpx", "pkru", "xstate_bv"]);
        ledger.derived("xcr0_accumulated", "at least XCR0 and the components in use");
    } else {
        let note = "a vCPU that never enabled more than x87 and SSE has no CPU_XSAVE record";
        ledger.derived("avx512, mpx, pkru, xstate_bv, xcr0_accumulated", note);
    }
    ledger.carried(&["mtrrs"]);
    if target.home {
        ledger.carried(&["machine_check"]);
    } else {
        ledger.defaulted("machine_check", "no machine-check banks beyond Xen's two");
    }
    for (name, set) in [("interrupt_shadow", vcpu.interrupt_shadow), ("nmi_blocked", vcpu.nmi_blocked)] {
        let note = if set {
            "no place in Xen's stream: an interrupt may come one instruction early"
        } else {
            "not set"
        };
        ledger.dropped(name, note);
    }
    records
}

fn localise_cpu(vcpu: &Vcpu) -> hvm::Cpu {
    /// CR0.ET, which every CPU since the 80486 shows and Xen asks for.
    const CR0_ET: u64 = 1 << 4;
    let (g, s, system, msrs) = (&vcpu.general, &vcpu.segments, &vcpu.system, &vcpu.msrs);
    let table = |table: &DescriptorTable| hvm::Table { limit: table.limit, base: table.base };
    // x87 and SSE in their initial state, as those of a vCPU that has never touched them: nothing to load.
    let used = xstate::in_use(vcpu) & (xstate::X87 | xstate::SSE) != 0 || vcpu.xcr0_accumulated.is_some();
    let (pending_event, error_code) = vcpu.pending_event.map_or((0, 0), event_word);
    hvm::Cpu {
        fpu_regs: if used { fxsave::legacy_image(&vcpu.fpu, &vcpu.vectors.xmm) } else { [0; 512] },
        rax: g.rax,
        rbx: g.rbx,
        rcx: g.rcx,
        rdx: g.rdx,
        rbp: g.rbp,
        rsi: g.rsi,
        rdi: g.rdi,
        rsp: g.rsp,
        r8_r15: g.r8_r15,
        rip: g.rip,
        rflags: g.rflags,
        cr0: system.cr0 | CR0_ET,
        cr2: system.cr2,
        cr3: system.cr3,
        cr4: system.cr4,
        dr0: system.dr[0],
        dr1: system.dr[1],
        dr2: system.dr[2],
        dr3: system.dr[3],
        dr6: system.dr6 & 0xffff_ffff,
        dr7: system.dr7 & 0xffff_ffff,
        segments: hvm::Segments {
            cs: segment_record(&s.cs),
            ds: segment_record(&s.ds),
            es: segment_record(&s.es),
            fs: segment_record(&s.fs),
            gs: segment_record(&s.gs),
            ss: segment_record(&s.ss),
            tr: segment_record(&s.tr),
            ldtr: segment_record(&s.ldtr),
            idtr: table(&vcpu.tables.idtr),
            gdtr: table(&vcpu.tables.gdtr),
        },
        sysenter_cs: msrs.sysenter_cs,
        sysenter_esp: msrs.sysenter_esp,
        sysenter_eip: msrs.sysenter_eip,
        shadow_gs: msrs.kernel_gs_base,
        msr_flags: 0,
        msr_lstar: msrs.lstar,
        msr_star: msrs.star,
        msr_cstar: msrs.cstar,
        msr_syscall_mask: msrs.sfmask,
        msr_efer: system.efer,
        msr_tsc_aux: msrs.tsc_aux & 0xffff_ffff,
        tsc: vcpu.tsc,
        pending_event,
        error_code,
        flags: if used { hvm::Cpu::FPU_INITIALISED } else { 0 },
    }
}

fn segment_record(segment: &Segment) -> hvm::Segment {
    hvm::Segment {
        selector: segment.selector.into(),
        limit: segment.limit,
        base: segment.base,
        arbytes: (segment.attributes.0 & 0xfff).into(),
    }
}

/// What [`pending_event`] reads.
fn event_word(event: PendingEvent) -> (u32, u32) {
    let kind = match event.kind {
        EventKind::ExternalInterrupt => 0,
        EventKind::Nmi => 2,
        EventKind::HardwareException => 3,
        EventKind::SoftwareInterrupt => 4,
        EventKind::PrivilegedSoftwareException => 5,
        EventKind::SoftwareException => 6,
    };
    let word = u32::from(event.vector) | kind << 8 | u32::from(event.error_code.is_some()) << 11 | 1 << 31;
    (word, event.error_code.unwrap_or(0))
}

fn localise_xsave(vcpu: &Vcpu, target: &Target<'_>, report: &mut Report) -> Option<hvm::CpuXsave> {
    let xcr0 = vcpu.system.xcr0;
    let enabled = xcr0 > 1 || vcpu.system.cr4 & CR4_OSXSAVE != 0;
    if vcpu.xcr0_accumulated.is_none() && !enabled {
        return None;
    }
    let accumulated = vcpu.xcr0_accumulated.unwrap_or(0) | xcr0 | xstate::in_use(vcpu) | xstate::X87;
    let offered = target.cpuid.leaf(0xd, 0).map_or(0, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
    let save_area = match fxsave::area(vcpu, accumulated, target.cpuid) {
        Ok(area) if accumulated & !offered == 0 || offered == 0 => area,
        _ => {
            let what = format!(
                "vCPU {} has XSAVE components {accumulated:#x}, and the Xen host offers {offered:#x}",
                vcpu.id
            );
            target.policy.refuse(report, refusal::XSTATE, what, "choose a Xen host whose CPU has them");
            return None;
        }
    };
    // The components of the host that saved; Xen does not look at them.
    Some(hvm::CpuXsave { xfeature_mask: offered, xcr0, xcr0_accum: accumulated, save_area })
}

/// Only values that are not 0, in Xen's order (xen/arch/x86/hvm/hvm.c, msrs_to_send).
fn localise_msr(vcpu: &Vcpu) -> Option<hvm::CpuMsr> {
    let msrs = &vcpu.msrs;
    let [mask0, mask1, mask2, mask3] = msrs.dr_mask;
    let values = [
        (0x48, msrs.spec_ctrl),
        (0x140, msrs.misc_features_enables),
        (0x6e1, msrs.pkrs),
        (0xd90, msrs.bndcfgs),
        (0xda0, msrs.xss),
        (0xc001_011f, msrs.virt_spec_ctrl),
        (0xc001_1027, mask0),
        (0xc001_1019, mask1),
        (0xc001_101a, mask2),
        (0xc001_101b, mask3),
    ];
    let entry = |(index, value): (u32, Option<u64>)| {
        value.filter(|value| *value != 0).map(|val| hvm::Msr { index, val })
    };
    let msr: Vec<_> = values.into_iter().filter_map(entry).collect();
    (!msr.is_empty()).then_some(hvm::CpuMsr { unset: 0, msr })
}

fn localise_mtrr(vcpu: &Vcpu, target: &Target<'_>) -> hvm::Mtrr {
    /// What Xen shows a guest: 8 variable ranges, fixed ranges, write combining.
    const XEN_MTRR_CAP: u64 = 0x508;
    let mtrrs = &vcpu.mtrrs;
    let mut msr_mtrr_var = [0; 16];
    for ([base, mask], range) in msr_mtrr_var.as_chunks_mut::<2>().0.iter_mut().zip(&mtrrs.variable) {
        // Bits beyond the guest's physical addresses are reserved.
        *base = range.base & target.physical_mask();
        *mask = range.mask & target.physical_mask();
    }
    hvm::Mtrr {
        msr_pat_cr: vcpu.msrs.pat,
        msr_mtrr_var,
        msr_mtrr_fixed: mtrrs.fixed,
        msr_mtrr_cap: if target.home { mtrrs.cap } else { XEN_MTRR_CAP },
        msr_mtrr_def_type: mtrrs.def_type,
    }
}

fn localise_vmce(vcpu: &Vcpu, target: &Target<'_>) -> hvm::VmceVcpu {
    /// Xen's own two banks, and no capability that depends on the host.
    const XEN_MCG_CAP: u64 = 2;
    if !target.home {
        return hvm::VmceVcpu { caps: XEN_MCG_CAP, ..hvm::VmceVcpu::default() };
    }
    let MachineCheck { cap, ctl2: [mci_ctl2_bank0, mci_ctl2_bank1], ext_ctl } = vcpu.machine_check;
    hvm::VmceVcpu { caps: cap, mci_ctl2_bank0, mci_ctl2_bank1, mcg_ext_ctl: ext_ctl }
}
