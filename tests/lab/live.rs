//! Live moves by an unmodified `xl migrate`, and what is left of one that was struck.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use hyperferry_testkit::{
    cut::{Kill, Phase},
    lab::live::{Guest, HEADING, Hurdle, Live, Moved, Plan, Route},
    tools,
};

fn set_up() -> Result<Live> {
    let cut = std::env::var_os("CUT_BIN").context("CUT_BIN is not set; use `cargo xtask lab test`")?;
    Live::set_up(&tools::hyperferry()?, Path::new(&cut))
}

fn moves(plans: &[Plan]) -> Result<()> {
    let mut live = set_up()?;
    eprintln!("{HEADING}");
    for plan in plans {
        judge(&live.run(*plan)?)?;
    }
    Ok(())
}

fn judge(moved: &Moved) -> Result<()> {
    eprintln!("{moved}");
    ensure!(moved.faults.is_empty(), "{moved}\n{}", moved.said);
    let whole = moved.plan.kill.is_none() && moved.plan.hurdle.is_none();
    ensure!(!whole || moved.rounds > 1, "only {} rounds", moved.rounds);
    Ok(())
}

#[test]
fn guests_move_while_they_run() -> Result<()> {
    moves(&[
        Plan::new(Guest::Witness, "7.2"),
        Plan::new(Guest::Linux, "10.0").with_devices(),
        Plan::new(Guest::Witness, "10.0").by(Route::Ssh),
        Plan::new(Guest::Witness, "7.2").by(Route::Tls),
    ])
}

/// A part of the matrix of `docs/live-move.md`; `cargo xtask lab move --kill` does all of it.
#[test]
fn a_move_that_is_struck_leaves_one_copy() -> Result<()> {
    let kills = [
        (Kill::Gateway, Phase::Configuration),
        (Kill::Gateway, Phase::Pages),
        (Kill::Qemu, Phase::State),
        (Kill::Qemu, Phase::Ready),
        (Kill::Transport, Phase::Ready),
        (Kill::Qemu, Phase::Go),
        (Kill::Transport, Phase::Go),
        (Kill::Gateway, Phase::Report),
        (Kill::Network, Phase::Pages),
        (Kill::Network, Phase::Go),
        (Kill::Host, Phase::Go),
        (Kill::Host, Phase::Report),
    ];
    moves(&kills.map(|(kill, phase)| Plan::new(Guest::Witness, "10.0").kill(kill, phase)))
}

/// What the KVM host does not have is found out before a page has moved.
#[test]
fn a_move_that_cannot_succeed_does_not_begin() -> Result<()> {
    moves(&[Plan::new(Guest::Witness, "7.2").without(Hurdle::Disk)])?;
    let mut live = set_up()?;
    live.boot_kvm(Some("aes"))?;
    let moved = live.run(Plan::new(Guest::Witness, "10.0").without(Hurdle::Feature));
    live.boot_kvm(None)?;
    judge(&moved?)
}
