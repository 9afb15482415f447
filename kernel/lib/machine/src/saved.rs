//! A whole machine, but its memory, as bytes, and back.
//!
//! [`Machine::save`] writes a stream of [`state`] units, [`Machine::restore`] checks one and takes it over. Both are for
//! a machine at rest: every vCPU let go of its CPU, [`Machine::close`] shut the input door, and no disk transfer is under
//! way. The first unit is the [`Plan`], which a target checks before anything else. Memory travels beside the stream.

pub(crate) mod plan;
pub(crate) mod registers;

pub use plan::{Plan, Unlike};

use crate::board::Slot;
use crate::cpuid::is_another_rate;
use crate::input::InputMode;
use crate::storage::Disk;
use crate::{Machine, Moment, Thread};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use minicbor::{Decode, Encode};
use state::{Invalid, Kind, Reader, Writer};
use vcpu::Vcpu;

/// The units. A number is never used again for another kind.
mod kind {
    use state::Kind;

    pub const PLAN: Kind = Kind { number: 1, name: "plan", version: 1 };
    pub const CLOCK: Kind = Kind { number: 2, name: "clock", version: 1 };
    pub const BOARD: Kind = Kind { number: 3, name: "board", version: 1 };
    pub const CONSOLE: Kind = Kind { number: 4, name: "console", version: 1 };
    pub const RNG: Kind = Kind { number: 5, name: "random number device", version: 1 };
    pub const DISK: Kind = Kind { number: 6, name: "disk", version: 1 };
    pub const CARD: Kind = Kind { number: 7, name: "network card", version: 1 };
    pub const VCPU: Kind = Kind { number: 8, name: "vCPU", version: 1 };
    pub const LAPIC: Kind = Kind { number: 9, name: "local APIC", version: 1 };
    pub const BALLOON: Kind = Kind { number: 11, name: "balloon", version: 1 };
    pub const EXTENDED: Kind = Kind { number: 10, name: "extended state of vCPU", version: 1 };
    pub const FIRMWARE: Kind = Kind { number: 12, name: "firmware's devices", version: 1 };
}

/// Times that no machine gets to: sums of two do not overflow.
const FAR_NS: u64 = 1 << 61;

/// A machine that cannot be saved at this moment, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Busy {
    /// Transfers of this disk are under way.
    Disk(usize),
    /// Its last output has not left.
    Output,
    /// Memory that it gave up is on its way back to the host.
    Balloon,
    /// A disk or card is on its way out.
    Leaving,
    /// It has ended.
    Ended,
}

/// Why a machine is not restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RestoreError {
    /// The bytes are not what a machine saves.
    State(state::Error),
    /// They are another machine's, or another kind of host's.
    Unlike(Unlike),
}

/// One vCPU, saved.
pub struct SavedVcpu {
    thread: registers::Saved,
    lapic: chipset::saved::LocalApic,
    extended: Vec<u8>,
}

/// Where machine time was, and when that was on the wall.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
struct Clock {
    #[n(0)]
    machine_ns: u64,
    /// UTC at machine time 0, as the guest was told.
    #[n(1)]
    wall_unix_ns: u64,
    #[n(2)]
    saved_unix_ns: u64,
}

/// The bytes of an XSAVE area.
#[derive(Encode, Decode)]
struct Extended {
    #[cbor(n(0), with = "minicbor::bytes")]
    area: Vec<u8>,
}

impl Machine {
    /// Shuts the input door, so that nothing changes while the machine is saved: frames are lost as on a wire, and keys
    /// are not taken. Disk transfers still end. [`open`](Self::open) undoes it.
    pub fn close(&self) {
        self.board.lock().input_mode = InputMode::Closed;
    }

    /// Opens the input door again.
    pub fn open(&self) {
        self.board.lock().input_mode = InputMode::Solo;
    }

    /// What keeps a stopped machine from being saved now; disks end what they do by themselves.
    pub fn busy(&self) -> Option<Busy> {
        let board = self.board.lock();
        match board.disks.find(|disk| !disk.is_at_rest()) {
            Some(disk) => Some(Busy::Disk(disk)),
            None if board.end.is_some() => Some(Busy::Ended),
            None if board.leaving != 0 || board.disks.iter().any(Disk::is_stopped) => Some(Busy::Leaving),
            None if board.balloon.is_busy() => Some(Busy::Balloon),
            None => (!board.effects.is_empty()).then_some(Busy::Output),
        }
    }

    /// Saves one vCPU of a machine at rest. Its mail is taken first: that is part of it.
    pub fn save_vcpu(&self, thread: &mut Thread, now: Moment) -> SavedVcpu {
        self.take_mail(thread);
        let tsc = self.clock(now, thread.vcpu.tsc_offset()).tsc;
        SavedVcpu { thread: thread.save(tsc), lapic: thread.lapic.save(), extended: thread.vcpu.extended_state() }
    }

