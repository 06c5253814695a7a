//! A platform whose vCPU nobody executes: the test says why it leaves the guest.

use super::*;
use crate::kvm::{Access, fake};

const CAPABILITIES: u64 = 0xfed0_0000;
const COUNTER: u64 = 0xfed0_00f0;
const STATE: &str = r#"{"version":1,"hpet":{"period_fs":16000000,"capabilities":2156306945,"config":1,"isr":0,
    "counter":1000,"timers":[{"config":48,"comparator":5,"period":0,"fsb":0},
    {"config":48,"comparator":6,"period":0,"fsb":0},{"config":48,"comparator":7,"period":0,"fsb":0}]}}"#;

struct Bench {
    platform: &'static Platform,
    vcpu: RawFd,
    page: RunPage,
    file: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(state: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hpet.json");
        fs::write(&file, state).unwrap();
        let platform: &Platform = Box::leak(Box::new(Platform::new()));
        platform.told.set(Settings { apic_bus_ns: None, hpet: Some(file.clone()) }).unwrap();
        let vcpu = fake::vcpu();
        assert_eq!(platform.vcpu_created(vcpu), vcpu);
        let page = platform.slot(vcpu).and_then(|slot| slot.page.get()).unwrap();
        Self { platform, vcpu, page, file, _folder: folder }
    }

    /// `KVM_RUN` that leaves for each of these in turn, and for nothing in the end. Says what the guest was given.
    fn run(&self, accesses: &[Access]) -> (c_int, Vec<u64>) {
        let (given, left) = (Mutex::new(Vec::new()), Mutex::new(accesses.iter()));
        let result = self.platform.run(self.vcpu, || {
            given.lock().unwrap().push(fake::given(self.page));
            fake::leave_for(self.page, left.lock().unwrap().next().copied());
            0
        });
        let mut given = given.into_inner().unwrap();
        given.remove(0);
        (result, given)
    }

    fn saved(&self) -> u64 {
        let text: serde_json::Value = serde_json::from_slice(&fs::read(&self.file).unwrap()).unwrap();
        text["hpet"]["counter"].as_u64().unwrap()
    }
}

fn read(address: u64) -> Access {
    Access { address, length: 8, written: None }
}

#[test]
fn the_chips_accesses_are_answered_and_others_are_qemus() {
    let bench = Bench::new(STATE);
    let (result, given) = bench.run(&[read(CAPABILITIES), read(COUNTER), read(0xfee0_0000)]);
    assert_eq!((result, given.len()), (0, 2), "the third goes to QEMU");
    assert_eq!(given[0], 0x00f4_2400_8086_a201);
    assert!((1000..1000 + 62_500_000).contains(&given[1]), "{}", given[1]);
    assert_eq!(bench.page.access(), Some(read(0xfee0_0000)));
}

#[test]
fn the_counter_stands_while_the_vm_does_and_is_saved() {
    let bench = Bench::new(STATE);
    assert_eq!(bench.platform.clock_read(0), 0);
    assert_eq!(bench.saved(), 1000, "not started yet: nothing is written");
    bench.run(&[]);
    thread::sleep(Duration::from_millis(2));
    bench.platform.clock_read(0);
    let saved = bench.saved();
    assert!(saved >= 1000 + 125_000, "{saved}");
    thread::sleep(Duration::from_millis(50));
    let (_, given) = bench.run(&[read(COUNTER)]);
    assert!((saved..saved + 3_000_000).contains(&given[0]), "{saved}, then {}", given[0]);
}

#[test]
fn a_clock_read_while_a_vcpu_runs_stops_nothing() {
    let bench = Bench::new(STATE);
    bench.platform.run(bench.vcpu, || {
        bench.platform.clock_read(0);
        assert!(bench.platform.running.load(Ordering::Acquire));
        -1
    });
    assert_eq!(bench.saved(), 1000);
}

#[test]
fn a_reset_is_seen_only_while_the_guest_has_been_running() {
    let bench = Bench::new(STATE);
    bench.platform.irqchip_set(0);
    let (_, given) = bench.run(&[read(COUNTER)]);
    assert!(given[0] >= 1000);
    bench.platform.irqchip_set(0);
    let (_, given) = bench.run(&[read(COUNTER)]);
    assert_eq!(given, [0]);
}

#[test]
fn without_its_state_the_guest_does_not_run() {
    let bench = Bench::new("{}");
    let result = bench.platform.run(bench.vcpu, || panic!("it ran"));
    assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EIO)));
}

#[test]
fn a_guest_without_the_chip_finds_none() {
    let bench = Bench::new(r#"{"version":1,"hpet":null}"#);
    assert_eq!(bench.run(&[read(COUNTER)]), (0, vec![]));
    assert_eq!(bench.page.access(), Some(read(COUNTER)));
}

#[test]
fn an_irqchip_that_could_not_take_its_interrupts_is_refused() {
    let bench = Bench::new(STATE);
    assert_eq!(bench.platform.capability_wanted(-1, KVM_CAP_SPLIT_IRQCHIP, || panic!("it was enabled")), -1);
    assert_eq!(bench.platform.capability_wanted(-1, KVM_CAP_SPLIT_IRQCHIP + 1, || 7), 7);
}

#[test]
fn a_vcpu_that_cannot_be_looked_after_is_refused() {
    let bench = Bench::new(STATE);
    assert_eq!(bench.platform.vcpu_created(5000), -1);
    assert_eq!(bench.platform.vcpu_created(-1), -1);
    let platform: &Platform = Box::leak(Box::new(Platform::new()));
    platform.told.set(Settings::default()).unwrap();
    assert_eq!(platform.vcpu_created(5000), 5000, "none of our business");
    assert_eq!(platform.run(5000, || 3), 3);
}
