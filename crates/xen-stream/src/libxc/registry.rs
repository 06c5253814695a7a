//! The records of a libxc image, one row each; PAGE_DATA is the one that is not kept, see `page_data`.

use super::{
    CheckpointDirtyPfnList, HvmParams, SharedInfo, Toolstack, X86CpuidPolicy, X86MsrPolicy, X86PvInfo,
    X86PvP2mFrames, X86PvVcpu, X86TscInfo,
};
use crate::hvm::Context;

records! {
    /// One record of a libxc image.
    pub enum Record(u32: kind) {
        /// Ends the image.
        0x0000_0000 "END" End;
        /// Shape of a PV domain.
        0x0000_0002 "X86_PV_INFO" X86PvInfo(X86PvInfo);
        /// Frames of a PV domain's P2M table.
        0x0000_0003 "X86_PV_P2M_FRAMES" X86PvP2mFrames(X86PvP2mFrames);
        /// A PV vCPU's registers.
        0x0000_0004 "X86_PV_VCPU_BASIC" X86PvVcpuBasic(X86PvVcpu);
        /// A PV vCPU's further state.
        0x0000_0005 "X86_PV_VCPU_EXTENDED" X86PvVcpuExtended(X86PvVcpu);
        /// A PV vCPU's extended registers.
        0x0000_0006 "X86_PV_VCPU_XSAVE" X86PvVcpuXsave(X86PvVcpu);
        /// A PV domain's shared info page.
        0x0000_0007 "SHARED_INFO" SharedInfo(SharedInfo);
        /// The domain's TSC.
        0x0000_0008 "X86_TSC_INFO" X86TscInfo(X86TscInfo);
        /// State of an HVM domain inside Xen.
        0x0000_0009 "HVM_CONTEXT" HvmContext(Context);
        /// Parameters of an HVM domain.
        0x0000_000a "HVM_PARAMS" HvmParams(HvmParams);
        /// Blob of higher layers; deprecated.
        0x0000_000b "TOOLSTACK" Toolstack(Toolstack);
        /// A PV vCPU's model-specific registers.
        0x0000_000c "X86_PV_VCPU_MSRS" X86PvVcpuMsrs(X86PvVcpu);
        /// The pages that follow repeat memory for comparison.
        0x0000_000d "VERIFY" Verify;
        /// All before this is one consistent state; libxl's records go on.
        0x0000_000e "CHECKPOINT" Checkpoint;
        /// Dirty pages of a COLO secondary.
        0x0000_000f "CHECKPOINT_DIRTY_PFN_LIST" CheckpointDirtyPfnList(CheckpointDirtyPfnList);
        /// Ends the state that does not change while the guest runs.
        0x0000_0010 "STATIC_DATA_END" StaticDataEnd;
        /// CPUID as the domain may see it.
        0x0000_0011 "X86_CPUID_POLICY" X86CpuidPolicy(X86CpuidPolicy);
        /// Read-only MSRs as the domain may see them.
        0x0000_0012 "X86_MSR_POLICY" X86MsrPolicy(X86MsrPolicy);
    }
}
