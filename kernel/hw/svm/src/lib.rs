//! AMD-V: virtual CPUs on SVM with nested paging.
//!
//! APM volume 2, revision 3.42, chapter 15 and appendices B and C; section numbers stand beside each rule. [`Svm`] is
//! one virtual CPU and implements [`vcpu::Vcpu`]; [`enable`] turns a physical processor on. `hw/vmx` mirrors this
//! crate file by file.
#![no_std]
#![expect(unsafe_code, reason = "VMRUN and what surrounds it")]

extern crate alloc;

mod enable;
mod entry;
mod exit;
mod injection;
mod intercepts;
mod msrs;
mod nmi;
mod state;
mod vmcb;

pub use enable::{Features, Unavailable, check, enable};
pub use entry::Svm;
