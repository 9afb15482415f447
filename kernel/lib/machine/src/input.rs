//! The input door: everything asynchronous that the guest can observe enters here.
//!
//! Completions, frames, keys and buttons come from any CPU through these methods of [`Machine`]; timers and random
//! bytes come through the run loop, which asks here for the moment. In [`InputMode::Solo`], the only mode so far, an
//! input is applied at once, under the board's lock.

use crate::board::Board;
use crate::mail::Mail;
use crate::{Host, Machine, Moment};
use chipset::Clock;
use spin::MutexGuard;
use switch::Offload;
use virtio::blk::Outcome;

/// When input is applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InputMode {
    /// At once, from any CPU; disks write into guest memory, and the guest reads the TSC itself.
    Solo,
    /// Not at all, while the machine is saved.
    Closed,
}

/// No buffer of the guest's holds the frame, or it is beyond what the machine may receive: it is lost, as on a wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLost;

impl Machine {
    /// A disk transfer ended.
    pub fn disk_done(&self, disk: usize, id: u64, outcome: Outcome, host: &mut dyn Host) {
        let mut board = self.enter();
        board.disk_done(&self.memory, disk, id, outcome);
        self.leave(&mut board, host);
    }

    /// Tells the guest of the transfers that ended since the last call.
    pub fn disks_settle(&self, disk: usize, host: &mut dyn Host) {
        let mut board = self.enter();
        board.disk_settle(&self.memory, disk);
        self.leave(&mut board, host);
    }

    /// A frame arrived for a network card. [`frames_settle`](Self::frames_settle) ends the batch.
    pub fn frame(&self, nic: usize, offload: &Offload, bytes: &[u8], now: Moment) -> Result<(), FrameLost> {
        let mut board = self.enter();
        if board.input_mode == InputMode::Closed {
            return Err(FrameLost);
        }
        let now_ns = self.epoch.machine_ns(now);
        if !board.meter.may_receive(now_ns) {
            return Err(FrameLost);
        }
        board.frame(&self.memory, nic, offload, bytes)?;
        board.meter.note_received(bytes.len() as u64, now_ns);
        Ok(())
    }

    /// Tells the guest of the frames that arrived since the last call.
    pub fn frames_settle(&self, nic: usize, host: &mut dyn Host) {
        let mut board = self.enter();
        board.frames_settle(&self.memory, nic);
        self.leave(&mut board, host);
    }

    /// Notes from now on which pages of memory the host writes for the machine; whoever was writing is done when this
    /// returns, but for the vCPUs' own threads, which pass by [`invalidate_all`](Self::invalidate_all).
    pub fn start_tracking(&self) -> Result<(), guestmem::NoRoom> {
        self.memory.start_tracking()?;
        drop(self.board.lock());
        Ok(())
    }

    /// What a card's guest takes unfinished now.
    pub fn nic_offloads(&self, nic: usize) -> switch::Offloads {
        self.board.lock().nic_offloads(nic)
    }

    /// Keys for the console; says how many were taken.
    pub fn console_input(&self, bytes: &[u8], host: &mut dyn Host) -> usize {
        let mut board = self.enter();
        if board.input_mode == InputMode::Closed {
            return 0;
        }
        let taken = board.console_input(&self.memory, bytes);
        self.leave(&mut board, host);
        taken
    }

    /// The machine went on at another place: its cards ask their guests to tell the network.
    pub fn announce(&self, host: &mut dyn Host) {
        let mut board = self.enter();
        board.announce();
        self.leave(&mut board, host);
    }

    /// Somebody pressed the power button.
    pub fn power_button(&self, host: &mut dyn Host) {
        let mut board = self.enter();
        board.press_power_button();
        self.leave(&mut board, host);
    }

    /// The moment as the guest sees it.
    pub(crate) fn clock(&self, now: Moment, tsc_offset: u64) -> Clock {
        Clock { ns: self.epoch.machine_ns(now), tsc: self.profile.tsc_ratio().scale(now.tsc).wrapping_add(tsc_offset) }
    }

    /// The board, for an input to be applied to.
    pub(crate) fn enter(&self) -> MutexGuard<'_, Board> {
        let board = self.board.lock();
        match board.input_mode {
            InputMode::Solo | InputMode::Closed => board,
        }
    }

    /// Ends an input: its interrupts leave at once, what needs an outbox is left to the boot vCPU.
    pub(crate) fn leave(&self, board: &mut Board, host: &mut dyn Host) {
        self.carry_out(board, None, host);
        if board.has_work() {
            self.post(0, Mail::Board, host);
        }
        if board.timers_changed() {
            self.post(0, Mail::BoardTimers, host);
        }
    }
}
