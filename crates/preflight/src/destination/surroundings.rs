//! What is asked of the operating system.
//!
//! Source: Linux, `Documentation/filesystems/proc.rst` (`/proc/meminfo`, `/proc/locks`), `/sys/class/net`.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use hyperferry_translate::qemu::args;
use hyperferry_vm_model::Vm;
use rustix::fs::{Access, access, major, minor};

/// A disk of the guest, on this host.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its name in the guest.
    pub vdev: String,
    /// Where it is here.
    pub path: String,
    /// Whether the guest writes to it.
    pub writable: bool,
    /// What stands in the way.
    pub fault: Option<Fault>,
}

/// What stands between a guest and its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no such file.
    Absent,
    /// It cannot be opened as the guest needs it.
    Denied(String),
    /// Another QEMU holds it.
    Locked,
}

pub(super) fn disks(vm: &Vm, options: &args::Options) -> Vec<Disk> {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let here = vm.config.disks.iter().filter_map(|disk| {
        let source = disk.path.as_ref()?;
        let path = options.disks.get(&disk.vdev).or_else(|| options.disks.get(source)).unwrap_or(source);
        // `nbd://host`, `json:{…}`: not files.
        let is_file = !path.split('/').next().is_some_and(|start| start.contains(':'));
        let fault = is_file.then(|| fault(Path::new(path), disk.writable, &locks)).flatten();
        Some(Disk { vdev: disk.vdev.clone(), path: path.clone(), writable: disk.writable, fault })
    });
    here.collect()
}

fn fault(path: &Path, writable: bool, locks: &str) -> Option<Fault> {
    let Ok(metadata) = fs::metadata(path) else { return Some(Fault::Absent) };
    let wanted = if writable { Access::READ_OK | Access::WRITE_OK } else { Access::READ_OK };
    if let Err(error) = access(path, wanted) {
        return Some(Fault::Denied(std::io::Error::from(error).to_string()));
    }
    let (device, inode) = (metadata.dev(), metadata.ino());
    let name = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    (writable && locked(locks, &name)).then_some(Fault::Locked)
}

/// Whether a file has a lock of the kind that QEMU takes: `1: OFDLCK ADVISORY READ -1 fe:00:42 100 101`.
fn locked(locks: &str, file: &str) -> bool {
    locks.lines().any(|line| line.contains(" OFDLCK ") && line.split_whitespace().any(|word| word == file))
}

pub(super) fn bridges() -> BTreeSet<String> {
    let devices = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let bridges = devices.filter(|device| device.path().join("bridge").is_dir());
    bridges.filter_map(|device| device.file_name().into_string().ok()).collect()
}

/// `MemAvailable` of /proc/meminfo, bytes.
pub(super) fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether files can be made in a directory, which may have to be made itself.
pub(super) fn writable(directory: &Path) -> Result<(), String> {
    let absolute = std::path::absolute(directory).map_err(|error| error.to_string())?;
    let there = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !there.is_dir() {
        return Err(format!("{} is no directory", there.display()));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| format!("{}: {}", there.display(), std::io::Error::from(error)))
}

/// The program that a shell finds as `xl`, and whether it is this one.
pub(super) fn xl() -> Option<(PathBuf, bool)> {
    let path = std::env::var_os("PATH")?;
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("xl")).find(|program| program.is_file())?;
    let ours = std::env::current_exe().ok().and_then(|program| fs::canonicalize(program).ok());
    let is_ours = fs::canonicalize(&found).ok().is_some_and(|program| Some(program) == ours);
    Some((found, is_ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_file_is_told_by_its_inode() {
        let locks =
            "1: POSIX  ADVISORY  WRITE 812 00:17:998 0 EOF\n2: OFDLCK ADVISORY  READ  -1 fe:00:42 100 101\n";
        assert!(locked(locks, "fe:00:42") && !locked(locks, "fe:00:4"));
        assert!(!locked(locks, "00:17:998"), "not of QEMU's kind");
    }

    #[test]
    fn a_directory_that_can_be_made_will_do() {
        assert_eq!(writable(&std::env::temp_dir().join("hyperferry-not-there/journal")), Ok(()));
        assert!(writable(Path::new("/proc/self/status/journal")).is_err());
    }

    #[test]
    fn a_disk_that_is_not_here_is_absent() {
        assert_eq!(fault(Path::new("/nowhere/disk"), true, ""), Some(Fault::Absent));
        assert_eq!(fault(Path::new("/proc/self/status"), false, ""), None);
    }
}
