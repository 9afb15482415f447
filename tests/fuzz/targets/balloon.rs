//! The virtio balloon: a driver that offers and takes back any memory, at any moment. What it says in one chain has an end, each
//! chain comes back once, and what was saved is restored.
#![no_main]

use addr::Gpa;
use fuzz::Input;
use guestmem::GuestMemory;
use guestmem::heap::guest_memory;
use libfuzzer_sys::fuzz_target;
use virtio::{Balloon, Function, MMIO_BAR_BYTES, Signal};

const MEMORY_BYTES: u64 = 2 << 20;
const QUEUES: u16 = 5;
const QUEUE_SIZE: usize = 128;
/// Page numbers looked at in a chain, and so pages offered in one look at a queue.
const OFFERS_MAX: usize = QUEUE_SIZE * 4096;
/// Registers of the configuration structure (virtio 1.2, 4.1.4.3).
const DRIVER_FEATURE_SELECT: u32 = 0x08;
const DRIVER_FEATURE: u32 = 0x0c;
const DEVICE_STATUS: u32 = 0x14;
const QUEUE_SELECT: u32 = 0x16;
const QUEUE_SIZE_REGISTER: u32 = 0x18;
const QUEUE_ENABLE: u32 = 0x1c;
const QUEUE_DESCRIPTORS: u32 = 0x20;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let memory = guest_memory(MEMORY_BYTES);
    let mut function = Function::new(Balloon::new());
    let mut signals = Vec::new();
    if input.u8() & 1 == 0 {
        start(&mut function, &mut signals);
    }
    while !input.is_empty() {
        act(&mut function, &mut input, &memory, &mut signals);
        signals.clear();
    }
    function.finish(&memory, &mut signals);
    let saved = function.device.save();
    let mut restored = Balloon::new();
    restored.restore(&saved).expect("what was saved is valid");
    assert_eq!(restored.save(), saved);
});

/// A driver's first steps, as the specification has them (3.1.1): each queue has a page of its own.
fn start(function: &mut Function<Balloon>, signals: &mut Vec<Signal>) {
    let mut write = |offset, size, value| function.mmio_write(offset, size, value, signals);
    write(DEVICE_STATUS, 1, 3);
    for (half, features) in [0x26_u64, 1].into_iter().enumerate() {
        write(DRIVER_FEATURE_SELECT, 4, half as u64);
        write(DRIVER_FEATURE, 4, features);
    }
    write(DEVICE_STATUS, 1, 0xb);
    for queue in 0..u64::from(QUEUES) {
        write(QUEUE_SELECT, 2, queue);
        write(QUEUE_SIZE_REGISTER, 2, 16);
        for (index, part) in [0_u64, 0x100, 0x200].into_iter().enumerate() {
            write(QUEUE_DESCRIPTORS + 8 * index as u32, 4, queue << 12 | part);
        }
        write(QUEUE_ENABLE, 2, 1);
    }
    write(DEVICE_STATUS, 1, 0xf);
}

fn act(function: &mut Function<Balloon>, input: &mut Input<'_>, memory: &GuestMemory, signals: &mut Vec<Signal>) {
    match input.u8() % 8 {
        0..=2 => {
            let at = Gpa::new(u64::from(input.u16()) & 0x7fff);
            let count = usize::from(input.u8() & 0x7f);
            memory.write(at, input.bytes(count)).expect("it lies in memory");
        }
        3 => function.mmio_write(u32::from(input.u16()) % MMIO_BAR_BYTES, input.width(), input.u64(), signals),
        4 => {
            function.mmio_read(u32::from(input.u16()) % MMIO_BAR_BYTES, input.width(), signals);
        }
        5 => {
            let mut offers = 0;
            function.take(memory, u16::from(input.u8()) % QUEUES, signals, |_| offers += 1);
            assert!(offers <= OFFERS_MAX, "more than queues hold");
        }
        6 => {
            function.finish(memory, signals);
            assert!(!function.device.is_busy());
        }
        _ => {
            function.set_target(input.u32(), signals);
            function.ask_statistics(memory, signals);
        }
    }
}
