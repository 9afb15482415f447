//! The local APIC as a guest and a machine use it.

use super::*;
use crate::Target;

const LEVEL: bool = true;
const EDGE: bool = false;

fn at(ns: u64) -> Clock {
    Clock { ns, tsc: 2 * ns }
}

/// Software-enabled, in xAPIC mode.
fn xapic(id: u32) -> Lapic {
    let mut lapic = Lapic::new(id, id == 0, 2_000_000);
    write(&mut lapic, 0xf0, 0x1ff);
    lapic
}

/// Software-enabled, in x2APIC mode.
fn x2apic(id: u32) -> Lapic {
    let mut lapic = xapic(id);
    wrmsr(&mut lapic, 0x1b, 0xfee0_0c00).unwrap();
    lapic
}

fn read(lapic: &mut Lapic, offset: u16) -> u32 {
    lapic.mmio_read(offset, 4, at(0))
}

fn write(lapic: &mut Lapic, offset: u16, value: u32) -> Vec<Effect> {
    let mut effects = Vec::new();
    lapic.mmio_write(offset, 4, value, at(0), &mut effects);
    effects
}

fn wrmsr_at(lapic: &mut Lapic, index: u32, value: u64, clock: Clock) -> Result<Vec<Effect>, GeneralProtection> {
    let mut effects = Vec::new();
    lapic.write_msr(index, value, clock, &mut effects).map(|()| effects)
}

fn wrmsr(lapic: &mut Lapic, index: u32, value: u64) -> Result<Vec<Effect>, GeneralProtection> {
    wrmsr_at(lapic, index, value, at(0))
}

fn rdmsr(lapic: &mut Lapic, index: u32) -> Result<u64, GeneralProtection> {
    lapic.read_msr(index, at(0))
}

fn message(target: Target) -> Message {
    Message { vector: 0x40, mode: DeliveryMode::Fixed, target, level_triggered: false }
}

fn raise(lapic: &mut Lapic, vector: u8, level_triggered: bool) -> Accepted {
    lapic.accept(&Message { vector, level_triggered, ..message(Target::All) })
}

fn eoi(lapic: &mut Lapic) -> Vec<Effect> {
    let mut effects = Vec::new();
    lapic.end_of_interrupt(&mut effects);
    effects
}

fn sent(target: Target, mode: DeliveryMode, vector: u8) -> Vec<Effect> {
    vec![Effect::Interrupt(Message { vector, mode, target, level_triggered: false })]
}

mod delivery {
    use super::*;

    #[test]
    fn one_interrupt() {
        let mut lapic = xapic(0);
        assert_eq!(lapic.pending(), None);
        assert_eq!(raise(&mut lapic, 0x41, EDGE), Accepted::Pending);
        assert_eq!(read(&mut lapic, 0x220), 2, "IRR");
        assert_eq!(lapic.pending(), Some(Pending::Vector(0x41)));
        lapic.acknowledge(0x41);
        assert_eq!((read(&mut lapic, 0x220), read(&mut lapic, 0x120)), (0, 2));
        assert_eq!((lapic.pending(), lapic.processor_priority()), (None, 0x40));
        assert_eq!(write(&mut lapic, 0xb0, 0), [], "an edge's end is nobody's business");
        assert_eq!(read(&mut lapic, 0x120), 0);
    }

    #[test]
    fn classes_nest() {
        let mut lapic = xapic(0);
        raise(&mut lapic, 0x41, EDGE);
        lapic.acknowledge(0x41);
        raise(&mut lapic, 0x4f, EDGE);
        assert_eq!(lapic.pending(), None, "same class");
        raise(&mut lapic, 0x50, EDGE);
        assert_eq!(lapic.pending(), Some(Pending::Vector(0x50)));
        lapic.acknowledge(0x50);
        eoi(&mut lapic);
        assert_eq!(lapic.pending(), None, "0x41 is in service yet");
        eoi(&mut lapic);
        assert_eq!(lapic.pending(), Some(Pending::Vector(0x4f)));
    }

