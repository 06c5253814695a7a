//! The entries of an HVM context, one row each.

use super::{
    Cpu, CpuMsr, CpuXsave, End, Header, Hpet, IoApic, IsaIrq, Lapic, LapicRegs, Mtrr, PciIrq, PciLink, Pic,
    Pit, PmTimer, Rtc, TscAdjust, ViridianDomain, ViridianVcpu, VmceVcpu,
};

records! {
    /// One entry's state.
    // A context has a few dozen entries; a box around the large ones would cost every user more than it saves.
    #[allow(clippy::large_enum_variant)]
    pub enum Record(u16: typecode) {
        /// Ends the context.
        0 "END" End(End);
        /// Opens the context.
        1 "HEADER" Header(Header);
        /// A vCPU's registers.
        2 "CPU" Cpu(Cpu);
        /// One of the two 8259A.
        3 "PIC" Pic(Pic);
        /// The IO-APIC.
        4 "IOAPIC" IoApic(IoApic);
        /// What a local APIC holds beside its register page.
        5 "LAPIC" Lapic(Lapic);
        /// The register page of a local APIC.
        6 "LAPIC_REGS" LapicRegs(LapicRegs);
        /// The wires of PCI INTx.
        7 "PCI_IRQ" PciIrq(PciIrq);
        /// The wires of ISA interrupts.
        8 "ISA_IRQ" IsaIrq(IsaIrq);
        /// The router from PCI INTx to ISA interrupts.
        9 "PCI_LINK" PciLink(PciLink);
        /// The 8254.
        10 "PIT" Pit(Pit);
        /// The real-time clock.
        11 "RTC" Rtc(Rtc);
        /// The HPET.
        12 "HPET" Hpet(Hpet);
        /// The ACPI PM timer.
        13 "PMTIMER" PmTimer(PmTimer);
        /// A vCPU's PAT and MTRRs.
        14 "MTRR" Mtrr(Mtrr);
        /// The domain's part of the Hyper-V interface.
        15 "VIRIDIAN_DOMAIN" ViridianDomain(ViridianDomain);
        /// A vCPU's extended state.
        16 "CPU_XSAVE" CpuXsave(CpuXsave);
        /// A vCPU's part of the Hyper-V interface.
        17 "VIRIDIAN_VCPU" ViridianVcpu(ViridianVcpu);
        /// A vCPU's machine check configuration.
        18 "VMCE_VCPU" VmceVcpu(VmceVcpu);
        /// A vCPU's IA32_TSC_ADJUST.
        19 "TSC_ADJUST" TscAdjust(TscAdjust);
        /// Further model-specific registers of a vCPU.
        20 "CPU_MSR" CpuMsr(CpuMsr);
    }
}
