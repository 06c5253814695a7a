//! What the Xen host tells about a running domain, by its own tools.
//!
//! One shell script asks for everything at once, here or over ssh. Nothing is changed, and the domain is paused by
//! nothing but `xen-hvmctx`, for the moment in which Xen copies its state.
//!
//! Source: Xen 4.17, tools/xl (`xl list -l`, `xl info`), tools/xenstore (`xenstore-ls -f`), tools/misc/xen-hvmctx.c,
//! tools/misc/xen-cpuid.c (`-p DOMID`); output of the lab's host in `testdata`.

mod balloon;
mod clocksource;
mod context;
mod cpuid;
mod device_model;
mod hpet;
mod lapic_timer;
mod platform_device;
mod pv_drivers;
mod toolstack;
mod viridian;

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use hyperferry_translate::refusal::Policy;
use serde_json::Value;

use self::context::Context;
use crate::{
    Check, Finding, Side,
    guest::{Guest, configuration},
    run,
};

/// The checks, in the order in which they are shown.
pub const CHECKS: &[Check<Facts>] = &[
    toolstack::CHECK,
    device_model::CHECK,
    pv_drivers::CHECK,
    platform_device::CHECK,
    viridian::CHECK,
    hpet::CHECK,
    lapic_timer::CHECK,
    clocksource::CHECK,
    balloon::CHECK,
];

/// What a Xen host tells about one domain.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `xl list -l`.
    list: Value,
    /// `xl info`.
    info: BTreeMap<String, String>,
    /// Keys below `/local/domain/ID`.
    xenstore: BTreeMap<String, String>,
    /// `xen-hvmctx`, where it is installed.
    context: Option<Context>,
    /// `xen-cpuid -p`, where it is installed.
    cpuid: hyperferry_vm_model::CpuidPolicy,
}

/// Where a Xen host's tools run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// On this machine.
    Here,
    /// Over ssh: `user@host`.
    Ssh(String),
}

/// Parts are told apart by lines that no tool prints.
const MARK: &str = "=== hyperferry ";

const SCRIPT: &str = r#"
name=$1
id=$(xl domid "$name") || exit
part() { printf '\n=== hyperferry %s\n' "$1"; }
part list; xl list -l "$name"
part info; xl info
part xenstore; xenstore-ls -f "/local/domain/$id"
part hvmctx; xen-hvmctx "$id" 2>/dev/null
part cpuid
for tool in xen-cpuid /usr/lib/xen/bin/xen-cpuid /usr/lib/xen-*/bin/xen-cpuid /usr/libexec/xen/bin/xen-cpuid; do
    command -v "$tool" >/dev/null && "$tool" -p "$id" 2>/dev/null && break
done
part end
"#;

impl Host {
    /// Asks for a domain.
    pub fn ask(&self, domain: &str) -> Result<Facts, String> {
        let mut command = match self {
            Self::Here => {
                let mut command = Command::new("sh");
                command.args(["-s", "--", domain]);
                command
            }
            Self::Ssh(host) => ssh(host, &format!("sh -s -- {}", quote(domain))),
        };
        let answer = pipe(&mut command, SCRIPT.as_bytes())?;
        let answer = String::from_utf8_lossy(&answer.stdout);
        Facts::parse(&answer)
    }
}

/// ssh to a host, which does not ask for passwords: its input is taken.
pub fn ssh(host: &str, line: &str) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-o", "BatchMode=yes", "--", host, line]);
    command
}

/// Runs a command with this input; its output, or why it failed.
pub fn pipe(command: &mut Command, input: &[u8]) -> Result<std::process::Output, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input ends with a status of its own.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() || output.status.code() == Some(4) {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} ended ({}): {}", output.status, said.trim()))
}

