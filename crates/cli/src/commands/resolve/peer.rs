//! The other end of a move: who it is, and what it says of its copies. Nothing is changed there.
//!
//! A Xen host is asked for all its domains (`xl list -v`), so that no name of a guest stands in the command. A host with
//! `hyperferry` is asked what its own journal and its QEMUs say (`hyperferry resolve --json`).

use std::{path::Path, process::Stdio, time::Duration};

use hyperferry_relay::journal::{Account, Step};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    time::timeout,
};

use super::{
    decide::There,
    document::{Document, Move},
    domains::{self, Domain},
};
use crate::{
    commands::send::leftover::{SSH_FAILED, before_xl},
    exit::{self, Error},
};

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What keeps an ssh from asking for a password, and from waiting for longer than we do.
const SSH: [&str; 4] = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=8"];
/// What a Xen host is asked.
const LIST: [&str; 3] = ["xl", "list", "-v"];
/// Our own program's name.
const HYPERFERRY: &str = "hyperferry";
/// A shell's exit code, where there is no such command.
const NO_COMMAND: i32 = 127;
/// Our own, of one that answers to the name `xl`.
const OUR_USAGE: i32 = exit::USAGE as i32;
/// The longest answer that is read: some ten thousand domains.
const ANSWER_MAX: u64 = 1 << 20;
/// The longest of its words that are shown.
const WORDS_MAX: usize = 200;

/// What reaches the other host, as the user says it: `COMMAND`, or `HOST=COMMAND` for one of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    host: Option<String>,
    words: Vec<String>,
}

/// Reads the value of `--peer`.
pub(super) fn reach(text: &str) -> Result<Reach, String> {
    let named =
        text.split_once('=').filter(|(host, _)| !host.is_empty() && !host.contains(char::is_whitespace));
    let (host, command) = named.map_or((None, text), |(host, command)| (Some(host.to_owned()), command));
    let words: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        return Err("wanted a command that reaches the host: 'ssh -p 2222 root@xen1'".to_owned());
    }
    Ok(Reach { host, words })
}

/// Whether a program has another host's shell read the words behind it.
pub(super) fn is_ssh(program: &str) -> bool {
    Path::new(program).file_name() == Some("ssh".as_ref())
}

/// Somebody who can be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    /// The command that reaches it, without what it is to do.
    pub(super) reach: Vec<String>,
    /// Who took the guest there, if that was no `xl`.
    receiver: Option<Receiver>,
}

/// A `hyperferry receive`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Receiver {
    program: String,
    journal: Option<String>,
}

/// What it answered.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// A Xen host's domains.
    Domains(Vec<Domain>),
    /// What a hyperferry there makes of its journal.
    Journal(Box<Document>),
}

/// What an answer tells of one guest.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    /// The copy there.
    pub(super) there: There,
    /// It, if it is a Xen host's.
    pub(super) domain: Option<&'a Domain>,
    /// It, if it is a QEMU's.
    pub(super) qemu: Option<&'a Move>,
    /// In words.
    pub(super) told: String,
    /// Whether a copy there would have been seen: a journal knows those that it has.
    pub(super) whole: bool,
}

impl Peer {
    /// The other end of a move, or why nobody can be asked.
    pub(super) fn of(account: &Account, named: &[Reach]) -> Result<Self, String> {
        let (reach, receiver) = match account.steps.first() {
            // What begins like an option is no address.
            Some((_, Step::Begin { from: Some(from), .. })) if !from.starts_with('-') => {
                (Some(vec!["ssh".to_owned(), from.clone()]), None)
            }
            Some((_, Step::Leave { to, .. })) => match Receiver::of(to) {
                Some((reach, receiver)) => (Some(reach.to_vec()), Some(receiver)),
                None => (before_xl(to).map(<[String]>::to_vec), None),
            },
            _ => (None, None),
        };
        let named = named.iter().find(|reach| reach.is_for(account)).map(|reach| reach.words.clone());
        match named.or(reach) {
            Some(reach) => Ok(Self { reach, receiver }),
            None => Err("the journal does not tell how to reach it; --peer COMMAND says so".to_owned()),
        }
    }

