//! `cut [WHAT PHASE] -- COMMAND...`: stands between an `xl migrate` and the command that takes its guest, on that
//! command's host, and kills WHAT in that PHASE. Says on standard error which phases it saw, and what has passed.

use std::{
    env,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    process::{Command, ExitCode, Stdio, exit},
};

use anyhow::{Context, Result, bail};
use hyperferry_testkit::cut::{Strike, Then, between};

fn main() -> Result<ExitCode> {
    let words: Vec<String> = env::args().skip(1).collect();
    let (ours, command) =
        words.split_at(words.iter().position(|word| word == "--").context("no -- COMMAND")?);
    let [_, program, arguments @ ..] = command else { bail!("no COMMAND") };
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let strike = match ours {
        [] => None,
        [kill, phase] => Some(Strike::new(kill.parse()?, phase.parse()?, child.id())),
        _ => bail!("wanted WHAT PHASE before the --"),
    };
    let sender = (
        File::from(io::stdin().as_fd().try_clone_to_owned()?),
        File::from(io::stdout().as_fd().try_clone_to_owned()?),
    );
    let to = File::from(OwnedFd::from(child.stdin.take().context("no pipe")?));
    let from = File::from(OwnedFd::from(child.stdout.take().context("no pipe")?));
    let reached = |phase| {
        eprintln!("cut: {phase}");
        let then = strike.as_ref().map_or(Then::Pass, |strike| strike.reached(phase));
        if then == Then::Sever {
            // Our ends of the pipes go with us.
            exit(1);
        }
        then
    };
    between(sender, (from, to), reached, |memory| {
        eprintln!("cut: rounds={} pages={} bytes={}", memory.rounds, memory.pages, memory.bytes);
        let code = child.wait().ok().and_then(|status| status.code()).unwrap_or(1);
        // The sender hears it by the end of our pipes, as it would without us.
        exit(code);
    });
    Ok(ExitCode::FAILURE)
}
