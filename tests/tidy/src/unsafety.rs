//! The rules on `unsafe`: only where hardware or the boot protocol is handled, and never without a reason.

use crate::Violation;
use crate::scan::Source;

/// Folders whose code may be unsafe: the silicon, the first instructions, and guests on a bare processor.
const FOLDERS: [&str; 3] = ["kernel/hw/", "boot/", "tests/guests/"];
/// Other files that may, each with the reason why it cannot be done in a `hw` crate.
const FILES: [(&str, &str); 1] =
    [("kernel/src/main.rs", "exports `kernel_main` and the panic handler by name, and registers the heap")];

/// Uses of `unsafe` outside the folders that may have it.
#[must_use]
pub fn misplaced(source: &Source) -> Vec<Violation> {
    let allowed = FOLDERS.iter().any(|folder| source.path.starts_with(folder))
        || FILES.iter().any(|(file, _)| source.path == *file);
    if allowed {
        return Vec::new();
    }
    let what = "`unsafe` belongs into kernel/hw: move it there behind a safe function";
    lines_with_unsafe(source).map(|index| Violation::new(&source.path, index + 1, what)).collect()
}

/// `unsafe` blocks and implementations without a `SAFETY` comment just above or beside them.
#[must_use]
pub fn unexplained(source: &Source) -> Vec<Violation> {
    let opens = |index: &usize| {
        let code = &source.code[*index];
        let after = code.split("unsafe").nth(1).unwrap_or_default().trim_start();
        after.starts_with('{') || after.starts_with("impl") || (after.is_empty() && next_opens(source, *index))
    };
    lines_with_unsafe(source)
        .filter(opens)
        .filter(|index| !is_explained(source, *index))
        .map(|index| Violation::new(&source.path, index + 1, "`unsafe` without a SAFETY comment: say why it is sound"))
        .collect()
}

fn lines_with_unsafe(source: &Source) -> impl Iterator<Item = usize> {
    let has = |line: &String| Source::words(line).any(|word| word == "unsafe");
    source.code.iter().enumerate().filter(move |(_, line)| has(line)).map(|(index, _)| index)
}

fn next_opens(source: &Source, index: usize) -> bool {
    source.code.get(index + 1).is_some_and(|line| line.trim_start().starts_with('{'))
}

/// Looks upwards through the statement that the line belongs to and the comment above it.
fn is_explained(source: &Source, index: usize) -> bool {
    let has_reason = |line: usize| source.comments[line].contains("SAFETY:");
    let mut line = index;
    loop {
        if has_reason(line) {
            return true;
        }
        if line == 0 {
            return false;
        }
        line -= 1;
        let code = source.code[line].trim_end();
        let is_blank = code.is_empty() && source.comments[line].trim().is_empty();
        // Another statement ends here, so what is above explains that one. A brace may open the block that the comment
        // stands before: `let x = y.map(|z| {`.
        if is_blank || (code.ends_with([';', '}', ',']) && !has_reason(line)) {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path, text)
    }

    #[test]
    fn unsafe_is_refused_outside_its_folders() {
        let text = "// SAFETY: none\nunsafe { a() }\n";
        for path in ["kernel/lib/addr/src/lib.rs", "kernel/src/probe.rs", "scripts/xtask/src/main.rs"] {
            assert_eq!(misplaced(&source(path, text)).len(), 1, "{path}");
        }
        for path in ["kernel/hw/svm/src/entry.rs", "boot/src/lib.rs", "tests/guests/src/cpu.rs"] {
            assert!(misplaced(&source(path, text)).is_empty(), "{path}");
        }
    }

    #[test]
    fn the_lint_names_and_text_are_no_use_of_it() {
        let text = "#![forbid(unsafe_code)]\n// unsafe\nconst A: &str = \"unsafe\";\n";
        assert!(misplaced(&source("kernel/lib/addr/src/lib.rs", text)).is_empty());
    }

    #[test]
    fn a_block_needs_its_own_reason() {
        let good = "// SAFETY: it is ours.\nlet a =\n    unsafe { b() };\n";
        assert!(unexplained(&source("kernel/hw/a.rs", good)).is_empty());
        for bad in [
            "fn f() {\n    unsafe { b() }\n}\n",
            "// SAFETY: a.\nlet a = unsafe { b() };\nlet c = unsafe { d() };\n",
            "unsafe impl Send for A {}\n",
        ] {
            assert_eq!(unexplained(&source("kernel/hw/a.rs", bad)).len(), 1, "{bad}");
        }
    }

    #[test]
    fn an_unsafe_function_is_explained_by_its_documentation() {
        let text = "/// # Safety\n/// Once.\npub unsafe fn start() {}\n";
        assert!(unexplained(&source("kernel/hw/a.rs", text)).is_empty());
    }
}
