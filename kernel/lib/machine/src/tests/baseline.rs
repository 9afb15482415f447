//! What made-up hosts have in common.

use super::bench::*;
use crate::{BASELINE_BYTES_MAX, Baseline, CpuProfile, Leaf, NoBaseline};
use proptest::prelude::*;
use vcpu::Paging;

type Host = fn(u32, u32) -> Leaf;

fn baseline(host: impl Fn(u32, u32) -> Leaf) -> Baseline {
    Baseline::of(&CpuProfile::new(host, 1, TSC_KHZ))
}

fn shown(baseline: &Baseline, host: Host, index: u32, subleaf: u32) -> Leaf {
    let profile = baseline.profile_on(&CpuProfile::new(host, 1, TSC_KHZ), 1).unwrap();
    profile.leaf(index, subleaf, 0, &Paging::default(), 1)
}

fn intel(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (0, _) => vendor(0x20, b"GenuineIntel"),
        (4, 0) => Leaf { eax: 0x4121, ebx: 7 << 22 | 63, ecx: 63, edx: 0 },
        (4, 1) => Leaf { eax: 0x4143, ebx: 15 << 22 | 63, ecx: 1023, edx: 6 },
        (4, _) => Leaf::default(),
        _ => amd(leaf, subleaf),
    }
}

/// An older processor whose second cache is smaller, and whose third is one for instructions.
fn older_intel(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (1, _) => Leaf { eax: 0x0003_06c3, ..amd(1, 0) },
        (4, 1) => Leaf { eax: 0x4143, ebx: 7 << 22 | 63, ecx: 2047, edx: 4 },
        (4, 2) => Leaf { eax: 0x4122, ebx: 7, ecx: 1, edx: 0 },
        (0x8000_0002..=0x8000_0004, _) => Leaf::default(),
        (0x8000_0008, _) => Leaf { eax: 0x3027, ..amd(leaf, 0) },
        (2, _) => Leaf::default(),
        _ => intel(leaf, subleaf),
    }
}

fn without_avx_state(leaf: u32, subleaf: u32) -> Leaf {
    let there = amd(leaf, subleaf);
    if (leaf, subleaf) == (0xd, 0) { Leaf { eax: there.eax & !4, ..there } } else { there }
}

fn with_avx_512_elsewhere(leaf: u32, subleaf: u32) -> Leaf {
    let there = amd(leaf, subleaf);
    if (leaf, subleaf) == (0xd, 6) { Leaf { ebx: there.ebx + 64, ..there } } else { there }
}

#[test]
fn sizes_and_widths_are_the_lesser_and_the_processor_the_older() {
    let common = baseline(intel).meet(&baseline(older_intel)).unwrap();
    assert_eq!(common.signature(), (6, 0x3c, 3));
    assert_eq!(common.physical_address_bits(), 39);
    assert_eq!(common.name(), "Processor with what several hosts have in common");
    let show = |index, subleaf| shown(&common, older_intel, index, subleaf);
    assert_eq!(show(4, 0).eax & 0xff, 0x21);
    assert_eq!(show(4, 1), Leaf { eax: 0x143, ebx: 7 << 22 | 63, ecx: 1023, edx: 4 });
    assert_eq!(show(4, 2), Leaf::default(), "a cache that one has not");
    assert_eq!(show(2, 0).eax & 0xff00, 0xff00, "leaf 2 says that leaf 4 has them");
}

#[test]
fn what_needs_a_component_goes_with_it() {
    let common = baseline(amd).meet(&baseline(without_avx_state)).unwrap();
    assert_eq!(common.xcr0(), 3);
    let gone = common.withholds_of(&baseline(amd));
    for name in ["AVX", "FMA", "AVX2", "VAES", "AVX512F", "AVX512BW", "AVX512VBMI", "XOP", "AVX state"] {
        assert!(gone.iter().any(|feature| feature == name), "{name}");
    }
    assert!(!gone.iter().any(|feature| feature == "BMI2" || feature == "AES"), "{gone:?}");
    assert_eq!(shown(&common, without_avx_state, 0xd, 0), Leaf { eax: 3, ebx: 576, ecx: 576, edx: 0 });
    assert_eq!(shown(&common, without_avx_state, 0xd, 2), Leaf::default());
}

