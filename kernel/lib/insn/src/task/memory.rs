//! The guest's memory during a task switch: what is written waits, seen by nobody else, until nothing can go wrong.

use addr::Gpa;
use alloc::collections::BTreeMap;
use vcpu::{Access, Exception, Paging, VcpuState};

use crate::paging::{self, Privilege};
use crate::{Context, Fault, Unavailable};

/// Where a descriptor has its type, S, DPL and P.
const RIGHTS: u64 = 5;
/// Linear addresses outside 64-bit mode.
const LINEAR: u64 = 0xffff_ffff;

/// Memory by linear addresses, through page tables that change on the way.
pub(super) struct Memory<'a, C> {
    context: &'a mut C,
    paging: Paging,
    written: BTreeMap<Gpa, u8>,
}

impl<'a, C: Context> Memory<'a, C> {
    pub(super) fn new(context: &'a mut C, state: &VcpuState) -> Self {
        let &VcpuState { cr0, cr3, cr4, efer, .. } = state;
        Self { context, paging: Paging { cr0, cr3, cr4, efer, cpl: 0 }, written: BTreeMap::new() }
    }

    /// Goes through other page tables from now on. False where their page-directory pointers are not valid.
    pub(super) fn use_tables(&mut self, cr3: u64) -> bool {
        self.paging.cr3 = cr3;
        paging::can_load(self.context, self.paging)
    }

    /// Reads as the processor reads its own structures.
    pub(super) fn read(&mut self, linear: u64, into: &mut [u8]) -> Result<(), Fault> {
        for (offset, byte) in (0..).zip(into) {
            let gpa = self.translate(linear.wrapping_add(offset), Access::Read, Privilege::Implicit)?;
            *byte = match self.written.get(&gpa) {
                Some(&written) => written,
                None => self.context.load(gpa, 1)? as u8,
            };
        }
        Ok(())
    }

    /// Writes likewise.
    pub(super) fn write(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.write_by(linear, bytes, Privilege::Implicit)
    }

    /// Writes to the stack of a program at a privilege level.
    pub(super) fn push(&mut self, linear: u64, bytes: &[u8], level: u16) -> Result<(), Fault> {
        self.write_by(linear, bytes, if level == 3 { Privilege::User } else { Privilege::Supervisor })
    }

    /// Changes the rights of the descriptor at an address: the byte with its type.
    pub(super) fn change_rights(&mut self, descriptor: u64, change: impl Fn(u8) -> u8) -> Result<(), Fault> {
        let mut rights = [0];
        let at = descriptor.wrapping_add(RIGHTS);
        self.read(at, &mut rights)?;
        self.write(at, &[change(rights[0])])
    }

    /// Tells exceptions of the guest's from what makes it try again: memory that is not here, page tables among it.
    pub(super) fn settle<T>(&self, result: Result<T, Fault>) -> Result<Result<T, Exception>, Unavailable> {
        match result {
            _ if self.context.lacks_memory() => Err(Unavailable),
            Ok(value) => Ok(Ok(value)),
            Err(Fault::Exception(exception)) => Ok(Err(exception)),
            Err(Fault::Unavailable | Fault::Unsupported(_)) => Err(Unavailable),
        }
    }

    /// Lets the others see what was written.
    pub(super) fn write_back(self) -> Result<(), Unavailable> {
        self.written.into_iter().try_for_each(|(gpa, byte)| self.context.store(gpa, 1, byte.into()))
    }

    fn write_by(&mut self, linear: u64, bytes: &[u8], privilege: Privilege) -> Result<(), Fault> {
        for (offset, &byte) in (0..).zip(bytes) {
            let gpa = self.translate(linear.wrapping_add(offset), Access::Write, privilege)?;
            self.context.check(gpa, 1)?;
            self.written.insert(gpa, byte);
        }
        Ok(())
    }

    fn translate(&mut self, linear: u64, access: Access, privilege: Privilege) -> Result<Gpa, Fault> {
        paging::translate_by(self.context, self.paging, linear & LINEAR, access, privilege)
    }
}
