//! A whole move: a Xen stream on one side, a QEMU on the other.
//!
//! ```text
//! open the stream -> outline -> QEMU's command line -> template -> QEMU waits
//!   -> pages as they come -> state -> loaded, stopped -> the guest runs
//! ```

use std::{
    io::Read,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use hyperferry_qemu_stream::Template;
use hyperferry_translate::{
    Error as TranslateError,
    qemu::{APIC_BUS_HZ, Destination, QemuSink, args},
    refusal::Policy,
    report::Report,
    source::Source,
};
use hyperferry_vm_model::Vm;

use crate::{
    Error, Result,
    landing::{Loaded, Waiting},
    progress::Progress,
    qemu::Launch,
    template,
};

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
}

/// A guest that is loaded and stopped, and the account of how it got there.
#[derive(Debug)]
pub struct Arrived {
    /// The QEMU that holds it.
    pub loaded: Loaded,
    /// The VM.
    pub vm: Vm,
    /// What became of every field.
    pub report: Report,
    /// The arguments that QEMU was started with.
    pub arguments: Vec<String>,
}

impl Landing {
    /// The command line for a VM.
    pub fn launch(&self, vm: &Vm) -> Launch {
        let mut arguments = args::command_line(vm, &self.options);
        arguments.extend(self.extra.iter().cloned());
        Launch::new(&self.qemu, arguments)
    }

    /// Translates a stream straight into a QEMU that waits for it; the guest does not run yet.
    pub async fn load<R: Read + Send + 'static>(
        &self,
        source: Source<R>,
        progress: &Progress,
    ) -> Result<Arrived> {
        let launch = self.launch(source.outline());
        let template = learn(&launch, progress).await?;
        let waiting = Waiting::start(&launch, progress.clone()).await?;
        let (accelerator, policy) = (self.options.accelerator, self.policy.clone());
        let (loaded, (vm, report)) = waiting
            .load(move |out| {
                let wall_ns = wall_clock_ns();
                let destination = Destination {
                    template: &template,
                    accelerator,
                    apic_bus_hz: APIC_BUS_HZ,
                    wall_ns,
                    policy: &policy,
                };
                let layout = source.outline().memory.clone();
                let mut sink = QemuSink::new(out, destination, &layout)?;
                let taken = source.pump(|addresses, data| sink.pages(addresses, data))?;
                let mut report = taken.report;
                sink.finish(&taken.vm, &taken.held, &mut report)?;
                Ok::<_, TranslateError>((taken.vm, report))
            })
            .await?;
        Ok(Arrived { loaded, vm, report, arguments: launch.arguments().to_vec() })
    }
}

/// Lets the destination's QEMU write a stream without a guest.
pub async fn learn(launch: &Launch, progress: &Progress) -> Result<Template> {
    let captured = template::capture_with(launch, progress, |stream| Template::from_stream(stream)).await?;
    Ok(captured.content)
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
