//! What `xl list -v` prints of a Xen host's domains.
//!
//! Source: Xen `tools/xl/xl_info.c`, `list_domains` (the same in 4.14, 4.17 and 4.20):
//!
//! ```text
//! Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tSecurity Label
//! %-40s                                      %5d  %5lu   %5d     %c%c%c%c%c%c  %8.1f %s-…-%s %8x %16s
//! ```
//!
//! State: running, blocked, paused, shut down, why (`-rscwS`: power off, reboot, suspend, crash, watchdog, soft reset),
//! dying. A name may hold spaces, so a line is read from its UUID backwards.

use super::decide::There;
use crate::commands::send::leftover::INCOMING;

/// The host's own domain, which is in every list that can be trusted.
const DOMAIN_0: u32 = 0;

/// A domain of a Xen host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Domain {
    /// Its name.
    pub(super) name: String,
    /// Its number.
    pub(super) id: u32,
    /// `-b----`.
    pub(super) state: String,
    /// Its UUID.
    pub(super) uuid: String,
}

/// Reads the whole list: one line that is not understood, and nothing is known.
pub(super) fn parse(text: &str) -> Result<Vec<Domain>, String> {
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    if !(heading.starts_with("Name ") && heading.contains("UUID")) {
        return Err(format!("found {heading:?} where `xl list -v` prints its heading"));
    }
    let domain = |line: &str| Domain::parse(line).ok_or_else(|| format!("found {line:?}, wanted a domain"));
    let domains: Vec<_> = lines.map(domain).collect::<Result<_, _>>()?;
    if !domains.iter().any(|domain| domain.id == DOMAIN_0) {
        return Err("its list has no domain 0".to_owned());
    }
    Ok(domains)
}

impl Domain {
    fn parse(line: &str) -> Option<Self> {
        let start = |word: &str| word.as_ptr().addr().checked_sub(line.as_ptr().addr());
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let at = words.iter().rposition(|word| is_uuid(word))?;
        let [id, memory, vcpus, state, time] = *words.get(at.checked_sub(5)?..at)? else { return None };
        let numbers =
            memory.parse::<u64>().is_ok() && vcpus.parse::<u32>().is_ok() && time.parse::<f64>().is_ok();
        let known = state.len() == 6 && state.bytes().all(|letter| b"-rbpsdcwS?".contains(&letter));
        let name = line.get(..start(id)?)?.trim_end();
        (numbers && known && !name.is_empty()).then(|| Self {
            name: name.to_owned(),
            id: id.parse().unwrap_or(u32::MAX),
            state: state.to_owned(),
            uuid: words.get(at).map_or_else(String::new, |uuid| (*uuid).to_owned()),
        })
    }

    fn flag(&self, at: usize) -> char {
        self.state.chars().nth(at).unwrap_or('-')
    }

    /// What it is of a guest with this name; nothing if it is about to vanish.
    fn copy_of(&self, guest: &str) -> Option<There> {
        let (paused, down, why, dying) = (self.flag(2), self.flag(3), self.flag(4), self.flag(5));
        let suffix = self.name.strip_prefix(guest);
        Some(match (down, why) {
            _ if dying == 'd' => return None,
            ('s', 's') if suffix == Some(AWAY) => There::Aside,
            ('s', 's') => There::Suspended,
            // It is about to start again.
            ('s', 'r' | 'S') => There::Runs,
            ('s', _) => There::Ended,
            _ if paused == 'p' && suffix == Some(INCOMING) => There::Incoming,
            _ if paused == 'p' => There::Paused,
            _ => There::Runs,
        })
    }

    /// In words.
    pub(super) fn told(&self, guest: &str) -> String {
        let how = match self.copy_of(guest) {
            Some(There::Aside | There::Suspended) => "is suspended",
            Some(There::Incoming) => "is paused and has never run",
            Some(There::Paused) => "is paused",
            Some(There::Ended) => "has shut down",
            Some(_) => "runs",
            None => "is dying",
        };
        format!("{} {how} (domain {}, {})", self.name, self.id, self.state)
    }
}

/// What a sender appends to the name of a guest that it has given away.
pub(super) const AWAY: &str = "--migratedaway";

/// What a host has of a guest: the copy that counts, and all of its domains.
///
/// Where several stand still, the first of these is the one that counts. One that came tells more than one that was
/// given away if the guest was sent there, and less if it came from there.
pub(super) fn copies<'a>(
    domains: &'a [Domain],
    guest: &str,
    uuid: Option<&str>,
    leaves: bool,
) -> (There, Option<&'a Domain>, Vec<&'a Domain>) {
    let (first, second) =
        if leaves { (There::Incoming, There::Aside) } else { (There::Aside, There::Incoming) };
    let order = [There::Runs, There::Paused, There::Suspended, first, second, There::Ended];
    let named = |domain: &&Domain| {
        let suffix = domain.name.strip_prefix(guest);
        suffix.is_some_and(|suffix| ["", AWAY, INCOMING].contains(&suffix))
    };
    let same = |domain: &&Domain| match uuid {
        Some(uuid) => domain.uuid.eq_ignore_ascii_case(uuid),
        None => named(domain),
    };
    let ours: Vec<_> = domains.iter().filter(same).collect();
    let found = |wanted| ours.iter().copied().find(|domain| domain.copy_of(guest) == Some(wanted));
    if ours.iter().filter(|domain| domain.copy_of(guest) == Some(There::Runs)).count() > 1 {
        return (There::Two, found(There::Runs), ours);
    }
    if let Some((there, domain)) = order.iter().find_map(|there| Some((*there, found(*there)?))) {
        return (there, Some(domain), ours);
    }
    let namesake =
        |domain: &&Domain| domain.name == guest && domain.copy_of(guest).is_some() && !same(domain);
    match domains.iter().find(namesake) {
        Some(domain) => (There::Namesake, Some(domain), vec![domain]),
        None => (There::Absent, None, ours),
    }
}

