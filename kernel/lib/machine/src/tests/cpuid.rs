//! What CPUID shows on made-up hosts.

use super::bench::*;
use crate::{CpuProfile, Leaf};
use vcpu::{Event, Exception, Exit, Gpr, Paging, cr4};

/// A processor of Intel's with four caches that repeats its last basic leaf past the end, as they do.
fn intel(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (0, _) => vendor(0x16, b"GenuineIntel"),
        (0x8000_0000, _) => Leaf { eax: 0x8000_0008, ..Leaf::default() },
        (4, 0) => Leaf { eax: 0xfc00_4121, ..Leaf::default() },
        (4, 1) => Leaf { eax: 0xfc00_4122, ..Leaf::default() },
        (4, 2) => Leaf { eax: 0xfc00_4143, ..Leaf::default() },
        (4, 3) => Leaf { eax: 0xfc03_c163, ebx: 0x1234, ..Leaf::default() },
        (4, _) => Leaf::default(),
        _ => amd(leaf, subleaf),
    }
}

/// A processor without any feature.
fn bare(leaf: u32, _subleaf: u32) -> Leaf {
    match leaf {
        0 => vendor(1, b"GenuineIntel"),
        0x8000_0000 => Leaf { eax: 0x8000_0008, ..Leaf::default() },
        0x8000_0008 => Leaf { eax: 0x3027, ..Leaf::default() },
        _ if leaf > 1 && leaf < 0x8000_0000 => Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX },
        _ => Leaf::default(),
    }
}

fn leaf(profile: &CpuProfile, leaf: u32, subleaf: u32) -> Leaf {
    profile.leaf(leaf, subleaf, 0, &Paging::default(), 1)
}

#[test]
fn only_known_features_are_offered() {
    let mut bench = Bench::new();
    let Leaf { ecx, edx, .. } = bench.cpuid(1, 0);
    for (bit, name) in
        [(2, "DTES64"), (3, "MONITOR"), (5, "VMX"), (6, "SMX"), (15, "PDCM"), (18, "DCA"), (27, "OSXSAVE")]
    {
        assert_eq!(ecx & 1 << bit, 0, "{name}");
    }
    for (bit, name) in [(0, "SSE3"), (21, "x2APIC"), (24, "TSC deadline"), (26, "XSAVE"), (31, "hypervisor")] {
        assert_ne!(ecx & 1 << bit, 0, "{name}");
    }
    for (bit, name) in [(21, "DS"), (22, "ACPI"), (27, "SS"), (28, "HTT"), (29, "TM")] {
        assert_eq!(edx & 1 << bit, 0, "{name}");
    }
    for (bit, name) in [(0, "FPU"), (9, "APIC"), (12, "MTRR"), (19, "CLFSH"), (26, "SSE2")] {
        assert_ne!(edx & 1 << bit, 0, "{name}");
    }
    let seven = bench.cpuid(7, 0);
    assert_eq!(seven.ebx & (1 << 2 | 1 << 12 | 1 << 14), 0, "SGX, PQM, MPX");
    assert_eq!(seven.ecx & (1 << 3 | 1 << 7 | 1 << 16), 0, "PKU, CET, LA57");
    assert_eq!(seven.edx & !(1 << 4), 0);
    let extended = bench.cpuid(0x8000_0001, 0);
    assert_eq!(extended.ecx & (1 << 2 | 1 << 10 | 1 << 22 | 1 << 29), 0, "SVM, IBS, TOPOEXT, MWAITX");
    assert_ne!(extended.edx & 1 << 29, 0, "long mode");
    assert_eq!(bench.cpuid(6, 0), Leaf { eax: 4, ..Leaf::default() });
    assert_eq!((bench.cpuid(5, 0), bench.cpuid(0xa, 0)), (Leaf::default(), Leaf::default()));
}

