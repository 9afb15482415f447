//! Boots made-up PVH kernels, good and damaged.

use crate::{Boot, Error, Module, load};
use addr::Gpa;
use guestmem::GuestMemory;
use guestmem::heap::guest_memory;
use proptest::prelude::*;
use vcpu::Gpr;

const MIB: u64 = 1 << 20;

fn put(file: &mut [u8], at: usize, bytes: usize, value: u64) {
    file[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
}

/// A program header of a 64-bit file.
fn header(file: &mut [u8], index: usize, kind: u64, place: (u64, u64), start: u64, memory_bytes: u64) {
    let at = 64 + 56 * index;
    put(file, at, 4, kind);
    for (field, value) in [(8, place.0), (16, !0 << 31 | start), (24, start), (32, place.1), (40, memory_bytes)] {
        put(file, at + field, 8, value);
    }
}

/// A 64-bit ELF program: 0x1000 bytes at 2 MiB with 0x1000 zeroes behind, and notes of which the second is the entry.
fn elf() -> Vec<u8> {
    let mut file: Vec<u8> = (0..0x2000u32).map(|index| index as u8 ^ 0x5a).collect();
    file[..0x1000].fill(0);
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, bytes, value) in [(16, 2, 2), (18, 2, 62), (32, 8, 64), (54, 2, 56), (56, 2, 2)] {
        put(&mut file, at, bytes, value);
    }
    header(&mut file, 0, 1, (0x1000, 0x1000), 2 * MIB, 0x2000);
    header(&mut file, 1, 4, (0x200, 0x30), 0, 0);
    file[0x200..0x214].copy_from_slice(b"\x04\0\0\0\x02\0\0\0\x12\0\0\0GNU\0!!\0\0");
    file[0x214..0x224].copy_from_slice(b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0");
    put(&mut file, 0x224, 8, 2 * MIB + 0x10);
    file
}

fn boot<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>) -> Boot<'a> {
    Boot {
        kernel: Module { name: "kernel", bytes: kernel },
        initrd: initrd.map(|bytes| Module { name: "module", bytes }),
        modules: &[],
        command_line: "a b=c",
        rsdp: Gpa::new(0xe_0000),
    }
}

fn wide(memory: &GuestMemory, at: u64) -> u64 {
    memory.load(Gpa::new(at), 8).unwrap()
}

fn text(memory: &GuestMemory, at: u64, bytes: usize) -> Vec<u8> {
    let mut into = vec![0; bytes];
    memory.read(Gpa::new(at), &mut into).unwrap();
    into
}

fn refused(file: &[u8]) -> Error {
    load(&guest_memory(8 * MIB), &boot(file, None)).unwrap_err()
}

#[test]
fn the_kernel_is_entered_at_its_notes_address_and_told_everything() {
    let memory = guest_memory(8 * MIB);
    memory.store(Gpa::new(2 * MIB + 0x1800), 8, !0).unwrap();
    let state = load(&memory, &boot(&elf(), Some(b"initrd"))).unwrap();
    assert_eq!((state.rip, state.cr0 & 1, state.cr0 >> 31), (2 * MIB + 0x10, 1, 0), "protected mode without paging");
    assert_eq!(text(&memory, 2 * MIB, 0x1000), elf()[0x1000..]);
    assert_eq!(wide(&memory, 2 * MIB + 0x1800), 0, "what the file does not fill is zeroed");
    let at = state.gprs[Gpr::Rbx as usize];
    assert_eq!(wide(&memory, at), 0x0000_0001_336e_c578);
    assert_eq!(wide(&memory, at + 8), 1 << 32, "one module");
    let module = wide(&memory, at + 16);
    assert_eq!((wide(&memory, module), wide(&memory, module + 8)), (2 * MIB + 0x2000, 6));
    assert_eq!(text(&memory, 2 * MIB + 0x2000, 6), b"initrd");
    assert_eq!(text(&memory, wide(&memory, at + 24), 6), b"a b=c\0");
    assert_eq!(wide(&memory, at + 32), 0xe_0000);
    let (map, entries) = (wide(&memory, at + 40), wide(&memory, at + 48));
    assert_eq!(entries, 3);
    assert_eq!([0, 8, 16].map(|field| wide(&memory, map + field)), [0, 0xa_0000, 1]);
    assert_eq!([24, 32, 40].map(|field| wide(&memory, map + field)), [0xa_0000, 0x6_0000, 2]);
}

