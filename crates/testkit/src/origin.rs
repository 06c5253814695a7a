//! Where a fixture comes from: `origin.toml` beside its stream, written when it was captured.

use serde::{Deserialize, Serialize};

/// What kind of stream a fixture holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What `xl save` wrote.
    XenSave,
    /// What `xl migrate` sent while the guest ran on: pages come more than once.
    XenMigrate,
    /// What QEMU's own migration wrote.
    Qemu,
}

/// How a stream came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// What is special about it, in one line.
    pub what: String,
    /// Its format.
    pub kind: Kind,
    /// The hypervisor, its version, and for Xen the device model's.
    pub hypervisor: String,
    /// The machine that the hypervisor ran on.
    pub host: String,
    /// When it was captured, in UTC.
    pub captured: String,
    /// The command that wrote the stream.
    pub command: String,
    /// The guest program.
    pub guest: String,
    /// Its kernel command line.
    pub cmdline: String,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Its memory in MiB, as it was asked for.
    pub memory: u32,
    /// Size of the uncompressed stream in bytes.
    pub bytes: u64,
    /// The domain's configuration, or QEMU's arguments.
    pub config: String,
    /// The last lines that the guest had printed when its state was taken.
    pub serial: String,
}
