//! A host's clock against ours.

use anyhow::{Context, Result};
use hyperferry_testkit::lab::Host;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

/// Of so many questions the one with the quickest answer counts.
const QUESTIONS: usize = 20;

/// A connection that tells a host's time. Emulated clocks drift, so it is set before and after what is measured.
pub(super) struct Clock {
    host: Host,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// The host's time and what has to be added to it, the last two times it was set.
    earlier: (f64, f64),
    later: (f64, f64),
}

impl Clock {
    /// Connects.
    pub(super) fn start(host: Host) -> Result<Self> {
        let tell = "exec python3 -uc 'import sys, time\nfor line in sys.stdin: print(repr(time.time()))'";
        let mut child = host.ssh(tell).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let to = child.stdin.take().context("no pipe to ssh")?;
        let from = BufReader::new(child.stdout.take().context("no pipe from ssh")?);
        Ok(Self { host, child, to, from, earlier: (0.0, 0.0), later: (0.0, 0.0) })
    }

    /// Asks the host for its time, over a new connection if the old one has not survived a busy time.
    pub(super) fn set(&mut self) -> Result<()> {
        if self.ask().is_err() {
            let earlier = self.later;
            *self = Self::start(self.host)?;
            self.later = earlier;
            self.ask()?;
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<()> {
        let mut best = f64::INFINITY;
        let mut set = (0.0, 0.0);
        for _ in 0..QUESTIONS {
            let asked = now();
            self.to.write_all(b"\n")?;
            let mut line = String::new();
            self.from.read_line(&mut line)?;
            let (answered, theirs) = (now(), line.trim().parse::<f64>().context("the host tells no time")?);
            if answered - asked < best {
                best = answered - asked;
                set = (theirs, (asked + answered) / 2.0 - theirs);
            }
        }
        self.earlier = std::mem::replace(&mut self.later, set);
        Ok(())
    }

    /// What our clock showed at this time of the host.
    pub(super) fn ours(&self, theirs: f64) -> f64 {
        let ((began, offset), (ended, end_offset)) = (self.earlier, self.later);
        let part = (theirs - began) / (ended - began);
        theirs + offset + part * (end_offset - offset)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // An ssh that is gone already is just as well.
        self.child.kill().and_then(|()| self.child.wait()).map(drop).unwrap_or_default();
    }
}

/// Our time, seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
