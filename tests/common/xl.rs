//! A Xen host that is asked for its domains.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

/// A script that prints what `xl list -v` of Xen 4.17 prints, for domains with this UUID: each a name and its state.
pub fn list(uuid: &str, domains: &[(&str, &str)]) -> String {
    let heading = "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            \
                   Reason-Code\tSecurity Label";
    let line = |(id, (name, state, uuid)): (usize, (&str, &str, &str))| {
        let reason = if state.contains("ss") { "2" } else { "-" };
        let (memory, vcpus, time, label) = (160, 2, 15.4, "-");
        format!(
            "{name:<40} {id:>5} {memory:>5} {vcpus:>5}     {state}  {time:>8.1} {uuid} {reason:>8} {label:>16}\n"
        )
    };
    let dom0 = ("Domain-0", "r-----", "00000000-0000-0000-0000-000000000000");
    let guests = domains.iter().map(|(name, state)| (*name, *state, uuid));
    let lines: String = std::iter::once(dom0).chain(guests).enumerate().map(line).collect();
    format!("cat <<'END'\n{heading}\n{lines}END\n")
}
