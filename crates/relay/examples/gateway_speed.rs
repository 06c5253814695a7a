//! How fast a stream passes through a gateway, beside a plain copy in the same steps, in the same run.
//!
//!     zstd -dc fixtures/xen/witness-live/stream.zst > /tmp/live
//!     cargo run --release -p hyperferry-relay --example gateway_speed /tmp/live 4
//!
//! The stream's start is followed by as many GiB of pages, through two pipes. Copy and gateway take turns; each line has both
//! rates, and this program's memory at its highest (the stream and its sender's 8 MiB are in it).

use std::{
    error::Error,
    fs,
    io::{PipeReader, PipeWriter, Read, Write, pipe},
    thread,
    time::Instant,
};

use hyperferry_relay::{
    gateway::{NearEnd, Passing},
    link::FarEnd,
    progress::Progress,
};

/// Pages of one PAGE_DATA record, as Xen sends them.
const BATCH: u64 = 1024;
/// Batches of one round: 8 MiB, which the fixture's guest has.
const ROUND: u64 = 2;
const STEP: usize = 128 << 10;

#[tokio::main]
#[allow(clippy::print_stdout, reason = "this is a program")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(file), Some(size)) = (words.next(), words.next()) else {
        return Err("usage: gateway_speed STREAM GIB".into());
    };
    let whole = fs::read(file)?;
    let batches = size.parse::<u64>()? << (30 - 12 - 10);
    let start = whole.get(..start_of_memory(&whole)?).unwrap_or_default().to_vec();
    for _ in 0..5 {
        let copied = copy(start.clone(), batches)?;
        let passed = pass(start.clone(), batches).await?;
        let ratio = passed / copied;
        println!("copied {copied:.2} GB/s, passed {passed:.2} GB/s: {ratio:.2}, {}", highest()?);
    }
    Ok(())
}

/// Where the first PAGE_DATA record begins: what the stream's reader has read before it.
fn start_of_memory(stream: &[u8]) -> Result<usize, Box<dyn Error>> {
    let mut reader = hyperferry_xen_stream::StreamReader::new(stream);
    loop {
        let start = usize::try_from(reader.offset())?;
        match reader.next_event()? {
            Some(hyperferry_xen_stream::Event::PageData(_)) => return Ok(start),
            Some(_) => {}
            None => return Err("no memory in it".into()),
        }
    }
}

/// Writes the stream's start, and batches of pages.
fn send(mut to: PipeWriter, start: Vec<u8>, batches: u64) {
    let rounds: Vec<Vec<u8>> = (0..ROUND).map(|batch| page_data(batch * BATCH)).collect();
    let mut written = to.write_all(&start);
    for batch in rounds.iter().cycle().take(usize::try_from(batches).unwrap_or(usize::MAX)) {
        written = written.and_then(|()| to.write_all(batch));
    }
}

/// PAGE_DATA: type, length, count, reserved, page frames, pages.
fn page_data(first: u64) -> Vec<u8> {
    let mut record = Vec::new();
    for word in [1, 8 + (8 + 4096) * 1024, 1024, 0_u32] {
        record.extend(word.to_le_bytes());
    }
    for page in first..first + BATCH {
        record.extend(page.to_le_bytes());
    }
    record.resize(record.len() + 4096 * 1024, 0x5a);
    record
}

/// Reads to the end, and counts.
fn sink(mut from: PipeReader) -> u64 {
    let mut buffer = vec![0; STEP];
    let mut total = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        total += count as u64;
    }
    total
}

fn copy(start: Vec<u8>, batches: u64) -> Result<f64, Box<dyn Error>> {
    let (mut from, sent) = pipe()?;
    let (read, mut to) = pipe()?;
    let began = Instant::now();
    let sender = thread::spawn(move || send(sent, start, batches));
    let sink = thread::spawn(move || sink(read));
    let mut buffer = vec![0; STEP];
    while let count @ 1.. = from.read(&mut buffer)? {
        to.write_all(buffer.get(..count).unwrap_or_default())?;
    }
    drop(to);
    Ok(rate(sink, sender, began))
}

async fn pass(start: Vec<u8>, batches: u64) -> Result<f64, Box<dyn Error>> {
    let (from, sent) = pipe()?;
    let (_heard, answers) = pipe()?;
    let (read, to) = pipe()?;
    let (words, said) = pipe()?;
    let near = NearEnd::pipes(from, answers);
    let ended = async move {
        // The receiver, and its word at the end of it all.
        std::future::pending::<()>().await;
        drop(said);
        Ok(0)
    };
    let far = FarEnd { name: "the sink".to_owned(), to, from: words, ended: Box::pin(ended) };
    let began = Instant::now();
    let sender = thread::spawn(move || send(sent, start, batches));
    let sink = thread::spawn(move || sink(read));
    let passing = Passing::open(near, far).await?;
    let running = tokio::spawn(async move { passing.run(&Progress::silent()).await });
    let rate = tokio::task::spawn_blocking(move || rate(sink, sender, began)).await?;
    running.abort();
    Ok(rate)
}

#[allow(clippy::cast_precision_loss, reason = "a rate")]
fn rate(sink: thread::JoinHandle<u64>, sender: thread::JoinHandle<()>, began: Instant) -> f64 {
    let total = sink.join().unwrap_or_default();
    let seconds = began.elapsed().as_secs_f64();
    drop(sender.join());
    total as f64 / seconds / 1e9
}

fn highest() -> std::io::Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
}
