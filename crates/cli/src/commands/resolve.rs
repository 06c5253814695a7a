//! `hyperferry resolve`: which copy of a guest may run, from the journal, the QEMUs of this host, and the other end.
//!
//! ```text
//! journal ---- stage -+
//! QEMU ------- here --+-> decide -> verdict -> words, or JSON
//! other end -- there -+
//! ```
//!
//! Here it ends what may never run, and lets a guest go on that stands still for a move that was abandoned. At the other
//! end it changes nothing.

mod decide;
mod document;
mod domains;
mod here;
mod peer;
mod unasked;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use hyperferry_relay::journal::{Account, Journal, Settled, Step};
use tokio::task::JoinSet;

pub(super) use self::here::end_leftovers;
use self::{
    decide::{Act, Here, Place, Stage, There, Verdict, decide, is_settled},
    document::Document,
    here::Qemu,
    peer::{Answer, Peer, Reach, printable},
};
use crate::{
    exit::{self, Result},
    output, runtime,
};

/// Where the journal is unless somebody says otherwise.
pub(crate) const JOURNAL: &str = "/var/lib/hyperferry";

/// For how long a move that ended may still change what is at the other end: its copy is made or unmade there.
const SETTLES: Duration = Duration::from_secs(60);

/// How it is asked for, in the long help.
pub(crate) const HELP: &str = "\
Where the journal alone cannot know it, the other end is asked: the Xen host that a guest came from, by `ssh ADDRESS xl list`, \
and the one that it left for as it was reached then. Nothing is changed there. Each host has ten seconds, and none is asked for \
a password. A move of which one copy runs, and nothing is left at the other end, is settled: that is noted in the journal, and \
not asked again as long as nothing changes here.

  hyperferry resolve
  hyperferry resolve --peer 'ssh -p 2222 root@xen1'              where the address is not enough
  hyperferry resolve --peer 192.0.2.7='ssh root@xen1' --peer 192.0.2.8='ssh root@xen2'
  hyperferry resolve --offline                                   this host alone
  hyperferry resolve --json | jq -r '.guests[] | select(.where == \"here\") | .guest'

Exit code 0: it has said which copies may run; 6: two copies of a guest run.";