    #[test]
    fn task_priority_holds_back() {
        let mut lapic = xapic(0);
        raise(&mut lapic, 0x41, EDGE);
        lapic.set_tpr(4);
        assert_eq!((lapic.pending(), read(&mut lapic, 0x80), read(&mut lapic, 0xa0)), (None, 0x40, 0x40));
        write(&mut lapic, 0x80, 0x3f);
        assert_eq!((lapic.tpr(), lapic.processor_priority()), (3, 0x3f));
        assert_eq!(lapic.pending(), Some(Pending::Vector(0x41)));
    }

    #[test]
    fn level_reports_its_end() {
        let mut lapic = xapic(0);
        raise(&mut lapic, 0x61, LEVEL);
        assert_eq!(read(&mut lapic, 0x1b0), 2, "TMR");
        lapic.acknowledge(0x61);
        assert_eq!(eoi(&mut lapic), [Effect::LevelEoi(0x61)]);
        assert_eq!(eoi(&mut lapic), [], "nothing in service");
    }

    #[test]
    fn software_disabled_takes_only_special_messages() {
        let mut lapic = Lapic::new(1, false, 1);
        assert_eq!(raise(&mut lapic, 0x41, EDGE), Accepted::Ignored);
        let special = |mode| Message { mode, vector: 0x9a, ..message(Target::All) };
        assert_eq!(lapic.accept(&special(DeliveryMode::ExtInt)), Accepted::Ignored);
        assert_eq!(lapic.accept(&special(DeliveryMode::Smi)), Accepted::Ignored);
        assert_eq!(lapic.accept(&special(DeliveryMode::Init)), Accepted::Init);
        assert_eq!(lapic.accept(&special(DeliveryMode::Startup)), Accepted::Startup(0x9a));
        assert_eq!(lapic.accept(&special(DeliveryMode::Nmi)), Accepted::Nmi);
        assert_eq!(lapic.pending(), Some(Pending::Nmi));
        lapic.acknowledge_nmi();
        assert_eq!(lapic.pending(), None);
    }

    #[test]
    fn nmi_hides_no_interrupt() {
        let mut lapic = xapic(0);
        raise(&mut lapic, 0x41, EDGE);
        lapic.accept(&Message { mode: DeliveryMode::Nmi, ..message(Target::All) });
        assert_eq!(lapic.pending(), Some(Pending::Nmi));
        assert_eq!(lapic.pending_interrupt(), Some(Pending::Vector(0x41)));
    }

    #[test]
    fn paravirtual_end() {
        let mut lapic = xapic(0);
        assert!(!lapic.can_pv_eoi());
        raise(&mut lapic, 0x41, EDGE);
        lapic.acknowledge(0x41);
        assert!(lapic.can_pv_eoi());
        raise(&mut lapic, 0x31, EDGE);
        assert!(!lapic.can_pv_eoi(), "one waits");
        eoi(&mut lapic);
        lapic.acknowledge(0x31);
        raise(&mut lapic, 0x51, EDGE);
        lapic.acknowledge(0x51);
        assert!(!lapic.can_pv_eoi(), "two in service");
        eoi(&mut lapic);
        eoi(&mut lapic);
        raise(&mut lapic, 0x41, LEVEL);
        lapic.acknowledge(0x41);
        assert!(!lapic.can_pv_eoi(), "the IOAPIC must hear of it");
    }

    #[test]
    fn illegal_vectors_are_errors() {
        let mut lapic = xapic(0);
        write(&mut lapic, 0x370, 0xfe);
        assert_eq!(raise(&mut lapic, 15, EDGE), Accepted::Ignored);
        assert_eq!(lapic.pending(), Some(Pending::Vector(0xfe)));
        assert_eq!(read(&mut lapic, 0x280), 0, "not latched yet");
        write(&mut lapic, 0x280, 0);
        assert_eq!(read(&mut lapic, 0x280), 0x40);
        assert_eq!(write(&mut lapic, 0x300, 0x40003), []);
        write(&mut lapic, 0x280, 0);
        assert_eq!(read(&mut lapic, 0x280), 0x20);
        write(&mut lapic, 0x370, 0x05);
        raise(&mut lapic, 3, EDGE);
        write(&mut lapic, 0x280, 0);
        assert_eq!(read(&mut lapic, 0x280), 0x40, "an illegal error vector does not recurse");
    }
}

