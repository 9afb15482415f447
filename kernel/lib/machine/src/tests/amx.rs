//! AMX on made-up hosts: what CPUID shows, XCR0, IA32_XFD, profiles of several hosts, saved machines.

use super::bench::*;
use super::saved::{refused, sealed};
use crate::{Baseline, CpuProfile, DebugPorts, Leaf, MachineConfig};
use guestmem::heap::guest_memory;
use vcpu::{Paging, VcpuState, Xfd};

const XFD: u32 = 0x1c4;
const XFD_ERR: u32 = 0x1c5;
const TILECFG: u64 = 1 << 17;
const TILEDATA: u64 = 1 << 18;
const TILES: u64 = TILECFG | TILEDATA;
/// BF16, TILE, INT8.
const LEAF_7_EDX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
const PALETTE: Leaf = Leaf { eax: 8192 | 1024 << 16, ebx: 64 | 8 << 16, ecx: 16, edx: 0 };
const MULTIPLIER: Leaf = Leaf { eax: 0, ebx: 16 | 64 << 8, ecx: 0, edx: 0 };

/// Intel's, with AMX and what came with and after it.
fn intel(leaf: u32, subleaf: u32) -> Leaf {
    let zero = Leaf::default();
    match (leaf, subleaf) {
        (0, _) => vendor(0x20, b"GenuineIntel"),
        (7, 0) => Leaf { eax: 1, edx: LEAF_7_EDX | 1 << 23, ..amd(7, 0) },
        (0xd, 0) => Leaf { eax: 0xe7 | TILES as u32, ..amd(0xd, 0) },
        (0xd, 1) => Leaf { eax: u32::MAX, ..zero },
        (0xd, 17) => Leaf { eax: 64, ebx: 2752, ecx: 2, edx: 0 },
        (0xd, 18) => Leaf { eax: 8192, ebx: 2816, ecx: 6, edx: 0 },
        (0x1d, 0) => Leaf { eax: 2, ..zero },
        (0x1d, 1) => PALETTE,
        (0x1e, 0) => Leaf { eax: 1, ..MULTIPLIER },
        (0x1d | 0x1e, _) => Leaf { eax: u32::MAX, ..zero },
        _ => amd(leaf, subleaf),
    }
}

/// The same without AMX.
fn older_intel(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (7, 0) => Leaf { edx: 0, ..intel(7, 0) },
        (0xd, 0) => amd(0xd, 0),
        (0xd, 1) => Leaf { eax: 0xf, ..Leaf::default() },
        _ => intel(leaf, subleaf),
    }
}

fn other_tiles(leaf: u32, subleaf: u32) -> Leaf {
    if (leaf, subleaf) == (0x1d, 1) { Leaf { ecx: 8, ..PALETTE } } else { intel(leaf, subleaf) }
}

/// As no processor has it.
fn without_xfd(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (0xd, 1) => Leaf { eax: 0xf, ..Leaf::default() },
        _ => intel(leaf, subleaf),
    }
}

fn profile(host: fn(u32, u32) -> Leaf) -> CpuProfile {
    CpuProfile::new(host, 1, TSC_KHZ)
}

