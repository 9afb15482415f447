//! `cargo xtask test`: every test, the quick ones first. The last line counts what passed and failed.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use e2e::{Accel, Artifacts};

use crate::fuzz;
use crate::kernel::cargo;
use crate::report::Report;
use crate::{artifacts, paths, programs, reproducible, setup, steps};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// Only what takes under five minutes: crates, tidy, lints and the first boots
    #[arg(long)]
    quick: bool,
    /// Only the emulator tests of these names
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Runs the tests.
pub fn command(options: &Options) -> Result<()> {
    setup::setup()?;
    let mut report = Report::default();
    if options.names.is_empty() {
        crates(&mut report);
    } else if let Some(unknown) =
        options.names.iter().find(|name| e2e::PROGRAMS.iter().all(|program| program.name != **name))
    {
        let known: Vec<&str> = e2e::PROGRAMS.iter().map(|program| program.name).collect();
        bail!("no emulator test is called `{unknown}`; there are: {}", known.join(" "));
    }
    let mut built = None;
    report.step("building what the emulator tests boot", || {
        built = Some(artifacts::build(Accel::detect())?);
        Ok(())
    });
    if let Some(artifacts) = &built {
        emulators(&mut report, options, artifacts);
    }
    if let Some(artifacts) = built.as_ref().filter(|_| !options.quick && options.names.is_empty()) {
        report.step("building the images again", || reproducible::images(artifacts));
        report.step("building the kernel elsewhere", || reproducible::kernel(artifacts));
    }
    if !options.quick && options.names.is_empty() {
        fuzz::test(&mut report);
    }
    report.print_failures();
    eprintln!("logs: {} and {}", paths::logs().display(), paths::e2e_logs().display());
    println!("{}", report.summary());
    if report.failed == 0 { Ok(()) } else { std::process::exit(1) }
}

/// Everything that needs no emulator.
fn crates(report: &mut Report) {
    report.cargo_test("testing the pure crates and tidy", "test-crates", cargo().args(["test", "--no-fail-fast"]));
    report.cargo_test("testing the test harness", "test-e2e", cargo().args(["test", "--package", "e2e"]));
    let drivers = ["test", "--package", "drivers", "--package", "gcm", "--package", "iommu"];
    report.cargo_test("testing the drivers", "test-drivers", cargo().args(drivers));
    let mut lint = |title: &str, log: &str, command: &mut Command| {
        report.step(title, || steps::logged(title, log, command));
    };
    lint("checking the format", "fmt", cargo().args(["fmt", "--all", "--check"]));
    lint("linting the host side", "clippy-host", cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]));
    let mut kernel = cargo();
    kernel.args([
        "clippy",
        "--release",
        "--package",
        "kernel",
        "--target",
        "x86_64-unknown-none",
        "--",
        "-D",
        "warnings",
    ]);
    lint("linting the kernel", "clippy-kernel", &mut kernel);
}

fn emulators(report: &mut Report, options: &Options, artifacts: &Artifacts) {
    let wanted = |program: &&e2e::Program| match (&options.names[..], options.quick) {
        ([], quick) => program.quick || !quick,
        (names, _) => names.iter().any(|name| name == program.name),
    };
    programs::run(report, e2e::PROGRAMS.iter().filter(wanted), artifacts);
}
