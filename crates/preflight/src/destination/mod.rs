//! What this host offers to a guest: KVM, QEMU, memory, disks.
//!
//! Without a guest the checks tell whether this host can take any. Nothing is changed; QEMU is started without a guest,
//! once to name its machines, devices and CPU features, and once more for a template if that is asked for.

mod apic_bus_clock;
mod bridge;
mod cpu_features;
mod cpu_vendor;
mod disk;
mod host_memory;
mod hpet;
mod journal;
mod kvm;
mod kvm_chips;
mod lapic_timer;
mod machine_type;
mod memory_layout;
mod msrs;
mod qemu;
mod qemu_devices;
mod surroundings;
mod template;
mod tsc_frequency;
mod vcpus;
mod xl_name;
mod xstate;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use hyperferry_kvm_state::{Access, Capabilities, Probe};
use hyperferry_relay::{
    progress::Progress,
    qemu::{Launch, Process, version},
    qmp::Version,
    session::{self, Landing},
};
use hyperferry_translate::{
    qemu::{Accelerator, args},
    refusal::Policy,
};
use serde_json::{Value, json};

pub use self::surroundings::Disk;
use crate::{Check, Finding, Side, guest::Guest, run};

/// The checks, in the order in which they are shown.
pub const CHECKS: &[Check<Facts>] = &[
    kvm::CHECK,
    kvm_chips::CHECK,
    vcpus::CHECK,
    cpu_vendor::CHECK,
    cpu_features::CHECK,
    xstate::CHECK,
    msrs::CHECK,
    tsc_frequency::CHECK,
    apic_bus_clock::CHECK,
    hpet::CHECK,
    lapic_timer::CHECK,
    qemu::CHECK,
    machine_type::CHECK,
    qemu_devices::CHECK,
    template::CHECK,
    memory_layout::CHECK,
    host_memory::CHECK,
    disk::CHECK,
    bridge::CHECK,
    journal::CHECK,
    xl_name::CHECK,
];

/// What there is on this host.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The guest that is to come.
    guest: Option<Guest>,
    /// What is to execute it, and how its QEMU is called.
    options: args::Options,
    /// The platform shim serves the guest.
    platform_shim: bool,
    /// KVM.
    kvm: Probe,
    /// QEMU, or why it cannot be used; nothing where nobody asked.
    qemu: Option<Result<Qemu, String>>,
    /// Memory that could be had, bytes.
    memory: Option<u64>,
    /// The guest's disks.
    disks: Vec<Disk>,
    /// The bridges of this host.
    bridges: BTreeSet<String>,
    /// The journal's directory, and whether it can be written to.
    journal: Option<(PathBuf, Result<(), String>)>,
    /// The program that ssh finds as `xl`, and whether it is ours; nothing where nobody asked.
    xl: Option<Option<(PathBuf, bool)>>,
}

/// What a QEMU says of itself.
#[derive(Clone, Debug)]
struct Qemu {
    version: Version,
    machines: BTreeSet<String>,
    devices: BTreeSet<String>,
    /// Features of the CPU model that the guest's is made from.
    features: Option<BTreeMap<String, bool>>,
    /// The machine type of a template, or why there is none; nothing where nobody asked.
    template: Option<Result<String, String>>,
}

/// How much is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What a receiver wants to know before the first page, but for what its own first steps try: QEMU and the journal.
    BeforePages,
    /// Everything.
    All,
}

/// What is to be checked.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The destination.
    pub landing: &'a Landing,
    /// The guest, where one is known.
    pub guest: Option<Guest>,
    /// Where the journal is kept.
    pub journal: &'a Path,
    /// How much is asked.
    pub depth: Depth,
}

impl Facts {
    /// Asks this host.
    pub async fn gather(plan: Plan<'_>) -> Self {
        let Plan { landing, guest, journal, depth } = plan;
        let kvm = hyperferry_kvm_state::probe();
        let usable = landing.options.accelerator == Accelerator::Tcg || kvm.access == Access::Usable;
        let mut qemu = match depth {
            Depth::All => Some(Qemu::ask(landing, usable).await),
            Depth::BeforePages => None,
        };
        let (disks, bridges) = match &guest {
            Some(guest) => (surroundings::disks(&guest.vm, &landing.options), surroundings::bridges()),
            None => Default::default(),
        };
        if let (Some(guest), Some(Ok(qemu))) = (&guest, &mut qemu)
            && usable
        {
            let learnt = session::learn(&landing.launch(&guest.vm), &Progress::silent()).await;
            let machine = learnt.map(|template| template.machine().to_owned());
            qemu.template = Some(machine.map_err(|error| error.to_string()));
        }
        Self {
            platform_shim: landing.shim.is_some(),
            options: landing.options.clone(),
            kvm,
            qemu,
            memory: surroundings::available_memory(),
            disks,
            bridges,
            journal: (depth == Depth::All).then(|| (journal.to_owned(), surroundings::writable(journal))),
            xl: (depth == Depth::All).then(surroundings::xl),
            guest,
        }
    }

    /// What they tell.
    pub fn findings(&self, policy: &Policy) -> Vec<Finding> {
        run(Side::Destination, CHECKS, self, policy)
    }

    fn qemu(&self) -> Option<&Qemu> {
        self.qemu.as_ref()?.as_ref().ok()
    }

    /// What KVM offers, if it is what executes the guest.
    fn capabilities(&self) -> Option<&Capabilities> {
        let kvm = self.options.accelerator == Accelerator::Kvm;
        self.kvm.capabilities.as_ref().filter(|_| kvm)
    }
}

impl Qemu {
    /// Starts it without a machine; with the landing's accelerator where that can be used.
    async fn ask(landing: &Landing, usable: bool) -> Result<Self, String> {
        const DOING: &str = "naming what it has";
        let text = |error: hyperferry_relay::Error| error.to_string();
        let version = version(&landing.qemu).await.map_err(text)?;
        let accelerator = if usable { landing.options.accelerator } else { Accelerator::Tcg };
        let bare = ["-machine", "none", "-accel", accelerator.name(), "-nodefaults", "-display", "none"];
        let mut qemu = Process::start(&Launch::new(&landing.qemu, bare)).await.map_err(text)?;
        let machines = qemu.execute(DOING, "query-machines", json!({})).await.map_err(text)?;
        let types = json!({ "implements": "device", "abstract": false });
        let devices = qemu.execute(DOING, "qom-list-types", types).await.map_err(text)?;
        let model = json!({ "type": "full", "model": { "name": landing.base_model() } });
        let features = if usable {
            let answer = qemu.execute(DOING, "query-cpu-model-expansion", model).await.map_err(text)?;
            answer.pointer("/model/props").and_then(Value::as_object).map(|properties| {
                let flag = |(name, value): (&String, &Value)| Some((name.clone(), value.as_bool()?));
                properties.iter().filter_map(flag).collect()
            })
        } else {
            None
        };
        qemu.quit().await.map_err(text)?;
        let machines = names(&machines, "name").chain(names(&machines, "alias")).collect();
        Ok(Self { version, machines, devices: names(&devices, "name").collect(), features, template: None })
    }
}

fn names<'a>(answer: &'a Value, key: &'a str) -> impl Iterator<Item = String> + 'a {
    let entries = answer.as_array().map_or(&[][..], Vec::as_slice);
    entries.iter().filter_map(move |entry| Some(entry.get(key)?.as_str()?.to_owned()))
}

#[cfg(test)]
mod tests;
