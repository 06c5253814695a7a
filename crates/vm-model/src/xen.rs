use serde::{Deserialize, Serialize};

/// What Xen and its toolstack said of a guest and no other hypervisor has a place for: kept so that the guest can go
/// home as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XenDomain {
    /// Xen that saved the guest: major and minor version.
    pub version: [u32; 2],
    /// The domain's configuration: libxl's JSON as it stood in the stream, without its closing NUL.
    pub config: String,
    /// HVM_PARAMS in the stream's order: index and value.
    pub params: Vec<(u64, u64)>,
    /// How RDTSC is answered: 0 default, 1 always emulated, 2 never.
    pub tsc_mode: u32,
    /// How often Xen has moved the guest.
    pub incarnation: u32,
    /// Changeset of that Xen, as HVM_CONTEXT's HEADER has it.
    pub changeset: u64,
    /// `CPUID[1].EAX` of the host, as HVM_CONTEXT's HEADER has it.
    pub host_cpuid: u32,
}
