//! The kernel's heap: fixed size classes in front of `linked_list_allocator`.
//!
//! The list allocator searches its free blocks one by one, which is slow with thousands of them; so small blocks come
//! from free lists of their own size, refilled a page at a time, and only the few larger ones reach a list. Lists take
//! a large frame each, as many as are needed; one that is wholly free again is given back. Blocks of half a large frame
//! and more are large frames themselves. An interrupt handler never allocates, so a plain lock does; nobody allocates
//! with [`FRAMES`] locked.

use crate::FRAMES;
use addr::{Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};
use spin::Mutex;

/// The smallest class's size is 16 bytes, and each next one's twice that of the one before.
const CLASS_BYTES_MIN: usize = 16;
const CLASSES: usize = 8;
const CLASS_BYTES_MAX: usize = CLASS_BYTES_MIN << (CLASSES - 1);

/// What one list manages: a large frame.
const LIST_BYTES: usize = LARGE_PAGE_BYTES as usize;
const LISTS_MAX: usize = 64;

/// From here on a block is made of large frames.
const LARGE_BYTES_MIN: usize = 1 << 20;

/// The kernel's global allocator.
pub struct Heap;

// The tests of crates above this one run on a host that has its own.
#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: Heap = Heap;

static STATE: Mutex<State> = Mutex::new(State::new());

struct State {
    /// The first free block of each class; each holds the address of the next.
    free: [*mut u8; CLASSES],
    class_bytes: usize,
    class_free_bytes: usize,
    lists: Lists,
    large_bytes: usize,
}

// SAFETY: the pointers lead to free blocks that only the holder of the lock reaches.
unsafe impl Send for State {}

/// What the heap uses, in bytes. All of it is in frames that [`FRAMES`] counts as taken.
#[derive(Clone, Copy, Debug)]
pub struct HeapUse {
    /// Frames behind the size classes, which keep what they have.
    pub class_bytes: usize,
    /// Free of them.
    pub class_free_bytes: usize,
    /// Used of what the lists have.
    pub list_used_bytes: usize,
    /// Free of it. More lists are made as long as there are frames.
    pub list_free_bytes: usize,
    /// Frames behind large blocks.
    pub large_bytes: usize,
}

impl HeapUse {
    /// What the heap holds and nothing uses: with it taken off, what the host uses does not drift with the free lists.
    pub fn idle_bytes(&self) -> usize {
        self.class_free_bytes + self.list_free_bytes
    }
}

impl Heap {
    /// What the heap uses now.
    pub fn usage() -> HeapUse {
        let state = STATE.lock();
        let lists = &state.lists.lists;
        HeapUse {
            class_bytes: state.class_bytes,
            class_free_bytes: state.class_free_bytes,
            list_used_bytes: lists.iter().map(linked_list_allocator::Heap::used).sum(),
            list_free_bytes: lists.iter().map(linked_list_allocator::Heap::free).sum(),
            large_bytes: state.large_bytes,
        }
    }
}

// SAFETY: blocks are handed out once, and are as large and as aligned as their class, list block or frame.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut state = STATE.lock();
        match class_of(layout) {
            Place::Class(class) => state.take(class),
            Place::List => state.lists.take(layout).map_or(null_mut(), NonNull::as_ptr),
            Place::Large(count) => state.take_large(count),
            Place::Nowhere => null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let mut state = STATE.lock();
        match class_of(layout) {
            Place::Class(class) => {
                // SAFETY: the block is free now, and of its class's size.
                unsafe { state.give(class, block) }
            }
            Place::List => {
                // SAFETY: the block came from a list with this layout; it is not null.
                unsafe { state.lists.give(NonNull::new_unchecked(block), layout) }
            }
            Place::Large(count) => state.give_large(block, count),
            Place::Nowhere => unreachable!("no such block was handed out"),
        }
    }
}

/// Where blocks of a layout come from.
enum Place {
    Class(usize),
    List,
    /// This many large frames in a row.
    Large(usize),
    /// Nothing is aligned to more than a large frame.
    Nowhere,
}

fn class_of(layout: Layout) -> Place {
    let bytes = layout.size().max(layout.align()).max(CLASS_BYTES_MIN);
    if bytes <= CLASS_BYTES_MAX {
        Place::Class((bytes.next_power_of_two() / CLASS_BYTES_MIN).trailing_zeros() as usize)
    } else if bytes < LARGE_BYTES_MIN {
        Place::List
    } else if layout.align() > LARGE_PAGE_BYTES as usize {
        Place::Nowhere
    } else {
        Place::Large(bytes.div_ceil(LARGE_PAGE_BYTES as usize))
    }
}

