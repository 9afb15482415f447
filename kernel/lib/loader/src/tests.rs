//! Boots made-up kernels, good and damaged, and looks at what lies in memory afterwards.

use super::*;
use addr::{Hpa, LARGE_PAGE_BYTES};
use guestmem::heap::{Heap, guest_memory};
use proptest::prelude::*;
use vcpu::SegmentName;

const MIB: u64 = 1 << 20;
const PREFERRED: u64 = 16 * MIB;
const SETUP_SECTORS: usize = 4;

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A relocatable kernel of 8 KiB that needs 1 MiB, with a recognisable payload.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; (SETUP_SECTORS + 1) * 512];
    file.extend((0..8192u32).map(|index| index as u8 ^ 0x5a));
    put(&mut file, 0x1f1, &[SETUP_SECTORS as u8]);
    put(&mut file, 0x1f4, &(8192u32 / 16).to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x020fu16.to_le_bytes());
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut file, 0x234, &[1]);
    put(&mut file, 0x236, &1u16.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &PREFERRED.to_le_bytes());
    put(&mut file, 0x260, &(MIB as u32).to_le_bytes());
    file
}

fn module(bytes: &[u8]) -> Module<'_> {
    Module { name: "file", bytes }
}

fn linux(kernel: &[u8]) -> Boot<'_> {
    Boot { kernel: module(kernel), initrd: None, modules: &[], command_line: "console=ttyS0", rsdp: Gpa::new(0xe_0000) }
}

fn read(memory: &GuestMemory, at: Gpa, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read(at, &mut bytes).unwrap();
    bytes
}

fn parameter(memory: &GuestMemory, offset: u64, size: usize) -> u64 {
    memory.load(layout::BOOT_PARAMS.wrapping_add(offset), size).unwrap()
}

fn refused(file: &[u8]) -> Error {
    load(&guest_memory(32 * MIB), &linux(file)).unwrap_err()
}

fn damaged(at: usize, bytes: &[u8]) -> Error {
    let mut file = kernel();
    put(&mut file, at, bytes);
    refused(&file)
}

#[test]
fn a_kernel_goes_to_its_preferred_address() {
    let (memory, file) = (guest_memory(32 * MIB), kernel());
    let state = load(&memory, &linux(&file)).unwrap();
    assert_eq!(state.rip, PREFERRED + 0x200);
    assert_eq!(read(&memory, Gpa::new(PREFERRED), 8192), &file[(SETUP_SECTORS + 1) * 512..]);
}

#[test]
fn the_entry_state_is_the_protocols() {
    let (memory, file) = (guest_memory(32 * MIB), kernel());
    let state = load(&memory, &linux(&file)).unwrap();
    assert_eq!(state.gprs[vcpu::Gpr::Rsi as usize], layout::BOOT_PARAMS.as_u64());
    assert_eq!(state.rflags, 2, "interrupts off");
    let code = state.segments[SegmentName::Cs as usize];
    assert_eq!((code.selector, code.attributes, code.limit), (0x10, 0xa9b, u32::MAX));
    for name in [SegmentName::Ds, SegmentName::Es, SegmentName::Ss] {
        let data = state.segments[name as usize];
        assert_eq!((data.selector, data.attributes, data.limit), (0x18, 0xc93, u32::MAX));
    }
    assert_eq!(state.cr0 & (1 << 31 | 1 << 29 | 1 << 30 | 1), 1 << 31 | 1, "paging on, caches on");
    assert_eq!((state.cr4, state.efer), (1 << 5, 1 << 8 | 1 << 10));
    let entry = |index: u64| memory.load(Gpa::new(state.gdtr.base + index * 8), 8).unwrap();
    assert_eq!((entry(2), entry(3)), (0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff));
    assert_eq!(state.gdtr.limit, 31);
}

#[test]
fn the_first_4_gib_are_mapped_one_to_one() {
    let (memory, file) = (guest_memory(32 * MIB), kernel());
    let state = load(&memory, &linux(&file)).unwrap();
    for at in [0, PREFERRED, 0xfee0_0000, (1 << 32) - LARGE_PAGE_BYTES] {
        let mut table = state.cr3;
        for shift in [39, 30] {
            let entry = memory.load(Gpa::new(table + (at >> shift & 511) * 8), 8).unwrap();
            assert_eq!(entry & 0xfff, 3);
            table = entry & !0xfff;
        }
        let entry = memory.load(Gpa::new(table + (at >> 21 & 511) * 8), 8).unwrap();
        assert_eq!(entry, at & !(LARGE_PAGE_BYTES - 1) | 0x83);
    }
}

