//! A vCPU in QEMU's stream: sections `cpu` and `cpu_common` (`formats/qemu/sections.md`). The other direction is
//! `qemu_in.rs`.

use hyperferry_qemu_stream::{Subsection, Tree, Value};
use hyperferry_vm_model::{Avx512, EventKind, Mpx, Mtrrs, RunState, Segment, Vcpu, xstate};

use crate::{
    Result,
    qemu::{Accelerator, Target},
    refusal,
    report::Report,
};

const STAGE: &str = "model -> QEMU";

/// Requests to an emulated CPU (include/exec/cpu-all.h, target/i386/cpu.h): look for interrupts; take an NMI.
const INTERRUPT_POLL: u64 = 0x10;
const INTERRUPT_NMI: u64 = 0x200;

/// Model to wire: fills in a `cpu` section that the destination's own QEMU wrote.
pub(crate) fn localise(
    vcpu: &Vcpu,
    tsc_khz: u32,
    tree: &mut Tree,
    target: &Target<'_>,
    report: &mut Report,
) -> Result<()> {
    general(vcpu, tree)?;
    system(vcpu, target.accelerator, tree)?;
    fpu(vcpu, target.accelerator, tree)?;
    vectors(vcpu, tree)?;
    msrs(vcpu, tree)?;
    mtrrs(&vcpu.mtrrs, target, tree)?;
    event(vcpu, tree, target, report)?;
    tree.set_u64(
        "env.mp_state",
        match vcpu.run_state {
            RunState::Running => 0,
            RunState::WaitForSipi => 1,
            RunState::Halted => 3,
        },
    )?;
    tree.set_u64("env.hflags", hflags(vcpu).into())?;
    // Bit 0: global interrupt flag, always set outside nested virtualization; bit 2: NMIs are blocked.
    tree.set_u64("env.hflags2", 1 | u64::from(vcpu.nmi_blocked) << 2)?;
    tree.set_u64("env.tsc", vcpu.tsc)?;
    if target.accelerator == Accelerator::Kvm && tsc_khz > 0 {
        put(tree, "cpu/tsc_khz", &[("env.tsc_khz", Value::Signed { width: 8, value: tsc_khz.into() })]);
    }
    account(vcpu, report);
    Ok(())
}

/// Model to wire: `cpu_common`.
pub(crate) fn localise_common(vcpu: &Vcpu, tree: &mut Tree, accelerator: Accelerator) -> Result<()> {
    tree.set_u64("halted", u64::from(vcpu.run_state != RunState::Running))?;
    // Emulation looks at the local APIC only when told to; an NMI that is on its way is asked for again.
    let nmi = vcpu.pending_event.is_some_and(|event| event.kind == EventKind::Nmi);
    let request = match accelerator {
        Accelerator::Kvm => 0,
        Accelerator::Tcg => INTERRUPT_POLL | if nmi { INTERRUPT_NMI } else { 0 },
    };
    tree.set_u64("interrupt_request", request)?;
    Ok(())
}

fn general(vcpu: &Vcpu, tree: &mut Tree) -> Result<()> {
    let g = &vcpu.general;
    // Architectural order: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI.
    let low = [g.rax, g.rcx, g.rdx, g.rbx, g.rsp, g.rbp, g.rsi, g.rdi];
    for (index, value) in low.iter().chain(&g.r8_r15).enumerate() {
        tree.set_u64_at("env.regs", index, *value)?;
    }
    tree.set_u64("env.eip", g.rip)?;
    tree.set_u64("env.eflags", g.rflags)?;
    let s = &vcpu.segments;
    for (index, from) in [s.es, s.cs, s.ss, s.ds, s.fs, s.gs].iter().enumerate() {
        if let Value::Struct(to) = tree.element_mut("env.segs", index)? {
            segment(from, to)?;
        }
    }
    segment(&s.ldtr, tree.struct_mut("env.ldt")?)?;
    segment(&s.tr, tree.struct_mut("env.tr")?)?;
    for (name, table) in [("env.gdt", vcpu.tables.gdtr), ("env.idt", vcpu.tables.idtr)] {
        let to = tree.struct_mut(name)?;
        to.set_u64("base", table.base)?;
        to.set_u64("limit", table.limit.into())?;
    }
    Ok(())
}

