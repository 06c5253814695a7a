//! What the witness guests print: lines of `name=value` after a first word.

/// One line `WITNESS beat=… bad=… …` of either witness.
#[derive(Clone, Debug, PartialEq)]
pub struct Beat {
    /// How often the guest has checked itself since it started.
    pub beat: u64,
    /// How many checks failed since then.
    pub bad: u64,
    line: String,
}

impl Beat {
    /// The value of a name on the line.
    pub fn value(&self, name: &str) -> Option<&str> {
        value(&self.line, name)
    }

    /// The same as a number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.value(name)?.parse().ok()
    }

    fn read(line: &str) -> Option<Self> {
        let line = line.trim_end().strip_prefix("WITNESS ")?;
        let number = |name| value(line, name)?.parse().ok();
        Some(Self { beat: number("beat")?, bad: number("bad")?, line: line.to_owned() })
    }
}

fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// All beats in what a guest printed, in order. The last line counts once it is complete.
pub fn beats(serial: &str) -> Vec<Beat> {
    complete(serial).lines().filter_map(Beat::read).collect()
}

/// What was printed up to the last end of a line.
fn complete(serial: &str) -> &str {
    serial.rfind('\n').map_or("", |end| serial.get(..end).unwrap_or_default())
}

/// The beat of one line, where it is one.
pub fn beat(line: &str) -> Option<Beat> {
    Beat::read(line)
}

/// Whether `after` continues `before` without a failed check and without a beat missing or repeated: the reason why not.
pub fn continues(before: &str, after: &str, unseen_beats: u64) -> Result<(), String> {
    let (Some(last), after) = (beats(before).pop(), beats(after)) else {
        return Err("the guest had not come to a beat before".to_owned());
    };
    let mut wanted = last.beat;
    for beat in &after {
        wanted += 1;
        let is_first_again =
            wanted == last.beat + 1 && (last.beat..=last.beat + unseen_beats).contains(&beat.beat);
        if is_first_again {
            wanted = beat.beat;
        }
        if beat.beat != wanted {
            return Err(format!("beat {wanted} is missing, then comes {}", beat.line));
        }
        if beat.bad != last.bad {
            return Err(format!("{} checks had failed before, now: {}", last.bad, beat.line));
        }
    }
    if after.is_empty() { Err(format!("no beat after {}", last.beat)) } else { Ok(()) }
}

/// How many beats may pass between the last line that a fixture's origin shows and the first after it.
///
/// The beat under way is printed on one side or on neither. A guest that was recorded while it ran went on until its
/// last page was taken, and its origin shows what it had said before that.
pub fn unseen_beats(fixture: &str) -> u64 {
    match fixture {
        _ if fixture.starts_with("xen/witness-live") || fixture.starts_with("xen/witness-4.") => 120,
        _ if fixture.starts_with("qemu/") => 10,
        _ => 2,
    }
}

/// What a move from Xen to QEMU is known to change for one fixture.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What `hyperferry` has to be allowed.
    pub allow: &'static [&'static str],
    /// The checks that fail. Xen counts the local APIC's timer at 100 MHz, QEMU at 1 GHz: a count under way is another one.
    pub checks: &'static [&'static str],
    unseen_beats: u64,
}

/// What is known of a fixture; nothing for most.
pub fn known_after_a_move(fixture: &str) -> Known {
    const COUNT: &[&str] = &["lapic_initial", "lapic_current_in_range"];
    let plain = Known { allow: &[], checks: &[], unseen_beats: unseen_beats(fixture) };
    match fixture {
        "xen/witness-lapic-periodic" => Known { allow: &["lapic-timer"], checks: COUNT, ..plain },
        "xen/witness-hpet" => Known { allow: &["hpet"], ..plain },
        _ => plain,
    }
}

/// What is known of a fixture of Xen's that goes home to Xen.
pub fn known_at_home(fixture: &str) -> Known {
    Known { allow: &[], checks: &[], unseen_beats: unseen_beats(fixture) }
}

/// What a move from QEMU to Xen is known to change: the timer of the local APIC counts at 100 MHz there, CPUID shows
/// twice the vCPU's number for its APIC id, the lab's Xen has no TSC_AUX, and under its emulation a guest's PAT and CR2
/// are not its own.
pub fn known_on_xen(fixture: &str) -> Known {
    let checks = &["lapic_initial", "lapic_current_in_range", "cpuid_apic_id", "tsc_aux", "pat", "cr2"];
    Known { allow: &["lapic-timer", "device"], checks, unseen_beats: unseen_beats(fixture) }
}

