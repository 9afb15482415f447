//! What each exit means for the machine.

use crate::context::{Cpu, met_by_port};
use crate::run::Thread;
use crate::{End, Host, Machine, Moment};
use addr::Gpa;
use alloc::format;
use chipset::Clock;
use core::cell::Cell;
use insn::task::{self, Outcome, Request};
use insn::{Fault, Opcode};
use vcpu::{
    Access, Event, Exception, Exit, Gpr, PortAccess, PortDirection, ReadyFor, SegmentName, TaskSwitchSource, Window,
    cr4, efer, rflags,
};

/// How many elements of a repeated string instruction are carried out at a time.
const STRING_BUDGET: u32 = 256;

/// What follows from an exit.
pub enum Next {
    /// The vCPU goes on.
    Run,
    /// The host was called.
    Answer,
    /// The host has something to do first.
    Yield,
    /// The vCPU waits for an interrupt.
    Halt,
    /// The host has no memory for it now: the same again later.
    Wait,
    /// The machine ends.
    End(End),
}

impl Machine {
    pub(crate) fn handle(&self, thread: &mut Thread, exit: Exit, now: Moment, host: &mut dyn Host) -> Next {
        let clock = self.clock(now, thread.vcpu.tsc_offset());
        match exit {
            Exit::HostInterrupt => return Next::Answer,
            Exit::InterruptWindow => thread.vcpu.want_interrupt_window(Window::Never),
            Exit::Port(access) => return self.port(thread, access, clock),
            Exit::NestedFault { gpa, access, page_walk } => {
                if self.memory.check(gpa, 1).is_ok() {
                    // It had given that memory up, or it is not here yet.
                    thread.vcpu.park();
                    return if host.back(gpa) { Next::Run } else { Next::Wait };
                }
                return self.nested_fault(thread, gpa, access, page_walk, clock);
            }
            Exit::MsrRead { index } => return self.msr_read(thread, exit, index, clock),
            Exit::MsrWrite { index, value } => return self.msr_write(thread, exit, index, value, clock),
            Exit::Cpuid { leaf, subleaf } => return self.cpuid(thread, exit, leaf, subleaf, clock),
            Exit::SetXcr { index, value } => return self.set_xcr(thread, exit, index, value, clock),
            Exit::Cr4Write { source } => return self.cr4_write(thread, source, clock),
            Exit::Halt => {
                let next = self.skip(thread, exit, clock);
                // A single-step trap after the HLT wakes it at once.
                let halts = matches!(next, Next::Run) && thread.vcpu.ready_for() != ReadyFor::Nothing;
                return if halts { Next::Halt } else { next };
            }
            Exit::Pause => {
                // What it waits for may be in the hands of a vCPU that waits for this CPU.
                host.give_way(None);
                let next = self.skip(thread, exit, clock);
                return if matches!(next, Next::Run) { Next::Yield } else { next };
            }
            Exit::EndOfInterrupt { vector } => thread.lapic.tell_end(vector, &mut thread.effects),
            Exit::SelfIpi { vector } => thread.lapic.send_self_ipi(vector, &mut thread.effects),
            Exit::WriteLogFull => self.note_written(thread),
            // Caches are coherent with everything that this machine has.
            Exit::CacheFlush => return self.skip(thread, exit, clock),
            Exit::Hypercall => {
                let wanted = self.hypercall(thread, host);
                let next = self.skip(thread, exit, clock);
                return if matches!(next, Next::Run) { wanted } else { next };
            }
            Exit::Unoffered(exception) => return raise(thread, exception),
            Exit::TripleFault => return triple_fault(thread),
            Exit::TaskSwitch { selector, source } => return self.switch_task(thread, exit, selector, source, clock),
            Exit::InvalidState(rule) => return crash(thread, &format!("the processor refused to enter it: {rule}")),
            Exit::Fatal(what) => return crash(thread, what),
            Exit::Unexpected(code) => return crash(thread, &format!("an exit that nobody asked for, code {code:#x}")),
        }
        Next::Run
    }

    fn port(&self, thread: &mut Thread, access: PortAccess, clock: Clock) -> Next {
        let PortAccess { port, size, direction, string } = access;
        thread.board_touched = true;
        if string {
            return self.emulate(thread, clock);
        }
        let rax = thread.vcpu.gprs()[Gpr::Rax as usize];
        let mask = u64::MAX >> (64 - 8 * u32::from(size));
        match direction {
            PortDirection::Out => {
                let value = (rax & mask) as u32;
                self.board.lock().port_write(port, size, value, clock);
            }
            PortDirection::In => {
                let value = self.board.lock().port_read(port, size, clock);
                // A four-byte IN clears the upper half; shorter ones keep what is above them.
                let kept = if size == 4 { 0 } else { rax & !mask };
                thread.vcpu.gprs_mut()[Gpr::Rax as usize] = kept | u64::from(value) & mask;
            }
        }
        match thread.vcpu.next_rip() {
            Some(next_rip) => {
                let met = met_by_port(&*thread.vcpu, thread.vcpu.breakpoints(), port, size);
                thread.vcpu.retire(next_rip, met);
                Next::Run
            }
            None => crash(thread, "a port access without the address of the next instruction"),
        }
    }

