//! Each class of model-specific register: what it keeps, what it refuses.

use super::bench::*;
use crate::{CpuProfile, DebugPorts, Leaf, MachineConfig};
use vcpu::{Exit, cr0, efer};

fn intel(leaf: u32, subleaf: u32) -> Leaf {
    match leaf {
        0 => vendor(0x16, b"GenuineIntel"),
        7 => Leaf { ebx: u32::MAX, ..amd(leaf, subleaf) },
        _ => amd(leaf, subleaf),
    }
}

/// Writes, and reads back.
fn keeps(bench: &mut Bench, index: u32, value: u64) {
    assert_eq!(bench.write_msr(index, value), Ok(()), "{index:#x} takes {value:#x}");
    assert_eq!(bench.read_msr(index), Ok(value), "{index:#x} keeps {value:#x}");
}

fn refuses(bench: &mut Bench, index: u32, value: u64) {
    let before = bench.read_msr(index);
    let rip = bench.thread.rip();
    assert_eq!(bench.write_msr(index, value), Err(PROTECTION), "{index:#x} refuses {value:#x}");
    assert_eq!(bench.thread.rip(), rip, "a fault, not a trap");
    assert_eq!(bench.read_msr(index), before, "{index:#x} is as before");
}

#[test]
fn unknown_registers_fault() {
    let mut bench = Bench::new();
    for index in [0, 0x3a, 0x48, 0xce, 0x150, 0x1d8, 0x210, 0x26e + 2, 0x345, 0x480, 0xc001_0114, 0x4b56_4d02, u32::MAX]
    {
        assert_eq!(bench.read_msr(index), Err(PROTECTION), "read of {index:#x}");
        assert_eq!(bench.write_msr(index, 0), Err(PROTECTION), "write of {index:#x}");
    }
}

#[test]
fn memory_types() {
    let mut bench = Bench::new();
    assert_eq!(bench.read_msr(0xfe), Ok(0x508));
    assert_eq!(bench.write_msr(0xfe, 0x508), Err(PROTECTION), "read-only");
    assert_eq!(bench.read_msr(0x2ff), Ok(0xc06));
    keeps(&mut bench, 0x2ff, 0x800);
    refuses(&mut bench, 0x2ff, 0x802);
    refuses(&mut bench, 0x2ff, 0x1806);
    keeps(&mut bench, 0x200, 0xc000_0000);
    refuses(&mut bench, 0x200, 0xc000_0007);
    refuses(&mut bench, 0x200, 1 << 40);
    keeps(&mut bench, 0x20f, 0xff_c000_0800);
    refuses(&mut bench, 0x20f, 0x400);
    for index in [0x250, 0x258, 0x259, 0x268, 0x26f] {
        assert_eq!(bench.read_msr(index), Ok(0x0606_0606_0606_0606));
        keeps(&mut bench, index, 0x0001_0405_0600_0000);
        refuses(&mut bench, index, 0x0200_0000_0000_0000);
    }
    keeps(&mut bench, 0x277, 0x0007_0106_0007_0504);
    refuses(&mut bench, 0x277, 0x0007_0406_0007_0402);
}

#[test]
fn efer_takes_what_cpuid_offers() {
    let mut bench = Bench::new();
    keeps(&mut bench, 0xc000_0080, efer::SCE | efer::NXE | efer::LME);
    refuses(&mut bench, 0xc000_0080, efer::SVME);
    refuses(&mut bench, 0xc000_0080, 1 << 1);
    bench.then(|state| {
        state.cr0 |= cr0::PG;
        state.efer |= efer::LMA;
        Exit::Pause
    });
    bench.run();
    refuses(&mut bench, 0xc000_0080, efer::SCE);
    bench.write_msr(0xc000_0080, efer::LME).unwrap();
    assert_eq!(bench.read_msr(0xc000_0080), Ok(efer::LME | efer::LMA), "LMA is the processor's");
}

#[test]
fn amds_registers() {
    let mut bench = Bench::new();
    assert_eq!(bench.read_msr(0x8b), Ok(0x0100_0065));
    refuses(&mut bench, 0x8b, 0);
    assert_eq!(bench.read_msr(0x1a0), Err(PROTECTION), "MISC_ENABLE is Intel's");
    keeps(&mut bench, 0xc001_0015, 1 << 24 | 1 << 3);
    refuses(&mut bench, 0xc001_0015, 1 << 30);
    assert_eq!(bench.read_msr(0xc001_1029), Ok(2), "LFENCE serialises");
    refuses(&mut bench, 0xc001_1029, 0);
    refuses(&mut bench, 0xc001_0010, 1 << 18);
    refuses(&mut bench, 0xc001_001f, 0);
    for index in [0xc001_1020, 0xc001_1022, 0xc001_1023, 0xc001_102a, 0xc001_102c] {
        assert_eq!(bench.write_msr(index, 1 << 10), Ok(()), "{index:#x}: a switch for errata");
        assert_eq!(bench.read_msr(index), Ok(0), "{index:#x}: that does nothing here");
    }
    for index in [0xc001_0058, 0xc001_0112, 0xc001_0113] {
        assert_eq!(bench.read_msr(index), Ok(0), "{index:#x}");
        refuses(&mut bench, index, 1);
    }
    assert_eq!(bench.read_msr(0x17), Err(PROTECTION), "PLATFORM_ID is Intel's");
}

