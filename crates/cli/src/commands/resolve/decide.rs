//! Which single copy of a guest may run: a function of what the journal says and what was seen at both ends.
//!
//! Nothing that it advises may give two running copies: in the order given, each act only once the one before it has
//! succeeded. The tests try every combination, and carry each advice out on a model of the two ends.

/// How far a move came, by the journal here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It was to come here, never ran here, and its sender was not even told that it is loaded.
    CameEarly,
    /// The same, and its sender was told so: it may have given the guest away.
    CameReady,
    /// The sender has given it to us, and whether it ran is not written down.
    CameGo,
    /// It came, and ran here or was left paused.
    CameRan,
    /// It was to leave, and goes on here: the destination was never told to run it.
    LeftBack,
    /// The destination has all of it, and was never told to run it. Ours stood still then.
    LeftReady,
    /// The destination was told to run it, and nobody has confirmed it.
    LeftGo,
    /// The destination has said that it runs there.
    LeftTold,
}

impl Stage {
    /// Whose the guest is by the journal alone.
    fn owner(self) -> Place {
        match self {
            Self::CameEarly | Self::CameReady | Self::LeftGo | Self::LeftTold => Place::There,
            Self::CameGo | Self::CameRan | Self::LeftBack | Self::LeftReady => Place::Here,
        }
    }
}

/// The copy of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Here {
    /// Its QEMU has ended.
    Gone,
    /// Its QEMU does not answer.
    Silent,
    /// It stands still.
    Stopped,
    /// It came, and its QEMU has sent it somewhere by a migration of its own.
    Sent,
    /// It runs.
    Runs,
}

/// The copy at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    /// Nobody was asked, or nobody answered.
    Unasked,
    /// There is none.
    Absent,
    /// One that came there, has not got its name, and has never run.
    Incoming,
    /// One that was given away, and stands still under another name.
    Aside,
    /// It is suspended under its own name: a move or a save of it is under way, or broke off.
    Suspended,
    /// It is paused under its own name.
    Paused,
    /// It runs.
    Runs,
    /// It has shut down or crashed, and its remains are kept.
    Ended,
    /// Another guest has its name.
    Namesake,
    /// Two copies run there.
    Two,
}

/// Where the copy is that may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On this host.
    Here,
    /// At the other end.
    There,
    /// There is none: it starts anew, from its disks.
    Nowhere,
    /// With neither.
    Elsewhere,
    /// Two copies run.
    Two,
    /// It cannot be told.
    Unknown,
}

/// What makes it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// QEMU here: let it run.
    Cont,
    /// QEMU here: end it.
    Quit,
    /// QEMU here: stop it.
    Stop,
    /// There: end the copy that was seen.
    Destroy,
    /// There: let a suspended copy go on, under its own name.
    Resume,
    /// There: let a paused copy run, under its own name.
    Unpause,
    /// There: pause it.
    Pause,
}

/// What may run, why, and what makes it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Where.
    pub(super) place: Place,
    /// In a few words; none where nobody was asked, for then words of their own are said.
    pub(super) why: &'static str,
    /// In this order, each only once the one before it has succeeded.
    pub(super) acts: &'static [Act],
    /// What has to be true for the acts, and cannot be seen by us.
    pub(super) provided: Option<&'static str>,
}

const DISKS: &str = "its disks have not changed since: the copy here may have run for a moment";
const NOT_GIVEN_ON: &str = "it was not given to another host since";
const NO_MOVE: &str = "no `xl migrate` or `xl save` of it is under way there";
const NEVER_RAN_THERE: &str =
    "it has not run there in between, and then shut down or gone on: its disks have not changed since";
const NEVER_RAN_ON: &str = "it has not run on here in between: its disks have not changed since";

