//! Live moves by an unmodified `xl migrate`, and what is left of one that was struck.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use hyperferry_testkit::{
    cut::{Kill, Phase},
    lab::live::{Guest, HEADING, Live, Plan},
    tools,
};

fn moves(plans: &[Plan]) -> Result<()> {
    let cut = std::env::var_os("CUT_BIN").context("CUT_BIN is not set; use `cargo xtask lab test`")?;
    let mut live = Live::set_up(&tools::hyperferry()?, Path::new(&cut))?;
    eprintln!("{HEADING}");
    for plan in plans {
        let moved = live.run(*plan)?;
        eprintln!("{moved}");
        ensure!(moved.faults.is_empty(), "{moved}\n{}", moved.said);
        ensure!(plan.kill.is_some() || moved.rounds > 1, "only {} rounds", moved.rounds);
    }
    Ok(())
}

#[test]
fn guests_move_while_they_run() -> Result<()> {
    let plans = [(Guest::Witness, "7.2"), (Guest::Linux, "10.0"), (Guest::Witness, "10.0")];
    moves(&plans.map(|(guest, qemu)| Plan { guest, qemu, kill: None }))
}

/// A part of the matrix of `docs/live-move.md`; `cargo xtask lab move --kill` does all of it.
#[test]
fn a_move_that_is_struck_leaves_one_copy() -> Result<()> {
    let kills = [
        (Kill::Gateway, Phase::Pages),
        (Kill::Qemu, Phase::Ready),
        (Kill::Transport, Phase::Go),
        (Kill::Gateway, Phase::Report),
    ];
    moves(&kills.map(|kill| Plan { guest: Guest::Witness, qemu: "10.0", kill: Some(kill) }))
}
