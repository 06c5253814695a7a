//! The way home: what only Xen knows of a guest that came from there, kept while it is here.
//!
//! ```text
//! receive   Xen's stream ---------> Home::keep, beside the journal's file
//! send      QEMU says the UUID ---> Journal::home_of -+
//! convert   the stream may say it > Journal::home_of -+-> WayHome::give --> Xen's stream
//!           the user names a file > Home::read -------+
//! ```
//!
//! The file is a JSON document: `schema`, `version`, and the parts of the model that no QEMU's stream has. The save file
//! that the guest came in says the same.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use hyperferry_translate::{
    Error as TranslateError,
    refusal::Policy,
    report::{Report, Severity},
    source::{self, Source},
};
use hyperferry_vm_model::{CpuidPolicy, GuestConfig, MachineCheck, MemoryLayout, Vm, XenDomain};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, endpoint::open_input, journal::Journal};

const SCHEMA: &str = "hyperferry-home";
const VERSION: u32 = 1;
/// Largest file taken. A long configuration and a policy of some hundred leaves come to 100 KiB.
const SIZE_MAX: u64 = 16 << 20;
/// Most files that are offered to a user who has to choose.
const OFFERED: usize = 4;

/// What only Xen knows of a guest.
#[derive(Clone, Debug)]
pub struct Home {
    path: PathBuf,
    known: Known,
}

/// Why what was kept of a guest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Neither a stream nor a document of ours, or no longer.
    #[error("damaged, or no file of hyperferry's: {0}")]
    Damaged(String),
    /// A document of another version, or of none.
    #[error("found {found}, wanted {SCHEMA} version {VERSION}: another hyperferry has written it")]
    Version {
        /// What it says of itself.
        found: String,
    },
    /// A save file that cannot be read to its end.
    #[error(transparent)]
    Stream(TranslateError),
    /// A VM that Xen has not written.
    #[error("nothing in it is from Xen")]
    NotFromXen,
    /// It is not about this guest.
    #[error("of another guest: its {what} is {found}, and this guest's is {wanted}")]
    Another {
        /// What differs.
        what: &'static str,
        /// There.
        found: String,
        /// Here.
        wanted: String,
    },
    /// This guest has nothing to bring home, or brings it itself.
    #[error("not wanted: {0}")]
    NotWanted(&'static str),
}

/// The parts of the model that no QEMU's stream has.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    origin: String,
    config: GuestConfig,
    memory: MemoryLayout,
    cpuid: CpuidPolicy,
    /// What the guest has measured its clocks by. A QEMU under KVM says it too, one that emulates does not.
    tsc_khz: u32,
    /// One for each vCPU.
    machine_check: Vec<MachineCheck>,
    xen: XenDomain,
}

/// The document.
#[derive(Serialize, Deserialize)]
struct Document {
    schema: String,
    version: u32,
    #[serde(flatten)]
    known: Known,
}

/// What every version of the document says.
#[derive(Deserialize)]
struct Head {
    schema: Option<String>,
    version: Option<u32>,
}

impl Known {
    /// Nothing of a VM that has not been Xen's.
    fn of(vm: &Vm) -> Option<Self> {
        let Vm { origin, config, memory, cpuid, xen, .. } = vm.clone();
        let machine_check = vm.vcpus.iter().map(|vcpu| vcpu.machine_check).collect();
        let tsc_khz = vm.clock.tsc_khz;
        Some(Self { origin, config, memory, cpuid, tsc_khz, machine_check, xen: xen? })
    }
}

impl Home {
    /// Writes down what only Xen knows of a guest.
    pub fn keep(path: &Path, vm: &Vm) -> Result<()> {
        let failed =
            |source| Error::File { path: path.to_owned(), doing: "writing what Xen said of a guest", source };
        let known = Known::of(vm).ok_or_else(|| failed(io::Error::other("Xen has said nothing of it")))?;
        let document = Document { schema: SCHEMA.to_owned(), version: VERSION, known };
        let text = serde_json::to_vec(&document).map_err(io::Error::from).map_err(failed)?;
        fs::write(path, text).map_err(failed)
    }

    /// Reads it: from such a file, or from a save file or a checkpoint of the guest, which is read to its end.
    pub fn read(path: &Path) -> Result<Self> {
        let (format, reader) = source::peek(open_input(path)?.reader)?;
        let known = if format.is_some() { of_stream(reader) } else { of_document(reader) };
        let known = known.map_err(|fault| Error::Home { path: path.to_owned(), fault })?;
        Ok(Self { path: path.to_owned(), known })
    }

    /// How its administrator had described the guest.
    pub fn config(&self) -> &GuestConfig {
        &self.known.config
    }

