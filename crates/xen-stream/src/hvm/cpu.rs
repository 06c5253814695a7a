//! CPU: a vCPU's registers.

use hyperferry_wire::{Cursor, Encoder, Result};

use crate::codec::Field;
use crate::describe::{Fields, Value};

pub(super) const TYPECODE: u16 = 2;

/// Length before Xen 3.4, which had no `msr_tsc_aux`: a gap in the middle, not at the end.
const PRE_3_4_LENGTH: usize = 1016;
const MSR_TSC_AUX: std::ops::Range<usize> = 1000..1008;
const FLAGS: std::ops::Range<usize> = 1024..1028;

layout! {
    /// CPU: the registers of a vCPU that is up; one that is down has no such entry.
    ///
    /// Pre-3.4 didn't have `msr_tsc_aux`, pre-4.7 didn't have `flags`.
    pub struct Cpu: AtMost 1032 {
        /// FXSAVE image, 64-bit layout.
        fpu_regs: [u8; 512],
        /// RAX.
        rax: u64,
        /// RBX: the order on the wire is not that of the architecture's register numbers.
        rbx: u64,
        /// RCX.
        rcx: u64,
        /// RDX.
        rdx: u64,
        /// RBP.
        rbp: u64,
        /// RSI.
        rsi: u64,
        /// RDI.
        rdi: u64,
        /// RSP.
        rsp: u64,
        /// R8 to R15.
        r8_r15: [u64; 8],
        /// RIP.
        rip: u64,
        /// RFLAGS.
        rflags: u64,
        /// CR0 as the guest sees it.
        cr0: u64,
        /// CR2.
        cr2: u64,
        /// CR3 as the guest sees it.
        cr3: u64,
        /// CR4 as the guest sees it.
        cr4: u64,
        /// DR0.
        dr0: u64,
        /// DR1.
        dr1: u64,
        /// DR2.
        dr2: u64,
        /// DR3.
        dr3: u64,
        /// DR6.
        dr6: u64,
        /// DR7.
        dr7: u64,
        /// Segment and descriptor table registers.
        segments: Segments,
        /// IA32_SYSENTER_CS.
        sysenter_cs: u64,
        /// IA32_SYSENTER_ESP.
        sysenter_esp: u64,
        /// IA32_SYSENTER_EIP.
        sysenter_eip: u64,
        /// IA32_KERNEL_GS_BASE.
        shadow_gs: u64,
        /// Obsolete, ignored by Xen.
        msr_flags: u64,
        /// IA32_LSTAR.
        msr_lstar: u64,
        /// IA32_STAR.
        msr_star: u64,
        /// IA32_CSTAR.
        msr_cstar: u64,
        /// IA32_FMASK.
        msr_syscall_mask: u64,
        /// IA32_EFER, LMA included.
        msr_efer: u64,
        /// IA32_TSC_AUX.
        msr_tsc_aux: u64,
        /// The guest's TSC at one instant common to all vCPUs.
        tsc: u64,
        /// Event to deliver again: 7:0 vector, 10:8 type, 11 error code valid, 31 valid.
        pending_event: u32,
        /// Its error code.
        error_code: u32,
        /// Bit 0: the FPU was initialised; without it the receiver resets the FPU.
        flags: u32 => pad0: 4,
    }
}

impl Cpu {
    /// [`Cpu::flags`]: the FPU was initialised.
    pub const FPU_INITIALISED: u32 = 1;
}

/// The segment registers, which the wire splits into four arrays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// CS.
    pub cs: Segment,
    /// DS.
    pub ds: Segment,
    /// ES.
    pub es: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// SS.
    pub ss: Segment,
    /// TR.
    pub tr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// IDTR.
    pub idtr: Table,
    /// GDTR.
    pub gdtr: Table,
}

