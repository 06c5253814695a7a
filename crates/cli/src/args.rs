//! What can be asked for. Help, man page and completions are made from here; refusals come from their own table.

use std::{fmt::Write, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use hyperferry_translate::refusal::{self, Policy};

use crate::{
    commands::{
        check::{self, Check},
        receive::Receive,
        relay::Relay,
        resolve::{self, Resolve},
        send::Send,
    },
    stay::Stay,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  all went well (diff: no difference)
  1  diff found a difference
  2  the command line makes no sense
  3  the stream is invalid: the error says where, what was found and what was wanted
  4  the stream is sound and not supported as it is; nothing was written or started
  5  something failed on the way; the source is intact
  6  the outcome is unknown: the guest may have run on the destination";

const TEACHING: &str = "\
From a Xen save file to a guest that goes on running under QEMU:

  xl save -c guest guest.save                           on the Xen host
  hyperferry inspect guest.save | less                  what is in it
  hyperferry land guest.save --serial guest.log         run it, here and now

FILE and IN may be `-` (standard input), and may be compressed with zstd or gzip. A recorded `xl migrate` stream is as \
good as a save file. A stream is only read: whatever happens, the source stays as it is.";

/// Moves running virtual machines between Xen and KVM by translating their save-state streams.
#[derive(Debug, Parser)]
#[command(name = "hyperferry", version, after_long_help = long_help(), long_about = format!(
    "Moves running virtual machines between Xen and KVM by translating their save-state streams.\n\n{TEACHING}"
))]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How much to say.
    #[command(flatten)]
    pub(crate) words: Words,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what a stream holds, record by record
    #[command(after_long_help = INSPECT_HELP)]
    Inspect(Inspect),
    /// Judge a stream strictly: exit code 0, or 3 with path, offset, found and wanted
    #[command(after_long_help = VERIFY_HELP)]
    Verify(Verify),
    /// Translate a stream into another format
    #[command(after_long_help = long_help())]
    Convert(Convert),
    /// Print the arguments of a QEMU that can take the guest
    QemuArgs(QemuArgs),
    /// Print a libvirt domain that can take the guest
    LibvirtXml(LibvirtXml),
    /// Land a stream in a QEMU on this host and let the guest run on
    #[command(after_long_help = long_help())]
    Land(Land),
    /// Take a running guest from `xl migrate` on a Xen host; see docs/live-move.md
    #[command(after_long_help = long_help())]
    Receive(Receive),
    /// Move a running guest from a QEMU on this host to a Xen host; see docs/live-move.md
    #[command(after_long_help = send_help())]
    Send(Send),
    /// Stand between a Xen host and a KVM host, and pass a guest on; see docs/live-move.md
    Relay(Relay),
    /// Say which copy of each guest that came in or left may run
    #[command(after_long_help = resolve::HELP)]
    Resolve(Resolve),
    /// Say whether a guest can move: what this host, and what its Xen host, has against it
    #[command(after_long_help = check::HELP)]
    Check(Check),
    /// Compare two VMs: field, left, right
    #[command(after_long_help = DIFF_HELP)]
    Diff(Diff),
    /// Print completions for a shell
    Completions(Completions),
    /// Print the manual page
    Man,
}

const INSPECT_HELP: &str = "\
One element a paragraph: `path @offset`, then one `  name = value` line a field. Runs of pages are one element with counts, \
page frames and a checksum. With --json: one document a line, the first with `schema` and `version`, each other one with \
`path`, `offset` and `fields`.

  hyperferry inspect guest.save | grep -A3 HVM_CONTEXT
  hyperferry inspect guest.save --json | jq -r 'select(.path) | .path'";

const VERIFY_HELP: &str = "\
Reserved bits must be zero, records known and in their order, nothing may follow the end. The device model's state inside a \
Xen stream is decoded, encoded again and compared, and a QEMU stream's sections must be those of its own description.";

const SEND_HELP: &str = "\
The guest runs on while its pages are sent, stands still for the last of them, and runs on at the destination. Nothing is \
installed on the Xen host: its own `xl migrate-receive` takes the guest in. Until it has been told to run the guest, every \
failure, Ctrl-C, and the end of hyperferry itself give the guest back to its QEMU, which runs it on. Behind that QEMU keeps \
its copy stopped unless the destination says that its own is gone; `hyperferry resolve` says which one may run.

  hyperferry send /run/web.qmp xen2                      by ssh xen2 xl migrate-receive
  hyperferry send 3097 xen2 --map-bridge br0=xenbr0      QEMU by its process id
  hyperferry send /run/web.qmp --ssh 'ssh -p 2222' xen2
  hyperferry send /run/web.qmp -- ssh kvm2 hyperferry receive

