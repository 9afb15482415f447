//! The walk of the guest's own page tables: no paging, 32-bit with 4 MiB pages (PSE-36), PAE, 4-level and 5-level.
//!
//! [`translate`] walks as the processor does, accessed and dirty bits included; [`probe`] only looks. `fetch` and
//! `length` probe (the processor fetched the instruction already), `memory` translates each operand.
//!
//! Rules: SDM volume 3, chapter 5 (paging), APM volume 2, chapter 5.

use addr::Gpa;
use vcpu::{Access, Exception, Paging, cr0, cr4, efer, rflags};

use crate::{Context, Fault, Unavailable};

/// Bits of an entry (SDM volume 3, tables 5-4 to 5-20).
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const KEY_SHIFT: u32 = 59;
const NO_EXECUTE: u64 = 1 << 63;
/// What a page-directory pointer of PAE paging has not, but bit 5: QEMU's processor sets it there under nested paging, and
/// refuses it as little.
const POINTER_RESERVED: u64 = 0x1c6;

/// Bits of the page-fault error code (SDM volume 3, 5.7).
const ERROR_PROTECTION: u32 = 1 << 0;
const ERROR_WRITE: u32 = 1 << 1;
const ERROR_USER: u32 = 1 << 2;
const ERROR_RESERVED: u32 = 1 << 3;
const ERROR_FETCH: u32 = 1 << 4;
const ERROR_KEY: u32 = 1 << 5;

/// How often a walk starts again because the guest changed an entry under it. The processor would do so for ever.
const RACES_MAX: u32 = 8;

/// On whose behalf an access is made (SDM volume 3, 5.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// A program's access at CPL 3.
    User,
    /// A program's access at CPL 0 to 2: RFLAGS.AC suspends SMAP.
    Supervisor,
    /// The processor's own access to a system structure, at any CPL: nothing suspends SMAP.
    Implicit,
}

impl Privilege {
    /// That of the program which runs now.
    pub const fn of(paging: &Paging) -> Self {
        if paging.cpl == 3 { Self::User } else { Self::Supervisor }
    }
}

/// Translates a linear address without changing anything in the guest.
///
/// Bits 63:32 of `gva` are ignored outside long mode. Where a table lies outside RAM its entries read as all ones.
///
/// # Errors
/// #PF with its error code, or #GP(0) for an address that is not canonical.
pub fn probe<C: Context>(context: &C, gva: u64, access: Access, privilege: Privilege) -> Result<Gpa, Exception> {
    walk(context, context.paging(), gva, access, privilege, &mut Path::new())
}

/// Translates a linear address and sets the accessed and dirty bits on its path, as an access by the processor does.
///
/// # Errors
/// As [`probe`], and [`Fault::Unavailable`] where an entry cannot be written or the guest keeps changing it.
pub fn translate<C: Context>(context: &mut C, gva: u64, access: Access, privilege: Privilege) -> Result<Gpa, Fault> {
    let paging = context.paging();
    translate_by(context, paging, gva, access, privilege)
}

/// The same by control registers that the vCPU has not yet.
pub(crate) fn translate_by<C: Context>(
    context: &mut C,
    paging: Paging,
    gva: u64,
    access: Access,
    privilege: Privilege,
) -> Result<Gpa, Fault> {
    for _ in 0..RACES_MAX {
        let mut path = Path::new();
        let gpa = walk(context, paging, gva, access, privilege, &mut path)?;
        if path.mark(context, access == Access::Write)? {
            return Ok(gpa);
        }
    }
    Err(Fault::Unavailable)
}

/// Whether a load of CR3 goes without #GP: with PAE outside long mode it reads the page-directory pointers (SDM volume 3,
/// 5.4.1).
pub(crate) fn can_load<C: Context>(context: &C, paging: Paging) -> bool {
    let has_pointers = paging.cr0 & cr0::PG != 0 && paging.cr4 & cr4::PAE != 0 && paging.efer & efer::LMA == 0;
    let walk = Walk { context, paging, gva: 0, access: Access::Read, privilege: Privilege::Implicit };
    !has_pointers || (0..4).all(|index| walk.is_valid_pointer(walk.pointer(index)))
}

/// Whether a linear address is canonical with 48 or, by CR4.LA57, 57 bits (SDM volume 1, 3.3.7.1).
pub(crate) const fn is_canonical(paging: &Paging, gva: u64) -> bool {
    vcpu::is_canonical(gva, if paging.cr4 & cr4::LA57 != 0 { 57 } else { 48 })
}

/// The entries that led to a page, leaf last, with what they held: those that have an accessed bit.
struct Path {
    entries: [(u64, u64); 5],
    count: usize,
    entry_bytes: u8,
}

impl Path {
    const fn new() -> Self {
        Self { entries: [(0, 0); 5], count: 0, entry_bytes: 8 }
    }

