//! The state in which the kernel is entered: page tables, GDT and registers.
//!
//! [`write_tables`] puts the tables where `layout` says and [`state`] points the vCPU at them (Linux 6.12, boot.rst,
//! "64-bit Boot Protocol"; Intel SDM volume 3, 3.4.5 and 4.5, revision 088).

use crate::bzimage::BzImage;
use crate::layout;
use addr::{Gpa, HUGE_PAGE_BYTES, LARGE_PAGE_BYTES, PAGE_BYTES};
use guestmem::{GuestMemory, Outside};
use vcpu::{Gpr, Segment, SegmentName, Table, VcpuState, cr0, cr4, efer, rflags};

const MAPPED_GIB: u64 = 4;
const ENTRIES: u64 = 512;
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

/// The protocol's selectors and their descriptors: flat, privilege level 0, already marked as accessed.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Writes the GDT, and page tables that map the first 4 GiB one to one.
pub fn write_tables(memory: &GuestMemory) -> Result<(), Outside> {
    for (entry, index) in GDT.into_iter().zip(0..) {
        memory.store(layout::GDT.wrapping_add(index * 8), 8, entry)?;
    }
    let (root, directory_pointers) = (layout::PAGE_TABLES, layout::PAGE_TABLES.wrapping_add(PAGE_BYTES));
    let directories = directory_pointers.wrapping_add(PAGE_BYTES);
    memory.zero(root, (2 + MAPPED_GIB) * PAGE_BYTES)?;
    memory.store(root, 8, directory_pointers.as_u64() | PRESENT | WRITABLE)?;
    for gib in 0..MAPPED_GIB {
        let directory = directories.wrapping_add(gib * PAGE_BYTES);
        memory.store(directory_pointers.wrapping_add(gib * 8), 8, directory.as_u64() | PRESENT | WRITABLE)?;
        for index in 0..ENTRIES {
            let page = gib * HUGE_PAGE_BYTES + index * LARGE_PAGE_BYTES;
            memory.store(directory.wrapping_add(index * 8), 8, page | PRESENT | WRITABLE | LARGE)?;
        }
    }
    Ok(())
}

/// The registers at the 64-bit entry of the kernel that was loaded at `kernel`.
pub fn state(kernel: Gpa) -> VcpuState {
    let mut state = VcpuState::reset();
    state.gprs = [0; 16];
    state.gprs[Gpr::Rsi as usize] = layout::BOOT_PARAMS.as_u64();
    state.gprs[Gpr::Rsp as usize] = layout::STACK_TOP.as_u64();
    state.rip = kernel.wrapping_add(BzImage::ENTRY_OFFSET).as_u64();
    state.rflags = rflags::FIXED;
    state.segments = [flat(DATA); 6];
    state.segments[SegmentName::Cs as usize] = flat(CODE);
    state.gdtr = Table { base: layout::GDT.as_u64(), limit: size_of_val(&GDT) as u16 - 1 };
    state.idtr = Table { base: 0, limit: 0 };
    state.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE;
    state.cr3 = layout::PAGE_TABLES.as_u64();
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA;
    state
}

/// The register that the descriptor of `selector` gives when loaded.
fn flat(selector: u16) -> Segment {
    let descriptor = GDT[usize::from(selector / 8)];
    let attributes = (descriptor >> 40 & 0xff | descriptor >> 44 & 0xf00) as u16;
    Segment { selector, attributes, limit: u32::MAX, base: 0 }
}
