//! A pair of queues for a namespace's transfers, and the transfers that the controller has by them.
//!
//! The main type is [`Lane`]. Of a transfer it keeps the command, so that it can be given again after a reset, and a page
//! of its own where its memory needs a list or has to be copied.
#![expect(unsafe_code, reason = "copies transfers that the controller's lists cannot describe")]

use super::command::{Command, Data};
use super::data::{Plan, describe, descriptor, page_addresses, segment};
use super::identify::{PAGE_BYTES, Sgl};
use super::pair::{Broken, Pair};
use super::{Fault, Port};
use crate::dma::DmaMemory;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use block::{HostRun, IoError, Op, Outcome, SubmitError, Transfer};
use virtio_drivers::Hal;

/// Pages for lists and copies. A transfer that finds none waits.
const PAGES: u16 = 32;
const PAGE: usize = PAGE_BYTES as usize;

/// A transfer that ended: its id and how.
pub(super) type Ended = VecDeque<(u64, Outcome)>;

/// What a lane needs to know of its namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Format {
    /// The namespace's number.
    pub namespace: u32,
    pub sectors_per_block: u32,
    pub sgl: Sgl,
}

/// A transfer that the controller has.
struct Flight {
    id: u64,
    command: Command,
    page: Option<u16>,
    /// Where the page goes when the command has been done.
    copy_to: Vec<HostRun>,
    /// When it was first seen to be under way.
    since_ns: Option<u64>,
    /// When it was asked to be aborted.
    aborted_ns: Option<u64>,
    /// Whether it was given again after a reset.
    again: bool,
}

/// Transfers by one pair of queues.
pub(super) struct Lane<H: Hal> {
    pub pair: Pair<H>,
    format: Format,
    /// By command identifier.
    flights: Vec<Option<Flight>>,
    free: Vec<u16>,
    pages: DmaMemory<H>,
    free_pages: Vec<u16>,
}

impl<H: Hal> Lane<H> {
    /// A lane by a pair of queues that the controller does not have yet.
    pub(super) fn new(pair: Pair<H>, format: Format) -> Result<Self, Fault> {
        // One entry of a queue stays empty (section 3.3.1.5).
        let most = pair.entries - 1;
        Ok(Self {
            pair,
            format,
            flights: (0..most).map(|_| None).collect(),
            free: (0..most).rev().collect(),
            pages: DmaMemory::new(usize::from(PAGES) * PAGE).ok_or(Fault::Memory)?,
            free_pages: (0..PAGES).rev().collect(),
        })
    }

    /// Takes a transfer that the namespace can do, and puts it into the queue where that `is_live`.
    pub(super) fn submit(&mut self, transfer: &Transfer<'_>, is_live: bool) -> Result<(), SubmitError> {
        let Some(&identifier) = self.free.last() else { return Err(SubmitError::Full) };
        let (command, page, copy_to) = self.prepare(transfer)?;
        self.free.pop();
        let command = command.named(identifier);
        if is_live {
            self.pair.push(&command);
        }
        let flight = Flight { id: transfer.id, command, page, copy_to, since_ns: None, aborted_ns: None, again: false };
        self.flights[usize::from(identifier)] = Some(flight);
        Ok(())
    }

    /// Moves what the controller has finished to `ended`.
    pub(super) fn drain(&mut self, port: &mut impl Port, ended: &mut Ended) -> Result<(), Broken> {
        while let Some(completion) = self.pair.pop()? {
            let flight = self.flights.get_mut(usize::from(completion.identifier)).and_then(Option::take);
            let flight = flight.ok_or(Broken("it completed a command that it does not have"))?;
            if completion.status.is_success() {
                self.copy_back(&flight);
            }
            ended.push_back((flight.id, completion.status.outcome()));
            self.release(completion.identifier, &flight);
        }
        self.pair.acknowledge(port);
        Ok(())
    }

    /// A command that has taken longer than `limit_ns` and nobody has tried to abort: its identifier.
    pub(super) fn late(&mut self, now_ns: u64, limit_ns: u64) -> Option<u16> {
        self.flights.iter_mut().zip(0..).find_map(|(flight, identifier)| {
            let flight = flight.as_mut()?;
            let since_ns = *flight.since_ns.get_or_insert(now_ns);
            (flight.aborted_ns.is_none() && now_ns.saturating_sub(since_ns) >= limit_ns).then_some(identifier)
        })
    }

    /// Notes that a command was asked to be aborted.
    pub(super) fn note_abort(&mut self, identifier: u16, now_ns: u64) {
        if let Some(flight) = &mut self.flights[usize::from(identifier)] {
            flight.aborted_ns = Some(now_ns);
        }
    }

    /// Whether a command is still under way `limit_ns` after it was asked to be aborted.
    pub(super) fn is_stuck(&self, now_ns: u64, limit_ns: u64) -> bool {
        let aborted_ns = self.flights.iter().flatten().filter_map(|flight| flight.aborted_ns);
        aborted_ns.into_iter().any(|aborted_ns| now_ns.saturating_sub(aborted_ns) >= limit_ns)
    }

