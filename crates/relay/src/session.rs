//! A whole move: a stream on one side, a QEMU or a file on the other.
//!
//! ```text
//! open the stream -> outline -> admit -> QEMU's command line -> template
//!   land:    QEMU waits -> pages as they come -> state -> loaded, stopped -> the guest runs
//!   convert:   a file   -> pages as they come -> state -> the file takes its name
//! ```
//!
//! [`Landing::admit`] refuses what can be refused before a byte is written; the rest of a stream may refuse later,
//! and always before the guest runs or the file has its name.

mod shim;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use hyperferry_qemu_stream::Template;
use hyperferry_translate::{
    Error as TranslateError, cpu_features,
    qemu::{APIC_BUS_HZ, Accelerator, Destination, QemuSink, args},
    refusal::{self, Policy},
    report::{Report, Severity},
    source::Source,
};
use hyperferry_vm_model::{PAGE_SIZE, Vm};
use serde_json::{Value, json};

pub use self::shim::Shim;
pub(crate) use self::shim::apic_bus_hz;
use crate::{
    BoxError, Error, Result,
    landing::{Loaded, Waiting},
    lane,
    metered::MeteredWriter,
    progress::{Phase, Precopy, Progress},
    qemu::{Launch, Process, Scope},
    template,
};

/// How far two clocks may be apart and still count as one: what NTP can slew away (kernel/time/ntp.c, MAXFREQ).
pub const CLOCK_TOLERANCE_PPM: u64 = 500;

/// The destination as the user describes it.
#[derive(Clone, Debug)]
pub struct Landing {
    /// QEMU's program.
    pub qemu: PathBuf,
    /// The machine.
    pub options: args::Options,
    /// Arguments of the user's own, after ours.
    pub extra: Vec<String>,
    /// What the user allows.
    pub policy: Policy,
    /// Rate at which the destination's time-stamp counter runs, kHz; none where it takes the guest's.
    pub tsc_khz: Option<u32>,
    /// Whether QEMU may write to our standard output.
    pub console: bool,
    /// The platform shim, where it is wanted: a library to be preloaded into QEMU.
    pub shim: Option<PathBuf>,
    /// The systemd scope that the QEMU with the guest gets.
    pub scope: Option<Scope>,
    /// Where the files of that QEMU lie, up to their extension: `.log`, `.hpet.json`. Without it, what it says is
    /// lost once we leave.
    pub files: Option<PathBuf>,
    /// Where a QEMU that is only asked answers too, so that one which outlives us can be found and ended.
    pub asked_at: Option<PathBuf>,
}

/// What a translation came to.
#[derive(Debug)]
pub struct Translated {
    /// The VM.
    pub vm: Vm,
    /// What became of every field.
    pub report: Report,
    /// Pages read.
    pub pages: u64,
}

/// A guest that is loaded and stopped, and the account of how it got there.
#[derive(Debug)]
pub struct Arrived {
    /// The QEMU that holds it.
    pub loaded: Loaded,
    /// The VM, and what became of every field.
    pub translated: Translated,
    /// The arguments that QEMU was started with.
    pub arguments: Vec<String>,
    /// Machine type of the destination, in full.
    pub machine: String,
    /// What lies beside QEMU as long as it lives.
    pub shim: Option<Shim>,
}

impl Landing {
    /// The command line for a VM.
    pub fn launch(&self, vm: &Vm) -> Launch {
        let mut options = self.options.clone();
        options.hpet &= self.shim.is_none();
        let mut arguments = args::command_line(vm, &options);
        arguments.extend(self.extra.iter().cloned());
        let launch = Launch::new(&self.qemu, arguments);
        if self.console { launch.with_console() } else { launch }
    }