QEMU needs a QMP monitor that nobody else is connected to (-qmp unix:/run/web.qmp,server=on,wait=off), a `pc` machine and \
emulated devices.";

const DIFF_HELP: &str = "\
Both inputs are brought into the neutral model first, so a Xen save file can be compared with a checkpoint. Memory is \
compared by its pages' content.";

/// How much to say, on standard error.
#[derive(Args, Clone, Debug)]
pub(crate) struct Words {
    /// Say more; twice and three times for developers
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// How to write the log
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, hide_short_help = true)]
    pub(crate) log_format: LogFormat,
    /// How to show progress
    #[arg(long, global = true, value_enum, default_value_t = ProgressMode::Auto, hide_short_help = true)]
    pub(crate) progress: ProgressMode,
    /// Write progress to a file too, one JSON document a line; `{name}` in it is the guest's name
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) progress_file: Option<PathBuf>,
    /// Keep a file with metrics for Prometheus (node_exporter's textfile collector); `{name}` as above
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) metrics_file: Option<PathBuf>,
    /// Serve the same metrics over HTTP at http://ADDRESS:PORT/metrics, as long as it lasts
    #[arg(long, global = true, value_name = "ADDRESS:PORT", hide_short_help = true)]
    pub(crate) metrics_listen: Option<SocketAddr>,
}

/// How to write the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON document a line.
    Json,
}

/// How to show progress.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A changing line on a terminal, plain lines elsewhere.
    Auto,
    /// A changing line.
    Tty,
    /// One line a step.
    Plain,
    /// One JSON document a line.
    Json,
    /// Not at all.
    None,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// Stream to read: of Xen, of QEMU, or a checkpoint
    pub(crate) file: PathBuf,
    /// One JSON document a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// Stream to judge: of Xen, of QEMU, or a checkpoint
    pub(crate) file: PathBuf,
}

/// Arguments of `convert`.
#[derive(Args, Debug)]
pub(crate) struct Convert {
    /// Stream to read: of Xen, of QEMU, or a checkpoint
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// File to write; it appears only when all of it is there
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Format to write
    #[arg(long, value_enum)]
    pub(crate) to: Target,
    /// With --to xen: any save file of that Xen host whose guest has the same devices; what the host's Xen and device
    /// model load is learned from it [default: Xen 4.17 with QEMU 7.2]
    #[arg(long, value_name = "FILE")]
    pub(crate) template: Option<PathBuf>,
    /// With --to xen, of a guest that came from there and lives in a QEMU: what Xen said of it, the `.home` file that
    /// `receive` has kept, or the save file that it came in [default: by its UUID from the journal, if the stream has one
    /// (QEMU's `validate-uuid`)]
    #[arg(long, value_name = "FILE")]
    pub(crate) home: Option<PathBuf>,
    /// Where `receive` has written down which guests came in
    #[arg(long, value_name = "DIR", default_value = resolve::JOURNAL)]
    pub(crate) journal: PathBuf,
    /// QEMU on this host
    #[command(flatten)]
    pub(crate) destination: Destination,
    /// What to accept, and where to account for it
    #[command(flatten)]
    pub(crate) loss: Loss,
}

/// Formats that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// A migration stream for the QEMU on this host.
    Qemu,
    /// A Xen save file.
    Xen,
    /// The state of KVM's ioctls, as JSON; without memory.
    Kvm,
    /// The neutral model with memory: hyperferry's own checkpoint file.
    Model,
}

