//! `hyperferry check`: whether a guest can move, as either host sees it.

use std::path::{Path, PathBuf};

use clap::Args;
use hyperferry_preflight::{
    Finding, Severity, Side,
    destination::{Depth, Facts, Plan},
    guest::Guest,
    source::{Host, pipe, quote, ssh},
};
use hyperferry_relay::{endpoint::open_input, session::Landing};
use hyperferry_translate::refusal::Policy;
use hyperferry_vm_model::Vm;
use serde::{Deserialize, Serialize};

use super::resolve;
use crate::{
    args::{Accel, Allow, Destination},
    exit::{self, Error, Result},
    host, output, runtime, stay,
};

pub(crate) const HELP: &str = "\
  hyperferry check                                      is this host fit to take guests?
  hyperferry check --from web.save                      … and this one?
  hyperferry check --domain web                         on the Xen host: is it fit to go?
  hyperferry check --domain web --to kvmhost            both, in one table
  hyperferry check --domain web --xen-host root@xen --to here    the same, asked on the KVM host

Nothing is changed anywhere. Exit code 0: it can move; 4: something refuses, and says what would help. `--allow NAME` \
accepts what its name stands for, as `receive` does. Every check: docs/preflight.md.";

/// The KVM host that we are on.
const HERE: &str = "here";

/// Arguments of `check`.
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The guest that is to come here: a Xen save file or the head of a stream, a checkpoint, or the JSON of `xl list -l`
    #[arg(long, value_name = "GUEST", conflicts_with = "domain")]
    pub(crate) from: Option<PathBuf>,
    /// A domain that runs on the Xen host, by its name
    #[arg(long, value_name = "NAME")]
    pub(crate) domain: Option<String>,
    /// The Xen host, asked over ssh [default: this one]
    #[arg(long, value_name = "USER@HOST", requires = "domain")]
    pub(crate) xen_host: Option<String>,
    /// The KVM host that the domain is to go to, asked over ssh; `here` is this one
    #[arg(long, value_name = "HOST", requires = "domain")]
    pub(crate) to: Option<String>,
    /// QEMU on the destination
    #[command(flatten)]
    pub(crate) destination: Destination,
    /// The platform shim, as `receive` takes it
    #[arg(long, value_name = "WHEN", default_value = "auto", default_missing_value = "on", num_args = 0..=1,
          require_equals = true)]
    pub(crate) platform_shim: PathBuf,
    /// What to accept
    #[command(flatten)]
    pub(crate) allow: Allow,
    /// The journal's directory on the destination
    #[arg(long, value_name = "DIR", default_value = resolve::JOURNAL)]
    pub(crate) journal: PathBuf,
    /// One JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// The document that `--json` writes.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    schema: String,
    version: u32,
    guest: Option<String>,
    movable: bool,
    findings: Vec<Finding>,
}

const SCHEMA: &str = "hyperferry-check";
const VERSION: u32 = 1;

/// Checks, and tells.
pub(super) fn run(arguments: Check) -> Result<u8> {
    let policy = arguments.allow.policy();
    let (guest, findings) = match &arguments.domain {
        Some(domain) => of_domain(&arguments, domain, &policy)?,
        None => {
            let guest = arguments.from.as_deref().map(read).transpose()?;
            let mut findings = guest.as_ref().map_or_else(Vec::new, |guest| guest.findings(&policy));
            findings.extend(here(&arguments, guest.clone(), &policy)?);
            (guest, findings)
        }
    };
    let movable = !findings.iter().any(Finding::refuses);
    let guest = guest.map(|guest| guest.vm.config.name);
    if arguments.json {
        let document = Document { schema: SCHEMA.to_owned(), version: VERSION, guest, movable, findings };
        output::print_json(&document)?;
    } else {
        output::print(&table(guest.as_deref(), &findings))?;
    }
    Ok(if movable { exit::OK } else { exit::UNSUPPORTED })
}

fn read(path: &Path) -> Result<Guest> {
    Ok(Guest::read(open_input(path)?.reader)?)
}

