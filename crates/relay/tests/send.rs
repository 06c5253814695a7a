//! Guests that leave a real QEMU towards a receiver that the test plays, word by word.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use common::{MACHINE, alive, qemus, until_gone, words};
use hyperferry_qemu_stream::StreamReader;
use hyperferry_relay::{
    BoxError, Error, Result,
    journal::{Entry, Journal, Step},
    progress::Progress,
    receive::{BANNER, READY, REPORT},
    send::{Departure, Facts, FromQemu, Guest, Pace, Receiver, Sent},
};
use hyperferry_testkit::cut::Tee;
use hyperferry_translate::refusal::Policy;
use hyperferry_xen_stream::xl::PERMISSION_TO_GO;
use serde_json::json;

/// A QEMU that somebody else started.
struct Source {
    folder: tempfile::TempDir,
    child: Child,
}

impl Source {
    async fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let monitor = format!("unix:{},server=on,wait=off", folder.path().join("qmp").display());
        let child = Command::new(program)
            .args(words(MACHINE))
            .args(["-accel", "tcg", "-name", "web", "-qmp", &monitor])
            .args(["-uuid", "404ed65b-3579-49d9-afd7-4b03c526326d", "-smp", "2"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let source = Self { folder, child };
        while UnixStream::connect(source.monitor()).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        source
    }

    fn monitor(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    async fn guest(&self) -> Guest {
        Guest::attach(&self.monitor()).await.unwrap()
    }

    async fn state(&self) -> String {
        self.guest().await.run_state().await.unwrap()
    }

    fn journal(&self) -> Journal {
        Journal::open(self.folder.path().join("journal")).unwrap()
    }

    fn steps(&self) -> Vec<Step> {
        let account = self.journal().accounts().unwrap().pop().unwrap();
        account.steps.into_iter().map(|(_, step)| step).collect()
    }

    /// A move towards a receiver that is `play`ed: it gets what the sender says, and says what it is given.
    async fn send(
        &self,
        play: impl FnOnce(File, File) + Send + 'static,
        translate: impl FnOnce(FromQemu, &mut dyn Write) -> std::result::Result<(), BoxError> + Send + 'static,
    ) -> Result<Sent> {
        let (mut departure, mut entry, played) = self.depart(play).await;
        let travelled = departure.travel(&Pace::default(), &mut entry, translate).await;
        let outcome = match travelled {
            Ok(()) => departure.commit(&mut entry, false).await,
            Err(error) => {
                departure.back(&mut entry, &error).await.unwrap();
                Err(error)
            }
        };
        played.join().unwrap();
        outcome
    }

    async fn depart(
        &self,
        play: impl FnOnce(File, File) + Send + 'static,
    ) -> (Departure, Entry, JoinHandle<()>) {
        let (to, from) = (self.folder.path().join("to"), self.folder.path().join("from"));
        for pipe in [&to, &from] {
            let _ = std::fs::remove_file(pipe);
            assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
        }
        let script = "exec 3<&0; cat <&3 >\"$0\" & exec cat <\"$1\"";
        let command = ["sh", "-c", script, to.to_str().unwrap(), from.to_str().unwrap()].map(str::to_owned);
        let played = std::thread::spawn(move || {
            let to = File::open(to).unwrap();
            let from = OpenOptions::new().write(true).open(from).unwrap();
            play(to, from);
        });
        let mut entry = self.journal().begin().unwrap();
        let guest = self.guest().await;
        let step = Step::Leave {
            guest: "web".to_owned(),
            uuid: None,
            to: command.to_vec(),
            monitor: guest.monitor().to_owned(),
            pid: guest.pid(),
        };
        entry.note(step).unwrap();
        let receiver = Receiver::start(&command).unwrap();
        (Departure::new(guest, receiver, Progress::silent()), entry, played)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stream as it is, up to its own end.
fn copy(from: impl Read) -> std::result::Result<Vec<u8>, BoxError> {
    let mut tee = Tee { from, to: Vec::new() };
    let mut reader = StreamReader::new(&mut tee);
    while reader.next_event()?.is_some() {}
    Ok(tee.to)
}

fn as_it_is(from: FromQemu, out: &mut dyn Write) -> std::result::Result<(), BoxError> {
    Ok(out.write_all(&copy(from)?)?)
}

/// What a receiver does in order.
#[derive(Clone, Copy, Debug)]
enum Act {
    Says(&'static [u8]),
    TakesTheGuest,
    TakesSome,
    Hears(&'static [u8]),
}

use Act::{Hears, Says, TakesSome, TakesTheGuest};

fn play(acts: Vec<Act>) -> impl FnOnce(File, File) + Send + 'static {
    move |mut to, mut from| {
        for act in acts {
            match act {
                Says(words) => from.write_all(words).unwrap(),
                TakesTheGuest => drop(copy(&mut to).unwrap()),
                TakesSome => to.read_exact(&mut [0; 100_000]).unwrap(),
                Hears(words) => {
                    let mut heard = vec![0; words.len()];
                    to.read_exact(&mut heard).unwrap();
                    assert_eq!(heard, words);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_guest_is_given_away_word_by_word_and_its_qemu_ends() {
    for program in qemus() {
        let mut source = Source::start(&program).await;
        let pid = source.child.id();
        let sent = source
            .send(
                play(vec![
                    Says(BANNER),
                    TakesTheGuest,
                    Says(READY),
                    Hears(PERMISSION_TO_GO),
                    Says(REPORT),
                    Says(&[0]),
                ]),
                as_it_is,
            )
            .await
            .unwrap();
        assert!(sent.ended.is_ok() && sent.silence.unwrap() < Duration::from_secs(30));
        source.child.wait().unwrap();
        until_gone(pid).await;
        let steps = source.steps();
        assert!(matches!(&steps[0], Step::Leave { pid: Some(found), .. } if *found == pid), "{steps:?}");
        assert_eq!(
            steps[1..],
            [Step::Sending { still: false }, Step::Ready { pid: None }, Step::Go, Step::Left]
        );
    }
}

#[tokio::test]
async fn before_go_every_failure_lets_the_guest_run_on_here() {
    for program in qemus() {
        let source = Source::start(&program).await;
        for (acts, why) in [
            (vec![], "the destination ended before its banner"),
            (vec![Says(b"Welcome to xen2, where everything is fine, as ever....\n")], "said \"Welcome"),
            (vec![Says(BANNER), TakesTheGuest], "ended before its word that the guest is loaded"),
            (vec![Says(BANNER), TakesTheGuest, Says(&[b'x'; 34])], "instead of its word"),
        ] {
            let error = source.send(play(acts.clone()), as_it_is).await.unwrap_err();
            assert!(error.to_string().contains(why), "{acts:?}: {error}");
            assert_eq!(source.state().await, "running", "{acts:?}");
            assert!(matches!(source.steps().last(), Some(Step::Failed { .. })));
        }
        for acts in [vec![Says(BANNER)], vec![Says(BANNER), TakesSome]] {
            // More than the pipe to it holds.
            let long = |from: FromQemu, out: &mut dyn Write| {
                out.write_all(&vec![0; 4 << 20])?;
                as_it_is(from, out)
            };
            let error = source.send(play(acts.clone()), long).await.unwrap_err();
            let why = "the destination ended in the middle of the stream";
            assert!(error.to_string().contains(why), "{acts:?}: {error}");
            assert_eq!(source.state().await, "running", "{acts:?}");
            assert!(matches!(source.steps().last(), Some(Step::Failed { .. })));
        }
        let refused = |from: FromQemu, _: &mut dyn Write| {
            let mut from = from;
            from.read_exact(&mut [0; 5000])?;
            Err("not this one".into())
        };
        let error = source.send(play(vec![Says(BANNER)]), refused).await.unwrap_err();
        assert_eq!(error.to_string(), "not this one");
        assert_eq!(source.state().await, "running");
    }
}

#[tokio::test]
async fn behind_go_the_guest_runs_here_only_by_the_receivers_word() {
    let until_go = [Says(BANNER), TakesTheGuest, Says(READY), Hears(PERMISSION_TO_GO)];
    for program in qemus() {
        for (end, state) in [
            (vec![], "postmigrate"),
            (vec![Says(&REPORT[..20])], "postmigrate"),
            (vec![Says(REPORT)], "postmigrate"),
            (vec![Says(&[b'x'; 40])], "postmigrate"),
            (vec![Says(REPORT), Says(&[1])], "postmigrate"),
            (vec![Says(REPORT), Says(&[1]), Says(&PERMISSION_TO_GO[..43])], "postmigrate"),
            (vec![Says(REPORT), Says(&[1]), Says(PERMISSION_TO_GO)], "running"),
        ] {
            let source = Source::start(&program).await;
            let acts = until_go.iter().copied().chain(end.iter().copied()).collect();
            let error = source.send(play(acts), as_it_is).await.unwrap_err();
            assert_eq!(source.state().await, state, "{end:?}: {error}");
            let last = source.steps().pop().unwrap();
            if state == "running" {
                assert!(matches!(&error, Error::Destination(why) if why.contains("status 1")), "{error}");
                assert!(matches!(last, Step::Failed { .. }));
            } else {
                assert!(matches!(error, Error::Unreported(_)), "{error}");
                assert!(matches!(last, Step::Unknown { .. }));
            }
        }
    }
}

#[tokio::test]
async fn a_sender_that_is_gone_is_enough_to_have_the_guest_back() {
    for program in qemus() {
        let source = Source::start(&program).await;
        let acts = [Says(BANNER), TakesTheGuest];
        let wait = move |mut to: File, from: File| {
            play(acts.to_vec())(to.try_clone().unwrap(), from.try_clone().unwrap());
            // It never says that it is ready.
            let _ = to.read_to_end(&mut Vec::new());
        };
        let (mut departure, mut entry, played) = source.depart(wait).await;
        let pace = Pace::default();
        let travel = departure.travel(&pace, &mut entry, as_it_is);
        assert!(tokio::time::timeout(Duration::from_secs(5), travel).await.is_err());
        assert_eq!(departure.guest().run_state().await.unwrap(), "finish-migrate");
        // As the end of the process does: nobody says anything to QEMU.
        drop(departure);
        drop(entry);
        played.join().unwrap();
        let began = Instant::now();
        while source.state().await != "running" {
            assert!(began.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(alive(source.child.id()));
    }
}

#[tokio::test]
async fn a_qemu_that_dies_when_all_is_sent_leaves_the_guest_to_the_destination() {
    for program in qemus() {
        let source = Source::start(&program).await;
        let pid = source.child.id().to_string();
        let acts = [Says(READY), Hears(PERMISSION_TO_GO), Says(REPORT), Says(&[0])];
        let end = move |mut to: File, mut from: File| {
            from.write_all(BANNER).unwrap();
            copy(&mut to).unwrap();
            // The guest stands still by now; its QEMU knows, and we shall, on a busy machine too.
            std::thread::sleep(Duration::from_secs(3));
            assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
            std::thread::sleep(Duration::from_millis(500));
            play(acts.to_vec())(to, from);
        };
        let sent = source.send(end, as_it_is).await.unwrap();
        assert!(sent.ended.is_ok());
        assert_eq!(source.steps().pop(), Some(Step::Left));
    }
}

#[tokio::test]
async fn a_qemus_settings_are_put_back() {
    for program in qemus() {
        let source = Source::start(&program).await;
        let settings = async || {
            let mut guest = source.guest().await;
            let parameters = guest.execute("query-migrate-parameters", json!({})).await.unwrap();
            let capabilities = guest.execute("query-migrate-capabilities", json!({})).await.unwrap();
            (parameters, capabilities)
        };
        let xbzrle = json!({ "capabilities": [{ "capability": "xbzrle", "state": true }] });
        source.guest().await.execute("migrate-set-capabilities", xbzrle).await.unwrap();
        let before = settings().await;
        source.send(play(vec![Says(BANNER), TakesTheGuest]), as_it_is).await.unwrap_err();
        assert_eq!(settings().await, before);
    }
}

#[tokio::test]
async fn what_qemu_says_of_its_guest() {
    for program in qemus() {
        let source = Source::start(&program).await;
        let facts = Facts::ask(&mut source.guest().await).await.unwrap();
        assert_eq!((facts.config.name.as_str(), facts.config.max_vcpus, facts.kvm), ("web", 2, false));
        assert_eq!(facts.config.uuid.as_deref(), Some("404ed65b-3579-49d9-afd7-4b03c526326d"));
        assert_eq!((facts.memory.size(), facts.memory.low_end), (16 << 20, 16 << 20));
        assert!(facts.config.hpet && facts.config.disks.is_empty());
        let names: Vec<_> = facts.judge(&Policy::default()).refusals().cloned().collect();
        assert!(names.is_empty(), "{names:?}");
        let leaf = facts.cpuid.leaf(0, 0).unwrap();
        assert_eq!(leaf.ebx.to_le_bytes(), *b"Auth");
    }
}
