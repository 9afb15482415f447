//! CR0 and CR4: which bits are the guest's own, what it reads of the others, and its writes to them, which exit.
//!
//! 25.6.6 (masks and shadows), 24.8 and 26.3 (what VMX operation fixes, and unrestricted guests' freedom of PE and PG);
//! the rules of MOV to control registers are SDM volume 2's and volume 3, 2.5. CLTS, LMSW and MOV to CR3 or CR8 touch
//! only what the guest owns, and never exit.

use crate::entry::Vmx;
use crate::host_state;
use crate::vmcs::{Field, access_rights, entering};
use addr::Gpa;
use core::ptr;
use vcpu::{Access, Event, Exception, Exit, Gpr, SegmentName, Vcpu, cr0, cr4, efer, rflags};

const CR0_EM: u64 = 1 << 2;
const CR0_AM: u64 = 1 << 18;

/// CR0's bits that the guest changes without an exit. CD and NW are not among them: the processor would really stop
/// caching, and an exit does not bring its caches back (28.5.1).
pub const CR0_GUEST: u64 = cr0::PE | cr0::MP | CR0_EM | cr0::TS | cr0::WP | CR0_AM | cr0::PG;
/// The bits that a guest's CR0 must have set, beyond those (A.7).
const CR0_FIXED: u64 = cr0::NE | cr0::ET;
/// CR0's bits that mean anything; a write to the others does nothing.
const CR0_DEFINED: u64 = CR0_GUEST | CR0_FIXED | cr0::CD | cr0::NW;

/// CR4's bits that select how entries of the page tables are read: the four pointers are read again (4.4.1).
const CR4_PAGING: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP;

/// Bits that a page-directory pointer must have clear (table 4-8), but those above the physical address.
const POINTER_RESERVED: u64 = 0x1e6;

/// CR4's bits that a guest has as the host has them. Without MCE, a machine check in the guest would shut the processor down.
const CR4_HOST: u64 = cr4::VMXE | cr4::MCE;

impl Vmx {
    /// Sets CR0 as the guest reads it.
    pub(crate) fn put_cr0(&mut self, value: u64) {
        self.vmcs.write(Field::GUEST_CR0, value & CR0_GUEST | CR0_FIXED);
        self.vmcs.write(Field::CR0_SHADOW, value);
    }

    /// CR0 as the guest reads it.
    pub(crate) fn cr0(&self) -> u64 {
        if !self.loaded {
            return self.saved.cr0;
        }
        self.vmcs.read(Field::GUEST_CR0) & CR0_GUEST | self.vmcs.read(Field::CR0_SHADOW) & !CR0_GUEST
    }

    /// CR4's bits that the guest changes without an exit: those that it was offered and the host does not need.
    pub(crate) fn cr4_guest(&self) -> u64 {
        self.cr4_offered & !CR4_HOST
    }

    /// Sets CR4 as the guest reads it.
    pub(crate) fn put_cr4(&mut self, value: u64) {
        let (_, _, host) = host_state::control_registers();
        self.vmcs.write(Field::GUEST_CR4, value & self.cr4_guest() | host & CR4_HOST);
        self.vmcs.write(Field::CR4_SHADOW, value);
    }

    /// CR4 as the guest reads it.
    pub(crate) fn cr4(&self) -> u64 {
        if !self.loaded {
            return self.saved.cr4;
        }
        let own = self.cr4_guest();
        self.vmcs.read(Field::GUEST_CR4) & own | self.vmcs.read(Field::CR4_SHADOW) & !own
    }

    /// EFER, and whether the guest is entered in long mode, which must agree (27.3.1.1).
    pub(crate) fn put_efer(&mut self, value: u64) {
        let controls = self.vmcs.read(Field::ENTRY_CONTROLS) as u32 & !entering::GUEST_LONG_MODE;
        let long = if value & efer::LMA != 0 { entering::GUEST_LONG_MODE } else { 0 };
        self.vmcs.write(Field::ENTRY_CONTROLS, (controls | long).into());
        self.vmcs.write(Field::GUEST_EFER, value);
    }

    pub(crate) fn efer(&self) -> u64 {
        if self.loaded { self.vmcs.read(Field::GUEST_EFER) } else { self.saved.efer }
    }

    pub(crate) fn is_real_mode(&self) -> bool {
        self.cr0() & cr0::PE == 0
    }