impl Known {
    /// The beats go on where they stopped, one by one, and no check fails that is not known to: the reason why not.
    pub fn judge(&self, before: &str, after: &str) -> Result<(), String> {
        let known = |line: &str| self.checks.iter().any(|name| line.contains(&format!(" what={name} ")));
        let mut impatient = false;
        for line in complete(after).lines().filter(|line| line.starts_with("BAD ") && !known(line)) {
            // The captured witnesses gave up on the RTC after a hundred tries, which on a fast machine end within the
            // 244 us that announce an update. A date that is wrong stays wrong.
            if !line.contains(" what=rtc_date ") || impatient {
                return Err(line.to_owned());
            }
            impatient = true;
        }
        let numbers = |text: &str| beats(text).iter().map(|beat| beat.beat).collect::<Vec<_>>();
        let (last, beats) = (numbers(before).last().copied().unwrap_or(0), numbers(after));
        let first = beats.first().copied().unwrap_or(0);
        if !(last..=last + self.unseen_beats).contains(&first) {
            return Err(format!("beat {last} was followed by beat {first}"));
        }
        match beats.iter().zip(beats.iter().skip(1)).find(|(beat, next)| **next != **beat + 1) {
            Some((beat, next)) => Err(format!("beat {beat} was followed by beat {next}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(beats: &[(u64, u64)]) -> String {
        beats.iter().map(|(beat, bad)| format!("WITNESS beat={beat} bad={bad} cpus=1\n")).collect()
    }

    #[test]
    fn a_failed_check_is_forgiven_only_where_it_is_known() {
        let before = lines(&[(5, 0)]);
        let after =
            format!("BAD cpu=0 what=lapic_initial found=0x1 wanted=0x2\n{}", lines(&[(6, 1), (7, 1)]));
        assert_eq!(known_after_a_move("xen/witness-lapic-periodic").judge(&before, &after), Ok(()));
        // The last line may be under way, and its name cut short.
        let more = format!("{after}BAD cpu=0 what=lapic_in");
        assert_eq!(known_after_a_move("xen/witness-lapic-periodic").judge(&before, &more), Ok(()));
        assert!(known_after_a_move("xen/witness-1vcpu").judge(&before, &after).is_err());
        assert!(known_after_a_move("xen/witness-1vcpu").judge(&before, &lines(&[(1, 0), (2, 0)])).is_err());
        assert!(known_after_a_move("xen/witness-1vcpu").judge(&before, &lines(&[(6, 0), (8, 0)])).is_err());
    }

    #[test]
    fn a_date_that_was_not_waited_for_is_forgiven_once() {
        let known = known_after_a_move("xen/witness-1vcpu");
        let bad = "BAD cpu=0 what=rtc_date found=0x0 wanted=0x1\n";
        let (before, once) =
            (lines(&[(5, 0)]), format!("{}{bad}{}", lines(&[(6, 0)]), lines(&[(7, 1), (8, 1)])));
        assert_eq!(known.judge(&before, &once), Ok(()));
        assert!(known.judge(&before, &format!("{once}{bad}")).is_err());
    }

    #[test]
    fn beat_is_read_with_its_values() {
        let beats = beats("START\nWITNESS beat=7 bad=1 fx=2.5 mono=3.250\r\nWITNESS beat=8 bad=1 fx");
        assert_eq!(beats.len(), 1);
        assert_eq!((beats[0].beat, beats[0].bad), (7, 1));
        assert_eq!(beats[0].number("fx"), Some(2.5));
        assert_eq!(beats[0].number("mono"), Some(3.25));
        assert_eq!(beats[0].value("absent"), None);
    }

    #[test]
    fn going_on_is_told_from_starting_anew_and_from_damage() {
        let before = lines(&[(5, 0), (6, 0)]);
        assert_eq!(continues(&before, &lines(&[(7, 0), (8, 0)]), 2), Ok(()));
        assert_eq!(continues(&before, &lines(&[(8, 0), (9, 0)]), 2), Ok(()));
        assert!(continues(&before, &lines(&[(1, 0), (2, 0)]), 2).is_err());
        assert!(continues(&before, &lines(&[(7, 0), (9, 0)]), 2).is_err());
        assert!(continues(&before, &lines(&[(7, 0), (8, 1)]), 2).is_err());
        assert!(continues(&before, "", 2).is_err());
    }
}