    fn push(&mut self, at: u64, entry: u64) {
        self.entries[self.count] = (at, entry);
        self.count += 1;
    }

    /// Sets the bits that an access leaves behind. False when an entry is no longer what the walk saw.
    fn mark<C: Context>(&self, context: &mut C, write: bool) -> Result<bool, Unavailable> {
        for (index, &(at, entry)) in self.entries[..self.count].iter().enumerate() {
            let dirties = write && index + 1 == self.count;
            let marked = entry | ACCESSED | if dirties { DIRTY } else { 0 };
            if marked != entry && !context.compare_exchange(Gpa::new(at), self.entry_bytes, entry, marked)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn walk<C: Context>(
    context: &C,
    paging: Paging,
    gva: u64,
    access: Access,
    privilege: Privilege,
    path: &mut Path,
) -> Result<Gpa, Exception> {
    let walk = Walk { context, paging, gva, access, privilege };
    if paging.cr0 & cr0::PG == 0 {
        Ok(Gpa::new(gva & 0xffff_ffff))
    } else if paging.efer & efer::LMA != 0 {
        walk.long(path)
    } else {
        let walk = Walk { gva: gva & 0xffff_ffff, ..walk };
        if paging.cr4 & cr4::PAE != 0 { walk.pae(path) } else { walk.legacy(path) }
    }
}

/// One walk in progress.
struct Walk<'a, C> {
    context: &'a C,
    paging: Paging,
    gva: u64,
    access: Access,
    privilege: Privilege,
}

impl<C: Context> Walk<'_, C> {
    /// 4-level and 5-level paging (SDM volume 3, 5.5).
    fn long(&self, path: &mut Path) -> Result<Gpa, Exception> {
        if !is_canonical(&self.paging, self.gva) {
            return Err(Exception::PROTECTION);
        }
        let top_shift = if self.paging.cr4 & cr4::LA57 != 0 { 48 } else { 39 };
        let above = (1 << 52) - (1 << self.physical_address_bits());
        let reserved = above | self.reserved_no_execute();
        self.wide(path, self.paging.cr3 & ADDRESS, top_shift, reserved)
    }

    /// PAE paging (SDM volume 3, 5.4). With nested paging the processor reads the four PDPTEs from memory in each
    /// walk (APM volume 2, 15.25.10); they have no rights and no accessed bit.
    fn pae(&self, path: &mut Path) -> Result<Gpa, Exception> {
        let above = !((1 << self.physical_address_bits()) - 1);
        let pointer = self.pointer(self.gva >> 30);
        if pointer & PRESENT == 0 {
            return Err(self.fault(0));
        }
        if !self.is_valid_pointer(pointer) {
            return Err(self.fault(ERROR_PROTECTION | ERROR_RESERVED));
        }
        self.wide(path, pointer & ADDRESS, 21, above & !NO_EXECUTE | self.reserved_no_execute())
    }

    fn pointer(&self, index: u64) -> u64 {
        self.read_wide((self.paging.cr3 & 0xffff_ffe0) + 8 * index)
    }

    fn is_valid_pointer(&self, pointer: u64) -> bool {
        let above = !((1 << self.physical_address_bits()) - 1);
        pointer & PRESENT == 0 || pointer & (above | POINTER_RESERVED) == 0
    }

    /// The levels with 512 entries of 8 bytes, from the table whose entries each cover `1 << shift` bytes.
    fn wide(&self, path: &mut Path, mut table: u64, mut shift: u32, reserved: u64) -> Result<Gpa, Exception> {
        let mut rights = Rights::new();
        loop {
            let at = table + 8 * (self.gva >> shift & 0x1ff);
            let entry = self.read_wide(at);
            if entry & PRESENT == 0 {
                return Err(self.fault(0));
            }
            let page_bytes = 1u64 << shift;
            let is_large = shift > 12 && entry & LARGE != 0;
            let reserved_large = if !is_large {
                0
            } else if shift > 30 {
                LARGE
            } else {
                page_bytes - (1 << 13)
            };
            if entry & (reserved | reserved_large) != 0 {
                return Err(self.fault(ERROR_PROTECTION | ERROR_RESERVED));
            }
            path.push(at, entry);
            rights.narrow(entry);
            if is_large || shift == 12 {
                self.check(rights, entry >> KEY_SHIFT & 0xf)?;
                let offset = page_bytes - 1;
                return Ok(Gpa::new(entry & ADDRESS & !offset | self.gva & offset));
            }
            table = entry & ADDRESS;
            shift -= 9;
        }
    }

    /// 32-bit paging (SDM volume 3, 5.3).
    fn legacy(&self, path: &mut Path) -> Result<Gpa, Exception> {
        path.entry_bytes = 4;
        let mut rights = Rights::new();
        let at = (self.paging.cr3 & 0xffff_f000) + 4 * (self.gva >> 22);
        let directory = self.read_narrow(at)?;
        path.push(at, directory);
        rights.narrow(directory);
        if directory & LARGE != 0 && self.paging.cr4 & cr4::PSE != 0 {
            let base = directory & 0xffc0_0000 | (directory >> 13 & 0xff) << 32;
            if directory & 1 << 21 != 0 || base >> self.physical_address_bits() != 0 {
                return Err(self.fault(ERROR_PROTECTION | ERROR_RESERVED));
            }
            self.check(rights, 0)?;
            return Ok(Gpa::new(base | self.gva & 0x3f_ffff));
        }
        let at = (directory & 0xffff_f000) + 4 * (self.gva >> 12 & 0x3ff);
        let page = self.read_narrow(at)?;
        path.push(at, page);
        rights.narrow(page);
        self.check(rights, 0)?;
        Ok(Gpa::new(page & 0xffff_f000 | self.gva & 0xfff))
    }

    fn read_wide(&self, at: u64) -> u64 {
        self.context.ram_u64(Gpa::new(at)).unwrap_or(u64::MAX)
    }

    /// A present 4-byte entry, zero-extended: the entries' rights then have no NX.
    fn read_narrow(&self, at: u64) -> Result<u64, Exception> {
        let entry = self.read_wide(at & !7) >> (8 * (at & 4)) & 0xffff_ffff;
        if entry & PRESENT == 0 { Err(self.fault(0)) } else { Ok(entry) }
    }

    /// Kept to what the formats can express, whatever the context says.
    fn physical_address_bits(&self) -> u32 {
        self.context.physical_address_bits().clamp(32, 52)
    }

    fn reserved_no_execute(&self) -> u64 {
        if self.paging.efer & efer::NXE == 0 { NO_EXECUTE } else { 0 }
    }

    /// Whether the access has the right to the page (SDM volume 3, 5.6.1).
    fn check(&self, rights: Rights, key: u64) -> Result<(), Exception> {
        let is_user = self.privilege == Privilege::User;
        let is_allowed = if self.access == Access::Fetch {
            let smep = self.paging.cr4 & cr4::SMEP != 0;
            !rights.no_execute && if is_user { rights.user } else { !(rights.user && smep) }
        } else {
            let write_protect = is_user || self.paging.cr0 & cr0::WP != 0;
            let is_readable = if is_user { rights.user } else { !(rights.user && self.smap()) };
            is_readable && (self.access == Access::Read || rights.writable || !write_protect)
        };
        let by_key = if rights.user && self.key_denies(key) { ERROR_KEY } else { 0 };
        if is_allowed && by_key == 0 { Ok(()) } else { Err(self.fault(ERROR_PROTECTION | by_key)) }
    }

    /// Whether SMAP keeps a supervisor access from user pages.
    fn smap(&self) -> bool {
        let suspended = self.privilege == Privilege::Supervisor && self.context.rflags() & rflags::AC != 0;
        self.paging.cr4 & cr4::SMAP != 0 && !suspended
    }

    /// Whether PKRU keeps a data access from the user pages of a key (SDM volume 3, 5.6.2).
    fn key_denies(&self, key: u64) -> bool {
        let has_keys = self.paging.cr4 & cr4::PKE != 0 && self.paging.efer & efer::LMA != 0;
        if !has_keys || self.access == Access::Fetch {
            return false;
        }
        let denied = self.context.pkru() >> (2 * key) & 3;
        let write_protect = self.privilege == Privilege::User || self.paging.cr0 & cr0::WP != 0;
        denied & 1 != 0 || denied & 2 != 0 && self.access == Access::Write && write_protect
    }

    /// #PF, `reason` being what the walk found (SDM volume 3, 5.7).
    fn fault(&self, reason: u32) -> Exception {
        let has_fetch_bit =
            self.paging.cr4 & cr4::SMEP != 0 || self.paging.cr4 & cr4::PAE != 0 && self.paging.efer & efer::NXE != 0;
        let access = match self.access {
            Access::Read => 0,
            Access::Write => ERROR_WRITE,
            Access::Fetch if has_fetch_bit => ERROR_FETCH,
            Access::Fetch => 0,
        };
        let user = if self.privilege == Privilege::User { ERROR_USER } else { 0 };
        Exception::page_fault(reason | access | user, self.gva)
    }
}

/// What all the entries of a path together allow.
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    user: bool,
    no_execute: bool,
}

impl Rights {
    const fn new() -> Self {
        Self { writable: true, user: true, no_execute: false }
    }

    fn narrow(&mut self, entry: u64) {
        self.writable &= entry & WRITABLE != 0;
        self.user &= entry & USER != 0;
        self.no_execute |= entry & NO_EXECUTE != 0;
    }
}

#[cfg(test)]
mod tests;
