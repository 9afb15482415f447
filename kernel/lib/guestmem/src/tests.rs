//! Accesses within and outside the frames, and what is noted of them.

use super::*;
use heap::guest_memory;

#[test]
fn copies_cross_frames() {
    let memory = guest_memory(2 * LARGE_PAGE_BYTES);
    let at = Gpa::new(LARGE_PAGE_BYTES - 3);
    memory.write(at, b"abcdef").unwrap();
    let mut back = [0; 6];
    memory.read(at, &mut back).unwrap();
    assert_eq!(&back, b"abcdef");
    assert_eq!(memory.load(Gpa::new(LARGE_PAGE_BYTES - 1), 2).unwrap(), u64::from(u16::from_le_bytes(*b"cd")));
}

#[test]
fn a_page_of_zeroes_is_told_from_a_last_bit() {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    memory.write(Gpa::new(0x1fff), &[0x80, 0, 1]).unwrap();
    assert_eq!([0, 1, 2, 3].map(|page| memory.is_zero_page(page)), [Ok(true), Ok(false), Ok(false), Ok(true)]);
    assert_eq!(memory.is_zero_page(512), Err(Outside { at: Gpa::new(LARGE_PAGE_BYTES) }));
    assert!(memory.is_zero_page(u64::MAX).is_err());
}

#[test]
fn nothing_is_written_when_any_byte_is_outside() {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    let at = Gpa::new(LARGE_PAGE_BYTES - 2);
    assert_eq!(memory.write(at, b"abcd"), Err(Outside { at: Gpa::new(LARGE_PAGE_BYTES) }));
    assert_eq!(memory.load(at, 2).unwrap(), 0);
    assert!(memory.write(Gpa::new(u64::MAX), b"ab").is_err());
    assert!(memory.check(Gpa::new(u64::MAX - 1), 1).is_err());
}

#[test]
fn every_kind_of_write_is_noted_while_tracking_is_on() {
    let memory = guest_memory(2 * LARGE_PAGE_BYTES);
    let dirty = || {
        let mut pages = PageSet::new(memory.pages_end()).unwrap();
        memory.harvest(&mut pages);
        pages.iter().collect::<Vec<_>>()
    };
    memory.write(Gpa::new(0), b"unseen").unwrap();
    assert_eq!(dirty(), []);
    memory.start_tracking().unwrap();
    memory.write(Gpa::new(0xfff), b"ab").unwrap();
    memory.store(Gpa::new(0x5000), 4, 7).unwrap();
    memory.store(Gpa::new(0x7ffe), 4, 7).unwrap();
    memory.zero(Gpa::new(LARGE_PAGE_BYTES - 1), 2).unwrap();
    assert!(memory.compare_exchange(Gpa::new(0xa000), 8, 0, 1).unwrap());
    assert!(!memory.compare_exchange(Gpa::new(0xb000), 8, 5, 1).unwrap());
    memory.mark_dirty(Gpa::new(0xc000), 0x1001);
    assert_eq!(dirty(), [0, 1, 5, 7, 8, 10, 12, 13, 511, 512]);
    assert_eq!(dirty(), []);
    memory.stop_tracking();
    memory.write(Gpa::new(0), b"unseen").unwrap();
    memory.start_tracking().unwrap();
    assert_eq!(dirty(), []);
}

#[test]
fn a_refused_write_is_not_noted() {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    memory.start_tracking().unwrap();
    assert!(memory.write(Gpa::new(LARGE_PAGE_BYTES - 1), b"ab").is_err());
    let mut pages = PageSet::new(memory.pages_end()).unwrap();
    memory.harvest(&mut pages);
    assert!(pages.is_empty());
}

#[test]
fn all_pages_leave_holes_out() {
    let mut memory = guest_memory(LARGE_PAGE_BYTES);
    memory.add_slot(Gpa::new(4 * LARGE_PAGE_BYTES), alloc::vec![Hpa::new(0)]);
    let pages = memory.all_pages().unwrap();
    assert_eq!(pages.count(), 1024);
    assert!(pages.contains(511) && !pages.contains(512) && pages.contains(2048));
}