    fn nested_fault(&self, thread: &mut Thread, gpa: Gpa, access: Access, page_walk: bool, clock: Clock) -> Next {
        if access == Access::Fetch {
            return crash(thread, &format!("it runs code at {gpa}, which is no memory"));
        }
        if page_walk {
            return crash(thread, &format!("its page tables are at {gpa}, which is no memory"));
        }
        if thread.vcpu.ready_for() == ReadyFor::Nothing {
            // RIP is not at an instruction that touched the address: the processor did, to deliver an event.
            return crash(thread, &format!("an event is delivered through {gpa}, which is no memory"));
        }
        self.emulate(thread, clock)
    }

    /// Carries out the instruction at RIP, which touches a device.
    fn emulate(&self, thread: &mut Thread, clock: Clock) -> Next {
        // In xAPIC mode it may be the timer's register, or one by which the local APIC is addressed.
        let is_xapic = thread.lapic.mmio_base().is_some();
        thread.timer_changed |= is_xapic;
        thread.board_touched = true;
        let breakpoints = thread.vcpu.breakpoints();
        let mut cpu = Cpu { breakpoints, ..self.cpu(thread, clock) };
        let completed = insn::step(&mut cpu, STRING_BUDGET);
        let (met, is_absent) = (cpu.met, cpu.is_absent.get());
        if is_xapic {
            self.readdress(thread);
        }
        match completed {
            Ok(completed) => {
                let is_repeated = completed.next_rip == thread.vcpu.rip();
                thread.vcpu.retire(completed.next_rip, met);
                if is_repeated {
                    // Between two elements what is pushed has RF set, and no breakpoint stops the next (SDM volume 3,
                    // 19.3.1.1).
                    thread.vcpu.set_rflags(thread.vcpu.rflags() | rflags::RF);
                }
                Next::Run
            }
            // Operands are checked before the first is used: nothing has happened but whole elements of a string.
            Err(_) if is_absent => Next::Wait,
            Err(fault) => self.fault(thread, fault),
        }
    }

    fn msr_read(&self, thread: &mut Thread, exit: Exit, index: u32, clock: Clock) -> Next {
        match self.read_msr(thread, index, clock) {
            Ok(value) => {
                let gprs = thread.vcpu.gprs_mut();
                gprs[Gpr::Rax as usize] = value & 0xffff_ffff;
                gprs[Gpr::Rdx as usize] = value >> 32;
                self.skip(thread, exit, clock)
            }
            Err(_) => raise(thread, Exception::PROTECTION),
        }
    }

    fn msr_write(&self, thread: &mut Thread, exit: Exit, index: u32, value: u64, clock: Clock) -> Next {
        if !self.registers_what_is_here(index, value) {
            return Next::Wait;
        }
        let mut effects = core::mem::take(&mut thread.effects);
        let written = self.write_msr(thread, index, value, clock, &mut effects);
        thread.effects = effects;
        match written {
            Ok(()) => self.skip(thread, exit, clock),
            Err(_) => raise(thread, Exception::PROTECTION),
        }
    }

    fn cpuid(&self, thread: &mut Thread, exit: Exit, leaf: u32, subleaf: u32, clock: Clock) -> Next {
        let paging = thread.vcpu.paging();
        let result = self.profile.leaf(leaf, subleaf, thread.index as u32, &paging, thread.xcr0);
        let result = if thread.lapic.is_enabled() { result } else { result.without_apic(leaf) };
        let gprs = thread.vcpu.gprs_mut();
        gprs[Gpr::Rax as usize] = result.eax.into();
        gprs[Gpr::Rbx as usize] = result.ebx.into();
        gprs[Gpr::Rcx as usize] = result.ecx.into();
        gprs[Gpr::Rdx as usize] = result.edx.into();
        self.skip(thread, exit, clock)
    }

    fn set_xcr(&self, thread: &mut Thread, exit: Exit, index: u32, value: u64, clock: Clock) -> Next {
        let paging = thread.vcpu.paging();
        if paging.cr4 & cr4::OSXSAVE == 0 {
            return raise(thread, Exception::UNDEFINED);
        }
        if index != 0 || paging.cpl != 0 || !self.profile.allows_xcr0(value) {
            return raise(thread, Exception::PROTECTION);
        }
        thread.xcr0 = value;
        thread.vcpu.set_xcr0(value);
        self.skip(thread, exit, clock)
    }