    /// The controller was stopped, and will have the commands again: those that made trouble fail, and so do those that
    /// have been through this before.
    pub(super) fn restart(&mut self, ended: &mut Ended) {
        self.pair.clear();
        self.fail_where(ended, |flight| flight.aborted_ns.is_some() || flight.again);
        for flight in self.flights.iter_mut().flatten() {
            (flight.again, flight.since_ns) = (true, None);
        }
    }

    /// Puts every command into the empty queue again.
    pub(super) fn resubmit(&mut self) {
        for flight in self.flights.iter().flatten() {
            self.pair.push(&flight.command);
        }
    }

    /// The controller was stopped for good: everything fails.
    pub(super) fn abandon(&mut self, ended: &mut Ended) {
        self.fail_where(ended, |_| true);
    }

    fn fail_where(&mut self, ended: &mut Ended, condition: impl Fn(&Flight) -> bool) {
        for index in 0..self.flights.len() {
            if let Some(flight) = self.flights[index].take_if(|flight| condition(flight)) {
                ended.push_back((flight.id, Err(IoError::Device)));
                // There are fewer than 2^16.
                self.release(index as u16, &flight);
            }
        }
    }

    fn release(&mut self, identifier: u16, flight: &Flight) {
        self.free.push(identifier);
        self.free_pages.extend(flight.page);
    }

    /// The command of a transfer, the page that it needs, and where that is copied afterwards.
    fn prepare(&mut self, transfer: &Transfer<'_>) -> Result<(Command, Option<u16>, Vec<HostRun>), SubmitError> {
        let Format { namespace, sectors_per_block, .. } = self.format;
        let block = transfer.sector / u64::from(sectors_per_block);
        let blocks = transfer.sectors / sectors_per_block;
        // The field counts from 0. The namespace's limits keep it in range.
        let last = u16::try_from(blocks.saturating_sub(1)).map_err(|_| SubmitError::Refused);
        match transfer.op {
            Op::Flush => Ok((Command::flush(namespace), None, Vec::new())),
            Op::WriteZeroes => Ok((Command::write_zeroes(namespace, block, last?), None, Vec::new())),
            Op::Discard => {
                let page = self.free_pages.pop().ok_or(SubmitError::Full)?;
                let at = usize::from(page) * PAGE;
                // One range: attributes, blocks, first block (NVM Command Set section 3.2.3.1).
                self.pages.store(at, 0_u32);
                self.pages.store(at + 4, blocks);
                self.pages.store(at + 8, block);
                Ok((Command::deallocate(namespace, self.pages.physical(at)), Some(page), Vec::new()))
            }
            Op::Read => self.with_data(Command::read(namespace, block, last?), transfer.runs, true),
            Op::Write => self.with_data(Command::write(namespace, block, last?), transfer.runs, false),
            Op::WriteThrough => self.with_data(Command::write_through(namespace, block, last?), transfer.runs, false),
        }
    }

    fn with_data(
        &mut self,
        command: Command,
        runs: &[HostRun],
        is_read: bool,
    ) -> Result<(Command, Option<u16>, Vec<HostRun>), SubmitError> {
        let plan = describe(runs, self.format.sgl);
        match plan {
            Plan::Direct(data) => return Ok((command.with_data(data), None, Vec::new())),
            Plan::Copy if runs.iter().map(|run| run.bytes as usize).sum::<usize>() > PAGE => {
                return Err(SubmitError::Refused);
            }
            Plan::PrpList(_) | Plan::SglList | Plan::Copy => {}
        }
        let page = self.free_pages.pop().ok_or(SubmitError::Full)?;
        let at = usize::from(page) * PAGE;
        let physical = self.pages.physical(at);
        let mut copy_to = Vec::new();
        let data = match plan {
            Plan::Direct(data) => data,
            Plan::PrpList(first) => {
                page_addresses(runs)
                    .skip(1)
                    .enumerate()
                    .for_each(|(index, page)| self.pages.store(at + 8 * index, page));
                Data::Prp(first, physical)
            }
            Plan::SglList => {
                let words = runs.iter().flat_map(descriptor).enumerate();
                words.for_each(|(index, word)| self.pages.store(at + 8 * index, word));
                Data::Sgl(segment(physical, runs.len()))
            }
            Plan::Copy => {
                if is_read {
                    copy_to = runs.to_vec();
                } else {
                    // SAFETY: the runs are a transfer's, whose memory stays and is readable until it ends. Their sum is
                    // a block, which the caller checked and a page holds.
                    unsafe { self.pages.copy_from_runs(at, runs) };
                }
                Data::Prp(physical, 0)
            }
        };
        Ok((command.with_data(data), Some(page), copy_to))
    }

    fn copy_back(&self, flight: &Flight) {
        if let Some(page) = flight.page
            && !flight.copy_to.is_empty()
        {
            // SAFETY: the runs are those of a read that has not been reported as ended, so its memory is still its own.
            unsafe { self.pages.copy_to_runs(usize::from(page) * PAGE, &flight.copy_to) };
        }
    }
}

#[cfg(test)]
impl<H: Hal> Lane<H> {
    /// Whether nothing is under way and nothing is lost.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.flights.len() && self.free_pages.len() == usize::from(PAGES)
    }
}