#[test]
fn read_only_memory_is_read_alone() {
    let mut memory = guest_memory(2 * LARGE_PAGE_BYTES);
    memory.write(Gpa::new(0x3ffe), b"abcd").unwrap();
    let rom = Gpa::new(0xffff_c000);
    memory.add_rom(rom, Hpa::new(0x2000), 0x4000);
    let mut back = [0; 4];
    memory.read(rom.wrapping_add(0x1ffe), &mut back).unwrap();
    assert_eq!(&back, b"abcd");
    assert_eq!(memory.load(rom.wrapping_add(0x2000), 2), Ok(0x6463));
    for at in [rom, rom.wrapping_add(0x1ffe)] {
        assert!(memory.write(at, b"x").is_err() && memory.store(at, 2, 1).is_err() && memory.zero(at, 1).is_err());
        assert!(memory.compare_exchange(at, 2, 0, 1).is_err() && memory.check(at, 1).is_err());
    }
    assert!(memory.read(rom.wrapping_add(0x3ffe), &mut back).is_err(), "past its end");
    assert_eq!(memory.total_bytes(), 2 * LARGE_PAGE_BYTES);
    assert_eq!(memory.rom_pages().last(), Some((rom.wrapping_add(0x3000), Hpa::new(0x5000))));
}

#[test]
fn slots_leave_holes() {
    let mut memory = guest_memory(LARGE_PAGE_BYTES);
    memory.add_slot(Gpa::new(4 * LARGE_PAGE_BYTES), alloc::vec![Hpa::new(0)]);
    assert!(memory.check(Gpa::new(LARGE_PAGE_BYTES - 1), 2).is_err());
    assert!(memory.check(Gpa::new(4 * LARGE_PAGE_BYTES), LARGE_PAGE_BYTES).is_ok());
    assert_eq!(memory.total_bytes(), 2 * LARGE_PAGE_BYTES);
    assert_eq!(memory.frames().count(), 2);
}

/// Hands out what was taken away, zeroed, up to a number of times.
struct Frames(std::sync::Arc<heap::Heap>, Mutex<Vec<Hpa>>);

impl Supply for Frames {
    fn supply(&self, _number: usize, _at_once: bool) -> Option<Hpa> {
        self.1.lock().pop().inspect(|&frame| self.0.zero(frame, LARGE_PAGE_BYTES))
    }
}

/// Two large frames of memory, and a supply of `spare` more.
fn memory_with_supply(spare: u64) -> GuestMemory {
    let heap = std::sync::Arc::new(heap::Heap::new((2 + spare) * LARGE_PAGE_BYTES));
    let frame = |index| Hpa::new(index * LARGE_PAGE_BYTES);
    let supply = Frames(heap.clone(), Mutex::new((2..2 + spare).map(frame).collect()));
    let mut memory = GuestMemory::new(heap).with_supply(std::sync::Arc::new(supply));
    memory.add_slot(Gpa::new(0), alloc::vec![frame(0), frame(1)]);
    memory
}

#[test]
fn what_was_given_up_reads_as_zeroes_and_takes_no_frame_for_that() {
    let memory = memory_with_supply(1);
    memory.write(Gpa::new(LARGE_PAGE_BYTES - 2), b"abcd").unwrap();
    assert_eq!(memory.take_frame(Gpa::new(LARGE_PAGE_BYTES + 5)), Some(Hpa::new(LARGE_PAGE_BYTES)));
    assert_eq!(memory.take_frame(Gpa::new(LARGE_PAGE_BYTES)), None, "once");
    let mut bytes = *b"....";
    memory.read(Gpa::new(LARGE_PAGE_BYTES - 2), &mut bytes).unwrap();
    assert_eq!(&bytes, b"ab\0\0");
    assert_eq!(memory.load(Gpa::new(LARGE_PAGE_BYTES), 8).unwrap(), 0);
    assert_eq!(memory.absent_bytes(), LARGE_PAGE_BYTES);
    assert_eq!(memory.all_frames().map(|(_, frame)| frame).collect::<Vec<_>>(), [Some(Hpa::new(0)), None]);
    assert!(memory.check(Gpa::new(0), 2 * LARGE_PAGE_BYTES).is_ok(), "it is memory all the same");
}

