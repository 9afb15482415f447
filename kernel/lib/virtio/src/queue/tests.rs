//! The ring's rules: wrap-around, both ways to suppress notifications, and rings that a driver broke.

use super::*;
use crate::chain::Chain;
use crate::testing::{BUFFERS, END, INDIRECT, NEXT, Ring, WRITE};
use guestmem::heap::guest_memory;
use proptest::prelude::*;

const SIZE: u16 = 8;

struct Pair {
    queue: Queue,
    ring: Ring,
    memory: GuestMemory,
}

impl Pair {
    fn new(features: u64) -> Self {
        let ring = Ring::new(0, SIZE, features & F_EVENT_IDX != 0);
        let mut queue = Queue::new(SIZE);
        (queue.descriptors, queue.available, queue.used) = (ring.descriptors, ring.available, ring.used);
        queue.enable(features);
        assert!(queue.enabled);
        Self { queue, ring, memory: guest_memory(END) }
    }

    fn add(&mut self) -> u16 {
        self.ring.add(&self.memory, &[(BUFFERS, 4, false)])
    }

    fn pop(&mut self) -> Option<u16> {
        self.queue.pop(&self.memory).unwrap()
    }

    fn push(&mut self, head: u16) {
        self.queue.push_used(&self.memory, head, 0).unwrap();
    }

    fn read(&self, head: u16) -> Result<Chain, crate::chain::Malformed> {
        let mut chain = Chain::new();
        chain.read(&self.memory, self.queue.table(), head).map(|()| chain)
    }
}

/// Has the pages behind these addresses be on their way.
fn away(memory: &GuestMemory, ats: &[u64]) {
    let mut pages = guestmem::PageSet::new(memory.pages_end()).unwrap();
    ats.iter().for_each(|at| pages.insert(at / 4096, 1));
    memory.start_waiting(&pages).unwrap();
}

#[test]
fn a_chain_is_taken_when_all_of_it_is_here() {
    for features in [0, F_EVENT_IDX, F_EVENT_IDX | F_INDIRECT_DESC] {
        let mut pair = Pair::new(features);
        let first = pair.add();
        let far = BUFFERS + 0x5ff0;
        let pieces = [(BUFFERS, 4, false), (far, 0x20, true)];
        let second = pair.ring.add(&pair.memory, &pieces);
        away(&pair.memory, &[far + 0x10]);
        assert_eq!([pair.pop(), pair.pop(), pair.pop()], [Some(first), None, None]);
        let mut wanted = 0;
        pair.memory.take_wanted(|page| wanted = page);
        assert_eq!(pair.memory.put(wanted, None), Ok(true));
        assert_eq!([pair.pop(), pair.pop()], [Some(second), None]);
    }
}

#[test]
fn a_ring_that_is_not_here_breaks_nothing() {
    let mut pair = Pair::new(F_EVENT_IDX);
    let head = pair.add();
    away(&pair.memory, &[pair.ring.used]);
    assert_eq!([pair.pop(), pair.pop()], [None, None]);
    assert!(pair.queue.rings().any(|ring| ring.contains(Gpa::new(pair.ring.used))));
    pair.memory.put(pair.ring.used / 4096, None).unwrap();
    assert_eq!(pair.pop(), Some(head));
}

#[test]
fn indices_wrap() {
    for features in [0, F_EVENT_IDX] {
        let mut pair = Pair::new(features);
        for _ in 0..70_000 {
            let head = pair.add();
            assert!(pair.ring.kick_wanted(&pair.memory));
            assert_eq!(pair.pop(), Some(head));
            assert_eq!(pair.pop(), None);
            pair.push(head);
            pair.ring.set_used_event(&pair.memory, pair.queue.published_used);
            assert_eq!(pair.queue.publish(&pair.memory), Ok(true));
            assert_eq!(pair.ring.take_used(&pair.memory), [(head, 0)]);
        }
    }
}

#[test]
fn no_kick_is_wanted_while_chains_are_taken() {
    for features in [0, F_EVENT_IDX] {
        let mut pair = Pair::new(features);
        pair.add();
        assert!(pair.ring.kick_wanted(&pair.memory));
        assert!(pair.pop().is_some());
        for _ in 0..3 {
            pair.add();
            assert!(!pair.ring.kick_wanted(&pair.memory));
        }
        for _ in 0..3 {
            assert!(pair.pop().is_some());
        }
        pair.add();
        assert!(!pair.ring.kick_wanted(&pair.memory), "the end was not seen yet");
        assert!(pair.pop().is_some() && pair.pop().is_none());
        pair.add();
        assert!(pair.ring.kick_wanted(&pair.memory));
    }
}

#[test]
fn interrupts_by_flag() {
    let mut pair = Pair::new(0);
    assert_eq!(pair.queue.publish(&pair.memory), Ok(false));
    pair.push(0);
    assert_eq!(pair.queue.publish(&pair.memory), Ok(true));
    pair.memory.store(Gpa::new(pair.ring.available), 2, 1).unwrap();
    pair.push(0);
    assert_eq!(pair.queue.publish(&pair.memory), Ok(false));
    assert_eq!(pair.ring.take_used(&pair.memory).len(), 2);
}

