//! `hyperferry diff`: two VMs, field by field and page by page.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
};

use hyperferry_translate::refusal::{self, Policy};
use hyperferry_vm_model::PAGE_SIZE;
use serde::Serialize;

use super::open;
use crate::{
    args::Diff,
    exit::{self, Error, Result},
    model, output,
};

/// Pages are shown one by one up to this many.
const PAGES_SHOWN: usize = 16;
/// What stands for a field or page that one side does not have.
const ABSENT: &str = "absent";

/// A VM as it is compared.
struct Side {
    fields: Vec<model::Line>,
    /// Checksum of each page that is not all zeros, by guest-physical address.
    pages: BTreeMap<u64, u32>,
}

/// A field that differs.
#[derive(Serialize)]
struct Difference {
    path: String,
    left: String,
    right: String,
}

/// The document of `--json`.
#[derive(Serialize)]
struct Document {
    schema: &'static str,
    version: u32,
    equal: bool,
    differences: Vec<Difference>,
    pages: usize,
}

/// Compares; exit code 0 if there is no difference, else 1.
pub(super) fn run(arguments: &Diff) -> Result<u8> {
    let (left, right) = (read(&arguments.left)?, read(&arguments.right)?);
    let mut differences = fields(&left.fields, &right.fields);
    let pages = pages(&left.pages, &right.pages);
    let equal = differences.is_empty() && pages.is_empty();
    let count = pages.len();
    differences.extend(pages.into_iter().take(PAGES_SHOWN));
    if arguments.json {
        let (schema, version) = ("hyperferry-diff", 1);
        output::print_json(&Document { schema, version, equal, differences, pages: count })?;
    } else {
        print(&differences, count)?;
    }
    Ok(if equal { exit::OK } else { exit::DIFFERENT })
}

fn print(differences: &[Difference], pages: usize) -> Result<()> {
    let mut out = output::stdout();
    for Difference { path, left, right } in differences {
        writeln!(out, "{path}: {left} -> {right}").map_err(Error::stdout)?;
    }
    if pages > PAGES_SHOWN {
        writeln!(out, "memory: {} pages more", pages - PAGES_SHOWN).map_err(Error::stdout)?;
    }
    out.flush().map_err(Error::stdout)
}

/// Reads all of a VM. A comparison harms no guest, so whatever can be allowed is.
fn read(path: &Path) -> Result<Side> {
    let mut policy = Policy::default();
    for refusal in refusal::ALL.iter().filter(|refusal| refusal.can_allow) {
        // It says yes to those.
        let _ = policy.allow(refusal.name);
    }
    let mut pages = BTreeMap::new();
    let mut put = |address: u64, page: &[u8]| {
        if page.iter().all(|byte| *byte == 0) {
            pages.remove(&address);
        } else {
            pages.insert(address, crc32fast::hash(page));
        }
    };
    let page_size = usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX);
    let taken = open(path, policy)?.pump(|addresses, data| {
        addresses.iter().zip(data.chunks(page_size)).for_each(|(address, page)| put(*address, page));
        Ok(())
    })?;
    taken.held.iter().for_each(|(frame, page)| put(frame.saturating_mul(PAGE_SIZE), page));
    Ok(Side { fields: model::lines(&taken.vm), pages })
}

/// Fields in the order of the left side, then those that only the right one has.
fn fields(left: &[model::Line], right: &[model::Line]) -> Vec<Difference> {
    let values: BTreeMap<&str, &str> =
        right.iter().map(|(path, value)| (path.as_str(), value.as_str())).collect();
    let known: BTreeSet<&str> = left.iter().map(|(path, _)| path.as_str()).collect();
    let changed = left.iter().filter_map(|(path, value)| {
        let other = values.get(path.as_str()).copied().unwrap_or(ABSENT);
        (other != value).then(|| difference(path, value, other))
    });
    let added = right.iter().filter(|(path, _)| !known.contains(path.as_str()));
    changed.chain(added.map(|(path, value)| difference(path, ABSENT, value))).collect()
}

fn pages(left: &BTreeMap<u64, u32>, right: &BTreeMap<u64, u32>) -> Vec<Difference> {
    let addresses: BTreeSet<&u64> = left.keys().chain(right.keys()).collect();
    let text =
        |checksum: Option<&u32>| checksum.map_or("zeros".to_owned(), |sum| format!("crc32 {sum:#010x}"));
    let differ = addresses.into_iter().filter(|address| left.get(address) != right.get(address));
    differ
        .map(|address| {
            let path = format!("memory[{address:#x}]");
            difference(&path, &text(left.get(address)), &text(right.get(address)))
        })
        .collect()
}

fn difference(path: &str, left: &str, right: &str) -> Difference {
    Difference { path: path.to_owned(), left: left.to_owned(), right: right.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, value: &str) -> model::Line {
        (path.to_owned(), value.to_owned())
    }

    #[test]
    fn changed_gone_and_new_fields_are_told() {
        let found = fields(
            &[line("a", "1"), line("b", "2"), line("c", "3")],
            &[line("a", "1"), line("c", "4"), line("d", "5")],
        );
        let found: Vec<_> =
            found.iter().map(|one| (one.path.as_str(), one.left.as_str(), one.right.as_str())).collect();
        assert_eq!(found, [("b", "2", "absent"), ("c", "3", "4"), ("d", "absent", "5")]);
    }

    #[test]
    fn pages_differ_by_their_content() {
        let side = |pages: &[(u64, u32)]| pages.iter().copied().collect::<BTreeMap<_, _>>();
        let found = pages(&side(&[(0x1000, 7), (0x2000, 8)]), &side(&[(0x1000, 7), (0x3000, 9)]));
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].path.as_str(), found[0].right.as_str()), ("memory[0x2000]", "zeros"));
    }
}
