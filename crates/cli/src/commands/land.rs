//! `hyperferry land`: a stream lands in a QEMU on this host, and the guest runs on.

use std::{path::Path, time::Duration};

use hyperferry_relay::{
    endpoint::STANDARD,
    interrupted,
    landing::{Outcome, Running},
    progress::Progress,
    session::{Arrived, Landing, Shim},
};
use hyperferry_translate::{qemu::Accelerator, report::Report};
use serde::Serialize;

use super::{Intake, open};
use crate::{
    args::{Land, Words},
    destination::{require_disks, say_what_to_map},
    exit::{self, Error, Result},
    output, progress,
    report::{Account, Summary},
    runtime,
    stay::Papers,
};

/// The document of `--json`.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    version: u32,
    outcome: String,
    #[serde(flatten)]
    landed: &'a Landed,
}

/// A guest that runs, and how it came to that.
#[derive(Serialize)]
struct Landed {
    qemu: String,
    machine: String,
    accelerator: &'static str,
    arguments: Vec<String>,
    pid: Option<u32>,
    origin: String,
    vcpus: usize,
    pages: u64,
    started_in_ms: u128,
    summary: Summary,
    #[serde(flatten)]
    report: Report,
}

impl<'a> Document<'a> {
    fn of(landed: &'a Landed, outcome: &Result<String>) -> Self {
        let outcome = outcome.as_ref().map_or_else(ToString::to_string, Clone::clone);
        Self { schema: "hyperferry-land", version: 1, outcome, landed }
    }
}

/// Lands it, and stays as long as was asked for.
pub(super) fn run(arguments: Land, words: &Words) -> Result<u8> {
    if arguments.json && arguments.serial.as_deref() == Some(Path::new(STANDARD)) {
        let why = "--json and --serial - both want standard output; give the serial port a file";
        return Err(Error::Usage(why.to_owned()));
    }
    let account = Account { file: arguments.loss.report.as_deref(), to: "qemu", verbose: words.verbose > 0 };
    let source = account.of(open(&arguments.input, arguments.loss.allow.policy()))?;
    let shown = progress::start(words, &source.outline().config.name)?;
    runtime::run(async {
        let loaded = runtime::unless_interrupted(load(&arguments, source, &shown.progress)).await;
        shown.clear();
        let (mut arrived, landing, papers) = account.of(loaded)?;
        account.tell(&arrived.translated.report)?;
        // It stays beside QEMU until QEMU ends.
        let shim = arrived.shim.take();
        let vm = arrived.translated.vm.clone();
        // From here on the guest may run: no signal comes between.
        let (running, landed) = resume(arrived, landing.options.accelerator).await?;
        shown.done();
        let pid = running.id().map_or_else(String::new, |pid| format!(", process {pid}"));
        say!("the guest runs in QEMU {}{pid}; it took {} ms to start", landed.qemu, landed.started_in_ms);
        papers.write(&vm, &landing, &landed.machine, running.id());
        let outcome = stay(&arguments, running).await;
        if let Some(state) = shim.filter(|_| arguments.detach).and_then(Shim::keep) {
            say!("the platform shim keeps the guest's HPET in {}", state.display());
        }
        if arguments.json {
            output::print_json(&Document::of(&landed, &outcome))?;
        }
        let outcome = outcome?;
        say!("{outcome}");
        Ok(exit::OK)
    })
}

/// Up to a guest that is loaded and stopped. Dropped before its end, it leaves nothing behind.
async fn load(arguments: &Land, source: Intake, progress: &Progress) -> Result<(Arrived, Landing, Papers)> {
    let mut landing = arguments.destination.landing(arguments.loss.allow.policy())?;
    landing.extra.clone_from(&arguments.extra);
    if let Some(serial) = &arguments.serial {
        landing.console = serial.as_os_str() == STANDARD;
        landing.options.serial =
            if landing.console { "stdio".to_owned() } else { format!("file:{}", serial.display()) };
    }
    let outline = source.outline();
    say_what_to_map(outline, &landing.options);
    require_disks(outline, &landing.options)?;
    let admitted = arguments.destination.admit(&mut landing, outline).await?;
    let papers = arguments.stay.prepare(outline, &mut landing, &arguments.extra)?;
    Ok((landing.load(source, admitted, progress).await?, landing, papers))
}

async fn resume(mut arrived: Arrived, accelerator: Accelerator) -> Result<(Running, Landed)> {
    let qemu = arrived.loaded.qemu().version().to_string();
    let running = arrived.loaded.resume().await?;
    let landed = Landed {
        qemu,
        machine: arrived.machine,
        accelerator: accelerator.name(),
        arguments: arrived.arguments,
        pid: running.id(),
        origin: arrived.translated.vm.origin,
        vcpus: arrived.translated.vm.vcpus.len(),
        pages: arrived.translated.pages,
        started_in_ms: running.started_in().as_millis(),
        summary: Summary::of(&arrived.translated.report),
        report: arrived.translated.report,
    };
    Ok((running, landed))
}

/// Stays until QEMU ends, the time is over or a signal comes; says which.
async fn stay(arguments: &Land, mut running: Running) -> Result<String> {
    if arguments.detach {
        let pid = running.release().map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        return Ok(format!("left running, process {pid}"));
    }
    let limit = arguments.seconds.map(Duration::from_secs);
    let outcome = tokio::select! {
        outcome = running.follow(limit) => outcome.map_err(Error::Lost)?,
        signal = interrupted() => {
            let signal = signal.map_err(Error::Lost)?;
            running.quit().await.map_err(Error::Lost)?;
            return Ok(format!("ended by {signal}"));
        }
    };
    match outcome {
        Outcome::StillRunning => {
            running.quit().await.map_err(Error::Lost)?;
            Ok("ended by --seconds, still running".to_owned())
        }
        Outcome::Ended { status, reason, .. } if status.success() => {
            Ok(format!("QEMU ended: {}", reason.as_deref().unwrap_or("no reason given")))
        }
        Outcome::Ended { status, stderr, .. } => {
            Err(Error::Ended(format!("the guest ran, and QEMU ended ({status}):\n{}", stderr.trim())))
        }
    }
}
