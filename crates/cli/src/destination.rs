//! From the command line to a destination, and what of the guest's surroundings is missing there.

use std::path::Path;

use hyperferry_relay::session::Landing;
use hyperferry_translate::{
    qemu::{Accelerator, args},
    refusal::{self, Policy},
    report::Report,
    xen::{Identity, Relocation},
};
use hyperferry_vm_model::Vm;

use crate::{
    args::Destination,
    exit::{Error, Result},
    host,
};

impl Destination {
    /// The machine that was asked for.
    pub(crate) fn options(&self, accelerator: Accelerator) -> args::Options {
        let mut options = args::Options::new(accelerator);
        options.machine.clone_from(&self.machine);
        options.cpu.clone_from(&self.cpu);
        options.disks.extend(self.map_disk.iter().cloned());
        options.bridges.extend(self.map_bridge.iter().cloned());
        options
    }

    /// What the guest's disks and bridges are called on a Xen host.
    pub(crate) fn relocation(&self) -> Relocation {
        Relocation {
            disks: self.map_disk.iter().cloned().collect(),
            bridges: self.map_bridge.iter().cloned().collect(),
            identity: Identity { uuid: host::random_uuid(), ..Identity::default() },
            ..Relocation::default()
        }
    }

    /// All of the destination, on this host.
    pub(crate) fn landing(&self, policy: Policy) -> Result<Landing> {
        let qemu = host::qemu(self.qemu.as_deref())?;
        let accelerator = host::accelerator(self.accel);
        let tsc_khz = host::tsc_khz(accelerator);
        let options = self.options(accelerator);
        Ok(Landing {
            qemu,
            options,
            extra: Vec::new(),
            policy,
            tsc_khz,
            console: false,
            shim: None,
            scope: None,
            files: None,
            asked_at: None,
        })
    }
}

impl Destination {
    /// Refuses what can be refused before anything is written. A KVM that nobody asked for and that lacks what the
    /// guest uses gives way to emulation.
    pub(crate) async fn admit(&self, landing: &mut Landing, vm: &Vm) -> Result<Report> {
        match landing.admit(vm).await {
            Err(error) if self.accel.is_none() && lacks_features(&error) => {
                say!(
                    "accelerator: tcg, for this host's KVM lacks CPU features of the guest (--accel kvm names them)"
                );
                landing.options.accelerator = Accelerator::Tcg;
                landing.tsc_khz = host::tsc_khz(Accelerator::Tcg);
                Ok(landing.admit(vm).await?)
            }
            admitted => Ok(admitted?),
        }
    }
}

fn lacks_features(error: &hyperferry_relay::Error) -> bool {
    let hyperferry_relay::Error::Stream(error) = error else { return false };
    match error.downcast_ref() {
        Some(hyperferry_translate::Error::Refused(report)) => {
            report.refusals().any(|finding| finding.name == refusal::CPU_FEATURES.name)
        }
        _ => false,
    }
}

/// Disks of the guest that are not on this host under the name that QEMU will be given, if there is a name at all.
fn missing_disks(vm: &Vm, options: &args::Options) -> Vec<(String, Option<String>)> {
    let missing = vm.config.disks.iter().filter_map(|disk| {
        if disk.path.is_none() && !disk.cdrom && !options.disks.contains_key(&disk.vdev) {
            return Some((disk.vdev.clone(), None));
        }
        let mapped = args::image(disk, options)?;
        // `nbd://host`, `json:{…}`: not files.
        let is_file = !mapped.split('/').next().is_some_and(|start| start.contains(':'));
        (is_file && !Path::new(mapped).exists()).then(|| (disk.vdev.clone(), Some(mapped.to_owned())))
    });
    missing.collect()
}

/// Refuses a guest whose disks are not here.
pub(crate) fn require_disks(vm: &Vm, options: &args::Options) -> Result<()> {
    let Some((vdev, path)) = missing_disks(vm, options).into_iter().next() else { return Ok(()) };
    let what = path.map_or_else(
        || "the stream does not name its image".to_owned(),
        |path| format!("there is no {path} on this host"),
    );
    Err(Error::Unsupported(format!("disk {vdev}: {what}; say where it is with --map-disk {vdev}=PATH")))
}

/// Says what of the guest's surroundings has to be named anew.
pub(crate) fn say_what_to_map(vm: &Vm, options: &args::Options) {
    for (vdev, path) in missing_disks(vm, options) {
        let what = match path {
            Some(path) if options.disks.values().any(|target| *target == path) => {
                format!("{vdev} was mapped to {path}, which is not here")
            }
            Some(path) => format!("{vdev} is {path} at the source, and not here"),
            None => format!("the stream does not name what is behind {vdev}"),
        };
        say!("note [disk]: {what}: --map-disk {vdev}=PATH says where it is");
    }
    for bridge in args::unmapped_bridges(vm, options) {
        say!(
            "note [bridge]: a network card was on bridge {bridge}; it is left unconnected unless --map-bridge {bridge}=HERE"
        );
    }
}