    /// Refuses what can be refused before anything is written: a memory layout that QEMU cannot have, CPU features
    /// that the destination lacks. What is allowed, or only worth knowing, is in the report.
    pub async fn admit(&self, vm: &Vm) -> Result<Report> {
        args::know_devices(vm)?;
        let mut report = Report::default();
        if !args::can_lay_out(&vm.memory) {
            let what = format!(
                "the guest's RAM reaches {:#x} below 4 GiB, and QEMU's pc machine ends it at 0xc0000000 at the latest \
                 when some lies above",
                vm.memory.low_end
            );
            let remedy = "set mmio_hole=1024 in the guest's configuration and boot it again before the move";
            self.policy.refuse(&mut report, refusal::MEMORY_LAYOUT, what, remedy);
        }
        TranslateError::unless_allowed(&report)?;
        if vm.cpuid.leaves.is_empty() {
            self.note_cpu(&mut report);
        } else {
            let available =
                features(self.asked(bare(&self.qemu, self.options.accelerator)), self.base_model()).await?;
            let missing = cpu_features::missing(&vm.cpuid, &available);
            if !missing.is_empty() {
                let what = format!(
                    "the guest may use CPU features that the destination lacks: {}",
                    missing.join(" ")
                );
                let remedy = "mask them in the guest's configuration (cpuid=) and boot it again, or land it on a host \
                              that has them";
                self.policy.refuse(&mut report, refusal::CPU_FEATURES, what, remedy);
            }
        }
        TranslateError::unless_allowed(&report)?;
        Ok(report)
    }

    /// A QEMU's stream does not tell what CPU its guest was shown, so nothing can be compared.
    fn note_cpu(&self, report: &mut Report) {
        const UNTOLD: &str = "the stream does not tell what CPU the guest was shown; here it is shown";
        match &self.options.cpu {
            Some(model) => {
                let what = format!("{UNTOLD} `-cpu {model}`, as asked");
                report.find("cpuid", Severity::Note, what, "");
            }
            None => {
                let what = format!("{UNTOLD} `-cpu {}`", self.base_model());
                let remedy = "say --cpu MODEL with the -cpu of its own QEMU: a guest may crash without a feature that it \
                              has used";
                report.find("cpuid", Severity::Warning, what, remedy);
            }
        }
    }

    /// Translates a stream straight into a QEMU that waits for it; the guest does not run yet.
    pub async fn load<R: Read + Send + 'static>(
        &self,
        source: Source<R>,
        admitted: Report,
        progress: &Progress,
    ) -> Result<Arrived> {
        let shim = |library: &Path| Shim::new(library, source.outline(), self.files.as_deref());
        let shim = self.shim.as_deref().map(shim).transpose()?;
        let launch = self.launch(source.outline());
        let launch = shim.iter().fold(launch, |launch, shim| shim.beside(launch));
        let template = learn(&self.asked(launch.clone()), progress).await?;
        let machine = template.machine().to_owned();
        let mut waiting = Waiting::start(&self.staying(&launch), progress.clone()).await?;
        let mut translation = self.translation(template, admitted, progress);
        if let Some(shim) = &shim {
            translation.apic_bus_hz = shim.apic_bus_hz(waiting.qemu()).await?;
            translation.platform_hpet = shim.has_hpet();
        }
        let (loaded, translated) =
            waiting.load(move |out| translation.run(source, out).map(|(_, translated)| translated)).await?;
        if let Some(shim) = &shim {
            shim.hand_over(&translated.vm)?;
        }
        Ok(Arrived { loaded, translated, arguments: launch.arguments().to_vec(), machine, shim })
    }

    /// The QEMU that is to stay.
    fn staying(&self, launch: &Launch) -> Launch {
        let launch = launch.clone();
        let launch = self.scope.iter().cloned().fold(launch, Launch::in_scope);
        self.files.iter().fold(launch, |launch, files| launch.with_log(files.with_extension("log")))
    }

    /// Translates a stream into a writer, in the dialect of this QEMU.
    pub async fn write<R, W>(
        &self,
        source: Source<R>,
        admitted: Report,
        out: W,
        progress: &Progress,
    ) -> Result<(W, Translated)>
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let template = learn(&self.asked(self.launch(source.outline())), progress).await?;
        let translation = self.translation(template, admitted, progress);
        write(out, progress, move |out| translation.run(source, out).map(|(_, translated)| translated)).await
    }

    fn asked(&self, launch: Launch) -> Launch {
        launch.also_at(self.asked_at.as_deref())
    }

    /// The CPU model that the guest's is made from: the user's, or all that the accelerator has.
    pub fn base_model(&self) -> &str {
        match (&self.options.cpu, self.options.accelerator) {
            (Some(model), _) => model.split(',').next().unwrap_or(model),
            (None, Accelerator::Kvm) => "host",
            (None, Accelerator::Tcg) => "max",
        }
    }

    fn translation(&self, template: Template, admitted: Report, progress: &Progress) -> Translation {
        let (accelerator, policy) = (self.options.accelerator, self.policy.clone());
        Translation {
            template,
            accelerator,
            policy,
            admitted,
            tsc_khz: self.tsc_khz,
            apic_bus_hz: APIC_BUS_HZ,
            platform_hpet: false,
            progress: progress.clone(),
        }
    }
}

