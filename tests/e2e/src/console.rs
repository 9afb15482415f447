//! A guest's console while it is attached to the host's serial line: log in, run commands, leave. The main type is
//! [`Console`], given by [`crate::Host::attach`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Emulator;
use crate::host::{PROMPT, strip_escapes};

/// For one command in a guest.
pub const GUEST_COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// For a guest to boot to its login prompt, in a nested emulation on a loaded machine.
pub const GUEST_BOOT_LIMIT: Duration = Duration::from_secs(300);
/// The key that leaves a console: Ctrl-].
const LEAVE: &str = "\x1d";

/// An attached console. Call [`Console::leave`] to return to the host's prompt.
pub struct Console<'emulator> {
    emulator: &'emulator mut Emulator,
}

impl<'emulator> Console<'emulator> {
    /// Takes a serial line on which a guest now speaks: attached to it by the host, or a guest without a hypervisor.
    pub fn new(emulator: &'emulator mut Emulator) -> Self {
        Self { emulator }
    }

    /// Waits for text of the guest; gives what came before it.
    ///
    /// # Errors
    /// As [`Emulator::expect`].
    pub fn expect(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        self.emulator.expect(pattern, limit)
    }

    /// As [`Emulator::expect_any`].
    ///
    /// # Errors
    /// As [`Emulator::expect`].
    pub fn expect_any(&mut self, patterns: &[&str], limit: Duration) -> Result<(usize, String)> {
        self.emulator.expect_any(patterns, limit)
    }

    /// Types text.
    ///
    /// # Errors
    /// As [`Emulator::send`].
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.emulator.send(text)
    }

    /// Waits for the login prompt and logs in; the shell then echoes nothing and prints no prompt of its own.
    ///
    /// # Errors
    /// If a prompt does not come.
    pub fn login(&mut self, user: &str, password: &str) -> Result<()> {
        self.expect("login: ", GUEST_BOOT_LIMIT).context("the guest did not come to its login prompt")?;
        self.send(&format!("{user}\r"))?;
        self.expect("Password: ", GUEST_COMMAND_LIMIT)?;
        self.send(&format!("{password}\r"))?;
        let (which, _) = self.expect_any(&["# ", "Login incorrect"], GUEST_COMMAND_LIMIT)?;
        ensure!(which == 0, "the guest refused the password");
        self.send(
            "stty -echo; PS1=; export PS1; bind 'set enable-bracketed-paste off' 2>/dev/null || true; echo logged-in-$?\r",
        )?;
        self.expect("logged-in-0", GUEST_COMMAND_LIMIT)?;
        Ok(())
    }

    /// Runs a command in the guest's shell and gives what it printed.
    ///
    /// # Errors
    /// If it does not end with status 0, with its output.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.emulator.skip();
        // The echo, if any, shows the format and not the marker it makes.
        self.send(&format!("{command}; printf '<%s:%s>\\n' status $?\r"))?;
        let output =
            self.expect("<status:", GUEST_COMMAND_LIMIT).with_context(|| format!("`{command}` in the guest"))?;
        let status = self.expect(">", GUEST_COMMAND_LIMIT)?;
        let output = strip_escapes(&output).replace('\r', "");
        let output = output.rsplit("status $?\n").next().unwrap_or_default().trim().to_owned();
        ensure!(status == "0", "`{command}` in the guest ended with status {status}: {output}");
        Ok(output)
    }

    /// Leaves the console; the host's prompt returns and the guest goes on.
    ///
    /// # Errors
    /// If the prompt does not return.
    pub fn leave(self) -> Result<()> {
        self.emulator.skip();
        self.emulator.send(LEAVE)?;
        self.emulator.expect(PROMPT, GUEST_COMMAND_LIMIT).context("Ctrl-] did not leave the console")?;
        Ok(())
    }

    /// The emulator underneath.
    pub fn emulator(&mut self) -> &mut Emulator {
        self.emulator
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::tests::start;

    /// A real shell behind a pipe that turns the typed CR into LF, as a terminal does.
    fn shell(name: &str) -> Emulator {
        start(name, "stdbuf -o0 tr '\\r' '\\n' | sh")
    }

    #[test]
    fn gives_output_and_reports_a_failed_command() {
        let mut emulator = shell("console");
        let mut console = Console::new(&mut emulator);
        assert_eq!(console.run("echo one; echo two").unwrap(), "one\ntwo");
        let error = console.run("echo why; false").unwrap_err().to_string();
        assert!(error.contains("status 1") && error.contains("why"), "{error}");
    }
}
