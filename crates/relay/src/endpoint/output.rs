//! Outputs: there in full, or not at all.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Write},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};
use tempfile::{NamedTempFile, TempPath};

use super::STANDARD;
use crate::{Error, Result};

/// An opened output. [`Output::commit`] makes it appear; dropped before, it leaves nothing behind.
///
/// A file is written without a name where its target is, readable by its owner only since it holds a guest's memory,
/// and takes the target's place once all of it is on disk. Having no name, it is gone even if we are killed; only
/// file systems that cannot do that (some network ones) see a name of ours meanwhile. What is no regular file
/// (a pipe, a device, standard output) is written straight away.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Direct(File),
    Unnamed(File),
    Named(NamedTempFile),
}

/// Opens a file to be written, or standard output for `-`.
pub fn open_output(path: impl AsRef<Path>) -> Result<Output> {
    let path = path.as_ref();
    let failed = |source| Error::File { path: path.to_owned(), doing: "opening it to write", source };
    if path.as_os_str() == STANDARD {
        // Not through `Stdout`, which looks for line ends in what is no text.
        let file = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?.into();
        return Ok(Output { path: path.to_owned(), target: Target::Direct(file) });
    }
    // Through a link, the file it points to is the one to replace.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Ok(metadata) = std::fs::metadata(&path)
        && !metadata.is_file()
    {
        let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
        return Ok(Output { path, target: Target::Direct(file) });
    }
    path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
    let target = match unnamed(&path) {
        Ok(file) => Target::Unnamed(file),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Target::Named(named(&path).map_err(failed)?),
        Err(error) => return Err(failed(error.into())),
    };
    Ok(Output { path, target })
}

impl Output {
    /// Writes what is left to disk and lets the file appear under its name.
    pub fn commit(self) -> Result<()> {
        let Self { path, target } = self;
        match target {
            Target::Direct(_) => Ok(()),
            Target::Unnamed(file) => {
                link(&file, &path).and_then(|temporary| persist(temporary, &file, &path))
            }
            Target::Named(temporary) => {
                let (file, temporary) = temporary.into_parts();
                persist(temporary, &file, &path)
            }
        }
        .map_err(|source| Error::File { path, doing: "finishing it", source })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.target {
            Target::Direct(file) | Target::Unnamed(file) => file.write(bytes),
            Target::Named(temporary) => temporary.write(bytes),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.target {
            Target::Direct(file) | Target::Unnamed(file) => file.write_vectored(pieces),
            Target::Named(temporary) => temporary.write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.target {
            Target::Direct(file) | Target::Unnamed(file) => file.flush(),
            Target::Named(temporary) => temporary.flush(),
        }
    }
}

/// A file without a name, in the directory of `path`.
fn unnamed(path: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(directory(path), flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// A file under another name, in the directory of `path`.
fn named(path: &Path) -> io::Result<NamedTempFile> {
    builder().tempfile_in(directory(path))
}

/// Gives an unnamed file a name that is removed again unless it becomes `path`.
fn link(file: &File, path: &Path) -> io::Result<TempPath> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |name: &Path| Ok(rustix::fs::linkat(CWD, &source, CWD, name, AtFlags::SYMLINK_FOLLOW)?);
    Ok(builder().make_in(directory(path), link)?.into_temp_path())
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".hyperferry-").suffix(".part");
    builder
}

fn persist(temporary: TempPath, file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    // The new name is on disk once the directory is.
    File::open(directory(path))?.sync_all()
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Both ways to write a file that is not there yet.
    fn outputs(path: &Path) -> [Output; 2] {
        let output = open_output(path).unwrap();
        assert!(matches!(output.target, Target::Unnamed(_)), "a temporary directory can do this");
        [output, Output { path: path.to_owned(), target: Target::Named(named(path).unwrap()) }]
    }

    #[test]
    fn a_file_appears_only_when_committed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        for mut output in outputs(&path) {
            std::fs::write(&path, "old").unwrap();
            output.write_all(b"new").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"old");
            output.commit().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn nothing_is_left_of_one_that_was_dropped() {
        let directory = tempfile::tempdir().unwrap();
        for mut output in outputs(&directory.path().join("out")) {
            output.write_all(b"half").unwrap();
        }
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn one_that_cannot_take_its_place_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        for output in outputs(&path) {
            std::fs::create_dir_all(path.join("in the way")).unwrap();
            let error = output.commit().unwrap_err().to_string();
            assert!(error.contains("out: finishing it: "), "{error}");
        }
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn links_and_devices_stay_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        std::fs::write(&real, "old").unwrap();
        symlink(&real, &link).unwrap();
        let mut output = open_output(&link).unwrap();
        output.write_all(b"new").unwrap();
        output.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"new");

        let mut null = open_output("/dev/null").unwrap();
        null.write_all(b"x").unwrap();
        null.commit().unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = open_output("/nowhere/out").unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/out: opening it to write: No such file"), "{error}");
    }
}