    /// What reaches an `xl` there, if there is one.
    pub(super) fn into_xl(self) -> Option<Vec<String>> {
        self.receiver.is_none().then_some(self.reach)
    }

    /// The command that reaches it, for people.
    pub(super) fn shown(&self) -> String {
        if self.reach.is_empty() { "this host".to_owned() } else { self.reach.join(" ") }
    }

    /// Asks it; our own words are no answer.
    pub(super) async fn ask(&self, own: &Document) -> Result<Answer, String> {
        if self.receiver.is_none() {
            match self.run(&LIST.map(str::to_owned)).await {
                Ok(text) => {
                    return domains::parse(&text).map(Answer::Domains).map_err(|why| printable(&why));
                }
                // No `xl`, or one that is ours: a host that has QEMUs.
                Err(Failed { code: Some(NO_COMMAND | OUR_USAGE), why }) => {
                    return self.ask_hyperferry(own).await.map_err(|other| format!("{why}; {other}"));
                }
                Err(Failed { why, .. }) => return Err(why),
            }
        }
        self.ask_hyperferry(own).await
    }

    async fn ask_hyperferry(&self, own: &Document) -> Result<Answer, String> {
        let text = self.run(&self.resolve()).await.map_err(|failed| failed.why)?;
        let document = Document::parse(&text).map_err(|why| printable(&why))?;
        if document.is_of_the_same_journal(own) {
            return Err(
                "that leads back to this host; --peer COMMAND says how to reach the other one".to_owned()
            );
        }
        Ok(Answer::Journal(Box::new(document)))
    }

    /// What a hyperferry there is asked.
    fn resolve(&self) -> Vec<String> {
        let program = self.receiver.as_ref().map_or(HYPERFERRY, |receiver| &receiver.program);
        let journal = self.receiver.as_ref().and_then(|receiver| receiver.journal.as_deref());
        let words = [program, "resolve", "--json", "--offline", "--dry-run"].into_iter().chain(journal);
        words.map(str::to_owned).collect()
    }

    /// What its command line is, to the word.
    fn line(&self, words: &[String]) -> Vec<String> {
        let mut line = self.reach.clone();
        if line.first().is_some_and(|program| is_ssh(program)) {
            line.splice(1..1, SSH.map(str::to_owned));
        }
        line.extend_from_slice(words);
        line
    }

    async fn run(&self, words: &[String]) -> Result<String, Failed> {
        let line = self.line(words);
        let Some((program, arguments)) = line.split_first() else {
            return Err(Failed::because("no command"));
        };
        let mut command = Command::new(program);
        // Out of the terminal's reach: nothing may ask for a password.
        command.args(arguments).process_group(0).env("SSH_ASKPASS_REQUIRE", "never").kill_on_drop(true);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child =
            spawned.map_err(|error| Failed::because(&format!("{program} cannot be started: {error}")))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let told = async { tokio::join!(all(stdout), all(stderr), child.wait()) };
        let Ok((stdout, stderr, status)) = timeout(PATIENCE, told).await else {
            return Err(Failed::because(&format!("no answer in {} s", PATIENCE.as_secs())));
        };
        let said = stderr
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty())
            .unwrap_or("without a word")
            .to_owned();
        let asked = words.join(" ");
        match status.map(|status| (status.success(), status.code())) {
            Ok((true, _)) => Ok(stdout),
            Ok((_, Some(SSH_FAILED))) => Err(Failed::because(&format!("it cannot be reached: {said}"))),
            Ok((_, Some(code))) => Err(Failed {
                code: Some(code),
                ..Failed::because(&format!("`{asked}` ended with {code}: {said}"))
            }),
            Ok((_, None)) => Err(Failed::because(&format!("`{asked}` was ended by a signal"))),
            Err(error) => Err(Failed::because(&error.to_string())),
        }
    }
}

struct Failed {
    code: Option<i32>,
    why: String,
}

impl Failed {
    fn because(why: &str) -> Self {
        Self { code: None, why: printable(why).chars().take(WORDS_MAX).collect() }
    }
}

/// All that comes, up to a limit.
async fn all(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut found = Vec::new();
    if let Some(from) = from
        && let Err(error) = from.take(ANSWER_MAX).read_to_end(&mut found).await
    {
        tracing::debug!(%error, "an answer broke off");
    }
    String::from_utf8_lossy(&found).into_owned()
}

