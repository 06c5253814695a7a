//! `cargo xtask lab move`: live moves in the lab, as a table.

use anyhow::{Result, ensure};
use hyperferry_testkit::{
    cut::{Kill, Phase},
    lab::{
        Host,
        live::{CLOCK_TOLERANCE, Guest, HEADING, Live, Plan},
    },
    tools::QEMU_VERSIONS,
};

use crate::ci::portable_binaries;
use crate::sh::step;

/// Does the moves, one after the other, with either QEMU in turn.
pub(crate) fn run(
    guest: Option<Guest>,
    count: usize,
    kill: Option<Kill>,
    at: Option<Phase>,
    verbose: bool,
) -> Result<()> {
    super::up(&Host::PAIR)?;
    let [hyperferry, cut] = portable_binaries()?;
    let mut live = Live::set_up(&hyperferry, &cut)?;
    let guests = guest.map_or_else(|| vec![Guest::Linux, Guest::Witness], |guest| vec![guest]);
    let phases = match (kill, at) {
        (Some(_), None) => Phase::ALL.into_iter().map(Some).collect(),
        (_, at) => vec![at],
    };
    step(HEADING);
    let mut failed = 0;
    for number in 0..count {
        for phase in &phases {
            let guest = guests.iter().cycle().nth(number).copied().unwrap_or(Guest::Witness);
            // Each guest meets each version.
            let qemu = QEMU_VERSIONS.iter().cycle().nth(number / guests.len()).copied().unwrap_or("10.0");
            let moved = live.run(Plan { guest, qemu, kill: kill.zip(*phase) })?;
            step(moved.to_string());
            if verbose || !moved.faults.is_empty() {
                moved.said.lines().for_each(|line| step(format!("    | {line}")));
            }
            failed += usize::from(!moved.faults.is_empty());
        }
    }
    step(format!("a guest's clock may differ by {CLOCK_TOLERANCE} s and a usual beat beyond its silence"));
    ensure!(failed == 0, "{failed} moves went wrong");
    Ok(())
}