#[test]
fn boot_parameters_are_completed() {
    let (memory, file) = (guest_memory(32 * MIB), kernel());
    let initrd = [7; 5000];
    load(&memory, &Boot { initrd: Some(module(&initrd)), ..linux(&file) }).unwrap();
    assert_eq!(parameter(&memory, 0x202, 4), u64::from(u32::from_le_bytes(*b"HdrS")));
    assert_eq!(parameter(&memory, 0x070, 8), 0xe_0000);
    assert_eq!((parameter(&memory, 0x210, 1), parameter(&memory, 0x211, 1)), (0xff, 1));
    assert_eq!(parameter(&memory, 0x1ef, 1), 0, "the sentinel");
    assert_eq!((parameter(&memory, 0x218, 4), parameter(&memory, 0x21c, 4)), (32 * MIB - 8192, 5000));
    assert_eq!(read(&memory, Gpa::new(32 * MIB - 8192), 5000), initrd);
    let at = Gpa::new(parameter(&memory, 0x228, 4));
    assert_eq!(read(&memory, at, 14), b"console=ttyS0\0");
}

#[test]
fn the_header_is_copied_up_to_its_end() {
    let (memory, mut file) = (guest_memory(32 * MIB), kernel());
    put(&mut file, 0x201, &[0x66]);
    put(&mut file, 0x264, &[0xff; 0x40]);
    load(&memory, &linux(&file)).unwrap();
    assert_eq!((parameter(&memory, 0x264, 4), parameter(&memory, 0x268, 8)), (0xffff_ffff, 0));
}

#[test]
fn the_map_leaves_holes_and_bios_area_out() {
    let mut memory = guest_memory(32 * MIB);
    memory.add_slot(Gpa::new(1 << 32), vec![Hpa::new(0), Hpa::new(LARGE_PAGE_BYTES)]);
    load(&memory, &linux(&kernel())).unwrap();
    assert_eq!(parameter(&memory, 0x1e8, 1), 4);
    let entry = |index: u64| {
        let at = 0x2d0 + index * 20;
        (parameter(&memory, at, 8), parameter(&memory, at + 8, 8), parameter(&memory, at + 16, 4))
    };
    assert_eq!(entry(0), (0, 0xa_0000, 1));
    assert_eq!(entry(1), (0xa_0000, 0x6_0000, 2));
    assert_eq!(entry(2), (MIB, 31 * MIB, 1));
    assert_eq!(entry(3), (1 << 32, 2 * LARGE_PAGE_BYTES, 1));
}

