//! The virtual machine control structure: its region, its fields' encodings (appendix B), and how both are reached.

use alloc::boxed::Box;
use core::arch::asm;
use cpu::msr;

/// IA32_VMX_BASIC (A.1): bits 30:0 are the revision of the regions.
pub const BASIC: u32 = 0x480;

/// A VMCS or VMXON region (25.2, 25.11.5). Only its first word has a known form.
#[repr(C, align(4096))]
pub struct Region {
    revision: u32,
    _opaque: [u8; 4092],
}

impl Region {
    /// A region of this processor's revision.
    pub fn boxed() -> Box<Self> {
        // SAFETY: every field is an integer, for which all zeroes is a value; a processor with VMX has the register.
        unsafe {
            let mut region: Box<Self> = Box::new_zeroed().assume_init();
            region.revision = msr::read(BASIC) as u32 & 0x7fff_ffff;
            region
        }
    }
}

/// A VMCS that this vCPU owns. Fields can be reached only on the processor where it was last made current.
pub struct Vmcs(Box<Region>);

impl Vmcs {
    /// A VMCS that no processor knows yet.
    pub fn new() -> Self {
        Self(Region::boxed())
    }

    /// Makes it this processor's current one, its launch state clear (25.11.3).
    pub fn make_current(&mut self) {
        self.clear();
        let address = &raw const *self.0 as u64;
        let failed: u8;
        // SAFETY: VMX is on, and the region is a page of its own that lives until it is cleared again.
        unsafe { asm!("vmptrld [{}]", "setbe {}", in(reg) &address, out(reg_byte) failed, options(nostack)) }
        assert!(failed == 0, "VMPTRLD takes a region of ours");
    }

    /// Writes back what the processor keeps of it, so that another may use it.
    pub fn clear(&mut self) {
        let address = &raw mut *self.0 as u64;
        let failed: u8;
        // SAFETY: as in `make_current`.
        unsafe { asm!("vmclear [{}]", "setbe {}", in(reg) &address, out(reg_byte) failed, options(nostack)) }
        assert!(failed == 0, "VMCLEAR takes a region of ours");
    }

    /// Reads a field.
    pub fn read(&self, field: Field) -> u64 {
        let value;
        let failed: u8;
        // SAFETY: reads the current VMCS, which is this one: see `Vmx::loaded`.
        unsafe {
            asm!("vmread {}, {}", "setbe {}", out(reg) value, in(reg) u64::from(field.0), out(reg_byte) failed,
                options(nomem, nostack));
        }
        assert!(failed == 0, "VMREAD of a field that the processor has");
        value
    }

    /// Writes a field.
    pub fn write(&mut self, field: Field, value: u64) {
        let failed: u8;
        // SAFETY: writes the current VMCS, which is this one. What it makes the guest do stays inside its EPT, and the
        // host's part is written by `host_state` alone.
        unsafe {
            asm!("vmwrite {}, {}", "setbe {}", in(reg) u64::from(field.0), in(reg) value, out(reg_byte) failed,
                options(nomem, nostack));
        }
        assert!(failed == 0, "VMWRITE to a field that the processor has");
    }
}

/// A field's encoding (25.11.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field(u32);

/// The eight segment registers, as the encodings number them: ES, CS, SS, DS, FS, GS, LDTR, TR.
impl Field {
    pub const fn guest_selector(segment: usize) -> Self {
        Self(0x0800 + 2 * segment as u32)
    }

    pub const fn guest_limit(segment: usize) -> Self {
        Self(0x4800 + 2 * segment as u32)
    }

    pub const fn guest_access_rights(segment: usize) -> Self {
        Self(0x4814 + 2 * segment as u32)
    }

    pub const fn guest_base(segment: usize) -> Self {
        Self(0x6806 + 2 * segment as u32)
    }

    /// ES to GS, then TR: there is no LDTR of the host's.
    pub const fn host_selector(segment: usize) -> Self {
        Self(0x0c00 + 2 * segment as u32)
    }

    /// A quarter of the bitmap of the vectors whose EOI exits, 0 to 3.
    pub const fn eoi_exits(quarter: usize) -> Self {
        Self(0x201c + 2 * quarter as u32)
    }

    /// A page-directory pointer, 0 to 3.
    pub const fn guest_pdpte(index: usize) -> Self {
        Self(0x280a + 2 * index as u32)
    }
}

