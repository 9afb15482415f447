//! The virtio transport and block device: a driver that writes anything anywhere, at any moment.
#![no_main]

use addr::Gpa;
use fuzz::Input;
use guestmem::GuestMemory;
use guestmem::heap::guest_memory;
use libfuzzer_sys::fuzz_target;
use virtio::blk::{BlkConfig, Outcome, Request};
use virtio::{Blk, Function, MMIO_BAR_BYTES, Signal};

const MEMORY_BYTES: u64 = 2 << 20;
const SECTORS: u64 = 1024;
/// Requests taken before the guest goes on.
const BATCH: usize = 64;
/// Registers of the configuration structure (virtio 1.2, 4.1.4.3).
const DRIVER_FEATURE_SELECT: u32 = 0x08;
const DRIVER_FEATURE: u32 = 0x0c;
const DEVICE_STATUS: u32 = 0x14;
const QUEUE_SIZE: u32 = 0x18;
const QUEUE_ENABLE: u32 = 0x1c;
const QUEUE_DESCRIPTORS: u32 = 0x20;
const QUEUE_DRIVER: u32 = 0x28;
const QUEUE_DEVICE: u32 = 0x30;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let memory = guest_memory(MEMORY_BYTES);
    let mut function = Function::new(Blk::new(BlkConfig::new(SECTORS)));
    let mut signals = Vec::new();
    if input.u8() & 1 == 0 {
        start(&mut function, &mut input, &mut signals);
    }
    let mut in_flight = Vec::new();
    while !input.is_empty() {
        act(&mut function, &mut input, &memory, &mut in_flight, &mut signals);
        if signals.contains(&Signal::Reset) {
            in_flight.clear();
        }
        signals.clear();
    }
});

/// A driver's first steps, as the specification has them (3.1.1).
fn start(function: &mut Function<Blk>, input: &mut Input<'_>, signals: &mut Vec<Signal>) {
    let features = u64::from(input.u8()) << 28 | 1 << 32;
    let mut write = |offset, size, value| function.mmio_write(offset, size, value, signals);
    write(DEVICE_STATUS, 1, 3);
    for half in 0..2 {
        write(DRIVER_FEATURE_SELECT, 4, half);
        write(DRIVER_FEATURE, 4, features >> (32 * half) & 0xffff_ffff);
    }
    write(DEVICE_STATUS, 1, 0xb);
    write(QUEUE_SIZE, 2, 16);
    for (register, address) in [(QUEUE_DESCRIPTORS, 0_u64), (QUEUE_DRIVER, 0x100), (QUEUE_DEVICE, 0x200)] {
        write(register, 4, address);
    }
    write(QUEUE_ENABLE, 2, 1);
    write(DEVICE_STATUS, 1, 0xf);
}

fn act(
    function: &mut Function<Blk>,
    input: &mut Input<'_>,
    memory: &GuestMemory,
    in_flight: &mut Vec<u16>,
    signals: &mut Vec<Signal>,
) {
    match input.u8() % 8 {
        0..=2 => {
            let at = Gpa::new(u64::from(input.u16()) & 0xfff);
            let count = usize::from(input.u8() & 0x7f);
            memory.write(at, input.bytes(count)).expect("it lies in memory");
        }
        3 => function.mmio_write(u32::from(input.u16()) % MMIO_BAR_BYTES, input.width(), input.u64(), signals),
        4 => {
            function.mmio_read(u32::from(input.u16()) % MMIO_BAR_BYTES, input.width(), signals);
        }
        5 => match input.u8() & 1 {
            0 => function.config_write(input.u16() & 0xfff, input.port_width(), input.u32(), signals),
            _ => drop(function.config_read(input.u16() & 0xfff, input.port_width(), signals)),
        },
        6 => {
            function.port_write(0, 2, 0, signals);
            take(function, memory, in_flight);
            function.notify_if_needed(memory, signals);
        }
        _ => {
            if let Some(id) = in_flight.pop() {
                let outcome = [Outcome::Ok, Outcome::IoError, Outcome::Unsupported][usize::from(input.u8() % 3)];
                function.complete(memory, id, outcome);
                function.notify_if_needed(memory, signals);
            }
        }
    }
}

fn take(function: &mut Function<Blk>, memory: &GuestMemory, in_flight: &mut Vec<u16>) {
    let mut request = Request::default();
    for _ in 0..BATCH {
        if !function.next_request(memory, &mut request) {
            return;
        }
        assert!(request.sector + request.sectors <= SECTORS, "a request outside the disk");
        assert!(!in_flight.contains(&request.id), "two requests of one name");
        in_flight.push(request.id);
    }
}