/// Arguments of `resolve`.
#[derive(Args, Debug)]
pub(crate) struct Resolve {
    /// The journal's directory
    #[arg(value_name = "DIR", default_value = JOURNAL)]
    pub(crate) journal: PathBuf,
    /// What reaches the other host, without a shell: 'ssh -p 2222 root@xen1'; where the journal has guests of several, one
    /// for each, by its name in the journal
    #[arg(long, value_name = "[HOST=]COMMAND", value_parser = peer::reach, conflicts_with = "offline")]
    pub(crate) peer: Vec<Reach>,
    /// Ask no other host
    #[arg(long)]
    pub(crate) offline: bool,
    /// Ask about the moves that were found settled, too
    #[arg(long)]
    pub(crate) again: bool,
    /// Change nothing here either: end no QEMU, let none go on
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// One JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// What the other end answered, or why it did not.
type Asked = std::result::Result<Answer, String>;
/// Who is at the other end, or why nobody can be asked.
type Named = std::result::Result<Peer, String>;

/// What is known of a move.
struct Case {
    account: Account,
    stage: Stage,
    /// Not asked while a move is under way, or where a later move has the same QEMU.
    qemu: Option<Qemu>,
    /// A later move of the same guest tells more.
    superseded: bool,
    /// There is no earlier one, which would count again without this one.
    first: bool,
    /// Whom to ask; nothing where there is nothing to ask.
    peer: Option<Named>,
}

/// Says it for every guest that came in or left.
pub(super) fn run(arguments: &Resolve) -> Result<u8> {
    let journal = if arguments.dry_run {
        Journal::existing(&arguments.journal)
    } else {
        Some(Journal::open(&arguments.journal)?)
    };
    let cases =
        journal.map_or_else(|| Ok(Vec::new()), |journal| runtime::run(resolve(arguments, &journal)))?;
    if arguments.json {
        let guests = cases.iter().map(words::document).collect();
        output::print_json(&Document::new(&arguments.journal, guests))?;
    } else {
        output::print(&cases.iter().map(words::text).collect::<String>())?;
    }
    let mut code = exit::OK;
    for told in cases.iter().filter(|told| told.verdict.place == Place::Two) {
        say!("warning: two copies run: {}", heading(&told.case.account));
        code = exit::UNKNOWN;
    }
    Ok(code)
}

/// A move, and what was found out.
struct Told {
    case: Case,
    answer: Option<Asked>,
    there: There,
    verdict: Verdict,
    /// What reaches a Xen host at the other end, for whoever has to look there.
    by_hand: Option<Vec<String>>,
}

async fn resolve(arguments: &Resolve, journal: &Journal) -> Result<Vec<Told>> {
    if !arguments.dry_run {
        end_leftovers(journal).await?;
    }
    let mut cases = Vec::new();
    let accounts = journal.accounts()?;
    for (at, account) in accounts.iter().enumerate() {
        let mut account = account.clone();
        account.settled.take_if(|_| arguments.again);
        let (earlier, later) = (accounts.get(..at), accounts.get(at + 1..));
        cases.push(Case::of(account, earlier.unwrap_or_default(), later.unwrap_or_default()).await);
    }
    if !arguments.offline {
        let worth = cases.iter().filter(|case| case.is_worth_asking());
        peer::unambiguous(&arguments.peer, worth.map(|case| &case.account))?;
        for case in cases.iter_mut().filter(|case| case.is_worth_asking()) {
            case.peer = Some(Peer::of(&case.account, &arguments.peer));
        }
    }
    let answers = ask(&cases, &Document::new(&arguments.journal, Vec::new())).await;
    let mut told = Vec::new();
    for mut case in cases {
        let answer = case.peer.as_ref().map(|peer| match peer {
            Ok(peer) => answers.get(peer).cloned().unwrap_or_else(|| Err("it was not asked".to_owned())),
            Err(why) => Err(why.clone()),
        });
        let there = case.there(answer.as_ref());
        if !arguments.dry_run {
            case.go_back(there).await?;
            case.settle(answer.as_ref());
        }
        let verdict = case.verdict(there);
        let by_hand = Peer::of(&case.account, &arguments.peer).ok().and_then(Peer::into_xl);
        told.push(Told { case, answer, there, verdict, by_hand });
    }
    Ok(told)
}

/// Asks all that have to be asked, each once, at the same time.
async fn ask(cases: &[Case], own: &Document) -> BTreeMap<Peer, Asked> {
    let mut questions = JoinSet::new();
    let peers = cases.iter().filter_map(|case| case.peer.as_ref()?.as_ref().ok());
    for peer in peers.collect::<BTreeSet<_>>() {
        let peer = peer.clone();
        let own = own.clone();
        questions.spawn(async move { (peer.clone(), peer.ask(&own).await) });
    }
    let mut answers = BTreeMap::new();
    while let Some(answered) = questions.join_next().await {
        answers.extend(answered.ok());
    }
    answers
}

impl Case {
    async fn of(account: Account, earlier: &[Account], later: &[Account]) -> Self {
        let first = !earlier.iter().any(|other| is_same_guest(&account, other));
        // One that came again and failed has changed nothing here.
        let failed = |other: &Account| !other.leaves() && !other.active && !other.may_have_run();
        let counts = |other: &&Account| is_same_guest(&account, other) && !failed(other);
        let mut again = later.iter().filter(counts).peekable();
        let superseded = again.peek().is_some();
        let told_later = again.any(|other| here::monitor(other) == here::monitor(&account));
        let qemu = if account.active || told_later { None } else { Some(Qemu::ask(&account).await) };
        Self { stage: stage(&account), superseded, first, account, qemu, peer: None }
    }

    fn here(&self) -> Here {
        self.qemu.as_ref().map_or(Here::Gone, |qemu| qemu.copy(&self.account))
    }

    /// Whether the other end may know something that the journal does not.
    fn is_worth_asking(&self) -> bool {
        if self.account.active || self.superseded || self.settled().is_some() {
            return false;
        }
        let begun = || self.account.steps.iter().any(|(_, step)| matches!(step, Step::Sending { .. }));
        match self.stage {
            Stage::LeftTold => self.here() == Here::Runs,
            Stage::LeftBack => begun(),
            _ => true,
        }
    }

