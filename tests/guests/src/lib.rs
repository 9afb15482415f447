//! The runtime of the test guests: what a program needs on a bare x86-64 processor.
//!
//! A guest in `src/bin` names its main function with [`guest!`] and reports through [`tap`] on COM1, one `ok` or
//! `not ok` line for each check and `done` at the end. It boots by Linux's 64-bit protocol (wrapped by `guest_image`)
//! and by PVH, so that an emulator runs the ELF file itself and the same checks hold against it. No heap, no floating
//! point; hardware by the Intel SDM (revision 088) and the AMD APM (revision 3.43).
#![no_std]
#![expect(unsafe_code, reason = "a guest runs on the bare processor")]

pub mod apic;
pub mod boot;
pub mod cpu;
pub mod interrupts;
pub mod legacy;
pub mod legacy_modes;
pub mod levels;
pub mod mmio;
pub mod paging;
pub mod pci;
pub mod power;
pub mod random;
pub mod serial;
pub mod smp;
pub mod snippet;
pub mod start;
pub mod tap;
pub mod tasks;
pub mod virtio_blk;
pub mod world_switch;

/// Makes `main`, a `fn()`, the guest's program. When it returns, the guest says `done` and powers off.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        #[doc = "What the runtime calls."]
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main() {
            $main()
        }
    };
}

#[panic_handler]
fn panic(information: &core::panic::PanicInfo<'_>) -> ! {
    println!("Bail out! {}", information.message());
    power::off()
}
