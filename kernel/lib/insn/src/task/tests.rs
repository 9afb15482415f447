use proptest::prelude::*;
use vcpu::{Event, Exception, Gpr, Segment, SegmentName, Table, TaskSwitchSource, VcpuState, cr0, cr4, rflags};

use super::{Outcome, Request, switch};
use crate::Unavailable;
use crate::testing::{Mock, P, RAM_BYTES, U, W};

const GDT: u64 = 0x1000;
const LDT: u64 = 0x2000;
const OLD_TSS: u64 = 0x3000;
const NEW_TSS: u64 = 0x4000;
const STACK: u64 = 0x6000;

/// Selectors.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const OLD: u16 = 0x18;
const NEW: u16 = 0x20;
const LOCAL: u16 = 0x28;
const OTHER: u16 = 0x30;
const USER_CODE: u16 = 0x3b;
const USER_DATA: u16 = 0x43;
const BEYOND: u16 = 0x100;

const AVAILABLE: u64 = 0x89;
const BUSY: u64 = 0x8b;
const NARROW: u64 = 0x81;
const FLAT_CODE: u64 = 0xc9b;
const FLAT_DATA: u64 = 0xc93;

const INVALID_TSS: u8 = 10;
const NOT_PRESENT: u8 = 11;
const STACK_FAULT: u8 = 12;
const PROTECTION: u8 = 13;

/// Fields of a segment of 32 bits.
const CR3: u64 = 0x1c;
const EIP: u64 = 0x20;
const EFLAGS: u64 = 0x24;
const ESP: u64 = 0x38;
const ES: u64 = 0x48;
const CS: u64 = 0x4c;
const SS: u64 = 0x50;
const DS: u64 = 0x54;
const GS: u64 = 0x5c;
const LDTR: u64 = 0x60;

/// A processor in one task, and another task.
#[derive(Clone)]
struct Tasks {
    mock: Mock,
    state: VcpuState,
}

impl Tasks {
    fn new() -> Self {
        let flat = |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
        let mut state = VcpuState { cr0: cr0::PE | cr0::ET, rip: 0x8000, rflags: 0x202, ..VcpuState::reset() };
        state.segments = [flat(DATA, FLAT_DATA as u16); 6];
        state.segments[SegmentName::Cs as usize] = flat(CODE, FLAT_CODE as u16);
        state.gprs = core::array::from_fn(|index| 0x100 + index as u64);
        state.gdtr = Table { base: GDT, limit: 0x4f };
        state.tr = Segment { selector: OLD, attributes: BUSY as u16, limit: 0x67, base: OLD_TSS };
        state.dr7 = 0x7ff;
        let mut tasks = Self { mock: Mock::flat32(), state };
        for (selector, base, limit, attributes) in [
            (CODE, 0, 0xf_ffff, FLAT_CODE),
            (DATA, 0, 0xf_ffff, FLAT_DATA),
            (OLD, OLD_TSS, 0x67, BUSY),
            (NEW, NEW_TSS, 0x67, AVAILABLE),
            (LOCAL, LDT, 0xff, 0x82),
            (USER_CODE, 0, 0xf_ffff, 0xcfb),
            (USER_DATA, 0, 0xf_ffff, 0xcf3),
        ] {
            tasks.describe(selector, base, limit, attributes);
        }
        for (at, value) in [(EIP, 0x9000), (EFLAGS, 2), (ESP, STACK), (CS, CODE.into())] {
            tasks.set(at, value);
        }
        for at in [ES, SS, DS, GS] {
            tasks.set(at, DATA.into());
        }
        tasks
    }

    fn describe(&mut self, selector: u16, base: u64, limit: u64, attributes: u64) {
        let low = limit & 0xffff | (base & 0xff_ffff) << 16 | (attributes & 0xff) << 40;
        let high = (limit >> 16 & 0xf) << 48 | (attributes >> 8 & 0xf) << 52 | (base >> 24 & 0xff) << 56;
        self.mock.poke(GDT + u64::from(selector & !7), 8, low | high);
    }

