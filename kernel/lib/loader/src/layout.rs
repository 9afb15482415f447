//! What the loader puts below 640 KiB. All of it is free memory to the kernel once it has set up its own.

use addr::Gpa;

/// The GDT with the protocol's flat code and data segments.
pub const GDT: Gpa = Gpa::new(0x500);
/// The boot parameters ("zero page"), one page.
pub const BOOT_PARAMS: Gpa = Gpa::new(0x7000);
/// The top of a small stack; the protocol asks for none, but an entry may fault before it sets its own.
pub const STACK_TOP: Gpa = Gpa::new(0x9000);
/// The identity page tables of the first 4 GiB: PML4, PDPT and four page directories.
pub const PAGE_TABLES: Gpa = Gpa::new(0x9000);
/// The command line, up to 64 KiB.
pub const COMMAND_LINE: Gpa = Gpa::new(0x2_0000);
/// Most bytes of a command line, with its NUL.
pub const COMMAND_LINE_BYTES: u64 = 0x1_0000;

/// The end of conventional memory: from here to [`HIGH_MEMORY`] lie video memory, ROMs and firmware tables.
pub const LOW_MEMORY_END: Gpa = Gpa::new(0xa_0000);
/// Where memory goes on.
pub const HIGH_MEMORY: Gpa = Gpa::new(0x10_0000);
