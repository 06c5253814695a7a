use serde::{Deserialize, Serialize};

/// The guest as its administrator described it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Name of the guest.
    pub name: String,
    /// UUID in its text form, if the source has one.
    pub uuid: Option<String>,
    /// Guest memory without video memory, bytes.
    pub memory: u64,
    /// Video memory, bytes.
    pub video_memory: u64,
    /// How many vCPUs the guest can have.
    pub max_vcpus: u32,
    /// Size of the hole for memory-mapped devices below 4 GiB, where the administrator set one, bytes.
    pub mmio_hole: Option<u64>,
    /// The display adapter.
    pub vga: VgaKind,
    /// Disks, in the order of the configuration.
    pub disks: Vec<Disk>,
    /// Network interfaces, in the order of the configuration.
    pub nics: Vec<Nic>,
    /// Number of serial ports.
    pub serial_ports: u32,
    /// Whether the machine has a high precision event timer.
    pub hpet: bool,
    /// Whether the Xen platform device is there, which paravirtual drivers need.
    pub xen_platform: bool,
    /// Whether Hyper-V enlightenments are offered to the guest.
    pub viridian: bool,
    /// Whether nested virtualization is offered to the guest.
    pub nested: bool,
    /// USB devices of the emulated controller: `tablet`, `mouse`, ….
    pub usb_devices: Vec<String>,
    /// Host devices passed through, by their host address.
    pub passthrough: Vec<String>,
    /// How it boots.
    pub boot: Boot,
    /// Where its display is shown by VNC on the source host, as QEMU names such places (`127.0.0.1:0`); if it is.
    pub vnc: Option<String>,
}

/// How a guest boots: nothing that a running one needs, and all that its next start does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Where from, in turn: `c` hard disk, `d` CD-ROM, `n` network; empty is the firmware's own order.
    pub order: String,
    /// A kernel that is started without a disk, by its path on the source host.
    pub kernel: Option<String>,
    /// Its RAM disk.
    pub ramdisk: Option<String>,
    /// Its command line.
    pub command_line: Option<String>,
    /// Whether the real-time clock shows local time.
    pub local_time: bool,
}

/// A display adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VgaKind {
    /// No display adapter.
    #[default]
    None,
    /// Standard VGA with Bochs VBE extensions.
    Std,
    /// Cirrus Logic GD5446.
    Cirrus,
    /// QXL, for SPICE.
    Qxl,
}

/// A disk or CD-ROM drive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The name the administrator gave it: `hda`, `xvda`, `sdb`.
    pub vdev: String,
    /// File or block device behind it; none is an empty drive.
    pub path: Option<String>,
    /// Image format: `raw`, `qcow2`, `vhd`.
    pub format: String,
    /// Whether it is a CD-ROM drive.
    pub cdrom: bool,
    /// Whether the guest may write to it.
    pub writable: bool,
}

impl Disk {
    /// Its place among the IDE drives, channel and unit, as libxl gives them out (tools/libs/light/libxl_dm.c): the first
    /// four of the `hd` and `xvd` disks, and of CD drives under any name.
    pub fn ide_place(&self) -> Option<(u32, u32)> {
        let prefixes: &[&str] = if self.cdrom { &["hd", "xvd", "sd"] } else { &["hd", "xvd"] };
        match prefixes.iter().find_map(|prefix| self.vdev.strip_prefix(prefix))? {
            "a" => Some((0, 0)),
            "b" => Some((0, 1)),
            "c" => Some((1, 0)),
            "d" => Some((1, 1)),
            _ => None,
        }
    }

    /// Whether it is on libxl's SCSI controller, as `sd` disks are that are no CD drives.
    pub fn is_scsi(&self) -> bool {
        !self.cdrom && self.vdev.starts_with("sd")
    }
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Hardware address, `00:16:3e:xx:xx:xx`.
    pub mac: String,
    /// Emulated model: `rtl8139`, `e1000`.
    pub model: String,
    /// Bridge on the source host.
    pub bridge: Option<String>,
    /// Whether there is an emulated device at all, or only a paravirtual one.
    pub emulated: bool,
}
