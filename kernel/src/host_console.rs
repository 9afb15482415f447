//! The operator's serial console: the shell's prompt, or a guest's console while attached to it.

use crate::commands::{self, Answer};
use crate::host::Host;
use crate::log_ring;
use crate::vm::Vm;
use crate::{screen, serial};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use drivers::screen::Screen;
use drivers::uart::SerialPort;
use shell::{Attach, AttachAction, Cursor, Input, LineEditor, NameKind, Names, Reply};

/// Keys taken at a time.
const KEYS_MAX: usize = 256;
/// Bytes of a guest's console shown at a time.
const SHOWN_BYTES: usize = 4096;
/// How long the serial line may keep bytes before it is asked again whether it has room.
const LINE_NS: u64 = 1_000_000;
/// Leaves a command that takes long.
const CTRL_C: u8 = 3;
/// How often the keyboard is asked for where its interrupt does not come, and the rest looked at.
const KEYBOARD_NS: u64 = 20_000_000;
/// The same at a prompt where a key has come by interrupt before: an idle host sleeps.
const PROMPT_NS: u64 = 1_000_000_000;

/// The console of the host.
pub struct HostConsole {
    line: Option<SerialPort>,
    /// Where the log is shown too.
    screen: Option<Screen>,
    editor: LineEditor,
    mode: Mode,
    output: Vec<u8>,
    /// When the line is asked for keys next.
    keys_due_ns: u64,
    /// Keys have come by interrupt.
    calls: bool,
}

enum Mode {
    Prompt,
    /// A command goes on until it has something to say.
    Waiting(Box<Answer>),
    Attached {
        vm: Arc<Vm>,
        cursor: Cursor,
        attach: Attach,
    },
}

/// Names for completion.
struct HostNames<'a>(&'a Host);

impl Names for HostNames<'_> {
    fn names(&self, kind: NameKind) -> Vec<String> {
        match kind {
            NameKind::Vm => self.0.vms.lock().iter().map(|vm| vm.name().into()).collect(),
            NameKind::Disk => {
                let storage = self.0.storage.lock();
                let partitions = storage.datastores().iter().flat_map(block::Datastore::partitions);
                partitions.map(|(partition, _)| partition.name.clone()).collect()
            }
            NameKind::HostDisk => {
                let storage = self.0.storage.lock();
                storage.datastores().iter().map(|datastore| datastore.name().into()).collect()
            }
            NameKind::Module => self.0.modules().iter().map(|module| module.name.to_string()).collect(),
        }
    }
}

impl HostConsole {
    /// The console, its prompt shown.
    pub fn new() -> Self {
        let mut line = serial::open();
        if let Some(line) = line.as_mut().filter(|_| serial::has_interrupt()) {
            line.enable_receive_interrupt();
        }
        let mut console = Self {
            line,
            screen: screen::open(),
            editor: LineEditor::new("pollux> "),
            mode: Mode::Prompt,
            output: Vec::new(),
            keys_due_ns: 0,
            calls: false,
        };
        console.print_log();
        console.editor.show(&mut console.output);
        console.send();
        console
    }

    /// Takes keys, shows what there is to show; returns when it wants to be called next.
    ///
    /// `is_called` where a device raised an interrupt that may have been the line's.
    pub fn poll(&mut self, host: &'static Host, is_called: bool) -> Option<u64> {
        self.take_keys(host, is_called);
        self.go_on(host);
        if log_ring::has_unprinted() && matches!(self.mode, Mode::Prompt) {
            self.editor.hide(&mut self.output);
            self.print_log();
            self.editor.show(&mut self.output);
        }
        self.show_guest();
        let now_ns = host.clock.now_ns();
        let line_due_ns = if self.send() { LINE_NS } else { self.rest_ns() };
        Some(now_ns + line_due_ns)
    }

    /// Takes what was typed. The line is asked where it may have called, and now and then: that takes a microsecond.
    fn take_keys(&mut self, host: &'static Host, is_called: bool) {
        let now_ns = host.clock.now_ns();
        if !is_called && now_ns < self.keys_due_ns {
            return;
        }
        let mut keys = [0; KEYS_MAX];
        let count = self.line.as_mut().map_or(0, |line| line.receive(&mut keys));
        for &key in &keys[..count] {
            self.key(host, key);
        }
        self.calls |= is_called && count > 0;
        self.keys_due_ns = if count > 0 { now_ns } else { now_ns + self.rest_ns() };
    }

    /// How long nobody needs to look.
    fn rest_ns(&self) -> u64 {
        if self.calls && matches!(self.mode, Mode::Prompt) { PROMPT_NS } else { KEYBOARD_NS }
    }

