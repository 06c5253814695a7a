//! A place between the sender and the receiver of a live move, from which either can be struck at a chosen moment.
//!
//! Source: the handshake of `formats/xen/xl.md`. Every word and every record passes unchanged.
//!
//! ```text
//! sender (xl migrate)           cut           receiver (hyperferry receive)
//!        <--------------- BANNER <------------- Banner
//!        ---------------> xl header ----------> Configuration
//!        ---------------> PAGE_DATA ----------> Pages
//!        ---------------> HVM_CONTEXT --------> State
//!        <---------------- READY <------------- Ready
//!        -----------------> GO ---------------> Go
//!        <---------------- REPORT <------------ Report
//! ```
//!
//! A word is held until the strike is over; a record has passed by then.

mod strike;

use std::{
    fmt,
    io::{self, Read, Write},
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use hyperferry_xen_stream::{Event, StreamReader};

pub use self::strike::{Kill, Strike};

/// What a receiver says first.
pub const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
/// What it says once it holds the guest.
pub const READY: &[u8] = b"domain received, ready to unpause\0";
/// What the sender says to give its guest away.
pub const GO: &[u8] = b"domain is yours, you are cleared to unpause\0";
/// What the receiver says before the byte that tells how it went.
pub const REPORT: &[u8] = b"my copy unpause results are as follows\0";

/// Pages that have passed before it is said so: 2 MiB, more than lies in the pipes and sockets of a host.
const MANY_PAGES: u64 = 512;

/// A moment of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The receiver has asked for the guest.
    Banner,
    /// The guest's configuration has passed.
    Configuration,
    /// Two MiB of its pages have.
    Pages,
    /// The state of its processors and platform has.
    State,
    /// The receiver says that it holds the guest.
    Ready,
    /// The sender gives it away.
    Go,
    /// The receiver tells how it went.
    Report,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 7] =
        [Self::Banner, Self::Configuration, Self::Pages, Self::State, Self::Ready, Self::Go, Self::Report];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Banner => "banner",
            Self::Configuration => "configuration",
            Self::Pages => "pages",
            Self::State => "state",
            Self::Ready => "ready",
            Self::Go => "go",
            Self::Report => "report",
        })
    }
}

impl FromStr for Phase {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|phase| phase.to_string() == name);
        found.ok_or_else(|| {
            anyhow::anyhow!("the phases are {}", Self::ALL.map(|phase| phase.to_string()).join(", "))
        })
    }
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It goes on.
    Pass,
    /// Nothing passes any more, and both ends are closed.
    Sever,
}

/// What has passed of a guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// How often the sender went through it: page frames come in rising order in each round.
    pub rounds: u32,
    /// Pages, those sent again included.
    pub pages: u64,
    /// The whole stream's bytes.
    pub bytes: u64,
}

/// Passes everything on between the two, and tells `reached` of each phase. `ended` is called once the receiver will say no
/// more, when the sender may still wait for that.
pub fn between(
    sender: (impl Read, impl Write + Send),
    receiver: (impl Read + Send, impl Write),
    reached: impl Fn(Phase) -> Then + Sync,
    ended: impl FnOnce(Memory) + Send,
) -> Memory {
    let severed = AtomicBool::new(false);
    let reached = |phase| {
        let then = reached(phase);
        severed.fetch_or(then == Then::Sever, Ordering::SeqCst);
        if severed.load(Ordering::SeqCst) { Err(io::Error::from(io::ErrorKind::BrokenPipe)) } else { Ok(()) }
    };
    let (from_sender, to_sender) = sender;
    let (from_receiver, to_receiver) = receiver;
    let memory = Mutex::new(Memory::default());
    let so_far = || *memory.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        // An error is the end of one of the two: what it means is for the other to find out.
        let (reached, so_far) = (&reached, &so_far);
        scope.spawn(move || {
            drop(words(from_receiver, to_sender, reached));
            ended(so_far());
        });
        drop(stream(from_sender, to_receiver, &memory, reached));
    });
    so_far()
}

/// What the receiver says.
fn words(
    mut from: impl Read,
    mut to: impl Write,
    reached: impl Fn(Phase) -> io::Result<()>,
) -> io::Result<()> {
    for (word, phase) in [(BANNER, Phase::Banner), (READY, Phase::Ready), (REPORT, Phase::Report)] {
        let mut said = Vec::new();
        (&mut from).take(word.len() as u64).read_to_end(&mut said)?;
        if said == word {
            reached(phase)?;
        }
        to.write_all(&said)?;
        to.flush()?;
    }
    io::copy(&mut from, &mut to).map(drop)
}