    /// The guest's name and UUID.
    fn guest(&self) -> (&str, Option<&str>) {
        match self.account.steps.first() {
            Some((_, Step::Begin { guest, .. } | Step::Leave { guest, .. })) => (guest, self.account.uuid()),
            _ => ("GUEST", None),
        }
    }

    fn there(&self, answer: Option<&Asked>) -> There {
        let (guest, uuid) = self.guest();
        match answer {
            Some(Ok(answer)) => answer.of(guest, uuid, self.account.leaves()).there,
            Some(Err(_)) => There::Unasked,
            None => match self.settled() {
                Some(settled) if settled.here => There::Absent,
                Some(_) => There::Runs,
                None => There::Unasked,
            },
        }
    }

    /// What was found when both ends were asked, as long as the copy here is what it was then.
    fn settled(&self) -> Option<&Settled> {
        let then = |settled: &&Settled| if settled.here { Here::Runs } else { Here::Gone };
        self.account.settled.as_ref().filter(|settled| self.here() == then(settled))
    }

    /// Writes down that nothing is left to be asked about.
    fn settle(&mut self, answer: Option<&Asked>) {
        let (Some(Ok(peer)), Some(Ok(answer))) = (&self.peer, answer) else { return };
        let (guest, uuid) = self.guest();
        let seen = answer.of(guest, uuid, self.account.leaves());
        let last = self.account.steps.last().map_or(UNIX_EPOCH, |(at, _)| *at);
        if !is_settled(self.here(), seen.there) || !seen.whole || since(last) < SETTLES {
            return;
        }
        let here = self.here() == Here::Runs;
        if let Err(error) = self.account.settle(here, peer.shown()) {
            say!("warning: the other end will be asked again: {error}");
        }
    }

    /// Lets a guest go on that stands still for a move that nobody makes any more, unless it runs elsewhere.
    async fn go_back(&mut self, there: There) -> Result<()> {
        if self.superseded || self.account.active || !self.account.leaves() {
            return Ok(());
        }
        if let Some(qemu) = self.qemu.take() {
            let free = decide(self.stage, Here::Stopped, there).acts.contains(&Act::Cont);
            self.qemu = Some(here::back(&mut self.account, qemu, free || there == There::Unasked).await?);
            self.stage = stage(&self.account);
        }
        Ok(())
    }

    fn verdict(&self, there: There) -> Verdict {
        if self.superseded && self.here() == Here::Runs {
            let why = "this QEMU runs it, and a later move of it is below";
            return Verdict { place: Place::Two, why, acts: &[], provided: None };
        }
        decide(self.stage, self.here(), there)
    }
}

/// How far it came.
fn stage(account: &Account) -> Stage {
    let ready = account.steps.iter().any(|(_, step)| matches!(step, Step::Ready { .. }));
    match (account.leaves(), account.steps.last().map(|(_, step)| step)) {
        (true, Some(Step::Left)) => Stage::LeftTold,
        (true, Some(Step::Go | Step::Unknown { .. })) => Stage::LeftGo,
        (true, Some(Step::Ready { .. })) => Stage::LeftReady,
        (true, _) => Stage::LeftBack,
        (false, Some(Step::Running { .. })) => Stage::CameRan,
        (false, Some(Step::Go | Step::Unknown { .. })) => Stage::CameGo,
        (false, _) if ready => Stage::CameReady,
        (false, _) => Stage::CameEarly,
    }
}

/// Whether both are of one guest, as far as UUIDs tell.
fn is_same_guest(account: &Account, other: &Account) -> bool {
    account.uuid().is_some_and(|uuid| other.uuid() == Some(uuid))
}

/// The move in a line: which guest, its other end, and when.
fn heading(account: &Account) -> String {
    let (guest, uuid, other) = match account.steps.first() {
        Some((_, Step::Begin { guest, uuid, from })) => {
            (guest, uuid, from.as_ref().map_or_else(String::new, |from| format!(" from {from}")))
        }
        Some((_, Step::Leave { guest, uuid, to, .. })) => (guest, uuid, format!(" by `{}`", to.join(" "))),
        _ => return account.path.display().to_string(),
    };
    let uuid = uuid.as_ref().map_or_else(String::new, |uuid| format!(" ({uuid})"));
    format!("{}, {} s ago", printable(&format!("{guest}{uuid}{other}")), age(account).as_secs())
}

/// How long ago it began.
fn age(account: &Account) -> Duration {
    since(account.steps.first().map_or(UNIX_EPOCH, |(began, _)| *began))
}

fn since(then: SystemTime) -> Duration {
    SystemTime::now().duration_since(then).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: u32, steps: &[Step]) -> Account {
        let steps = steps.iter().map(|step| (UNIX_EPOCH, step.clone())).collect();
        Account { path: format!("/nowhere/{number}.journal").into(), steps, active: false, settled: None }
    }