impl State {
    const fn new() -> Self {
        let free = [null_mut(); CLASSES];
        Self { free, class_bytes: 0, class_free_bytes: 0, lists: Lists::new(), large_bytes: 0 }
    }

    fn take(&mut self, class: usize) -> *mut u8 {
        if self.free[class].is_null() {
            self.refill(class);
        }
        let block = self.free[class];
        if !block.is_null() {
            // SAFETY: a free block holds the address of the next.
            self.free[class] = unsafe { *block.cast::<*mut u8>() };
            self.class_free_bytes -= CLASS_BYTES_MIN << class;
        }
        block
    }

    /// # Safety
    /// `block` is not in use and has the size of `class`.
    unsafe fn give(&mut self, class: usize, block: *mut u8) {
        // SAFETY: the caller's promise; a block is at least 16 bytes and as aligned.
        unsafe { *block.cast::<*mut u8>() = self.free[class] };
        self.free[class] = block;
        self.class_free_bytes += CLASS_BYTES_MIN << class;
    }

    fn refill(&mut self, class: usize) {
        let Some(frame) = FRAMES.lock().take_small(1) else { return };
        self.class_bytes += PAGE_BYTES as usize;
        for offset in (0..PAGE_BYTES as usize).step_by(CLASS_BYTES_MIN << class) {
            // SAFETY: a piece of a frame that was free, as large as its class.
            unsafe { self.give(class, (frame.as_u64() as usize + offset) as *mut u8) };
        }
    }

    fn take_large(&mut self, count: usize) -> *mut u8 {
        let Some(first) = FRAMES.lock().take_large_run(count) else { return null_mut() };
        self.large_bytes += count * LARGE_PAGE_BYTES as usize;
        first.as_u64() as *mut u8
    }

    fn give_large(&mut self, block: *mut u8, count: usize) {
        let mut frames = FRAMES.lock();
        (0..count as u64).for_each(|index| frames.free_large(Hpa::new(block as u64 + index * LARGE_PAGE_BYTES)));
        self.large_bytes -= count * LARGE_PAGE_BYTES as usize;
    }
}

/// The lists, each in a large frame of its own; an unused entry is empty, of size 0.
struct Lists {
    lists: [linked_list_allocator::Heap; LISTS_MAX],
    /// The list that gave the last block, which is asked first.
    last: usize,
}

impl Lists {
    const fn new() -> Self {
        Self { lists: [const { linked_list_allocator::Heap::empty() }; LISTS_MAX], last: 0 }
    }

    fn take(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        for index in core::iter::once(self.last).chain(0..LISTS_MAX) {
            let list = &mut self.lists[index];
            // Spares the search of a list that is too full.
            if list.free() >= layout.size()
                && let Ok(block) = list.allocate_first_fit(layout)
            {
                self.last = index;
                return Some(block);
            }
        }
        self.last = self.add()?;
        self.lists[self.last].allocate_first_fit(layout).ok()
    }

    /// Takes back a block, and gives its list's frame back when nothing else is in it, unless it is the last list.
    ///
    /// # Safety
    /// The block came from [`take`](Self::take) with this layout and is not in use.
    unsafe fn give(&mut self, block: NonNull<u8>, layout: Layout) {
        let base = Hpa::new(block.as_ptr() as u64).align_down(LARGE_PAGE_BYTES);
        let is_its = |list: &linked_list_allocator::Heap| list.size() > 0 && list.bottom() as u64 == base.as_u64();
        let index = self.lists.iter().position(is_its).expect("a block lies in one of the lists");
        // SAFETY: the caller's promise, and a list never leaves its frame.
        unsafe { self.lists[index].deallocate(block, layout) };
        if self.lists[index].used() == 0 && self.lists.iter().filter(|list| list.size() > 0).count() > 1 {
            self.lists[index] = linked_list_allocator::Heap::empty();
            FRAMES.lock().free_large(base);
        }
    }

    /// A new list's index.
    fn add(&mut self) -> Option<usize> {
        let index = self.lists.iter().position(|list| list.size() == 0)?;
        let frame = FRAMES.lock().take_large()?;
        // SAFETY: a free large frame of the identity map, which is the list's until it is given back.
        unsafe { self.lists[index].init(frame.as_u64() as *mut u8, LIST_BYTES) };
        Some(index)
    }
}