#[test]
fn nothing_is_offered_that_the_host_lacks() {
    let profile = CpuProfile::new(bare, 1, TSC_KHZ);
    let one = leaf(&profile, 1, 0);
    assert_eq!((one.ecx, one.edx), (1 << 21 | 1 << 24 | 1 << 31, 0));
    for index in [2, 4, 7, 0xd] {
        let mut got = leaf(&profile, index, 0);
        if index == 0xd {
            got = Leaf { ebx: 0, ecx: 0, ..got };
        }
        assert_eq!(got, Leaf::default(), "leaf {index:#x} is past the host's last");
    }
    assert_eq!(leaf(&profile, 0x8000_0019, 0), leaf(&profile, 0xd, 0), "past the last");
    assert!(!profile.allows_xcr0(1));
    assert_eq!(profile.efer_bits(), vcpu::efer::LMA);
}

#[test]
fn vendors_and_hypervisor_have_their_names() {
    let text = |leaf: Leaf| [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat();
    let mut bench = Bench::new();
    let zero = bench.cpuid(0, 0);
    assert_eq!(
        (zero.eax, [zero.ebx, zero.edx, zero.ecx].map(u32::to_le_bytes).as_flattened()),
        (0xd, &b"AuthenticAMD"[..])
    );
    let hypervisor = bench.cpuid(0x4000_0000, 0);
    assert_eq!((hypervisor.eax, &text(hypervisor)[..]), (0x4000_0010, &b"KVMKVMKVM\0\0\0"[..]));
    assert_eq!(text(bench.cpuid(0x4000_0100, 0)), b"PolluxPollux");
    assert_eq!(bench.cpuid(0x4000_0010, 0), Leaf { eax: TSC_KHZ, ebx: 1_000_000, ..Leaf::default() });
    assert_eq!(bench.cpuid(0x4000_0001, 0).eax, 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 24);
    assert!(!CpuProfile::new(intel, 1, TSC_KHZ).is_amd());
}

#[test]
fn osxsave_follows_cr4() {
    let mut bench = Bench::new();
    assert_eq!(bench.cpuid(1, 0).ecx & 1 << 27, 0);
    set_osxsave(&mut bench);
    assert_ne!(bench.cpuid(1, 0).ecx & 1 << 27, 0);
}

fn set_osxsave(bench: &mut Bench) {
    bench.then(|state| {
        state.cr4 |= cr4::OSXSAVE;
        Exit::Pause
    });
    bench.run();
}

#[test]
fn a_disabled_local_apic_is_not_there() {
    let mut bench = Bench::new();
    for base in [0xfee0_0100, 0xfee0_0900] {
        bench.write_msr(0x1b, base).unwrap();
        let there = u32::from(base & 0x800 != 0);
        assert_eq!(bench.cpuid(1, 0).edx >> 9 & 1, there);
        assert_eq!(bench.cpuid(0x8000_0001, 0).edx >> 9 & 1, there);
    }
}

#[test]
fn past_its_last_leaf_intel_shows_that_and_amd_nothing() {
    let profile = CpuProfile::new(intel, 1, TSC_KHZ);
    for index in [0xe, 0x16, 0x3fff_ffff, 0x5000_0000, 0x8000_0009, 0x8000_001a, u32::MAX] {
        assert_eq!(leaf(&profile, index, 2), leaf(&profile, 0xd, 2), "leaf {index:#x}");
    }
    assert_eq!(leaf(&profile, 0x4000_0002, 0), Leaf::default(), "a hypervisor's leaf");
    let profile = CpuProfile::new(amd, 1, TSC_KHZ);
    for index in [0xe, 0x3fff_ffff, 0x8000_001b, u32::MAX] {
        assert_eq!(leaf(&profile, index, 2), Leaf::default(), "leaf {index:#x}");
    }
}

#[test]
fn xsave_sizes_follow_xcr0() {
    let mut bench = Bench::new();
    let zero = bench.cpuid(0xd, 0);
    assert_eq!((zero.eax, zero.ebx, zero.ecx, zero.edx), (0xe7, 576, 2688, 0));
    assert_eq!(bench.cpuid(0xd, 1), Leaf { eax: 7, ebx: 576, ecx: 0, edx: 0 });
    set_osxsave(&mut bench);
    for (xcr0, standard, compacted) in [(3, 576, 576), (7, 832, 832), (0xe7, 2688, 1408 + 1024)] {
        bench.exit(Exit::SetXcr { index: 0, value: xcr0 });
        assert_eq!(bench.cpuid(0xd, 0).ebx, standard, "XCR0 {xcr0:#x}");
        assert_eq!(bench.cpuid(0xd, 1).ebx, compacted, "XCR0 {xcr0:#x}, compacted");
    }
    assert_eq!(bench.cpuid(0xd, 7), amd(0xd, 7));
    assert_eq!(bench.cpuid(0xd, 9), Leaf::default(), "protection keys, which this host has not");
    assert_eq!(bench.cpuid(0xd, 1000), Leaf::default());
}

fn with_keys(leaf: u32, subleaf: u32) -> Leaf {
    let there = amd(leaf, subleaf);
    match (leaf, subleaf) {
        (7, 0) => Leaf { ecx: there.ecx | 1 << 3, ..there },
        (0xd, 0) => Leaf { eax: there.eax | 1 << 9, ..there },
        _ => there,
    }
}

#[test]
fn five_levels_are_offered_and_widen_addresses() {
    let host = |leaf: u32, subleaf: u32| {
        let there = amd(leaf, subleaf);
        match leaf {
            7 => Leaf { ecx: there.ecx | 1 << 16, ..there },
            0x8000_0008 => Leaf { eax: 0x3030_3928, ..there },
            _ => there,
        }
    };
    let (narrow, wide) = (CpuProfile::new(amd, 1, TSC_KHZ), CpuProfile::new(host, 1, TSC_KHZ));
    let has = |profile: &CpuProfile| (profile.cr4_bits() & cr4::LA57 != 0, profile.linear_address_bits());
    assert_eq!((has(&narrow), has(&wide)), ((false, 48), (true, 57)));
    let shown = |profile: &CpuProfile| profile.leaf(0x8000_0008, 0, 0, &Paging::default(), 1).eax >> 8 & 0xff;
    assert_eq!((shown(&narrow), shown(&wide)), (48, 57));
    let withheld = crate::Baseline::of(&wide).without(&["la57"]).unwrap().profile_on(&wide, 1).unwrap();
    assert_eq!((has(&withheld), shown(&withheld)), ((false, 48), 48));
}

#[test]
fn protection_keys_are_offered_with_their_state() {
    let mut bench = Bench::on(with_keys, vec![], vec![]);
    assert_eq!(bench.cpuid(7, 0).ecx & 0x18, 1 << 3, "PKU, and CR4.PKE is clear");
    let zero = bench.cpuid(0xd, 0);
    assert_eq!((zero.eax, zero.ecx), (0x2e7, 2696));
    assert_eq!(bench.cpuid(0xd, 9), amd(0xd, 9));
    bench.set_gpr(Gpr::Rcx, cr4::PKE | cr4::OSXSAVE);
    bench.exit(Exit::Cr4Write { source: Some(Gpr::Rcx) });
    assert_eq!(bench.cpuid(7, 0).ecx & 0x18, 0x18);
    for (xcr0, standard, compacted) in [(0x203, 2696, 584), (0x2e7, 2696, 1408 + 1024 + 8)] {
        bench.exit(Exit::SetXcr { index: 0, value: xcr0 });
        assert_eq!(bench.taken(), []);
        assert_eq!((bench.cpuid(0xd, 0).ebx, bench.cpuid(0xd, 1).ebx), (standard, compacted), "XCR0 {xcr0:#x}");
    }
    assert!(!CpuProfile::new(amd, 1, TSC_KHZ).allows_xcr0(0x203), "not where the host has none");
}

#[test]
fn xcr0_takes_only_what_belongs_together() {
    let mut bench = Bench::new();
    bench.exit(Exit::SetXcr { index: 0, value: 1 });
    assert_eq!(bench.taken(), [Event::Exception(Exception::UNDEFINED)], "CR4.OSXSAVE is clear");
    set_osxsave(&mut bench);
    for (index, value) in [(0, 0), (0, 2), (0, 5), (0, 0x27), (0, 0xe3), (0, 1 << 9 | 3), (0, 1 << 63 | 1), (1, 1)] {
        bench.exit(Exit::SetXcr { index, value });
        assert_eq!(bench.taken(), [PROTECTION], "XCR{index} = {value:#x}");
        assert_eq!(bench.thread.xcr0, 1);
    }
}

#[test]
fn cr4_takes_what_was_offered() {
    let mut bench = Bench::new();
    let cr4 = |bench: &Bench| bench.thread.vcpu.paging().cr4;
    bench.set_gpr(Gpr::Rdx, 0xdead_0000_0000 | cr4::SMEP | cr4::PSE);
    bench.exit(Exit::Cr4Write { source: Some(Gpr::Rdx) });
    assert_eq!((bench.taken(), cr4(&bench)), (vec![], cr4::SMEP | cr4::PSE), "32 bits of it");
    for bit in [cr4::VMXE, cr4::CET, cr4::PKS, 1 << 15] {
        bench.set_gpr(Gpr::Rdx, bit);
        let rip = bench.thread.rip();
        bench.exit(Exit::Cr4Write { source: Some(Gpr::Rdx) });
        assert_eq!((bench.taken(), cr4(&bench)), (vec![PROTECTION], cr4::SMEP | cr4::PSE), "{bit:#x}");
        assert_eq!(bench.thread.rip(), rip);
    }
    bench.set_gpr(Gpr::Rbx, cr4::PAE);
    // MOV CR4, EBX
    bench.emulate(&[0x0f, 0x22, 0xe3], Exit::Cr4Write { source: None });
    assert_eq!(cr4(&bench), cr4::PAE);
}

#[test]
fn intels_caches_end_and_belong_to_the_guests_package() {
    let profile = CpuProfile::new(intel, 1, TSC_KHZ);
    let kinds = [0, 1, 2, 3, 4].map(|subleaf| leaf(&profile, 4, subleaf).eax & 0x1f);
    assert_eq!(kinds, [1, 2, 3, 3, 0]);
    assert_eq!(leaf(&profile, 4, 3).eax & !0x3fff, 0, "one core, no sharers");
    let profile = CpuProfile::new(intel, 3, TSC_KHZ);
    assert_eq!(leaf(&profile, 4, 0).eax >> 14, 3 << 12, "a private cache in a package of up to four");
    assert_eq!(leaf(&profile, 4, 3).eax >> 14, 3 << 12 | 3, "the shared one");
    assert_eq!(leaf(&profile, 0x8000_0000, 0).eax, 0x8000_0008);
    assert_eq!(leaf(&profile, 0x8000_0008, 0).ecx, 0);
}

#[test]
fn several_processors_are_cores_of_one_package() {
    let profile = CpuProfile::new(amd, 3, TSC_KHZ);
    let one = profile.leaf(1, 0, 2, &Paging::default(), 1);
    assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff, one.edx >> 28 & 1), (2, 3, 1));
    assert_eq!(profile.leaf(0xb, 0, 2, &Paging::default(), 1), Leaf { eax: 0, ebx: 1, ecx: 0x100, edx: 2 });
    assert_eq!(profile.leaf(0xb, 1, 2, &Paging::default(), 1), Leaf { eax: 2, ebx: 3, ecx: 0x201, edx: 2 });
    assert_eq!(profile.leaf(0xb, 2, 2, &Paging::default(), 1), Leaf { eax: 0, ebx: 0, ecx: 2, edx: 2 });
    assert_eq!(leaf(&profile, 0x8000_0008, 0).ecx, 2 << 12 | 2);
    assert_ne!(leaf(&profile, 0x8000_0001, 0).ecx & 2, 0, "cores, not threads");
}
