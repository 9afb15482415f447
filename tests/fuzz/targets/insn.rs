//! The instruction decoder and interpreter: any code, registers, modes and page tables.
#![no_main]

use fuzz::processor::Processor;
use libfuzzer_sys::fuzz_target;
use vcpu::Gpr;

/// Elements of a repeated string instruction in one step.
const BUDGET: u32 = 32;

fuzz_target!(|data: &[u8]| {
    let mut processor = Processor::new(data);
    for _ in 0..16 {
        let before = processor.gprs;
        processor.accesses = 0;
        match insn::step(&mut processor, BUDGET) {
            Ok(completed) => processor.rip = completed.next_rip,
            Err(_) => {
                // Only a repeated string instruction may have moved on: its three registers, and what LODS has loaded.
                let moved = [Gpr::Rax, Gpr::Rcx, Gpr::Rsi, Gpr::Rdi].map(|gpr| gpr as usize);
                let kept = (0..16).filter(|gpr| !moved.contains(gpr)).all(|gpr| processor.gprs[gpr] == before[gpr]);
                assert!(kept, "a fault changed a register");
                return;
            }
        }
    }
});
