//! The boot protocols: good kernel files, for Linux's and Multiboot, with any changes, and files of any bytes.
#![no_main]

use addr::Gpa;
use fuzz::Input;
use guestmem::heap::guest_memory;
use libfuzzer_sys::fuzz_target;
use loader::{Boot, Module};

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

/// A Multiboot image whose header has addresses, and an ELF32 program of one segment: 32-bit words by their offsets.
const ADDRESSED: [(usize, u32); 8] = [
    (0x80, 0x1bad_b002),
    (0x84, 0x1_0003),
    (0x88, 0xe451_4ffb),
    (0x8c, 0x10_0080),
    (0x90, 0x10_0000),
    (0x94, 0x10_1000),
    (0x98, 0x10_2000),
    (0x9c, 0x10_0100),
];
const ELF: [(usize, u32); 18] = [
    (0, 0x464c_457f),
    (4, 0x0001_0101),
    (16, 0x0003_0002),
    (24, 0x10_0100),
    (28, 52),
    (40, 0x0020_0034),
    (44, 2),
    (52, 1),
    (56, 0x80),
    (60, 0x10_0000),
    (64, 0x10_0000),
    (68, 0x200),
    (72, 0x1000),
    (76, 5),
    (84, 1),
    (0x80, 0x1bad_b002),
    (0x84, 3),
    (0x88, 0xe452_4ffb),
];

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let flags = input.u8();
    let initrd = (flags & 2 != 0).then(|| vec![0x5a; usize::from(input.u16()) << 8]);
    let command_line = "x".repeat(usize::from(input.u16()) & 0xfff);
    let contents: Vec<Vec<u8>> = match flags & 16 {
        0 => Vec::new(),
        _ => (0..input.u8() % 20).map(|_| vec![0xa5; usize::from(input.u16()) << 6]).collect(),
    };
    let modules: Vec<Module<'_>> = contents.iter().map(|bytes| Module { name: "m", bytes }).collect();
    let kernel = match flags & 5 {
        0 => changed(&mut input),
        4 => changed_multiboot(&mut input, flags & 8 != 0),
        _ => input.rest().to_vec(),
    };
    let memory = guest_memory(MEMORY_BYTES);
    let boot = Boot {
        kernel: Module { name: "kernel", bytes: &kernel },
        initrd: initrd.as_deref().map(|bytes| Module { name: "initrd", bytes }),
        modules: &modules,
        command_line: &command_line,
        rsdp: Gpa::new(0xe_0000),
    };
    match loader::load(&memory, &boot) {
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

/// A good Multiboot image in which up to all words of its headers have been replaced.
fn changed_multiboot(input: &mut Input<'_>, is_elf: bool) -> Vec<u8> {
    let mut kernel = vec![0; KERNEL_BYTES];
    let mut put = |offset: usize, word: u32| kernel[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    let words: &[_] = if is_elf { &ELF } else { &ADDRESSED };
    words.iter().for_each(|(offset, word)| put(*offset, *word));
    while !input.is_empty() {
        let offset = usize::from(input.u8() & 0x3f) * 4;
        put(offset, u32::from(input.u16()) << (input.u8() & 16));
    }
    kernel
}
