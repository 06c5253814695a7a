//! A systemd scope around QEMU: a control group of its own, which outlives the login that started it.
//!
//! Source: systemd 252, `man systemd-run` and `man systemd.scope`. `systemd-run --scope` registers itself and then becomes
//! the program: process id, descriptors and environment stay what they were, so QEMU is our child as without it. What
//! ends the login (`KillUserProcesses=` of logind, a service that called us and stops) ends another group.

use std::path::Path;

use tokio::process::Command;

const PROGRAM: &str = "systemd-run";

/// A scope to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its name, without `.scope`. There can be only one of that name at a time.
    pub name: String,
    /// Whether the user's own manager looks after it, in place of the system's.
    pub user: bool,
}

impl Scope {
    /// Starts a program in it; its arguments follow.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(PROGRAM);
        if self.user {
            command.arg("--user");
        }
        // --collect: a QEMU that fails leaves no unit behind that somebody has to reset.
        command.args(["--scope", "--quiet", "--collect", "--slice=machine.slice"]);
        // Without a description, the whole command line is one, in every line of the journal.
        command.arg(format!("--description=QEMU of {}", self.name));
        command.arg(format!("--unit={}.scope", self.name)).arg("--").arg(program);
        command
    }
}
