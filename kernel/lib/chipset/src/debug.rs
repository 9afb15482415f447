//! Two ports that test kernels know from emulators, for VMs that ask for them: one ends the VM, one prints.
//!
//! [`DebugPorts`] says which of them the board has. They hold no state; the numbers and what reads give are those of
//! QEMU's isa-debug-exit (with `iobase=0xf4,iosize=4`) and isa-debugcon.

use crate::{Effect, ports};

const EXIT_LAST: u16 = ports::DEBUG_EXIT + 3;

/// Which debug ports a board has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DebugPorts {
    /// A write to [`ports::DEBUG_EXIT`] ends the VM.
    pub exit: bool,
    /// A byte written to [`ports::DEBUG_CONSOLE`] or [`ports::FIRMWARE_CONSOLE`] goes to the VM's console.
    pub console: bool,
}

impl DebugPorts {
    /// What a byte reads as, where one of them answers.
    pub fn read(self, port: u16) -> Option<u8> {
        match port {
            // By this a kernel sees that somebody listens.
            ports::DEBUG_CONSOLE | ports::FIRMWARE_CONSOLE if self.console => Some(ports::DEBUG_CONSOLE as u8),
            ports::DEBUG_EXIT..=EXIT_LAST if self.exit => Some(0),
            _ => None,
        }
    }

    /// What a write of any width does, where one of them answers.
    pub fn write(self, port: u16, value: u32) -> Option<Effect> {
        match port {
            ports::DEBUG_CONSOLE | ports::FIRMWARE_CONSOLE if self.console => Some(Effect::DebugConsole(value as u8)),
            ports::DEBUG_EXIT..=EXIT_LAST if self.exit => Some(Effect::Exit(value)),
            _ => None,
        }
    }
}
