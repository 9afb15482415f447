//! What guests can control of speculation and are told of weaknesses: registers, profiles of several hosts, saved machines.

use super::bench::*;
use super::saved::{refused, sealed};
use crate::{Baseline, CpuProfile, DebugPorts, Leaf, MachineConfig};
use guestmem::heap::guest_memory;
use vcpu::Paging;

const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const ARCH_CAPABILITIES: u32 = 0x10a;
/// IBRS and IBPB, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
const LEAF_7_EDX: u32 = 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
const RDCL_NO: u64 = 1 << 0;
const RSBA: u64 = 1 << 2;
const TSX_CTRL: u64 = 1 << 7;
const RFDS_NO: u64 = 1 << 27;
const RFDS_CLEAR: u64 = 1 << 28;
const ITS_NO: u64 = 1 << 62;

/// Intel's, with PSFD and BHI_CTRL in leaf 7.2.
fn intel(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (0, _) => vendor(0x20, b"GenuineIntel"),
        (7, 0) => Leaf { eax: 2, edx: LEAF_7_EDX | 1 << 30, ..amd(7, 0) },
        (7, 2) => Leaf { edx: 1 << 0 | 1 << 3 | 1 << 4, ..Leaf::default() },
        _ => amd(leaf, subleaf),
    }
}

/// AMD's, with all that they name.
fn with_ibrs(leaf: u32, subleaf: u32) -> Leaf {
    let all = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
    match leaf {
        0x8000_0000 => vendor(0x8000_0023, b"AuthenticAMD"),
        0x8000_0008 => Leaf { ebx: u32::MAX, ..amd(leaf, subleaf) },
        0x8000_001b.. => all,
        _ => amd(leaf, subleaf),
    }
}

fn host(capabilities: u64) -> CpuProfile {
    CpuProfile::new(intel, 1, TSC_KHZ).with_arch_capabilities(Some(capabilities))
}

fn config(profile: CpuProfile) -> MachineConfig {
    MachineConfig {
        id: 1,
        vcpus: 1,
        memory: guest_memory(MEMORY_BYTES),
        profile,
        disks: vec![],
        nics: vec![],
        debug: DebugPorts::default(),
        firmware: None,
        wall_unix_ns: WALL_UNIX_NS,
    }
}

fn leaf(profile: &CpuProfile, leaf: u32, subleaf: u32) -> Leaf {
    profile.leaf(leaf, subleaf, 0, &Paging::default(), 1)
}

fn common(hosts: &[u64]) -> Baseline {
    let hosts = hosts.iter().map(|&capabilities| Baseline::of(&host(capabilities)));
    hosts.reduce(|a, b| a.meet(&b).unwrap()).unwrap()
}

#[test]
fn a_processor_without_them_has_none_of_the_registers() {
    let mut bench = Bench::new();
    for index in [SPEC_CTRL, PRED_CMD, ARCH_CAPABILITIES, 0x10b] {
        assert_eq!(bench.read_msr(index), Err(PROTECTION), "read of {index:#x}");
        assert_eq!(bench.write_msr(index, 0), Err(PROTECTION), "write of {index:#x}");
    }
}

#[test]
fn what_is_named_can_be_set_and_nothing_else() {
    for (profile, named) in [(host(0), 0x487), (CpuProfile::new(with_ibrs, 1, TSC_KHZ), 0x87)] {
        let mut bench = Bench::of(config(profile));
        assert_eq!(bench.read_msr(SPEC_CTRL), Ok(0));
        for bit in 0..64 {
            let expected = if named & 1 << bit != 0 { Ok(()) } else { Err(PROTECTION) };
            assert_eq!(bench.write_msr(SPEC_CTRL, 1 << bit), expected, "bit {bit} of {named:#x}");
        }
        assert_eq!(bench.write_msr(SPEC_CTRL, named), Ok(()));
        assert_eq!(bench.read_msr(SPEC_CTRL), Ok(named));
        assert_eq!(bench.read_msr(PRED_CMD), Err(PROTECTION), "write-only");
    }
}

#[test]
fn leaves_show_what_is_known() {
    let profile = host(0);
    assert_eq!((leaf(&profile, 7, 0).eax, leaf(&profile, 7, 0).edx), (2, LEAF_7_EDX), "not CORE_CAPABILITIES");
    assert_eq!(leaf(&profile, 7, 2), Leaf { edx: 1 << 0 | 1 << 4, ..Leaf::default() });
    assert_eq!(leaf(&profile, 7, 1), Leaf::default());
    let profile = CpuProfile::new(with_ibrs, 1, TSC_KHZ);
    assert_eq!(leaf(&profile, 0x8000_0000, 0).eax, 0x8000_0021);
    let last = leaf(&profile, 0x8000_0021, 0);
    assert_eq!((last.eax & 1 << 8, last.ecx, last.ebx, last.edx), (0, 6, 0, 0), "no automatic IBRS");
    for index in [0x8000_001b, 0x8000_001f, 0x8000_0022] {
        assert_eq!(leaf(&profile, index, 0), Leaf::default(), "leaf {index:#x}");
    }
    let old = CpuProfile::new(amd, 1, TSC_KHZ);
    assert_eq!((leaf(&old, 0x8000_0000, 0).eax, leaf(&old, 7, 0).eax), (0x8000_001a, 0));
}

