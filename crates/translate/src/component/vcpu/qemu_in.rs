//! A vCPU from QEMU's stream: sections `cpu` and `cpu_common` (`formats/qemu/sections.md`). The other direction is
//! `qemu.rs`.

use hyperferry_qemu_stream::Section;
use hyperferry_vm_model::{
    Avx512, DescriptorTable, Device, EventKind, Fpu, GeneralRegisters, Mpx, Msrs, Mtrrs, PendingEvent,
    RunState, Segment, SegmentAttributes, SystemRegisters, VariableRange, Vcpu, Vectors,
};

use super::qemu::{descriptor_flags, hflags};
use crate::{
    Result,
    component::fields::Fields,
    qemu::Accelerator,
    refusal::{self, Policy},
    report::Report,
};

/// hflags: interrupts are held off for one instruction.
const HF_INHIBIT_IRQ: u32 = 1 << 3;
/// hflags2: NMIs are held off.
const HF2_NMI: u64 = 1 << 2;
/// KVM's names for what a vCPU does (include/uapi/linux/kvm.h).
const MP_STATE_RUNNABLE: u64 = 0;
const MP_STATE_HALTED: u64 = 3;

/// What the sections of a vCPU say.
pub(crate) struct Normalised {
    pub(crate) vcpu: Vcpu,
    /// Rate of its time-stamp counter, where it is known.
    pub(crate) tsc_khz: Option<u32>,
    /// What is left of `cpu` and of `cpu_common`.
    pub(crate) remainder: [Device; 2],
}

/// Wire to model. The local APIC is a component of its own. `ticks` is the time-stamp counter under emulation.
pub(crate) fn normalise(
    id: u32,
    section: &Section,
    common: &Section,
    accelerator: Accelerator,
    ticks: u64,
    policy: &Policy,
    report: &mut Report,
) -> Result<Normalised> {
    let mut fields = Fields::of(section);
    let mut vcpu = Vcpu { id, ..Vcpu::default() };
    general(&mut vcpu, &mut fields)?;
    system(&mut vcpu, &mut fields)?;
    vcpu.fpu = fpu(&mut fields, accelerator)?;
    vectors(&mut vcpu, &mut fields)?;
    vcpu.msrs = msrs(&mut fields)?;
    vcpu.msrs.bndcfgs = vcpu.mpx.is_some().then(|| bndcfgs(section)).flatten();
    vcpu.lapic.timer.tsc_deadline =
        fields.part_number("cpu/msr_tscdeadline", "env.tsc_deadline")?.unwrap_or(0);
    vcpu.mtrrs = mtrrs(&mut fields)?;
    vcpu.pending_event = event(id, &mut fields, policy, report)?;

    let found = u32::try_from(fields.peek("env.hflags")?).unwrap_or(0);
    vcpu.interrupt_shadow = found & HF_INHIBIT_IRQ != 0;
    vcpu.nmi_blocked = fields.peek("env.hflags2")? & HF2_NMI != 0;
    if hflags(&vcpu) == found {
        fields.derived("env.hflags", "follows from the registers");
    }
    // Emulation counts in section `timer`, and leaves this field as it was.
    vcpu.tsc = match accelerator {
        Accelerator::Kvm => fields.number("env.tsc")?,
        Accelerator::Tcg => ticks,
    };
    let tsc_khz = fields.part("cpu/tsc_khz").map(|mut part| part.signed("env.tsc_khz")).transpose()?;
    let tsc_khz = tsc_khz.and_then(|khz| u32::try_from(khz).ok());

    let shared = Fields::of(common);
    let halted = shared.peek("halted")? != 0;
    vcpu.run_state = match (accelerator, fields.peek("env.mp_state")?) {
        (Accelerator::Tcg, _) | (_, MP_STATE_RUNNABLE) if !halted => RunState::Running,
        (Accelerator::Tcg, _) | (_, MP_STATE_RUNNABLE | MP_STATE_HALTED) => RunState::Halted,
        _ => RunState::WaitForSipi,
    };
    let remainder = [fields.finish(section, report), shared.finish(common, report)];
    Ok(Normalised { vcpu, tsc_khz, remainder })
}