#[test]
fn every_kind_of_use_but_reading_gets_a_frame() {
    type Use = fn(&GuestMemory, Gpa) -> bool;
    let uses: [Use; 6] = [
        |memory, at| memory.write(at, b"ab").is_ok(),
        |memory, at| memory.store(at, 4, 7).is_ok(),
        |memory, at| memory.compare_exchange(at, 8, 0, 1) == Ok(true),
        |memory, at| memory.zero(at, 3).is_ok(),
        |memory, at| memory.each_run(at, 8, |_| ()).is_ok(),
        |memory, at| memory.touch(at).is_some(),
    ];
    for act in uses {
        for at in [Gpa::new(LARGE_PAGE_BYTES), Gpa::new(2 * LARGE_PAGE_BYTES - 8)] {
            let memory = memory_with_supply(1);
            memory.write(Gpa::new(LARGE_PAGE_BYTES + 0x1000), b"old").unwrap();
            memory.take_frame(at).unwrap();
            assert!(act(&memory, at));
            assert_eq!(memory.absent_bytes(), 0);
            assert_eq!(memory.load(Gpa::new(LARGE_PAGE_BYTES + 0x1000), 2).unwrap(), 0, "the old content is gone");
        }
    }
}

#[test]
fn what_was_never_used_reads_as_zeroes_and_takes_frames_one_by_one() {
    let heap = std::sync::Arc::new(heap::Heap::new(2 * LARGE_PAGE_BYTES));
    let frame = |index| Hpa::new(index * LARGE_PAGE_BYTES);
    heap.write(frame(1), b"of the last owner");
    let supply = Frames(heap.clone(), Mutex::new(alloc::vec![frame(0), frame(1)]));
    let mut memory = GuestMemory::new(heap).with_supply(std::sync::Arc::new(supply));
    memory.add_unused_slot(Gpa::new(0), 2);
    assert_eq!((memory.absent_bytes(), memory.frames().count()), (2 * LARGE_PAGE_BYTES, 0));
    assert_eq!(memory.load(Gpa::new(8), 8).unwrap(), 0);
    assert_eq!(memory.is_zero_page(512), Ok(true));
    assert_eq!(memory.absent_bytes(), 2 * LARGE_PAGE_BYTES, "reading takes none");
    memory.write(Gpa::new(LARGE_PAGE_BYTES + 8), b"mine").unwrap();
    let mut bytes = [1; 16];
    memory.read(Gpa::new(LARGE_PAGE_BYTES), &mut bytes).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0\0\0\0\0mine\0\0\0\0", "it was zeroed");
    assert_eq!(memory.frames().collect::<Vec<_>>(), [(Gpa::new(LARGE_PAGE_BYTES), frame(1))]);
    assert_eq!(memory.frame_number(Gpa::new(LARGE_PAGE_BYTES + 8)), Some(1));
    assert_eq!(
        (memory.frame_number(Gpa::new(8)), memory.frame_number(Gpa::new(2 * LARGE_PAGE_BYTES))),
        (Some(0), None)
    );
}

#[test]
fn no_bytes_are_everywhere() {
    let memory = memory_with_supply(1);
    memory.take_frame(Gpa::new(LARGE_PAGE_BYTES)).unwrap();
    for at in [LARGE_PAGE_BYTES + 5, 2 * LARGE_PAGE_BYTES + 5, u64::MAX] {
        assert!(memory.write(Gpa::new(at), &[]).is_ok() && memory.read(Gpa::new(at), &mut []).is_ok());
    }
    assert_eq!(memory.absent_bytes(), LARGE_PAGE_BYTES, "they take no frame");
}

