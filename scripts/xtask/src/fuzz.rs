//! `cargo xtask fuzz`: runs the fuzz targets of `tests/fuzz` with libFuzzer. Stable rustc instruments them by itself; the
//! flags apply to the target triple only, so that build scripts and macros stay as they are. [`seeds`] are the inputs that
//! every run starts with, on a clean checkout too.

mod seeds;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
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
/// Parsers of what peers and disks say run this long in the tests, and all other targets share what is left of the whole:
/// a target more does not make the tests longer.
const PARSERS: [&str; 2] = ["migrate_wire", "state"];
const PARSER_SECONDS: u32 = 60;
const TEST_SECONDS_ALL: u32 = 540;

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub struct Options {
    /// Which target; all of them without it
    target: Option<String>,
    /// How long each runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Run this input alone: hexadecimal, as a failure prints it
    #[arg(long, value_name = "HEX", requires = "target")]
    input: Option<String>,
    /// Keep the inputs found so far, as few as reach the same code, in tests/fuzz/seeds
    #[arg(long)]
    keep: bool,
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
    build()?;
    if let Some(input) = &options.input {
        return replay(&targets[0], input);
    }
    if options.keep {
        return targets.iter().try_for_each(|target| seeds::keep(target, &program(target), &corpus(target)?));
    }
    let mut report = Report::default();
    run(&mut report, &targets, |_| options.seconds);
    ensure!(report.failed == 0, "fuzzing found something");
    Ok(())
}

/// Runs one input, its output on the terminal.
fn replay(target: &str, input: &str) -> Result<()> {
    let path = folder().join(format!("{target}-input"));
    fs::write(&path, seeds::bytes(input)?).with_context(|| format!("writing {}", path.display()))?;
    let status = Command::new(program(target)).arg(path).status().context("starting the fuzz target")?;
    ensure!(status.success(), "the input fails");
    Ok(())
}

/// Runs every target as a part of the tests.
pub fn test(report: &mut Report) {
    let mut found = Vec::new();
    let is_built = report.step("building the fuzz targets", || {
        found = targets()?;
        build()
    });
    if is_built {
        let (parsers, others): (Vec<String>, _) = found.into_iter().partition(|name| PARSERS.contains(&name.as_str()));
        run(report, &parsers, |_| PARSER_SECONDS);
        let parser_seconds = PARSER_SECONDS * parsers.len() as u32;
        run(report, &others, |count| (TEST_SECONDS_ALL - parser_seconds) / count);
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

/// The instrumented binary of a target.
fn program(target: &str) -> PathBuf {
    folder().join(TRIPLE).join("release").join(target)
}

/// Where the inputs are that a target found on this machine.
fn corpus(target: &str) -> Result<PathBuf> {
    let corpus = paths::cache()?.join("fuzz").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("creating {}", corpus.display()))?;
    Ok(corpus)
}

/// Runs the targets, some at once, each for so long by their number, and reports each.
fn run(report: &mut Report, targets: &[String], seconds: impl Fn(u32) -> u32) {
    let seconds = seconds(targets.len() as u32);
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

/// Starts a target on its corpus, which is kept in the cache and grows, and on its seeds.
fn start(target: &str, seconds: u32) -> Result<Child> {
    let (corpus, seeds) = (corpus(target)?, seeds::unpack(target, &folder())?);
    let log = steps::log_path(&format!("fuzz-{target}"))?;
    let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    Command::new(program(target))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/{target}-", folder().display()))
        .arg(corpus)
        .arg(seeds)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .with_context(|| format!("starting the fuzz target {target}"))
}

fn verdict(target: &str, mut child: Child) -> Result<()> {
    let status = child.wait().context("waiting for a fuzz target")?;
    let log = steps::log_path(&format!("fuzz-{target}"))?;
    let text = fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    if !status.success() {
        let input = artifact(&text).and_then(|path| fs::read(path).ok()).map(|bytes| seeds::hexadecimal(&bytes));
        let replay = input.map_or_else(String::new, |hex| format!("; cargo xtask fuzz {target} --input {hex}"));
        bail!("{}; log: {}{replay}", cause(&text), log.display());
    }
    ensure!(text.contains("stat::number_of_executed_units"), "it ran nothing; log: {}", log.display());
    Ok(())
}

/// What a log says of why a target ended: the panic with its message, and libFuzzer's own words.
fn cause(log: &str) -> String {
    let panic = log.lines().skip_while(|line| !line.contains("panicked at")).take(2);
    let words = log.lines().find(|line| line.contains("ERROR: libFuzzer"));
    let found: Vec<&str> = panic.chain(words).collect();
    if found.is_empty() { "it ended without a word".to_owned() } else { found.join(" ") }
}

/// The file with the input that failed.
fn artifact(log: &str) -> Option<&Path> {
    let (_, path) = log.lines().find_map(|line| line.split_once("Test unit written to "))?;
    Some(Path::new(path.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "#8 NEW cov: 1\nthread '<unnamed>' panicked at targets/x.rs:1:2:\nwhy it did\nnote: run with\n\
                       ==1== ERROR: libFuzzer: deadly signal\n\
                       artifact_prefix='/t/x-'; Test unit written to /t/x-crash-1\n";

    #[test]
    fn a_log_tells_the_cause_and_the_input() {
        assert_eq!(
            cause(LOG),
            "thread '<unnamed>' panicked at targets/x.rs:1:2: why it did ==1== ERROR: libFuzzer: deadly signal"
        );
        assert_eq!(artifact(LOG), Some(Path::new("/t/x-crash-1")));
        assert_eq!((cause(""), artifact("")), ("it ended without a word".to_owned(), None));
    }
}
