//! Real processors, by what their CPUID and IA32_ARCH_CAPABILITIES say.

use super::*;

const NOTHING: Processor = Processor {
    vendor: Vendor::Other,
    family: 6,
    model: 0,
    leaf_7: [0; 2],
    leaf_7_2: 0,
    extended_8: 0,
    extended_21: [0; 2],
    capabilities: 0,
    has_threads: true,
    is_interpreted: false,
};

/// MD_CLEAR, IBRS and IBPB, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
const INTEL_LEAF_7_EDX: u32 = 0xbc00_0400;

fn intel(model: u32, capabilities: u64) -> Processor {
    Processor { vendor: Vendor::Intel, model, leaf_7: [1 << 11, INTEL_LEAF_7_EDX], capabilities, ..NOTHING }
}

fn amd(family: u32, extended_8: u32, extended_21: [u32; 2]) -> Processor {
    Processor { vendor: Vendor::Amd, family, extended_8, extended_21, ..NOTHING }
}

fn status(processor: &Processor, name: &str) -> Status {
    plan(processor).1.iter().find(|finding| finding.name == name).unwrap().status
}

fn is_mitigated(processor: &Processor, name: &str) -> bool {
    matches!(status(processor, name), Status::Mitigated(_))
}

fn is_exposed(processor: &Processor, name: &str) -> bool {
    matches!(status(processor, name), Status::Exposed(_))
}

fn exposed(processor: &Processor) -> Vec<&'static str> {
    plan(processor).1.iter().filter(|at| matches!(at.status, Status::Exposed(_))).map(|at| at.name).collect()
}

#[test]
fn haswell_with_its_first_microcode_is_open() {
    let processor = Processor { vendor: Vendor::Intel, model: 0x3f, ..NOTHING };
    let (plan, _) = plan(&processor);
    assert_eq!(plan, Plan { fill_return_stack: true, ..Plan::default() });
    for name in ["spectre_v2", "retbleed", "l1tf", "mds", "mmio_stale_data"] {
        assert_eq!(status(&processor, name), Status::Exposed(OLD_MICROCODE), "{name}");
    }
}

#[test]
fn skylake_server_needs_everything_at_each_exit() {
    let mut processor = intel(0x55, 1 << 2);
    let expected = Plan {
        control: control::IBRS,
        control_each_exit: true,
        barrier_on_switch: true,
        fill_return_stack: true,
        clear_buffers: true,
        flush_l1d: true,
        ..Plan::default()
    };
    assert_eq!(plan(&processor).0, expected);
    assert!(is_mitigated(&processor, "spectre_v2") && is_mitigated(&processor, "retbleed"));
    assert!(is_exposed(&processor, "l1tf") && is_exposed(&processor, "mds"), "the other thread sees");
    processor.has_threads = false;
    assert!(is_mitigated(&processor, "l1tf") && is_mitigated(&processor, "mds"));
    assert_eq!(exposed(&processor), ["gather_data_sampling", "itlb_multihit"]);
}

#[test]
fn cascade_lake_keeps_ibrs_on_and_clears_buffers_for_tsx() {
    // RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, MDS_NO, TSX_CTRL; GDS_CTRL by newer microcode.
    let processor = Processor { has_threads: false, ..intel(0x55, 0x0200_00ab) };
    let (plan, _) = plan(&processor);
    assert!(!plan.control_each_exit && plan.control == control::IBRS && plan.clear_buffers && !plan.flush_l1d);
    assert_eq!(status(&processor, "l1tf"), Status::NotAffected);
    assert_eq!(status(&processor, "mds"), Status::NotAffected);
    assert!(is_mitigated(&processor, "tsx_async_abort"));
    assert_eq!(exposed(&processor), ["bhi", "itlb_multihit"]);
}

#[test]
fn ice_lake_server_clears_buffers_for_devices() {
    // The same with PSCHANGE_MC_NO, TAA_NO, FB_CLEAR.
    let processor = Processor { has_threads: false, ..intel(0x6a, 0x0202_01eb) };
    assert!(plan(&processor).0.clear_buffers && is_mitigated(&processor, "mmio_stale_data"));
    assert_eq!(exposed(&processor), ["bhi"]);
}