    /// Sets a field of the new task.
    fn set(&mut self, at: u64, value: u64) {
        self.mock.poke(NEW_TSS + at, 4, value);
    }

    fn rights(&self, selector: u16) -> u64 {
        self.mock.peek(GDT + u64::from(selector & !7) + 5, 1)
    }

    fn to(&mut self, selector: u16, source: TaskSwitchSource, next_rip: Option<u64>) -> Result<Outcome, Unavailable> {
        switch(&mut self.mock, &mut self.state, Request { selector, source, next_rip })
    }

    fn jump(&mut self) -> Outcome {
        self.to(NEW, TaskSwitchSource::Jump, Some(0x8007)).unwrap()
    }

    /// What an event brings whose gate leads to the new task.
    fn event(&mut self, event: Event) -> Outcome {
        self.state.waiting = Some(event);
        self.to(NEW, TaskSwitchSource::Gate, None).unwrap()
    }

    /// Checks that a switch is refused in the old task, which is as it was.
    fn refuses(mut self, selector: u16, source: TaskSwitchSource, vector: u8, error_code: u16) {
        let before = self.clone();
        assert_eq!(self.to(selector, source, Some(0x8007)), Ok(raised(vector, error_code)));
        assert!(self.state == before.state && self.mock.ram == before.mock.ram, "something has changed");
    }
}

fn raised(vector: u8, error_code: u16) -> Outcome {
    Outcome::Raises(Exception { vector, error_code: Some(error_code.into()), fault_address: None })
}

fn exception(vector: u8, error_code: Option<u32>) -> Event {
    Event::Exception(Exception { vector, error_code, fault_address: None })
}

#[test]
fn a_jump_leaves_one_task_for_another() {
    let mut tasks = Tasks::new();
    tasks.set(0, 0x77);
    tasks.set(LDTR, LOCAL.into());
    tasks.set(GS, 0);
    tasks.set(0x28, 0xabcd_ef01);
    assert_eq!(tasks.jump(), Outcome::Runs);
    let (mock, state) = (&tasks.mock, &tasks.state);
    let saved = [EIP, EFLAGS, 0x28, ESP, 0x44].map(|at| mock.peek(OLD_TSS + at, 4));
    assert_eq!(saved, [0x8007, 0x202, 0x100, 0x104, 0x107]);
    assert_eq!([ES, CS, GS].map(|at| mock.peek(OLD_TSS + at, 2)), [DATA, CODE, DATA].map(u64::from));
    assert_eq!((tasks.rights(OLD), tasks.rights(NEW)), (AVAILABLE, BUSY));
    assert_eq!(mock.peek(NEW_TSS, 4), 0x77, "the link");
    assert_eq!((state.rip, state.rflags, state.gprs[0], state.gprs[8]), (0x9000, 2, 0xabcd_ef01, 0x108));
    assert_eq!(state.tr, Segment { selector: NEW, attributes: BUSY as u16, limit: 0x67, base: NEW_TSS });
    assert_eq!((state.ldtr.base, state.ldtr.limit), (LDT, 0xff));
    assert_eq!(state.segments[SegmentName::Cs as usize].limit, u32::MAX);
    assert_eq!(state.segments[SegmentName::Gs as usize], Segment::default());
    assert_eq!((state.cr0 & cr0::TS, state.dr7), (cr0::TS, 0x6aa));
}

