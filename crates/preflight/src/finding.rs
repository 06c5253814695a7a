use std::fmt;

use hyperferry_translate::{
    refusal::{self, Policy},
    report,
};
use serde::{Deserialize, Serialize};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// The guest works, and someone may notice.
    Warning,
    /// The guest cannot move like this.
    Refusal,
}

/// Whom a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The guest's configuration.
    Guest,
    /// The Xen host and its domain.
    Source,
    /// The KVM host.
    Destination,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whom it is about.
    pub side: Side,
    /// The check's name; those of refusals that can be allowed are what `--allow` takes.
    pub name: String,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub reason: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// It is a refusal that the user has allowed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allowed: bool,
}

impl Finding {
    /// A finding of a translation.
    pub fn of_report(side: Side, finding: &report::Finding, policy: &Policy) -> Self {
        let severity = match finding.severity {
            report::Severity::Note => Severity::Note,
            report::Severity::Warning => Severity::Warning,
            report::Severity::Refusal => Severity::Refusal,
        };
        Self {
            side,
            name: finding.name.to_owned(),
            severity,
            reason: finding.what.clone(),
            remedy: finding.remedy.clone(),
            allowed: severity == Severity::Refusal && allows(policy, finding.name),
        }
    }

    /// Whether it keeps the guest from moving.
    pub fn refuses(&self) -> bool {
        self.severity == Severity::Refusal && !self.allowed
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Refusal if self.allowed => "allowed",
            Severity::Refusal => "refused",
        };
        write!(f, "{severity} [{}]: {}", self.name, self.reason)?;
        if !self.remedy.is_empty() {
            write!(f, "\n    {}", self.remedy)?;
        }
        Ok(())
    }
}

fn allows(policy: &Policy, name: &str) -> bool {
    refusal::by_name(name).is_some_and(|refusal| policy.allows(refusal))
}

/// A check over facts of one kind.
#[derive(Debug)]
pub struct Check<F> {
    /// Its name.
    pub name: &'static str,
    /// The worst that it says.
    pub worst: Severity,
    /// The check.
    pub judge: fn(&F, &mut Say<'_>),
}

/// What a check says.
#[derive(Debug)]
pub struct Say<'a> {
    side: Side,
    name: &'static str,
    policy: &'a Policy,
    findings: Vec<Finding>,
}

impl Say<'_> {
    /// As it should be.
    pub fn ok(&mut self, reason: impl Into<String>) {
        self.say(Severity::Ok, reason.into(), String::new());
    }

    /// Good to know.
    pub fn note(&mut self, reason: impl Into<String>, remedy: impl Into<String>) {
        self.say(Severity::Note, reason.into(), remedy.into());
    }

    /// Someone may notice.
    pub fn warn(&mut self, reason: impl Into<String>, remedy: impl Into<String>) {
        self.say(Severity::Warning, reason.into(), remedy.into());
    }

    /// The guest cannot move like this.
    pub fn refuse(&mut self, reason: impl Into<String>, remedy: impl Into<String>) {
        self.say(Severity::Refusal, reason.into(), remedy.into());
    }

    fn say(&mut self, severity: Severity, reason: String, remedy: String) {
        let allowed = severity == Severity::Refusal && allows(self.policy, self.name);
        let (side, name) = (self.side, self.name.to_owned());
        self.findings.push(Finding { side, name, severity, reason, remedy, allowed });
    }
}

/// Runs checks, in their order.
pub fn run<F>(side: Side, checks: &[Check<F>], facts: &F, policy: &Policy) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in checks {
        let mut say = Say { side, name: check.name, policy, findings: Vec::new() };
        (check.judge)(facts, &mut say);
        findings.append(&mut say.findings);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_a_name_to_allow_can_be_allowed() {
        let judge = |(): &(), say: &mut Say<'_>| say.refuse("no", "");
        let checks = [
            Check { name: "hpet", worst: Severity::Refusal, judge },
            Check { name: "kvm", worst: Severity::Refusal, judge },
        ];
        let mut policy = Policy::default();
        policy.allow("hpet").unwrap();
        let refuses: Vec<_> = run(Side::Source, &checks, &(), &policy).iter().map(Finding::refuses).collect();
        assert_eq!(refuses, [false, true]);
    }
}
