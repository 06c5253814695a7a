//! The one door for developers: `cargo xtask TASK`. Every task fetches and installs what it needs on a Debian 12 or
//! 13 machine (as root, or through sudo) and keeps what it built under `target/lab`.

mod apt;
mod bench;
mod ci;
mod demo;
mod fixtures;
mod lab;
mod paths;
mod qemu;
mod sh;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The tasks, one row each.
#[derive(Subcommand)]
enum Task {
    /// Land a guest that real Xen saved in QEMU, and show that it goes on (a few minutes, most of it the build).
    Demo {
        /// What executes the guest: tcg (emulation, works everywhere) or kvm.
        #[arg(long, default_value = "tcg", value_parser = ["tcg", "kvm"])]
        accel: String,
        /// How long to follow the guest.
        #[arg(long, default_value_t = 15)]
        seconds: u64,
    },
    /// Unpack QEMU 7.2 and 10.0 into target/lab/qemu/{7.2,10.0}/ (wrapper scripts; nothing is installed).
    Qemu {
        /// Fetch them again even if they are there.
        #[arg(long)]
        fresh: bool,
    },
    /// The two-host lab: real Xen and real KVM under software emulation.
    #[command(subcommand)]
    Lab(lab::Action),
    /// Run all tests that need no lab: brings both QEMU versions and builds the binary first.
    Test {
        /// Arguments for `cargo test --workspace`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Rewrite the golden dumps beside the fixtures with what `hyperferry inspect` prints now.
    Golden,
    /// Convert a stream of 2 GB beside `cp` of the same file, relay it beside `cat`, and send a guest of 2 GB to Xen beside
    /// `cat` of what its QEMU sends, in turns; prints the ratios, peak memory and state time.
    Bench {
        /// How often each is run; a first round that warms up does not count.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Where the files go: 4 GB of room.
        #[arg(long, default_value = "/var/tmp")]
        directory: std::path::PathBuf,
        /// A program in the place of this checkout's own, to compare the two.
        #[arg(long)]
        hyperferry: Option<std::path::PathBuf>,
    },
    /// What `bench` sends guests to.
    #[command(hide = true)]
    Receiver {
        /// Where the time goes that the stream took.
        took: std::path::PathBuf,
    },
    /// Everything that continuous integration checks: format, lints, test, lab test.
    Ci,
    /// The fixtures: real streams of the witness guest, captured in the lab.
    #[command(subcommand)]
    Fixtures(fixtures::Action),
}

/// Developer tasks of hyperferry. Each installs the Debian packages it needs and may be run again at any time.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Demo { accel, seconds } => demo::run(&accel, seconds),
        Task::Qemu { fresh } => qemu::provide(fresh),
        Task::Lab(action) => lab::act(action),
        Task::Test { arguments } => ci::test(&arguments),
        Task::Golden => ci::golden(),
        Task::Bench { rounds, directory, hyperferry } => bench::run(rounds, &directory, hyperferry),
        Task::Receiver { took } => bench::receiver::run(&took),
        Task::Ci => ci::ci(),
        Task::Fixtures(action) => fixtures::act(action),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            sh::step(format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
