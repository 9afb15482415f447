//! Boots made-up Multiboot images, good and damaged.

use super::*;
use crate::{Module, load};
use guestmem::heap::guest_memory;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const HEADER: usize = 0x100;

fn put(file: &mut [u8], at: usize, words: &[u32]) {
    for (index, word) in words.iter().enumerate() {
        file[at + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

fn header(flags: u32) -> [u32; 3] {
    [0x1bad_b002, flags, 0x1bad_b002u32.wrapping_add(flags).wrapping_neg()]
}

/// An ELF32 program of two segments: 0x1000 bytes at 2 MiB that run at 0xc020_0000, and 0x10 bytes of 0x2000 at 3 MiB.
fn elf() -> Vec<u8> {
    let mut file: Vec<u8> = (0..0x2000u32).map(|index| index as u8 ^ 0x5a).collect();
    file[..0x100].fill(0);
    file[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &[2 | 3 << 16, 1, 0xc020_0010, 52]);
    put(&mut file, 40, &[52 | 32 << 16, 2]);
    put(&mut file, 52, &[1, 0x1000, 0xc020_0000, 0x20_0000, 0x1000, 0x1000, 5, 0x1000]);
    put(&mut file, 84, &[1, 0x800, 0xc030_0000, 0x30_0000, 0x10, 0x2000, 6, 0x1000]);
    put(&mut file, HEADER + 0x20, &header(3));
    file
}

/// A file of any format that is loaded from its byte 0x80 on, to 1 MiB, with 0x1000 bytes of zeroes behind.
fn addressed() -> Vec<u8> {
    let mut file: Vec<u8> = (0..0x1000u32).map(|index| index as u8 ^ 0xa5).collect();
    put(&mut file, HEADER, &header(1 << 16));
    put(&mut file, HEADER + 12, &[0x10_0080, 0x10_0000, 0x10_0f80, 0x10_1f80, 0x10_0040]);
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

fn read(memory: &GuestMemory, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read(Gpa::new(at), &mut bytes).unwrap();
    bytes
}

fn word(memory: &GuestMemory, at: u64) -> u64 {
    memory.load(Gpa::new(at), 4).unwrap()
}

fn refused(file: &[u8]) -> Error {
    load(&guest_memory(8 * MIB), &boot(file, None)).unwrap_err()
}

#[test]
fn the_entry_state_is_the_specifications() {
    let state = load(&guest_memory(8 * MIB), &boot(&elf(), None)).unwrap();
    assert_eq!(state.gprs[Gpr::Rax as usize], 0x2bad_b002);
    assert_eq!(state.rip, 0x20_0010, "a virtual entry becomes a physical one");
    let code = state.segments[SegmentName::Cs as usize];
    assert_eq!((code.attributes, code.limit, code.base), (0xc9b, u32::MAX, 0), "32-bit code");
    for name in [SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs, SegmentName::Ss] {
        let data = state.segments[name as usize];
        assert_eq!((data.attributes, data.limit, data.base), (0xc93, u32::MAX, 0));
    }
    assert_eq!((state.cr0, state.cr4, state.efer), (1 | 1 << 4, 0, 0), "protected mode without paging");
    assert_eq!(state.rflags, 2, "interrupts off");
}

#[test]
fn segments_lie_at_their_physical_addresses_and_end_in_zeroes() {
    let (memory, file) = (guest_memory(8 * MIB), elf());
    memory.write(Gpa::new(0x30_0000), &[0xff; 0x2001]).unwrap();
    load(&memory, &boot(&file, None)).unwrap();
    assert_eq!(read(&memory, 0x20_0000, 0x1000), &file[0x1000..0x2000]);
    assert_eq!(read(&memory, 0x30_0000, 0x10), &file[0x800..0x810]);
    assert!(read(&memory, 0x30_0010, 0x1ff0).iter().all(|byte| *byte == 0));
    assert_eq!(read(&memory, 0x30_2000, 1), [0xff], "no more than that");
}

#[test]
fn a_header_with_addresses_needs_no_elf() {
    let (memory, mut file) = (guest_memory(8 * MIB), addressed());
    memory.write(Gpa::new(0x10_0f80), &[0xff; 0x1001]).unwrap();
    let state = load(&memory, &boot(&file, None)).unwrap();
    assert_eq!(state.rip, 0x10_0040);
    assert_eq!(read(&memory, 0x10_0000, 0xf80), &file[0x80..]);
    assert_eq!(read(&memory, 0x10_0f80, 0x1001).iter().position(|byte| *byte != 0), Some(0x1000));
    // No ends: the file's, and nothing behind it.
    put(&mut file, HEADER + 20, &[0, 0]);
    let memory = guest_memory(8 * MIB);
    memory.write(Gpa::new(0x10_0f80), &[0xff]).unwrap();
    load(&memory, &boot(&file, None)).unwrap();
    assert_eq!(read(&memory, 0x10_0000, 0xf80), &file[0x80..]);
    assert_eq!(read(&memory, 0x10_0f80, 1), [0xff]);
}

#[test]
fn the_kernel_is_told_what_there_is() {
    let mut memory = guest_memory(8 * MIB);
    memory.add_slot(Gpa::new(1 << 32), vec![addr::Hpa::new(0)]);
    let state = load(&memory, &boot(&elf(), Some(b"content"))).unwrap();
    let information = state.gprs[Gpr::Rbx as usize];
    let field = |offset: u64| word(&memory, information + offset);
    assert_eq!(field(0), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!((field(4), field(8)), (640, 7 * 1024));
    assert_eq!(read(&memory, field(16), 13), b"kernel a b=c\0");
    assert_eq!(read(&memory, field(64), 7), b"Pollux\0");
    assert_eq!(field(20), 1);
    let [start, end, name] = [0, 4, 8].map(|offset| word(&memory, field(24) + offset));
    assert_eq!((start, end), (0x30_2000, 0x30_2007), "on the first page behind the image");
    assert_eq!((read(&memory, start, 7), read(&memory, name, 7)), (b"content".to_vec(), b"module\0".to_vec()));
    let entry = |index: u64| {
        let at = field(48) + 24 * index;
        let wide = |at| memory.load(Gpa::new(at), 8).unwrap();
        (word(&memory, at), wide(at + 4), wide(at + 12), word(&memory, at + 20))
    };
    assert_eq!(field(44), 4 * 24);
    assert_eq!((entry(0), entry(1)), ((20, 0, 0xa_0000, 1), (20, 0xa_0000, 0x6_0000, 2)));
    assert_eq!((entry(2).1, entry(2).2, entry(3).1), (MIB, 7 * MIB, 1 << 32));
}

/// The modules that a kernel is told of: first byte, end, text.
fn told(memory: &GuestMemory, state: &VcpuState) -> Vec<(u64, u64, String)> {
    let information = state.gprs[Gpr::Rbx as usize];
    let (count, list) = (word(memory, information + 20), word(memory, information + 24));
    let text = |at: u64| (at..).map(|at| memory.load(Gpa::new(at), 1).unwrap() as u8).take_while(|byte| *byte != 0);
    let entries = (0..count).map(|index| list + 16 * index);
    let module = |entry: u64| {
        let [start, end, string] = [0, 4, 8].map(|offset| word(memory, entry + offset));
        (start, end, String::from_utf8(text(string).collect()).unwrap())
    };
    entries.map(module).collect()
}

#[test]
fn several_modules_lie_on_pages_of_their_own_in_their_order() {
    let (memory, file) = (guest_memory(8 * MIB), elf());
    let contents = [vec![1; 0x1001], vec![], vec![2; 0x1000], vec![3; 1]];
    let names = ["first", "empty a=b", "third with words", ""];
    let modules: Vec<Module<'_>> = names.iter().zip(&contents).map(|(name, bytes)| Module { name, bytes }).collect();
    let state = load(&memory, &Boot { modules: &modules, ..boot(&file, Some(b"before all")) }).unwrap();
    let told = told(&memory, &state);
    let wanted = [
        (0x30_2000, 10, "module"),
        (0x30_3000, 0x1001, "first"),
        (0x30_5000, 0, "empty a=b"),
        (0x30_5000, 0x1000, "third with words"),
        (0x30_6000, 1, ""),
    ];
    assert_eq!(told, wanted.map(|(start, bytes, name)| (start, start + bytes, name.to_string())));
    for ((start, end, _), content) in told[1..].iter().zip(&contents) {
        assert_eq!(&read(&memory, *start, (end - start) as usize), content);
    }
    assert_eq!(read(&memory, word(&memory, state.gprs[Gpr::Rbx as usize] + 16), 13), b"kernel a b=c\0");
}

#[test]
fn modules_that_do_not_fit_are_refused_and_nothing_is_written() {
    let (memory, file, content) = (guest_memory(8 * MIB), elf(), vec![0xee; 2 * MIB as usize]);
    let module = Module { name: "m", bytes: &content };
    let try_with = |modules: &[Module<'_>]| load(&memory, &Boot { modules, ..boot(&file, None) });
    let needed_bytes = 0x30_2000 + 6 * MIB;
    let refused = Error::TooLarge { needed_bytes, have_bytes: 8 * MIB };
    assert_eq!(try_with(&[module; 3]).unwrap_err(), refused);
    assert!(read(&memory, 0, 8 * MIB as usize).iter().all(|byte| *byte == 0));
    let text = "x".repeat(layout::COMMAND_LINE_BYTES as usize);
    let (long, cut) = (Module { name: &text, bytes: b"" }, Module { name: "a\0b", bytes: b"" });
    assert!(matches!(try_with(&[long]), Err(Error::CommandLineTooLong { .. })));
    assert_eq!(try_with(&[cut]).unwrap_err(), Error::CommandLineHasNul);
    assert!(try_with(&[module; 2]).is_ok());
}

/// A module that the memory below a hole has no room for lies above it, and those behind it too.
#[test]
fn a_module_is_not_split_by_a_hole() {
    let mut memory = guest_memory(4 * MIB);
    memory.add_slot(Gpa::new(6 * MIB), vec![addr::Hpa::new(0)]);
    let (file, small) = (elf(), vec![1; 0x1000]);
    let modules = [Module { name: "a", bytes: &small }, Module { name: "b", bytes: &[] }];
    let placed = |bytes: usize| {
        let content = vec![0; bytes];
        let boot = Boot { modules: &modules, ..boot(&file, Some(&content)) };
        let image = Image::parse(&file, Header::find(&file).unwrap()).unwrap();
        let modules = Modules::place(&memory, &boot, &image)?;
        Ok(modules.iter().map(|(at, _)| at.as_u64()).collect::<Vec<_>>())
    };
    assert_eq!(placed(0xf_d000), Ok(vec![0x30_2000, 0x3f_f000, 4 * MIB]));
    assert_eq!(placed(0xf_d001), Ok(vec![0x30_2000, 6 * MIB, 6 * MIB + 0x1000]));
    assert!(matches!(placed(0x40_0000), Err(Error::TooLarge { .. })));
}

#[test]
fn without_a_module_none_is_told() {
    let memory = guest_memory(8 * MIB);
    let state = load(&memory, &boot(&elf(), None)).unwrap();
    assert_eq!(word(&memory, state.gprs[Gpr::Rbx as usize] + 20), 0);
}

#[test]
fn information_keeps_off_a_low_kernel() {
    let (memory, mut file) = (guest_memory(8 * MIB), addressed());
    put(&mut file, HEADER + 12, &[0x9_0080, 0x9_0000, 0x9_0f80, 0xa_0000, 0x9_0040]);
    let state = load(&memory, &boot(&file, None)).unwrap();
    assert_eq!(state.gprs[Gpr::Rbx as usize], 0x8_f000);
    assert_eq!(read(&memory, 0x9_0000, 0xf80), &file[0x80..]);
    put(&mut file, HEADER + 12, &[0x1080, 0x1000, 0x1f80, 0xa_0000, 0x1040]);
    assert!(matches!(refused(&file), Error::NoMemoryAt { start: 0x1000, .. }), "no place for the information");
}

#[test]
fn memory_that_is_not_free_is_refused() {
    let mut file = elf();
    put(&mut file, 52 + 12, &[8 * MIB as u32 - 0x800]);
    assert_eq!(refused(&file), Error::NoMemoryAt { start: 8 * MIB - 0x800, end: 8 * MIB + 0x800 });
    put(&mut file, 52 + 12, &[0xe_0000]);
    assert_eq!(refused(&file), Error::NoMemoryAt { start: 0xe_0000, end: 0xe_1000 }, "tables are there");
    let (file, module) = (elf(), vec![0; 5 * MIB as usize]);
    let error = load(&guest_memory(8 * MIB), &boot(&file, Some(&module))).unwrap_err();
    assert_eq!(error, Error::TooLarge { needed_bytes: 0x30_2000 + 5 * MIB, have_bytes: 8 * MIB });
}

#[test]
fn what_is_no_image_is_refused() {
    let mut other = elf();
    put(&mut other, HEADER + 0x20, &[0]);
    assert_eq!(refused(&other), Error::NotKernel);
    put(&mut other, HEADER + 0x20, &[0x1bad_b002, 3, 0]);
    assert_eq!(refused(&other), Error::NotKernel, "a wrong checksum");
    let mut late = vec![0; 8192 - 8];
    late.extend(elf());
    put(&mut late, 8192 - 8, &header(3));
    late.truncate(8192 + 4);
    assert_eq!(refused(&late), Error::NotKernel, "behind the first 8 KiB");
    let mut wide = elf();
    wide[4] = 2;
    assert_eq!(refused(&wide), Error::NotElf32);
    let mut strange = elf();
    put(&mut strange, HEADER + 0x20, &header(1 << 5 | 1));
    assert_eq!(refused(&strange), Error::UnknownRequirements { flags: 1 << 5 });
    put(&mut strange, HEADER + 0x20, &header(1 << 20 | 1 << 2));
    assert!(load(&guest_memory(8 * MIB), &boot(&strange, None)).is_ok(), "wishes may stay unfulfilled");
}

#[test]
fn contradictions_are_refused() {
    let damaged = |mut file: Vec<u8>, at: usize, words: &[u32]| {
        put(&mut file, at, words);
        refused(&file)
    };
    assert_eq!(damaged(elf(), 28, &[u32::MAX]), Error::Truncated);
    assert_eq!(damaged(elf(), 52 + 4, &[0x1fff]), Error::Truncated);
    assert_eq!(damaged(elf(), 52 + 20, &[0xfff]), Error::BadHeader("segment"), "more content than memory");
    assert_eq!(damaged(elf(), 84 + 12, &[u32::MAX]), Error::BadHeader("segment"), "past 4 GiB");
    assert_eq!(damaged(elf(), 40, &[52 | 31 << 16]), Error::BadHeader("e_phentsize"));
    assert_eq!(damaged(elf(), 24, &[0xd000_0000]), Error::BadHeader("entry"));
    assert_eq!(damaged(elf(), 44, &[0]), Error::BadHeader("entry"), "nothing to load");
    for (at, value, field) in [
        (12, 0, "load_addr"),
        (12, 0x10_0101, "header_addr"),
        (20, 0xf_ffff, "load_end_addr"),
        (24, 0xf_ffff, "bss_end_addr"),
        (24, 0x10_0f00, "segment"),
        (28, 0x10_1f80, "entry"),
    ] {
        assert_eq!(damaged(addressed(), HEADER + at, &[value]), Error::BadHeader(field), "{at} {value:#x}");
    }
    assert_eq!(damaged(addressed(), HEADER + 20, &[0x10_0f81]), Error::Truncated);
    assert_eq!(refused(&addressed()[..HEADER + 20]), Error::Truncated);
}

#[test]
fn more_segments_than_any_linker_makes_are_refused() {
    let mut file = elf();
    file.resize(0x4000, 0);
    put(&mut file, 28, &[0x3000]);
    put(&mut file, 44, &[17]);
    for index in 0..17 {
        put(&mut file, 0x3000 + 32 * index, &[1, 0x1000, 0xc020_0000, 0x20_0000, 0x1000, 0x1000, 5, 0x1000]);
    }
    assert_eq!(refused(&file), Error::BadHeader("too many segments"));
}

#[test]
fn a_refused_image_leaves_memory_alone() {
    let (memory, mut file) = (guest_memory(8 * MIB), elf());
    put(&mut file, 84 + 12, &[0x900_0000]);
    load(&memory, &boot(&file, Some(b"module"))).unwrap_err();
    assert!(read(&memory, 0, 8 * MIB as usize).iter().all(|byte| *byte == 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever a file says, it is refused or its kernel, module and information lie apart in memory.
    #[test]
    fn a_hostile_file_is_refused_or_harmless(
        is_elf in any::<bool>(),
        words in prop::collection::vec((0usize..0x50, any::<u32>(), 0u32..32), 0..4),
        cut in 0usize..0x2100,
        module_bytes in 0usize..(2 << 20),
        more in prop::collection::vec(0usize..(1 << 20), 0..4),
    ) {
        let mut file = if is_elf { elf() } else { addressed() };
        for (index, value, shift) in words {
            put(&mut file, 4 * index, &[value >> shift]);
        }
        file.truncate(cut.max(HEADER));
        let (memory, module) = (guest_memory(4 * MIB), vec![0xee; module_bytes]);
        let contents: Vec<Vec<u8>> = more.iter().zip(1..).map(|(&bytes, fill)| vec![fill; bytes]).collect();
        let modules: Vec<Module<'_>> = contents.iter().map(|bytes| Module { name: "more", bytes }).collect();
        if let Ok(state) = load(&memory, &Boot { modules: &modules, ..boot(&file, Some(&module)) }) {
            prop_assert!(state.rip < 4 * MIB);
            let information = state.gprs[Gpr::Rbx as usize];
            prop_assert!((0x1000..0xa_0000).contains(&information));
            let start = word(&memory, word(&memory, information + 24));
            prop_assert!(start >= MIB && read(&memory, start, module_bytes) == module);
            let image = Image::parse(&file, Header::find(&file).unwrap()).unwrap();
            prop_assert!(image.segments().all(|piece| piece.end <= start));
            let told = told(&memory, &state);
            prop_assert_eq!(told.len(), 1 + contents.len());
            prop_assert!(told.windows(2).all(|pair| pair[0].1 <= pair[1].0 && pair[1].0.is_multiple_of(PAGE_BYTES)));
            for ((start, end, _), content) in told[1..].iter().zip(&contents) {
                prop_assert!(&read(&memory, *start, (end - start) as usize) == content);
            }
        }
    }
}