#[test]
fn sapphire_rapids_needs_nothing_at_an_exit() {
    // RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, MDS_NO, PSCHANGE_MC_NO, TAA_NO, no stale data, PBRSB_NO, GDS_NO, RFDS_NO.
    let processor = Processor { leaf_7_2: 1 << 4, ..intel(0x8f, 0x0d00_e16b) };
    let (plan, _) = plan(&processor);
    assert_eq!(plan.control, control::IBRS | control::BHI_DIS_S);
    assert!(plan.barrier_on_switch && !plan.guards_each_exit());
    assert!(exposed(&processor).is_empty());
}

#[test]
fn atom_cores_are_spared_some() {
    let denverton = Processor { has_threads: false, ..intel(0x5f, 1 << 27 | 1 << 28) };
    assert_eq!(status(&denverton, "l1tf"), Status::NotAffected);
    assert_eq!(status(&denverton, "mds"), Status::NotAffected);
    assert!(!plan(&denverton).0.flush_l1d);
    let avoton = Processor { has_threads: false, ..intel(0x4d, 0) };
    assert!(is_mitigated(&avoton, "mds"));
}

#[test]
fn naples_throws_predictions_away_after_each_exit() {
    let processor = amd(0x17, 0x1007 | 1 << 12, [0; 2]);
    let (plan, _) = plan(&processor);
    assert!(plan.barrier_on_exit && !plan.barrier_on_switch && plan.fill_return_stack && plan.control == 0);
    assert!(is_mitigated(&processor, "spectre_v2") && is_mitigated(&processor, "retbleed"));
    assert!(exposed(&processor).is_empty());
    let old = amd(0x17, 0, [0; 2]);
    assert_eq!(exposed(&old), ["spectre_v2", "retbleed", "spec_rstack_overflow"]);
}

#[test]
fn milan_needs_the_microcode_whose_barrier_holds_for_returns() {
    let old = amd(0x19, 0x111e_f657, [0; 2]);
    assert!(is_exposed(&old, "spec_rstack_overflow") && !plan(&old).0.barrier_on_exit);
    assert!(plan(&old).0.control_each_exit && is_mitigated(&old, "spectre_v2"));
    let new = amd(0x19, 0x111e_f657, [1 << 28 | 1 << 5, 0]);
    let (plan, _) = plan(&new);
    assert!(plan.barrier_on_exit && plan.clear_buffers && !plan.control_each_exit);
    assert_eq!(plan.control, control::STIBP);
    assert!(exposed(&new).is_empty());
}

#[test]
fn genoa_has_automatic_ibrs_and_turin_needs_nothing_at_an_exit() {
    let genoa = amd(0x19, 0x791e_f257, [1 << 8 | 1 << 28 | 1 << 5, 0]);
    assert!(plan(&genoa).0.automatic_ibrs && plan(&genoa).0.barrier_on_exit && plan(&genoa).0.clear_buffers);
    let turin = amd(0x1a, 0x791e_f257, [1 << 8 | 1 << 29, 0]);
    let (plan, _) = plan(&turin);
    assert!(plan.automatic_ibrs && plan.barrier_on_switch && !plan.guards_each_exit());
    assert!(exposed(&turin).is_empty());
}

#[test]
fn an_interpreter_needs_nothing() {
    let processor = Processor { is_interpreted: true, ..intel(0x55, 0) };
    assert_eq!(plan(&processor).0, Plan::default());
    assert!(exposed(&processor).is_empty());
}

#[test]
fn of_an_unknown_maker_nothing_is_claimed() {
    assert_eq!(plan(&NOTHING).0, Plan::default());
    assert_eq!(exposed(&NOTHING).len(), FINDINGS);
}

#[test]
fn a_guest_has_what_it_set_and_is_held_off_from_the_cores_other_thread() {
    let keeps = Plan { control: control::IBRS | control::BHI_DIS_S, ..Plan::default() };
    assert_eq!((keeps.guest_control(None), keeps.guest_control(Some(4))), (keeps.control, 4));
    assert_eq!(keeps.guest_control(Some(0)), 0, "the guest's own wish");
    let writes = Plan { control: control::IBRS | control::STIBP, control_each_exit: true, ..Plan::default() };
    assert_eq!(writes.guest_control(None), control::STIBP);
    assert_eq!(writes.guest_control(Some(control::IBRS)), control::IBRS | control::STIBP);
}