/// The source, and the destination if one is named.
fn of_domain(arguments: &Check, domain: &str, policy: &Policy) -> Result<(Option<Guest>, Vec<Finding>)> {
    let source = arguments.xen_host.clone().map_or(Host::Here, Host::Ssh);
    let facts = source.ask(domain).map_err(Error::Host)?;
    let guest = facts.guest();
    let mut findings = facts.findings(policy);
    match arguments.to.as_deref() {
        None => {}
        Some(HERE) => findings.extend(here(arguments, Some(guest.clone()), policy)?),
        Some(host) => {
            let there = there(host, arguments, &guest)?;
            findings.extend(there.into_iter().filter(|finding| finding.side == Side::Destination));
        }
    }
    // The destination knows better than the source what becomes of the clocks.
    if arguments.to.is_some() {
        let judged = |name: &str| {
            findings.iter().any(|finding| finding.side == Side::Destination && finding.name == name)
        };
        let doubled: Vec<_> = ["hpet", "lapic-timer"].into_iter().filter(|name| judged(name)).collect();
        findings.retain(|finding| finding.side != Side::Source || !doubled.contains(&finding.name.as_str()));
    }
    Ok((Some(guest), findings))
}

/// This host as the destination.
fn here(arguments: &Check, guest: Option<Guest>, policy: &Policy) -> Result<Vec<Finding>> {
    let mut landing = landing(&arguments.destination, policy)?;
    if let Some(guest) = &guest {
        landing.shim = stay::shim(&arguments.platform_shim, &guest.vm, landing.options.accelerator)?;
    }
    let journal = &arguments.journal;
    let gather =
        async { Ok(Facts::gather(Plan { landing: &landing, guest, journal, depth: Depth::All }).await) };
    let facts = runtime::run(runtime::unless_interrupted(gather))?;
    Ok(facts.findings(policy))
}

/// The destination as a receiver would have it. A QEMU or a KVM that is not there is a finding, no error.
fn landing(destination: &Destination, policy: &Policy) -> Result<Landing> {
    let mut destination = destination.clone();
    destination.accel = destination.accel.or(Some(Accel::Kvm));
    let found = host::qemu(destination.qemu.as_deref());
    destination.qemu = found.ok().or_else(|| Some(host::QEMU.into()));
    destination.landing(policy.clone())
}

/// Another host as the destination: its own hyperferry checks.
fn there(host: &str, arguments: &Check, guest: &Guest) -> Result<Vec<Finding>> {
    let words = ["hyperferry", "check", "--from", "-", "--json"].map(str::to_owned).into_iter();
    let line: Vec<_> = words.chain(forwarded(arguments)).map(|word| quote(&word)).collect();
    let answer =
        pipe(&mut ssh(host, &line.join(" ")), guest.to_json().to_string().as_bytes()).map_err(Error::Host)?;
    let document: Document = serde_json::from_slice(&answer.stdout).map_err(|error| {
        let said = String::from_utf8_lossy(&answer.stderr);
        Error::Host(format!("hyperferry on {host} answered no findings: {error}; {}", said.trim()))
    })?;
    if document.schema != SCHEMA || document.version != VERSION {
        let found = format!("{} version {}", document.schema, document.version);
        return Err(Error::Host(format!(
            "hyperferry on {host} answers {found}, wanted {SCHEMA} version {VERSION}"
        )));
    }
    Ok(document.findings)
}

/// Options that concern the destination.
fn forwarded(arguments: &Check) -> Vec<String> {
    let Destination { qemu, accel, machine, cpu, map_disk, map_bridge, .. } = &arguments.destination;
    let mut words = vec![
        format!("--machine={machine}"),
        format!("--journal={}", arguments.journal.display()),
        format!("--platform-shim={}", arguments.platform_shim.display()),
    ];
    words.extend(qemu.iter().map(|path| format!("--qemu={}", path.display())));
    words.extend(accel.iter().map(|accel| match accel {
        Accel::Kvm => "--accel=kvm".to_owned(),
        Accel::Tcg => "--accel=tcg".to_owned(),
    }));
    words.extend(cpu.iter().map(|cpu| format!("--cpu={cpu}")));
    words.extend(map_disk.iter().map(|(from, to)| format!("--map-disk={from}={to}")));
    words.extend(map_bridge.iter().map(|(from, to)| format!("--map-bridge={from}={to}")));
    words.extend(arguments.allow.allow.iter().map(|name| format!("--allow={name}")));
    words
}