/// Segments beyond those that a program can name.
pub const LDTR: usize = 6;
pub const TR: usize = 7;
/// The host's TR.
pub const HOST_TR: usize = 6;

/// The fields in use.
#[rustfmt::skip]
impl Field {
    pub const VPID: Self = Self(0x0000);
    pub const NOTIFICATION_VECTOR: Self = Self(0x0002);
    /// The highest virtual interrupt that waits, and in the upper byte the highest in service.
    pub const INTERRUPT_STATUS: Self = Self(0x0810);
    pub const WRITE_LOG_INDEX: Self = Self(0x0812);
    pub const MSR_BITMAP: Self = Self(0x2004);
    pub const WRITE_LOG: Self = Self(0x200e);
    pub const TSC_OFFSET: Self = Self(0x2010);
    pub const VIRTUAL_APIC: Self = Self(0x2012);
    pub const POSTED_INTERRUPTS: Self = Self(0x2016);
    pub const EPT_POINTER: Self = Self(0x201a);
    pub const XSS_EXITS: Self = Self(0x202c);
    pub const TSC_MULTIPLIER: Self = Self(0x2032);
    pub const GUEST_PHYSICAL_ADDRESS: Self = Self(0x2400);
    pub const LINK_POINTER: Self = Self(0x2800);
    pub const GUEST_DEBUGCTL: Self = Self(0x2802);
    pub const GUEST_PAT: Self = Self(0x2804);
    pub const GUEST_EFER: Self = Self(0x2806);
    pub const HOST_PAT: Self = Self(0x2c00);
    pub const HOST_EFER: Self = Self(0x2c02);
    pub const PIN_CONTROLS: Self = Self(0x4000);
    pub const PROCESSOR_CONTROLS: Self = Self(0x4002);
    pub const EXCEPTION_BITMAP: Self = Self(0x4004);
    pub const CR3_TARGET_COUNT: Self = Self(0x400a);
    pub const EXIT_CONTROLS: Self = Self(0x400c);
    pub const EXIT_MSR_STORE_COUNT: Self = Self(0x400e);
    pub const EXIT_MSR_LOAD_COUNT: Self = Self(0x4010);
    pub const ENTRY_CONTROLS: Self = Self(0x4012);
    pub const ENTRY_MSR_LOAD_COUNT: Self = Self(0x4014);
    pub const ENTRY_EVENT: Self = Self(0x4016);
    pub const ENTRY_ERROR_CODE: Self = Self(0x4018);
    pub const TPR_THRESHOLD: Self = Self(0x401c);
    pub const SECONDARY_CONTROLS: Self = Self(0x401e);
    pub const PAUSE_LOOP_GAP: Self = Self(0x4020);
    pub const PAUSE_LOOP_WINDOW: Self = Self(0x4022);
    pub const INSTRUCTION_ERROR: Self = Self(0x4400);
    pub const EXIT_REASON: Self = Self(0x4402);
    pub const EXIT_EVENT: Self = Self(0x4404);
    pub const INTERRUPTED_EVENT: Self = Self(0x4408);
    pub const INTERRUPTED_ERROR_CODE: Self = Self(0x440a);
    pub const EXIT_INSTRUCTION_BYTES: Self = Self(0x440c);
    pub const GUEST_GDTR_LIMIT: Self = Self(0x4810);
    pub const GUEST_IDTR_LIMIT: Self = Self(0x4812);
    pub const INTERRUPTIBILITY: Self = Self(0x4824);
    pub const ACTIVITY: Self = Self(0x4826);
    pub const GUEST_SYSENTER_CS: Self = Self(0x482a);
    pub const PREEMPTION_TIMER: Self = Self(0x482e);
    pub const HOST_SYSENTER_CS: Self = Self(0x4c00);
    pub const CR0_MASK: Self = Self(0x6000);
    pub const CR4_MASK: Self = Self(0x6002);
    pub const CR0_SHADOW: Self = Self(0x6004);
    pub const CR4_SHADOW: Self = Self(0x6006);
    pub const EXIT_QUALIFICATION: Self = Self(0x6400);
    pub const GUEST_CR0: Self = Self(0x6800);
    pub const GUEST_CR3: Self = Self(0x6802);
    pub const GUEST_CR4: Self = Self(0x6804);
    pub const GUEST_GDTR_BASE: Self = Self(0x6816);
    pub const GUEST_IDTR_BASE: Self = Self(0x6818);
    pub const GUEST_DR7: Self = Self(0x681a);
    pub const GUEST_RSP: Self = Self(0x681c);
    pub const GUEST_RIP: Self = Self(0x681e);
    pub const GUEST_RFLAGS: Self = Self(0x6820);
    pub const PENDING_DEBUG: Self = Self(0x6822);
    pub const GUEST_SYSENTER_ESP: Self = Self(0x6824);
    pub const GUEST_SYSENTER_EIP: Self = Self(0x6826);
    pub const HOST_CR0: Self = Self(0x6c00);
    pub const HOST_CR3: Self = Self(0x6c02);
    pub const HOST_CR4: Self = Self(0x6c04);
    pub const HOST_FS_BASE: Self = Self(0x6c06);
    pub const HOST_GS_BASE: Self = Self(0x6c08);
    pub const HOST_TR_BASE: Self = Self(0x6c0a);
    pub const HOST_GDTR_BASE: Self = Self(0x6c0c);
    pub const HOST_IDTR_BASE: Self = Self(0x6c0e);
    pub const HOST_SYSENTER_ESP: Self = Self(0x6c10);
    pub const HOST_SYSENTER_EIP: Self = Self(0x6c12);
    pub const HOST_RIP: Self = Self(0x6c16);
}

