//! The libxc image: two headers, then records with the domain's memory and state.
//!
//! Source: Xen `docs/specs/libxc-migration-stream.pandoc` revision 3, `tools/libs/guest/xg_sr_stream_format.h`,
//! `xg_sr_restore.c`, `xg_sr_restore_x86_hvm.c`, `xg_sr_save_x86_hvm.c` (4.23-unstable), checked on a save file of
//! 4.17.7.
//!
//! ```text
//! u32 type | u32 body_length | body | zeros to a multiple of 8        relative to the record, not to the file
//! ```

mod checkpoint_dirty_pfn_list;
mod domain_header;
mod hvm_params;
mod image_header;
mod page_data;
mod registry;
mod shared_info;
mod toolstack;
mod x86_cpuid_policy;
mod x86_msr_policy;
mod x86_pv_info;
mod x86_pv_p2m_frames;
mod x86_pv_vcpu;
mod x86_tsc_info;

pub use checkpoint_dirty_pfn_list::CheckpointDirtyPfnList;
pub use domain_header::{DomainHeader, DomainType};
pub use hvm_params::{HvmParam, HvmParams};
pub use image_header::ImageHeader;
pub use page_data::{COUNT_LIMIT, PAGE_DATA, PAGES_PER_CHUNK, PageChunk, PageType, PfnEntry};
pub use registry::{ROWS, Record};
pub use shared_info::SharedInfo;
pub use toolstack::Toolstack;
pub use x86_cpuid_policy::{CpuidLeaf, X86CpuidPolicy};
pub use x86_msr_policy::{MsrEntry, X86MsrPolicy};
pub use x86_pv_info::X86PvInfo;
pub use x86_pv_p2m_frames::X86PvP2mFrames;
pub use x86_pv_vcpu::X86PvVcpu;
pub use x86_tsc_info::X86TscInfo;

pub(crate) use domain_header::path as domain_header_path;
pub(crate) use image_header::path as image_header_path;
pub(crate) use page_data::{body_length, decode_entries};
pub(crate) use registry::name_of;

/// The longest body that the specification allows (`REC_LENGTH_MAX`); only PAGE_DATA comes near.
pub const RECORD_LENGTH_MAX: u32 = 128 << 20;

/// The longest body that we accept for any record but PAGE_DATA, whose pages pass through.
///
/// The longest real one is HVM_CONTEXT: 128 vCPUs with 12 KB of extended state each are below 2 MiB.
pub const STATE_RECORD_LIMIT: u32 = 16 << 20;

impl Record {
    /// Whether a reader that does not know the record must refuse it.
    pub fn is_mandatory(&self) -> bool {
        self.code() & crate::reader::OPTIONAL == 0
    }
}