/// One segment register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u32,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Base address.
    pub base: u64,
    /// Attributes: 3:0 type, 4 S, 6:5 DPL, 7 P, 8 AVL, 9 L, 10 D/B, 11 G.
    ///
    /// Old senders on Intel wrote AVL, L, D/B and G in bits 12 to 15, as a descriptor has them.
    pub arbytes: u32,
}

/// One descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Limit in bytes.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

impl Field for Segments {
    const SIZE: usize = 184;
    const ZERO: Self = {
        let segment = Segment { selector: 0, limit: 0, base: 0, arbytes: 0 };
        let table = Table { limit: 0, base: 0 };
        Self {
            cs: segment,
            ds: segment,
            es: segment,
            fs: segment,
            gs: segment,
            ss: segment,
            tr: segment,
            ldtr: segment,
            idtr: table,
            gdtr: table,
        }
    };

    fn decode(cursor: &mut Cursor<'_>, _: &str) -> Result<Self> {
        let mut all = Self::ZERO;
        for segment in all.segments_mut() {
            segment.selector = cursor.u32("selector")?;
        }
        for segment in all.segments_mut() {
            segment.limit = cursor.u32("limit")?;
        }
        all.idtr.limit = cursor.u32("idtr_limit")?;
        all.gdtr.limit = cursor.u32("gdtr_limit")?;
        for segment in all.segments_mut() {
            segment.base = cursor.u64("base")?;
        }
        all.idtr.base = cursor.u64("idtr_base")?;
        all.gdtr.base = cursor.u64("gdtr_base")?;
        for segment in all.segments_mut() {
            segment.arbytes = cursor.u32("arbytes")?;
        }
        Ok(all)
    }

    fn encode(&self, encoder: &mut Encoder) {
        let segments = self.segments();
        for (_, segment) in segments {
            encoder.u32(segment.selector);
        }
        for (_, segment) in segments {
            encoder.u32(segment.limit);
        }
        encoder.u32(self.idtr.limit).u32(self.gdtr.limit);
        for (_, segment) in segments {
            encoder.u64(segment.base);
        }
        encoder.u64(self.idtr.base).u64(self.gdtr.base);
        for (_, segment) in segments {
            encoder.u32(segment.arbytes);
        }
    }

    fn value(&self) -> Value {
        let mut fields = Fields::new();
        for (name, segment) in self.segments() {
            let row = Fields::new()
                .with("selector", segment.selector.value())
                .with("limit", segment.limit.value())
                .with("base", segment.base.value())
                .with("arbytes", segment.arbytes.value());
            fields = fields.with(name, Value::Row(row));
        }
        for (name, table) in [("idtr", self.idtr), ("gdtr", self.gdtr)] {
            let row = Fields::new().with("limit", table.limit.value()).with("base", table.base.value());
            fields = fields.with(name, Value::Row(row));
        }
        Value::Fields(fields)
    }
}