#[test]
fn a_component_at_another_place_is_not_in_common() {
    let common = baseline(amd).meet(&baseline(with_avx_512_elsewhere)).unwrap();
    assert_eq!(common.xcr0(), 7);
    assert_eq!(shown(&common, amd, 0xd, 0).ecx, 832);
    let gone = common.withholds_of(&baseline(amd));
    assert!(gone.iter().all(|feature| feature.contains("512") || feature.contains("AVX-512")), "{gone:?}");
    assert!(gone.len() > 10);
}

#[test]
fn another_vendor_has_nothing_in_common() {
    let refused = baseline(amd).meet(&baseline(intel)).unwrap_err().to_string();
    assert!(refused.contains("AMD (SVM)") && refused.contains("Intel (VT-x)"), "{refused}");
    assert!(baseline(amd).profile_on(&CpuProfile::new(intel, 1, TSC_KHZ), 1).is_err());
}

#[test]
fn a_host_without_all_of_it_is_refused_by_name() {
    let host = CpuProfile::new(without_avx_state, 1, TSC_KHZ);
    let refused = baseline(amd).profile_on(&host, 1).unwrap_err().to_string();
    assert!(refused.contains("AVX state"), "{refused}");
}

#[test]
fn a_guest_is_told_its_own_cores_and_this_hosts_tsc() {
    let slower = Baseline::of(&CpuProfile::new(amd, 1, TSC_KHZ / 2));
    let common = baseline(amd).meet(&slower).unwrap();
    assert_eq!((common.tsc_khz(), common.has_several_rates()), ((TSC_KHZ / 2, TSC_KHZ), true));
    let host = CpuProfile::new(amd, 3, TSC_KHZ);
    let profile = common.profile_on(&host, 3).unwrap();
    assert_eq!((profile.tsc_khz(), profile.real_tsc_khz()), (TSC_KHZ, TSC_KHZ));
    for index in [1, 0x8000_0001, 0x8000_0008] {
        let leaf = |profile: &CpuProfile| profile.leaf(index, 0, 2, &Paging::default(), 1);
        assert_eq!(leaf(&profile), leaf(&host), "leaf {index:#x}");
    }
}

#[test]
fn a_host_alone_shows_what_it_showed() {
    let host = CpuProfile::new(amd, 2, TSC_KHZ);
    let alone = Baseline::of(&host).profile_on(&host, 2).unwrap();
    for index in (0..0xe).chain(0x8000_0000..0x8000_001b) {
        let leaf = |profile: &CpuProfile| profile.leaf(index, 0, 1, &Paging::default(), 7);
        assert_eq!(leaf(&alone), leaf(&host), "leaf {index:#x}");
    }
}

#[test]
fn it_comes_back_from_its_bytes_and_others_are_refused() {
    let bytes = baseline(amd).encode();
    assert!(bytes.len() <= BASELINE_BYTES_MAX, "{}", bytes.len());
    assert_eq!(Baseline::parse(&bytes), Ok(baseline(amd)));
    let mut long = bytes.clone();
    long.resize(BASELINE_BYTES_MAX + 1, 0);
    assert_eq!(Baseline::parse(&long), Err(NoBaseline));
    for end in 0..bytes.len() {
        assert_eq!(Baseline::parse(&bytes[..end]), Err(NoBaseline), "cut at {end}");
    }
    let far = |leaf, subleaf| match (leaf, subleaf) {
        (0xd, 2) => Leaf { eax: 256, ebx: 1 << 30, ecx: 0, edx: 0 },
        _ => amd(leaf, subleaf),
    };
    let far = minicbor::to_vec(CpuProfile::new(far, 1, TSC_KHZ).save()).unwrap();
    assert_eq!(Baseline::parse(&far), Err(NoBaseline), "a component far away");
    let two = minicbor::to_vec(CpuProfile::new(amd, 2, TSC_KHZ).save()).unwrap();
    assert_eq!(Baseline::parse(&two), Err(NoBaseline), "a guest's and not a host's");
    let still = minicbor::to_vec(CpuProfile::new(amd, 1, 0).save()).unwrap();
    assert_eq!(Baseline::parse(&still), Err(NoBaseline), "a TSC that stands still");
}