#[test]
fn a_call_is_returned_from() {
    let mut tasks = Tasks::new();
    assert_eq!(tasks.to(NEW, TaskSwitchSource::Call, Some(0x8007)), Ok(Outcome::Runs));
    assert_eq!((tasks.rights(OLD), tasks.rights(NEW)), (BUSY, BUSY));
    assert_eq!((tasks.mock.peek(NEW_TSS, 2), tasks.state.rflags), (OLD.into(), 2 | rflags::NT));
    tasks.mock.poke(OLD_TSS + CR3, 4, 0);
    assert_eq!(tasks.to(OLD, TaskSwitchSource::Iret, Some(0x9001)), Ok(Outcome::Runs));
    assert_eq!((tasks.rights(OLD), tasks.rights(NEW)), (BUSY, AVAILABLE));
    assert_eq!(tasks.mock.peek(NEW_TSS + EFLAGS, 4), 2, "NT is saved clear");
    assert_eq!((tasks.state.rip, tasks.state.rflags, tasks.state.gprs[1]), (0x8007, 0x202, 0x101));
}

#[test]
fn segments_of_16_bits() {
    let mut tasks = Tasks::new();
    tasks.describe(NEW, NEW_TSS, 0x2b, NARROW);
    for (at, value) in [(0x0e, 0x9000), (0x10, 0x0002), (0x12, 0x1234), (0x1a, STACK), (0x2a, LOCAL.into())] {
        tasks.mock.poke(NEW_TSS + at, 2, value);
    }
    for (at, selector) in [(0x22, DATA), (0x24, CODE), (0x26, DATA), (0x28, DATA)] {
        tasks.mock.poke(NEW_TSS + at, 2, selector.into());
    }
    assert_eq!(tasks.event(exception(PROTECTION, Some(0x1234_5678))), Outcome::Runs);
    let state = &tasks.state;
    assert_eq!((state.rip, state.gprs[0], state.ldtr.base), (0x9000, 0xffff_1234, LDT));
    assert_eq!(state.gprs[Gpr::Rsp as usize], 0xffff_0000 + STACK - 2);
    assert_eq!(state.segments[SegmentName::Fs as usize], Segment::default());
    assert_eq!(tasks.rights(NEW), 0x83);
    tasks.state.gprs[7] = 0x8765_4321;
    assert_eq!(tasks.to(OLD, TaskSwitchSource::Iret, Some(0x9001)), Ok(Outcome::Runs));
    assert_eq!(tasks.mock.peek(NEW_TSS + 0x20, 2), 0x4321, "DI");
    assert_eq!(tasks.mock.peek(NEW_TSS + 0x0e, 4), 0x0002_9001, "IP and flags");
}

#[test]
fn events_switch_by_gates() {
    let mut tasks = Tasks::new();
    tasks.state.rflags |= rflags::RF;
    assert_eq!(tasks.event(exception(PROTECTION, Some(0x58))), Outcome::Runs);
    assert_eq!((tasks.state.gprs[Gpr::Rsp as usize], tasks.mock.peek(STACK - 4, 4)), (STACK - 4, 0x58));
    assert_eq!(tasks.mock.peek(OLD_TSS + EIP, 4), 0x8000, "a fault's instruction runs again");
    assert_eq!(tasks.mock.peek(OLD_TSS + EFLAGS, 4), 0x202 | rflags::RF);
    assert_eq!(tasks.state.waiting, None);

    let mut tasks = Tasks::new();
    assert_eq!(tasks.event(Event::Nmi), Outcome::Runs);
    assert!(tasks.state.blocking.nmi && tasks.state.gprs[Gpr::Rsp as usize] == STACK);
    assert_eq!(tasks.to(OLD, TaskSwitchSource::Iret, Some(0x9001)), Ok(Outcome::Runs));
    assert!(!tasks.state.blocking.nmi);
}

#[test]
fn the_trap_flag_raises_a_debug_exception() {
    let mut tasks = Tasks::new();
    tasks.set(0x64, 1);
    assert_eq!(tasks.jump(), Outcome::Raises(Exception::DEBUG));
    assert_eq!((tasks.state.rip, tasks.state.dr6 & 1 << 15), (0x9000, 1 << 15));
}

#[test]
fn virtual_8086_mode() {
    let mut tasks = Tasks::new();
    tasks.set(EFLAGS, 2 | rflags::VM);
    tasks.set(CS, 0x1234);
    assert_eq!(tasks.jump(), Outcome::Runs);
    let code = Segment { selector: 0x1234, attributes: 0xf3, limit: 0xffff, base: 0x1_2340 };
    assert_eq!(tasks.state.segments[SegmentName::Cs as usize], code);
}

