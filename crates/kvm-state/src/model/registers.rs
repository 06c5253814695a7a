//! General registers, segments, tables, control and debug registers.

use hyperferry_vm_model::{
    DescriptorTable, DescriptorTables, GeneralRegisters, Segment as ModelSegment, SegmentAttributes,
    Segments, SystemRegisters, Vcpu,
};

use crate::state::{DebugRegs, Dtable, KvmVcpu, Regs, Segment, Sregs};
use crate::{Error, Result};

pub(super) fn localise_regs(from: &GeneralRegisters) -> Regs {
    let [r8, r9, r10, r11, r12, r13, r14, r15] = from.r8_r15;
    Regs {
        rax: from.rax,
        rbx: from.rbx,
        rcx: from.rcx,
        rdx: from.rdx,
        rsi: from.rsi,
        rdi: from.rdi,
        rsp: from.rsp,
        rbp: from.rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: from.rip,
        rflags: from.rflags,
    }
}

pub(super) fn normalise_regs(from: &Regs) -> GeneralRegisters {
    GeneralRegisters {
        rax: from.rax,
        rbx: from.rbx,
        rcx: from.rcx,
        rdx: from.rdx,
        rsi: from.rsi,
        rdi: from.rdi,
        rbp: from.rbp,
        rsp: from.rsp,
        r8_r15: [from.r8, from.r9, from.r10, from.r11, from.r12, from.r13, from.r14, from.r15],
        rip: from.rip,
        rflags: from.rflags,
    }
}

fn localise_segment(from: &ModelSegment) -> Segment {
    let attributes = from.attributes;
    Segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: attributes.kind(),
        present: attributes.present().into(),
        dpl: attributes.dpl(),
        db: attributes.default_big().into(),
        s: attributes.s().into(),
        l: attributes.long().into(),
        g: attributes.granularity().into(),
        avl: attributes.avl().into(),
        unusable: (!attributes.present()).into(),
    }
}

fn normalise_segment(from: &Segment) -> ModelSegment {
    let bit = |value: u8, place: u32| u16::from(value != 0) << place;
    let attributes = u16::from(from.type_ & 0xf)
        | bit(from.s, 4)
        | u16::from(from.dpl & 3) << 5
        | bit((from.unusable == 0).into(), 7) & bit(from.present, 7)
        | bit(from.avl, 8)
        | bit(from.l, 9)
        | bit(from.db, 10)
        | bit(from.g, 11);
    ModelSegment {
        selector: from.selector,
        base: from.base,
        limit: from.limit,
        attributes: SegmentAttributes(attributes),
    }
}

fn localise_table(name: &str, from: &DescriptorTable) -> Result<Dtable> {
    let limit = u16::try_from(from.limit)
        .map_err(|_| Error::field(format!("tables.{name}.limit"), from.limit, "at most 65535"))?;
    Ok(Dtable { base: from.base, limit })
}

fn normalise_table(from: &Dtable) -> DescriptorTable {
    DescriptorTable { base: from.base, limit: from.limit.into() }
}

pub(super) fn localise_sregs(vcpu: &Vcpu) -> Result<Sregs> {
    let Vcpu { segments, system, tables, .. } = vcpu;
    Ok(Sregs {
        cs: localise_segment(&segments.cs),
        ds: localise_segment(&segments.ds),
        es: localise_segment(&segments.es),
        fs: localise_segment(&segments.fs),
        gs: localise_segment(&segments.gs),
        ss: localise_segment(&segments.ss),
        tr: localise_segment(&segments.tr),
        ldt: localise_segment(&segments.ldtr),
        gdt: localise_table("gdtr", &tables.gdtr)?,
        idt: localise_table("idtr", &tables.idtr)?,
        cr0: system.cr0,
        cr2: system.cr2,
        cr3: system.cr3,
        cr4: system.cr4,
        // CR8 is TPR bits 7:4.
        cr8: u64::from(vcpu.lapic.tpr >> 4 & 0xf),
        efer: system.efer,
        apic_base: vcpu.lapic.apic_base,
        // The interrupt in flight goes into vcpu_events.
        interrupt_bitmap: [0; 4],
    })
}

pub(super) fn localise_debugregs(from: &SystemRegisters) -> DebugRegs {
    DebugRegs { db: from.dr, dr6: from.dr6, dr7: from.dr7 }
}

pub(super) fn normalise_segments(from: &Sregs) -> Segments {
    Segments {
        es: normalise_segment(&from.es),
        cs: normalise_segment(&from.cs),
        ss: normalise_segment(&from.ss),
        ds: normalise_segment(&from.ds),
        fs: normalise_segment(&from.fs),
        gs: normalise_segment(&from.gs),
        ldtr: normalise_segment(&from.ldt),
        tr: normalise_segment(&from.tr),
    }
}

pub(super) fn normalise_tables(from: &Sregs) -> DescriptorTables {
    DescriptorTables { gdtr: normalise_table(&from.gdt), idtr: normalise_table(&from.idt) }
}

pub(super) fn normalise_system(from: &KvmVcpu) -> SystemRegisters {
    let KvmVcpu { sregs, debugregs, .. } = from;
    SystemRegisters {
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        xcr0: from.xcr0(),
        efer: sregs.efer,
        dr: debugregs.db,
        dr6: debugregs.dr6,
        dr7: debugregs.dr7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_packed_as_the_manual_says() {
        // 64-bit code of Linux: type 0xb, S, DPL 0, P, L, G.
        let attributes = SegmentAttributes(0xa9b);
        let segment = localise_segment(&ModelSegment { attributes, ..ModelSegment::default() });
        let Segment { type_, s, dpl, present, avl, l, db, g, unusable, .. } = segment;
        assert_eq!((type_, s, dpl, present, avl, l, db, g, unusable), (0xb, 1, 0, 1, 0, 1, 0, 1, 0));
        for bits in 0..0x1000 {
            let model = ModelSegment { attributes: SegmentAttributes(bits), ..ModelSegment::default() };
            assert_eq!(normalise_segment(&localise_segment(&model)), model, "{bits:#x}");
        }
    }

    #[test]
    fn a_null_segment_is_unusable() {
        let null = localise_segment(&ModelSegment::default());
        assert_eq!((null.present, null.unusable), (0, 1));
        let marked = Segment { present: 1, unusable: 1, ..Segment::default() };
        assert!(!normalise_segment(&marked).attributes.present());
    }

    #[test]
    fn a_table_limit_over_16_bits_is_an_error() {
        let table = DescriptorTable { base: 0, limit: 0x10000 };
        let error = localise_table("idtr", &table).unwrap_err().to_string();
        assert_eq!(error, "tables.idtr.limit: found 65536, wanted at most 65535");
    }
}
