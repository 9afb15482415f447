//! Hardware task switches, which VT-x leaves to the host, and SVM can.
//!
//! [`switch`] saves the task that runs in its task-state segment and loads the next one's, by JMP, CALL, IRET or a task gate
//! of the IDT, with segments of 16 and 32 bits. `memory` holds back what is written until all is known to be there, and
//! `segments` loads and checks what selectors name.
//!
//! SDM volume 3, chapter 8: 8.3 is the order of things, table 8-1 the exceptions, table 8-2 what becomes of the busy flags, NT
//! and the link. The processor has checked privileges before it exits (26.4.2; APM volume 2, 15.14.1), also those of gates,
//! which nobody sees here; what it read is read again, and so is checked again. Busy flags are not written with a bus lock:
//! processors do not share a task.

mod memory;
mod segments;
#[cfg(test)]
mod tests;

use vcpu::{
    Blocking, Event, Exception, Gpr, Segment, SegmentName, TaskSwitchSource, VcpuState, cr0, makes_double_fault, rflags,
};

use crate::{Context, Fault, Unavailable, segment};
use memory::Memory;
use segments::dpl;

/// DR7: the local enables, LE among them.
const DR7_LOCAL: u64 = 0x155;
/// DR7.GD, which a debug exception clears.
const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// DR6.BT: a task switch.
const DR6_TASK_SWITCH: u64 = 1 << 15;
/// The flags that there are.
const RFLAGS_DEFINED: u64 = 0x003f_7fd5;

/// Bits of the attributes of a task-state segment.
const BUSY: u16 = 1 << 1;
const WIDE: u16 = 1 << 3;
const PRESENT: u16 = 1 << 7;
/// S and the bits of the type that every task-state segment has alike, and how.
const KIND: u16 = 0x15;
const KIND_TSS: u16 = 0x01;

/// A selector's table: the LDT.
const LOCAL: u16 = 1 << 2;
/// A selector but for its privilege level.
const INDEX: u16 = !3;

/// Fields of a task-state segment, which begins with the link (figures 8-2 and 8-10).
const CR3: u64 = 0x1c;
const TRAP: u64 = 0x64;
const BYTES_MAX: usize = 0x68;

/// What is switched to, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Which task-state segment.
    pub selector: u16,
    /// What asks for it.
    pub source: TaskSwitchSource,
    /// Where the instruction ends that asks for it. None where a hardware event does, which is what waits in the state.
    pub next_rip: Option<u64>,
}

/// What follows from a task switch. Nothing waits any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The new task runs.
    Runs,
    /// This exception comes first: the old task's, which is as it was, or the new one's.
    Raises(Exception),
    /// It comes in the delivery of a double fault.
    ShutsDown,
}

/// Carries out a task switch.
///
/// # Errors
/// Where memory cannot be accessed now. Nothing has changed then.
pub fn switch<C: Context>(context: &mut C, state: &mut VcpuState, request: Request) -> Result<Outcome, Unavailable> {
    let first = state.waiting;
    let inner = VcpuState { waiting: None, ..state.clone() };
    let mut switch = Switch { memory: Memory::new(context, state), state: inner, request, event: first };
    let exchanged = switch.exchange();
    let task = match switch.memory.settle(exchanged)? {
        Ok(task) => task,
        Err(exception) => {
            state.waiting = None;
            return Ok(outcome(first, exception));
        }
    };
    let entered = switch.enter(&task);
    let entered = switch.memory.settle(entered)?;
    switch.memory.write_back()?;
    *state = switch.state;
    Ok(match entered {
        Err(exception) => outcome(first, exception),
        Ok(()) if task.traps() => {
            state.dr6 |= DR6_TASK_SWITCH;
            state.dr7 &= !DR7_GENERAL_DETECT;
            Outcome::Raises(Exception::DEBUG)
        }
        Ok(()) => Outcome::Runs,
    })
}

/// What becomes of an exception in the delivery of an event (7.15).
fn outcome(first: Option<Event>, second: Exception) -> Outcome {
    const PAGE_FAULT: u8 = 14;
    match first {
        Some(Event::Exception(first)) if makes_double_fault(first.vector, second.vector) => {
            Outcome::Raises(Exception::DOUBLE_FAULT)
        }
        // What is a double fault behind a page fault ends all behind a double fault.
        Some(Event::Exception(Exception::DOUBLE_FAULT)) if makes_double_fault(PAGE_FAULT, second.vector) => {
            Outcome::ShutsDown
        }
        _ => Outcome::Raises(second),
    }
}