/// Everything that the page lane needs to translate on its own.
struct Translation {
    template: Template,
    accelerator: Accelerator,
    policy: Policy,
    admitted: Report,
    tsc_khz: Option<u32>,
    apic_bus_hz: u64,
    platform_hpet: bool,
    progress: Progress,
}

impl Translation {
    fn run<R: Read, W: Write>(
        self,
        source: Source<R>,
        out: W,
    ) -> hyperferry_translate::Result<(W, Translated)> {
        let destination = Destination {
            template: &self.template,
            accelerator: self.accelerator,
            apic_bus_hz: self.apic_bus_hz,
            platform_hpet: self.platform_hpet,
            wall_ns: wall_clock_ns(),
            policy: &self.policy,
        };
        let layout = source.outline().memory.clone();
        let mut sink = QemuSink::new(out, destination, &layout)?;
        let mut last_page = Instant::now();
        let progress = self.progress;
        progress.expect(Precopy::of_xen(layout.size() / PAGE_SIZE));
        let taken = source.pump(|addresses, data| {
            sink.pages(addresses, data)?;
            last_page = Instant::now();
            progress.pages(page_numbers(addresses));
            Ok(())
        })?;
        let mut report = self.admitted;
        report.fields.extend(taken.report.fields);
        report.findings.extend(taken.report.findings);
        report.paused |= taken.report.paused;
        if let Some(khz) = self.tsc_khz {
            judge_tsc(taken.vm.clock.tsc_khz, khz, &self.policy, &mut report);
        }
        let out = sink.finish(&taken.vm, &taken.held, &mut report)?;
        report.state_us = u64::try_from(last_page.elapsed().as_micros()).ok();
        Ok((out, Translated { vm: taken.vm, report, pages: taken.pages }))
    }
}

/// Runs `produce` on a thread of its own, with a writer that is counted in `progress`. Gives the output back.
pub async fn write<W, T, E>(
    out: W,
    progress: &Progress,
    produce: impl FnOnce(&mut dyn Write) -> std::result::Result<T, E> + Send + 'static,
) -> Result<(W, T)>
where
    W: Write + Send + 'static,
    T: Send + 'static,
    E: Into<BoxError>,
{
    progress.enter(Phase::Stream);
    let mut out = MeteredWriter::new(out, progress.clone(), Arc::default());
    let lane = lane::spawn("stream", move || {
        let made = produce(&mut out).map_err(Into::into)?;
        Ok((out.into_inner()?, made))
    })?;
    lane.result().await.map_err(Error::Stream)
}

/// What [`Progress::pages`] counts, of guest-physical addresses.
pub fn page_numbers(addresses: &[u64]) -> impl Iterator<Item = u64> {
    addresses.iter().map(|address| address / PAGE_SIZE)
}