impl Segments {
    /// In wire order.
    fn segments(&self) -> [(&'static str, Segment); 8] {
        [
            ("cs", self.cs),
            ("ds", self.ds),
            ("es", self.es),
            ("fs", self.fs),
            ("gs", self.gs),
            ("ss", self.ss),
            ("tr", self.tr),
            ("ldtr", self.ldtr),
        ]
    }

    /// In wire order.
    fn segments_mut(&mut self) -> [&mut Segment; 8] {
        [
            &mut self.cs,
            &mut self.ds,
            &mut self.es,
            &mut self.fs,
            &mut self.gs,
            &mut self.ss,
            &mut self.tr,
            &mut self.ldtr,
        ]
    }
}

/// The full form of an older entry. Pre-4.7 senders always initialised the FPU, so Xen sets the flag for them.
pub(super) fn lengthen(short: &[u8], full: usize) -> Vec<u8> {
    let mut bytes = short.to_vec();
    if short.len() == PRE_3_4_LENGTH {
        bytes.splice(MSR_TSC_AUX.start..MSR_TSC_AUX.start, [0; 8]);
    }
    bytes.resize(full, 0);
    if short.len() <= FLAGS.start
        && let Some(flags) = bytes.get_mut(FLAGS)
    {
        flags.copy_from_slice(&Cpu::FPU_INITIALISED.to_le_bytes());
    }
    bytes
}

/// The older form of a full entry, whatever of it gets lost.
pub(super) fn shorten(full: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = full.to_vec();
    if length == PRE_3_4_LENGTH {
        bytes.drain(MSR_TSC_AUX);
    }
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use hyperferry_wire::{Endian, StreamPath};

    use super::*;
    use crate::codec::Body;

    fn decode(bytes: &[u8]) -> Cpu {
        let mut cursor = Cursor::new(bytes, 0, StreamPath::root(), Endian::Little);
        <Cpu as Body>::decode(&mut cursor).unwrap()
    }

    /// Bytes whose little-endian u16 at each even offset is that offset.
    fn numbered() -> Vec<u8> {
        (0..1032_u16).step_by(2).flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn fields_stand_at_the_offsets_of_xens_structure() {
        let cpu = decode(&numbered());
        let low = |value: u64| value & 0xffff;
        assert_eq!([cpu.rax, cpu.rbx, cpu.rcx, cpu.rdx].map(low), [512, 520, 528, 536]);
        assert_eq!([cpu.rbp, cpu.rsi, cpu.rdi, cpu.rsp].map(low), [544, 552, 560, 568]);
        assert_eq!([cpu.r8_r15[0], cpu.r8_r15[7], cpu.rip, cpu.rflags].map(low), [576, 632, 640, 648]);
        assert_eq!([cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4].map(low), [656, 664, 672, 680]);
        assert_eq!([cpu.dr3, cpu.dr6, cpu.dr7].map(low), [712, 720, 728]);
        let Segments { cs, gs, ldtr, idtr, gdtr, .. } = cpu.segments;
        for (segment, number) in [(cs, 0), (gs, 4), (ldtr, 7)] {
            assert_eq!(segment.selector & 0xffff, 736 + 4 * number);
            assert_eq!(segment.limit & 0xffff, 768 + 4 * number);
            assert_eq!(low(segment.base), u64::from(808 + 8 * number));
            assert_eq!(segment.arbytes & 0xffff, 888 + 4 * number);
        }
        assert_eq!((idtr.limit & 0xffff, low(idtr.base)), (800, 872));
        assert_eq!((gdtr.limit & 0xffff, low(gdtr.base)), (804, 880));
        assert_eq!(
            [cpu.sysenter_cs, cpu.shadow_gs, cpu.msr_flags, cpu.msr_lstar].map(low),
            [920, 944, 952, 960]
        );
        assert_eq!([cpu.msr_efer, cpu.msr_tsc_aux, cpu.tsc].map(low), [992, 1000, 1008]);
        assert_eq!(
            [cpu.pending_event, cpu.error_code, cpu.flags].map(|word| word & 0xffff),
            [1016, 1020, 1024]
        );
    }

    #[test]
    fn the_form_before_3_4_has_a_gap_in_the_middle() {
        let mut short = numbered();
        short.truncate(1016);
        let cpu = decode(&lengthen(&short, 1032));
        assert_eq!((cpu.msr_efer & 0xffff, cpu.msr_tsc_aux, cpu.tsc & 0xffff), (992, 0, 1000));
        assert_eq!((cpu.pending_event & 0xffff, cpu.error_code & 0xffff, cpu.flags), (1008, 1012, 1));
        assert_eq!(shorten(&lengthen(&short, 1032), 1016), short);
    }

    #[test]
    fn the_form_before_4_7_has_an_initialised_fpu() {
        let mut short = numbered();
        short.truncate(1024);
        let cpu = decode(&lengthen(&short, 1032));
        assert_eq!((cpu.msr_tsc_aux & 0xffff, cpu.flags), (1000, Cpu::FPU_INITIALISED));
    }
}
