//! Task switches: any descriptor tables, task-state segments, page tables and registers.
#![no_main]

use fuzz::Input;
use fuzz::processor::Processor;
use insn::Unavailable;
use insn::task::{self, Request};
use libfuzzer_sys::fuzz_target;
use vcpu::{Event, Exception, TaskSwitchSource, VcpuState, cr0, cr4, rflags};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut state = state(&mut input);
    let requests = [(); 4].map(|()| request(&mut input));
    let mut processor = Processor::with_ram(input.rest());
    for request in requests {
        processor.accesses = 0;
        let before = state.clone();
        match task::switch(&mut processor, &mut state, request) {
            Ok(_) => assert_eq!(state.waiting, None),
            Err(Unavailable) => assert!(state == before, "something has changed"),
        }
    }
});

fn state(input: &mut Input<'_>) -> VcpuState {
    let mut state = VcpuState::reset();
    let kind = input.u8();
    state.cr0 |= cr0::PE | if kind & 1 != 0 { cr0::PG } else { 0 };
    state.cr4 = if kind & 2 != 0 { cr4::PAE } else { 0 };
    state.rflags |= if kind & 4 != 0 { rflags::VM } else { 0 };
    state.waiting = match kind >> 3 & 3 {
        0 => None,
        1 => Some(Event::Nmi),
        2 => Some(Event::Interrupt(0x30)),
        _ => Some(Event::Exception(Exception { vector: input.u8() & 31, error_code: Some(1), fault_address: None })),
    };
    (state.gdtr.base, state.gdtr.limit) = (input.u16().into(), input.u16());
    (state.tr.base, state.tr.selector) = (input.u16().into(), input.u16());
    state.cr3 = input.u16().into();
    if kind & 0x80 != 0 {
        (state.cr0, state.cr3, state.cr4, state.efer) = (input.u64(), input.u64(), input.u64(), input.u64());
        (state.gdtr.base, state.tr.base, state.tr.attributes) = (input.u64(), input.u64(), input.u16());
    }
    state
}

fn request(input: &mut Input<'_>) -> Request {
    let kind = input.u8();
    let source = match kind & 3 {
        0 => TaskSwitchSource::Call,
        1 => TaskSwitchSource::Iret,
        2 => TaskSwitchSource::Jump,
        _ => TaskSwitchSource::Gate,
    };
    let next_rip = (kind & 4 == 0).then(|| input.u64());
    Request { selector: input.u16(), source, next_rip }
}
