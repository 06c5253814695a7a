//! `cargo xtask lab move`: live moves in the lab, as a table.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use clap::Args;
use hyperferry_testkit::{
    cut::{Kill, Phase},
    lab::{
        Host,
        clock::CLOCK_TOLERANCE,
        live::{Guest, HEADING, Live, Plan, Route},
    },
    tools::QEMU_VERSIONS,
};

use crate::ci::portable_binaries;
use crate::sh::step;

/// What is to move, how, and what is killed.
#[derive(Args)]
pub(crate) struct Moves {
    /// What moves: witness (bare metal, 2 vCPUs) or linux (256 MB); both in turn when none is named.
    guest: Option<Guest>,
    /// How many moves; with --kill, how often each is killed.
    #[arg(long, default_value_t = 2)]
    count: usize,
    /// What is killed: gateway, qemu, transport, network or host, or several of them with commas. Without --at, in
    /// each phase.
    #[arg(long, value_delimiter = ',')]
    kill: Vec<Kill>,
    /// When: banner, configuration, pages, state, ready, go or report.
    #[arg(long, requires = "kill", value_delimiter = ',')]
    at: Vec<Phase>,
    /// By a gateway, which goes on by ssh or tls.
    #[arg(long)]
    relay: Option<Route>,
    /// Give the guest a disk, and a network card on a bridge.
    #[arg(long)]
    devices: bool,
    /// Show what `xl migrate` and the receiver said, of good moves too.
    #[arg(long)]
    verbose: bool,
}

impl Moves {
    /// Each kill in each phase that was asked for; none once, if nothing is to be killed.
    fn kills(&self) -> Vec<Option<(Kill, Phase)>> {
        if self.kill.is_empty() {
            return vec![None];
        }
        let phases = if self.at.is_empty() { &Phase::ALL[..] } else { &self.at };
        let all = self.kill.iter().flat_map(|kill| phases.iter().map(|phase| (*kill, *phase)));
        // In front of a gateway `cut` sees no QEMU, whose appearance is the moment to strike in that phase.
        let in_reach =
            |kill, phase| self.relay.is_none() || (kill == Kill::Gateway && phase != Phase::Configuration);
        all.filter(|(kill, phase)| kill.is_there(*phase) && in_reach(*kill, *phase)).map(Some).collect()
    }
}

/// Does the moves, one after the other, with either QEMU in turn.
pub(crate) fn run(moves: &Moves) -> Result<()> {
    super::up(&Host::PAIR)?;
    let [hyperferry, cut] = portable_binaries()?;
    let mut live = Live::set_up(&hyperferry, &cut)?;
    ensure!(!moves.kills().is_empty(), "nothing of that can be killed there");
    let guests = moves.guest.map_or_else(|| vec![Guest::Linux, Guest::Witness], |guest| vec![guest]);
    step(HEADING);
    let (mut failed, mut ends) = (0, BTreeMap::<_, BTreeMap<_, usize>>::new());
    for number in 0..moves.count {
        for kill in moves.kills() {
            let guest = guests.iter().cycle().nth(number).copied().unwrap_or(Guest::Witness);
            // Each guest meets each version.
            let qemu = QEMU_VERSIONS.iter().cycle().nth(number / guests.len()).copied().unwrap_or("10.0");
            let route = moves.relay.unwrap_or_default();
            let moved = live.run(Plan { kill, route, devices: moves.devices, ..Plan::new(guest, qemu) })?;
            step(moved.to_string());
            if moves.verbose || !moved.faults.is_empty() {
                moved.said.lines().for_each(|line| step(format!("    | {line}")));
            }
            failed += usize::from(!moved.faults.is_empty());
            if let Some((kill, phase)) = kill {
                let end = if moved.faults.is_empty() { moved.place.to_string() } else { "WRONG".to_owned() };
                *ends.entry((phase, kill.to_string())).or_default().entry(end).or_default() += 1;
            }
        }
    }
    for ((phase, kill), ends) in ends {
        let ends: Vec<_> = ends.into_iter().map(|(end, times)| format!("{times}x {end}")).collect();
        step(format!("{phase:14} {kill:10} {}", ends.join("; ")));
    }
    step(format!("a guest's clock may stand still for {CLOCK_TOLERANCE} s more than the guest is silent"));
    ensure!(failed == 0, "{failed} moves went wrong");
    Ok(())
}
