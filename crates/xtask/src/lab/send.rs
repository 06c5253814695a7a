//! `cargo xtask lab send`: live moves to Xen in the lab, as a table.

use anyhow::{Result, ensure};
use hyperferry_testkit::{
    cut::Phase,
    lab::{
        Host,
        live::Guest,
        send::{Devices, HEADING, Moved, Plan, Sends, Struck},
    },
    tools::QEMU_VERSIONS,
};

use crate::ci::{platform_shim, portable_binaries};
use crate::sh::step;

/// What moves, and what goes wrong.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What moves: witness (bare metal) or linux, born under QEMU on the KVM host; or trip: born on Xen, to the KVM host, back,
    /// and there again.
    #[arg(value_parser = ["witness", "linux", "trip"])]
    what: String,
    /// Who goes on the trip.
    #[arg(long, default_value = "witness")]
    guest: Guest,
    /// How many moves, or trips.
    #[arg(long, default_value_t = 2)]
    count: usize,
    /// Version of QEMU; both in turn when none is named.
    #[arg(long, value_parser = QEMU_VERSIONS)]
    qemu: Option<String>,
    /// Its vCPUs, if not 1, and 2 for a witness on a trip.
    #[arg(long)]
    vcpus: Option<u32>,
    /// Its devices: bare, std (standard VGA, e1000, IDE disk) or cirrus (Cirrus VGA, rtl8139, IDE disk).
    #[arg(long, default_value = "bare")]
    devices: Devices,
    /// It uses its local APIC timers and its HPET, and QEMU gets the platform shim on a trip.
    #[arg(long)]
    clocks: bool,
    /// What is killed: hyperferry, ssh, xl, network or host. Without --at, in each phase.
    #[arg(long)]
    kill: Option<Struck>,
    /// When: banner, configuration, pages, state, ready, go or report.
    #[arg(long, requires = "kill")]
    at: Option<Phase>,
    /// A refusal that `hyperferry send` is to allow; may be given several times.
    #[arg(long, value_name = "NAME")]
    allow: Vec<String>,
    /// Show what the commands said, of good moves too.
    #[arg(long)]
    verbose: bool,
}

/// Does the moves, one after the other.
pub(crate) fn run(options: &Options) -> Result<()> {
    super::up(&Host::PAIR)?;
    let [hyperferry, cut] = portable_binaries()?;
    let shim = options.clocks.then(platform_shim).transpose()?;
    let mut sends = Sends::set_up(&hyperferry, &cut, shim.as_deref())?;
    let phases = match (options.kill, options.at) {
        (Some(_), None) => Phase::ALL.into_iter().map(Some).collect(),
        (_, at) => vec![at],
    };
    step(HEADING);
    let mut failed = 0;
    for number in 0..options.count {
        for phase in &phases {
            let plan = plan(options, number, *phase);
            sends.run(&plan, |moved| {
                tell(moved, options.verbose);
                failed += usize::from(!moved.faults.is_empty());
            })?;
        }
    }
    ensure!(failed == 0, "{failed} moves went wrong");
    Ok(())
}

fn plan(options: &Options, number: usize, phase: Option<Phase>) -> Plan {
    let named = |version: &&&str| Some(**version) == options.qemu.as_deref();
    let in_turn = || QEMU_VERSIONS.iter().rev().cycle().nth(number);
    let qemu = QEMU_VERSIONS.iter().find(named).or_else(in_turn).copied().unwrap_or("10.0");
    let plan = match options.what.as_str() {
        "trip" => Plan::trip(options.guest, qemu),
        "linux" => Plan::born_under_qemu(Guest::Linux, qemu),
        _ => Plan::born_under_qemu(Guest::Witness, qemu),
    };
    Plan {
        vcpus: options.vcpus.unwrap_or(plan.vcpus),
        devices: options.devices,
        clocks: options.clocks,
        kill: options.kill.zip(phase),
        options: options.allow.iter().map(|name| format!("--allow {name} ")).collect(),
        ..plan
    }
}

fn tell(moved: &Moved, verbose: bool) {
    step(moved.to_string());
    if verbose || !moved.faults.is_empty() {
        moved.said.lines().chain([&*moved.last]).for_each(|line| step(format!("    | {line}")));
    }
}
