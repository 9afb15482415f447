//! A running emulator with its serial line: wait for text, send keys, end it. The main type is [`Emulator`], started by
//! [`crate::Launch`]; [`crate::Host`] speaks to the Pollux shell over it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::monitor;
use crate::permit::Permit;
use crate::transcript::{Found, Missing, Transcript};

/// How much of a transcript a failure shows.
const TAIL_BYTES: usize = 3000;
/// For a machine that stops to say why.
const EPITAPH: Duration = Duration::from_secs(1);

/// A running QEMU. Dropping it kills the process and collects it.
pub struct Emulator {
    child: Child,
    keys: Option<Sender<Vec<u8>>>,
    transcript: Transcript,
    reader: Option<JoinHandle<()>>,
    /// Everything before this byte has been matched or skipped.
    position: usize,
    started: Instant,
    /// Text after which nothing else will come.
    fatal: Option<&'static str>,
    log: PathBuf,
    qemu_log: PathBuf,
    /// Where its monitor listens.
    monitor: Option<PathBuf>,
    _permit: Permit,
}

impl Emulator {
    /// Starts `command`, whose standard input and output are the serial line.
    pub(crate) fn start(mut command: Command, name: &str, log_directory: &Path) -> Result<Self> {
        let permit = Permit::take();
        let log = log_directory.join(format!("{name}.log"));
        let qemu_log = log_directory.join(format!("{name}.qemu.log"));
        let log_file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut errors = File::create(&qemu_log).with_context(|| format!("creating {}", qemu_log.display()))?;
        writeln!(errors, "{command:?}")?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        let transcript = Transcript::default();
        let output = child.stdout.take().context("the emulator has no output")?;
        let reader = transcript.collect(output, log_file);
        let mut input = child.stdin.take().context("the emulator has no input")?;
        let (keys, queue) = mpsc::channel::<Vec<u8>>();
        // A machine that does not read its serial line blocks the pipe; that must not block the test's limits.
        thread::spawn(move || {
            for bytes in queue {
                if input.write_all(&bytes).and_then(|()| input.flush()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            keys: Some(keys),
            transcript,
            reader: Some(reader),
            position: 0,
            started: Instant::now(),
            fatal: None,
            log,
            qemu_log,
            monitor: None,
            _permit: permit,
        })
    }

    /// Notes where its monitor listens.
    pub(crate) fn with_monitor(mut self, socket: PathBuf) -> Self {
        self.monitor = Some(socket);
        self
    }

    /// Carries out a command of QEMU's human monitor (`device_del disk0`, `set_link net0 off`) and gives what it printed.
    ///
    /// # Errors
    /// If the monitor cannot be reached. A mistake in the command is part of what is printed.
    pub fn monitor(&mut self, command: &str) -> Result<String> {
        let socket = self.monitor.as_deref().context("this emulator has no monitor")?;
        monitor::run(socket, command).with_context(|| format!("`{command}` in the monitor"))
    }

    /// Types `text` on the serial line, without waiting for it to be read.
    ///
    /// # Errors
    /// If the emulator has ended.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let sent = self.keys.as_ref().is_some_and(|keys| keys.send(text.as_bytes().to_vec()).is_ok());
        if sent { Ok(()) } else { Err(self.failure(&format!("cannot send {text:?}: the emulator has ended"))) }
    }

    /// Waits for `pattern` after everything matched so far, and gives the text before it.
    ///
    /// # Errors
    /// With what was missing and the end of the transcript, when `limit` passes or the emulator ends first.
    pub fn expect(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        self.expect_any(&[pattern], limit).map(|(_, before)| before)
    }

    /// Waits for the first of several patterns; gives its index and the text before it.
    ///
    /// # Errors
    /// As [`Emulator::expect`].
    pub fn expect_any(&mut self, patterns: &[&str], limit: Duration) -> Result<(usize, String)> {
        let watched: Vec<&str> = patterns.iter().copied().chain(self.fatal).collect();
        match self.transcript.wait(self.position, &watched, limit) {
            Ok(Found { pattern, .. }) if pattern == patterns.len() => {
                thread::sleep(EPITAPH);
                Err(self.failure(&format!("{}: not seen before the machine stopped", quote(patterns))))
            }
            Ok(Found { pattern, start, end }) => {
                let before = self.transcript.text(self.position, start);
                self.position = end;
                Ok((pattern, before))
            }
            Err(missing) => {
                let reason = match missing {
                    Missing::Limit => format!("not seen within {} s", limit.as_secs()),
                    Missing::Closed => "not seen before the emulator ended".to_owned(),
                };
                Err(self.failure(&format!("{}: {reason}", quote(patterns))))
            }
        }
    }

    /// From now on, `text` ends every wait with an error: a machine that says it has nothing more to say.
    pub fn fail_on(&mut self, text: &'static str) {
        self.fatal = Some(text);
    }

    /// Forgets what has arrived, so that the next wait sees only what comes after.
    pub fn skip(&mut self) {
        self.position = self.transcript.len();
    }

    /// Everything the serial line has said since it was switched on.
    #[must_use]
    pub fn transcript(&self) -> String {
        self.transcript.text(0, usize::MAX)
    }

    /// Time since it was switched on.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The process, for `/proc/PID` (memory) and for signals.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the machine switches itself off.
    ///
    /// # Errors
    /// If it is still on after `limit`.
    pub fn wait_off(mut self, limit: Duration) -> Result<ExitStatus> {
        self.keys = None;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for the emulator")? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(self.failure(&format!("still on after {} s", limit.as_secs())));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// An error that shows where the machine stands: the end of the transcript, what QEMU said, and the logs' names.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let transcript = self.transcript();
        let mut start = transcript.len().saturating_sub(TAIL_BYTES);
        while !transcript.is_char_boundary(start) {
            start += 1;
        }
        let said = fs::read_to_string(&self.qemu_log).unwrap_or_default();
        // Its first line is the command line. What the emulated CPU lacks is known and said again at every start.
        let lines = said.lines().skip(1).filter(|line| !line.contains("doesn't support requested feature"));
        let said: String = lines.map(|line| format!("qemu: {line}\n")).collect();
        anyhow!(
            "{what}\n--- end of {} ---\n{}\n---\n{said}log: {}",
            self.log.display(),
            transcript[start..].replace('\r', ""),
            self.log.display()
        )
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.keys = None;
        if let Some(socket) = &self.monitor {
            // QEMU has removed it where it ended by itself.
            let _ = fs::remove_file(socket);
        }
        // Both fail only when the process has already ended and been collected.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            // The log must be whole when the next step reads it; a panic of the reader has nothing to add.
            let _ = reader.join();
        }
    }
}

