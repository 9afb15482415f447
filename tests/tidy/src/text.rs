//! The remaining textual rules: size of files, words that promise work, names that say nothing, and who may name the
//! processor's vendor.

use crate::Violation;
use crate::scan::Source;

/// The most lines of a file.
pub const FILE_LINES_MAX: usize = 900;
/// Code that pretends.
const PRETENCES: [&str; 4] = ["todo!", "unimplemented!", "allow(dead_code)", "#[ignore"];
/// Promises that nobody keeps.
const PROMISES: [&str; 3] = ["FIXME", "XXX", "TODO"];
/// Names that fit everything and so say nothing.
const EMPTY_NAMES: [&str; 9] =
    ["util", "utils", "common", "manager", "managers", "helper", "helpers", "misc", "utilities"];

/// Files that are too long.
#[must_use]
pub fn too_long(source: &Source) -> Option<Violation> {
    let lines = source.code.len();
    let what = format!("a file of {lines} lines: split it, {FILE_LINES_MAX} are the most");
    (lines > FILE_LINES_MAX).then(|| Violation::new(&source.path, 0, what))
}

/// Stubs, ignored tests and notes to self.
#[must_use]
pub fn unfinished(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, (code, comment)) in source.code.iter().zip(&source.comments).enumerate() {
        let squeezed: String = code.split_whitespace().collect();
        let pretence = PRETENCES.iter().find(|pretence| squeezed.contains(**pretence));
        let promise = PROMISES
            .iter()
            .find(|promise| Source::words(comment).chain(Source::words(code)).any(|word| word == **promise));
        if let Some(found) = pretence.or(promise) {
            violations.push(Violation::new(&source.path, index + 1, format!("`{found}`: finish it or leave it out")));
        }
    }
    violations
}

/// Modules and crates whose name says nothing: the last word of a folder's or file's name. "Common configuration" is a
/// structure of the virtio specification; "common" alone is not a subject.
#[must_use]
pub fn nameless(source: &Source) -> Option<Violation> {
    let names = source.path.trim_end_matches(".rs").split('/');
    let found = names.filter_map(|name| name.rsplit('_').next()).find(|word| EMPTY_NAMES.contains(word))?;
    Some(Violation::new(&source.path, 0, format!("`{found}` says nothing: name what it is about")))
}

/// A pure crate's root without the two promises that make it pure.
#[must_use]
pub fn impure(source: &Source) -> Vec<Violation> {
    let is_root = source.path.starts_with("kernel/lib/") && source.path.ends_with("/src/lib.rs");
    let code: String = source.code.iter().flat_map(|line| line.split_whitespace()).collect();
    let required = ["#![forbid(unsafe_code)]", "no_std"];
    let missing = required.iter().filter(|attribute| is_root && !code.contains(**attribute));
    missing.map(|attribute| Violation::new(&source.path, 1, format!("a pure crate says {attribute}"))).collect()
}

/// Places outside `kernel/src/backend.rs` that choose a vendor, and places outside `hw/svm` and `hw/vmx` that name the
/// processor's control blocks.
#[must_use]
pub fn vendor(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in source.code.iter().enumerate() {
        let mut report = |what: &str| violations.push(Violation::new(&source.path, index + 1, what));
        if source.path.starts_with("kernel/src/") && source.stem() != "backend" && names_crate(line, &["svm", "vmx"]) {
            report("only kernel/src/backend.rs names `svm` or `vmx`");
        }
        let has = |block: &str| Source::words(line).any(|word| word.to_lowercase().contains(block));
        if source.path.starts_with("kernel/") && !source.path.starts_with("kernel/hw/svm/") && has("vmcb") {
            report("only kernel/hw/svm names the VMCB");
        }
        if source.path.starts_with("kernel/") && !source.path.starts_with("kernel/hw/vmx/") && has("vmcs") {
            report("only kernel/hw/vmx names the VMCS");
        }
    }
    violations
}

/// True if a line uses one of the crates: `svm::`, `use svm`.
fn names_crate(line: &str, crates: &[&str]) -> bool {
    let squeezed: String = line.split_whitespace().collect::<Vec<_>>().join(" ");
    crates.iter().any(|name| {
        let path = format!("{name}::");
        let is_path = squeezed.match_indices(&path).any(|(at, _)| {
            !squeezed[..at]
                .chars()
                .next_back()
                .is_some_and(|before| before.is_alphanumeric() || before == '_' || before == ':')
        });
        is_path || squeezed.contains(&format!("use {name};")) || squeezed.contains(&format!("use {name} "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path, text)
    }

    #[test]
    fn unfinished_code_is_found_and_its_mention_is_not() {
        for bad in [
            "todo!()",
            "unimplemented! ()",
            "#[allow(dead_code)]",
            "#[ignore]",
            "// FIXME: later",
            "/* XXX */",
            "// TODO",
        ] {
            assert_eq!(unfinished(&source("a.rs", bad)).len(), 1, "{bad}");
        }
        for good in ["\"todo!()\"", "// what is to do", "let xxxx = 1;"] {
            assert!(unfinished(&source("a.rs", good)).is_empty(), "{good}");
        }
    }

    #[test]
    fn long_files_are_found() {
        assert!(too_long(&source("a.rs", &"\n".repeat(FILE_LINES_MAX))).is_none());
        assert!(too_long(&source("a.rs", &"\n".repeat(FILE_LINES_MAX + 1))).is_some());
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        for bad in ["kernel/lib/util/src/lib.rs", "kernel/src/vm_manager.rs", "kernel/lib/addr/src/helpers/mod.rs"] {
            assert!(nameless(&source(bad, "")).is_some(), "{bad}");
        }
        for good in ["kernel/lib/shell/src/command.rs", "kernel/lib/virtio/src/common_configuration.rs"] {
            assert!(nameless(&source(good, "")).is_none(), "{good}");
        }
    }

    #[test]
    fn a_pure_crate_must_say_so() {
        let good = "#![cfg_attr(not(test), no_std)]\n#![forbid(unsafe_code)]\n";
        assert!(impure(&source("kernel/lib/addr/src/lib.rs", good)).is_empty());
        assert_eq!(impure(&source("kernel/lib/addr/src/lib.rs", "// #![forbid(unsafe_code)] no_std\n")).len(), 2);
        assert!(impure(&source("kernel/hw/cpu/src/lib.rs", "")).is_empty());
    }

    #[test]
    fn only_the_back_end_chooses_a_vendor() {
        for bad in ["use svm::Svm;", "let a = svm::new();", "use vmx;"] {
            assert_eq!(vendor(&source("kernel/src/probe.rs", bad)).len(), 1, "{bad}");
            assert!(vendor(&source("kernel/src/backend.rs", bad)).is_empty(), "{bad}");
        }
        assert!(vendor(&source("kernel/src/probe.rs", "let svm = features::svm::A; // svm::b")).is_empty());
    }

    #[test]
    fn control_blocks_stay_in_their_crates() {
        assert_eq!(vendor(&source("kernel/lib/machine/src/run.rs", "state.vmcb_pa = 1;")).len(), 1);
        assert!(vendor(&source("kernel/hw/svm/src/vmcb.rs", "struct Vmcb;")).is_empty());
        assert_eq!(vendor(&source("kernel/hw/svm/src/entry.rs", "let vmcs = 1;")).len(), 1);
    }
}
