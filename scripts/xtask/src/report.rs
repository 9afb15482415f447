//! Counts what passed and what failed, and prints each step with its time. The main type is [`Report`], which `test` and
//! `demo` fill.

use std::process::Command;

use anyhow::Result;
use e2e::Skipped;

use crate::steps;

/// Steps done so far.
#[derive(Default)]
pub struct Report {
    /// How many tests passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many this machine cannot run.
    pub skipped: usize,
    failures: Vec<String>,
}

impl Report {
    /// Carries out a step that is one test.
    pub fn step(&mut self, title: &str, step: impl FnOnce() -> Result<()>) -> bool {
        let result = step();
        self.record(title, result)
    }

    /// Counts a test program that took so long.
    pub fn program(&mut self, name: &str, seconds: f64, result: Result<()>) {
        if let Some(skipped) = result.as_ref().err().and_then(|error| error.downcast_ref::<Skipped>()) {
            eprintln!("{seconds:>6.1} s  {name}: {skipped}");
            self.skipped += 1;
            return;
        }
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        eprintln!("{seconds:>6.1} s  {name}: {word}");
        self.record(name, result);
    }

    /// Runs `cargo test` and counts the tests it ran; a run that failed without counting any counts as one failure.
    pub fn cargo_test(&mut self, title: &str, log: &str, command: &mut Command) {
        let result = steps::logged(title, log, command);
        let text = steps::log_path(log).and_then(|path| Ok(std::fs::read_to_string(path)?)).unwrap_or_default();
        let (passed, failed) = counts(&text);
        self.passed += passed;
        self.failed += failed;
        if let Err(error) = result {
            self.failed += usize::from(failed == 0);
            self.note(title, &error);
        }
    }

    /// The last line: how many passed and failed, and how many were not run.
    pub fn summary(&self) -> String {
        let skipped = if self.skipped == 0 { String::new() } else { format!(", {} skipped", self.skipped) };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }

    /// Prints what failed again, below everything else.
    pub fn print_failures(&self) {
        for failure in &self.failures {
            eprintln!("FAILED  {failure}");
        }
    }

    fn record(&mut self, title: &str, result: Result<()>) -> bool {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                self.note(title, &error);
                return false;
            }
        }
        true
    }

    fn note(&mut self, title: &str, error: &anyhow::Error) {
        eprintln!("{title}: {error:#}\n");
        self.failures.push(format!("{title}: {}", crate::run::reason(error)));
    }
}

/// Sums libtest's result lines: "test result: ok. 3 passed; 0 failed; ...".
fn counts(log: &str) -> (usize, usize) {
    let number = |line: &str, word: &str| -> usize {
        let mut before = line.split(word).next().unwrap_or_default().split_whitespace();
        before.next_back().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    log.lines()
        .filter(|line| line.starts_with("test result:"))
        .fold((0, 0), |(passed, failed), line| (passed + number(line, " passed"), failed + number(line, " failed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed() {
        let log = "test a ... ok\ntest result: ok. 3 passed; 0 failed; 0 ignored\n\
                   test result: FAILED. 10 passed; 2 failed; 1 ignored\n";
        assert_eq!(counts(log), (13, 2));
    }

    #[test]
    fn a_failed_step_is_counted_and_named() {
        let mut report = Report::default();
        assert!(report.step("good", || Ok(())));
        assert!(!report.step("bad", || anyhow::bail!("why\nlong tail")));
        assert_eq!(report.summary(), "1 passed, 1 failed");
        assert_eq!(report.failures, ["bad: why"]);
    }
}