#[test]
fn a_task_of_another_level() {
    let mut tasks = Tasks::new();
    for (at, selector) in [(CS, USER_CODE), (SS, USER_DATA), (DS, USER_DATA), (ES, USER_DATA), (GS, 0)] {
        tasks.set(at, selector.into());
    }
    assert_eq!(tasks.jump(), Outcome::Runs);
    assert_eq!(tasks.state.segments[SegmentName::Ss as usize].attributes >> 5 & 3, 3);
}

#[test]
fn wrong_tasks_are_refused_in_the_old_one() {
    use TaskSwitchSource::{Call, Gate, Iret, Jump};
    let with = |base, limit, attributes| {
        let mut tasks = Tasks::new();
        tasks.describe(NEW, base, limit, attributes);
        tasks
    };
    for source in [Call, Jump, Gate] {
        Tasks::new().refuses(OLD, source, PROTECTION, OLD);
        Tasks::new().refuses(BEYOND, source, PROTECTION, BEYOND);
        Tasks::new().refuses(NEW | 4, source, PROTECTION, NEW | 4);
        Tasks::new().refuses(0, source, PROTECTION, 0);
        Tasks::new().refuses(DATA | 3, source, PROTECTION, DATA);
    }
    Tasks::new().refuses(NEW, Iret, INVALID_TSS, NEW);
    Tasks::new().refuses(BEYOND, Iret, INVALID_TSS, BEYOND);
    with(NEW_TSS, 0x67, 0x09).refuses(NEW, Jump, NOT_PRESENT, NEW);
    with(NEW_TSS, 0x67, 0x0b).refuses(NEW, Iret, NOT_PRESENT, NEW);
    with(NEW_TSS, 0x66, AVAILABLE).refuses(NEW, Call, INVALID_TSS, NEW);
    with(NEW_TSS, 0x2a, NARROW).refuses(NEW, Call, INVALID_TSS, NEW);
}

#[test]
fn what_is_wrong_inside_is_the_new_tasks() {
    let narrow = |attributes| move |tasks: &mut Tasks| tasks.describe(OTHER, 0, 0xffff, attributes);
    let nothing = |_: &mut Tasks| {};
    let wrong = |at, selector: u16, change: &dyn Fn(&mut Tasks), vector| {
        let mut tasks = Tasks::new();
        change(&mut tasks);
        tasks.set(at, selector.into());
        assert_eq!(tasks.jump(), raised(vector, selector & !3), "{at:#x} with {selector:#x}");
        assert_eq!((tasks.state.rip, tasks.state.tr.selector), (0x9000, NEW));
        assert_eq!((tasks.rights(OLD), tasks.rights(NEW)), (AVAILABLE, BUSY));
        tasks
    };
    for at in [CS, SS, DS, ES, GS, LDTR] {
        wrong(at, BEYOND, &nothing, INVALID_TSS);
        wrong(at, 0x0c, &nothing, INVALID_TSS);
        wrong(at, NEW, &nothing, INVALID_TSS);
    }
    wrong(CS, 0, &nothing, INVALID_TSS);
    wrong(SS, 0, &nothing, INVALID_TSS);
    wrong(LDTR, DATA, &nothing, INVALID_TSS);
    wrong(LDTR, OTHER, &narrow(0x02), INVALID_TSS);
    wrong(CS, DATA, &nothing, INVALID_TSS);
    wrong(CS, OTHER, &narrow(0x1b), NOT_PRESENT);
    wrong(CS, OTHER, &narrow(0xfb), INVALID_TSS);
    wrong(CS, OTHER, &narrow(0xff), INVALID_TSS);
    wrong(SS, CODE, &nothing, INVALID_TSS);
    wrong(SS, OTHER, &narrow(0x91), INVALID_TSS);
    wrong(SS, OTHER, &narrow(0x13), STACK_FAULT);
    wrong(SS, USER_DATA, &nothing, INVALID_TSS);
    wrong(DS, OTHER, &narrow(0x99), INVALID_TSS);
    wrong(DS, DATA | 3, &nothing, INVALID_TSS);
    wrong(DS, OTHER, &narrow(0x13), NOT_PRESENT);
    let tasks = wrong(SS, BEYOND, &nothing, INVALID_TSS);
    let [code, stack] = [SegmentName::Cs, SegmentName::Ss].map(|name| tasks.state.segments[name as usize]);
    assert_eq!((code.selector, code.attributes, stack.attributes), (CODE, 0xfb, 0x60), "a level with a stack");
}

