//! The guest's next start: a systemd service or a shell script that starts it anew from its disks.
//!
//! The QEMU that holds the guest after a move cannot be started again, for its memory came over a socket. What stands in
//! these files is a QEMU of the same machine and devices without a stream.
//!
//! Source: systemd 252, `man systemd.service` (COMMAND LINES), `man systemd.unit`.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use hyperferry_relay::endpoint::Output;
use hyperferry_vm_model::Vm;

use crate::{
    commands::qemu_args::quote,
    exit::{Error, Result},
};

/// Where the administrator's units of the system's systemd are.
pub(crate) const SYSTEM_UNITS: &str = "/etc/systemd/system";
/// What a system starts with.
const BOOT: &str = "multi-user.target";

/// Where a next start is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// As a service of the system's systemd or of the user's own; a shell script otherwise.
    pub(crate) user: Option<bool>,
    pub(crate) folder: PathBuf,
    /// Name of the unit, without its ending.
    pub(crate) name: String,
}

/// The name of a guest's units: letters that systemd takes as they are (`man systemd.unit`).
pub(crate) fn name(guest: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let guest: String = guest.chars().map(plain).take(128).collect();
    format!("hyperferry-{guest}")
}

/// The unit that starts this guest with the host, if there is one that the system's systemd has enabled.
pub(crate) fn enabled(guest: &str) -> Option<String> {
    enabled_in(Path::new(SYSTEM_UNITS), guest)
}

fn enabled_in(folder: &Path, guest: &str) -> Option<String> {
    let unit = format!("{}.service", name(guest));
    folder.join(format!("{BOOT}.wants")).join(&unit).symlink_metadata().is_ok().then_some(unit)
}

impl Start {
    /// The file.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join(match self.user {
            Some(_) => format!("{}.service", self.name),
            None => format!("{}.sh", self.name),
        })
    }

    /// Writes it, readable for those who have to.
    pub(crate) fn write(
        &self,
        output: Output,
        qemu: &Path,
        arguments: &[String],
        vm: &Vm,
        pid: Option<u32>,
    ) -> Result<()> {
        let (text, mode) = match self.user {
            Some(user) => (self.service(qemu, arguments, vm, user), 0o644),
            None => (script(qemu, arguments, vm, pid), 0o755),
        };
        put(output, &text)?;
        let path = self.path();
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(&path, permissions)
            .map_err(|source| Error::Output { path: path.display().to_string(), source })
    }

    /// What to do with it.
    pub(crate) fn hint(&self) -> String {
        let (path, name) = (self.path(), &self.name);
        let Some(user) = self.user else {
            return format!("once it has shut down, {} starts it again", path.display());
        };
        let manager = manager(user);
        format!(
            "{manager} knows its QEMU as {name}.scope; once it has shut down, `{manager} daemon-reload` and `{manager} \
             start {name}` start it again ({}), `{manager} enable {name}` with the host",
            path.display()
        )
    }

    fn service(&self, qemu: &Path, arguments: &[String], vm: &Vm, user: bool) -> String {
        let (name, guest, manager) = (&self.name, one_line(&vm.config.name), manager(user));
        let plugged = arguments.iter().any(|word| word.starts_with("bridge,") || word.starts_with("tap,"));
        // Bridges are there once the network is online; a user's manager knows no network, and comes behind it.
        let network = match plugged && !user {
            true => "After=network-online.target\nWants=network-online.target",
            false => "After=network.target",
        };
        let mut text = format!(
            "# Made by hyperferry: starts {guest} anew from its disks, after it has come from Xen and shut down here.\n\
             [Unit]\n\
             Description=Guest {}\n\
             {network}\n",
            specifiers(&guest)
        );
        for disk in vm.config.disks.iter().filter_map(|disk| mounted(&source(arguments, &disk.vdev)?)) {
            let _ = writeln!(text, "RequiresMountsFor={}", words(&disk));
        }
        let wanted = if user { "default.target" } else { BOOT };
        let _ = write!(
            text,
            "\n\
             [Service]\n\
             # The guest that came in has the same disks: not both at once.\n\
             ExecStartPre=/bin/sh -c 'if {manager} --quiet is-active {name}.scope; then \
             echo \"the guest that came in still runs, in {name}.scope\" >&2; exit 1; fi'\n\
             RuntimeDirectory={name}\n\
             ExecStart={}{} \\\n    -qmp unix:%t/{name}/qmp,server=on,wait=off\n\
             \n\
             [Install]\n\
             WantedBy={wanted}\n",
            words(&qemu.display().to_string()),
            lines(arguments, words),
        );
        text
    }
}

fn script(qemu: &Path, arguments: &[String], vm: &Vm, pid: Option<u32>) -> String {
    let guest = one_line(&vm.config.name);
    let mut text = format!(
        "#!/bin/sh\n\
         # Made by hyperferry: starts {guest} anew from its disks, after it has come from Xen and shut down here.\n\
         # Further arguments are QEMU's.\n"
    );
    if let Some(pid) = pid {
        // A process id comes again; that QEMU is told from others by its monitor's name.
        let _ = write!(
            text,
            "if tr '\\0' ' ' 2>/dev/null </proc/{pid}/cmdline | grep -q hyperferry-qmp; then\n    \
             echo 'the guest that came in still runs, process {pid}, on the same disks' >&2\n    \
             exit 1\n\
             fi\n"
        );
    }
    let qemu = quote(&qemu.display().to_string());
    let _ = writeln!(text, "exec {qemu}{} \"$@\"", lines(arguments, quote));
    text
}