/// The verdict for one guest.
pub(super) fn decide(stage: Stage, here: Here, there: There) -> Verdict {
    match (here, there) {
        (_, There::Unasked) => unasked(stage, here),
        (_, There::Two) => say(Place::Two, "both at the other end", &[]),
        (Here::Runs, There::Runs) if stage.owner() == Place::Here => {
            say(Place::Two, "one at either end; the journal gives it to this one", &[Act::Pause])
        }
        (Here::Runs, There::Runs) => {
            say(Place::Two, "one at either end; the journal gives it to the other one", &[Act::Stop])
        }
        (_, There::Namesake) if !matches!(stage, Stage::LeftBack | Stage::LeftReady) => say(
            Place::Unknown,
            "another guest has its name there; if that is this one, started anew, no other copy may run",
            &[],
        ),
        (Here::Silent, _) => say(Place::Unknown, "its QEMU here does not answer, and may run it", &[]),
        (Here::Sent, There::Runs | There::Paused) => {
            say(Place::There, "QEMU has sent it away from here", &[])
        }
        (Here::Sent, _) => say(Place::Elsewhere, "QEMU has sent it away from here by a move of its own", &[]),
        _ => match stage {
            Stage::CameEarly | Stage::CameReady => never_ran_here(stage, here, there),
            Stage::CameGo | Stage::CameRan => given_to_us(stage, here, there),
            Stage::LeftBack | Stage::LeftReady => never_given(stage, here, there),
            Stage::LeftGo => given_away(here, there),
            Stage::LeftTold => taken(here, there),
        },
    }
}

/// Whether one copy runs and the other end has none, so that nothing is left to be done.
pub(super) fn is_settled(here: Here, there: There) -> bool {
    matches!((here, there), (Here::Runs, There::Absent) | (Here::Gone, There::Runs))
}

fn say(place: Place, why: &'static str, acts: &'static [Act]) -> Verdict {
    Verdict { place, why, acts, provided: None }
}

impl Verdict {
    fn provided(self, provided: &'static str) -> Self {
        Self { provided: Some(provided), ..self }
    }
}

/// By the journal and this host alone.
fn unasked(stage: Stage, here: Here) -> Verdict {
    let place = match (stage, here) {
        (_, Here::Silent) => Place::Unknown,
        (_, Here::Sent) => Place::Elsewhere,
        (Stage::CameEarly | Stage::CameReady, _) => Place::There,
        (Stage::CameGo, Here::Gone) => Place::Unknown,
        (Stage::CameRan | Stage::LeftBack | Stage::LeftReady, Here::Gone) => Place::Nowhere,
        (Stage::LeftGo, Here::Gone) | (Stage::LeftTold, _) => Place::There,
        (Stage::LeftGo, _) => Place::Unknown,
        (Stage::CameGo | Stage::CameRan | Stage::LeftBack | Stage::LeftReady, _) => Place::Here,
    };
    say(place, "", &[])
}

/// It was to come here, and its sender has it back or keeps it.
fn never_ran_here(stage: Stage, here: Here, there: There) -> Verdict {
    const AWAY: &str = "it was given away there, and not to us";
    match (here, there) {
        (Here::Runs, There::Absent | There::Incoming | There::Ended) => {
            say(Place::Here, "it runs, though nobody has given it to us", &[])
        }
        (Here::Runs, _) => say(
            Place::Unknown,
            "one runs here that nobody has given to us, and another one stands still there",
            &[Act::Stop],
        ),
        (Here::Stopped, There::Runs) => say(Place::There, "it runs there; ours never ran", &[Act::Quit]),
        (_, There::Runs) => say(Place::There, "it runs there; ours is gone and never ran", &[]),
        (Here::Stopped, There::Paused) => {
            say(Place::There, "it is paused there; ours never ran", &[Act::Quit])
        }
        (_, There::Paused) => say(Place::There, "it is paused there; ours is gone and never ran", &[]),
        (Here::Stopped, There::Suspended) => {
            say(Place::There, "it is suspended there; ours never ran", &[Act::Quit, Act::Resume])
                .provided(NO_MOVE)
        }
        (_, There::Suspended) => {
            say(Place::There, "it is suspended there; ours is gone and never ran", &[Act::Resume])
                .provided(NO_MOVE)
        }
        (Here::Stopped, There::Aside) if stage == Stage::CameReady => {
            say(Place::There, "its copy there is suspended; ours never ran", &[Act::Quit, Act::Resume])
                .provided(NOT_GIVEN_ON)
        }
        (_, There::Aside) if stage == Stage::CameReady => {
            say(Place::There, "its copy there is suspended; ours is gone and never ran", &[Act::Resume])
                .provided(NOT_GIVEN_ON)
        }
        (Here::Stopped, There::Aside) => say(Place::Elsewhere, AWAY, &[Act::Quit]),
        (_, There::Aside) => say(Place::Elsewhere, AWAY, &[]),
        (Here::Stopped, _) => {
            say(Place::Nowhere, "ours never ran, and it is not there any more", &[Act::Quit])
        }
        _ => say(Place::Nowhere, "ours is gone and never ran, and it is not there any more", &[]),
    }
}

