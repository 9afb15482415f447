//! What `insn` needs of a vCPU and its machine, joined for the time of one instruction.

use crate::Machine;
use crate::vectors::Vectors;
use addr::Gpa;
use alloc::vec::Vec;
use chipset::{Clock, Effect, Lapic};
use core::cell::Cell;
use insn::{Context, Unavailable, VECTOR_BYTES};
use vcpu::{Access, Breakpoints, Gpr, Paging, Segment, SegmentName, Vcpu, cr4};

/// A vCPU at an instruction, with everything that the instruction can reach.
pub struct Cpu<'a> {
    pub machine: &'a Machine,
    pub vcpu: &'a mut dyn Vcpu,
    pub lapic: &'a mut Lapic,
    pub clock: Clock,
    pub effects: &'a mut Vec<Effect>,
    /// What is armed, and what of it the instruction has met.
    pub breakpoints: Option<Breakpoints>,
    pub met: u64,
    /// It needs memory that is not here yet.
    pub is_absent: Cell<bool>,
}

impl Cpu<'_> {
    fn meet_port(&mut self, port: u16, size: u8) {
        self.met |= met_by_port(self.vcpu, self.breakpoints, port, size);
    }

    /// The vector registers, taken out of the processor.
    fn vectors(&mut self) -> Vectors {
        Vectors::new(self.vcpu.extended_state(), &self.machine.profile)
    }

    fn put_vectors(&mut self, vectors: Vectors) {
        let loaded = self.vcpu.set_extended_state(&vectors.into_area());
        debug_assert!(loaded.is_ok(), "it is the processor's own, and has no component that its guest has not");
    }

    /// Notes where memory is not here yet.
    fn reach(&self, gpa: Gpa, bytes: u64) -> Result<(), Unavailable> {
        if self.machine.memory.is_here(gpa, bytes) {
            return Ok(());
        }
        self.is_absent.set(true);
        Err(Unavailable)
    }

    /// The offset into the local APIC's page, where that is mapped.
    fn lapic_offset(&self, gpa: Gpa) -> Option<u16> {
        let offset = gpa.as_u64().checked_sub(self.lapic.mmio_base()?.as_u64())?;
        (offset < addr::PAGE_BYTES).then_some(offset as u16)
    }
}

/// The breakpoints that an access to a port meets. Without CR4.DE there are none on ports.
pub fn met_by_port(vcpu: &dyn Vcpu, breakpoints: Option<Breakpoints>, port: u16, size: u8) -> u64 {
    match breakpoints {
        Some(breakpoints) if vcpu.paging().cr4 & cr4::DE != 0 => breakpoints.port(port, size),
        _ => 0,
    }
}

impl Context for Cpu<'_> {
    fn gpr(&self, gpr: Gpr) -> u64 {
        self.vcpu.gprs()[gpr as usize]
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.vcpu.gprs_mut()[gpr as usize] = value;
    }

    fn vector(&mut self, number: usize) -> [u8; VECTOR_BYTES] {
        self.vectors().get(number)
    }

    fn set_vector(&mut self, number: usize, value: [u8; VECTOR_BYTES]) {
        let mut vectors = self.vectors();
        vectors.set(number, value);
        self.put_vectors(vectors);
    }

    fn replace_vector(&mut self, number: usize, value: [u8; VECTOR_BYTES]) {
        let mut vectors = self.vectors();
        vectors.set(number, value);
        vectors.clear_above(number);
        self.put_vectors(vectors);
    }

    fn rip(&self) -> u64 {
        self.vcpu.rip()
    }

    fn rflags(&self) -> u64 {
        self.vcpu.rflags()
    }

    fn set_rflags(&mut self, value: u64) {
        self.vcpu.set_rflags(value);
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.vcpu.segment(name)
    }

    fn paging(&self) -> Paging {
        self.vcpu.paging()
    }

    fn pkru(&self) -> u32 {
        self.vcpu.pkru()
    }

    fn physical_address_bits(&self) -> u32 {
        self.machine.profile.physical_address_bits()
    }

    fn check(&self, gpa: Gpa, size: u8) -> Result<(), Unavailable> {
        self.reach(gpa, size.into())
    }

    fn load(&mut self, gpa: Gpa, size: u8) -> Result<u64, Unavailable> {
        self.reach(gpa, size.into())?;
        if let Ok(value) = self.machine.memory.load(gpa, size.into()) {
            return Ok(value);
        }
        if let Some(offset) = self.lapic_offset(gpa) {
            return Ok(self.lapic.mmio_read(offset, size, self.clock).into());
        }
        Ok(self.machine.board.lock().mmio_read(gpa, size))
    }

    fn store(&mut self, gpa: Gpa, size: u8, value: u64) -> Result<(), Unavailable> {
        self.reach(gpa, size.into())?;
        if self.machine.memory.store(gpa, size.into(), value).is_ok() {
            return Ok(());
        }
        match self.lapic_offset(gpa) {
            Some(offset) => self.lapic.mmio_write(offset, size, value as u32, self.clock, self.effects),
            None => self.machine.board.lock().mmio_write(gpa, size, value),
        }
        Ok(())
    }

    fn compare_exchange(&mut self, gpa: Gpa, size: u8, expected: u64, new: u64) -> Result<bool, Unavailable> {
        self.reach(gpa, size.into())?;
        match self.machine.memory.compare_exchange(gpa, size.into(), expected, new) {
            Ok(equal) => Ok(equal),
            Err(_) => self.store(gpa, size, new).map(|()| true),
        }
    }

    fn ram(&self, gpa: Gpa, into: &mut [u8]) -> bool {
        self.reach(gpa, into.len() as u64).is_ok() && self.machine.memory.read(gpa, into).is_ok()
    }

    fn ram_u64(&self, gpa: Gpa) -> Option<u64> {
        self.reach(gpa, 8).ok()?;
        self.machine.memory.load(gpa, 8).ok()
    }

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.meet_port(port, size);
        self.machine.board.lock().port_read(port, size, self.clock)
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        self.meet_port(port, size);
        self.machine.board.lock().port_write(port, size, value, self.clock);
    }

    fn touch(&mut self, linear: u64, size: u8, access: Access) {
        if let Some(breakpoints) = self.breakpoints {
            self.met |= breakpoints.data(linear, size, access == Access::Write);
        }
    }

    fn lacks_memory(&self) -> bool {
        self.is_absent.get()
    }

    fn is_trapped(&self) -> bool {
        self.met != 0
    }
}
