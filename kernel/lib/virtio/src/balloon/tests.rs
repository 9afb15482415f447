//! Pages given up, taken back and reported; statistics; and drivers that break the rules.

use super::*;
use crate::testing::{BUFFERS, Driver, END, config_interrupt, queue_interrupt};

fn driver() -> Driver<Balloon> {
    Driver::new(Balloon::new())
}

impl Driver<Balloon> {
    fn offers(&mut self, queue: u16) -> Vec<Offer> {
        let mut offers = Vec::new();
        self.function.take(&self.memory, queue, &mut self.signals, |offer| offers.push(offer));
        offers
    }

    fn put_numbers(&self, at: u64, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.put(at, &bytes);
    }

    fn used(&mut self, queue: u16) -> Vec<(u16, u32)> {
        self.rings[usize::from(queue)].take_used(&self.memory)
    }
}

#[test]
fn pages_given_up_are_acknowledged_when_they_are_let_go_of() {
    let mut driver = driver();
    driver.put_numbers(BUFFERS, &[7, 8, u32::MAX]);
    let head = driver.rings[0].add(&driver.memory, &[(BUFFERS, 5, false), (BUFFERS + 5, 7, false)]);
    let page = |number: u32| Offer::GivenUp(Gpa::new(u64::from(number) << 12));
    assert_eq!(driver.offers(0), [page(7), page(8), page(u32::MAX)]);
    assert!(driver.function.device.is_busy());
    assert_eq!((driver.used(0), driver.take_signals()), (vec![], vec![]));
    driver.function.finish(&driver.memory, &mut driver.signals);
    assert_eq!((driver.used(0), driver.take_signals()), (vec![(head, 0)], vec![queue_interrupt(0)]));
    assert!(!driver.function.device.is_busy());
}

#[test]
fn pages_are_taken_back_at_once() {
    let mut driver = driver();
    driver.put_numbers(BUFFERS, &[7]);
    let head = driver.rings[1].add(&driver.memory, &[(BUFFERS, 4, false)]);
    assert_eq!(driver.offers(1), [Offer::TakenBack(Gpa::new(0x7000))]);
    assert_eq!((driver.used(1), driver.take_signals()), (vec![(head, 0)], vec![queue_interrupt(1)]));
}

#[test]
fn free_pages_are_reported_on_either_queue() {
    for queue in [QUEUE_REPORTING, QUEUE_REPORTING_BY_THE_BOOK] {
        let mut driver = driver();
        let pieces = [(0x20_0000, 0x20_0000, true), (END, 0x40_0000, true)];
        let head = driver.rings[usize::from(queue)].add(&driver.memory, &pieces);
        let free = |at, bytes| Offer::Free(Gpa::new(at), bytes);
        assert_eq!(driver.offers(queue), [free(0x20_0000, 0x20_0000), free(END, 0x40_0000)]);
        driver.function.finish(&driver.memory, &mut driver.signals);
        assert_eq!(driver.used(queue), [(head, 0)]);
    }
}

#[test]
fn the_target_is_told_and_the_answer_read() {
    let mut driver = driver();
    driver.function.set_target(0x1234, &mut driver.signals);
    assert_eq!(driver.take_signals(), [config_interrupt()]);
    driver.function.set_target(0x1234, &mut driver.signals);
    assert_eq!(driver.take_signals(), [], "nothing new");
    assert_eq!(driver.read(0x2000, 4), 0x1234);
    driver.write(0x2004, 4, 0x1000);
    driver.write(0x2000, 4, 99);
    driver.write(0x2004, 1, 99);
    assert_eq!((driver.function.device.actual_pages(), driver.read(0x2000, 8)), (0x1000, 0x1000_0000_1234));
    driver.reset();
    assert_eq!(driver.function.device.target_pages(), 0x1234, "the operator's wish outlives the driver");
    assert_eq!(driver.function.device.actual_pages(), 0);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut driver = driver();
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()[..]].concat();
    driver.put(BUFFERS, &[entry(4, 1000), entry(0x77, 5), entry(5, 4000), entry(6, 3000)].concat());
    let first = driver.rings[2].add(&driver.memory, &[(BUFFERS, 40, false)]);
    driver.offers(2);
    let Statistics { free_bytes, total_bytes, available_bytes, cache_bytes } = driver.function.device.statistics();
    assert_eq!((free_bytes, total_bytes, available_bytes, cache_bytes), (Some(1000), Some(4000), Some(3000), None));
    assert_eq!(driver.used(2), []);
    driver.function.ask_statistics(&driver.memory, &mut driver.signals);
    assert_eq!((driver.used(2), driver.take_signals()), (vec![(first, 0)], vec![queue_interrupt(2)]));
    driver.function.ask_statistics(&driver.memory, &mut driver.signals);
    assert_eq!(driver.take_signals(), [], "one question at a time");
}

#[test]
fn numbers_outside_memory_stop_the_device() {
    let mut driver = driver();
    driver.rings[0].add(&driver.memory, &[(END - 4, 8, false)]);
    assert_eq!(driver.offers(0), []);
    assert!(driver.function.needs_reset());
}

#[test]
fn a_chain_of_any_length_is_looked_at_as_far_as_the_limit() {
    let mut driver = driver();
    driver.rings[0].add(&driver.memory, &[(0, 0x40_0000, false)]);
    assert_eq!(driver.offers(0).len() as u64, NUMBERS_MAX);
}

#[test]
fn a_driver_that_offers_chains_for_ever_is_stopped() {
    let mut driver = driver();
    for _ in 0..=QUEUES {
        for _ in 0..QUEUE_SIZE {
            driver.rings[0].add(&driver.memory, &[(BUFFERS, 4, false)]);
        }
        driver.offers(0);
    }
    assert!(driver.function.needs_reset());
    driver.function.finish(&driver.memory, &mut driver.signals);
    driver.reset();
    assert!(!driver.function.device.is_busy());
}

#[test]
fn it_is_saved_with_what_it_was_told_and_said() {
    let mut driver = driver();
    driver.function.set_target(5, &mut driver.signals);
    driver.write(0x2004, 4, 4);
    let head = driver.rings[2].add(&driver.memory, &[(BUFFERS, 40, false)]);
    driver.offers(2);
    let saved = driver.function.device.save();
    let mut other = Balloon::new();
    other.restore(&saved).unwrap();
    assert_eq!((other.target_pages(), other.actual_pages(), other.statistics_head), (5, 4, Some(head)));
    assert!(other.restore(&Saved { statistics_head: Some(QUEUE_SIZE), ..saved }).is_err());
}