mod addressing {
    use super::*;

    #[test]
    fn physical_and_shorthands() {
        let lapic = xapic(3);
        for (target, hit) in [
            (Target::Physical(3), true),
            (Target::Physical(0x103), false),
            (Target::Only(3), true),
            (Target::Only(2), false),
            (Target::AllBut(3), false),
            (Target::AllBut(2), true),
            (Target::All, true),
        ] {
            assert_eq!(lapic.address().hears(&message(target)), hit, "{target:?}");
        }
        assert!(x2apic(0x103).address().hears(&message(Target::Physical(0x103))));
    }

    #[test]
    fn logical_flat_and_cluster() {
        let mut lapic = xapic(3);
        assert!(!lapic.address().hears(&message(Target::Logical(0xff))), "no logical ID yet");
        write(&mut lapic, 0xd0, 0x2400_0000);
        assert!(lapic.address().hears(&message(Target::Logical(0x04))));
        assert!(!lapic.address().hears(&message(Target::Logical(0x08))));
        write(&mut lapic, 0xe0, 0x0fff_ffff);
        assert!(lapic.address().hears(&message(Target::Logical(0x2c))), "cluster 2, member 2");
        assert!(!lapic.address().hears(&message(Target::Logical(0x1c))));
        assert!(lapic.address().hears(&message(Target::Logical(0xff))));
    }

    #[test]
    fn logical_x2apic() {
        let mut lapic = x2apic(0x23);
        assert_eq!(rdmsr(&mut lapic, 0x80d), Ok(0x0002_0008));
        assert!(lapic.address().hears(&message(Target::Logical(0x0002_000c))));
        assert!(!lapic.address().hears(&message(Target::Logical(0x0003_000c))));
        assert!(!lapic.address().hears(&message(Target::Logical(0x0002_0004))));
    }

    #[test]
    fn disabled_hears_nothing() {
        let mut lapic = xapic(0);
        wrmsr(&mut lapic, 0x1b, 0xfee0_0100).unwrap();
        assert!(!lapic.address().hears(&message(Target::All)));
        assert_eq!(lapic.mmio_base(), None);
    }

    #[test]
    fn what_is_dropped_anyway_does_not_concern() {
        let lapic = Lapic::new(1, false, 2_000_000);
        let hears = |mode| lapic.address().hears(&Message { mode, ..message(Target::All) });
        for mode in [DeliveryMode::Fixed, DeliveryMode::LowestPriority, DeliveryMode::ExtInt, DeliveryMode::Smi] {
            assert!(!hears(mode), "{mode:?} while software-disabled");
        }
        for mode in [DeliveryMode::Nmi, DeliveryMode::Init, DeliveryMode::Startup] {
            assert!(hears(mode), "{mode:?}");
        }
    }

    #[test]
    fn an_address_travels_as_a_word() {
        let mut lapic = xapic(3);
        write(&mut lapic, 0xd0, 0x2400_0000);
        for lapic in [lapic, x2apic(0x23), Lapic::new(7, false, 1)] {
            let address = lapic.address();
            assert_eq!(Address::from_bits(lapic.id(), address.bits()), address);
        }
    }
}

mod commands {
    use super::*;

    #[test]
    fn xapic_ipi() {
        let mut lapic = xapic(0);
        write(&mut lapic, 0x310, 5 << 24);
        assert_eq!(write(&mut lapic, 0x300, 0x40fd), sent(Target::Physical(5), DeliveryMode::Fixed, 0xfd));
        assert_eq!((read(&mut lapic, 0x300), read(&mut lapic, 0x310)), (0x40fd, 5 << 24));
        assert_eq!(write(&mut lapic, 0x300, 0x48fd), sent(Target::Logical(5), DeliveryMode::Fixed, 0xfd));
        write(&mut lapic, 0x310, 0xff << 24);
        assert_eq!(write(&mut lapic, 0x300, 0x0400), sent(Target::All, DeliveryMode::Nmi, 0));
    }