#[test]
fn several_modules_are_told_with_their_texts() {
    let (memory, file) = (guest_memory(8 * MIB), elf());
    let modules = [Module { name: "m a=b", bytes: &[7; 0x1001] }, Module { name: "n", bytes: b"last" }];
    let state = load(&memory, &Boot { modules: &modules, ..boot(&file, Some(b"initrd")) }).unwrap();
    let at = state.gprs[Gpr::Rbx as usize];
    assert_eq!(wide(&memory, at + 8), 3 << 32);
    let list = wide(&memory, at + 16);
    let entry = |index: u64| [0, 8, 16].map(|field| wide(&memory, list + 32 * index + field));
    let [first, bytes, string] = entry(0);
    assert_eq!((first, bytes, text(&memory, string, 7)), (2 * MIB + 0x2000, 6, b"module\0".to_vec()));
    let [second, bytes, string] = entry(1);
    assert_eq!((second, bytes, text(&memory, string, 6)), (first + 0x1000, 0x1001, b"m a=b\0".to_vec()));
    let [third, bytes, string] = entry(2);
    assert_eq!((third, bytes, text(&memory, string, 2)), (second + 0x2000, 4, b"n\0".to_vec()));
    assert_eq!((text(&memory, third, 4), text(&memory, second, 0x1001)), (b"last".to_vec(), vec![7; 0x1001]));
    assert_eq!(text(&memory, wide(&memory, at + 24), 6), b"a b=c\0");
}

#[test]
fn without_a_module_there_is_no_list() {
    let memory = guest_memory(8 * MIB);
    let at = load(&memory, &boot(&elf(), None)).unwrap().gprs[Gpr::Rbx as usize];
    assert_eq!((wide(&memory, at + 8), wide(&memory, at + 16)), (0, 0));
}

#[test]
fn what_contradicts_itself_is_refused() {
    let changed = |at: usize, bytes: usize, value: u64| {
        let mut file = elf();
        put(&mut file, at, bytes, value);
        refused(&file)
    };
    assert_eq!(changed(18, 2, 183), Error::NotKernel, "another processor's");
    assert_eq!(changed(0x224, 8, 1 << 32), Error::NotKernel, "no 32-bit entry");
    assert_eq!(changed(0x224, 8, MIB), Error::BadHeader("entry"));
    assert_eq!(changed(64 + 24, 8, 1 << 33), Error::BadHeader("p_paddr"));
    assert_eq!(changed(64 + 40, 8, 0xfff), Error::BadHeader("segment"));
    assert_eq!(changed(64 + 32, 8, 1 << 40), Error::Truncated);
    assert_eq!(changed(64 + 40, 8, 16 * MIB), Error::NoMemoryAt { start: 2 * MIB, end: 18 * MIB });
    let mut without = elf();
    without[0x220] = b'Y';
    assert_eq!(refused(&without), Error::NotKernel);
}

proptest! {
    /// Whatever a file says, it is refused or loaded.
    #[test]
    fn damaged_files(changes in prop::collection::vec((0usize..0x240, any::<u8>()), 1..8), cut in 0usize..0x2000) {
        let mut file = elf();
        changes.into_iter().for_each(|(at, byte)| file[at] = byte);
        let _ = load(&guest_memory(4 * MIB), &boot(&file, Some(b"x")));
        file.truncate(cut);
        let _ = load(&guest_memory(4 * MIB), &boot(&file, None));
    }
}