/// What a receiver asks before the first page. What refuses ends the move while the guest runs on.
pub(crate) async fn before_pages(landing: &Landing, outline: &Vm, journal: &Path) -> Result<()> {
    let guest = Guest::from_outline(outline.clone());
    let mut findings = guest.findings(&landing.policy);
    let facts = Facts::gather(Plan { landing, guest: Some(guest), journal, depth: Depth::BeforePages }).await;
    findings.extend(facts.findings(&landing.policy));
    let (refused, told): (Vec<_>, Vec<_>) = findings
        .iter()
        .filter(|finding| finding.severity > Severity::Note)
        .partition(|finding| finding.refuses());
    for finding in told {
        say!("{finding}");
    }
    if refused.is_empty() {
        return Ok(());
    }
    let refused: Vec<_> = refused.into_iter().map(ToString::to_string).collect();
    Err(Error::Unsupported(refused.join("\n")))
}

/// For people: one line a finding, and a remedy below it.
fn table(guest: Option<&str>, findings: &[Finding]) -> String {
    let mut text = String::new();
    for (side, title) in [
        (Side::Guest, format!("guest {}", guest.unwrap_or_default())),
        (Side::Source, "Xen host".to_owned()),
        (Side::Destination, "KVM host".to_owned()),
    ] {
        let mut findings = findings.iter().filter(|finding| finding.side == side).peekable();
        if findings.peek().is_some() {
            text.push_str(&format!("{}\n", title.trim()));
        }
        for finding in findings {
            let Finding { name, reason, remedy, .. } = finding;
            text.push_str(&format!("  {:8} {name:16} {reason}\n", word(finding)));
            if !remedy.is_empty() {
                text.push_str(&format!("  {:26}{remedy}\n", ""));
            }
        }
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let refused = findings.iter().filter(|finding| finding.refuses()).count();
    let warnings = match count(Severity::Warning) {
        0 => String::new(),
        1 => ", with a warning".to_owned(),
        count => format!(", with {count} warnings"),
    };
    text.push_str(&match (refused, guest) {
        (0, Some(_)) => format!("it can move{warnings}\n"),
        (0, None) => format!("guests can come here{warnings}\n"),
        (refused, _) => format!("not like this: refused by {refused}{warnings}\n"),
    });
    text
}

fn word(finding: &Finding) -> &'static str {
    match finding.severity {
        Severity::Ok => "ok",
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Refusal if finding.allowed => "allowed",
        Severity::Refusal => "refused",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn what_concerns_the_destination_reaches_it() {
        let line = "hyperferry check --domain web --to kvm --qemu /q --accel tcg --cpu max,x=on --map-disk hda=/d \
                    --map-bridge a=b --allow hpet,intx --journal /j --platform-shim=off --machine pc-i440fx-7.2";
        let parse = |words: &[&str]| match Cli::try_parse_from(words).unwrap().command {
            Command::Check(check) => check,
            other => panic!("{other:?}"),
        };
        let words: Vec<_> = line.split_whitespace().collect();
        let check = parse(&words);
        let forwarded = forwarded(&check);
        let mut again = vec!["hyperferry", "check", "--from", "-"];
        again.extend(forwarded.iter().map(String::as_str));
        let there = parse(&again);
        assert_eq!(format!("{:?}", there.destination), format!("{:?}", check.destination));
        assert_eq!(there.allow.allow, check.allow.allow);
        assert_eq!((there.journal, there.platform_shim), (check.journal, check.platform_shim));
    }
}
