//! A running emulator with its serial line: wait for text, send keys, end it. The main type is [`Emulator`], started by
//! [`crate::Launch`] (QEMU) or [`crate::Bochs`]; [`crate::Host`] speaks to the Pollux shell over it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::crashed::Crashed;
use crate::monitor;
use crate::transcript::{Found, Missing, Transcript};

/// How much of a transcript a failure shows.
const TAIL_BYTES: usize = 3000;
/// For a machine that stops to say why.
const EPITAPH: Duration = Duration::from_secs(1);

/// For an emulator of which a connection has ended to end too.
const END_LIMIT: Duration = Duration::from_secs(5);

/// For an emulator to connect its serial line.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// Where an emulator has its serial line.
pub(crate) enum Line {
    /// On its standard input and output.
    Pipes,
    /// On a connection that it makes when it starts.
    Socket(TcpListener),
}

/// What distinguishes one kind of emulator from another once it runs.
pub(crate) struct Kind {
    /// What it is called in logs.
    pub name: &'static str,
    /// Every limit is multiplied by this.
    pub patience: u32,
}

type Ends = (Box<dyn Read + Send>, Box<dyn Write + Send>);

/// A running emulator. Dropping it kills the process and collects it.
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
    /// What the emulator itself said.
    own_log: PathBuf,
    kind: Kind,
    /// Where its monitor listens.
    monitor: Option<PathBuf>,
}

impl Emulator {
    /// Starts `command`, an emulator of this kind with its serial line there.
    pub(crate) fn start(
        mut command: Command,
        kind: Kind,
        line: Line,
        name: &str,
        log_directory: &Path,
    ) -> Result<Self> {
        let log = log_directory.join(format!("{name}.log"));
        let own_log = log_directory.join(format!("{name}.{}.log", kind.name));
        let log_file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut errors = File::create(&own_log).with_context(|| format!("creating {}", own_log.display()))?;
        writeln!(errors, "{command:?}")?;
        match line {
            Line::Pipes => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
            Line::Socket(_) => command.stdin(Stdio::null()).stdout(errors.try_clone()?),
        };
        let child = command
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        // From here on a failure ends the process.
        let mut emulator = Self {
            child,
            keys: None,
            transcript: Transcript::default(),
            reader: None,
            position: 0,
            started: Instant::now(),
            fatal: None,
            log,
            own_log,
            kind,
            monitor: None,
        };
        let (output, input) = emulator.connect(line)?;
        emulator.reader = Some(emulator.transcript.collect(output, log_file));
        emulator.keys = Some(write_from_queue(input));
        Ok(emulator)
    }