    #[test]
    fn shorthands() {
        let mut lapic = x2apic(7);
        for (bits, target) in [(1, Target::Only(7)), (2, Target::All), (3, Target::AllBut(7))] {
            assert_eq!(wrmsr(&mut lapic, 0x830, bits << 18 | 0xf0), Ok(sent(target, DeliveryMode::Fixed, 0xf0)));
        }
        assert_eq!(wrmsr(&mut lapic, 0x83f, 0xf1), Ok(sent(Target::Only(7), DeliveryMode::Fixed, 0xf1)));
    }

    /// How Linux starts a processor.
    #[test]
    fn init_and_startup() {
        let mut lapic = x2apic(0);
        let to = |icr: u64| 300 << 32 | icr;
        let one = Target::Physical(300);
        assert_eq!(wrmsr(&mut lapic, 0x830, to(0xc500)), Ok(sent(one, DeliveryMode::Init, 0)));
        assert_eq!(wrmsr(&mut lapic, 0x830, to(0x8500)), Ok(vec![]), "INIT level de-assert");
        assert_eq!(wrmsr(&mut lapic, 0x830, to(0x0699)), Ok(sent(one, DeliveryMode::Startup, 0x99)));
        assert_eq!(rdmsr(&mut lapic, 0x830), Ok(to(0x0699)));
        assert_eq!(
            wrmsr(&mut lapic, 0x830, u64::from(u32::MAX) << 32 | 0x31),
            Ok(sent(Target::All, DeliveryMode::Fixed, 0x31))
        );
        assert_eq!(wrmsr(&mut lapic, 0x830, 0x0002_0031), Err(GeneralProtection));
        assert_eq!(wrmsr(&mut lapic, 0x830, 0x0731), Ok(vec![]), "there is no ExtINT IPI");
    }
}

mod registers {
    use super::*;

    #[test]
    fn after_power_up() {
        let mut lapic = Lapic::new(2, false, 1);
        assert_eq!(rdmsr(&mut lapic, 0x1b), Ok(0xfee0_0800));
        assert_eq!(Lapic::new(0, true, 1).read_msr(0x1b, at(0)), Ok(0xfee0_0900));
        assert_eq!(lapic.mmio_base(), Some(Gpa::new(0xfee0_0000)));
        for (offset, value) in [(0x20, 2 << 24), (0x30, 0x0005_0014), (0xf0, 0xff), (0xe0, u32::MAX), (0xd0, 0)] {
            assert_eq!(read(&mut lapic, offset), value, "{offset:#x}");
        }
        assert!((0x320..=0x370).step_by(16).all(|offset| read(&mut lapic, offset) == 0x1_0000));
    }

    #[test]
    fn software_disable_masks() {
        let mut lapic = xapic(0);
        write(&mut lapic, 0x320, 0x31);
        assert_eq!(read(&mut lapic, 0x320), 0x31);
        write(&mut lapic, 0xf0, 0xff);
        assert_eq!(read(&mut lapic, 0x320), 0x1_0031);
        write(&mut lapic, 0x320, 0x32);
        assert_eq!(read(&mut lapic, 0x320), 0x1_0032, "the mask stays while disabled");
    }

    #[test]
    fn page_access_widths() {
        let mut lapic = xapic(0x12);
        assert_eq!(lapic.mmio_read(0x23, 1, at(0)), 0x12);
        assert_eq!(lapic.mmio_read(0x22, 2, at(0)), 0x1200);
        assert_eq!(lapic.mmio_read(0x22, 4, at(0)), 0);
        assert_eq!(lapic.mmio_read(0x20, 0, at(0)), 0);
        let mut effects = Vec::new();
        lapic.mmio_write(0x80, 1, 0x40, at(0), &mut effects);
        lapic.mmio_write(0x84, 4, 0x40, at(0), &mut effects);
        assert_eq!(lapic.tpr(), 0);
    }

