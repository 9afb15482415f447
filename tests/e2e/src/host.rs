//! Speaks to the Pollux shell as an operator does. The main type is [`Host`], a machine at its prompt; [`Console`] is a
//! guest's console attached to it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{Console, Emulator};

/// The shell's prompt.
pub const PROMPT: &str = "pollux> ";
/// What Pollux says first.
const BANNER: &str = "Pollux ";
/// How the epitaph of a panic begins.
const EPITAPH: &str = "Pollux stopped: ";
/// From power-on to the prompt, firmware and boot loader included. Generous: the machine may be loaded.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// For one command to answer.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A Pollux host whose shell waits for a command.
pub struct Host {
    emulator: Emulator,
}

impl Host {
    /// Waits for the first prompt.
    ///
    /// # Errors
    /// If it does not come, with the transcript's end.
    pub fn wait_for_prompt(mut emulator: Emulator) -> Result<Self> {
        emulator.fail_on(EPITAPH);
        emulator.expect(PROMPT, BOOT_LIMIT).context("the prompt did not come")?;
        Ok(Self { emulator })
    }

    /// Types a command and gives the lines it printed, without the echo and the next prompt.
    ///
    /// # Errors
    /// If the prompt does not return.
    pub fn command(&mut self, line: &str) -> Result<String> {
        self.enter(line)?;
        let mut answer = self.emulator.expect(PROMPT, COMMAND_LIMIT).with_context(|| format!("`{line}` hangs"))?;
        answer.retain(|character| character != '\r');
        Ok(strip_escapes(&answer).trim_end().to_owned())
    }

    /// Types a line and waits for its echo. A message of the host's meanwhile makes the editor draw the prompt and what
    /// has been typed again, and a long line scrolls; but its end followed by a new line is seen once, when it is taken.
    fn enter(&mut self, line: &str) -> Result<()> {
        self.emulator.skip();
        self.emulator.send(&format!("{line}\r"))?;
        let end = line.char_indices().rev().nth(9).map_or(line, |(index, _)| &line[index..]);
        self.emulator
            .expect(&format!("{end}\r\n"), COMMAND_LIMIT)
            .with_context(|| format!("`{line}` was not echoed"))?;
        Ok(())
    }

    /// Carries out a command that must succeed and gives the value of its JSON reply, which is an object with one key.
    ///
    /// # Errors
    /// If the command is refused, with its message, or the reply is not such an object.
    pub fn ask(&mut self, line: &str) -> Result<Value> {
        match self.reply(line)? {
            (kind, value) if kind == "error" => bail!(self.emulator.failure(&format!("`{line}` was refused: {value}"))),
            (_, value) => Ok(value),
        }
    }

    /// Carries out a command that must be refused and gives the message.
    ///
    /// # Errors
    /// If it is not.
    pub fn refusal(&mut self, line: &str) -> Result<String> {
        let (kind, value) = self.reply(line)?;
        ensure!(kind == "error", "`{line}` was not refused: {value}");
        value["message"].as_str().map(str::to_owned).with_context(|| format!("`{line}` was refused without a message"))
    }

    fn reply(&mut self, line: &str) -> Result<(String, Value)> {
        let answer = self.command(&format!("{line} --json"))?;
        let text = answer.lines().find(|text| text.starts_with('{'));
        let text = text.with_context(|| format!("`{line} --json` printed no JSON but {answer:?}"))?;
        let value: Value = serde_json::from_str(text)
            .with_context(|| format!("`{line} --json` printed {text:?}, which is not JSON"))?;
        let Value::Object(fields) = value else { bail!("`{line} --json` printed {text:?}, which is no object") };
        fields.into_iter().next().with_context(|| format!("`{line} --json` printed an empty object"))
    }

    /// The state that `vm list` gives a virtual machine, `None` if it is not listed.
    ///
    /// # Errors
    /// If the list cannot be read.
    pub fn state(&mut self, vm: &str) -> Result<Option<String>> {
        let list = self.ask("vm list")?;
        let list = list.as_array().context("`vm list --json` is no list")?;
        let found = list.iter().find(|entry| entry["name"] == vm);
        Ok(found.and_then(|entry| entry["state"].as_str()).map(str::to_owned))
    }