fn without(names: &[&str]) -> CpuProfile {
    Baseline::of(&profile(intel)).without(names).unwrap().profile_on(&profile(intel), 1).unwrap()
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

fn leaf(profile: &CpuProfile, leaf: u32, subleaf: u32, xcr0: u64) -> Leaf {
    profile.leaf(leaf, subleaf, 0, &Paging::default(), xcr0)
}

/// That a guest finds nothing of it.
fn assert_none(profile: &CpuProfile) {
    assert_eq!(leaf(profile, 0, 0, 1).eax, 0xd);
    assert_eq!(leaf(profile, 7, 0, 1).edx & LEAF_7_EDX, 0);
    assert_eq!((leaf(profile, 0xd, 0, 1).eax, leaf(profile, 0xd, 0, 1).ecx), (0xe7, 2688));
    assert_eq!(leaf(profile, 0xd, 1, 1).eax & 1 << 4, 0);
    assert_eq!(leaf(profile, 0xd, 18, 1), Leaf::default());
    assert!(profile.allows_xcr0(0xe7) && !profile.allows_xcr0(0xe7 | TILES));
    assert_eq!(profile.xfd_bits(), 0);
}

#[test]
fn leaves_show_the_first_palette_and_the_components() {
    let profile = profile(intel);
    assert_eq!(leaf(&profile, 0, 0, 1).eax, 0x1e);
    assert_eq!(leaf(&profile, 7, 0, 1).edx, LEAF_7_EDX, "not AVX-512 FP16");
    assert_eq!(leaf(&profile, 7, 1, 1), Leaf::default());
    assert_eq!(leaf(&profile, 0xd, 0, 3).ebx, 576);
    let all = leaf(&profile, 0xd, 0, 3 | TILES);
    assert_eq!((all.eax, all.ebx, all.ecx), (0xe7 | TILES as u32, 11008, 11008));
    assert_eq!(leaf(&profile, 0xd, 1, 3 | TILES), Leaf { eax: 0x1f, ebx: 576 + 64 + 8192, ..Leaf::default() });
    assert_eq!((leaf(&profile, 0xd, 17, 1), leaf(&profile, 0xd, 18, 1)), (intel(0xd, 17), intel(0xd, 18)));
    assert_eq!(leaf(&profile, 0xd, 19, 1), Leaf::default());
    assert_eq!(leaf(&profile, 0x1d, 0, 1), Leaf { eax: 1, ..Leaf::default() });
    assert_eq!((leaf(&profile, 0x1d, 1, 1), leaf(&profile, 0x1e, 0, 1)), (PALETTE, MULTIPLIER));
    for (index, subleaf) in [(0x1d, 2), (0x1e, 1), (0xe, 0), (0x14, 0), (0x1c, 0)] {
        assert_eq!(leaf(&profile, index, subleaf, 1), Leaf::default(), "leaf {index:#x}.{subleaf}");
    }
    assert_eq!(leaf(&profile, 0x1f, 0, 1), MULTIPLIER, "past the last is the last");
}

#[test]
fn xcr0_has_both_components_or_neither() {
    let profile = profile(intel);
    for allowed in [1, 3, 3 | TILES, 1 | TILES, 0xe7 | TILES] {
        assert!(profile.allows_xcr0(allowed), "{allowed:#x}");
    }
    for refused in [3 | TILECFG, 3 | TILEDATA, TILES, 3 | TILES | 1 << 19] {
        assert!(!profile.allows_xcr0(refused), "{refused:#x}");
    }
}

#[test]
fn xfd_takes_the_bit_of_tile_data_alone() {
    let mut bench = Bench::of(config(profile(intel)));
    for index in [XFD, XFD_ERR] {
        assert_eq!(bench.read_msr(index), Ok(0));
        for bit in 0..64 {
            let expected = if bit == 18 { Ok(()) } else { Err(PROTECTION) };
            assert_eq!(bench.write_msr(index, 1 << bit), expected, "bit {bit} of {index:#x}");
        }
    }
    bench.write_msr(XFD, 0).unwrap();
    assert_eq!((bench.read_msr(XFD), bench.read_msr(XFD_ERR)), (Ok(0), Ok(TILEDATA)), "each is its own");
    for host in [older_intel, without_xfd, amd] {
        let mut bench = Bench::of(config(profile(host)));
        for index in [XFD, XFD_ERR] {
            assert_eq!(bench.read_msr(index), Err(PROTECTION));
            assert_eq!(bench.write_msr(index, 0), Err(PROTECTION));
        }
    }
}

#[test]
fn what_is_of_no_use_without_the_other_is_not_offered() {
    assert_none(&profile(older_intel));
    assert_none(&profile(without_xfd));
    for name in ["AMX_TILE", "AMX state", "XFD"] {
        assert_none(&without(&[name]));
    }
    let none = without(&["XSAVE"]);
    assert_eq!((leaf(&none, 0, 0, 1).eax, leaf(&none, 7, 0, 1).edx & LEAF_7_EDX), (0xd, 0));
    let plain = without(&["AMX_INT8"]);
    assert_eq!(leaf(&plain, 7, 0, 1).edx, LEAF_7_EDX & !(1 << 25));
    assert!(plain.xfd_bits() == TILEDATA && plain.allows_xcr0(3 | TILES));
    // What hides half of it hides the rest.
    for hidden in [(7, 0), (0xd, 0), (0x1d, 1)] {
        let host = |leaf, subleaf| match (leaf, subleaf) {
            (0x1d, 1) if hidden == (0x1d, 1) => Leaf::default(),
            at if at == hidden => older_intel(leaf, subleaf),
            _ => intel(leaf, subleaf),
        };
        assert_none(&CpuProfile::new(host, 1, TSC_KHZ));
    }
}

#[test]
fn hosts_have_it_in_common_where_it_is_the_same() {
    let of = |host| Baseline::of(&profile(host));
    let same = of(intel).meet(&of(intel)).unwrap();
    assert_eq!(same, of(intel));
    assert_eq!(Baseline::parse(&same.encode()), Ok(same));
    for host in [older_intel, other_tiles] {
        let common = of(intel).meet(&of(host)).unwrap();
        assert_none(&common.profile_on(&profile(host), 1).unwrap());
    }
    let refused = |host| of(intel).profile_on(&profile(host), 1).map(drop).unwrap_err().to_string();
    assert_eq!(refused(older_intel), "this processor lacks AMX_BF16, AMX_TILE, AMX_INT8, AMX state and XFD");
    assert_eq!(refused(other_tiles), "this processor lacks tiles of that kind");
}

#[test]
fn it_is_saved_and_what_was_not_offered_is_refused() {
    let mut bench = Bench::of(config(profile(intel)));
    bench.write_msr(XFD, TILEDATA).unwrap();
    bench.thread.vcpu.set_xcr0(3 | TILES);
    let saved = bench.save().unwrap();
    let plan = bench.machine.plan();
    let here = |memory| MachineConfig { memory, ..config(plan.profile_on(&profile(intel)).unwrap()) };
    let mut copy = bench.restore_with(&saved, 7, 0, here).unwrap();
    assert_eq!((copy.read_msr(XFD), copy.read_msr(XFD_ERR)), (Ok(TILEDATA), Ok(0)));
    assert_eq!(copy.thread.vcpu.state().xcr0, 3 | TILES);
    assert_eq!(copy.cpuid(0x1d, 1), PALETTE);
    assert!(plan.profile_on(&profile(older_intel)).is_err());
    // An array of two, and a number of four bytes in it.
    let place = saved.windows(6).rposition(|bytes| bytes == [0x82, 0x1a, 0, 4, 0, 0]).unwrap();
    let mut changed = saved.clone();
    changed[place + 3] = 8;
    let refused = refused(bench.restore_with(&sealed(changed), 7, 0, here));
    assert_eq!(refused, "its vCPU 0 is impossible: its guest was not offered such a mode");
}

#[test]
fn init_leaves_xfd_and_reset_clears_it() {
    let reset = VcpuState::reset();
    assert_eq!(reset.xfd, Xfd::default());
    let xfd = Xfd { disabled: TILEDATA, error: TILEDATA };
    assert_eq!(VcpuState { xfd, ..reset }.after_init().xfd, xfd);
}