/// A task as its segment has it.
struct Task {
    tss: Segment,
    bytes: [u8; BYTES_MAX],
}

impl Task {
    fn is_wide(&self) -> bool {
        is_wide(self.tss)
    }

    /// Field number `index` from EIP on: EIP, EFLAGS, eight general registers, the segment registers, the LDT.
    fn field(&self, index: u64) -> u64 {
        let (at, bytes) = field(self.tss, index);
        self.number(at, bytes)
    }

    fn selector(&self, index: u64) -> u16 {
        self.field(index) as u16
    }

    /// Whether its T flag asks for a debug exception.
    fn traps(&self) -> bool {
        self.is_wide() && self.number(TRAP, 1) & 1 != 0
    }

    fn number(&self, at: u64, bytes: u64) -> u64 {
        (0..bytes).fold(0, |value, byte| value | u64::from(self.bytes[(at + byte) as usize]) << (8 * byte))
    }
}

/// The numbers of fields, from EIP on.
mod number {
    pub const EIP: u64 = 0;
    pub const EFLAGS: u64 = 1;
    pub const GPRS: u64 = 2;
    pub const SEGMENTS: u64 = 10;
}
/// The general registers of a task.
const GPRS: usize = 8;

/// Whether a task-state segment is one of 32 bits.
fn is_wide(tss: Segment) -> bool {
    tss.attributes & WIDE != 0
}

/// Where a field lies, by its number, and its bytes.
fn field(tss: Segment, index: u64) -> (u64, u64) {
    if is_wide(tss) { (0x20 + 4 * index, 4) } else { (0x0e + 2 * index, 2) }
}

/// How many segment registers a task has: ES, CS, SS, DS, and with 32 bits FS and GS.
fn segment_count(tss: Segment) -> usize {
    if is_wide(tss) { 6 } else { 4 }
}

/// A task switch under way.
struct Switch<'a, C> {
    memory: Memory<'a, C>,
    state: VcpuState,
    request: Request,
    /// The hardware event that asks for it.
    event: Option<Event>,
}