    #[test]
    fn illegal_page_registers_are_errors() {
        let mut lapic = xapic(0);
        assert_eq!(read(&mut lapic, 0x3f0), 0);
        write(&mut lapic, 0x280, 0);
        assert_eq!(read(&mut lapic, 0x280), 0x80);
        write(&mut lapic, 0x280, 0);
        assert_eq!(read(&mut lapic, 0x280), 0);
        write(&mut lapic, 0x20, 0xffff_ffff);
        assert_eq!(read(&mut lapic, 0x20), 0, "the ID is read-only, and no error");
        write(&mut lapic, 0x2f0, 0);
        write(&mut lapic, 0x280, 0);
        assert_eq!(read(&mut lapic, 0x280), 0x80, "no CMCI");
    }

    #[test]
    fn x2apic_refuses() {
        let mut lapic = x2apic(5);
        assert_eq!(rdmsr(&mut lapic, 0x802), Ok(5));
        for index in [0x800, 0x809, 0x80b, 0x80c, 0x80e, 0x82f, 0x831, 0x83f, 0x840, 0x8ff, 0x900, 0x6e1] {
            assert_eq!(rdmsr(&mut lapic, index), Err(GeneralProtection), "read {index:#x}");
        }
        for index in [0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x827, 0x82f, 0x831, 0x839, 0x840] {
            assert_eq!(wrmsr(&mut lapic, index, 0), Err(GeneralProtection), "write {index:#x}");
        }
        for (index, value) in [
            (0x808, 0x100),
            (0x80b, 1),
            (0x80f, 0x1000),
            (0x828, 1),
            (0x832, 0x100),
            (0x832, 0x6_0031),
            (0x837, 0x400),
            (0x838, 1 << 32),
            (0x83e, 4),
            (0x83f, 0x100),
        ] {
            assert_eq!(wrmsr(&mut lapic, index, value), Err(GeneralProtection), "{value:#x} to {index:#x}");
        }
        for (index, value) in [(0x808, 0xff), (0x80b, 0), (0x80f, 0x1ff), (0x828, 0), (0x832, 0x4_1031), (0x838, 9)] {
            assert_eq!(wrmsr(&mut lapic, index, value), Ok(vec![]), "{value:#x} to {index:#x}");
        }
        assert_eq!(rdmsr(&mut lapic, 0x832), Ok(0x4_0031));
    }

    #[test]
    fn xapic_has_no_msrs() {
        assert_eq!(rdmsr(&mut xapic(0), 0x802), Err(GeneralProtection));
        assert_eq!(wrmsr(&mut xapic(0), 0x80b, 0), Err(GeneralProtection));
    }

    #[test]
    fn mode_changes() {
        const OFF: u64 = 0xfee0_0000;
        const XAPIC: u64 = 0xfee0_0800;
        const X2APIC: u64 = 0xfee0_0c00;
        const INVALID: u64 = 0xfee0_0400;
        for (from, to, legal) in [
            (OFF, XAPIC, true),
            (OFF, X2APIC, false),
            (OFF, INVALID, false),
            (XAPIC, X2APIC, true),
            (XAPIC, OFF, true),
            (XAPIC, INVALID, false),
            (X2APIC, XAPIC, false),
            (X2APIC, OFF, true),
            (X2APIC, X2APIC, true),
            (X2APIC, INVALID, false),
        ] {
            let mut lapic = if from == X2APIC { x2apic(1) } else { xapic(1) };
            wrmsr(&mut lapic, 0x1b, from).unwrap();
            assert_eq!(wrmsr(&mut lapic, 0x1b, to).is_ok(), legal, "{from:#x} to {to:#x}");
            assert_eq!(rdmsr(&mut lapic, 0x1b), Ok(if legal { to } else { from }));
        }
        assert_eq!(wrmsr(&mut xapic(1), 0x1b, XAPIC | 1), Err(GeneralProtection));
        assert_eq!(wrmsr(&mut xapic(1), 0x1b, XAPIC | 1 << 60), Err(GeneralProtection));
    }

    #[test]
    fn the_page_moves_and_state_survives_a_mode_change() {
        let mut lapic = xapic(1);
        wrmsr(&mut lapic, 0x1b, 0x1_2345_6800).unwrap();
        assert_eq!(lapic.mmio_base(), Some(Gpa::new(0x1_2345_6000)));
        write(&mut lapic, 0x320, 0x31);
        wrmsr(&mut lapic, 0x1b, 0x1_2345_6c00).unwrap();
        assert_eq!((rdmsr(&mut lapic, 0x832), lapic.mmio_base()), (Ok(0x31), None));
        wrmsr(&mut lapic, 0x1b, 0xfee0_0000).unwrap();
        wrmsr(&mut lapic, 0x1b, 0xfee0_0800).unwrap();
        assert_eq!((read(&mut lapic, 0x320), read(&mut lapic, 0xf0)), (0x1_0000, 0xff), "disabling loses it");
    }