/// Arguments behind a program, over several lines as units and shells read them: an option with its value on each.
fn lines(arguments: &[String], quoted: impl Fn(&str) -> String) -> String {
    let mut text = String::new();
    for word in arguments {
        text.push_str(if word.starts_with('-') { " \\\n    " } else { " " });
        text.push_str(&quoted(word));
    }
    text
}

/// Writes all of a file and lets it appear.
pub(crate) fn put(mut output: Output, text: &str) -> Result<()> {
    output.write_all(text.as_bytes()).map_err(Error::stdout)?;
    Ok(output.commit()?)
}

fn manager(user: bool) -> &'static str {
    if user { "systemctl --user" } else { "systemctl" }
}

/// The image that a drive was given on this command line.
fn source(arguments: &[String], vdev: &str) -> Option<String> {
    let drive = arguments.iter().find(|word| word.contains(&format!(",id={vdev},")))?;
    let (path, _) = drive.strip_prefix("file=")?.split_once(",format=")?;
    Some(path.replace(",,", ","))
}

/// A path that a file system has to be mounted for.
fn mounted(path: &str) -> Option<String> {
    (path.starts_with('/') && !path.starts_with("/dev/")).then(|| path.to_owned())
}

/// A word of a command line in a unit: quoted, with nothing in it that systemd replaces.
fn words(word: &str) -> String {
    let word = specifiers(word).replace('$', "$$");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=,.:/@%+$".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word;
    }
    let word = word.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    format!("\"{word}\"")
}

fn specifiers(text: &str) -> String {
    text.replace('%', "%%")
}

/// The sender chose it: it must not end a line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_systemd_takes() {
        assert_eq!(name("web"), "hyperferry-web");
        assert_eq!(name("../a b+c\n@d"), "hyperferry-.._a_b_c__d");
    }

    #[test]
    fn systemd_reads_words_back_as_they_were() {
        for (word, quoted) in [
            ("-m", "-m"),
            ("a b", "\"a b\""),
            ("50%", "50%%"),
            ("$HOME", "$$HOME"),
            ("", "\"\""),
            (r#"a"b\c"#, r#""a\"b\\c""#),
            ("a\nb", r#""a\nb""#),
            ("it's", "\"it's\""),
            ("a;b", "\"a;b\""),
        ] {
            assert_eq!(words(word), quoted);
        }
    }

    #[test]
    fn a_unit_is_enabled_by_a_link() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(enabled_in(folder.path(), "web"), None);
        let wants = folder.path().join("multi-user.target.wants");
        fs::create_dir(&wants).unwrap();
        std::os::unix::fs::symlink("/nowhere", wants.join("hyperferry-web.service")).unwrap();
        assert_eq!(enabled_in(folder.path(), "web").as_deref(), Some("hyperferry-web.service"));
        assert_eq!(enabled_in(folder.path(), "web2"), None);
    }

    #[test]
    fn a_line_is_an_option_with_its_value() {
        let arguments = ["-name", "a", "-nodefaults", "-append", "b c"].map(str::to_owned);
        assert_eq!(lines(&arguments, words), " \\\n    -name a \\\n    -nodefaults \\\n    -append \"b c\"");
    }

    #[test]
    fn a_guest_on_a_bridge_waits_for_it() {
        let start = Start { user: Some(false), folder: "/etc".into(), name: name("a") };
        let unit = |netdev: &str, user| {
            start.service(Path::new("/q"), &["-netdev".to_owned(), netdev.to_owned()], &Vm::default(), user)
        };
        for (netdev, user, waits) in [
            ("bridge,id=net0,br=br0", false, true),
            ("tap,id=net0,ifname=t0", false, true),
            ("hubport,id=net0,hubid=0", false, false),
            ("bridge,id=net0,br=br0", true, false),
        ] {
            assert_eq!(unit(netdev, user).contains("\nWants=network-online.target\n"), waits, "{netdev}");
        }
    }

    #[test]
    fn a_disk_waits_for_its_file_system() {
        let arguments: Vec<_> =
            ["-drive", "file=/a,,b,format=raw,if=none,id=hda,readonly=off"].map(str::to_owned).into();
        assert_eq!(source(&arguments, "hda").as_deref(), Some("/a,b"));
        assert_eq!(source(&arguments, "hdb"), None);
        assert_eq!(mounted("/dev/vg/a"), None);
        assert_eq!(mounted("nbd://host/a"), None);
    }

    #[test]
    fn no_name_of_a_guest_adds_a_line() {
        let mut vm = Vm::default();
        vm.config.name = "a\nExecStartPost=/bin/evil %n".to_owned();
        let start = Start { user: Some(false), folder: "/etc".into(), name: name(&vm.config.name) };
        let unit = start.service(Path::new("/q"), &["-m".to_owned()], &vm, false);
        assert!(unit.lines().all(|line| !line.starts_with("ExecStartPost")), "{unit}");
        assert!(unit.contains("Description=Guest a ExecStartPost=/bin/evil %%n\n"), "{unit}");
        let script = script(Path::new("/q"), &["-m".to_owned()], &vm, Some(7));
        assert!(script.lines().all(|line| line.starts_with('#') || !line.contains("evil")), "{script}");
    }
}