fn general(vcpu: &mut Vcpu, fields: &mut Fields) -> Result<()> {
    // Architectural order: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI.
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8_r15 @ ..] = fields.numbers::<u64, 16>("env.regs")?;
    let (rip, rflags) = (fields.number("env.eip")?, fields.number("env.eflags")?);
    vcpu.general = GeneralRegisters { rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8_r15, rip, rflags };
    let mut parts = fields.structures("env.segs")?;
    let s = &mut vcpu.segments;
    let segments = [&mut s.es, &mut s.cs, &mut s.ss, &mut s.ds, &mut s.fs, &mut s.gs];
    for (to, from) in segments.into_iter().zip(&mut parts) {
        *to = segment(from)?;
    }
    fields.put_back("env.segs", parts);
    for (name, to) in [("env.ldt", &mut s.ldtr), ("env.tr", &mut s.tr)] {
        let mut part = fields.structure(name)?;
        *to = segment(&mut part)?;
        fields.put_back_one(name, part);
    }
    for (name, to) in [("env.gdt", &mut vcpu.tables.gdtr), ("env.idt", &mut vcpu.tables.idtr)] {
        let mut part = fields.structure(name)?;
        *to = DescriptorTable { base: part.number("base")?, limit: part.number("limit")? };
        fields.put_back_one(name, part);
    }
    Ok(())
}

/// Emulation keeps the descriptor's high word whole, with bits of base and limit that mean nothing in this place:
/// those stay behind.
fn segment(from: &mut Fields) -> Result<Segment> {
    let flags: u32 = from.number("flags")?;
    let rights = flags >> 8 & 0xff | flags >> 12 & 0xf00;
    let segment = Segment {
        selector: from.number("selector")?,
        base: from.number("base")?,
        limit: from.number("limit")?,
        attributes: SegmentAttributes((rights & 0xfff) as u16),
    };
    if descriptor_flags(&segment) != flags {
        from.put_back_number("flags", 4, flags.into());
    }
    Ok(segment)
}

fn system(vcpu: &mut Vcpu, fields: &mut Fields) -> Result<()> {
    // DR4 and DR5 are other names for DR6 and DR7.
    let [dr0, dr1, dr2, dr3, _, _, dr6, dr7] = fields.numbers::<u64, 8>("env.dr")?;
    vcpu.system = SystemRegisters {
        cr0: fields.number("env.cr[0]")?,
        cr2: fields.number("env.cr[2]")?,
        cr3: fields.number("env.cr[3]")?,
        cr4: fields.number("env.cr[4]")?,
        xcr0: fields.number("env.xcr0")?,
        efer: fields.number("env.efer")?,
        dr: [dr0, dr1, dr2, dr3],
        dr6,
        dr7,
    };
    vcpu.xstate_bv = fields.number("env.xstate_bv")?;
    Ok(())
}

fn fpu(fields: &mut Fields, accelerator: Accelerator) -> Result<Fpu> {
    let mut fpu = Fpu {
        fcw: fields.number("env.fpuc")?,
        fsw: fields.number("env.fpus_vmstate")?,
        ftw: fields.number("env.fptag_vmstate")?,
        mxcsr: fields.number("env.mxcsr")?,
        ..Fpu::default()
    };
    let top = fpu.top();
    for (index, register) in fields.structures("env.fpregs")?.iter_mut().enumerate() {
        // Emulation indexes the registers physically, KVM by their place in the stack.
        let n = if accelerator == Accelerator::Tcg { (index + 8 - top) & 7 } else { index };
        let mut number = register.structure("tmp")?;
        let (mantissa, exponent) = (number.number::<u64>("tmp_mant")?, number.number::<u16>("tmp_exp")?);
        if let Some(st) = fpu.st.get_mut(n) {
            let (low, high) = st.split_at_mut(8);
            low.copy_from_slice(&mantissa.to_le_bytes());
            high.copy_from_slice(&exponent.to_le_bytes());
        }
    }
    if let Some(mut part) = fields.part("cpu/fpop_ip_dp") {
        fpu.fop = part.number("env.fpop")?;
        fpu.fip = part.number("env.fpip")?;
        fpu.fdp = part.number("env.fpdp")?;
    }
    Ok(fpu)
}