    /// Saves the machine with all of its vCPUs, in order, which were saved at the same moment.
    ///
    /// # Errors
    /// While it is not at rest.
    ///
    /// # Panics
    /// With another number of vCPUs than it has.
    pub fn save(&self, vcpus: &[SavedVcpu], now: Moment) -> Result<Vec<u8>, Busy> {
        assert_eq!(vcpus.len(), self.vcpus(), "each vCPU once");
        if let Some(busy) = self.busy() {
            return Err(busy);
        }
        let mut writer = Writer::new();
        writer.unit(kind::PLAN, 0, &self.plan());
        let clock = Clock {
            machine_ns: self.epoch.machine_ns(now),
            wall_unix_ns: self.epoch.wall_unix_ns(),
            saved_unix_ns: self.epoch.utc_ns(now),
        };
        writer.unit(kind::CLOCK, 0, &clock);
        let board = self.board.lock();
        writer.unit(kind::BOARD, 0, &board.save());
        writer.unit(kind::CONSOLE, 0, &board.console.save());
        writer.unit(kind::RNG, 0, &board.rng.save());
        for (index, disk) in (0..).zip(board.disks.iter()) {
            writer.unit(kind::DISK, index, &disk.save());
        }
        for (index, card) in (0..).zip(board.cards.iter()) {
            writer.unit(kind::CARD, index, &card.save());
        }
        writer.unit(kind::BALLOON, 0, &board.balloon.save());
        if let Some(firmware) = &board.firmware {
            writer.unit(kind::FIRMWARE, 0, &firmware.save());
        }
        for (index, vcpu) in (0..).zip(vcpus) {
            writer.unit(kind::VCPU, index, &vcpu.thread);
            writer.unit(kind::LAPIC, index, &vcpu.lapic);
            writer.unit(kind::EXTENDED, index, &Extended { area: vcpu.extended.clone() });
        }
        Ok(writer.finish())
    }