#[test]
fn weaknesses_are_told_and_controls_that_no_guest_has_are_not() {
    let mut bench = Bench::of(config(host(RDCL_NO | RSBA | TSX_CTRL | ITS_NO | 1 << 40)));
    assert_eq!(bench.read_msr(ARCH_CAPABILITIES), Ok(RDCL_NO | RSBA | ITS_NO));
    assert_eq!(bench.write_msr(ARCH_CAPABILITIES, RDCL_NO), Err(PROTECTION), "read-only");
}

#[test]
fn several_hosts_are_affected_by_what_one_is_affected_by() {
    let both = common(&[RDCL_NO | ITS_NO, RDCL_NO | RSBA]);
    let profile = both.profile_on(&host(RDCL_NO | RSBA), 1).unwrap();
    assert_eq!(profile.arch_capabilities(), Some(RDCL_NO | RSBA));
    // On the one that has less to fear the guest fears the same.
    assert_eq!(both.profile_on(&host(RDCL_NO | ITS_NO), 1).unwrap().arch_capabilities(), Some(RDCL_NO | RSBA));
    let none = CpuProfile::new(amd, 1, TSC_KHZ);
    assert_eq!(none.arch_capabilities(), None);
}

#[test]
fn a_guest_that_may_come_to_a_leaking_processor_clears_there() {
    let clears = |hosts: &[u64]| {
        let profile = common(hosts).profile_on(&host(hosts[0]), 1).unwrap();
        profile.arch_capabilities().unwrap() & (RFDS_NO | RFDS_CLEAR)
    };
    assert_eq!(clears(&[RFDS_NO, RFDS_CLEAR]), RFDS_CLEAR);
    assert_eq!(clears(&[RFDS_NO, 0]), 0, "one does not know how");
    assert_eq!(clears(&[RFDS_NO, RFDS_NO]) & RFDS_NO, RFDS_NO);
}

#[test]
fn a_target_with_more_to_fear_is_refused_by_name() {
    let told = |capabilities| Bench::of(config(host(capabilities))).machine.plan();
    let refused = |from: u64, to: u64| told(from).profile_on(&host(to)).map(drop).unwrap_err().to_string();
    assert_eq!(refused(RDCL_NO, 0), "this processor lacks RDCL_NO");
    assert_eq!(refused(0, RSBA), "this processor lacks no RSBA");
    assert!(told(0).profile_on(&host(RDCL_NO)).is_ok(), "less to fear");
    assert!(told(RFDS_CLEAR).profile_on(&host(RFDS_NO)).is_ok(), "nothing to clear");
    let without = CpuProfile::new(intel, 1, TSC_KHZ);
    let refused = told(0).profile_on(&without).map(drop).unwrap_err().to_string();
    assert!(refused.contains("ARCH_CAPABILITIES"), "{refused}");
}

#[test]
fn what_is_withheld_by_name_is_not_there() {
    let all = host(RDCL_NO | 1 << 1);
    let with = |names: &[&str]| Baseline::of(&all).without(names).unwrap().profile_on(&all, 1).unwrap();
    assert_eq!(with(&["ssbd", "BHI_CTRL"]).speculation().control, 0x83);
    assert_eq!(with(&["ARCH_CAPABILITIES"]).arch_capabilities(), None);
    assert_eq!(with(&["SPEC_CTRL"]).arch_capabilities(), Some(RDCL_NO), "enhanced IBRS is no use without the bit");
    assert_eq!(with(&["RDCL_NO", "no RSBA"]).arch_capabilities(), Some(1 << 1 | RSBA));
}

#[test]
fn the_value_is_saved_and_a_reserved_bit_is_refused() {
    let mut bench = Bench::of(config(host(RDCL_NO)));
    bench.write_msr(SPEC_CTRL, 0x81).unwrap();
    let saved = bench.save().unwrap();
    let plan = bench.machine.plan();
    let here = |memory| MachineConfig { memory, ..config(plan.profile_on(&host(RDCL_NO)).unwrap()) };
    let mut copy = bench.restore_with(&saved, 7, 0, here).unwrap();
    assert_eq!(copy.read_msr(SPEC_CTRL), Ok(0x81));
    let place = saved.windows(2).rposition(|bytes| bytes == [0x18, 0x81]).unwrap();
    let mut changed = saved.clone();
    changed[place + 1] = 0x88;
    let refused = refused(bench.restore_with(&sealed(changed), 7, 0, here));
    assert_eq!(refused, "its vCPU 0 is impossible: its guest was not offered such a mode");
}

#[test]
fn init_leaves_it_and_reset_clears_it() {
    let reset = vcpu::VcpuState::reset();
    assert_eq!(reset.spec_ctrl, 0);
    let state = vcpu::VcpuState { spec_ctrl: 5, ..reset };
    assert_eq!(state.after_init().spec_ctrl, 5);
}
