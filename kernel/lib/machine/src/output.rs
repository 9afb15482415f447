//! The output door: everything that leaves the machine passes here.
//!
//! Device models put console bytes, disk transfers and frames into the [`Outbox`] of the CPU that runs them; the host
//! takes them out when no lock of the machine is held. In [`OutputMode::Pass`], the only mode so far, all leave at once.

use alloc::vec::Vec;
use block::HostRun;
use virtio::net::TxFrame;

/// What happens to output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputMode {
    /// It leaves at once.
    Pass,
}

/// How much waits at most; then it leaves before more is taken from the guest. Of console bytes and runs of transfers
/// the last to come may go beyond.
const FRAMES_MAX: usize = 16;
const TRANSFERS_MAX: usize = 64;
const RUNS_MAX: usize = 1024;
const CONSOLE_BYTES_MAX: usize = 64 << 10;

/// A disk transfer that leaves the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutTransfer {
    /// Which of the machine's disks.
    pub disk: usize,
    /// Given back to [`crate::Machine::disk_done`].
    pub id: u64,
    /// What to do.
    pub op: block::Op,
    /// The first sector, of 512 bytes.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
    /// Its runs: a range of the outbox's.
    runs: (usize, usize),
}

/// A frame that leaves the machine.
pub struct OutFrame {
    /// Which of the machine's network cards it leaves from.
    pub nic: usize,
    /// The frame and what is left to do to it.
    pub frame: TxFrame,
}

/// What is leaving. One for each CPU, reused, so that output allocates nothing in the long run.
pub struct Outbox {
    mode: OutputMode,
    console: Vec<u8>,
    transfers: Vec<OutTransfer>,
    runs: Vec<HostRun>,
    frames: Vec<OutFrame>,
    frames_used: usize,
    given_up: bool,
    variables: bool,
}

impl Outbox {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            mode: OutputMode::Pass,
            console: Vec::new(),
            transfers: Vec::new(),
            runs: Vec::new(),
            frames: Vec::new(),
            frames_used: 0,
            given_up: false,
            variables: false,
        }
    }

    /// Whether anything waits to leave.
    pub fn is_empty(&self) -> bool {
        self.console.is_empty()
            && self.transfers.is_empty()
            && self.frames_used == 0
            && !self.given_up
            && !self.variables
    }

    /// Console bytes.
    pub fn console(&self) -> &[u8] {
        &self.console
    }

    /// Disk transfers with their runs of host memory, in the order in which the guest asked.
    pub fn transfers(&self) -> impl Iterator<Item = (&OutTransfer, &[HostRun])> {
        self.transfers.iter().map(|transfer| (transfer, &self.runs[transfer.runs.0..transfer.runs.1]))
    }

    /// Frames, in order.
    pub fn frames_mut(&mut self) -> &mut [OutFrame] {
        &mut self.frames[..self.frames_used]
    }

    /// Whether the guest gave memory up: the host is to call [`crate::Machine::release`].
    pub fn given_up(&self) -> bool {
        self.given_up
    }

    /// Forgets what has left.
    pub fn clear(&mut self) {
        self.console.clear();
        self.transfers.clear();
        self.runs.clear();
        self.frames_used = 0;
        self.given_up = false;
        self.variables = false;
    }

    /// Whether its firmware wrote variables: the host is to look by [`crate::Machine::with_variables`].
    pub fn variables(&self) -> bool {
        self.variables
    }

    pub(crate) fn note_variables(&mut self) {
        match self.mode {
            OutputMode::Pass => self.variables = true,
        }
    }

    pub(crate) fn note_given_up(&mut self) {
        match self.mode {
            OutputMode::Pass => self.given_up = true,
        }
    }

    pub(crate) fn push_console(&mut self, bytes: &[u8]) {
        match self.mode {
            OutputMode::Pass => self.console.extend_from_slice(bytes),
        }
    }

    /// Whether console bytes must leave before more come.
    pub(crate) fn is_console_full(&self) -> bool {
        self.console.len() >= CONSOLE_BYTES_MAX
    }

    /// Whether transfers must leave before more come.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.transfers.len() >= TRANSFERS_MAX || self.runs.len() >= RUNS_MAX
    }

    pub(crate) fn console_mut(&mut self) -> &mut Vec<u8> {
        match self.mode {
            OutputMode::Pass => &mut self.console,
        }
    }

    /// Adds a transfer whose runs `add_runs` appends; says what went wrong instead if it did.
    pub(crate) fn push_transfer<E>(
        &mut self,
        mut transfer: OutTransfer,
        add_runs: impl FnOnce(&mut Vec<HostRun>) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.mode {
            OutputMode::Pass => {}
        }
        let start = self.runs.len();
        if let Err(error) = add_runs(&mut self.runs) {
            self.runs.truncate(start);
            return Err(error);
        }
        transfer.runs = (start, self.runs.len());
        self.transfers.push(transfer);
        Ok(())
    }

    /// Lets `fill` write the next frame; it says whether there was one. `None` when frames must leave first.
    pub(crate) fn push_frame(&mut self, nic: usize, fill: impl FnOnce(&mut TxFrame) -> bool) -> Option<bool> {
        match self.mode {
            OutputMode::Pass => {}
        }
        if self.frames_used == FRAMES_MAX {
            return None;
        }
        if self.frames_used == self.frames.len() {
            self.frames.push(OutFrame { nic, frame: TxFrame::new() });
        }
        let slot = &mut self.frames[self.frames_used];
        slot.nic = nic;
        let filled = fill(&mut slot.frame);
        self.frames_used += usize::from(filled);
        Some(filled)
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl OutTransfer {
    pub(crate) fn new(disk: usize, id: u64, op: block::Op, sector: u64, sectors: u32) -> Self {
        Self { disk, id, op, sector, sectors, runs: (0, 0) }
    }
}
