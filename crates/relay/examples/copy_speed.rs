//! How fast bytes get from one file to another, in one run: `copy_speed FILE [ROUNDS]`.
//!
//! `cp`, plain loops, and our own endpoints copy FILE to a file beside it, in turns, so that all of
//! them meet the same page cache and the same load. Each copy is removed before the next begins. What counts is the
//! ratio to `cp` within a run; `sync` is what our commit adds, since it waits for the disk and `cp` does not.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use hyperferry_relay::endpoint::{open_input, open_output};

/// A way to copy: how long the copying took, and how long the sync after it.
type Way = fn(&Path, &Path) -> Result<(Duration, Duration), Box<dyn Error>>;

const WAYS: &[(&str, Way)] = &[
    ("cp", by_cp),
    ("loop 1M", |from, to| by_loop(from, to, 1 << 20)),
    ("loop 128K", |from, to| by_loop(from, to, 128 << 10)),
    ("endpoints", by_endpoints),
];

#[allow(clippy::print_stdout, reason = "this is a program")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let file = words.next().ok_or("usage: copy_speed FILE [ROUNDS]")?;
    let rounds = words.next().map_or(Ok(5), |word| word.parse::<usize>())?;
    let (from, to) = (Path::new(&file), Path::new(&file).with_extension("copy"));
    let bytes = fs::metadata(from)?.len();
    let mut times = vec![Vec::new(); WAYS.len()];
    for _ in 0..rounds {
        for ((_, way), times) in WAYS.iter().zip(&mut times) {
            times.push(way(from, &to)?);
            fs::remove_file(&to)?;
        }
    }
    println!("{bytes} bytes, {rounds} rounds, medians");
    let mut cp = None;
    for ((name, _), times) in WAYS.iter().zip(&mut times) {
        times.sort_unstable();
        let (copy, sync) = times.get(rounds / 2).copied().unwrap_or_default();
        let cp = *cp.get_or_insert(copy);
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let rate = bytes as f64 / 1e6 / copy.as_secs_f64();
        let ratio = cp.as_secs_f64() / copy.as_secs_f64();
        println!("{name:12} {rate:7.0} MB/s  {ratio:.2}x cp  + sync {:.2} s", sync.as_secs_f64());
    }
    let status = fs::read_to_string("/proc/self/status")?;
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    Ok(())
}

fn by_cp(from: &Path, to: &Path) -> Result<(Duration, Duration), Box<dyn Error>> {
    let began = Instant::now();
    // A reflink would move nothing and say nothing.
    let status = Command::new("cp").arg("--reflink=never").args([from, to]).status()?;
    if !status.success() {
        return Err(format!("cp: {status}").into());
    }
    let copied = began.elapsed();
    File::open(to)?.sync_all()?;
    Ok((copied, began.elapsed() - copied))
}

fn by_loop(from: &Path, to: &Path, step: usize) -> Result<(Duration, Duration), Box<dyn Error>> {
    let began = Instant::now();
    let mut to = File::create(to)?;
    copy(&mut File::open(from)?, &mut to, step)?;
    let copied = began.elapsed();
    to.sync_all()?;
    Ok((copied, began.elapsed() - copied))
}

fn by_endpoints(from: &Path, to: &Path) -> Result<(Duration, Duration), Box<dyn Error>> {
    let began = Instant::now();
    let mut output = open_output(to)?;
    copy(&mut open_input(from)?.reader, &mut output, 128 << 10)?;
    let copied = began.elapsed();
    output.commit()?;
    Ok((copied, began.elapsed() - copied))
}

fn copy(from: &mut impl Read, to: &mut impl Write, step: usize) -> io::Result<()> {
    let mut buffer = vec![0; step];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..count).unwrap_or_default())?;
    }
}