#[test]
fn a_kernel_that_can_be_moved_goes_above_a_hole() {
    let mut memory = guest_memory(4 * MIB);
    memory.add_slot(Gpa::new(30 * MIB), vec![Hpa::new(0); 2]);
    let mut file = kernel();
    put(&mut file, 0x230, &0x400_0000u32.to_le_bytes());
    assert!(matches!(load(&memory, &linux(&file)), Err(Error::TooLarge { .. })), "64 MiB alignment");
    put(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
    assert_eq!(load(&memory, &linux(&file)).unwrap().rip, 30 * MIB + 0x200);
    put(&mut file, 0x234, &[0]);
    assert!(matches!(load(&memory, &linux(&file)), Err(Error::TooLarge { .. })), "fixed");
}

#[test]
fn an_initrd_keeps_below_its_limit_and_off_the_kernel() {
    let (memory, mut file) = (guest_memory(32 * MIB), kernel());
    let at = |file: &[u8], length: u64| {
        let initrd = vec![1; length as usize];
        load(&memory, &Boot { initrd: Some(module(&initrd)), ..linux(file) }).map(|_| parameter(&memory, 0x218, 4))
    };
    put(&mut file, 0x22c, &(24 * MIB as u32 - 1).to_le_bytes());
    assert_eq!(at(&file, MIB), Ok(23 * MIB));
    assert_eq!(at(&file, 8 * MIB), Ok(8 * MIB), "below the kernel");
    assert_eq!(at(&file, 16 * MIB), Err(Error::TooLarge { needed_bytes: 33 * MIB, have_bytes: 32 * MIB }));
    assert_eq!(at(&file, 0), Ok(0), "an empty one is none");
}

#[test]
fn memory_for_init_size_is_required() {
    assert_eq!(
        damaged(0x260, &(17 * MIB as u32).to_le_bytes()),
        Error::TooLarge { needed_bytes: 33 * MIB, have_bytes: 32 * MIB }
    );
}

#[test]
fn what_is_no_kernel_is_refused() {
    for length in [0, 1, 0x1f1, 0x201, 0x202, 0x26b] {
        assert!(matches!(refused(&kernel()[..length]), Error::NotKernel | Error::Truncated), "{length}");
    }
    assert_eq!(refused(b"\x7fELF"), Error::NotKernel);
    assert_eq!(damaged(0x1fe, &[0]), Error::NotKernel);
    assert_eq!(damaged(0x202, b"hdrs"), Error::NotKernel);
    assert_eq!(damaged(0x206, &0x020bu16.to_le_bytes()), Error::TooOld { version: 0x020b });
    assert_eq!(damaged(0x236, &[0]), Error::No64BitEntry);
}

#[test]
fn contradictions_are_refused() {
    assert_eq!(damaged(0x1f1, &[200]), Error::Truncated);
    assert_eq!(damaged(0x1f4, &u32::MAX.to_le_bytes()), Error::Truncated);
    assert_eq!(damaged(0x1f4, &(0x200u32 / 16).to_le_bytes()), Error::BadHeader("syssize"));
    assert_eq!(damaged(0x201, &[0x65]), Error::BadHeader("jump"));
    assert_eq!(damaged(0x230, &3u32.to_le_bytes()), Error::BadHeader("kernel_alignment"));
    assert_eq!(damaged(0x230, &0u32.to_le_bytes()), Error::BadHeader("kernel_alignment"));
    assert!(matches!(damaged(0x258, &u64::MAX.to_le_bytes()), Error::TooLarge { .. }));
    assert!(matches!(refused(&kernel()[..kernel().len() - 16]), Error::Truncated));
}

#[test]
fn zero_setup_sectors_mean_four() {
    let (memory, mut file) = (guest_memory(32 * MIB), kernel());
    put(&mut file, 0x1f1, &[0]);
    load(&memory, &linux(&file)).unwrap();
    assert_eq!(read(&memory, Gpa::new(PREFERRED), 16), &file[(SETUP_SECTORS + 1) * 512..][..16]);
}

#[test]
fn a_signature_behind_the_kernel_is_left_out() {
    let (memory, mut file) = (guest_memory(32 * MIB), kernel());
    file.extend([0xee; 64]);
    load(&memory, &linux(&file)).unwrap();
    assert_eq!(read(&memory, Gpa::new(PREFERRED + 8192), 64), [0; 64]);
}

#[test]
fn a_command_line_is_checked() {
    let (memory, file) = (guest_memory(32 * MIB), kernel());
    let try_line = |line: &str| load(&memory, &Boot { command_line: line, ..linux(&file) }).map(|_| ());
    assert_eq!(try_line(&"x".repeat(2047)), Ok(()));
    assert_eq!(try_line(&"x".repeat(2048)), Err(Error::CommandLineTooLong { max: 2047 }));
    assert_eq!(try_line("a\0b"), Err(Error::CommandLineHasNul));
    let mut file = kernel();
    put(&mut file, 0x238, &u32::MAX.to_le_bytes());
    let line = "x".repeat(0x1_0000);
    let long = Boot { command_line: &line, ..linux(&file) };
    assert_eq!(load(&memory, &long).unwrap_err(), Error::CommandLineTooLong { max: 0xffff });
}

#[test]
fn a_refused_kernel_leaves_memory_alone() {
    let memory = guest_memory(32 * MIB);
    load(&memory, &linux(&kernel()[..4096])).unwrap_err();
    assert!(read(&memory, Gpa::new(0), 32 * MIB as usize).iter().all(|byte| *byte == 0));
}

#[test]
fn a_guest_without_low_memory_is_refused() {
    let mut memory = GuestMemory::new(std::sync::Arc::new(Heap::new(4 * MIB)));
    memory.add_slot(Gpa::new(PREFERRED), vec![Hpa::new(0), Hpa::new(LARGE_PAGE_BYTES)]);
    assert!(matches!(load(&memory, &linux(&kernel())), Err(Error::Outside(_))));
}

#[test]
fn errors_say_what_to_do() {
    let text = Error::TooLarge { needed_bytes: 33 * MIB, have_bytes: 32 * MIB }.to_string();
    assert_eq!(
        text,
        "kernel and initrd need 33 MiB of memory below 4 GiB but the guest has 32 MiB: give it more memory"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever the header says, the kernel is refused or lies in memory from 1 MiB on, beside the initrd.
    #[test]
    fn a_hostile_header_is_refused_or_harmless(
        damage in prop::collection::vec((0x1f1usize..0x290, any::<u8>()), 0..12),
        sizes in (any::<u32>(), any::<u64>(), any::<u32>()),
        mask in 0u32..8,
        cut in 0usize..16384,
        initrd_bytes in 0usize..(3 << 20),
    ) {
        let mut file = kernel();
        put(&mut file, 0x258, &(2 * MIB).to_le_bytes());
        let (init_size, preferred, initrd_max) = sizes;
        if mask & 1 != 0 { put(&mut file, 0x260, &(init_size >> (init_size & 31)).to_le_bytes()) }
        if mask & 2 != 0 { put(&mut file, 0x258, &(preferred >> (preferred & 63)).to_le_bytes()) }
        if mask & 4 != 0 { put(&mut file, 0x22c, &(initrd_max >> (initrd_max & 31)).to_le_bytes()) }
        damage.iter().for_each(|(at, byte)| file[*at] = *byte);
        file.truncate(cut.max(0x100));
        let memory = guest_memory(8 * MIB);
        let initrd = vec![0xee; initrd_bytes];
        if let Ok(state) = load(&memory, &Boot { initrd: Some(module(&initrd)), ..linux(&file) }) {
            let kernel = state.rip - 0x200;
            prop_assert!((MIB..8 * MIB).contains(&kernel));
            let first = parameter(&memory, 0x218, 4);
            prop_assert!(initrd.is_empty() || first >= MIB && first + initrd_bytes as u64 <= 8 * MIB);
            prop_assert!(read(&memory, Gpa::new(first), initrd_bytes) == initrd);
        }
    }
}