/// Words of a stranger, for a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl Reach {
    /// Whether it leads to the other end of this move.
    fn is_for(&self, account: &Account) -> bool {
        let Some(host) = &self.host else { return true };
        match account.steps.first() {
            Some((_, Step::Begin { from, .. })) => from.as_ref() == Some(host),
            Some((_, Step::Leave { to, .. })) => to.contains(host),
            _ => false,
        }
    }
}

/// Refuses a command that would have to reach several hosts.
pub(super) fn unambiguous<'a>(
    named: &[Reach],
    accounts: impl Iterator<Item = &'a Account>,
) -> Result<(), Error> {
    if named.iter().all(|reach| reach.host.is_some()) {
        return Ok(());
    }
    let of_its_own =
        |account: &&Account| named.iter().any(|reach| reach.host.is_some() && reach.is_for(account));
    let rest = accounts.filter(|account| !of_its_own(account));
    let mut hosts: Vec<_> = rest
        .map(|account| match account.steps.first() {
            Some((_, Step::Begin { from, .. })) => {
                from.clone().unwrap_or_else(|| "an unknown host".to_owned())
            }
            _ => Peer::of(account, &[]).map_or_else(|_| "an unknown host".to_owned(), |peer| peer.shown()),
        })
        .collect();
    hosts.sort();
    hosts.dedup();
    match hosts.as_slice() {
        [_, _, ..] => Err(Error::Usage(format!(
            "--peer names one host, and the journal has guests of several: {}; say --peer HOST='COMMAND' for each",
            hosts.join(", ")
        ))),
        _ => Ok(()),
    }
}

impl Receiver {
    /// Of a command that ends in `hyperferry receive …`; and what reaches its host.
    fn of(to: &[String]) -> Option<(&[String], Self)> {
        let is_ours = |program: &str| Path::new(program).file_name() == Some(HYPERFERRY.as_ref());
        let at = to.windows(2).position(
            |pair| matches!(pair, [program, command] if is_ours(program) && command == "receive"),
        )?;
        let (reach, command) = to.split_at_checked(at)?;
        let joined = command.iter().find_map(|word| word.strip_prefix("--journal="));
        let named = command.iter().zip(command.iter().skip(1)).find(|(option, _)| *option == "--journal");
        let journal = named.map(|(_, directory)| directory.as_str()).or(joined).map(str::to_owned);
        Some((reach, Self { program: command.first()?.clone(), journal }))
    }
}