    /// Asks for the state of a virtual machine until it is `state`.
    ///
    /// # Errors
    /// If `limit` passes first.
    pub fn wait_state(&mut self, vm: &str, state: &str, limit: Duration) -> Result<()> {
        let limit = self.emulator.patient(limit);
        let until = self.emulator.elapsed() + limit;
        loop {
            let now = self.state(vm)?;
            if now.as_deref() == Some(state) {
                return Ok(());
            }
            ensure!(
                self.emulator.elapsed() < until,
                self.emulator.failure(&format!("`{vm}` is {now:?} and not {state:?} after {} s", limit.as_secs()))
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until a virtual machine is listed no more.
    ///
    /// # Errors
    /// If that takes longer than a command may.
    pub fn wait_gone(&mut self, vm: &str) -> Result<()> {
        let until = self.emulator.elapsed() + COMMAND_LIMIT;
        while let Some(state) = self.state(vm)? {
            ensure!(self.emulator.elapsed() < until, self.emulator.failure(&format!("`{vm}` is still {state}")));
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Attaches to a guest's console; what it has kept is shown first.
    ///
    /// # Errors
    /// If the emulator has ended.
    pub fn attach(&mut self, vm: &str) -> Result<Console<'_>> {
        self.enter(&format!("vm console {vm}"))?;
        Ok(Console::new(&mut self.emulator))
    }

    /// Resets the machine as its button does, at whatever it is, and waits for the next prompt. Its disks have what was
    /// written to them. The machine was started with `-action reboot=reset`.
    ///
    /// # Errors
    /// If the prompt does not come.
    pub fn reset(&mut self) -> Result<()> {
        self.emulator.skip();
        self.emulator.monitor("system_reset")?;
        self.emulator.expect(BANNER, BOOT_LIMIT).context("the machine does not start again")?;
        self.emulator.expect(PROMPT, BOOT_LIMIT).context("the prompt did not come after the reset")?;
        Ok(())
    }

    /// Switches the host off by its own command.
    ///
    /// # Errors
    /// If it stays on.
    pub fn power_off(mut self) -> Result<()> {
        self.emulator.send("poweroff\r")?;
        self.emulator.wait_off(COMMAND_LIMIT).map(|_| ())
    }

    /// The emulator underneath.
    pub fn emulator(&mut self) -> &mut Emulator {
        &mut self.emulator
    }
}

/// Removes terminal control sequences (ECMA-48 section 5.4: ESC [, parameters, one final byte from 0x40 to 0x7e).
#[must_use]
pub fn strip_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '\x1b' {
            plain.push(character);
        } else if characters.next_if_eq(&'[').is_some() {
            while characters.next().is_some_and(|next| !('\x40'..='\x7e').contains(&next)) {}
        } else {
            characters.next();
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::tests::start;

    /// Plays the shell: a banner, then answers to two commands, with a line editor that redraws the prompt.
    const SHELL: &str = r#"printf 'Pollux\r\npollux> '
        read line; printf '\rpollux> %s\r\n{"vms":[{"name":"a","state":"running"}]}\r\npollux> ' "$line"
        read line; printf '\rpollux> %s\r\nno such command\r\npollux> ' "$line"
        read line; printf '\rpollux> %s\r\n{"error":{"message":"no VM is called `b`"}}\r\npollux> ' "$line"
        read line; printf 'off\r\n'"#;

    #[test]
    fn reads_states_and_answers_through_a_redrawing_editor() {
        // The pipe has no terminal that turns CR into LF.
        let script = format!("stdbuf -o0 tr '\\r' '\\n' | {{ {SHELL}\n}}");
        let mut host = Host::wait_for_prompt(start("host", &script)).unwrap();
        assert_eq!(host.state("a").unwrap().as_deref(), Some("running"));
        assert_eq!(host.command("nonsense").unwrap(), "no such command");
        assert_eq!(host.refusal("vm start b").unwrap(), "no VM is called `b`");
        host.power_off().unwrap();
    }

    #[test]
    fn escapes_are_removed() {
        assert_eq!(strip_escapes("\x1b[1;32mok\x1b[0m\x1b[K!"), "ok!");
    }
}
