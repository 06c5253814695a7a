//! Lands a stream that QEMU itself saved: `land_stream QEMU FILE|- [QEMU argument…]`.
//!
//! Progress goes to standard output as lines of JSON. Ends with QEMU, or with Ctrl-C.

use std::{error::Error, io, time::Duration};

use hyperferry_relay::{
    endpoint::open_input,
    interrupted,
    landing::{Outcome, Waiting},
    progress::Progress,
    qemu::Launch,
};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "this is a program")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(program), Some(file)) = (words.next(), words.next()) else {
        return Err("usage: land_stream QEMU FILE|- [QEMU argument…]".into());
    };
    let progress = Progress::new(|update| {
        println!("{}", serde_json::to_string(&update).unwrap_or_default());
    });
    let launch = Launch::new(program, words);
    tokio::select! {
        ended = land(&launch, &file, progress) => ended,
        signal = interrupted() => Err(format!("stopped by {}", signal?).into()),
    }
}

async fn land(launch: &Launch, file: &str, progress: Progress) -> Result<(), Box<dyn Error>> {
    let waiting = Waiting::start(launch, progress).await?;
    eprintln!("QEMU {} waits, process {}", waiting.version(), waiting.id().unwrap_or_default());
    let mut input = open_input(file)?;
    let (loaded, bytes) = waiting.load(move |stream| io::copy(&mut input.reader, stream)).await?;
    let mut running = loaded.resume().await?;
    eprintln!("the guest runs, after {bytes} bytes and {:?}", running.started_in());
    match running.follow(Some(Duration::from_secs(3600))).await? {
        Outcome::Ended { status, reason, .. } => eprintln!("QEMU ended: {status}, {reason:?}"),
        Outcome::StillRunning => eprintln!("the guest goes on in process {:?}", running.release()),
    }
    Ok(())
}