#[test]
fn a_hardware_event_shows_in_error_codes_and_may_double() {
    let with = |event| {
        let mut tasks = Tasks::new();
        tasks.set(GS, BEYOND.into());
        tasks.event(event)
    };
    assert_eq!(with(Event::Interrupt(0x30)), raised(INVALID_TSS, BEYOND | 1));
    assert_eq!(with(exception(1, None)), raised(INVALID_TSS, BEYOND | 1));
    assert_eq!(with(exception(PROTECTION, Some(0))), Outcome::Raises(Exception::DOUBLE_FAULT));
    assert_eq!(with(Event::Exception(Exception::DOUBLE_FAULT)), Outcome::ShutsDown);
}

#[test]
fn an_error_code_needs_a_stack() {
    let mut tasks = Tasks::new();
    tasks.describe(OTHER, 0, 0xfff, 0x493);
    tasks.set(SS, OTHER.into());
    assert_eq!(tasks.event(exception(17, Some(0))), raised(STACK_FAULT, 1));
    assert_eq!(tasks.state.tr.selector, NEW);
}

#[test]
fn descriptors_are_marked_as_accessed() {
    let mut tasks = Tasks::new();
    tasks.describe(OTHER, 0, 0xffff, 0x92);
    tasks.set(DS, OTHER.into());
    assert_eq!(tasks.jump(), Outcome::Runs);
    assert_eq!(tasks.rights(OTHER), 0x93);
    assert_eq!(tasks.state.segments[SegmentName::Ds as usize].attributes, 0x93);
}

#[test]
fn a_task_may_return_to_itself() {
    let mut tasks = Tasks::new();
    let before = tasks.state.clone();
    assert_eq!(tasks.to(OLD, TaskSwitchSource::Iret, Some(0x8001)), Ok(Outcome::Runs));
    assert_eq!((tasks.state.rip, tasks.state.gprs), (0x8001, before.gprs), "it is saved before it is loaded");
}

/// The low 4 MiB one to one at a directory, the table behind it.
fn map(mock: &mut Mock, directory: u64) {
    mock.poke(directory, 4, (directory + 0x1000) | P | W | U);
    for page in 0..256 {
        mock.poke(directory + 0x1000 + 4 * page, 4, page << 12 | P | W | U);
    }
}

fn paged() -> Tasks {
    let mut tasks = Tasks::new();
    map(&mut tasks.mock, 0x1_0000);
    map(&mut tasks.mock, 0x1_4000);
    (tasks.state.cr0, tasks.state.cr3) = (tasks.state.cr0 | cr0::PG, 0x1_0000);
    tasks.set(CR3, 0x1_4000);
    tasks
}