/// A word as a POSIX shell reads it back.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl Facts {
    /// Reads what the script printed.
    fn parse(answer: &str) -> Result<Self, String> {
        let mut parts = BTreeMap::new();
        for part in answer.split(MARK).skip(1) {
            let (name, body) = part.split_once('\n').unwrap_or((part, ""));
            parts.insert(name.trim(), body);
        }
        if !parts.contains_key("end") {
            return Err("the Xen host's answer is cut short".to_owned());
        }
        let part = |name| parts.get(name).copied().unwrap_or_default();
        let list = serde_json::from_str(part("list"))
            .map_err(|error| format!("`xl list -l` printed no JSON: {error}"))?;
        let pairs = |text: &str, between: &str| {
            let pair = |line: &str| {
                let (key, value) = line.split_once(between)?;
                Some((key.trim().to_owned(), value.trim().to_owned()))
            };
            text.lines().filter_map(pair).collect::<BTreeMap<_, _>>()
        };
        let xenstore = pairs(part("xenstore"), " = ").into_iter().filter_map(|(key, value)| {
            // /local/domain/ID/…
            let key = key.splitn(5, '/').nth(4)?.to_owned();
            Some((key, value.trim_matches('"').to_owned()))
        });
        Ok(Self {
            list,
            info: pairs(part("info"), ": "),
            xenstore: xenstore.collect(),
            context: Context::parse(part("hvmctx")),
            cpuid: cpuid::parse(part("cpuid")),
        })
    }

    /// What is known of the guest, for a check at the destination.
    pub fn guest(&self) -> Guest {
        let mut guest = Guest::from_config(configuration(&self.list));
        guest.vm.cpuid = self.cpuid.clone();
        guest.vm.clock.tsc_khz = self.context.as_ref().map_or(0, |context| context.tsc_khz);
        guest.clocks = self.context.as_ref().map(Context::clocks);
        guest
    }

    /// What they tell.
    pub fn findings(&self, policy: &Policy) -> Vec<Finding> {
        let mut findings = self.guest().findings(policy);
        findings.extend(run(Side::Source, CHECKS, self, policy));
        findings
    }

    fn key(&self, name: &str) -> Option<&str> {
        self.xenstore.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// For checks that have no severity of their own where a tool is missing.
fn needs_hvmctx(say: &mut crate::Say<'_>) {
    say.note(
        "not known: `xen-hvmctx` is not installed on the Xen host",
        "Debian: apt install xen-utils-common",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;

    /// What the lab's Xen 4.17 says of Linux 6.1 with its PV drivers, and of a bare-metal guest without any.
    fn facts(name: &str) -> Facts {
        Facts::parse(match name {
            "pv" => include_str!("testdata/pv/answer.txt"),
            _ => include_str!("testdata/plain/answer.txt"),
        })
        .unwrap()
    }

    fn severity(facts: &Facts, name: &str) -> Severity {
        let findings = facts.findings(&Policy::default());
        let found = findings.iter().filter(|finding| finding.name == name);
        found.map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    #[test]
    fn a_linux_guest_with_pv_drivers_is_told_from_one_without() {
        let (pv, plain) = (facts("pv"), facts("plain"));
        assert_eq!(severity(&pv, "pv-drivers"), Severity::Refusal);
        assert_eq!(severity(&plain, "pv-drivers"), Severity::Ok);
        assert_eq!(severity(&pv, "hpet"), Severity::Warning);
        assert_eq!(severity(&plain, "hpet"), Severity::Ok);
        assert!(plain.findings(&Policy::default()).iter().all(|finding| !finding.refuses()));
        let guest = plain.guest();
        assert_eq!((guest.vm.config.name.as_str(), guest.vm.config.max_vcpus), ("plain", 2));
        assert!(guest.vm.clock.tsc_khz > 1_000_000);
        assert!(guest.vm.cpuid.leaf(0, 0).is_some_and(|leaf| leaf.ebx == 0x6874_7541), "AuthenticAMD");
    }

    #[test]
    fn each_check_sees_what_it_is_there_for() {
        let plain = facts("plain");
        let with = |change: &dyn Fn(&mut Facts)| {
            let mut facts = plain.clone();
            change(&mut facts);
            facts
        };
        let info = |key: &'static str, value: &'static str| {
            with(&|facts: &mut Facts| drop(facts.info.insert(key.into(), value.into())))
        };
        let store = |key: &'static str, value: &'static str| {
            with(&|facts: &mut Facts| drop(facts.xenstore.insert(key.into(), value.into())))
        };
        assert_eq!(severity(&info("xen_minor", "13"), "toolstack"), Severity::Warning);
        assert_eq!(severity(&info("xen_major", "3"), "toolstack"), Severity::Refusal);
        assert_eq!(
            severity(&store("platform/device-model", "qemu_xen_traditional"), "device-model"),
            Severity::Refusal
        );
        assert_eq!(severity(&store("device/vbd/768/state", "4"), "pv-drivers"), Severity::Refusal);
        assert_eq!(severity(&store("control/feature-suspend", "1"), "pv-drivers"), Severity::Refusal);
        assert_eq!(severity(&store("memory/target", "4096"), "balloon"), Severity::Warning);
        let context = |change: &dyn Fn(&mut Context)| {
            with(&|facts: &mut Facts| change(facts.context.as_mut().unwrap()))
        };
        assert_eq!(severity(&context(&|context| context.viridian = true), "viridian"), Severity::Refusal);
        let timer = |lvt, count| {
            context(&|context| context.lapic_timers = vec![context::LapicTimer { vcpu: 0, lvt, count }])
        };
        assert_eq!(severity(&timer(0x2_00ef, 9), "lapic-timer"), Severity::Warning);
        assert_eq!(severity(&timer(0xef, 9), "lapic-timer"), Severity::Warning);
        assert_eq!(severity(&timer(0x1_00ef, 9), "lapic-timer"), Severity::Ok);
        assert_eq!(severity(&timer(0x4_00ef, 9), "lapic-timer"), Severity::Ok, "TSC deadline");
        let blind = with(&|facts| facts.context = None);
        assert_eq!(
            (severity(&blind, "hpet"), severity(&blind, "lapic-timer")),
            (Severity::Note, Severity::Note)
        );
    }

    #[test]
    fn an_answer_that_is_cut_short_is_none() {
        let answer = include_str!("testdata/plain/answer.txt");
        assert!(Facts::parse(answer.split_at(answer.len() / 2).0).is_err());
        assert!(Facts::parse("").is_err());
    }

    #[test]
    fn no_name_of_a_domain_is_a_command() {
        assert_eq!(quote("a; rm -rf '/'"), r"'a; rm -rf '\''/'\'''");
    }
}
