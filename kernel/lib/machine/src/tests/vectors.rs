//! Moves between vector registers and devices, as the XSAVE area has the registers.

use super::bench::*;
use addr::Gpa;
use vcpu::*;

const HOLE: u64 = 0xd000_0000;
const AREA_BYTES: usize = 2816;
/// Where the layout that the test's host shows has XMM1 and the bits of the components in use.
const XMM1_AT: usize = 176;
const PRESENT_AT: usize = 512;
const SSE: u8 = 1 << 1;

/// Has the guest carry an instruction out that touches nothing but a hole in its memory.
fn step(bench: &mut Bench, code: &[u8]) -> Vec<u8> {
    let rip = bench.thread.rip();
    bench.machine.memory().write(Gpa::new(rip), code).unwrap();
    bench.then(|state| {
        state.gprs[Gpr::Rdi as usize] = HOLE;
        Exit::NestedFault { gpa: Gpa::new(HOLE), access: Access::Read, page_walk: false }
    });
    bench.run();
    assert_eq!((bench.taken(), bench.thread.rip()), (vec![], rip + code.len() as u64));
    bench.thread.vcpu.extended_state()
}

#[test]
fn a_load_makes_the_registers_count_and_clears_the_others() {
    let mut bench = Bench::new();
    let mut area = vec![0; AREA_BYTES];
    // What is not in use may be anything.
    area[XMM1_AT - 16..XMM1_AT + 32].fill(0x77);
    area[PRESENT_AT] = 1;
    bench.thread.vcpu.set_extended_state(&area).unwrap();
    // MOVUPS XMM1, [EDI].
    let area = step(&mut bench, &[0x0f, 0x10, 0x0f]);
    assert_eq!(area[PRESENT_AT] & SSE, SSE);
    assert_eq!(area[XMM1_AT..XMM1_AT + 16], [0xff; 16]);
    assert_eq!((area[XMM1_AT - 1], area[XMM1_AT + 16]), (0, 0));
}

#[test]
fn a_short_load_leaves_the_rest_of_the_register_zero() {
    let mut bench = Bench::new();
    let mut area = vec![0; AREA_BYTES];
    area[XMM1_AT..XMM1_AT + 32].fill(0x77);
    area[PRESENT_AT] = SSE;
    bench.thread.vcpu.set_extended_state(&area).unwrap();
    // MOVD XMM1, [EDI].
    let area = step(&mut bench, &[0x66, 0x0f, 0x6e, 0x0f]);
    assert_eq!(area[XMM1_AT..XMM1_AT + 5], [0xff, 0xff, 0xff, 0xff, 0]);
    assert_eq!((area[XMM1_AT + 15], area[XMM1_AT + 16]), (0, 0x77), "its neighbour stays");
}