/// Pin-based controls (25.6.1).
pub mod pin {
    pub const EXTERNAL_INTERRUPTS: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 3;
    pub const VIRTUAL_NMI: u32 = 1 << 5;
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
    pub const POSTED_INTERRUPTS: u32 = 1 << 7;
}

/// Primary processor-based controls (25.6.2, table 25-6).
pub mod processor {
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const TSC_OFFSET: u32 = 1 << 3;
    pub const HLT: u32 = 1 << 7;
    pub const MWAIT: u32 = 1 << 10;
    pub const RDPMC: u32 = 1 << 11;
    pub const CR3_LOAD: u32 = 1 << 15;
    pub const CR3_STORE: u32 = 1 << 16;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const PORTS: u32 = 1 << 24;
    pub const MSR_BITMAPS: u32 = 1 << 28;
    pub const MONITOR: u32 = 1 << 29;
    pub const SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based controls (25.6.2, table 25-7).
pub mod secondary {
    pub const EPT: u32 = 1 << 1;
    pub const RDTSCP: u32 = 1 << 3;
    pub const X2APIC: u32 = 1 << 4;
    pub const VPID: u32 = 1 << 5;
    pub const WBINVD: u32 = 1 << 6;
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub const APIC_REGISTERS: u32 = 1 << 8;
    pub const VIRTUAL_INTERRUPTS: u32 = 1 << 9;
    pub const PAUSE_LOOP: u32 = 1 << 10;
    pub const INVPCID: u32 = 1 << 12;
    pub const PAGE_MODIFICATION_LOG: u32 = 1 << 17;
    pub const XSAVES: u32 = 1 << 20;
    pub const TSC_SCALING: u32 = 1 << 25;
}

/// VM-exit controls (25.7.1).
pub mod leaving {
    pub const SAVE_DEBUG: u32 = 1 << 2;
    pub const HOST_64_BIT: u32 = 1 << 9;
    pub const ACKNOWLEDGE_INTERRUPT: u32 = 1 << 15;
    pub const SAVE_PAT: u32 = 1 << 18;
    pub const LOAD_PAT: u32 = 1 << 19;
    pub const SAVE_EFER: u32 = 1 << 20;
    pub const LOAD_EFER: u32 = 1 << 21;
}

/// VM-entry controls (25.8.1).
pub mod entering {
    pub const LOAD_DEBUG: u32 = 1 << 2;
    pub const GUEST_LONG_MODE: u32 = 1 << 9;
    pub const LOAD_PAT: u32 = 1 << 14;
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// Bits of the interruptibility state (table 25-3).
pub mod interruptibility {
    pub const STI: u64 = 1 << 0;
    pub const MOV_SS: u64 = 1 << 1;
    pub const NMI: u64 = 1 << 3;
}

/// Bits of a segment's access rights that the seam has elsewhere or not (table 25-2).
pub mod access_rights {
    pub const PRESENT: u32 = 1 << 7;
    pub const LONG: u32 = 1 << 13;
    pub const BIG: u32 = 1 << 14;
    pub const GRANULAR: u32 = 1 << 15;
    pub const UNUSABLE: u32 = 1 << 16;
}