impl Answer {
    /// What it tells of a guest.
    pub(super) fn of(&self, guest: &str, uuid: Option<&str>, leaves: bool) -> Seen<'_> {
        match self {
            Self::Domains(domains) => {
                let (there, domain, ours) = domains::copies(domains, guest, uuid, leaves);
                let told: Vec<_> = ours.iter().map(|domain| domain.told(guest)).collect();
                let told = match there {
                    There::Absent if told.is_empty() => format!("no {guest}"),
                    There::Namesake => format!("{}, of another UUID", told.join(", ")),
                    _ => told.join(", "),
                };
                Seen { there, domain, qemu: None, told, whole: true }
            }
            Self::Journal(document) => {
                let found = document.guests.iter().rfind(|found| match uuid {
                    Some(uuid) => found.uuid.as_deref() == Some(uuid),
                    None => found.guest == guest,
                });
                let there = found.map_or(There::Absent, Move::copy);
                let told = match found
                    .and_then(|found| found.here.as_ref())
                    .and_then(|here| here.state.as_deref())
                {
                    Some(state) => format!("QEMU is in state {state}"),
                    None => format!("no QEMU with {guest}"),
                };
                Seen { there, domain: None, qemu: found, told, whole: found.is_some() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn account(step: Step) -> Account {
        Account { path: "/j/1.journal".into(), steps: vec![(UNIX_EPOCH, step)], active: false, settled: None }
    }

    fn came(from: Option<&str>) -> Account {
        account(Step::Begin { guest: "web".to_owned(), uuid: None, from: from.map(str::to_owned) })
    }

    fn left(to: &str) -> Account {
        let (guest, monitor) = ("web".to_owned(), "/q".into());
        account(Step::Leave { guest, uuid: None, to: words(to), monitor, pid: None })
    }

    #[test]
    fn the_other_end_is_asked_as_it_was_reached() {
        let line = |account: &Account, named: &[&str]| {
            let named: Vec<_> = named.iter().map(|text| reach(text).unwrap()).collect();
            let peer = Peer::of(account, &named)?;
            let question = match peer.receiver {
                Some(_) => peer.resolve(),
                None => LIST.map(str::to_owned).to_vec(),
            };
            Ok::<_, String>(peer.line(&question).join(" "))
        };
        let ssh = SSH.join(" ");
        for (account, named, asked) in [
            (came(Some("192.0.2.7")), &[][..], format!("ssh {ssh} 192.0.2.7 xl list -v")),
            (
                came(Some("192.0.2.7")),
                &["ssh -p 2222 root@xen1"],
                format!("ssh {ssh} -p 2222 root@xen1 xl list -v"),
            ),
            (came(None), &["/opt/reach xen1"], "/opt/reach xen1 xl list -v".to_owned()),
            (
                came(Some("a")),
                &["b=ssh b", "a=/usr/bin/ssh -o X=y c"],
                format!("/usr/bin/ssh {ssh} -o X=y c xl list -v"),
            ),
            (left("ssh -p 22 xen xl migrate-receive -p"), &[], format!("ssh {ssh} -p 22 xen xl list -v")),
            (left("ssh xl xl migrate-receive"), &[], format!("ssh {ssh} xl xl list -v")),
            (left("xl migrate-receive"), &[], "xl list -v".to_owned()),
            (left("sh -c anything"), &["ssh xen"], format!("ssh {ssh} xen xl list -v")),
            (
                left("ssh kvm2 /opt/hyperferry receive --journal /j --paused"),
                &[],
                format!("ssh {ssh} kvm2 /opt/hyperferry resolve --json --offline --dry-run /j"),
            ),
        ] {
            assert_eq!(line(&account, named), Ok(asked));
        }
        assert!(line(&came(None), &[]).unwrap_err().contains("--peer"));
        assert!(line(&came(Some("-oX")), &[]).unwrap_err().contains("--peer"), "no address");
        assert!(line(&left("sh -c anything"), &[]).unwrap_err().contains("--peer"));
    }

    #[test]
    fn one_command_does_not_reach_two_hosts() {
        let two = [came(Some("a")), came(Some("b")), came(Some("a"))];
        let check = |named: &[&str]| {
            let named: Vec<_> = named.iter().map(|text| reach(text).unwrap()).collect();
            unambiguous(&named, two.iter())
        };
        assert!(check(&[]).is_ok() && check(&["a=ssh x", "ssh y"]).is_ok());
        assert!(check(&["ssh y"]).unwrap_err().to_string().contains("several: a, b;"));
        assert!(reach("a=").is_err() && reach(" ").is_err());
    }

    #[tokio::test]
    async fn who_does_not_answer_is_told_with_the_reason() {
        let ask = async |line: &str| {
            let peer = Peer { reach: words(line), receiver: None };
            peer.ask(&Document::new("/j".as_ref(), Vec::new())).await.unwrap_err()
        };
        assert!(ask("/nowhere/ssh").await.contains("cannot be started"));
        assert!(ask("false").await.contains("`xl list -v` ended with 1: without a word"));
        let script = |line: &str| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("reach");
            std::fs::write(&path, line).unwrap();
            (format!("sh {}", path.display()), folder)
        };
        for (line, why) in [
            ("echo 'ssh: no route' >&2; exit 255", "it cannot be reached: ssh: no route"),
            ("echo 'sh: xl: not found' >&2; exit 127", "`xl list -v` ended with 127: sh: xl: not found"),
            ("echo Domains:", "found \"Domains:\" where"),
            ("read line && echo has input; kill -9 $$", "was ended by a signal"),
            ("printf 'a\\033[2Jb' >&2; exit 1", "a?[2Jb"),
        ] {
            let (reach, _folder) = script(line);
            let said = ask(&reach).await;
            assert!(said.contains(why), "{line}: {said}");
        }
    }
}