/// The sender has given it to us.
fn given_to_us(stage: Stage, here: Here, there: There) -> Verdict {
    let ran = stage == Stage::CameRan;
    match (here, there) {
        (Here::Runs, There::Absent | There::Incoming) => say(Place::Here, "it runs", &[]),
        (Here::Runs, _) => say(Place::Here, "it runs; the copy there must not", &[Act::Destroy]),
        (Here::Stopped, There::Runs) => {
            say(Place::There, "it was taken back and runs there; ours must not", &[Act::Quit])
        }
        (Here::Stopped, There::Absent | There::Incoming) if ran => say(Place::Here, "it stands still", &[]),
        (Here::Stopped, There::Aside | There::Paused | There::Suspended) if ran => {
            say(Place::Here, "it stands still; the copy there must not run", &[Act::Destroy])
        }
        (Here::Stopped, _) if ran => {
            say(Place::Unknown, "it ran here, was taken back, and has ended there", &[])
        }
        (Here::Stopped, There::Absent | There::Incoming) => {
            say(Place::Here, "it was given to us, and has not run yet", &[Act::Cont])
        }
        (Here::Stopped, There::Aside) => {
            say(Place::Here, "it was given to us, and has not run yet", &[Act::Destroy, Act::Cont])
        }
        (Here::Stopped, There::Paused) => {
            say(Place::There, "it was taken back, and is paused there; ours never ran", &[Act::Quit])
        }
        (Here::Stopped, There::Suspended) => {
            say(Place::There, "it was taken back, and is suspended there", &[Act::Quit, Act::Resume])
                .provided(NO_MOVE)
        }
        (Here::Stopped, _) => say(
            Place::Nowhere,
            "it was taken back, and has ended there; ours is from before that",
            &[Act::Quit],
        ),
        (_, There::Runs) => say(Place::There, "it runs there; its QEMU here is gone", &[]),
        (_, There::Paused) => say(Place::There, "it is paused there; its QEMU here is gone", &[]),
        (_, There::Suspended) => {
            say(Place::There, "it is suspended there, under its own name; its QEMU here is gone", &[])
        }
        (_, There::Aside) if ran => say(
            Place::Nowhere,
            "it ran here, and its QEMU has ended; the copy there is from before that and must not run on the same disks",
            &[Act::Destroy],
        ),
        (_, There::Aside) => {
            say(Place::There, "its copy there is the only one left; it was told to run here", &[Act::Resume])
                .provided(DISKS)
        }
        _ if ran => say(Place::Nowhere, "it ran here, and its QEMU has ended: start it anew", &[]),
        _ => say(Place::Nowhere, "it was told to run here, and no copy is left: start it anew", &[]),
    }
}