#[test]
fn other_page_tables() {
    let mut tasks = paged();
    let new_stack = 0x1_5000 + 4 * (STACK >> 12) - 4;
    tasks.mock.poke(new_stack, 4, 0x7000 | P | W);
    assert_eq!(tasks.event(exception(PROTECTION, Some(0x58))), Outcome::Runs);
    assert_eq!((tasks.state.cr3, tasks.mock.peek(0x7ffc, 4)), (0x1_4000, 0x58));

    let mut tasks = paged();
    tasks.mock.poke(new_stack, 4, 0);
    let fault = Exception::page_fault(2, STACK - 4);
    assert_eq!(tasks.event(exception(17, Some(0))), Outcome::Raises(fault));
    assert_eq!(tasks.state.tr.selector, NEW, "a page fault in the new task");
    assert_eq!(tasks.state.gprs[Gpr::Rsp as usize], STACK);

    let mut tasks = paged();
    tasks.mock.poke(0x1_1000 + 4 * (NEW_TSS >> 12), 4, 0);
    assert_eq!(tasks.jump(), Outcome::Raises(Exception::page_fault(0, NEW_TSS)));
    assert_eq!((tasks.state.tr.selector, tasks.rights(OLD)), (OLD, BUSY), "one in the old task");
}

#[test]
fn wrong_page_directory_pointers_are_refused() {
    let mut tasks = Tasks::new();
    (tasks.state.cr0, tasks.state.cr4, tasks.state.cr3) = (tasks.state.cr0 | cr0::PG, cr4::PAE, 0x1_0000);
    tasks.mock.poke(0x1_0000, 8, 0x1_1000 | P);
    tasks.mock.poke(0x1_1000, 8, 0x83);
    tasks.mock.poke(0x1_4018, 8, 0x7);
    tasks.set(CR3, 0x1_4000);
    assert_eq!(tasks.jump(), raised(PROTECTION, 0));
    assert_eq!((tasks.state.cr3, tasks.state.tr.selector), (0x1_0000, OLD));
}

#[test]
fn memory_that_is_not_there_changes_nothing() {
    for page in [GDT, OLD_TSS, NEW_TSS, STACK - 0x1000] {
        let mut tasks = Tasks::new();
        tasks.mock.unavailable = Some(page);
        tasks.state.waiting = Some(exception(PROTECTION, Some(0)));
        let before = tasks.clone();
        assert_eq!(tasks.to(NEW, TaskSwitchSource::Gate, None), Err(Unavailable), "{page:#x}");
        assert!(tasks.state == before.state && tasks.mock.ram == before.mock.ram, "something has changed");
    }
}

proptest! {
    #[test]
    fn nothing_that_a_guest_makes_of_its_tables_matters(
        bytes in prop::collection::vec(any::<(u16, u64)>(), 0..64),
        bases in any::<[u64; 4]>(),
        registers in any::<[u64; 4]>(),
        (selector, source, attributes, error_code) in (any::<u16>(), 0..4_u8, any::<u16>(), any::<Option<u32>>()),
        absent in prop::option::of((0..16_u64).prop_map(|page| page << 12)),
        is_wild in any::<bool>(),
    ) {
        let mut tasks = if registers[0] & 1 == 0 { Tasks::new() } else { paged() };
        for (at, value) in bytes {
            // Where the tables are.
            tasks.mock.poke(0x1000 + u64::from(at) % (RAM_BYTES as u64 / 8), 8, value);
        }
        if is_wild {
            let state = &mut tasks.state;
            (state.gdtr.base, state.tr.base, state.ldtr.base, state.rip) = (bases[0], bases[1], bases[2], bases[3]);
            (state.tr.attributes, state.ldtr.attributes) = (attributes, attributes);
            (state.cr0, state.cr3, state.cr4, state.efer) = (registers[0], registers[1], registers[2], registers[3]);
        }
        tasks.state.waiting = error_code.map(|code| exception(PROTECTION, Some(code)));
        let source = [TaskSwitchSource::Call, TaskSwitchSource::Iret, TaskSwitchSource::Jump, TaskSwitchSource::Gate]
            [usize::from(source)];
        let selector = if is_wild { selector } else { NEW };
        tasks.mock.unavailable = absent;
        let before = tasks.clone();
        match tasks.to(selector, source, Some(bases[3])) {
            Ok(_) => prop_assert_eq!(tasks.state.waiting, None),
            Err(Unavailable) => prop_assert!(tasks.state == before.state),
        }
    }
}