    #[test]
    fn init_keeps_the_mode() {
        let mut lapic = x2apic(1);
        raise(&mut lapic, 0x41, LEVEL);
        lapic.init();
        assert_eq!((rdmsr(&mut lapic, 0x1b), lapic.pending()), (Ok(0xfee0_0c00), None));
        assert_eq!((rdmsr(&mut lapic, 0x80f), rdmsr(&mut lapic, 0x832)), (Ok(0xff), Ok(0x1_0000)));
        lapic.reset();
        assert_eq!(rdmsr(&mut lapic, 0x1b), Ok(0xfee0_0800));
    }
}

mod timing {
    use super::*;

    #[test]
    fn periodic() {
        let mut lapic = xapic(0);
        write(&mut lapic, 0x320, 0x2_00ec);
        write(&mut lapic, 0x3e0, 0x3);
        write(&mut lapic, 0x380, 62_500);
        assert_eq!(lapic.deadline_ns(at(0)), Some(1_000_000));
        assert_eq!(lapic.mmio_read(0x390, 4, at(400_000)), 37_500);
        lapic.advance(at(999_999));
        assert_eq!(lapic.pending(), None);
        lapic.advance(at(1_000_000));
        assert_eq!(lapic.pending(), Some(Pending::Vector(0xec)));
        assert_eq!(lapic.deadline_ns(at(1_000_000)), Some(2_000_000));
        write(&mut lapic, 0x380, 0);
        assert_eq!(lapic.deadline_ns(at(1_000_000)), None);
    }

    #[test]
    fn one_shot_while_masked_is_lost() {
        let mut lapic = xapic(0);
        write(&mut lapic, 0x320, 0x1_00ec);
        write(&mut lapic, 0x3e0, 0xb);
        write(&mut lapic, 0x380, 1000);
        assert_eq!(lapic.deadline_ns(at(0)), None, "nobody would notice");
        lapic.mmio_write(0x320, 4, 0xec, at(2000), &mut Vec::new());
        lapic.advance(at(3000));
        assert_eq!(lapic.pending(), None);
    }

    #[test]
    fn tsc_deadline() {
        let mut lapic = x2apic(0);
        assert_eq!(wrmsr(&mut lapic, 0x6e0, 5000), Ok(vec![]));
        assert_eq!(rdmsr(&mut lapic, 0x6e0), Ok(0), "ignored in the other modes");
        wrmsr(&mut lapic, 0x832, 0x4_00ec).unwrap();
        wrmsr(&mut lapic, 0x6e0, 5000).unwrap();
        assert_eq!(lapic.deadline_ns(at(0)), Some(2500));
        assert_eq!(rdmsr(&mut lapic, 0x6e0), Ok(5000));
        wrmsr(&mut lapic, 0x838, 77).unwrap();
        assert_eq!((rdmsr(&mut lapic, 0x838), rdmsr(&mut lapic, 0x839)), (Ok(0), Ok(0)), "the counter rests");
        lapic.advance(at(2500));
        assert_eq!(lapic.pending(), Some(Pending::Vector(0xec)));
        assert_eq!(lapic.read_msr(0x6e0, at(2500)), Ok(0));
        lapic.acknowledge(0xec);
        eoi(&mut lapic);
        wrmsr_at(&mut lapic, 0x6e0, 4000, at(3000)).unwrap();
        assert_eq!(lapic.pending(), Some(Pending::Vector(0xec)), "a past deadline fires at once");
    }

