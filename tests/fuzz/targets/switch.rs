//! The switch: any frames, offload requests and ports.
#![no_main]

use fuzz::Input;
use libfuzzer_sys::fuzz_target;
use switch::{FRAME_BYTES_MAX, Gso, Offload, PortConfig, Segments, Switch, complete_checksum};

/// A 64 KiB frame in segments of one byte.
const SEGMENTS_MAX: usize = 70_000;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut switch = Switch::new();
    let mut ports = Vec::new();
    for index in 0..4 {
        let mac = (index < 3).then_some([2, 0, 0, 0, 0, index]);
        ports.extend(switch.add_port(PortConfig { mac, guard: index < 2 }));
    }
    let mut now_ns = 0_u64;
    while !input.is_empty() {
        let action = input.u8();
        let port = ports[usize::from(action & 3)];
        now_ns = now_ns.saturating_add(u64::from(input.u16()) << 20);
        let length = usize::from(input.u16()) & 0x3ff;
        let frame = input.bytes(length);
        match action >> 2 & 3 {
            0 | 1 => {
                assert!(!switch.forward(port, frame, now_ns).contains(port), "a frame goes back to where it came from")
            }
            2 => segment(&mut input, frame),
            _ => {
                switch.remove_port(port);
                ports[usize::from(action & 3)] =
                    switch.add_port(PortConfig { mac: None, guard: false }).expect("one is free");
            }
        }
    }
});

fn segment(input: &mut Input<'_>, frame: &[u8]) {
    let offload = Offload {
        needs_checksum: true,
        checksum_valid: false,
        checksum_start: input.u16() & 0xff,
        checksum_offset: input.u16() & 0x3f,
        gso: [Gso::None, Gso::Tcp4, Gso::Tcp6][usize::from(input.u8() % 3)],
        ecn: input.u8() & 1 != 0,
        gso_size: input.u16(),
        header_bytes: input.u16() & 0xff,
    };
    if offload.check(frame).is_ok() {
        complete_checksum(&mut frame.to_vec(), &offload);
    }
    let Ok(mut segments) = Segments::new(frame, &offload) else { return };
    let mut segment = Vec::new();
    let mut count = 0;
    while segments.next_into(&mut segment) {
        count += 1;
        assert!(count < SEGMENTS_MAX, "a frame has no end");
        assert!(segment.len() <= frame.len().max(FRAME_BYTES_MAX));
    }
}