#[test]
fn what_is_awaited_is_neither_read_nor_written() {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    memory.write(Gpa::new(0x1000), &[7; 0x3000]).unwrap();
    let mut pages = PageSet::new(memory.pages_end()).unwrap();
    pages.insert(2, 2);
    memory.start_waiting(&pages).unwrap();
    let absent = Err(Outside { at: Gpa::new(0x2000) });
    assert_eq!(memory.write(Gpa::new(0x1fff), b"ab"), absent);
    assert_eq!(memory.read(Gpa::new(0x1fff), &mut [0; 2]), absent);
    assert_eq!(memory.is_zero_page(2), Err(Outside { at: Gpa::new(0x2000) }));
    assert_eq!(memory.each_run(Gpa::new(0x2ff0), 1, |_| panic!("it is not here")), absent);
    assert!(memory.load(Gpa::new(0x3000), 8).is_err() && memory.store(Gpa::new(0x3000), 8, 1).is_err());
    assert!(memory.compare_exchange(Gpa::new(0x3ff8), 8, 0, 1).is_err());
    assert_eq!(memory.load(Gpa::new(0x1fff), 1), Ok(7), "nothing was written");
    assert!(memory.is_here(Gpa::new(0x1000), 0x1000) && memory.is_here(Gpa::new(0x2000), 0));
    let wanted = || {
        let mut wanted = Vec::new();
        memory.take_wanted(|page| wanted.push(page));
        wanted
    };
    assert_eq!((wanted(), wanted()), (vec![2, 3], vec![]));
    assert!(!memory.is_here(Gpa::new(0x3000), 1));
    assert_eq!(wanted(), [], "it was asked for");
    memory.ask_again();
    assert!(!memory.is_here(Gpa::new(0x3000), 1));
    assert_eq!(wanted(), [3]);
    assert_eq!(memory.put(3, Some(&[9; 4096])), Ok(true));
    assert_eq!(memory.put(3, Some(&[1; 4096])), Ok(false), "it came before");
    assert_eq!(memory.put(2, None), Ok(false), "nobody asked again");
    assert_eq!(memory.put(u64::MAX, None), Ok(false));
    assert_eq!((memory.load(Gpa::new(0x3000), 1), memory.load(Gpa::new(0x2000), 8)), (Ok(9), Ok(0)));
    memory.stop_waiting();
    assert!(!memory.is_waiting() && memory.is_here(Gpa::new(0), LARGE_PAGE_BYTES));
}

#[test]
fn what_a_device_put_there_is_looked_at_and_then_here() {
    let memory = guest_memory(LARGE_PAGE_BYTES);
    memory.write(Gpa::new(0x3000), &[7; 0x1000]).unwrap();
    memory.start_waiting(&memory.all_pages().unwrap()).unwrap();
    let mut page = [0; 4096];
    assert_eq!((memory.read_frame(3, &mut page), page), (Ok(()), [7; 4096]));
    assert!(memory.read_frame(512, &mut page).is_err() && memory.read_frame(u64::MAX, &mut page).is_err());
    assert!(!memory.is_here(Gpa::new(0x3000), 1) && memory.is_awaited(3) && !memory.is_awaited(u64::MAX));
    assert!(!memory.arrived(4, 508) && memory.arrived(2, 2), "page 3 was wanted");
    assert_eq!(memory.load(Gpa::new(0x3000), 1), Ok(7));
    assert!(!memory.is_here(Gpa::new(0x1000), 1) && !memory.is_awaited(3));
    assert!(memory.arrived(0, u64::MAX) && memory.is_here(Gpa::new(0), LARGE_PAGE_BYTES));
}

#[test]
fn without_a_frame_a_use_fails_and_nothing_is_written() {
    let memory = memory_with_supply(0);
    memory.take_frame(Gpa::new(LARGE_PAGE_BYTES)).unwrap();
    assert!(memory.write(Gpa::new(LARGE_PAGE_BYTES - 1), b"ab").is_err());
    assert_eq!(memory.load(Gpa::new(LARGE_PAGE_BYTES - 1), 1).unwrap(), 0);
    assert!(memory.store(Gpa::new(LARGE_PAGE_BYTES), 8, 1).is_err());
    assert_eq!(memory.touch(Gpa::new(LARGE_PAGE_BYTES)), None);
    assert_eq!(memory.touch(Gpa::new(2 * LARGE_PAGE_BYTES)), None, "no memory at all");
    assert_eq!(memory.touch(Gpa::new(5)), Some(Hpa::new(0)));
}