    fn cr4_write(&self, thread: &mut Thread, source: Option<Gpr>, clock: Clock) -> Next {
        let is_wide = thread.vcpu.paging().efer & efer::LMA != 0 && thread.vcpu.segment(SegmentName::Cs).is_long();
        let mask = if is_wide { u64::MAX } else { 0xffff_ffff };
        let (value, next_rip) = match (source, thread.vcpu.next_rip()) {
            (Some(source), Some(next_rip)) => (thread.vcpu.gprs()[source as usize] & mask, next_rip),
            _ => match insn::cr4_write(&self.cpu(thread, clock)) {
                Ok(found) => found,
                Err(fault) => return self.fault(thread, fault),
            },
        };
        if !thread.vcpu.write_cr4(value) {
            return raise(thread, Exception::PROTECTION);
        }
        thread.vcpu.retire(next_rip, 0);
        Next::Run
    }

    fn switch_task(
        &self,
        thread: &mut Thread,
        exit: Exit,
        selector: u16,
        source: TaskSwitchSource,
        clock: Clock,
    ) -> Next {
        let mut state = thread.vcpu.state();
        let next_rip = match state.waiting {
            // No instruction asks for it.
            Some(_) => None,
            None => match self.next_rip(thread, exit, clock) {
                Ok(next_rip) => Some(next_rip),
                Err(next) => return next,
            },
        };
        let request = Request { selector, source, next_rip };
        let Ok(outcome) = task::switch(&mut self.cpu(thread, clock), &mut state, request) else {
            return Next::Wait;
        };
        thread.vcpu.set_state(&state);
        match outcome {
            Outcome::Runs => Next::Run,
            Outcome::Raises(exception) => raise(thread, exception),
            Outcome::ShutsDown => triple_fault(thread),
        }
    }

    /// Goes on behind the instruction that exited.
    fn skip(&self, thread: &mut Thread, exit: Exit, clock: Clock) -> Next {
        match self.next_rip(thread, exit, clock) {
            Ok(next_rip) => {
                thread.vcpu.retire(next_rip, 0);
                Next::Run
            }
            Err(next) => next,
        }
    }

    /// Where the instruction that exited ends, found where the processor does not say it.
    fn next_rip(&self, thread: &mut Thread, exit: Exit, clock: Clock) -> Result<u64, Next> {
        if let Some(next_rip) = thread.vcpu.next_rip() {
            return Ok(next_rip);
        }
        let Some(opcode) = Opcode::of(&exit) else {
            return Err(crash(thread, "an exit whose instruction cannot be found"));
        };
        let mut code_page = thread.code_page;
        let cpu = self.cpu(thread, clock);
        // The processor has just fetched it through the same tables, so that it is here.
        let next_rip = insn::next_rip(&cpu, opcode, &mut code_page);
        thread.code_page = code_page;
        next_rip.map_err(|fault| self.fault(thread, fault))
    }

    fn fault(&self, thread: &mut Thread, fault: Fault) -> Next {
        match fault {
            Fault::Exception(exception) => raise(thread, exception),
            Fault::Unavailable => Next::Run,
            Fault::Unsupported(bytes) => {
                crash(thread, &format!("an instruction on a device that is not supported yet: {bytes:02x?}"))
            }
        }
    }

    fn cpu<'a>(&'a self, thread: &'a mut Thread, clock: Clock) -> Cpu<'a> {
        let (vcpu, lapic, effects) = (&mut *thread.vcpu, &mut thread.lapic, &mut thread.effects);
        Cpu { machine: self, vcpu, lapic, clock, effects, breakpoints: None, met: 0, is_absent: Cell::new(false) }
    }
}

/// Raises an exception at the instruction that exited. A fault's handler finds RF set in what was pushed, so that the
/// instruction's breakpoint is not met again when it runs again (SDM volume 3, 19.3.1.1); injection leaves that to us.
fn raise(thread: &mut Thread, exception: Exception) -> Next {
    if exception.is_fault() {
        thread.vcpu.set_rflags(thread.vcpu.rflags() | rflags::RF);
    }
    thread.vcpu.inject(Event::Exception(exception));
    Next::Run
}

fn triple_fault(thread: &Thread) -> Next {
    Next::End(End::TripleFault(format!("vCPU {} at {:#x}", thread.index, thread.vcpu.rip())))
}

fn crash(thread: &Thread, why: &str) -> Next {
    let rip = thread.vcpu.rip();
    Next::End(End::Crash(format!("vCPU {} at {rip:#x}: {why}", thread.index)))
}
