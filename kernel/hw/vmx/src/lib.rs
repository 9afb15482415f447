//! Intel VT-x: virtual CPUs on VMX with extended page tables.
//!
//! SDM volume 3, revision 083, chapters 24 to 31 and appendices A to C; section numbers stand beside each rule. [`Vmx`]
//! is one virtual CPU and implements [`vcpu::Vcpu`]; [`enable`] turns a physical processor on. `hw/svm` mirrors this
//! crate file by file; what SVM's hardware does itself stands here in files of its own.
#![cfg_attr(not(test), no_std)]
#![expect(unsafe_code, reason = "VMLAUNCH and what surrounds it")]

extern crate alloc;

mod apic;
mod checks;
mod control_registers;
mod controls;
mod enable;
mod entry;
mod event;
mod exit;
mod host_state;
mod msrs;
mod registers;
mod state;
mod translations;
mod vmcs;
mod write_log;

pub use enable::{Features, Unavailable, check, enable};
pub use entry::Vmx;