fn segment(from: &Segment, to: &mut Tree) -> Result<()> {
    to.set_u64("selector", from.selector.into())?;
    to.set_u64("base", from.base)?;
    to.set_u64("limit", from.limit.into())?;
    to.set_u64("flags", descriptor_flags(from).into())?;
    Ok(())
}

/// The high word of the segment's descriptor, which is how QEMU keeps access rights.
pub(super) fn descriptor_flags(segment: &Segment) -> u32 {
    let rights = u32::from(segment.attributes.0);
    (rights & 0xff) << 8 | (rights & 0xf00) << 12
}

fn system(vcpu: &Vcpu, accelerator: Accelerator, tree: &mut Tree) -> Result<()> {
    let s = &vcpu.system;
    for (name, value) in
        [("env.cr[0]", s.cr0), ("env.cr[2]", s.cr2), ("env.cr[3]", s.cr3), ("env.cr[4]", s.cr4)]
    {
        tree.set_u64(name, value)?;
    }
    // DR4 and DR5 are other names for DR6 and DR7: copies under KVM, unused in emulation.
    let (dr4, dr5) = if accelerator == Accelerator::Kvm { (s.dr6, s.dr7) } else { (0, 0) };
    for (index, value) in s.dr.iter().chain(&[dr4, dr5, s.dr6, s.dr7]).enumerate() {
        tree.set_u64_at("env.dr", index, *value)?;
    }
    tree.set_u64("env.efer", s.efer)?;
    tree.set_u64("env.xcr0", s.xcr0)?;
    tree.set_u64("env.xstate_bv", vcpu.xstate_bv)?;
    Ok(())
}

/// The flags that QEMU derives from other registers. KVM computes them again; emulation takes them from here.
pub(super) fn hflags(vcpu: &Vcpu) -> u32 {
    const CR4_OSFXSR: u64 = 1 << 9;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const CR4_SMAP: u64 = 1 << 21;
    const CR4_UMIP: u64 = 1 << 11;
    const EFER_LMA: u64 = 1 << 10;
    const EFER_SVME: u64 = 1 << 12;
    const RFLAGS_VM: u64 = 1 << 17;
    let (s, seg, rflags) = (&vcpu.system, &vcpu.segments, vcpu.general.rflags);
    let protected = s.cr0 & 1 != 0;
    let long_mode = s.efer & EFER_LMA != 0;
    let mut flags = u32::from(seg.ss.attributes.dpl());
    let mut set = |bit: u32, on: bool| flags |= u32::from(on) << bit;
    set(3, vcpu.interrupt_shadow);
    set(7, protected);
    set(8, rflags >> 8 & 1 == 1);
    set(9, s.cr0 >> 1 & 1 == 1);
    set(10, s.cr0 >> 2 & 1 == 1);
    set(11, s.cr0 >> 3 & 1 == 1);
    set(12, rflags >> 12 & 1 == 1);
    set(13, rflags >> 13 & 1 == 1);
    set(14, long_mode);
    set(17, rflags & RFLAGS_VM != 0);
    set(20, s.efer & EFER_SVME != 0);
    set(22, s.cr4 & CR4_OSFXSR != 0);
    set(23, s.cr4 & CR4_SMAP != 0);
    set(27, s.cr4 & CR4_UMIP != 0);
    let avx = xstate::SSE | xstate::AVX;
    set(28, s.cr4 & CR4_OSXSAVE != 0 && s.xcr0 & avx == avx);
    if long_mode && seg.cs.attributes.long() {
        set(4, true);
        set(5, true);
        set(15, true);
    } else {
        let code32 = seg.cs.attributes.default_big();
        set(4, code32);
        set(5, seg.ss.attributes.default_big());
        let based = seg.ds.base | seg.es.base | seg.ss.base != 0;
        set(6, !protected || rflags & RFLAGS_VM != 0 || !code32 || based);
    }
    flags
}