/// What the sender sends.
fn stream(
    from: impl Read,
    to: impl Write,
    passed: &Mutex<Memory>,
    reached: impl Fn(Phase) -> io::Result<()>,
) -> io::Result<()> {
    let mut reader = StreamReader::new(Tee { from, to });
    let (mut last_pfn, mut memory) = (u64::MAX, Memory::default());
    while let Ok(Some(event)) = reader.next_event() {
        let ended = matches!(&event, Event::Libxl(record) if record.name() == "END");
        match &event {
            Event::XlHeader(_) => reached(Phase::Configuration)?,
            Event::PageData(entries) => {
                for entry in *entries {
                    memory.rounds += u32::from(entry.pfn() <= last_pfn);
                    last_pfn = entry.pfn();
                }
            }
            Event::Pages(chunk) => {
                let before = memory.pages;
                memory.pages += chunk.entries.len() as u64;
                if before < MANY_PAGES && memory.pages >= MANY_PAGES {
                    reached(Phase::Pages)?;
                }
            }
            Event::Libxc(record) if record.name() == "HVM_CONTEXT" => reached(Phase::State)?,
            _ => {}
        }
        memory.bytes = reader.offset();
        *passed.lock().unwrap_or_else(PoisonError::into_inner) = memory;
        if ended {
            break;
        }
    }
    let Tee { mut from, mut to } = reader.into_inner();
    let mut said = Vec::new();
    (&mut from).take(GO.len() as u64).read_to_end(&mut said)?;
    if said == GO {
        reached(Phase::Go)?;
    }
    to.write_all(&said)?;
    to.flush()?;
    io::copy(&mut from, &mut to).map(drop)
}

/// Passes on what is read.
#[derive(Debug)]
pub struct Tee<R, W> {
    /// Where it is read.
    pub from: R,
    /// Where it goes as well.
    pub to: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.to.write_all(buffer.get(..count).unwrap_or_default())?;
        self.to.flush()?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::Fixture;

    /// What comes out at either end, and the phases that were seen.
    fn pass(then: impl Fn(Phase) -> Then + Sync) -> (Vec<u8>, Vec<u8>, Vec<Phase>, Memory) {
        let (seen, mut at_receiver, mut at_sender) = (Mutex::new(Vec::new()), Vec::new(), Vec::new());
        let (sent, said) = (sent(), said());
        let reached = |phase| {
            seen.lock().unwrap().push(phase);
            then(phase)
        };
        let memory = between((&*sent, &mut at_sender), (&*said, &mut at_receiver), reached, drop);
        let mut seen = seen.into_inner().unwrap();
        seen.sort();
        (at_receiver, at_sender, seen, memory)
    }

    fn sent() -> Vec<u8> {
        let recorded = Fixture::named("xen/witness-live-2vcpu").unwrap().stream().unwrap();
        [recorded.strip_suffix(GO).unwrap_or(&recorded), GO].concat()
    }

    fn said() -> Vec<u8> {
        [BANNER, READY, REPORT, &[0]].concat()
    }

    #[test]
    fn everything_passes_unchanged_and_each_phase_is_seen_once() {
        let (at_receiver, at_sender, seen, memory) = pass(|_| Then::Pass);
        assert!(at_receiver == sent() && at_sender == said());
        assert_eq!(seen, Phase::ALL);
        assert_eq!(memory.bytes, (sent().len() - GO.len()) as u64);
        assert!(memory.rounds > 1 && memory.pages > 4096, "{memory:?}");
    }

    #[test]
    fn the_end_of_a_receiver_is_told_while_the_sender_waits() {
        let (waiting, sender) = std::io::pipe().unwrap();
        let ended = move |_| drop(sender);
        between((waiting, &mut Vec::new()), (BANNER, &mut std::io::sink()), |_| Then::Pass, ended);
    }

    #[test]
    fn nothing_passes_behind_a_cut() {
        let (at_receiver, _, seen, _) =
            pass(|phase| if phase == Phase::State { Then::Sever } else { Then::Pass });
        assert!(at_receiver.len() < sent().len() && sent().starts_with(&at_receiver));
        assert!(!seen.contains(&Phase::Go));
        let (at_receiver, ..) = pass(|phase| if phase == Phase::Pages { Then::Sever } else { Then::Pass });
        assert!(at_receiver.len() > 2 << 20 && at_receiver.len() < 3 << 20, "{}", at_receiver.len());
    }
}