    /// Both ends of the serial line.
    fn connect(&mut self, line: Line) -> Result<Ends> {
        match line {
            Line::Pipes => {
                let output = self.child.stdout.take().context("the emulator has no output")?;
                let input = self.child.stdin.take().context("the emulator has no input")?;
                Ok((Box::new(output), Box::new(input)))
            }
            Line::Socket(listener) => {
                let stream = self.accept(&listener)?;
                Ok((Box::new(stream.try_clone()?), Box::new(stream)))
            }
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> Result<TcpStream> {
        listener.set_nonblocking(true)?;
        let deadline = Instant::now() + CONNECT_LIMIT;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) => {}
            }
            if let Some(status) = self.child.try_wait().context("waiting for the emulator")? {
                bail!(self.failure(&format!("the emulator ended at once ({status})")));
            }
            if Instant::now() >= deadline {
                bail!(self.failure("the emulator did not connect its serial line"));
            }
            thread::sleep(Duration::from_millis(20));
        }
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
        let result = monitor::run(socket, command).with_context(|| format!("`{command}` in the monitor"));
        result.map_err(|error| match crash(&self.wait_end()) {
            Some(crash) => Error::new(crash).context(error),
            None => error,
        })
    }

    /// How it ended, now that its serial line has: a machine that resets or falls looks like one that is switched off.
    fn fate(&self, end: &io::Result<Option<ExitStatus>>) -> String {
        let status = match end {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "its serial line alone".to_owned(),
            Err(error) => error.to_string(),
        };
        let resets = fs::read_to_string(resets_log(&self.log)).unwrap_or_default();
        if resets.contains("Triple fault") { format!("{status}, a triple fault") } else { status }
    }

    /// How it ended, if it has: a process that falls closes its connections a moment before it can be collected.
    fn wait_end(&mut self) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + END_LIMIT;
        loop {
            match self.child.try_wait()? {
                None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                end => return Ok(end),
            }
        }
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
        let limit = self.patient(limit);
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
            Err(Missing::Limit) => {
                Err(self.failure(&format!("{}: not seen within {} s", quote(patterns), limit.as_secs())))
            }
            Err(Missing::Closed) => {
                let end = self.wait_end();
                let missing = format!("{}: not seen before the emulator ended ({})", quote(patterns), self.fate(&end));
                Err(match crash(&end) {
                    Some(crash) => Error::new(crash).context(self.failure(&missing)),
                    None => self.failure(&missing),
                })
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

    /// A limit as this emulator's speed wants it.
    #[must_use]
    pub fn patient(&self, limit: Duration) -> Duration {
        limit * self.kind.patience
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
        let limit = self.patient(limit);
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

    /// An error that shows where the machine stands: the end of the transcript, what the emulator said, and the logs' names.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let transcript = self.transcript();
        let mut start = transcript.len().saturating_sub(TAIL_BYTES);
        while !transcript.is_char_boundary(start) {
            start += 1;
        }
        let said = fs::read_to_string(&self.own_log).unwrap_or_default();
        // Its first line is the command line. What the emulated CPU lacks is known and said again at every start.
        let lines = said.lines().skip(1).filter(|line| !line.contains("doesn't support requested feature"));
        let said: String = lines.map(|line| format!("{}: {line}\n", self.kind.name)).collect();
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

/// Where QEMU notes the resets and triple faults of the machine whose serial line goes to `log`.
pub(crate) fn resets_log(log: &Path) -> PathBuf {
    log.with_extension("resets.log")
}

/// A thread that writes what is queued: a machine that does not read its serial line must not block the test's limits.
fn write_from_queue(mut input: Box<dyn Write + Send>) -> Sender<Vec<u8>> {
    let (keys, queue) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || {
        for bytes in queue {
            if input.write_all(&bytes).and_then(|()| input.flush()).is_err() {
                break;
            }
        }
    });
    keys
}

/// The error that it is to have been ended by a signal.
fn crash(end: &io::Result<Option<ExitStatus>>) -> Option<Crashed> {
    end.as_ref().ok()?.as_ref()?.signal().map(Crashed)
}

fn quote(patterns: &[&str]) -> String {
    let quoted: Vec<String> = patterns.iter().map(|pattern| format!("{pattern:?}")).collect();
    quoted.join(" or ")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A shell stands in for QEMU: only the serial line matters here.
    pub(crate) fn start(name: &str, script: &str) -> Emulator {
        let directory = std::env::temp_dir().join("pollux-e2e-unit");
        fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Emulator::start(command, Kind { name: "qemu", patience: 1 }, Line::Pipes, name, &directory).unwrap()
    }

    #[test]
    fn a_line_on_a_socket_works_like_one_on_pipes() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{}; echo ready >&3; read -r line <&3; echo \"got $line\" >&3",
            listener.local_addr().unwrap().port()
        );
        let mut command = Command::new("bash");
        command.args(["-c", &script]);
        let kind = Kind { name: "bochs", patience: 3 };
        let mut emulator =
            Emulator::start(command, kind, Line::Socket(listener), "socket", &std::env::temp_dir()).unwrap();
        emulator.expect("ready", LIMIT).unwrap();
        emulator.send("this\n").unwrap();
        emulator.expect("got this", LIMIT).unwrap();
        assert_eq!(emulator.patient(LIMIT), 3 * LIMIT);
    }

    #[test]
    fn an_emulator_that_ends_before_it_connects_is_reported() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such model >&2; exit 1"]);
        let kind = Kind { name: "bochs", patience: 1 };
        let started = Emulator::start(command, kind, Line::Socket(listener), "stillborn", &std::env::temp_dir());
        let error = started.err().unwrap().to_string();
        assert!(error.contains("ended at once") && error.contains("bochs: no such model"), "{error}");
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
        for part in ["\"absent\"", "ended (exit status: 0)", "the last words", "qemu: complaint", "missing.log"] {
            assert!(error.contains(part), "{part:?} is missing in {error}");
        }
    }

    #[test]
    fn an_emulator_that_crashes_is_told_from_one_that_ends() {
        let mut emulator = start("crashed", "kill -SEGV $$");
        let error = emulator.expect("absent", LIMIT).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Crashed(11)), "{error:#}");
        assert!(error.to_string().contains("signal: 11"), "{error}");
        let mut emulator = start("ended", "exit 139");
        assert!(emulator.expect("absent", LIMIT).unwrap_err().downcast_ref::<Crashed>().is_none());
    }

    /// Its monitor is seen to hang up first: a core takes a while to be written.
    #[test]
    fn a_crash_while_the_monitor_is_asked_is_waited_for() {
        let socket = monitor::socket("crashing");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut emulator = start("crashing", "sleep 1; kill -SEGV $$").with_monitor(socket.clone());
        let monitor = thread::spawn(move || drop(listener.accept()));
        let error = emulator.monitor("info pci").unwrap_err();
        monitor.join().unwrap();
        fs::remove_file(socket).unwrap();
        assert_eq!(error.downcast_ref(), Some(&Crashed(11)), "{error:#}");
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
