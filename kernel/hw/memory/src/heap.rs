//! The kernel's heap: fixed size classes in front of `linked_list_allocator`.
//!
//! The list allocator searches its free blocks one by one, which is slow with thousands of them; so small blocks come
//! from free lists of their own size, refilled a page at a time, and only the few large ones reach the list. Blocks of
//! half a large frame and more are large frames themselves. An interrupt handler never allocates, so a plain lock does.

use crate::FRAMES;
use addr::{Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};
use spin::Mutex;

/// The smallest class's size is 16 bytes, and each next one's twice that of the one before.
const CLASS_BYTES_MIN: usize = 16;
const CLASSES: usize = 8;
const CLASS_BYTES_MAX: usize = CLASS_BYTES_MIN << (CLASSES - 1);

/// What the list allocator manages.
const LIST_BYTES: usize = 2 << 20;

/// From here on a block is made of large frames.
const LARGE_BYTES_MIN: usize = 1 << 20;

/// The kernel's global allocator.
pub struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

static STATE: Mutex<State> = Mutex::new(State::new());

struct State {
    /// The first free block of each class; each holds the address of the next.
    free: [*mut u8; CLASSES],
    list: linked_list_allocator::Heap,
    class_bytes: usize,
    large_bytes: usize,
}

// SAFETY: the pointers lead to free blocks that only the holder of the lock reaches.
unsafe impl Send for State {}

/// What the heap uses, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct HeapUse {
    /// Frames behind the size classes.
    pub class_bytes: usize,
    /// Used of what the list allocator has.
    pub list_used_bytes: usize,
    /// Free of it.
    pub list_free_bytes: usize,
    /// Frames behind large blocks.
    pub large_bytes: usize,
}

impl Heap {
    /// What the heap uses now.
    pub fn usage() -> HeapUse {
        let state = STATE.lock();
        HeapUse {
            class_bytes: state.class_bytes,
            list_used_bytes: state.list.used(),
            list_free_bytes: state.list.free(),
            large_bytes: state.large_bytes,
        }
    }
}

/// Gives the list allocator its memory.
pub fn init() {
    let frame = FRAMES.lock().take_large().expect("2 MiB of RAM are free at start-up");
    // SAFETY: a free large frame of the identity map, given to the heap for ever.
    unsafe { STATE.lock().list.init(frame.as_u64() as *mut u8, LIST_BYTES) };
}

// SAFETY: blocks are handed out once, and are as large and as aligned as their class, list block or frame.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut state = STATE.lock();
        match class_of(layout) {
            Place::Class(class) => state.take(class),
            Place::List => state.list.allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr),
            Place::Large(count) => state.take_large(count),
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
                // SAFETY: the block came from the list with this layout; it is not null.
                unsafe { state.list.deallocate(NonNull::new_unchecked(block), layout) }
            }
            Place::Large(count) => state.give_large(block, count),
        }
    }
}

/// Where blocks of a layout come from.
enum Place {
    Class(usize),
    List,
    /// This many large frames.
    Large(usize),
}

fn class_of(layout: Layout) -> Place {
    let bytes = layout.size().max(layout.align()).max(CLASS_BYTES_MIN);
    if bytes <= CLASS_BYTES_MAX {
        Place::Class((bytes.next_power_of_two() / CLASS_BYTES_MIN).trailing_zeros() as usize)
    } else if bytes < LARGE_BYTES_MIN {
        Place::List
    } else {
        Place::Large(bytes.div_ceil(LARGE_PAGE_BYTES as usize))
    }
}

impl State {
    const fn new() -> Self {
        let list = linked_list_allocator::Heap::empty();
        Self { free: [null_mut(); CLASSES], list, class_bytes: 0, large_bytes: 0 }
    }

    fn take(&mut self, class: usize) -> *mut u8 {
        if self.free[class].is_null() {
            self.refill(class);
        }
        let block = self.free[class];
        if !block.is_null() {
            // SAFETY: a free block holds the address of the next.
            self.free[class] = unsafe { *block.cast::<*mut u8>() };
        }
        block
    }

    /// # Safety
    /// `block` is not in use and has the size of `class`.
    unsafe fn give(&mut self, class: usize, block: *mut u8) {
        // SAFETY: the caller's promise; a block is at least 16 bytes and as aligned.
        unsafe { *block.cast::<*mut u8>() = self.free[class] };
        self.free[class] = block;
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
        // More than one frame would need neighbours; nothing in the kernel is that large.
        if count != 1 {
            return null_mut();
        }
        let Some(frame) = FRAMES.lock().take_large() else { return null_mut() };
        self.large_bytes += LARGE_PAGE_BYTES as usize;
        frame.as_u64() as *mut u8
    }

    fn give_large(&mut self, block: *mut u8, count: usize) {
        assert_eq!(count, 1, "only single large frames are handed out");
        FRAMES.lock().free_large(Hpa::new(block as u64));
        self.large_bytes -= LARGE_PAGE_BYTES as usize;
    }
}