fn vectors(vcpu: &mut Vcpu, fields: &mut Fields) -> Result<()> {
    let mut vectors = Vectors::default();
    for (array, first, to) in
        [("env.xmm_regs[0]", 0, &mut vectors.xmm), ("env.xmm_regs[1]", 2, &mut vectors.ymm_high)]
    {
        for (register, from) in to.iter_mut().zip(&mut fields.structures(array)?) {
            quads(from, first, register)?;
        }
    }
    vcpu.vectors = vectors;
    if let Some(mut part) = fields.part("cpu/avx512") {
        let mut avx512 = Avx512 { opmask: part.numbers::<u64, 8>("env.opmask_regs")?, ..Avx512::default() };
        for (register, from) in avx512.zmm_high.iter_mut().zip(&mut part.structures("env.xmm_regs[0]")?) {
            quads(from, 4, register)?;
        }
        for (halves, from) in avx512.zmm_16_31.iter_mut().zip(&mut part.structures("env.xmm_regs[1]")?) {
            quads(from, 0, halves.as_flattened_mut())?;
        }
        vcpu.avx512 = Some(avx512);
    }
    if let Some(mut part) = fields.part("cpu/mpx") {
        let mut mpx = Mpx {
            bndcfgu: part.number("env.bndcs_regs.cfgu")?,
            bndstatus: part.number("env.bndcs_regs.sts")?,
            ..Mpx::default()
        };
        for (bounds, from) in mpx.bounds.iter_mut().zip(&mut part.structures("env.bnd_regs")?) {
            *bounds = [from.number("lb")?, from.number("ub")?];
        }
        vcpu.mpx = Some(mpx);
    }
    let pkru = fields.part("cpu/pkru").map(|mut part| part.number("env.pkru")).transpose()?;
    vcpu.pkru = pkru;
    Ok(())
}

/// Quad words of a register, numbered from `first`, into memory order.
fn quads(from: &mut Fields, first: usize, to: &mut [u8]) -> Result<()> {
    for (n, quad) in to.chunks_exact_mut(8).enumerate() {
        quad.copy_from_slice(&from.number::<u64>(&format!("_q_ZMMReg[{}]", first + n))?.to_le_bytes());
    }
    Ok(())
}

/// MPX's supervisor configuration stands in the same part as its registers.
fn bndcfgs(section: &Section) -> Option<u64> {
    section.tree.subsection("cpu/mpx")?.tree.field("env.msr_bndcfgs").ok()?.as_u64().ok()
}

fn msrs(fields: &mut Fields) -> Result<Msrs> {
    Ok(Msrs {
        sysenter_cs: fields.number("env.sysenter_cs")?,
        sysenter_esp: fields.number("env.sysenter_esp")?,
        sysenter_eip: fields.number("env.sysenter_eip")?,
        star: fields.number("env.star")?,
        lstar: fields.number("env.lstar")?,
        cstar: fields.number("env.cstar")?,
        sfmask: fields.number("env.fmask")?,
        kernel_gs_base: fields.number("env.kernelgsbase")?,
        tsc_aux: fields.number("env.tsc_aux")?,
        pat: fields.number("env.pat")?,
        tsc_adjust: fields.part_number("cpu/msr_tsc_adjust", "env.tsc_adjust")?.unwrap_or(0),
        spec_ctrl: fields.part_number("cpu/spec_ctrl", "env.spec_ctrl")?,
        xss: fields.part_number("cpu/xss", "env.xss")?,
        pkrs: fields.part_number("cpu/pkrs", "env.pkrs")?,
        virt_spec_ctrl: fields.part_number("cpu/virt_ssbd", "env.virt_ssbd")?,
        ..Msrs::default()
    })
}

fn mtrrs(fields: &mut Fields) -> Result<Mtrrs> {
    let mut mtrrs = Mtrrs {
        // Eight variable ranges, fixed ranges, write combining (target/i386/cpu.h, MSR_MTRRcap_*).
        cap: 0x508,
        def_type: fields.number("env.mtrr_deftype")?,
        fixed: fields.numbers("env.mtrr_fixed")?,
        ..Mtrrs::default()
    };
    for (range, from) in mtrrs.variable.iter_mut().zip(&mut fields.structures("env.mtrr_var")?) {
        *range = VariableRange { base: from.number("base")?, mask: from.number("mask")? };
    }
    Ok(mtrrs)
}

fn event(id: u32, fields: &mut Fields, policy: &Policy, report: &mut Report) -> Result<Option<PendingEvent>> {
    let interrupt = fields.signed("env.interrupt_injected")?;
    let exception = fields.signed("env.exception_nr")?;
    let soft = fields.flag("env.soft_interrupt")?;
    let nmi = fields.flag("env.nmi_injected")? | fields.flag("env.nmi_pending")?;
    let has_error_code = fields.peek("env.has_error_code")? != 0;
    let (kind, vector) = if exception >= 0 {
        if has_error_code {
            let what = format!(
                "vCPU {id} was stopped while exception {exception} was delivered, and QEMU's streams leave out its error code"
            );
            policy.refuse(report, refusal::PENDING_EVENT, what, "save the guest again");
        }
        (EventKind::HardwareException, exception)
    } else if nmi {
        (EventKind::Nmi, 2)
    } else if soft {
        (EventKind::SoftwareInterrupt, interrupt)
    } else {
        (EventKind::ExternalInterrupt, interrupt)
    };
    Ok(u8::try_from(vector).ok().map(|vector| PendingEvent { kind, vector, error_code: None }))
}