/// It was to leave, and the destination was never told to run it.
fn never_given(stage: Stage, here: Here, there: There) -> Verdict {
    match (here, there) {
        (Here::Runs, There::Absent | There::Namesake | There::Ended) => say(Place::Here, "it runs", &[]),
        (Here::Runs, There::Incoming) => {
            say(Place::Here, "it runs; a copy that never ran was left there", &[Act::Destroy])
        }
        (Here::Runs, _) => say(Place::Here, "it runs; the copy there must not", &[Act::Destroy]),
        (Here::Stopped, There::Runs | There::Suspended) => {
            say(Place::There, "somebody has let it run there; ours must not", &[Act::Quit])
        }
        (Here::Stopped, There::Absent | There::Namesake) => {
            say(Place::Here, "the destination was never told to run it", &[Act::Cont])
        }
        (Here::Stopped, There::Ended) => say(
            Place::Nowhere,
            "somebody has let it run there, and it has ended; ours is from before that",
            &[Act::Quit],
        ),
        (Here::Stopped, There::Paused) => {
            say(Place::Unknown, "it has its name there and is paused, though nobody was told to run it", &[])
        }
        (Here::Stopped, _) => {
            say(Place::Here, "the destination was never told to run it", &[Act::Destroy, Act::Cont])
        }
        (_, There::Runs) => say(Place::There, "it runs there; its QEMU here is gone", &[]),
        (_, There::Paused | There::Suspended) => {
            say(Place::There, "it stands still there; its QEMU here is gone", &[])
        }
        (_, There::Incoming) if stage == Stage::LeftReady => {
            say(Place::There, "its copy there, which never ran, is the only one left", &[Act::Unpause])
                .provided(NEVER_RAN_ON)
        }
        (_, There::Incoming) => say(
            Place::Nowhere,
            "its QEMU here is gone, and the copy there is of an earlier moment and never ran: start it anew",
            &[Act::Destroy],
        ),
        _ => say(Place::Nowhere, "its QEMU here is gone, and it was never given away: start it anew", &[]),
    }
}

/// The destination was told to run it, and has not answered.
fn given_away(here: Here, there: There) -> Verdict {
    match (here, there) {
        (Here::Stopped, There::Runs) => say(Place::There, "it runs there; ours must not", &[Act::Quit]),
        (Here::Stopped, There::Paused) => say(
            Place::There,
            "it has its name there and is paused; ours must not run",
            &[Act::Quit, Act::Unpause],
        ),
        (Here::Stopped, There::Suspended) => {
            say(Place::There, "it has run there, and is suspended; ours must not run", &[Act::Quit])
        }
        (Here::Stopped, There::Incoming) => say(
            Place::Here,
            "the destination's copy has not heard that it may run, and never ran",
            &[Act::Destroy, Act::Cont],
        ),
        (Here::Stopped, There::Absent) => {
            say(Place::Here, "it is not at the destination", &[Act::Cont]).provided(NEVER_RAN_THERE)
        }
        (Here::Stopped, There::Ended) => {
            say(Place::Nowhere, "it ran there, and has ended; ours is from before that", &[Act::Quit])
        }
        (Here::Stopped, _) => {
            say(Place::Unknown, "the destination has given a copy away, this one or an earlier one", &[])
        }
        (Here::Runs, There::Absent | There::Ended) => {
            say(Place::Here, "it runs, and not at the destination", &[])
        }
        (Here::Runs, There::Incoming) => {
            say(Place::Here, "it runs; a copy that never ran was left there", &[Act::Destroy])
        }
        (Here::Runs, There::Paused) => say(Place::Here, "it runs; the copy there must not", &[Act::Destroy]),
        (Here::Runs, _) => say(
            Place::Unknown,
            "one runs here that was given away, and another one has run there",
            &[Act::Stop],
        ),
        (_, There::Runs) => say(Place::There, "it runs there", &[]),
        (_, There::Paused) => say(Place::There, "it has its name there and is paused", &[Act::Unpause]),
        (_, There::Suspended) => say(Place::There, "it has run there, and is suspended", &[]),
        (_, There::Incoming) => {
            say(Place::There, "its copy there, which never ran, is the only one left", &[Act::Unpause])
                .provided(NEVER_RAN_ON)
        }
        (_, There::Aside) => {
            say(Place::Elsewhere, "the destination has given it away, and ours is gone", &[])
        }
        _ => say(Place::Nowhere, "no copy is left at either end: start it anew", &[]),
    }
}

/// The destination has said that it runs there.
fn taken(here: Here, there: There) -> Verdict {
    match (here, there) {
        (Here::Stopped, _) => {
            say(Place::There, "it said so itself; the stopped copy here can be ended", &[Act::Quit])
        }
        (Here::Runs, There::Absent | There::Ended | There::Incoming) => {
            say(Place::Here, "it runs, and at the destination it has ended since", &[])
        }
        (Here::Runs, _) => say(
            Place::Unknown,
            "one runs here that was given away, and another one stands still there",
            &[Act::Stop],
        ),
        _ => say(Place::There, "it said so itself", &[]),
    }
}

#[cfg(test)]
mod tests;