    fn key(&mut self, host: &'static Host, key: u8) {
        match &mut self.mode {
            Mode::Prompt => match self.editor.byte(key, &HostNames(host), &mut self.output) {
                Some(Input::Line(line)) => self.line_entered(host, &line),
                Some(Input::Cancelled) => self.editor.show(&mut self.output),
                None => {}
            },
            Mode::Waiting(_) if key == CTRL_C => self.stop_waiting(),
            // Keys are not kept for later: what they would do is not what was meant when they were typed.
            Mode::Waiting(_) => {}
            Mode::Attached { attach, .. } => {
                let action = attach.byte(key, host.clock.now_ns());
                self.attached(host, action);
            }
        }
    }

    fn line_entered(&mut self, host: &'static Host, line: &str) {
        let answer = match shell::parse(line) {
            Ok(None) => return self.editor.show(&mut self.output),
            Ok(Some(invocation)) => commands::carry_out(host, invocation),
            Err(error) => Answer::Reply(Reply::from(error), line.contains("--json")),
        };
        self.mode = Mode::Waiting(Box::new(answer));
        self.go_on(host);
    }

    /// Looks whether a command has something to say now.
    fn go_on(&mut self, host: &'static Host) {
        let Mode::Waiting(answer) = &mut self.mode else { return };
        match commands::proceed(host, answer) {
            None => {}
            Some(Answer::Attach(vm)) => {
                let detach = host.config.host.detach_key;
                let text = format!("attached to {}; {detach} leaves\n", vm.name());
                shell::to_terminal(&text, &mut self.output);
                let cursor = vm.console.lock().replay();
                self.mode = Mode::Attached { vm, cursor, attach: Attach::new(detach) };
            }
            Some(Answer::Reply(reply, json)) => {
                shell::to_terminal(&shell::render(&reply, json), &mut self.output);
                self.print_log();
                self.mode = Mode::Prompt;
                self.editor.show(&mut self.output);
            }
            Some(
                Answer::Start(..)
                | Answer::Saved(..)
                | Answer::Removal(..)
                | Answer::Measure(..)
                | Answer::End(..)
                | Answer::Rest(..)
                | Answer::Power { .. },
            ) => {
                unreachable!("proceed answers when it is over")
            }
        }
    }

    /// Gives the prompt back while a command goes on.
    fn stop_waiting(&mut self) {
        let text = match &self.mode {
            Mode::Waiting(answer) if matches!(**answer, Answer::Power { .. }) => {
                "^C\nthe host stays on; its guests were asked to shut down\n"
            }
            Mode::Waiting(answer) if matches!(**answer, Answer::Measure(..)) => "^C\nthe measurement ends\n",
            _ => "^C\nthis goes on; see \"log\" and \"vm list\"\n",
        };
        shell::to_terminal(text, &mut self.output);
        self.mode = Mode::Prompt;
        self.print_log();
        self.editor.show(&mut self.output);
    }

    fn attached(&mut self, host: &'static Host, action: AttachAction) {
        let Mode::Attached { vm, .. } = &self.mode else { return };
        match action {
            AttachAction::Wait => {}
            AttachAction::Forward(byte) => commands::type_into(host, vm, &[byte]),
            AttachAction::Detach(byte) => {
                let text = format!("\nleft the console of {}\n", vm.name());
                shell::to_terminal(&text, &mut self.output);
                self.mode = Mode::Prompt;
                self.editor.show(&mut self.output);
                if let Some(byte) = byte {
                    self.key(host, byte);
                }
            }
        }
    }

    /// Shows what the guest printed since.
    fn show_guest(&mut self) {
        let host = crate::host::get();
        if let Mode::Attached { attach, .. } = &mut self.mode {
            let action = attach.poll(host.clock.now_ns());
            self.attached(host, action);
        }
        let Mode::Attached { vm, cursor, .. } = &mut self.mode else { return };
        // What the line does not take now is still in the guest's buffer.
        while self.output.len() < SHOWN_BYTES {
            let console = vm.console.lock();
            let bytes = console.read(cursor, SHOWN_BYTES);
            if !bytes.is_empty() {
                self.output.extend_from_slice(bytes);
            } else if let Some(to) = vm.moved_to() {
                let text = format!("\n{} moved to {to}, and its console with it\n", vm.name());
                drop(console);
                shell::to_terminal(&text, &mut self.output);
                self.mode = Mode::Prompt;
                self.print_log();
                return self.editor.show(&mut self.output);
            } else {
                return;
            }
        }
    }

    fn print_log(&mut self) {
        for message in log_ring::take_unprinted() {
            let text = format!("{}\n", commands::log_text(&message));
            shell::to_terminal(&text, &mut self.output);
            if let Some(screen) = &mut self.screen {
                screen.write(&text);
            }
        }
    }

    /// Gives the line what it takes; says whether something is left.
    fn send(&mut self) -> bool {
        let Some(line) = &mut self.line else {
            self.output.clear();
            return false;
        };
        let taken = line.write(&self.output);
        self.output.drain(..taken);
        line.poll() || !self.output.is_empty()
    }
}
