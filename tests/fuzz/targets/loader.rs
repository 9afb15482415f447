//! The Linux boot protocol: a good kernel file with any changes, and files of any bytes.
#![no_main]

use addr::Gpa;
use fuzz::Input;
use guestmem::heap::guest_memory;
use libfuzzer_sys::fuzz_target;
use loader::Linux;

const MEMORY_BYTES: u64 = 8 << 20;
const KERNEL_BYTES: usize = 0x1000;
/// Fields of the setup header of a kernel that is relocatable to 2 MiB (Linux 6.12, Documentation/arch/x86/boot.rst):
/// offset, and the bytes there.
const HEADER: [(usize, &[u8]); 13] = [
    (0x1f1, &[1]),
    (0x1f4, &[0xc0, 0, 0, 0]),
    (0x1fe, &[0x55, 0xaa]),
    (0x200, &[0xeb, 0x6a]),
    (0x202, b"HdrS"),
    (0x206, &[0x0f, 0x02]),
    (0x211, &[1]),
    (0x22c, &[0xff, 0xff, 0xff, 0x7f]),
    (0x230, &[0, 0, 0x20, 0]),
    (0x234, &[1, 21, 1, 0]),
    (0x238, &[0xff, 0x07, 0, 0]),
    (0x258, &[0, 0, 0x20, 0, 0, 0, 0, 0]),
    (0x260, &[0, 0x20, 0, 0]),
];

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let flags = input.u8();
    let initrd = (flags & 2 != 0).then(|| vec![0x5a; usize::from(input.u16()) << 8]);
    let command_line = "x".repeat(usize::from(input.u16()) & 0xfff);
    let kernel = if flags & 1 == 0 { changed(&mut input) } else { input.rest().to_vec() };
    let memory = guest_memory(MEMORY_BYTES);
    let linux =
        Linux { kernel: &kernel, initrd: initrd.as_deref(), command_line: &command_line, rsdp: Gpa::new(0xe_0000) };
    match loader::load(&memory, &linux) {
        Ok(state) => assert!(state.rip < MEMORY_BYTES, "the kernel starts outside its memory"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// A good kernel file in which up to all header bytes have been replaced.
fn changed(input: &mut Input<'_>) -> Vec<u8> {
    let mut kernel = vec![0; KERNEL_BYTES];
    for (offset, bytes) in HEADER {
        kernel[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    while !input.is_empty() {
        let offset = 0x1f0 + usize::from(input.u8() & 0x7f);
        kernel[offset] = input.u8();
    }
    kernel
}