fn fpu(vcpu: &Vcpu, accelerator: Accelerator, tree: &mut Tree) -> Result<()> {
    let fpu = &vcpu.fpu;
    tree.set_u64("env.fpuc", fpu.fcw.into())?;
    tree.set_u64("env.fpus_vmstate", fpu.fsw.into())?;
    tree.set_u64("env.fptag_vmstate", fpu.ftw.into())?;
    tree.set_u64("env.fpregs_format_vmstate", 0)?;
    tree.set_u64("env.mxcsr", fpu.mxcsr.into())?;
    for (n, st) in fpu.st.iter().enumerate() {
        // Emulation indexes the registers physically, KVM by their place in the stack.
        let index = if accelerator == Accelerator::Tcg { (fpu.top() + n) & 7 } else { n };
        let (mantissa, exponent) = st.split_at(8);
        if let Value::Struct(register) = tree.element_mut("env.fpregs", index)? {
            let number = register.struct_mut("tmp")?;
            number.set_u64("tmp_mant", little_endian(mantissa))?;
            number.set_u64("tmp_exp", little_endian(exponent))?;
        }
    }
    if (fpu.fop, fpu.fip, fpu.fdp) == (0, 0, 0) {
        tree.remove_subsection("cpu/fpop_ip_dp");
    } else {
        let fields = [
            ("env.fpop", Value::Unsigned { width: 2, value: fpu.fop.into() }),
            ("env.fpip", Value::Unsigned { width: 8, value: fpu.fip }),
            ("env.fpdp", Value::Unsigned { width: 8, value: fpu.fdp }),
        ];
        put(tree, "cpu/fpop_ip_dp", &fields);
    }
    Ok(())
}

fn vectors(vcpu: &Vcpu, tree: &mut Tree) -> Result<()> {
    for (n, (low, high)) in vcpu.vectors.xmm.iter().zip(&vcpu.vectors.ymm_high).enumerate() {
        for (array, fields, bytes) in [
            ("env.xmm_regs[0]", ["_q_ZMMReg[0]", "_q_ZMMReg[1]"], low),
            ("env.xmm_regs[1]", ["_q_ZMMReg[2]", "_q_ZMMReg[3]"], high),
        ] {
            if let Value::Struct(register) = tree.element_mut(array, n)? {
                for (field, quad) in fields.into_iter().zip(bytes.chunks(8)) {
                    register.set_u64(field, little_endian(quad))?;
                }
            }
        }
    }
    match &vcpu.avx512 {
        Some(avx512) => put(tree, "cpu/avx512", &avx512_fields(avx512)),
        None => drop(tree.remove_subsection("cpu/avx512")),
    }
    match &vcpu.mpx {
        Some(mpx) => put(tree, "cpu/mpx", &mpx_fields(mpx, vcpu.msrs.bndcfgs.unwrap_or(0))),
        None => drop(tree.remove_subsection("cpu/mpx")),
    }
    if let Some(pkru) = vcpu.pkru {
        put(tree, "cpu/pkru", &[("env.pkru", Value::Unsigned { width: 4, value: pkru.into() })]);
    }
    Ok(())
}

/// Quad words of a register, numbered from `first`, under the names that QEMU gives them.
fn quads(name: &str, first: usize, bytes: &[u8]) -> Value {
    let mut register = Tree::new(name);
    for (n, quad) in bytes.chunks(8).enumerate() {
        register.fields.push((format!("_q_ZMMReg[{}]", first + n), word(little_endian(quad))));
    }
    Value::Struct(register)
}