/// Eight digits, three times four, twelve.
fn is_uuid(word: &str) -> bool {
    let groups: Vec<_> = word.split('-').map(str::len).collect();
    groups == [8, 4, 4, 4, 12] && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "404ed65b-3579-49d9-afd7-4b03c526326d";

    /// As Xen 4.17 prints it: tabs in the heading, `%-40s %5d %5lu %5d     %c%c%c%c%c%c  %8.1f` and a UUID below.
    fn list(domains: &[(&str, &str, &str)]) -> String {
        let mut text = "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            \
                        Reason-Code\tSecurity Label\n"
            .to_owned();
        let dom0 = ("Domain-0", "r-----", "00000000-0000-0000-0000-000000000000");
        for (id, (name, state, uuid)) in std::iter::once(&dom0).chain(domains).enumerate() {
            let reason = if state.contains('s') { "2" } else { "-" };
            let label = "-";
            text.push_str(&format!(
                "{name:<40} {id:>5} {:>5} {:>5}     {state}  {:>8.1} {uuid} {reason:>8} {label:>16}\n",
                16, 2, 3.5
            ));
        }
        text
    }

    fn seen(domains: &[(&str, &str, &str)], leaves: bool) -> There {
        copies(&parse(&list(domains)).unwrap(), "web", Some(UUID), leaves).0
    }

    #[test]
    fn a_domain_is_told_by_its_state_and_its_name() {
        const OTHER: &str = "11111111-2222-3333-4444-555555555555";
        for (domains, there) in [
            (&[][..], There::Absent),
            (&[("web", "-b----", UUID)], There::Runs),
            (&[("web", "r-----", UUID)], There::Runs),
            (&[("web", "------", UUID)], There::Runs),
            (&[("web", "--p---", UUID)], There::Paused),
            (&[("web", "-bp---", UUID)], There::Paused),
            (&[("web", "---ss-", UUID)], There::Suspended),
            (&[("web", "---s--", UUID)], There::Ended),
            (&[("web", "---sc-", UUID)], There::Ended),
            (&[("web", "---sr-", UUID)], There::Runs),
            (&[("web", "--ps-d", UUID)], There::Absent),
            (&[("web--migratedaway", "---ss-", UUID)], There::Aside),
            (&[("web--migratedaway", "-b----", UUID)], There::Runs),
            (&[("web--incoming", "--p---", UUID)], There::Incoming),
            (&[("web--incoming", "r-----", UUID)], There::Runs),
            (&[("renamed by hand", "---ss-", UUID)], There::Suspended),
            (&[("web", "-b----", OTHER)], There::Namesake),
            (&[("web--migratedaway", "---ss-", OTHER)], There::Absent),
            (&[("web", "-b----", OTHER), ("web--migratedaway", "---ss-", UUID)], There::Aside),
            (&[("web", "-b----", UUID), ("web--incoming", "--p---", UUID)], There::Runs),
            (&[("web", "-b----", UUID), ("web--migratedaway", "-b----", UUID)], There::Two),
        ] {
            assert_eq!(seen(domains, false), there, "{domains:?}");
        }
        let both = [("web--migratedaway", "---ss-", UUID), ("web--incoming", "--p---", UUID)];
        assert_eq!((seen(&both, false), seen(&both, true)), (There::Aside, There::Incoming));
        let unnamed = parse(&list(&[("web", "-b----", OTHER)])).unwrap();
        assert_eq!(
            copies(&unnamed, "web", None, false).0,
            There::Runs,
            "a guest without a UUID goes by its name"
        );
    }

    #[test]
    fn a_name_may_hold_what_it_likes() {
        let odd = format!("a 7 16 1 r----- 0.1 {UUID} - it's");
        let text = list(&[(&odd, "---ss-", UUID), (&"x".repeat(60), "-b----", UUID)]);
        let domains = parse(&text).unwrap();
        assert_eq!((domains[1].name.as_str(), domains[1].id), (odd.as_str(), 1));
        assert_eq!((domains[2].name.len(), domains[2].state.as_str()), (60, "-b----"));
    }

    #[test]
    fn what_is_no_list_is_refused_whole() {
        let good = list(&[("web", "-b----", UUID)]);
        assert!(parse(&good).is_ok());
        assert!(parse("").unwrap_err().contains("heading"));
        assert!(parse(&good.replace("Domain-0 ", "xl: error")).is_ok(), "whatever it is called");
        assert!(parse(&format!("{good}web\n")).unwrap_err().contains("wanted a domain"));
        assert!(parse(good.split_at(good.len() - 40).0).unwrap_err().contains("wanted a domain"));
        let heading: String =
            good.lines().take(1).chain(good.lines().skip(2)).map(|line| format!("{line}\n")).collect();
        assert!(parse(&heading).unwrap_err().contains("no domain 0"));
        let plain = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n";
        assert!(parse(plain).is_err(), "without UUIDs");
    }
}
