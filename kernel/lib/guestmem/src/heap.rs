//! Guest memory on the host's heap, for tests and the simulator (feature `heap`).

use crate::{Backing, GuestMemory};
use addr::{Gpa, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::Mutex;

/// "Host memory" that is a vector; host-physical address 0 is its first byte.
pub struct Heap(Mutex<Vec<u8>>);

impl Heap {
    /// `bytes` bytes of zeroes.
    pub fn new(bytes: u64) -> Self {
        Self(Mutex::new(alloc::vec![0; bytes as usize]))
    }
}

impl Backing for Heap {
    fn read(&self, at: Hpa, into: &mut [u8]) {
        let at = at.as_u64() as usize;
        into.copy_from_slice(&self.0.lock()[at..at + into.len()]);
    }

    fn write(&self, at: Hpa, from: &[u8]) {
        let at = at.as_u64() as usize;
        self.0.lock()[at..at + from.len()].copy_from_slice(from);
    }

    fn zero(&self, at: Hpa, bytes: u64) {
        let at = at.as_u64() as usize;
        self.0.lock()[at..at + bytes as usize].fill(0);
    }

    fn is_zero_page(&self, at: Hpa) -> bool {
        let at = at.as_u64() as usize;
        self.0.lock()[at..at + PAGE_BYTES as usize].iter().all(|&byte| byte == 0)
    }

    fn load(&self, at: Hpa, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes[..size]);
        u64::from_le_bytes(bytes)
    }

    fn store(&self, at: Hpa, size: usize, value: u64) {
        self.write(at, &value.to_le_bytes()[..size]);
    }

    fn compare_exchange(&self, at: Hpa, size: usize, expected: u64, new: u64) -> bool {
        let range = at.as_u64() as usize..at.as_u64() as usize + size;
        let mut bytes = self.0.lock();
        let equal = bytes[range.clone()] == expected.to_le_bytes()[..size];
        if equal {
            bytes[range].copy_from_slice(&new.to_le_bytes()[..size]);
        }
        equal
    }
}

/// A guest with `bytes` (a multiple of a large page) of memory from address 0 on.
pub fn guest_memory(bytes: u64) -> GuestMemory {
    assert!(bytes.is_multiple_of(LARGE_PAGE_BYTES));
    let mut memory = GuestMemory::new(Arc::new(Heap::new(bytes)));
    let frames = (0..bytes / LARGE_PAGE_BYTES).map(|index| Hpa::new(index * LARGE_PAGE_BYTES));
    memory.add_slot(Gpa::new(0), frames.collect());
    memory
}
