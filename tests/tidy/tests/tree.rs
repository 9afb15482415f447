//! Applies every rule to the checkout.

use tidy::scan::Source;
use tidy::{Violation, arrows, functions, text, tree, unsafety};

fn report(violations: &[Violation]) {
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

fn check<V: IntoIterator<Item = Violation>>(rule: impl Fn(&Source) -> V) {
    let sources = tree::sources().expect("the checkout can be read");
    assert!(sources.len() > 20, "only {} sources were found", sources.len());
    report(&sources.iter().flat_map(rule).collect::<Vec<_>>());
}

#[test]
fn unsafe_is_only_where_it_may_be() {
    check(unsafety::misplaced);
}

#[test]
fn unsafe_is_explained() {
    check(unsafety::unexplained);
}

#[test]
fn functions_are_short() {
    check(functions::too_long);
}

#[test]
fn files_are_short() {
    check(text::too_long);
}

#[test]
fn nothing_is_left_unfinished() {
    check(text::unfinished);
}

#[test]
fn names_say_something() {
    check(text::nameless);
}

#[test]
fn pure_crates_are_pure() {
    check(text::impure);
}

#[test]
fn the_vendor_is_chosen_in_one_place() {
    check(text::vendor);
}

#[test]
fn arrows_follow_the_design_and_versions_are_exact() {
    let packages = tree::packages(&tree::root().join("Cargo.toml")).expect("cargo reads the workspace");
    report(&arrows::wrong(&packages));
    report(&arrows::unpinned(&packages));
}

#[test]
fn versions_of_the_fuzz_targets_are_exact() {
    let packages = tree::packages(&tree::root().join("tests/fuzz/Cargo.toml")).expect("cargo reads the fuzz targets");
    report(&arrows::unpinned(&packages));
}