    /// Whether it is about this guest, as far as both say who they are.
    fn judge(self, vm: &Vm) -> Result<Self> {
        let another = |what, found: &dyn ToString, wanted: &dyn ToString| {
            let fault = Fault::Another { what, found: found.to_string(), wanted: wanted.to_string() };
            Error::Home { path: self.path.clone(), fault }
        };
        if let (Some(found), Some(wanted)) = (&self.known.config.uuid, &vm.config.uuid)
            && !found.eq_ignore_ascii_case(wanted)
        {
            return Err(another("UUID", found, wanted));
        }
        let (found, wanted) = (&self.known.memory, &vm.memory);
        if found != wanted {
            let text = |memory: &MemoryLayout| {
                format!("{} KiB, {} of them below 4 GiB", memory.size() >> 10, memory.low_end >> 10)
            };
            return Err(another("memory", &text(found), &text(wanted)));
        }
        Ok(self)
    }

    /// Whose it is.
    fn guest(&self) -> String {
        let GuestConfig { name, uuid, .. } = &self.known.config;
        format!("{name} ({})", uuid.as_deref().unwrap_or("no UUID"))
    }
}

fn of_stream(reader: impl Read) -> std::result::Result<Known, Fault> {
    // The guest that goes home is judged, not the one that came.
    let source = Source::open(reader, Policy::allow_all()).map_err(Fault::Stream)?;
    let taken = source.pump(|_, _| Ok(())).map_err(Fault::Stream)?;
    Known::of(&taken.vm).ok_or(Fault::NotFromXen)
}

fn of_document(reader: impl Read) -> std::result::Result<Known, Fault> {
    let damaged = |error: &dyn ToString| Fault::Damaged(error.to_string());
    let mut text = Vec::new();
    reader.take(SIZE_MAX + 1).read_to_end(&mut text).map_err(|error| damaged(&error))?;
    if text.len() as u64 > SIZE_MAX {
        return Err(damaged(&format!("more than {SIZE_MAX} bytes")));
    }
    let Head { schema, version } = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
    if (schema.as_deref(), version) != (Some(SCHEMA), Some(VERSION)) {
        let found = match (schema, version) {
            (Some(schema), Some(version)) => format!("{schema} version {version}"),
            _ => "no schema and version".to_owned(),
        };
        return Err(Fault::Version { found });
    }
    let document: Document = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
    Ok(document.known)
}

/// What is known of a guest's way back to Xen, and what there is to say about it.
#[derive(Clone, Debug, Default)]
pub struct WayHome {
    home: Option<Home>,
    report: Report,
}

impl WayHome {
    /// Looks it up for a guest of a QEMU: what the user named, or what the journal has under the guest's UUID.
    pub fn find(vm: &Vm, from_xen: bool, named: Option<Home>, journal: Option<&Journal>) -> Result<Self> {
        if !from_xen {
            let Some(Home { path, .. }) = named else { return Ok(Self::default()) };
            let why = match vm.xen {
                Some(_) => "the guest's own stream says what Xen knows of it",
                None => "the guest has not come from Xen",
            };
            return Err(Error::Home { path, fault: Fault::NotWanted(why) });
        }
        let uuid = vm.config.uuid.as_deref();
        let found = match (named, uuid, journal) {
            (Some(home), ..) => Some(home),
            (None, Some(uuid), Some(journal)) => journal.home_of(uuid)?,
            _ => None,
        };
        let home = found.map(|home| home.judge(vm)).transpose()?;
        let mut report = Report::default();
        match &home {
            Some(home) => {
                let what = format!(
                    "the guest goes home with configuration, CPUID policy and parameters of {} from {}: {}",
                    home.guest(),
                    home.known.origin,
                    home.path.display()
                );
                report.find("home", Severity::Note, what, "");
            }
            None => {
                let what = match uuid {
                    Some(uuid) => format!("the guest {uuid} came from Xen, and the journal has not kept"),
                    None => "the guest came from Xen, and its stream has no UUID by which to find".to_owned(),
                };
                let what = format!("{what} the configuration, CPUID policy and parameters that it had there");
                report.find("home", Severity::Warning, what, remedy(vm, journal));
            }
        }
        Ok(Self { home, report })
    }

    /// What the guest was on Xen, if that is known.
    pub fn home(&self) -> Option<&Home> {
        self.home.as_ref()
    }

    /// What there is to say.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Gives the guest what only Xen knows of it. What comes with a vCPU waits for one.
    pub fn give(&self, vm: &mut Vm) {
        let Some(Home { known, .. }) = &self.home else { return };
        vm.cpuid.clone_from(&known.cpuid);
        vm.xen = Some(known.xen.clone());
        if vm.clock.tsc_khz == 0 {
            vm.clock.tsc_khz = known.tsc_khz;
        }
        for (vcpu, machine_check) in vm.vcpus.iter_mut().zip(&known.machine_check) {
            vcpu.machine_check = *machine_check;
        }
    }
}