fn quote(patterns: &[&str]) -> String {
    let quoted: Vec<String> = patterns.iter().map(|pattern| format!("{pattern:?}")).collect();
    quoted.join(" or ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A shell stands in for QEMU: only the serial line matters here.
    pub(crate) fn start(name: &str, script: &str) -> Emulator {
        let directory = std::env::temp_dir().join("pollux-e2e-unit");
        fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Emulator::start(command, name, &directory).unwrap()
    }

    #[test]
    fn talks_in_both_directions() {
        let mut emulator = start("both", "echo ready; read line; echo got $line");
        emulator.expect("ready", LIMIT).unwrap();
        emulator.send("this\n").unwrap();
        assert_eq!(emulator.expect("this", LIMIT).unwrap().trim(), "got");
        assert!(emulator.wait_off(LIMIT).unwrap().success());
    }

    #[test]
    fn a_missing_text_is_named_with_the_tail_of_the_transcript() {
        let mut emulator = start("missing", "echo the last words; echo complaint >&2");
        let error = emulator.expect("absent", LIMIT).unwrap_err().to_string();
        for part in ["\"absent\"", "ended", "the last words", "qemu: complaint", "missing.log"] {
            assert!(error.contains(part), "{part:?} is missing in {error}");
        }
    }

    #[test]
    fn a_machine_that_says_it_has_stopped_is_not_waited_for() {
        let mut emulator = start("fatal", "echo it stopped: why; exec sleep 600");
        emulator.fail_on("it stopped");
        let error = emulator.expect("never", LIMIT).unwrap_err().to_string();
        assert!(error.contains("the machine stopped") && error.contains("why"), "{error}");
    }

    #[test]
    fn a_limit_ends_a_wait_and_dropping_ends_the_process() {
        let mut emulator = start("limit", "exec sleep 600");
        let process = emulator.process_id();
        assert!(emulator.expect("never", Duration::from_millis(50)).is_err());
        drop(emulator);
        assert!(!Path::new(&format!("/proc/{process}")).exists());
    }
}
