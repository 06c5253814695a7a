//! What goes on inside, on standard error, for whoever asks with `-v`.

use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt};

use crate::args::{LogFormat, Words};

/// Starts to log. `RUST_LOG` overrides `-v`.
pub(crate) fn start(words: &Words) {
    let level = match words.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    // An error in saying so would be said, and end us, where nobody listens any more.
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match words.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