fn avx512_fields(avx512: &Avx512) -> [(&'static str, Value); 3] {
    let upper = avx512.zmm_16_31.iter().map(|halves| quads("hi16_zmm_reg", 0, halves.as_flattened()));
    [
        ("env.opmask_regs", Value::Array(avx512.opmask.iter().copied().map(word).collect())),
        (
            "env.xmm_regs[0]",
            Value::Array(avx512.zmm_high.iter().map(|bytes| quads("zmmh_reg", 4, bytes)).collect()),
        ),
        ("env.xmm_regs[1]", Value::Array(upper.collect())),
    ]
}

fn mpx_fields(mpx: &Mpx, bndcfgs: u64) -> [(&'static str, Value); 4] {
    let bounds = mpx.bounds.iter().map(|[low, high]| {
        let mut register = Tree::new("bnd_regs");
        register.fields = vec![("lb".to_owned(), word(*low)), ("ub".to_owned(), word(*high))];
        Value::Struct(register)
    });
    [
        ("env.bnd_regs", Value::Array(bounds.collect())),
        ("env.bndcs_regs.cfgu", word(mpx.bndcfgu)),
        ("env.bndcs_regs.sts", word(mpx.bndstatus)),
        ("env.msr_bndcfgs", word(bndcfgs)),
    ]
}

/// A 64-bit field.
fn word(value: u64) -> Value {
    Value::Unsigned { width: 8, value }
}

/// A number of up to eight bytes in memory order.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn msrs(vcpu: &Vcpu, tree: &mut Tree) -> Result<()> {
    let m = &vcpu.msrs;
    for (name, value) in [
        ("env.sysenter_cs", m.sysenter_cs),
        ("env.sysenter_esp", m.sysenter_esp),
        ("env.sysenter_eip", m.sysenter_eip),
        ("env.star", m.star),
        ("env.lstar", m.lstar),
        ("env.cstar", m.cstar),
        ("env.fmask", m.sfmask),
        ("env.kernelgsbase", m.kernel_gs_base),
        ("env.tsc_aux", m.tsc_aux),
        ("env.pat", m.pat),
    ] {
        tree.set_u64(name, value)?;
    }
    let mut optional = |subsection: &str, field: &str, value: u64| {
        if value == 0 {
            tree.remove_subsection(subsection);
        } else {
            put(tree, subsection, &[(field, word(value))]);
        }
    };
    optional("cpu/msr_tsc_adjust", "env.tsc_adjust", m.tsc_adjust);
    optional("cpu/msr_tscdeadline", "env.tsc_deadline", vcpu.lapic.timer.tsc_deadline);
    optional("cpu/spec_ctrl", "env.spec_ctrl", m.spec_ctrl.unwrap_or(0));
    optional("cpu/xss", "env.xss", m.xss.unwrap_or(0));
    optional("cpu/virt_ssbd", "env.virt_ssbd", m.virt_spec_ctrl.unwrap_or(0));
    if let Some(pkrs) = m.pkrs {
        put(tree, "cpu/pkrs", &[("env.pkrs", Value::Unsigned { width: 4, value: pkrs & 0xffff_ffff })]);
    }
    Ok(())
}

fn mtrrs(mtrrs: &Mtrrs, target: &Target<'_>, tree: &mut Tree) -> Result<()> {
    // From KVM, masks come filled with ones up to bit 51, for a destination to take as many as it has (target/i386/
    // kvm/kvm.c, kvm_get_msrs). Emulation takes them as they are.
    let mask = match target.accelerator {
        Accelerator::Kvm => u64::MAX,
        Accelerator::Tcg => (1 << target.physical_bits) - 1,
    };
    tree.set_u64("env.mtrr_deftype", mtrrs.def_type)?;
    for (index, value) in mtrrs.fixed.iter().enumerate() {
        tree.set_u64_at("env.mtrr_fixed", index, *value)?;
    }
    for (index, range) in mtrrs.variable.iter().enumerate() {
        if let Value::Struct(to) = tree.element_mut("env.mtrr_var", index)? {
            to.set_u64("base", range.base)?;
            to.set_u64("mask", range.mask & mask)?;
        }
    }
    Ok(())
}

fn event(vcpu: &Vcpu, tree: &mut Tree, target: &Target<'_>, report: &mut Report) -> Result<()> {
    let (mut interrupt, mut soft, mut nmi, mut exception) = (-1, 0, 0, -1);
    if let Some(event) = vcpu.pending_event {
        match event.kind {
            EventKind::ExternalInterrupt => interrupt = i64::from(event.vector),
            EventKind::Nmi => nmi = 1,
            EventKind::HardwareException => exception = i64::from(event.vector),
            EventKind::SoftwareInterrupt => (interrupt, soft) = (i64::from(event.vector), 1),
            // Traps of one-byte instructions: executed again, they come again.
            EventKind::PrivilegedSoftwareException | EventKind::SoftwareException => {}
        }
        if event.error_code.is_some() {
            let what = format!("vCPU {} was stopped while exception {} was delivered", vcpu.id, event.vector);
            target.policy.refuse(report, refusal::PENDING_EVENT, what, "save the guest again");
        }
    }
    tree.set_i64("env.interrupt_injected", interrupt)?;
    tree.set_u64("env.soft_interrupt", soft)?;
    tree.set_u64("env.nmi_injected", nmi)?;
    tree.set_u64("env.nmi_pending", 0)?;
    tree.set_i64("env.exception_nr", exception)?;
    tree.set_u64("env.has_error_code", 0)?;
    Ok(())
}

/// Adds an optional part, or replaces it.
fn put(tree: &mut Tree, name: &str, fields: &[(&str, Value)]) {
    let mut body = Tree::new(name);
    body.fields = fields.iter().map(|(field, value)| ((*field).to_owned(), value.clone())).collect();
    tree.put_subsection(Subsection { name: name.to_owned(), version: 1, tree: body });
}

fn account(vcpu: &Vcpu, report: &mut Report) {
    let mut ledger = report.record(STAGE, format_args!("vcpu[{}]", vcpu.id));
    ledger
        .carried(&[
            "run_state",
            "general",
            "segments",
            "tables",
            "system",
            "fpu",
            "vectors",
            "avx512",
            "mpx",
            "pkru",
            "xstate_bv",
            "tsc",
            "pending_event",
            "interrupt_shadow",
            "nmi_blocked",
        ])
        .carried(&[
            "msrs.sysenter_cs",
            "msrs.sysenter_esp",
            "msrs.sysenter_eip",
            "msrs.star",
            "msrs.lstar",
            "msrs.cstar",
            "msrs.sfmask",
            "msrs.kernel_gs_base",
            "msrs.tsc_aux",
            "msrs.tsc_adjust",
            "msrs.pat",
            "msrs.spec_ctrl",
            "msrs.xss",
            "msrs.pkrs",
            "msrs.virt_spec_ctrl",
            "mtrrs.def_type",
            "mtrrs.fixed",
            "mtrrs.variable",
        ])
        .dropped("mtrrs.cap", "QEMU has its own, with the same eight ranges")
        .dropped("machine_check", "the destination's banks start clean")
        .dropped("id", "follows from the order of the sections");
    if vcpu.xcr0_accumulated.is_some() {
        ledger.dropped("xcr0_accumulated", "Xen's own bookkeeping");
    }
    if let Some(value) = vcpu.msrs.misc_features_enables {
        ledger.dropped("msrs.misc_features_enables", format!("no place in QEMU's stream (value {value:#x})"));
    }
    if let (Some(value), None) = (vcpu.msrs.bndcfgs, &vcpu.mpx) {
        ledger.dropped("msrs.bndcfgs", format!("MPX is not enabled (value {value:#x})"));
    }
    for (n, value) in vcpu.msrs.dr_mask.iter().enumerate() {
        if let Some(value) = value {
            ledger.dropped(
                &format!("msrs.dr_mask[{n}]"),
                format!("no place in QEMU's stream (value {value:#x})"),
            );
        }
    }
    ledger.defaulted("env.mcg_cap, env.mce_banks, env.smbase", "as the destination QEMU resets them");
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::{SegmentAttributes, Segments, SystemRegisters};

    use super::*;

    /// A 64-bit kernel, as an emulating QEMU 7.2 and 10.0 wrote it: hflags 0x40c2b0.
    #[test]
    fn hidden_flags_of_a_64_bit_kernel() {
        let code = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: SegmentAttributes(0xa9b) };
        let data = Segment { selector: 0x18, attributes: SegmentAttributes(0xc93), ..code };
        let vcpu = Vcpu {
            segments: Segments { cs: code, ss: data, ..Segments::default() },
            system: SystemRegisters {
                cr0: 0x8005_0033,
                cr4: 0x6f0,
                efer: 0xd01,
                ..SystemRegisters::default()
            },
            ..Vcpu::default()
        };
        assert_eq!(hflags(&vcpu), 0x40_c2b0);
        assert_eq!(descriptor_flags(&code), 0x00a0_9b00);
    }

    #[test]
    fn real_mode_adds_segment_bases() {
        assert_eq!(hflags(&Vcpu::default()), 0x40);
    }
}
