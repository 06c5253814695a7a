//! How large a disk is to the guest, read without a lock and without QEMU.
//!
//! Source: QEMU's `docs/interop/qcow2.txt` (magic at 0, virtual size at 24, big-endian).

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileTypeExt,
};

/// Capacity of disks whose own we cannot tell, such as those behind a network; also `null-co`'s default.
pub(super) const UNKNOWN: u64 = 1 << 30;

const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// How a file's bytes become a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// As they are, whatever they look like.
    Raw,
    /// By the header they begin with.
    Probe,
}

/// The capacity of the disk in `file`, or [`UNKNOWN`].
pub(super) fn of(file: &str, format: Format) -> u64 {
    capacity(file.strip_prefix("file:").unwrap_or(file), format).unwrap_or(UNKNOWN)
}

fn capacity(path: &str, format: Format) -> Option<u64> {
    let kind = std::fs::metadata(path).ok()?.file_type();
    // Opening anything else, such as a pipe, could block or be noticed.
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let mut header = [0; 32];
    if format == Format::Probe
        && file.read_exact(&mut header).is_ok()
        && let Some(rest) = header.strip_prefix(&QCOW2_MAGIC)
    {
        let size = rest.get(20..28)?.try_into().ok()?;
        return Some(u64::from_be_bytes(size));
    }
    file.seek(SeekFrom::End(0)).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_header_counts_only_where_it_may_be_believed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut header = [0; 512];
        header[..4].copy_from_slice(&QCOW2_MAGIC);
        header[24..32].copy_from_slice(&0x1234_0000_u64.to_be_bytes());
        file.write_all(&header).unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(of(path, Format::Probe), 0x1234_0000);
        assert_eq!(of(path, Format::Raw), 512);
        assert_eq!(of("nbd://host/disk", Format::Probe), UNKNOWN);
    }
}