    #[test]
    fn deadline_disarms() {
        let mut lapic = x2apic(0);
        wrmsr(&mut lapic, 0x832, 0x4_00ec).unwrap();
        wrmsr(&mut lapic, 0x6e0, 5000).unwrap();
        wrmsr(&mut lapic, 0x6e0, 0).unwrap();
        assert_eq!(lapic.deadline_ns(at(0)), None);
        wrmsr(&mut lapic, 0x6e0, 5000).unwrap();
        wrmsr(&mut lapic, 0x832, 0xec).unwrap();
        lapic.advance(at(9000));
        assert_eq!(lapic.pending(), None, "so does a change of mode");
    }
}

mod lint0 {
    use super::*;

    #[test]
    fn virtual_wire_passes_the_pic_through() {
        let mut lapic = Lapic::new(0, true, 1);
        lapic.set_lint0(true);
        assert_eq!(lapic.pending(), None, "masked after reset");
        lapic.enter_virtual_wire_mode();
        assert_eq!(lapic.pending(), Some(Pending::ExtInt));
        lapic.acknowledge_ext_int();
        assert_eq!(lapic.pending(), Some(Pending::ExtInt), "the level decides");
        lapic.set_lint0(false);
        assert_eq!(lapic.pending(), None);
    }

    #[test]
    fn a_disabled_local_apic_is_transparent() {
        let mut lapic = xapic(0);
        wrmsr(&mut lapic, 0x1b, 0xfee0_0100).unwrap();
        lapic.set_lint0(true);
        assert_eq!(lapic.pending(), Some(Pending::ExtInt));
    }

    #[test]
    fn external_interrupt_message_is_taken_once() {
        let mut lapic = xapic(0);
        assert_eq!(lapic.accept(&Message { mode: DeliveryMode::ExtInt, ..message(Target::All) }), Accepted::ExtInt);
        assert_eq!(lapic.pending(), Some(Pending::ExtInt));
        lapic.acknowledge_ext_int();
        assert_eq!(lapic.pending(), None);
    }

    #[test]
    fn fixed_edge_and_nmi() {
        let mut lapic = xapic(0);
        write(&mut lapic, 0x350, 0x31);
        lapic.set_lint0(true);
        lapic.set_lint0(true);
        assert_eq!(lapic.pending(), Some(Pending::Vector(0x31)));
        lapic.acknowledge(0x31);
        eoi(&mut lapic);
        assert_eq!(lapic.pending(), None);
        write(&mut lapic, 0x350, 0x400);
        lapic.set_lint0(false);
        lapic.set_lint0(true);
        assert_eq!(lapic.pending(), Some(Pending::Nmi));
    }

    #[test]
    fn fixed_level_repeats() {
        let mut lapic = xapic(0);
        lapic.set_lint0(true);
        write(&mut lapic, 0x350, 0x8031);
        assert_eq!(read(&mut lapic, 0x350), 0xc031, "remote IRR");
        lapic.acknowledge(0x31);
        assert_eq!(eoi(&mut lapic), [Effect::LevelEoi(0x31)]);
        assert_eq!(lapic.pending(), Some(Pending::Vector(0x31)));
        lapic.acknowledge(0x31);
        lapic.set_lint0(false);
        eoi(&mut lapic);
        assert_eq!(lapic.pending(), None);
    }
}

#[test]
fn an_interrupt_is_held_by_the_task_priority_alone_or_not() {
    let mut lapic = x2apic(0);
    assert_eq!(lapic.held_by_tpr(), None, "nothing waits");
    lapic.set_tpr(5);
    raise(&mut lapic, 0x5e, EDGE);
    assert_eq!((lapic.pending_interrupt(), lapic.held_by_tpr()), (None, Some(5)), "its own class is held");
    raise(&mut lapic, 0x61, EDGE);
    assert_eq!((lapic.pending_interrupt(), lapic.held_by_tpr()), (Some(Pending::Vector(0x61)), None));
    lapic.acknowledge(0x61);
    assert_eq!(lapic.held_by_tpr(), None, "one in service holds it, too");
    lapic.end_of_interrupt(&mut Vec::new());
    assert_eq!(lapic.held_by_tpr(), Some(5));
    lapic.set_tpr(4);
    assert_eq!((lapic.pending_interrupt(), lapic.held_by_tpr()), (Some(Pending::Vector(0x5e)), None));
}
