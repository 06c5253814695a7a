//! Live moves to Xen by `hyperferry send`, the round trip, and what is left of a move that was struck.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use hyperferry_testkit::{
    cut::Phase,
    lab::{
        live::Guest,
        send::{HEADING, Plan, Sends, Struck},
    },
    tools,
};

fn moves(plans: &[Plan]) -> Result<()> {
    let cut = std::env::var_os("CUT_BIN").context("CUT_BIN is not set; use `cargo xtask lab test`")?;
    let mut sends = Sends::set_up(&tools::hyperferry()?, Path::new(&cut), None)?;
    eprintln!("{HEADING}");
    for plan in plans {
        let mut faults = Vec::new();
        sends.run(plan, |moved| {
            eprintln!("{moved}");
            if !moved.faults.is_empty() {
                faults.push(format!("{moved}\n{}", moved.said));
            }
        })?;
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
    }
    Ok(())
}

#[test]
fn a_guest_born_under_qemu_goes_to_xen_while_it_runs() -> Result<()> {
    moves(&[Plan::born_under_qemu(Guest::Witness, "10.0")])
}

#[test]
fn a_guest_of_xen_goes_to_kvm_and_home_and_to_kvm_again() -> Result<()> {
    moves(&[Plan::trip(Guest::Witness, "10.0")])
}

/// A part of the matrix of `docs/live-move.md`; `cargo xtask lab send witness --kill` does all of it.
#[test]
fn a_move_to_xen_that_is_struck_leaves_one_copy() -> Result<()> {
    let kills = [
        (Struck::Xl, Phase::Pages),
        (Struck::Hyperferry, Phase::Ready),
        (Struck::Ssh, Phase::Go),
        (Struck::Hyperferry, Phase::Report),
    ];
    moves(&kills.map(|(struck, phase)| Plan::born_under_qemu(Guest::Witness, "10.0").with(struck, phase)))
}
