use serde::{Deserialize, Serialize};

use crate::{Avx512, Fpu, Lapic, Mpx, Vectors};

/// One virtual CPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Index of the vCPU, from 0.
    pub id: u32,
    /// Whether it runs, sleeps or was never started.
    pub run_state: RunState,
    /// The registers of ordinary programs.
    pub general: GeneralRegisters,
    /// The segment registers.
    pub segments: Segments,
    /// GDTR and IDTR.
    pub tables: DescriptorTables,
    /// Control and debug registers, EFER and XCR0.
    pub system: SystemRegisters,
    /// x87 state and MXCSR.
    pub fpu: Fpu,
    /// SSE and AVX registers.
    pub vectors: Vectors,
    /// AVX-512 registers, where XCR0 enables them.
    pub avx512: Option<Avx512>,
    /// MPX registers, where XCR0 enables them.
    pub mpx: Option<Mpx>,
    /// Protection keys of user pages, where XCR0 enables them.
    pub pkru: Option<u32>,
    /// XSAVE components that are not in their initial state (XSTATE_BV).
    pub xstate_bv: u64,
    /// All components that XCR0 ever enabled, where the source knows.
    pub xcr0_accumulated: Option<u64>,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// Memory types.
    pub mtrrs: Mtrrs,
    /// Machine-check setup.
    pub machine_check: MachineCheck,
    /// Time-stamp counter at the instant of the save.
    pub tsc: u64,
    /// The local APIC.
    pub lapic: Lapic,
    /// An event whose delivery was cut short and must be taken up again.
    pub pending_event: Option<PendingEvent>,
    /// Interrupts are held off for one instruction (`STI` or `MOV SS`), where the source knows.
    pub interrupt_shadow: bool,
    /// NMIs are held off until the next `IRET`, where the source knows.
    pub nmi_blocked: bool,
}

/// Whether a vCPU runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Executes instructions.
    #[default]
    Running,
    /// In `HLT`, woken by an interrupt.
    Halted,
    /// Never started, or reset by INIT: waits for a startup IPI.
    WaitForSipi,
}

/// The registers of ordinary programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the registers' own")]
pub struct GeneralRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    /// R8 to R15.
    pub r8_r15: [u64; 8],
    pub rip: u64,
    pub rflags: u64,
}

/// The segment registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the registers' own")]
pub struct Segments {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear address of the segment.
    pub base: u64,
    /// Last valid offset, in bytes whatever the granularity.
    pub limit: u32,
    /// Access rights.
    pub attributes: SegmentAttributes,
}

/// Access rights of a segment: the 12 bits that a descriptor holds beside base and limit, without a gap.
///
/// Bits 3:0 type, 4 S, 6:5 DPL, 7 P, 8 AVL, 9 L, 10 D/B, 11 G (AMD APM vol. 2, 15.5.1 "VMCB segment attributes").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentAttributes(pub u16);

impl SegmentAttributes {
    /// Bits 3:0.
    pub fn kind(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    /// Code or data segment, not a system one.
    pub fn s(self) -> bool {
        self.bit(4)
    }

    /// Privilege level.
    pub fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }

    /// Present: a segment without it is unusable.
    pub fn present(self) -> bool {
        self.bit(7)
    }

    /// Free for the operating system.
    pub fn avl(self) -> bool {
        self.bit(8)
    }

    /// 64-bit code.
    pub fn long(self) -> bool {
        self.bit(9)
    }

    /// 32-bit code or stack.
    pub fn default_big(self) -> bool {
        self.bit(10)
    }

    /// Limit counts pages.
    pub fn granularity(self) -> bool {
        self.bit(11)
    }

    fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }
}

/// GDTR and IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTables {
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Last valid offset.
    pub limit: u32,
}

/// Control and debug registers, EFER and XCR0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the registers' own")]
pub struct SystemRegisters {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    pub efer: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// Model-specific registers that a hypervisor saves. Those that a guest may not have are optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the registers' own")]
pub struct Msrs {
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub tsc_adjust: u64,
    pub pat: u64,
    pub spec_ctrl: Option<u64>,
    pub xss: Option<u64>,
    pub pkrs: Option<u64>,
    pub bndcfgs: Option<u64>,
    pub virt_spec_ctrl: Option<u64>,
    pub misc_features_enables: Option<u64>,
    /// AMD address masks of DR0 to DR3.
    pub dr_mask: [Option<u64>; 4],
}

/// Memory types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtrrs {
    /// Capabilities: number of variable ranges, fixed ranges, write combining.
    pub cap: u64,
    /// Default type and the enable bits.
    pub def_type: u64,
    /// MSRs 0x250, 0x258, 0x259, 0x268 to 0x26f.
    pub fixed: [u64; 11],
    /// Variable ranges.
    pub variable: [VariableRange; 8],
}

/// A variable MTRR range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariableRange {
    /// Base address and type.
    pub base: u64,
    /// Address mask and valid bit.
    pub mask: u64,
}

/// Machine-check setup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineCheck {
    /// MCG_CAP.
    pub cap: u64,
    /// MCi_CTL2 of the first two banks.
    pub ctl2: [u64; 2],
    /// MCG_EXT_CTL.
    pub ext_ctl: u64,
}

/// An event whose delivery was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvent {
    /// What it is.
    pub kind: EventKind,
    /// Its vector.
    pub vector: u8,
    /// Error code that goes on the stack, where the event has one.
    pub error_code: Option<u32>,
}

/// What a pending event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// An interrupt that the APIC or PIC has already handed over.
    ExternalInterrupt,
    /// A non-maskable interrupt.
    Nmi,
    /// A fault or trap of the CPU.
    HardwareException,
    /// `INT n`.
    SoftwareInterrupt,
    /// `INT1`.
    PrivilegedSoftwareException,
    /// `INT3` or `INTO`.
    SoftwareException,
}
