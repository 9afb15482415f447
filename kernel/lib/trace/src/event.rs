//! What a trace entry says.
//!
//! [`Entry`] is a time and an [`Event`]: numbers only, so that writing one is a few stores. Words are put to them when
//! somebody reads the ring, see [`Event::describe`].

use core::fmt;

/// One thing that happened on one CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// When, in ticks of that CPU's TSC.
    pub time_tsc: u64,
    /// What.
    pub event: Event,
}

/// What happened. `vm` and `vcpu` are the indices by which the kernel knows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A vCPU left its guest.
    Exit {
        /// Whose it was.
        vm: u16,
        /// Which of its vCPUs.
        vcpu: u16,
        /// The kind of exit, an index into the names that [`Event::describe`] is given.
        kind: u8,
        /// The guest's RIP.
        rip: u64,
        /// What else matters for this kind: the port, the MSR, the guest-physical address, the CPUID leaf.
        detail: u64,
    },
    /// An event was injected into a guest.
    Inject {
        /// Into which VM.
        vm: u16,
        /// Into which of its vCPUs.
        vcpu: u16,
        /// The vector.
        vector: u8,
    },
    /// The host took an interrupt.
    Irq {
        /// The host's vector.
        vector: u8,
    },
    /// A vCPU that may be in its guest on another CPU was asked to come out.
    Kick {
        /// Whose it is.
        vm: u16,
        /// Which of its vCPUs.
        vcpu: u16,
        /// The CPU that the interrupt went to.
        cpu: u16,
    },
    /// This CPU went over to a vCPU.
    Schedule {
        /// Whose it is.
        vm: u16,
        /// Which of its vCPUs.
        vcpu: u16,
    },
    /// A VM changed state.
    VmState {
        /// Which VM.
        vm: u16,
        /// The state it is in now.
        state: RunState,
    },
    /// A disk request went to its driver.
    DiskSubmit {
        /// The VM that asked.
        vm: u16,
        /// The request, by the number that its completion carries.
        id: u64,
    },
    /// A disk request was completed.
    DiskDone {
        /// The VM that had asked.
        vm: u16,
        /// The request.
        id: u64,
        /// Whether the disk did what was asked.
        ok: bool,
    },
    /// A frame passed a port of the switch.
    NetFrame {
        /// The port.
        port: u16,
        /// Which way.
        direction: Direction,
        /// The frame's length.
        length_bytes: u32,
    },
    /// Anything else worth a line, by a number that the code which wrote it documents.
    Note {
        /// The number.
        code: u32,
        /// What goes with it.
        value: u64,
    },
}

/// Which way a frame went, seen from the switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Into the switch.
    In,
    /// Out of it.
    Out,
}

/// The state that a VM went to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    /// Defined, and never started.
    Created,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still and can go on.
    Paused,
    /// Powered off.
    Stopped,
    /// Ended by a fault of its own or by the host's inability to go on.
    Crashed,
}

impl RunState {
    const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
        }
    }
}

impl Event {
    /// The VM that it concerns, if it concerns one.
    pub const fn vm(&self) -> Option<u16> {
        match *self {
            Self::Exit { vm, .. }
            | Self::Inject { vm, .. }
            | Self::Kick { vm, .. }
            | Self::Schedule { vm, .. }
            | Self::VmState { vm, .. }
            | Self::DiskSubmit { vm, .. }
            | Self::DiskDone { vm, .. } => Some(vm),
            Self::Irq { .. } | Self::NetFrame { .. } | Self::Note { .. } => None,
        }
    }

    /// The event as one line of text without a line end, with exits called by their names. A kind that has no name is
    /// shown by its number.
    pub const fn describe<'a>(&'a self, exit_names: &'a [&'a str]) -> impl fmt::Display + 'a {
        Described { event: self, exit_names }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(&[]).fmt(f)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>18} {}", self.time_tsc, self.event)
    }
}

struct Described<'a> {
    event: &'a Event,
    exit_names: &'a [&'a str],
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.event {
            Event::Exit { vm, vcpu, kind, rip, detail } => {
                write!(f, "exit vm={vm} vcpu={vcpu} ")?;
                match self.exit_names.get(usize::from(kind)) {
                    Some(name) => write!(f, "{name}")?,
                    None => write!(f, "kind={kind}")?,
                }
                write!(f, " rip={rip:#x} detail={detail:#x}")
            }
            Event::Inject { vm, vcpu, vector } => write!(f, "inject vm={vm} vcpu={vcpu} vector={vector:#04x}"),
            Event::Irq { vector } => write!(f, "irq vector={vector:#04x}"),
            Event::Kick { vm, vcpu, cpu } => write!(f, "kick vm={vm} vcpu={vcpu} cpu={cpu}"),
            Event::Schedule { vm, vcpu } => write!(f, "schedule vm={vm} vcpu={vcpu}"),
            Event::VmState { vm, state } => write!(f, "vm-state vm={vm} {}", state.name()),
            Event::DiskSubmit { vm, id } => write!(f, "disk-submit vm={vm} id={id}"),
            Event::DiskDone { vm, id, ok } => {
                write!(f, "disk-done vm={vm} id={id} {}", if ok { "ok" } else { "failed" })
            }
            Event::NetFrame { port, direction, length_bytes } => {
                let direction = if direction == Direction::In { "in" } else { "out" };
                write!(f, "net-frame port={port} {direction} {length_bytes} bytes")
            }
            Event::Note { code, value } => write!(f, "note code={code} value={value:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_half_a_cache_line() {
        assert_eq!(size_of::<Entry>(), 32);
    }

    #[test]
    fn every_event_is_one_line() {
        let events = [
            (
                Event::Exit { vm: 1, vcpu: 0, kind: 1, rip: 0x1000, detail: 2 },
                "exit vm=1 vcpu=0 cpuid rip=0x1000 detail=0x2",
            ),
            (Event::Inject { vm: 1, vcpu: 2, vector: 0xec }, "inject vm=1 vcpu=2 vector=0xec"),
            (Event::Irq { vector: 2 }, "irq vector=0x02"),
            (Event::Kick { vm: 0, vcpu: 1, cpu: 3 }, "kick vm=0 vcpu=1 cpu=3"),
            (Event::Schedule { vm: 4, vcpu: 5 }, "schedule vm=4 vcpu=5"),
            (Event::VmState { vm: 0, state: RunState::Crashed }, "vm-state vm=0 crashed"),
            (Event::DiskSubmit { vm: 0, id: 7 }, "disk-submit vm=0 id=7"),
            (Event::DiskDone { vm: 0, id: 7, ok: false }, "disk-done vm=0 id=7 failed"),
            (Event::NetFrame { port: 2, direction: Direction::Out, length_bytes: 60 }, "net-frame port=2 out 60 bytes"),
            (Event::Note { code: 9, value: 255 }, "note code=9 value=0xff"),
        ];
        for (event, line) in events {
            assert_eq!(event.describe(&["port", "cpuid"]).to_string(), line);
        }
    }

    #[test]
    fn an_exit_without_a_name_shows_its_number() {
        let event = Event::Exit { vm: 1, vcpu: 0, kind: 200, rip: 0, detail: 0 };
        assert_eq!(event.to_string(), "exit vm=1 vcpu=0 kind=200 rip=0x0 detail=0x0");
        assert_eq!(event.vm(), Some(1));
        assert_eq!(Event::Irq { vector: 3 }.vm(), None);
    }
}