    /// A write to a bit that the host owns (table 28-3). To CR0 it is carried out, or refused with #GP.
    pub(crate) fn control_register_exit(&mut self, qualification: u64) -> Option<Exit> {
        const MOV_TO: u64 = 0;
        let (register, access) = (qualification & 0xf, qualification >> 4 & 3);
        let source = Gpr::ALL[(qualification >> 8 & 0xf) as usize];
        let value = self.gprs[source as usize];
        let value = if self.is_64_bit_code() { value } else { value & 0xffff_ffff };
        let (cr0, cr4) = match (access, register) {
            (MOV_TO, 0) => (value, self.cr4()),
            (MOV_TO, 4) => (self.cr0(), value),
            _ => return Some(Exit::Unexpected(self.reason.0.into())),
        };
        let table = self.page_directory_pointers_at();
        if self.pages_by_pointers(cr0, cr4, self.efer()) && self.read_guest(table).is_none() {
            // The write is carried out when they are here, as the processor's own would be.
            return Some(Exit::NestedFault { gpa: Gpa::new(table), access: Access::Read, page_walk: true });
        }
        if register == 4 {
            return Some(Exit::Cr4Write { source: Some(source) });
        }
        match (self.write_cr0(value), self.next_rip()) {
            (Ok(()), Some(next_rip)) => self.retire(next_rip, 0),
            _ => {
                self.hot.rflags |= rflags::RF;
                self.inject(Event::Exception(Exception::PROTECTION));
            }
        }
        None
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), Refused> {
        refuse(value >> 32 != 0)?;
        let (old, new) = (self.cr0(), value & CR0_DEFINED | cr0::ET);
        let (efer, cr4) = (self.efer(), self.cr4());
        let (starts, stops) = (new & !old & cr0::PG != 0, old & !new & cr0::PG != 0);
        refuse(new & cr0::PG != 0 && new & cr0::PE == 0)?;
        refuse(new & cr0::NW != 0 && new & cr0::CD == 0)?;
        refuse(starts && efer & efer::LME != 0 && (cr4 & cr4::PAE == 0 || self.has_long_code()))?;
        refuse(stops && (cr4 & cr4::PCIDE != 0 || self.is_64_bit_code()))?;
        if self.pages_by_pointers(new, cr4, efer) && (new ^ old) & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            refuse(!self.load_page_directory_pointers())?;
        }
        self.put_cr0(new);
        if starts && efer & efer::LME != 0 {
            self.put_efer(efer | efer::LMA);
        } else if stops {
            self.put_efer(efer & !efer::LMA);
        }
        if (new ^ old) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_linear();
        }
        Ok(())
    }

    /// Writes CR4, or refuses it with #GP.
    pub(crate) fn change_cr4(&mut self, value: u64) -> Result<(), Refused> {
        let paging = self.paging();
        refuse(!cr4::may_write(&paging, value, self.cr4_offered))?;
        if self.pages_by_pointers(paging.cr0, value, paging.efer) && (value ^ paging.cr4) & CR4_PAGING != 0 {
            refuse(!self.load_page_directory_pointers())?;
        }
        self.put_cr4(value);
        self.flush_linear();
        Ok(())
    }

    /// Whether the guest pages with PAE outside long mode, so that the processor keeps four entries (4.4.1).
    pub(crate) fn uses_page_directory_pointers(&self) -> bool {
        self.pages_by_pointers(self.cr0(), self.cr4(), self.efer())
    }

    fn pages_by_pointers(&self, cr0: u64, cr4: u64, efer: u64) -> bool {
        cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && efer & efer::LME == 0
    }

    /// Reads the four page-directory pointers as MOV to CR3 does; says whether they are valid. The processor does it by
    /// itself but where an exit stands in between.
    pub(crate) fn load_page_directory_pointers(&mut self) -> bool {
        let table = self.page_directory_pointers_at();
        let width = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
        let reserved = POINTER_RESERVED | u64::MAX << width;
        let pointers: [u64; 4] = core::array::from_fn(|index| self.read_guest(table + 8 * index as u64).unwrap_or(0));
        for (index, pointer) in pointers.into_iter().enumerate() {
            self.vmcs.write(Field::guest_pdpte(index), pointer);
        }
        pointers.iter().all(|pointer| pointer & 1 == 0 || pointer & reserved == 0)
    }

    fn page_directory_pointers_at(&self) -> u64 {
        self.vmcs.read(Field::GUEST_CR3) & 0xffff_ffe0
    }

    /// Eight bytes of the guest's memory, aligned, through its EPT (29.3.2).
    fn read_guest(&self, gpa: u64) -> Option<u64> {
        const RIGHTS: u64 = 7;
        const LARGE: u64 = 1 << 7;
        const FRAME: u64 = 0x000f_ffff_ffff_f000;
        // SAFETY: the root and what it leads to are this guest's tables and frames, identity-mapped and alive as long as
        // the vCPU; whatever the guest writes there meanwhile, a volatile read gives some value.
        let read = |at: u64| unsafe { ptr::read_volatile(at as *const u64) };
        let mut table = self.ept_root.as_u64();
        for level in (0..4).rev() {
            let shift = 12 + 9 * level;
            let entry = read(table + (gpa >> shift & 511) * 8);
            if entry & RIGHTS == 0 {
                return None;
            }
            if level == 0 || entry & LARGE != 0 {
                let page = (1 << shift) - 1;
                return Some(read(entry & FRAME & !page | gpa & page));
            }
            table = entry & FRAME;
        }
        None
    }

    /// Whether 64-bit code runs.
    pub(crate) fn is_64_bit_code(&self) -> bool {
        self.efer() & efer::LMA != 0 && self.has_long_code()
    }

    fn has_long_code(&self) -> bool {
        self.vmcs.read(Field::guest_access_rights(SegmentName::Cs as usize)) as u32 & access_rights::LONG != 0
    }
}

/// CR4's bits that this processor has in VMX operation (A.8).
pub(crate) fn cr4_present() -> u64 {
    const CR4_FIXED_1: u32 = 0x489;
    // SAFETY: a processor with VMX has the register.
    unsafe { cpu::msr::read(CR4_FIXED_1) }
}

/// What the guest asked for raises #GP(0).
pub(crate) struct Refused;

fn refuse(wrong: bool) -> Result<(), Refused> {
    if wrong { Err(Refused) } else { Ok(()) }
}