#[test]
fn passing_an_event() {
    assert!(passes(0, 0, 1) && passes(5, 3, 6) && passes(0xffff, 0xfffe, 2));
    assert!(!passes(0, 1, 2) && !passes(6, 3, 6) && !passes(5, 5, 5) && !passes(2, 0xfffe, 2));
}

#[test]
fn heads_can_be_put_back() {
    let mut pair = Pair::new(F_EVENT_IDX);
    let (first, second) = (pair.add(), pair.add());
    assert_eq!((pair.pop(), pair.pop(), pair.pop()), (Some(first), Some(second), None));
    pair.queue.unpop(2);
    assert_eq!((pair.pop(), pair.pop(), pair.pop()), (Some(first), Some(second), None));
}

#[test]
fn rings_that_are_no_rings_do_not_start() {
    let good = Pair::new(0).queue;
    let starts = |change: fn(&mut Queue)| {
        let mut queue = Queue { enabled: false, ..good.clone() };
        change(&mut queue);
        queue.enable(0);
        queue.enabled
    };
    assert!(starts(|_| {}));
    assert!(!starts(|queue| queue.descriptors += 8));
    assert!(!starts(|queue| queue.available += 1));
    assert!(!starts(|queue| queue.used += 2));
    assert!(!starts(|queue| queue.used = u64::MAX - 3));
    let mut queue = Queue::new(SIZE);
    for size in [0, 3, 16, 0x8000] {
        queue.set_size(size);
        assert_eq!(queue.size, SIZE);
    }
    queue.set_size(2);
    assert_eq!(queue.size, 2);
    assert_eq!(Queue::new(SIZE).pop(&guest_memory(END)), Ok(None), "not enabled");
}

#[test]
fn broken_rings_are_noticed() {
    let mut pair = Pair::new(0);
    pair.ring.set_available_index(&pair.memory, SIZE + 1);
    assert_eq!(pair.queue.pop(&pair.memory), Err(Broken), "more than there is room for");
    let mut pair = Pair::new(0);
    pair.ring.offer(&pair.memory, SIZE);
    assert_eq!(pair.queue.pop(&pair.memory), Err(Broken), "no such head");
    let mut pair = Pair::new(0);
    pair.queue.available = END - 2;
    assert_eq!(pair.queue.pop(&pair.memory), Err(Broken));
    pair.queue.used = END;
    assert_eq!(pair.queue.push_used(&pair.memory, 0, 0), Err(Broken));
}

#[test]
fn chains() {
    let mut pair = Pair::new(F_INDIRECT_DESC);
    let pieces = [(BUFFERS, 1, false), (BUFFERS + 8, 0, false), (BUFFERS + 16, 3, true)];
    let direct = pair.ring.add(&pair.memory, &pieces);
    let indirect = pair.ring.add_indirect(&pair.memory, BUFFERS + 0x100, &pieces);
    for head in [direct, indirect] {
        let chain = pair.read(head).unwrap();
        assert_eq!(chain.readable, [(Gpa::new(BUFFERS), 1)]);
        assert_eq!(chain.writable, [(Gpa::new(BUFFERS + 16), 3)]);
        assert!(!chain.disordered);
    }
    // A direct descriptor may precede the indirect one; the write flag of the latter means nothing (2.7.5.3.2).
    let table = pair.ring.descriptors;
    pair.ring.set_descriptor(&pair.memory, table, 6, (BUFFERS + 64, 2, NEXT, 7));
    pair.ring.set_descriptor(&pair.memory, table, 7, (BUFFERS + 0x100, 48, INDIRECT | WRITE, 0));
    assert_eq!(pair.read(6).unwrap().readable, [(Gpa::new(BUFFERS + 64), 2), (Gpa::new(BUFFERS), 1)]);
}

#[test]
fn the_longest_chain() {
    let mut pair = Pair::new(F_INDIRECT_DESC);
    let pieces: Vec<_> = (0..300).map(|index| (BUFFERS + index, 1, false)).collect();
    let head = pair.ring.add_indirect(&pair.memory, BUFFERS + 0x1000, &pieces[..258]);
    assert_eq!(pair.read(head).unwrap().readable.len(), 258);
    let head = pair.ring.add_indirect(&pair.memory, BUFFERS + 0x1000, &pieces);
    assert!(pair.read(head).is_err());
}

