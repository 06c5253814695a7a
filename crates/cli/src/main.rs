//! The hyperferry command
use hyperferry_relay::{session::Landing, progress::Progress, endpoint::open_input};
use hyperferry_translate::{qemu::{args::Options, Accelerator}, refusal::Policy, source::Source};
#[tokio::main]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let acc = if a[3] == "kvm" { Accelerator::Kvm } else { Accelerator::Tcg };
    let mut policy = Policy::default();
    for n in a[5].split(',').filter(|n| !n.is_empty()) { policy.allow(n).unwrap(); }
    let mut options = Options::new(acc);
    options.serial = a[4].clone();
    let intake = Source::open(open_input(&a[1]).unwrap().reader, policy.clone()).unwrap_or_else(|e| { println!("{e}"); std::process::exit(4) });
    let landing = Landing { qemu: a[2].clone().into(), options, extra: a[7..].to_vec(), policy };
    println!("{:?}", landing.launch(intake.outline()).arguments());
    let arrived = match landing.load(intake, &Progress::silent()).await { Ok(a) => a, Err(e) => { println!("ERR {e}"); std::process::exit(5) } };
    println!("{}", arrived.report);
    let mut running = arrived.loaded.resume().await.unwrap();
    println!("running");
    println!("{:?}", running.follow(Some(std::time::Duration::from_secs(a[6].parse().unwrap()))).await);
}
