//! Requests one at a time, their limits, and what becomes of them at a reset.

use super::*;
use crate::testing::{BUFFERS, Driver, END, config_interrupt, queue_interrupt};

fn driver() -> Driver<Rng> {
    Driver::new(Rng::new())
}

impl Driver<Rng> {
    fn wanted(&mut self) -> Option<(u16, usize)> {
        self.function.wanted(&self.memory)
    }

    fn fill(&mut self, head: u16, bytes: &[u8]) {
        self.function.fill(&self.memory, head, bytes, &mut self.signals);
    }
}

#[test]
fn requests_are_filled_one_at_a_time() {
    let mut driver = driver();
    assert_eq!(driver.wanted(), None);
    let first = driver.rings[0].add(&driver.memory, &[(BUFFERS, 3, true), (BUFFERS + 16, 5, true)]);
    let second = driver.rings[0].add(&driver.memory, &[(BUFFERS + 32, 1 << 20, true)]);
    assert_eq!(driver.wanted(), Some((first, 8)));
    assert_eq!(driver.wanted(), None);
    driver.fill(first, b"abcdefghij");
    assert_eq!(driver.rings[0].take_used(&driver.memory), [(first, 8)]);
    assert_eq!((driver.get(BUFFERS, 4), driver.get(BUFFERS + 16, 6)), (b"abc\0".to_vec(), b"defgh\0".to_vec()));
    assert_eq!(driver.take_signals(), [queue_interrupt(0)]);
    assert_eq!(driver.wanted(), Some((second, FILL_BYTES_MAX)));
    driver.fill(second, &[1; 10]);
    assert_eq!(driver.rings[0].take_used(&driver.memory), [(second, 10)], "less than was asked for");
}

#[test]
fn heads_that_do_not_wait_are_ignored() {
    let mut driver = driver();
    let head = driver.rings[0].add(&driver.memory, &[(BUFFERS, 8, true)]);
    driver.fill(head, b"early");
    assert_eq!(driver.wanted(), Some((head, 8)));
    driver.reset();
    driver.fill(head, b"late");
    assert_eq!(driver.get(BUFFERS, 8), [0; 8]);
}

#[test]
fn wrong_buffers_stop_the_device() {
    for piece in [(BUFFERS, 8, false), (BUFFERS, 0, true), (END - 4, 8, true)] {
        let mut driver = driver();
        driver.rings[0].add(&driver.memory, &[piece]);
        if let Some((head, _)) = driver.wanted() {
            driver.fill(head, &[1; 8]);
        }
        assert!(driver.function.needs_reset());
        driver.function.flush(&mut driver.signals);
        assert_eq!(driver.take_signals(), [config_interrupt()]);
    }
}

#[test]
fn a_chain_that_changed_meanwhile_is_checked_again() {
    let mut driver = driver();
    let head = driver.rings[0].add(&driver.memory, &[(BUFFERS, 8, true)]);
    assert!(driver.wanted().is_some());
    let ring = driver.rings[0].clone();
    ring.set_descriptor(&driver.memory, ring.descriptors, head, (BUFFERS, 8, crate::testing::NEXT, head));
    driver.fill(head, &[1; 8]);
    assert!(driver.function.needs_reset());
}
