//! `cargo xtask fuzz`: runs the fuzz targets of `tests/fuzz` with libFuzzer. Stable rustc instruments them by itself; the
//! flags apply to the target triple only, so that build scripts and macros stay as they are.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::kernel::cargo;
use crate::report::Report;
use crate::steps::Progress;
use crate::{paths, setup, steps};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Coverage counters and comparisons for libFuzzer, and every check that a debug build has.
const FLAGS: [&str; 9] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "--cfg=fuzzing",
];
/// How many targets run at once.
const PARALLEL: usize = 2;

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub struct Options {
    /// Which target; all of them without it
    target: Option<String>,
    /// How long each runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs one target or all.
pub fn command(options: &Options) -> Result<()> {
    setup::setup()?;
    let mut targets = targets()?;
    if let Some(wanted) = &options.target {
        let known = targets.join(" ");
        targets.retain(|target| target == wanted);
        ensure!(!targets.is_empty(), "no fuzz target is called `{wanted}`; there are: {known}");
    }
    let mut report = Report::default();
    report.step("fuzzing", build);
    if report.failed == 0 {
        run(&mut report, &targets, options.seconds);
    }
    ensure!(report.failed == 0, "fuzzing found something");
    Ok(())
}

/// Runs every target as a part of the tests.
pub fn test(report: &mut Report, seconds: u32) {
    let mut found = Vec::new();
    let is_built = report.step("building the fuzz targets", || {
        found = targets()?;
        build()
    });
    if is_built {
        run(report, &found, seconds);
    }
}

/// The targets' names: every file in `tests/fuzz/targets`.
fn targets() -> Result<Vec<String>> {
    let folder = paths::root().join("tests/fuzz/targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

fn build() -> Result<()> {
    let mut command = cargo();
    command.current_dir(paths::root().join("tests/fuzz")).args([
        "build",
        "--release",
        "--target",
        TRIPLE,
        "--target-dir",
    ]);
    command.arg(folder()).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    steps::logged("building the fuzz targets", "fuzz-build", &mut command)
}

fn folder() -> PathBuf {
    paths::target().join("fuzz")
}

/// Runs the targets, some at once, and reports each.
fn run(report: &mut Report, targets: &[String], seconds: u32) {
    for group in targets.chunks(PARALLEL) {
        let progress = Progress::start(&format!("fuzzing {} for {seconds} s", group.join(", ")));
        let mut running: Vec<(&String, Result<Child>)> =
            group.iter().map(|target| (target, start(target, seconds))).collect();
        while running.iter_mut().any(|(_, child)| is_running(child)) {
            thread::sleep(Duration::from_millis(200));
            progress.show();
        }
        let failed_before = report.failed;
        for (target, child) in running {
            report.step(&format!("fuzz {target}"), || verdict(target, child?));
        }
        progress.finish(report.failed == failed_before);
    }
}

fn is_running(child: &mut Result<Child>) -> bool {
    child.as_mut().is_ok_and(|child| matches!(child.try_wait(), Ok(None)))
}

/// Starts a target on its corpus, which is kept in the cache and grows, and on the inputs that once broke something.
fn start(target: &str, seconds: u32) -> Result<Child> {
    let corpus = paths::cache()?.join("fuzz").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("creating {}", corpus.display()))?;
    let log = steps::log_path(&format!("fuzz-{target}"))?;
    let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let mut command = Command::new(folder().join(TRIPLE).join("release").join(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/{target}-", folder().display()))
        .arg(corpus);
    let seeds = paths::root().join("tests/fuzz/seeds").join(target);
    if seeds.exists() {
        command.arg(seeds);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    command.spawn().with_context(|| format!("starting the fuzz target {target}"))
}

fn verdict(target: &str, mut child: Child) -> Result<()> {
    let status = child.wait().context("waiting for a fuzz target")?;
    let log = steps::log_path(&format!("fuzz-{target}"))?;
    let text = fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    if !status.success() {
        let line = |needle: &str| text.lines().find(|line| line.contains(needle)).unwrap_or_default().to_owned();
        let cause = [line("panicked at"), line("ERROR: libFuzzer"), line("Test unit written")].join("; ");
        bail!("{cause}; log: {}", log.display());
    }
    ensure!(text.contains("stat::number_of_executed_units"), "it ran nothing; log: {}", log.display());
    Ok(())
}