#[test]
fn malformed_chains() {
    let pair = Pair::new(F_INDIRECT_DESC);
    let table = pair.ring.descriptors;
    let set =
        |index, at, bytes, flags, next| pair.ring.set_descriptor(&pair.memory, table, index, (at, bytes, flags, next));
    set(0, BUFFERS, 1, NEXT, 1);
    set(1, BUFFERS, 1, NEXT, 0);
    assert!(pair.read(0).is_err(), "a loop");
    set(0, BUFFERS, 1, NEXT, SIZE);
    assert!(pair.read(0).is_err(), "past the table");
    for (bytes, flags) in [(0, INDIRECT), (24, INDIRECT), (16, INDIRECT | NEXT)] {
        set(0, BUFFERS, bytes, flags, 1);
        assert!(pair.read(0).is_err(), "{bytes} {flags}");
    }
    set(0, BUFFERS, 16, INDIRECT, 0);
    pair.ring.set_descriptor(&pair.memory, BUFFERS, 0, (BUFFERS + 16, 16, INDIRECT, 0));
    pair.ring.set_descriptor(&pair.memory, BUFFERS + 16, 0, (BUFFERS, 1, 0, 0));
    assert!(pair.read(0).is_err(), "a table in a table");
    pair.ring.set_descriptor(&pair.memory, BUFFERS, 0, (BUFFERS, 16, NEXT, 1));
    assert!(pair.read(0).is_err(), "past the indirect table");
    set(0, END, 16, INDIRECT, 0);
    assert!(pair.read(0).is_err(), "a table that is no memory");
    let pair = Pair::new(0);
    pair.ring.set_descriptor(&pair.memory, table, 0, (BUFFERS, 16, INDIRECT, 0));
    assert!(pair.read(0).is_err(), "not negotiated");
}

proptest! {
    /// Whatever the driver and device do in turn, a chain that is waiting while the device rests has been kicked for.
    #[test]
    fn no_chain_is_stranded(event_index: bool, start: u16, steps in prop::collection::vec((0u8..4, 1u16..4), 1..200)) {
        let mut pair = Pair::new(if event_index { F_EVENT_IDX } else { 0 });
        // Anywhere on the way to the wrap: chains go through one by one, each kicked for.
        for _ in 0..start % 64 {
            let head = pair.add();
            prop_assert!(pair.ring.kick_wanted(&pair.memory));
            prop_assert_eq!(pair.pop(), Some(head));
            prop_assert_eq!(pair.pop(), None);
        }
        let (mut waiting, mut awake) = (0, false);
        for (step, count) in steps {
            if step < 2 {
                let count = count.min(SIZE - waiting);
                for _ in 0..count {
                    pair.add();
                }
                waiting += count;
                awake |= pair.ring.kick_wanted(&pair.memory);
            } else if awake {
                for _ in 0..count {
                    match pair.pop() {
                        Some(_) => waiting -= 1,
                        None => {
                            awake = false;
                            break;
                        }
                    }
                }
            }
            prop_assert!(awake || waiting == 0, "{} chains wait and nobody knows", waiting);
        }
    }

    /// Interrupts come exactly where the driver's event index is passed.
    #[test]
    fn interrupts_follow_the_event_index(batches in prop::collection::vec((0u16..6, 0u16..8), 1..100)) {
        let mut pair = Pair::new(F_EVENT_IDX);
        let mut index = 0u16;
        for (count, distance) in batches {
            pair.ring.set_used_event(&pair.memory, index.wrapping_add(distance));
            for _ in 0..count {
                pair.push(0);
            }
            prop_assert_eq!(pair.queue.publish(&pair.memory), Ok(distance < count));
            index = index.wrapping_add(count);
        }
    }
}

/// Memory in which the driver adds a chain at the very moment the device asks for a kick, too late to see the request.
struct Racing {
    heap: guestmem::heap::Heap,
    arms_at: u64,
    available: u64,
}

impl guestmem::Backing for Racing {
    fn read(&self, at: addr::Hpa, into: &mut [u8]) {
        self.heap.read(at, into);
    }

    fn write(&self, at: addr::Hpa, from: &[u8]) {
        self.heap.write(at, from);
    }

    fn zero(&self, at: addr::Hpa, bytes: u64) {
        self.heap.zero(at, bytes);
    }

    fn is_zero_page(&self, at: addr::Hpa) -> bool {
        self.heap.is_zero_page(at)
    }

    fn load(&self, at: addr::Hpa, size: usize) -> u64 {
        self.heap.load(at, size)
    }

    fn compare_exchange(&self, at: addr::Hpa, size: usize, expected: u64, new: u64) -> bool {
        self.heap.compare_exchange(at, size, expected, new)
    }

    fn store(&self, at: addr::Hpa, size: usize, value: u64) {
        self.heap.store(at, size, value);
        if at.as_u64() == self.arms_at {
            self.heap.store(addr::Hpa::new(self.available + 2), 2, 2);
        }
    }
}

#[test]
fn a_chain_added_while_arming_is_found() {
    let mut pair = Pair::new(F_EVENT_IDX);
    let (arms_at, available) = (pair.ring.used + 4 + 8 * u64::from(SIZE), pair.ring.available);
    let racing = Racing { heap: guestmem::heap::Heap::new(END), arms_at, available };
    pair.memory = GuestMemory::new(std::sync::Arc::new(racing));
    let frames = (0..END / addr::LARGE_PAGE_BYTES).map(|frame| addr::Hpa::new(frame * addr::LARGE_PAGE_BYTES));
    pair.memory.add_slot(Gpa::new(0), frames.collect());
    let head = pair.add();
    assert_eq!(pair.pop(), Some(head));
    assert_eq!(pair.pop(), Some(0), "the ring's second entry, still zero");
    assert_eq!(pair.pop(), None);
}
