//! The Intel network cards' driver: a card that writes any descriptors and registers, at any moment.
#![no_main]

use drivers::heap::HeapHal;
use drivers::intel_nic::played::Card;
use drivers::intel_nic::{Family, IntelNic, Model};
use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use switch::{FRAME_BYTES_MAX, GSO_FRAME_BYTES_MAX, Gso, Nic, Offload};

/// Frames taken or given at a time: more than a ring holds.
const BATCH: usize = 300;
/// Bytes of registers.
const REGISTERS: usize = 0x8000;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let family = [Family::E1000, Family::E1000e, Family::Igb][usize::from(input.u8() % 3)];
    let card = Card::new();
    let model = Model { device: 0, name: "fuzzed", family };
    let Ok(mut nic) = IntelNic::<HeapHal, Card>::start(model, card.clone(), [2; 6], |_| true) else { return };
    let mut frame = Vec::new();
    while !input.is_empty() {
        act(&mut nic, &card, &mut input, &mut frame);
    }
});

fn act(nic: &mut IntelNic<HeapHal, Card>, card: &Card, input: &mut Input<'_>, frame: &mut Vec<u8>) {
    match input.u8() % 10 {
        0 => drop(card.deliver(input.bytes(64), input.u64())),
        1 => card.scribble(input.u32(), input.u64()),
        2 => card.set(usize::from(input.u16()) % REGISTERS & !3, input.u32()),
        3 => card.set_link(input.u8() & 1 != 0),
        4 => (0..input.u8()).for_each(|_| drop(card.send())),
        5 => transmit(nic, input),
        6 => _ = nic.acknowledge_interrupt(),
        7 => nic.tick(),
        8 if input.u8() == 0 => card.vanish(),
        _ => {
            let received = (0..BATCH).take_while(|_| nic.receive(frame).is_some());
            assert!(received.count() <= BATCH);
            assert!(frame.len() <= 2048, "longer than any buffer");
        }
    }
}

fn transmit(nic: &mut IntelNic<HeapHal, Card>, input: &mut Input<'_>) {
    let gso = [Gso::None, Gso::Tcp4, Gso::Tcp6][usize::from(input.u8() % 3)];
    let offload = Offload {
        needs_checksum: input.u8() & 1 != 0,
        checksum_start: input.u16() & 0x1ff,
        checksum_offset: input.u16() & 0x1f,
        gso,
        ecn: input.u8() & 3 == 0,
        gso_size: input.u16(),
        ..Offload::default()
    };
    let most_bytes = if gso == Gso::None { FRAME_BYTES_MAX } else { GSO_FRAME_BYTES_MAX };
    let mut frame = vec![0; usize::from(input.u16()) % (most_bytes + 2)];
    let headers = input.bytes(90);
    let copied = headers.len().min(frame.len());
    frame[..copied].copy_from_slice(&headers[..copied]);
    // A ring that is full is no mistake of anybody's.
    let _ = nic.transmit(&offload, &frame);
    if input.u8() & 1 == 0 {
        nic.kick();
    }
}
