//! Virtual NUMA nodes.

use serde_json::Value;

use super::list;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Value> = Check { name: "vnuma", worst: Severity::Note, judge };

fn judge(xl: &Value, say: &mut Say<'_>) {
    let nodes = list(xl, "/b_info/vnuma_nodes").len();
    if nodes > 0 {
        let reason = format!(
            "the guest has {nodes} virtual NUMA nodes; it keeps their tables, and memory here is one piece"
        );
        say.note(reason, "");
    }
}