#[test]
fn intels_registers() {
    let mut bench = Bench::on(intel, vec![], vec![]);
    assert_eq!(bench.read_msr(0x8b), Ok(1 << 32), "the revision is in the upper half");
    assert_eq!(bench.write_msr(0x8b, 0), Ok(()), "as software does before it asks for it");
    refuses(&mut bench, 0x8b, 5);
    assert_eq!(bench.read_msr(0x1a0), Ok(0x1801));
    keeps(&mut bench, 0x1a0, 0x1800);
    refuses(&mut bench, 0x1a0, 0x1800 | 1 << 18);
    refuses(&mut bench, 0x1a0, 0);
    assert_eq!(bench.read_msr(0x17), Ok(0));
    refuses(&mut bench, 0x17, 0);
    assert_eq!(bench.read_msr(0x79), Err(PROTECTION), "write-only");
    assert_eq!(bench.write_msr(0x79, 0xffff_8000_0000_0000), Ok(()), "no update that it would take");
    assert_eq!(bench.write_msr(0x79, 1 << 47), Err(PROTECTION));
    for index in [0xc001_0015, 0xc001_0112, 0xc001_1022] {
        assert_eq!(bench.read_msr(index), Err(PROTECTION), "{index:#x} is AMD's");
    }
}

#[test]
fn machine_checks_and_debugging_are_not_there() {
    let mut bench = Bench::new();
    assert_eq!((bench.read_msr(0x179), bench.read_msr(0x17a)), (Ok(0), Ok(0)));
    refuses(&mut bench, 0x179, 0);
    refuses(&mut bench, 0x17a, 1);
    refuses(&mut bench, 0x1d9, 1);
    assert_eq!(bench.write_msr(0x1d9, 0), Ok(()));
}

#[test]
fn the_tsc_is_what_was_written() {
    let mut bench = Bench::new();
    assert_eq!(bench.read_msr(0x10), Ok(0), "it starts with the vCPU");
    bench.pass(500);
    assert_eq!(bench.read_msr(0x10), Ok(1000));
    bench.write_msr(0x10, 1 << 40).unwrap();
    bench.pass(500);
    assert_eq!(bench.read_msr(0x10), Ok((1 << 40) + 1000));
}

#[test]
fn tsc_and_its_adjustment_move_together() {
    assert_eq!(Bench::new().read_msr(0x3b), Err(PROTECTION), "not on AMD's");
    let mut bench = Bench::on(intel, vec![], vec![]);
    assert_eq!(bench.read_msr(0x3b), Ok(0));
    bench.write_msr(0x10, 5000).unwrap();
    assert_eq!(bench.read_msr(0x3b), Ok(5000), "what the write moved it by");
    bench.write_msr(0x3b, 4000).unwrap();
    assert_eq!((bench.read_msr(0x3b), bench.read_msr(0x10)), (Ok(4000), Ok(4000)));
    bench.pass(500);
    bench.write_msr(0x10, 0).unwrap();
    assert_eq!(bench.read_msr(0x3b), Ok(1000u64.wrapping_neg()));
    let saved = bench.save().unwrap();
    let plan = bench.machine.plan();
    let mut copy = bench
        .restore_with(&saved, 7, 0, |memory| MachineConfig {
            id: 2,
            vcpus: 1,
            memory,
            profile: plan.profile_on(&CpuProfile::new(intel, 1, TSC_KHZ)).unwrap(),
            disks: vec![],
            nics: vec![],
            debug: DebugPorts::default(),
            firmware: None,
            wall_unix_ns: WALL_UNIX_NS,
        })
        .unwrap();
    assert_eq!(copy.read_msr(0x3b), Ok(1000u64.wrapping_neg()), "it is saved");
}

#[test]
fn no_supervisor_state_is_offered() {
    let mut bench = Bench::new();
    assert_eq!(bench.read_msr(0xda0), Err(PROTECTION), "there is no XSAVES");
    assert_eq!(bench.write_msr(0xda0, 0), Err(PROTECTION), "there is no XSAVES");
    let mut bench = Bench::on(with_xsaves, vec![], vec![]);
    assert_eq!(bench.cpuid(0xd, 1), Leaf { eax: 0xf, ebx: 576, ecx: 0, edx: 0 }, "not its supervisor components");
    assert_eq!(bench.read_msr(0xda0), Ok(0));
    bench.write_msr(0xda0, 0).unwrap();
    refuses(&mut bench, 0xda0, 1 << 8);
    refuses(&mut bench, 0xda0, 1);
}

fn with_xsaves(leaf: u32, subleaf: u32) -> Leaf {
    let there = amd(leaf, subleaf);
    if (leaf, subleaf) == (0xd, 1) { Leaf { eax: u32::MAX, ..there } } else { there }
}

#[test]
fn the_apics_page_lies_in_what_there_is_of_memory() {
    let mut bench = Bench::new();
    refuses(&mut bench, 0x1b, 1 << 40 | 0xfee0_0900);
    keeps(&mut bench, 0x1b, 1 << 39 | 0xfee0_0900);
}

#[test]
fn the_local_apic_faults_in_the_wrong_mode() {
    let mut bench = Bench::new();
    assert_eq!(bench.read_msr(0x802), Err(PROTECTION), "xAPIC mode");
    bench.enable_x2apic();
    assert_eq!(bench.read_msr(0x802), Ok(0));
    assert_eq!(bench.write_msr(0x802, 1), Err(PROTECTION), "read-only");
    assert_eq!(bench.read_msr(0x80b), Err(PROTECTION), "write-only");
    assert_eq!(bench.write_msr(0x1b, 0xfee0_0900), Err(PROTECTION), "no way back to xAPIC but through off");
}
