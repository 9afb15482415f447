//! A made-up kernel from its file to its first instruction.

use super::bench::*;
use crate::{Kernel, Module, StartError};
use addr::Gpa;

const MIB: u64 = 1 << 20;
const SETUP_SECTORS: usize = 4;

/// A relocatable bzImage of 4 KiB that needs 1 MiB.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; (SETUP_SECTORS + 1) * 512];
    file.extend([0xf4; 4096]);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[SETUP_SECTORS as u8]);
    put(0x1f4, &256u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &(2 * MIB).to_le_bytes());
    put(0x260, &(MIB as u32).to_le_bytes());
    file
}

#[test]
fn a_kernel_is_placed_with_the_tables_that_it_finds() {
    let (bench, file) = (Bench::new(), kernel());
    let kernel = Kernel {
        image: Module { name: "linux", bytes: &file },
        initrd: Some(Module { name: "initrd", bytes: b"initrd" }),
        modules: &[],
        command_line: "console=ttyS0",
    };
    let state = bench.machine.load(&kernel).unwrap();
    assert_eq!(state.rip, 2 * MIB + 0x200);
    assert_eq!(bench.load(state.rip, 1), 0xf4, "its first instruction");
    let parameters = state.gprs[vcpu::Gpr::Rsi as usize];
    let rsdp = bench.load(parameters + 0x70, 8);
    assert_eq!(bench.load(rsdp, 8).to_le_bytes(), *b"RSD PTR ");
    assert_eq!(bench.load(firmware::layout::SMBIOS_TABLES.start().as_u64(), 4) as u32, u32::from_le_bytes(*b"_SM3"));
    let command_line = Gpa::new(bench.load(parameters + 0x228, 4));
    let mut text = [0; 14];
    bench.machine.memory().read(command_line, &mut text).unwrap();
    assert_eq!(&text, b"console=ttyS0\0");
}

#[test]
fn what_cannot_start_says_so() {
    let bench = Bench::new();
    let refused_with = |bytes: &[u8], modules: &[Module<'_>]| {
        let image = Module { name: "file", bytes };
        bench.machine.load(&Kernel { image, initrd: None, modules, command_line: "" }).unwrap_err()
    };
    let refused = |bytes: &[u8]| refused_with(bytes, &[]);
    let StartError(why) = refused_with(&kernel(), &[Module { name: "m", bytes: b"m" }]);
    assert!(why.contains("Linux takes no modules"), "{why}");
    let StartError(why) = refused(b"ELF");
    assert!(why.contains("bzImage"), "{why}");
    let mut big = kernel();
    big[0x260..0x264].copy_from_slice(&(64u32 << 20).to_le_bytes());
    let StartError(why) = refused(&big);
    assert!(why.contains("more memory"), "{why}");
}