/// Arguments of `qemu-args`.
#[derive(Args, Debug)]
pub(crate) struct QemuArgs {
    /// Stream to read; only as far as memory
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// QEMU on this host; named, its name is the first word
    #[command(flatten)]
    pub(crate) destination: Destination,
    /// What to accept, and where to account for it
    #[command(flatten)]
    pub(crate) allow: Allow,
    /// A JSON array instead of words quoted for a shell
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `libvirt-xml`.
#[derive(Args, Debug)]
pub(crate) struct LibvirtXml {
    /// Stream to read; only as far as memory
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// QEMU on the destination
    #[command(flatten)]
    pub(crate) destination: Destination,
    /// What to accept
    #[command(flatten)]
    pub(crate) allow: Allow,
}

/// Arguments of `land`.
#[derive(Args, Debug)]
pub(crate) struct Land {
    /// Stream to read: of Xen, of QEMU, or a checkpoint
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// QEMU on this host
    #[command(flatten)]
    pub(crate) destination: Destination,
    /// What to accept, and where to account for it
    #[command(flatten)]
    pub(crate) loss: Loss,
    /// Where the guest's first serial port goes; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) serial: Option<PathBuf>,
    /// End the guest after this many seconds, instead of staying until QEMU ends
    #[arg(long, value_name = "N", conflicts_with = "detach")]
    pub(crate) seconds: Option<u64>,
    /// Leave once the guest runs, and leave QEMU running
    #[arg(long)]
    pub(crate) detach: bool,
    /// How the guest stays here
    #[command(flatten)]
    pub(crate) stay: Stay,
    /// A JSON document on standard output: how it went
    #[arg(long)]
    pub(crate) json: bool,
    /// More arguments for QEMU, after ours
    #[arg(last = true, value_name = "QEMU ARGUMENTS")]
    pub(crate) extra: Vec<String>,
}

/// Arguments of `diff`.
#[derive(Args, Debug)]
pub(crate) struct Diff {
    /// The left VM: a stream of Xen or QEMU, or a checkpoint
    #[arg(value_name = "A")]
    pub(crate) left: PathBuf,
    /// The right VM
    #[arg(value_name = "B")]
    pub(crate) right: PathBuf,
    /// One JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `completions`.
#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// Shell to complete for
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// The QEMU that takes the guest.
#[derive(Args, Clone, Debug)]
pub(crate) struct Destination {
    /// QEMU's program [default: qemu-system-x86_64 from PATH]
    #[arg(long, value_name = "PATH")]
    pub(crate) qemu: Option<PathBuf>,
    /// What executes the guest [default: kvm where it can be used, else tcg]
    #[arg(long, value_enum)]
    pub(crate) accel: Option<Accel>,
    /// QEMU's machine type; `pc` is its newest i440FX
    #[arg(long, value_name = "NAME", default_value = "pc")]
    pub(crate) machine: String,
    /// CPU model instead of the one made from the guest's CPUID policy
    #[arg(long, value_name = "MODEL")]
    pub(crate) cpu: Option<String>,
    /// Where a disk is on this host, by its name in the guest's configuration (`hda`) or by the source's path
    #[arg(long, value_name = "NAME=PATH", value_parser = pair)]
    pub(crate) map_disk: Vec<(String, String)>,
    /// Which bridge stands in for the source's; `tap:NAME` is a tap device that is plugged in already
    #[arg(long, value_name = "A=B", value_parser = pair)]
    pub(crate) map_bridge: Vec<(String, String)>,
}

/// Accelerators.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Accel {
    /// Hardware virtualization.
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

/// Who we are in TLS, and whom we trust.
#[derive(Args, Debug)]
pub(crate) struct Tls {
    /// This host's certificate, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// The authority whose certificates are trusted, and no other
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_ca: Option<PathBuf>,
}

/// What to accept.
#[derive(Args, Debug, Default)]
pub(crate) struct Allow {
    /// Accept what would be refused, by name; --help lists the names
    #[arg(long, value_name = "NAME", value_parser = allowed, value_delimiter = ',')]
    pub(crate) allow: Vec<String>,
}

/// What to accept, and where to account for it.
#[derive(Args, Debug)]
pub(crate) struct Loss {
    /// What to accept.
    #[command(flatten)]
    pub(crate) allow: Allow,
    /// Write what became of every field, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

impl Allow {
    /// As the translation takes it.
    pub(crate) fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        for name in &self.allow {
            // The parser has let through only names that can be allowed.
            let _ = policy.allow(name);
        }
        policy
    }
}

fn allowed(name: &str) -> Result<String, String> {
    match Policy::default().allow(name) {
        Ok(()) => Ok(name.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.to_owned(), to.to_owned())),
        _ => Err("wanted two words with a `=` between them".to_owned()),
    }
}

/// How a guest is sent, and what every help ends with.
fn send_help() -> String {
    format!("{SEND_HELP}\n\n{}", long_help())
}

/// The refusals with their effects, and the exit codes.
fn long_help() -> String {
    let mut text = String::from(
        "A guest that would misbehave on the destination is refused before anything is touched.\n\
         `--allow NAME` accepts that:\n",
    );
    let mut list = |can_allow: bool| {
        for refusal in refusal::ALL.iter().filter(|refusal| refusal.can_allow == can_allow) {
            let _ = writeln!(text, "  {:14} {}", refusal.name, refusal.effect);
        }
        if can_allow {
            text.push_str("\nRefused in any case:\n");
        }
    };
    list(true);
    list(false);
    text.push('\n');
    text.push_str(EXIT_CODES);
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_that_cannot_be_allowed_are_no_arguments() {
        assert!(allowed("hpet").is_ok());
        assert!(allowed("memory-layout").unwrap_err().contains("cannot be allowed"));
        assert!(allowed("nonsense").is_err());
        assert_eq!(pair("hda=/x=y").unwrap(), ("hda".to_owned(), "/x=y".to_owned()));
        assert!(pair("hda=").is_err());
    }
}
