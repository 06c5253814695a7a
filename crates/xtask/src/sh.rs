//! Running other programs: one line per step, and an error that carries what the program said.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// Tells the developer what happens now, and how long it may take where that is long.
pub(crate) fn step(what: impl AsRef<str>) {
    eprintln!("xtask: {}", what.as_ref());
}

/// A command with its arguments, in one expression.
pub(crate) fn command<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// The same as root: directly when we are root, through sudo otherwise.
pub(crate) fn as_root<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Result<Command> {
    if is_root()? {
        return Ok(command(program, args));
    }
    let mut sudo = command("sudo", ["--preserve-env", program]);
    sudo.args(args);
    Ok(sudo)
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(command("id", ["-u"]).read()?.trim() == "0")
}

/// How a command is run.
pub(crate) trait Run {
    /// Runs with our own terminal; a failure is an error.
    fn run(&mut self) -> Result<()>;
    /// Runs with its output kept back; a failure is an error that ends with that output.
    fn quiet(&mut self) -> Result<()>;
    /// Runs and gives its standard output as text.
    fn read(&mut self) -> Result<String>;
    /// Runs silently and tells whether it succeeded.
    fn succeeds(&mut self) -> bool;
}

impl Run for Command {
    fn run(&mut self) -> Result<()> {
        let status = self.status().with_context(|| format!("cannot start {self:?}"))?;
        if !status.success() {
            bail!("{status}: {self:?}");
        }
        Ok(())
    }

    fn quiet(&mut self) -> Result<()> {
        self.read().map(drop)
    }

    fn read(&mut self) -> Result<String> {
        let output = self.output().with_context(|| format!("cannot start {self:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {self:?}\n{}", output.status, tail(&format!("{text}{errors}"), 30));
        }
        Ok(text)
    }

    fn succeeds(&mut self) -> bool {
        self.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}

/// The last `lines` lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let kept = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    kept.join("\n")
}
