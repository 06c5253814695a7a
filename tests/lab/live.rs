//! Live moves by an unmodified `xl migrate`, and what is left of one that was struck.

use std::{path::PathBuf, sync::OnceLock};

use anyhow::{Context, Result, ensure};
use hyperferry_testkit::{
    cut::{Kill, Phase},
    lab::live::{Guest, HEADING, Live, Moved, Plan},
    tools,
};

fn live() -> Result<&'static Live> {
    static LIVE: OnceLock<Result<Live, String>> = OnceLock::new();
    let set_up = || {
        let cut: PathBuf =
            std::env::var_os("CUT_BIN").context("CUT_BIN is not set; use `cargo xtask lab test`")?.into();
        eprintln!("{HEADING}");
        Live::set_up(&tools::hyperferry()?, &cut)
    };
    let live = LIVE.get_or_init(|| set_up().map_err(|error: anyhow::Error| format!("{error:#}")));
    live.as_ref().map_err(|why| anyhow::anyhow!("{why}"))
}

fn moves(plan: Plan) -> Result<Moved> {
    let moved = live()?.run(plan)?;
    eprintln!("{moved}");
    ensure!(moved.faults.is_empty(), "{moved}\n{}", moved.said);
    Ok(moved)
}

#[test]
fn guests_move_while_they_run() -> Result<()> {
    for (guest, qemu) in [(Guest::Witness, "7.2"), (Guest::Linux, "10.0"), (Guest::Witness, "10.0")] {
        let moved = moves(Plan { guest, qemu, kill: None })?;
        ensure!(moved.rounds > 1, "only {} rounds", moved.rounds);
    }
    Ok(())
}

/// A part of the matrix of `docs/live-move.md`; `cargo xtask lab move --kill` does all of it.
#[test]
fn a_move_that_is_struck_leaves_one_copy() -> Result<()> {
    for (kill, phase) in [
        (Kill::Gateway, Phase::Pages),
        (Kill::Qemu, Phase::Ready),
        (Kill::Transport, Phase::Go),
        (Kill::Gateway, Phase::Report),
    ] {
        moves(Plan { guest: Guest::Witness, qemu: "10.0", kill: Some((kill, phase)) })?;
    }
    Ok(())
}
