//! Progress as metrics in Prometheus' text format 0.0.4: a file for node_exporter's textfile collector, or over HTTP.
//!
//! Source: prometheus.io, "Exposition formats" and "Metric and label naming"; node_exporter's textfile collector reads
//! each `*.prom` of its directory as a whole, so ours is replaced and never half there.

use std::{
    fs::Permissions,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyperferry_relay::progress::{Forecast, Phase, Summary, Update};
use prometheus::{
    Gauge, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    register_gauge_with_registry as gauge, register_int_counter_with_registry as int_counter,
    register_int_gauge_vec_with_registry as int_gauge_vec, register_int_gauge_with_registry as int_gauge,
};
use tempfile::NamedTempFile;

use super::{Outcome, View, http};
use crate::exit::{Error, Result};

/// How often the file is written anew at most; Prometheus seldom reads it more than once in ten seconds.
const INTERVAL: Duration = Duration::from_secs(1);

/// Metrics of one transfer.
pub(super) struct Metrics {
    path: Option<PathBuf>,
    written: Option<(Instant, Phase)>,
    values: Values,
}

struct Values {
    registry: Registry,
    phase: IntGaugeVec,
    bytes: IntCounter,
    /// Bytes of the present phase that are in `bytes`.
    counted: (Phase, u64),
    byte_rate: IntGauge,
    memory_pages: IntGauge,
    pages_sent: IntCounter,
    pages_resent: IntCounter,
    round: IntGauge,
    dirty_rate: Gauge,
    diverging: IntGauge,
    elapsed: Gauge,
    eta: Gauge,
    pause: Gauge,
    outcome: IntGaugeVec,
}

impl Metrics {
    /// Metrics of this guest, in that file and at that address.
    pub(super) fn new(guest: &str, path: Option<PathBuf>, listen: Option<SocketAddr>) -> Result<Self> {
        let values = Values::new(guest).map_err(|error| Error::Host(format!("metrics: {error}")))?;
        if let Some(path) = &path {
            let replaced = replace(path, &text(&values.registry));
            replaced.map_err(|source| Error::Output { path: path.display().to_string(), source })?;
        }
        if let Some(address) = listen {
            http::serve(address, values.registry.clone())
                .map_err(|error| Error::Host(format!("--metrics-listen {address}: {error}")))?;
        }
        Ok(Self { path, written: None, values })
    }

    /// A full disk is no reason to stop a move.
    fn write(&self) {
        let Some(path) = &self.path else { return };
        if let Err(error) = replace(path, &text(&self.values.registry)) {
            tracing::warn!(%error, path = %path.display(), "the metrics stay as they were");
        }
    }
}

impl View for Metrics {
    fn update(&mut self, update: &Update) {
        self.values.update(update);
        let recent = |(when, phase): (Instant, Phase)| phase == update.phase && when.elapsed() < INTERVAL;
        if !self.written.is_some_and(recent) {
            self.written = Some((Instant::now(), update.phase));
            self.write();
        }
    }

    fn end(&mut self, summary: &Summary, outcome: Outcome) {
        self.values.end(summary, outcome);
        self.write();
    }
}

impl Values {
    fn new(guest: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let named = |name: &str, help: &str| {
            Opts::new(format!("hyperferry_{name}"), help).const_label("guest", guest)
        };
        let values = Self {
            phase: int_gauge_vec!(named("phase", "1 for what is being done"), &["phase"], registry)?,
            bytes: int_counter!(named("bytes_total", "Bytes written to the destination"), registry)?,
            counted: (Phase::Start, 0),
            byte_rate: int_gauge!(named("bytes_per_second", "Rate of the last three seconds"), registry)?,
            memory_pages: int_gauge!(named("memory_pages", "Pages of the guest's memory"), registry)?,
            pages_sent: int_counter!(named("pages_sent_total", "Pages that came at least once"), registry)?,
            pages_resent: int_counter!(
                named("pages_resent_total", "Pages that came again, each time counted"),
                registry
            )?,
            round: int_gauge!(named("round", "Round of the pre-copy, from 1"), registry)?,
            dirty_rate: gauge!(
                named(
                    "dirty_pages_per_second",
                    "Pages that the guest writes to in a second; NaN if not known"
                ),
                registry
            )?,
            diverging: int_gauge!(named("will_not_converge", "1 while rounds do not get smaller"), registry)?,
            elapsed: gauge!(named("elapsed_seconds", "Seconds since the transfer began"), registry)?,
            eta: gauge!(named("eta_seconds", "Seconds to the end of memory; NaN if not known"), registry)?,
            pause: gauge!(
                named("pause_seconds", "Seconds for which the guest stood still, about; NaN if not known"),
                registry
            )?,
            outcome: int_gauge_vec!(
                named("outcome", "1 for how it ended, or for `running`"),
                &["outcome"],
                registry
            )?,
            registry,
        };
        for unknown in [&values.dirty_rate, &values.eta, &values.pause] {
            unknown.set(f64::NAN);
        }
        values.outcome.with_label_values(&["running"]).set(1);
        Ok(values)
    }

    fn update(&mut self, update: &Update) {
        self.phase.reset();
        self.phase.with_label_values(&[update.phase.name()]).set(1);
        let (phase, counted) = self.counted;
        let counted = if phase == update.phase { counted } else { 0 };
        self.bytes.inc_by(update.bytes.saturating_sub(counted));
        self.counted = (update.phase, update.bytes);
        self.byte_rate.set(whole(update.bytes_per_second));
        self.elapsed.set(seconds(Some(update.elapsed_ms)));
        let Some(memory) = update.memory else { return };
        self.memory_pages.set(whole(memory.pages_total));
        self.pages_sent.inc_by(memory.pages_sent.saturating_sub(self.pages_sent.get()));
        self.pages_resent.inc_by(memory.pages_resent.saturating_sub(self.pages_resent.get()));
        self.round.set(memory.round.into());
        self.dirty_rate.set(memory.dirty_pages_per_second.map_or(f64::NAN, approximately));
        self.diverging.set((memory.forecast == Some(Forecast::WillNotConverge)).into());
        self.eta.set(seconds(memory.eta_ms));
    }

    fn end(&self, summary: &Summary, outcome: Outcome) {
        self.elapsed.set(seconds(Some(summary.elapsed_ms)));
        self.pause.set(seconds(summary.pause_ms));
        self.eta.set(f64::NAN);
        self.byte_rate.set(0);
        self.outcome.reset();
        self.outcome.with_label_values(&[outcome.name()]).set(1);
    }
}

/// All of it, in the text format.
pub(super) fn text(registry: &Registry) -> String {
    let mut text = String::new();
    if let Err(error) = TextEncoder::new().encode_utf8(&registry.gather(), &mut text) {
        tracing::warn!(%error, "metrics");
    }
    text
}

/// Puts a file in the place of another. For all to read: the collector is another user.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The name must not end as the collector's files do.
    let mut file = NamedTempFile::with_prefix_in(".hyperferry-", folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seconds(ms: Option<u64>) -> f64 {
    ms.map_or(f64::NAN, |ms| approximately(ms) / 1000.0)
}

/// Prometheus' numbers are floats; above 2^53 they are rounded.
#[allow(clippy::cast_precision_loss, reason = "that is the rounding")]
fn approximately(number: u64) -> f64 {
    number as f64
}