    /// Takes over what [`save`](Self::save) wrote, on a machine that was made by the same plan, has the saved memory and
    /// never ran; `vcpus` are as made. The threads go on from `now`. `ahead_ns` is how far this host's clock on the wall is
    /// known to be ahead of the one where it was saved.
    ///
    /// # Errors
    /// Where the bytes are not a saved machine like this one. The machine must not be run then.
    ///
    /// # Panics
    /// With another number of vCPUs than it has.
    pub fn restore(
        &self,
        saved: &[u8],
        vcpus: Vec<Box<dyn Vcpu>>,
        now: Moment,
        ahead_ns: i64,
    ) -> Result<Vec<Thread>, RestoreError> {
        assert_eq!(vcpus.len(), self.vcpus(), "each vCPU once");
        let mut reader = Reader::parse(saved)?;
        reader.must_take::<Plan>(kind::PLAN, 0)?.same_as(&self.plan())?;
        let clock: Clock = reader.must_take(kind::CLOCK, 0)?;
        let elapsed_ns = self.restore_clock(&clock, now, ahead_ns).map_err(|what| what.within(kind::CLOCK, 0))?;
        self.restore_board(&mut reader)?;
        let mut threads = Vec::new();
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            threads.push(self.restore_vcpu(&mut reader, index, vcpu, elapsed_ns, now)?);
        }
        reader.finish()?;
        for thread in &mut threads {
            self.adopt(thread);
            self.mailboxes[thread.index].note_levels(thread.lapic.page().trigger_mode().words());
            self.resume_clock(thread, now)?;
        }
        Ok(threads)
    }

    /// Sets machine time; says how long the machine was away.
    fn restore_clock(&self, saved: &Clock, now: Moment, ahead_ns: i64) -> Result<u64, Invalid> {
        let possible = saved.machine_ns < FAR_NS && now.ns < FAR_NS;
        Invalid::unless(possible, "its time")?;
        // A host whose clock is behind the other's cannot tell; the guest's goes on where it was.
        let utc_ns = self.epoch.utc_ns(now).saturating_sub_signed(ahead_ns);
        let elapsed_ns = utc_ns.saturating_sub(saved.saved_unix_ns).min(FAR_NS);
        self.epoch.set(saved.machine_ns + elapsed_ns, now, saved.wall_unix_ns);
        Ok(elapsed_ns)
    }

    /// The board and every function on it. A unit that is missing leaves its device as after reset.
    fn restore_board(&self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        let mut board = self.board.lock();
        let board = &mut *board;
        unit(reader, kind::BOARD, 0, |saved| board.restore(saved))?;
        unit(reader, kind::CONSOLE, 0, |saved| board.console.restore(saved))?;
        unit(reader, kind::RNG, 0, |saved| board.rng.restore(saved))?;
        for (index, disk) in (0..).zip(board.disks.iter_mut()) {
            unit(reader, kind::DISK, index, |saved| disk.restore(saved))?;
        }
        for (index, card) in (0..).zip(board.cards.iter_mut()) {
            unit(reader, kind::CARD, index, |saved| card.restore(saved))?;
        }
        unit(reader, kind::BALLOON, 0, |saved| board.balloon.restore(saved, &self.memory))?;
        if let Some(firmware) = &mut board.firmware {
            // As after power-up it would be no machine that ever ran: its guest has read from it.
            let saved = reader.must_take(kind::FIRMWARE, 0)?;
            firmware.restore(&saved).map_err(|what| what.within(kind::FIRMWARE, 0))?;
        }
        // Writes that were done and wait for their flush.
        for disk in board.disks.numbers() {
            if board.disks[disk].has_unflushed() {
                board.kick_again(Slot::Disk(disk), 0);
            }
        }
        Ok(())
    }

    fn restore_vcpu(
        &self,
        reader: &mut Reader<'_>,
        index: usize,
        mut vcpu: Box<dyn Vcpu>,
        elapsed_ns: u64,
        now: Moment,
    ) -> Result<Thread, RestoreError> {
        let instance = index as u16;
        let saved: registers::Saved = reader.must_take(kind::VCPU, instance)?;
        let impossible = |kind: Kind| move |what: Invalid| what.within(kind, instance);
        let state = saved.state(&self.profile).map_err(impossible(kind::VCPU))?;
        vcpu.set_state(&state);
        if let Some(Extended { area }) = reader.take(kind::EXTENDED, instance)? {
            let loadable = vcpu.set_extended_state(&area);
            loadable.map_err(|_| Invalid("this processor cannot load it").within(kind::EXTENDED, instance))?;
        }
        let tsc = saved.tsc_after(elapsed_ns, self.profile.tsc_khz());
        let mut thread = self.thread(index, vcpu, &state, tsc, now);
        thread.restore(&saved, &self.profile).map_err(impossible(kind::VCPU))?;
        if let Some(lapic) = reader.take(kind::LAPIC, instance)? {
            let real_khz = self.profile.real_tsc_khz().into();
            let lapic = chipset::Lapic::restore(index as u32, index == 0, real_khz, &lapic);
            thread.put_lapic(lapic.map_err(impossible(kind::LAPIC))?);
        }
        Ok(thread)
    }

    /// Tells a guest that reads a clock in memory how that goes on; one that reads the TSC alone needs the same rate.
    fn resume_clock(&self, thread: &mut Thread, now: Moment) -> Result<(), RestoreError> {
        let clock = self.clock(now, thread.vcpu.tsc_offset());
        let has_clock = self.update_clock_after_pause(thread, clock);
        let (told, real) = (self.profile.tsc_khz(), self.profile.real_tsc_khz());
        if has_clock || thread.index != 0 || !is_another_rate(told, real) {
            return Ok(());
        }
        Err(RestoreError::Unlike(Unlike::TscRate { saved_khz: told, here_khz: real }))
    }
}

/// Takes a unit and applies it; nothing happens where it is missing.
fn unit<'a, T: Decode<'a, ()>>(
    reader: &mut Reader<'a>,
    kind: Kind,
    instance: u16,
    apply: impl FnOnce(&T) -> Result<(), Invalid>,
) -> Result<(), RestoreError> {
    match reader.take(kind, instance)? {
        Some(saved) => apply(&saved).map_err(|what| what.within(kind, instance).into()),
        None => Ok(()),
    }
}

impl From<state::Error> for RestoreError {
    fn from(error: state::Error) -> Self {
        Self::State(error)
    }
}

impl From<Unlike> for RestoreError {
    fn from(unlike: Unlike) -> Self {
        Self::Unlike(unlike)
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(error) => error.fmt(out),
            Self::Unlike(unlike) => unlike.fmt(out),
        }
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(disk) => write!(out, "its disk {disk} is at work"),
            Self::Output => out.write_str("its last output has not left"),
            Self::Balloon => out.write_str("memory that it gave up is on its way back"),
            Self::Leaving => out.write_str("a disk or card is on its way out"),
            Self::Ended => out.write_str("it has ended"),
        }
    }
}

/// A stream without a machine around it: what the plan in it says.
///
/// # Errors
/// Where the bytes are no saved machine.
pub fn plan_of(saved: &[u8]) -> Result<Plan, state::Error> {
    Reader::parse(saved)?.must_take(kind::PLAN, 0)
}

/// Names of things that are missing, for people: "a, b and c".
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [others @ .., last] => alloc::format!("{} and {last}", others.join(", ")),
    }
}
