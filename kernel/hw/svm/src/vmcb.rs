//! The virtual machine control block: appendix B, field by field.

use alloc::boxed::Box;
use core::mem::offset_of;

/// A segment register as the VMCB keeps it (B-2).
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct VmcbSegment {
    pub selector: u16,
    /// Descriptor bits 47:40 and 55:52.
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

/// The control area (table B-1).
#[repr(C)]
pub struct Control {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept_misc: [u32; 3],
    _reserved_018: [u8; 0x24],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub virtual_interrupt: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info_1: u64,
    pub exit_info_2: u64,
    pub exit_interrupt_info: u64,
    pub nested_enable: u64,
    _reserved_098: [u64; 2],
    pub event_injection: u64,
    pub nested_cr3: u64,
    pub lbr_enable: u64,
    pub clean: u32,
    _reserved_0c4: u32,
    pub next_rip: u64,
    pub fetched_count: u8,
    pub fetched: [u8; 15],
    _reserved_0e0: [u8; 0x320],
}

/// The state save area (table B-2).
#[repr(C)]
pub struct Save {
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [VmcbSegment; 6],
    pub gdtr: VmcbSegment,
    pub ldtr: VmcbSegment,
    pub idtr: VmcbSegment,
    pub tr: VmcbSegment,
    _reserved_0a0: [u8; 0x2b],
    pub cpl: u8,
    _reserved_0cc: u32,
    pub efer: u64,
    _reserved_0d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    _reserved_180: [u8; 0x58],
    pub rsp: u64,
    _reserved_1e0: [u8; 0x18],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    _reserved_248: [u8; 0x20],
    pub pat: u64,
    _reserved_270: [u8; 0x990],
}

/// A whole block. It lies in one page of its own.
#[repr(C, align(4096))]
pub struct Vmcb {
    pub control: Control,
    pub save: Save,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096);
    assert!(offset_of!(Control, pause_filter_threshold) == 0x3c);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, event_injection) == 0xa8);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, pat) == 0x268);
};

impl Vmcb {
    /// A block of zeroes.
    pub fn boxed() -> Box<Self> {
        // SAFETY: every field is an integer, for which all zeroes is a value.
        unsafe { Box::new_zeroed().assume_init() }
    }
}

/// Intercepts of writes to control registers (offset 0, bits 31:16).
pub mod cr_write {
    pub const CR4: u32 = 1 << 20;
    pub const CR8: u32 = 1 << 24;
}

/// Intercepts of the first vector, offset 0Ch.
pub mod misc1 {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const PAUSE: u32 = 1 << 23;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IOIO: u32 = 1 << 27;
    pub const MSR: u32 = 1 << 28;
    pub const TASK_SWITCH: u32 = 1 << 29;
    pub const FERR_FREEZE: u32 = 1 << 30;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts of the second vector, offset 10h.
pub mod misc2 {
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const MWAIT_ARMED: u32 = 1 << 12;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// Bits of the virtual interrupt control, offset 60h (15.21.1).
pub mod virtual_interrupt {
    /// The guest's CR8.
    pub const TPR: u64 = 0xf;
    pub const REQUEST: u64 = 1 << 8;
    pub const PRIORITY_SHIFT: u32 = 16;
    pub const PRIORITY_HIGHEST: u64 = 0xf << PRIORITY_SHIFT;
    pub const IGNORE_TPR: u64 = 1 << 20;
    pub const MASKING: u64 = 1 << 24;
    pub const VECTOR_SHIFT: u32 = 32;
}

/// Parts of the block that need not be read again when their bit is set in `clean` (15.15.3).
pub mod clean {
    pub const INTERCEPTS: u32 = 1 << 0;
    pub const PERMISSION_MAPS: u32 = 1 << 1;
    pub const TPR: u32 = 1 << 3;
    pub const CONTROL_REGISTERS: u32 = 1 << 5;
    pub const DEBUG: u32 = 1 << 6;
    pub const CR2: u32 = 1 << 9;
    pub const ALL: u32 = 0x3ff;
}
