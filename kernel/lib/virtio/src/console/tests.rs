//! Output, input and their limits.

use super::*;
use crate::testing::{BUFFERS, Driver, END, queue_interrupt};

fn driver() -> Driver<Console> {
    Driver::new(Console::new())
}

impl Driver<Console> {
    fn output(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.function.take_output(&self.memory, &mut out, &mut self.signals);
        out
    }

    fn input(&mut self, bytes: &[u8]) -> usize {
        self.function.input(&self.memory, bytes, &mut self.signals)
    }
}

#[test]
fn output_comes_in_order() {
    let mut driver = driver();
    driver.put(BUFFERS, b"hello world");
    driver.rings[1].add(&driver.memory, &[(BUFFERS, 3, false), (BUFFERS + 3, 3, false)]);
    driver.rings[1].add(&driver.memory, &[(BUFFERS + 6, 5, false)]);
    let mut out = b"> ".to_vec();
    driver.function.take_output(&driver.memory, &mut out, &mut driver.signals);
    assert_eq!(out, b"> hello world");
    assert_eq!(driver.take_signals(), [queue_interrupt(1)]);
    assert_eq!(driver.rings[1].take_used(&driver.memory).len(), 2);
}

#[test]
fn a_flood_is_left_for_later() {
    let mut driver = driver();
    for _ in 0..3 {
        driver.rings[1].add(&driver.memory, &[(BUFFERS, 40 << 10, false)]);
    }
    assert_eq!(driver.output().len(), 80 << 10);
    assert_eq!(driver.take_signals(), [queue_interrupt(1), Signal::Kicked(1)]);
    assert_eq!(driver.output().len(), 40 << 10);
    driver.rings[1].add(&driver.memory, &[(BUFFERS, 1 << 20, false)]);
    assert_eq!(driver.output().len(), 64 << 10);
}

#[test]
fn output_that_is_no_memory_stops_the_device() {
    let mut driver = driver();
    driver.rings[1].add(&driver.memory, &[(END - 4, 8, false)]);
    assert!(driver.output().is_empty());
    assert!(driver.function.needs_reset());
}

#[test]
fn input_fills_what_there_is() {
    let mut driver = driver();
    assert_eq!(driver.input(b"x"), 0);
    let heads = [0, 16].map(|at| driver.rings[0].add(&driver.memory, &[(BUFFERS + at, 4, true)]));
    assert!(driver.kick(0), "there is room again");
    driver.take_signals();
    assert_eq!(driver.input(b"abcdefghij"), 8);
    assert_eq!(driver.rings[0].take_used(&driver.memory), [(heads[0], 4), (heads[1], 4)]);
    assert_eq!((driver.get(BUFFERS, 4), driver.get(BUFFERS + 16, 4)), (b"abcd".to_vec(), b"efgh".to_vec()));
    driver.rings[0].add(&driver.memory, &[(BUFFERS, 4, true)]);
    assert_eq!(driver.input(b"ij"), 2);
    driver.rings[0].add(&driver.memory, &[(BUFFERS, 4, false)]);
    assert_eq!(driver.input(b"k"), 0);
    assert!(driver.function.needs_reset(), "a buffer that cannot be written");
}
