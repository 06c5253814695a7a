//! Every combination, by a table and by carrying each advice out.

use super::*;

const STAGES: [Stage; 8] = [
    Stage::CameEarly,
    Stage::CameReady,
    Stage::CameGo,
    Stage::CameRan,
    Stage::LeftBack,
    Stage::LeftReady,
    Stage::LeftGo,
    Stage::LeftTold,
];
const HERE: [Here; 5] = [Here::Gone, Here::Stopped, Here::Runs, Here::Sent, Here::Silent];
const THERE: [There; 10] = [
    There::Unasked,
    There::Absent,
    There::Incoming,
    There::Aside,
    There::Suspended,
    There::Paused,
    There::Runs,
    There::Ended,
    There::Namesake,
    There::Two,
];

/// A verdict in a few letters: the place, the acts, and whether something has to be true for them.
fn cell(verdict: &Verdict) -> String {
    let place = match verdict.place {
        Place::Here => "here",
        Place::There => "there",
        Place::Nowhere => "no",
        Place::Elsewhere => "else",
        Place::Two => "TWO",
        Place::Unknown => "?",
    };
    let act = |act: &Act| match act {
        Act::Cont => "cont",
        Act::Quit => "quit",
        Act::Stop => "stop",
        Act::Destroy => "Destroy",
        Act::Resume => "Resume",
        Act::Unpause => "Unpause",
        Act::Pause => "Pause",
    };
    let words = std::iter::once(place).chain(verdict.acts.iter().map(act));
    words.collect::<Vec<_>>().join(".") + if verdict.provided.is_some() { "*" } else { "" }
}

/// A legend, an empty line, and every verdict in the order of the constants.
const TABLE: &str = include_str!("table.txt");

#[test]
fn every_combination_has_its_verdict() {
    let mut table = String::new();
    for stage in STAGES {
        let heading = THERE.map(|there| format!("{there:?}").to_lowercase());
        let line = |first: String, cells: &[String]| {
            let cells = cells.iter().map(|cell| format!(" {cell:<20}")).collect::<String>();
            format!("{first:<10}{}\n", cells.trim_end())
        };
        table.push_str(&line(format!("{stage:?}"), &heading));
        for here in HERE {
            let cells = THERE.map(|there| cell(&decide(stage, here, there)));
            table.push_str(&line(format!("  {here:?}").to_lowercase(), &cells));
        }
        table.push('\n');
    }
    let wanted = TABLE.split_once("\n\n").unwrap().1;
    assert_eq!(table.trim_end(), wanted.trim_end(), "found:\n{table}");
}

/// What stands and runs at the two ends.
#[derive(Clone, Copy, Debug)]
struct World {
    here: Here,
    there: There,
}

impl World {
    fn running(self) -> u32 {
        let there = match self.there {
            There::Runs => 1,
            There::Two => 2,
            _ => 0,
        };
        u32::from(self.here == Here::Runs) + there
    }

    /// One act, as QEMU and xl would do it.
    #[track_caller]
    fn after(mut self, act: Act) -> Self {
        let stands = matches!(
            self.there,
            There::Incoming | There::Aside | There::Suspended | There::Paused | There::Ended
        );
        match act {
            // None is let run that another could be let run beside. One that never ran is none.
            Act::Cont => assert!(
                self.here == Here::Stopped
                    && matches!(self.there, There::Absent | There::Namesake | There::Incoming),
                "{self:?}"
            ),
            Act::Quit => assert_eq!(self.here, Here::Stopped, "one that runs is not ended"),
            Act::Stop => assert_eq!(self.here, Here::Runs),
            Act::Destroy => assert!(stands, "one that runs is not destroyed: {self:?}"),
            Act::Resume => {
                assert!(self.here == Here::Gone && matches!(self.there, There::Aside | There::Suspended));
            }
            Act::Unpause => {
                assert!(self.here == Here::Gone && matches!(self.there, There::Incoming | There::Paused));
            }
            Act::Pause => assert_eq!(self.there, There::Runs),
        }
        match act {
            Act::Cont => self.here = Here::Runs,
            Act::Quit => self.here = Here::Gone,
            Act::Stop => self.here = Here::Stopped,
            Act::Destroy => self.there = There::Absent,
            Act::Resume | Act::Unpause => self.there = There::Runs,
            Act::Pause => self.there = There::Paused,
        }
        self
    }
}

#[test]
fn no_advice_gives_two_running_copies() {
    for (stage, here, there) in every() {
        let verdict = decide(stage, here, there);
        let mut world = World { here, there };
        let before = world.running();
        for act in verdict.acts {
            world = world.after(*act);
            assert!(world.running() <= before.max(1), "{stage:?} {here:?} {there:?}: {verdict:?}");
        }
        if before > 1 && there != There::Two {
            assert_eq!(world.running(), 1, "two at once are not left alone");
        }
    }
}

#[test]
fn the_copy_that_is_named_is_there() {
    for (stage, here, there) in every().filter(|(_, _, there)| *there != There::Unasked) {
        let verdict = decide(stage, here, there);
        let world = verdict.acts.iter().fold(World { here, there }, |world, act| world.after(*act));
        let case = format!("{stage:?} {here:?} {there:?}: {verdict:?}");
        assert!(!verdict.why.is_empty(), "{case}");
        match verdict.place {
            Place::Here => assert!(matches!(world.here, Here::Stopped | Here::Runs), "{case}"),
            // A destination's own word is believed.
            Place::There => assert!(
                stage == Stage::LeftTold
                    || matches!(world.there, There::Runs | There::Paused | There::Suspended),
                "{case}"
            ),
            Place::Nowhere | Place::Elsewhere => assert_eq!(world.running(), 0, "{case}"),
            Place::Two | Place::Unknown => {}
        }
        // What nobody can see is said wherever something is let run that another copy may have outlived.
        let resumes = verdict.acts.contains(&Act::Resume);
        assert!(!resumes || verdict.provided.is_some(), "{case}");
    }
}

#[test]
fn what_is_settled_leaves_nothing_to_do() {
    for (stage, here, there) in every().filter(|(_, here, there)| is_settled(*here, *there)) {
        let verdict = decide(stage, here, there);
        let wanted = if here == Here::Runs { Place::Here } else { Place::There };
        assert_eq!((verdict.place, verdict.acts), (wanted, &[][..]), "{stage:?} {here:?} {there:?}");
        assert_eq!(World { here, there }.running(), 1);
    }
}

#[test]
fn who_was_not_asked_decides_nothing() {
    for (stage, here, there) in every() {
        let verdict = decide(stage, here, there);
        let blind = there == There::Unasked || here == Here::Silent;
        let both = here == Here::Runs && there == There::Runs;
        assert!(both || !blind || verdict.acts.is_empty(), "{stage:?} {here:?} {there:?}: {verdict:?}");
    }
}

fn every() -> impl Iterator<Item = (Stage, Here, There)> {
    let pairs = STAGES.into_iter().flat_map(|stage| HERE.map(|here| (stage, here)));
    pairs.flat_map(|(stage, here)| THERE.map(|there| (stage, here, there)))
}