/// A host that has some of everything, by three choices for each leaf: all of it, and two kinds of less.
fn made_up(choices: &[u8], rate: u32) -> CpuProfile {
    let host = |leaf: u32, subleaf: u32| {
        let there = amd(leaf, subleaf);
        let at = (leaf % 61 + subleaf * 7) as usize % choices.len();
        let seed = leaf.wrapping_mul(0x9e37_79b9).rotate_left(subleaf) | 1;
        let mask = match choices[at] {
            0 => u32::MAX,
            1 => seed.wrapping_mul(0x85eb_ca6b) | 0x1000_0000,
            _ => !seed.wrapping_mul(0xc2b2_ae35),
        };
        match leaf {
            0 | 0x8000_0000 => there,
            0xd if subleaf > 1 => Leaf { ebx: there.ebx + 64 * u32::from(choices[at] / 2), ..there },
            0xd => Leaf { eax: there.eax & (mask | 3), ..there },
            _ => Leaf { eax: there.eax & mask, ebx: there.ebx & mask, ecx: there.ecx & mask, edx: there.edx & mask },
        }
    };
    CpuProfile::new(host, 1, rate)
}

fn any_host() -> impl Strategy<Value = CpuProfile> {
    (proptest::collection::vec(0..3u8, 61), 1_000_000..3_000_000u32).prop_map(|(choices, rate)| made_up(&choices, rate))
}

proptest! {
    #[test]
    fn order_and_repetition_make_no_difference(a in any_host(), b in any_host(), c in any_host()) {
        let [a, b, c] = [&a, &b, &c].map(Baseline::of);
        let meet = |a: &Baseline, b: &Baseline| a.meet(b).unwrap();
        prop_assert_eq!(meet(&a, &a), a.clone());
        prop_assert_eq!(meet(&a, &b), meet(&b, &a));
        prop_assert_eq!(meet(&meet(&a, &b), &c), meet(&a, &meet(&b, &c)));
        prop_assert_eq!(meet(&meet(&a, &b), &b), meet(&a, &b));
    }

    #[test]
    fn a_guest_of_it_runs_on_every_host(a in any_host(), b in any_host(), vcpus in 1..9u32) {
        let common = Baseline::of(&a).meet(&Baseline::of(&b)).unwrap();
        let here = common.profile_on(&a, vcpus).unwrap();
        let there = common.profile_on(&b, vcpus).unwrap();
        let moved = CpuProfile::restore(&here.save(), &b).unwrap();
        for index in (0..0xe).chain(0x8000_0000..0x8000_001b) {
            let leaf = |profile: &CpuProfile| profile.leaf(index, 0, 0, &Paging::default(), 3);
            prop_assert_eq!(leaf(&moved), leaf(&there), "leaf {:#x}", index);
        }
        prop_assert!(moved.allows_xcr0(1) == there.allows_xcr0(1));
    }

    #[test]
    fn no_bytes_are_a_surprise(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0..800usize, to: u8) {
        let _ = Baseline::parse(&bytes);
        let mut changed = baseline(amd).encode();
        let at = at % changed.len();
        changed[at] = to;
        if let Ok(parsed) = Baseline::parse(&changed) {
            let _ = parsed.meet(&baseline(amd)).map(|common| common.profile_on(&CpuProfile::new(amd, 1, TSC_KHZ), 1));
            prop_assert!(!parsed.name().contains(char::is_control));
            let _ = (parsed.features(), parsed.signature());
        }
    }
}
