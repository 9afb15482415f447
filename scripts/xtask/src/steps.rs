//! Runs commands with progress on the terminal and their output in a log. The main function is [`logged`]; a failure
//! shows the end of the log and names it.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;

/// How often a running step is mentioned again where no terminal redraws the line.
const REMINDER: Duration = Duration::from_secs(30);
/// Lines of a failed step's log that are shown.
const TAIL_LINES: usize = 25;

/// Runs `command`, its output in the log `name`. Prints `title`, the seconds while it runs, and the result.
pub fn logged(title: &str, name: &str, command: &mut Command) -> Result<()> {
    let log = log_path(name)?;
    let mut file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    writeln!(file, "{command:?}")?;
    let errors = file.try_clone()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(std::process::Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("{title}: cannot start {program} (cargo xtask setup installs what is missing)"))?;
    let progress = Progress::start(title);
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for a step")? {
            break status;
        }
        progress_wait();
        progress.show();
    };
    progress.finish(status.success());
    if status.success() { Ok(()) } else { bail!(failure(title, status, &log)) }
}

/// Runs `command` quietly and gives what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed bytes that are not UTF-8"))
}

/// Path of the log `name`, in a folder that exists.
pub fn log_path(name: &str) -> Result<PathBuf> {
    let folder = paths::logs();
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder.join(format!("{name}.log")))
}

/// A line on the terminal for a step that takes time.
pub struct Progress {
    title: String,
    started: Instant,
    terminal: bool,
    reminded: std::cell::Cell<Duration>,
}

impl Progress {
    /// Says that a step begins.
    pub fn start(title: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        if terminal {
            eprint!("  ...   {title}");
        }
        let reminded = std::cell::Cell::new(Duration::ZERO);
        Self { title: title.to_owned(), started: Instant::now(), terminal, reminded }
    }

    /// Shows how long it has taken so far.
    pub fn show(&self) {
        let elapsed = self.started.elapsed();
        if self.terminal {
            eprint!("\r{:>4} s  {}", elapsed.as_secs(), self.title);
        } else if elapsed - self.reminded.get() >= REMINDER {
            self.reminded.set(elapsed);
            eprintln!("{:>4} s  {} ...", elapsed.as_secs(), self.title);
        }
    }

    /// Says how it ended.
    pub fn finish(&self, success: bool) {
        let start = if self.terminal { "\r" } else { "" };
        let word = if success { "ok" } else { "FAILED" };
        eprintln!("{start}{:>6.1} s  {}: {word}", self.started.elapsed().as_secs_f64(), self.title);
    }
}

fn progress_wait() {
    thread::sleep(Duration::from_millis(100));
}

fn failure(title: &str, status: ExitStatus, log: &std::path::Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    format!("{title}: {status}\n{tail}\nlog: {}", log.display())
}