    fn begin(uuid: Option<&str>) -> Step {
        Step::Begin { guest: "web".to_owned(), uuid: uuid.map(str::to_owned), from: None }
    }

    fn leave(uuid: Option<&str>) -> Step {
        let (uuid, to) = (uuid.map(str::to_owned), vec!["xl".to_owned()]);
        Step::Leave { guest: "web".to_owned(), uuid, to, monitor: "/nowhere/web.qmp".into(), pid: None }
    }

    #[tokio::test]
    async fn a_later_move_of_the_same_guest_tells_more() {
        let running = Step::Running { paused: false };
        let failed = Step::Failed { why: "x".to_owned() };
        let came = || account(1, &[begin(Some("1")), Step::Go, running.clone()]);
        for (later, superseded) in [
            (account(2, &[leave(Some("1"))]), true),
            (account(2, &[leave(Some("2"))]), false),
            (account(2, &[begin(Some("1")), Step::Ready { pid: None }, failed.clone()]), false),
            (account(2, &[begin(Some("1")), Step::Go]), true),
        ] {
            let case = Case::of(came(), &[], std::slice::from_ref(&later)).await;
            assert_eq!(case.superseded, superseded, "{later:?}");
            assert_eq!(case.is_worth_asking(), !superseded);
        }
        let nameless = Case::of(account(1, &[begin(None)]), &[], &[account(2, &[leave(None)])]).await;
        assert!(!nameless.superseded, "without a UUID nobody knows");
    }

    #[tokio::test]
    async fn the_journal_tells_how_far_a_move_came_and_whether_there_is_something_to_ask() {
        let failed = Step::Failed { why: "x".to_owned() };
        let unknown = Step::Unknown { why: "x".to_owned() };
        let (ready, sending) = (Step::Ready { pid: None }, Step::Sending { still: false });
        let running = Step::Running { paused: false };
        let (came, left) = (begin(Some("1")), leave(Some("1")));
        let go = Step::Go;
        for (steps, stage, worth) in [
            (vec![&came, &Step::Loading, &failed], Stage::CameEarly, true),
            (vec![&came, &ready, &failed], Stage::CameReady, true),
            (vec![&came, &ready, &go, &failed], Stage::CameReady, true),
            (vec![&came, &ready], Stage::CameReady, true),
            (vec![&came, &ready, &go], Stage::CameGo, true),
            (vec![&came, &ready, &go, &unknown], Stage::CameGo, true),
            (vec![&came, &ready, &go, &running], Stage::CameRan, true),
            (vec![&left, &failed], Stage::LeftBack, false),
            (vec![&left, &sending], Stage::LeftBack, true),
            (vec![&left, &sending, &ready], Stage::LeftReady, true),
            (vec![&left, &sending, &ready, &failed], Stage::LeftBack, true),
            (vec![&left, &sending, &ready, &go], Stage::LeftGo, true),
            (vec![&left, &sending, &ready, &go, &unknown], Stage::LeftGo, true),
            (vec![&left, &sending, &ready, &go, &Step::Left], Stage::LeftTold, false),
        ] {
            let steps: Vec<_> = steps.into_iter().cloned().collect();
            let mut case = Case::of(account(1, &steps), &[], &[]).await;
            assert_eq!((case.stage, case.is_worth_asking()), (stage, worth), "{steps:?}");
            case.account.active = true;
            assert!(!case.is_worth_asking(), "a move under way");
        }
    }
}