impl<C: Context> Switch<'_, C> {
    /// From one task to the other, up to the point where there is no way back.
    fn exchange(&mut self) -> Result<Task, Fault> {
        let (descriptor, tss) = self.new_tss()?;
        self.save()?;
        if self.is_nested() {
            self.memory.write(tss.base, &self.state.tr.selector.to_le_bytes())?;
        }
        if !self.is_iret() {
            self.memory.change_rights(descriptor, |rights| rights | BUSY as u8)?;
        }
        let mut task = Task { tss, bytes: [0; BYTES_MAX] };
        let used = if task.is_wide() { BYTES_MAX } else { 0x2c };
        self.memory.read(tss.base, &mut task.bytes[..used])?;
        self.load(&task)?;
        Ok(task)
    }

    /// Whether the new task returns to the old one by IRET.
    fn is_nested(&self) -> bool {
        matches!(self.request.source, TaskSwitchSource::Call | TaskSwitchSource::Gate)
    }

    fn is_iret(&self) -> bool {
        self.request.source == TaskSwitchSource::Iret
    }

    /// The new task's segment, checked, and where its descriptor lies.
    fn new_tss(&mut self) -> Result<(u64, Segment), Fault> {
        let (selector, is_iret) = (self.request.selector, self.is_iret());
        let refused = if is_iret { Exception::INVALID_TSS } else { Exception::PROTECTION };
        let is_global = selector & LOCAL == 0 && selector & INDEX != 0;
        let found = if is_global { self.descriptor(selector)? } else { None };
        let (at, tss) = found.ok_or_else(|| self.refusal(refused, selector))?;
        if tss.attributes & KIND != KIND_TSS || (tss.attributes & BUSY != 0) != is_iret {
            return Err(self.refusal(refused, selector));
        }
        if tss.attributes & PRESENT == 0 {
            return Err(self.refusal(Exception::NOT_PRESENT, selector));
        }
        if tss.limit < if is_wide(tss) { 0x67 } else { 0x2b } {
            return Err(self.refusal(Exception::INVALID_TSS, selector));
        }
        Ok((at, tss))
    }

    /// Saves the old task, which is busy no more but where it is returned to.
    fn save(&mut self) -> Result<(), Fault> {
        let left = if self.is_iret() { rflags::NT } else { 0 };
        let state = &mut self.state;
        if let Some(next_rip) = self.request.next_rip {
            state.rip = next_rip;
            state.rflags &= !rflags::RF;
        }
        let tr = state.tr;
        let gprs = state.gprs[..GPRS].iter().copied();
        let values = [state.rip, state.rflags & !left].into_iter().chain(gprs);
        for (index, value) in (number::EIP..).zip(values) {
            let (at, bytes) = field(tr, index);
            self.memory.write(tr.base.wrapping_add(at), &value.to_le_bytes()[..bytes as usize])?;
        }
        for (index, segment) in (number::SEGMENTS..).zip(&self.state.segments[..segment_count(tr)]) {
            self.memory.write(tr.base.wrapping_add(field(tr, index).0), &segment.selector.to_le_bytes())?;
        }
        if !self.is_nested() {
            let descriptor = self.state.gdtr.base.wrapping_add(u64::from(tr.selector & !7));
            self.memory.change_rights(descriptor, |rights| rights & !(BUSY as u8))?;
        }
        Ok(())
    }

    /// Loads what needs no descriptor but the task's own.
    fn load(&mut self, task: &Task) -> Result<(), Fault> {
        let (is_nested, is_iret) = (self.is_nested(), self.is_iret());
        let state = &mut self.state;
        if task.is_wide() && state.cr0 & cr0::PG != 0 {
            state.cr3 = task.number(CR3, 4);
            if !self.memory.use_tables(state.cr3) {
                return Err(Exception::PROTECTION.into());
            }
        }
        state.tr = Segment { selector: self.request.selector, attributes: task.tss.attributes | BUSY, ..task.tss };
        state.cr0 |= cr0::TS;
        state.dr7 &= !DR7_LOCAL;
        state.rip = task.field(number::EIP);
        let nested = if is_nested { rflags::NT } else { 0 };
        state.rflags = task.field(number::EFLAGS) & RFLAGS_DEFINED | rflags::FIXED | nested;
        // What a segment of 16 bits does not say is all ones, as Bochs has it; the manual does not say.
        let upper = if task.is_wide() { 0 } else { 0xffff_0000 };
        for (index, gpr) in (number::GPRS..).zip(&mut state.gprs[..GPRS]) {
            *gpr = task.field(index) | upper;
        }
        // An NMI's handler begins here, or ends.
        let nmi = self.event == Some(Event::Nmi) || state.blocking.nmi && !is_iret;
        state.blocking = Blocking { nmi, ..Blocking::default() };
        Ok(())
    }

    /// Loads the segment registers, and pushes the error code of what led here.
    fn enter(&mut self, task: &Task) -> Result<(), Fault> {
        let count = segment_count(task.tss);
        let mut selectors = [0; 6];
        for (index, selector) in (number::SEGMENTS..).zip(&mut selectors[..count]) {
            *selector = task.selector(index);
        }
        self.load_segments(selectors, task.selector(number::SEGMENTS + count as u64))?;
        match self.event {
            Some(Event::Exception(Exception { error_code: Some(code), .. })) => {
                let bytes = if task.is_wide() { 4 } else { 2 };
                self.push(&code.to_le_bytes()[..bytes])
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let stack = self.state.segments[SegmentName::Ss as usize];
        let pointer = self.state.gprs[Gpr::Rsp as usize];
        let mask = if stack.is_big() { 0xffff_ffff } else { 0xffff };
        let offset = pointer.wrapping_sub(bytes.len() as u64) & mask;
        if !segment::holds(stack, offset, bytes.len() as u8, true) {
            return Err(self.refusal(Exception::STACK, 0));
        }
        self.memory.push(stack.base.wrapping_add(offset), bytes, dpl(stack))?;
        self.state.gprs[Gpr::Rsp as usize] = pointer & !mask | offset;
        Ok(())
    }

    /// An exception for a selector, in whose error code bit 0 says that a hardware event led to it (7.13).
    fn refusal(&self, kind: Exception, selector: u16) -> Fault {
        let error_code = u32::from(selector & INDEX) | u32::from(self.event.is_some());
        Exception { error_code: Some(error_code), ..kind }.into()
    }
}