/// What a user can name, with the files that may be the guest's.
fn remedy(vm: &Vm, journal: Option<&Journal>) -> String {
    let homes = journal.map(Journal::homes).unwrap_or_default().into_iter();
    let fitting = homes.filter_map(|home| home.judge(vm).ok()).take(OFFERED);
    let fitting: Vec<_> =
        fitting.map(|home| format!("{} is of {}", home.path.display(), home.guest())).collect();
    let fitting = if fitting.is_empty() { String::new() } else { format!(" ({})", fitting.join("; ")) };
    format!(
        "--home FILE names the save file that it came in, or what `hyperferry receive` has kept of it{fitting}; without \
         it they are made anew"
    )
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::{Clock, Vcpu};

    use super::*;

    const UUID: &str = "404ed65b-3579-49d9-afd7-4b03c526326d";

    fn guest(uuid: Option<&str>) -> Vm {
        let config =
            GuestConfig { name: "web".to_owned(), uuid: uuid.map(str::to_owned), ..GuestConfig::default() };
        let memory = MemoryLayout::split(1 << 24, 1 << 24);
        Vm { origin: "Xen 4.17".to_owned(), config, memory, ..Vm::default() }
    }

    fn from_xen() -> Vm {
        let xen = XenDomain { config: "{}".to_owned(), params: vec![(4, 7)], ..XenDomain::default() };
        let machine_check = MachineCheck { cap: 2, ..MachineCheck::default() };
        let vcpus = vec![Vcpu { machine_check, ..Vcpu::default() }];
        let clock = Clock { tsc_khz: 2_000_000, ..Clock::default() };
        Vm { xen: Some(xen), vcpus, clock, ..guest(Some(UUID)) }
    }

    fn kept(folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("1-2.home");
        Home::keep(&path, &from_xen()).unwrap();
        path
    }

    #[test]
    fn what_is_kept_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::read(&kept(&folder)).unwrap();
        let way = WayHome::find(&guest(None), true, Some(home), None).unwrap();
        let mut back = Vm { vcpus: vec![Vcpu::default()], ..guest(None) };
        way.give(&mut back);
        assert_eq!(back, Vm { config: back.config.clone(), ..from_xen() });
        back.clock.tsc_khz = 7;
        way.give(&mut back);
        assert_eq!(back.clock.tsc_khz, 7, "the stream knows better");
        assert!(way.report.findings[0].what.contains("1-2.home"), "{:?}", way.report);
    }

    #[test]
    fn a_file_that_is_no_home_says_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = kept(&folder);
        let text = fs::read_to_string(&path).unwrap();
        let said = |text: &str| {
            fs::write(&path, text).unwrap();
            Home::read(&path).unwrap_err().to_string()
        };
        let cut = said(&text[..text.len() / 2]);
        assert!(cut.contains("1-2.home: damaged") && cut.contains("EOF") && cut.contains("column"), "{cut}");
        let newer = said(&text.replace(r#""version":1"#, r#""version":2"#));
        assert!(
            newer.contains("found hyperferry-home version 2, wanted hyperferry-home version 1"),
            "{newer}"
        );
        // As it was before it had a version: the model, without the parts that QEMU has.
        let older = said(&serde_json::to_string(&from_xen()).unwrap());
        assert!(older.contains("found no schema and version"), "{older}");
        let field = said(&text.replace(r#""params""#, r#""parms""#));
        assert!(field.contains("damaged") && field.contains("params"), "{field}");
        assert!(said(&" ".repeat(1 << 25)).contains("more than"));
        let checkpoint = hyperferry_vm_model::checkpoint::Writer::new(Vec::new(), &guest(None));
        fs::write(&path, checkpoint.unwrap().finish(&guest(None)).unwrap()).unwrap();
        assert!(Home::read(&path).unwrap_err().to_string().contains("nothing in it is from Xen"));
    }

    #[test]
    fn another_guests_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let home = || Some(Home::read(&kept(&folder)).unwrap());
        let refused = |vm: &Vm, from_xen| WayHome::find(vm, from_xen, home(), None).unwrap_err().to_string();
        let other = refused(&guest(Some("504ed65b-3579-49d9-afd7-4b03c526326d")), true);
        assert!(other.contains("of another guest: its UUID is 404ed65b"), "{other}");
        let larger = Vm { memory: MemoryLayout::split(1 << 25, 1 << 25), ..guest(None) };
        assert!(refused(&larger, true).contains("its memory is 16384 KiB, 16384 of them below"));
        assert!(refused(&guest(None), false).contains("has not come from Xen"));
        assert!(refused(&from_xen(), false).contains("own stream says"));
        let upper = UUID.to_uppercase();
        assert!(WayHome::find(&guest(Some(&upper)), true, home(), None).is_ok());
    }
}