/// Lets the destination's QEMU write a stream without a guest.
pub async fn learn(launch: &Launch, progress: &Progress) -> Result<Template> {
    let captured = template::capture_with(launch, progress, |stream| Template::from_stream(stream)).await?;
    Ok(captured.content)
}

/// The features that a QEMU has under one of its CPU models, by its own names.
///
/// A QEMU without a machine is asked (`query-cpu-model-expansion`, type full), which takes a fraction of a second.
pub async fn cpu_model_features(
    qemu: &Path,
    accelerator: Accelerator,
    model: &str,
) -> Result<BTreeMap<String, bool>> {
    features(bare(qemu, accelerator), model).await
}

/// A QEMU without a machine.
fn bare(qemu: &Path, accelerator: Accelerator) -> Launch {
    let arguments = ["-machine", "none", "-accel", accelerator.name(), "-nodefaults", "-display", "none"];
    Launch::new(qemu, arguments)
}

async fn features(launch: Launch, model: &str) -> Result<BTreeMap<String, bool>> {
    const DOING: &str = "naming the features of its CPU model";
    let mut qemu = Process::start(&launch).await?;
    let question = json!({ "type": "full", "model": { "name": model } });
    let answer = qemu.execute(DOING, "query-cpu-model-expansion", question).await?;
    qemu.quit().await?;
    let properties = answer.pointer("/model/props").and_then(Value::as_object);
    let flag = |(name, value): (&String, &Value)| Some((name.clone(), value.as_bool()?));
    Ok(properties.into_iter().flatten().filter_map(flag).collect())
}

/// A guest that has measured its time-stamp counter goes on to count on that rate.
fn judge_tsc(guest_khz: u32, host_khz: u32, policy: &Policy, report: &mut Report) {
    let (guest, host) = (u64::from(guest_khz), u64::from(host_khz));
    if guest == 0 || host == 0 || guest.abs_diff(host) * 1_000_000 <= guest * CLOCK_TOLERANCE_PPM {
        return;
    }
    let what = format!(
        "the guest's time-stamp counter ran at {guest_khz} kHz, and the destination's runs at {host_khz} kHz and \
         cannot be scaled"
    );
    let remedy = "use a host whose KVM scales the TSC (AMD, or Intel since Skylake-SP), or a guest that takes its time \
                  from the ACPI PM timer (clocksource=acpi_pm)";
    policy.refuse(report, refusal::TSC_FREQUENCY, what, remedy);
}

/// The host's wall clock, nanoseconds since 1970.
pub fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl From<TranslateError> for Error {
    fn from(error: TranslateError) -> Self {
        Self::Stream(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused(guest_khz: u32, host_khz: u32) -> bool {
        let mut report = Report::default();
        judge_tsc(guest_khz, host_khz, &Policy::default(), &mut report);
        report.refusals().any(|finding| finding.name == "tsc-frequency")
    }

    #[test]
    fn clocks_that_ntp_cannot_bring_together_are_refused() {
        assert!(!refused(2_000_000, 2_001_000));
        assert!(refused(2_000_000, 2_001_001));
        assert!(refused(2_001_001, 2_000_000));
        assert!(!refused(0, 2_000_000), "a rate that nobody knows is no reason");
    }

    #[tokio::test]
    async fn what_a_producer_writes_comes_out_and_its_error_too() {
        let (out, made) = write(Vec::new(), &Progress::silent(), |out| {
            out.write_all(b"abc")?;
            Ok::<_, io::Error>(7)
        })
        .await
        .unwrap();
        assert_eq!((out.as_slice(), made), (&b"abc"[..], 7));
        let failed = write(Vec::new(), &Progress::silent(), |_| Err::<(), _>(io::Error::other("no"))).await;
        assert!(matches!(failed.unwrap_err(), Error::Stream(error) if error.to_string() == "no"));
    }
}
