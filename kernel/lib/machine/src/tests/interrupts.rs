//! From a timer, a line or a message to the guest's handler, and when a guest that sleeps wakes.

use super::bench::*;
use crate::Pause;
use crate::mail::{Mail, Tell};
use chipset::{DeliveryMode, Effect, Message, Target};
use std::sync::{Arc, Mutex};
use vcpu::{Event, Exit, rflags};

/// LVT timer: TSC deadline, vector 0xEC.
const DEADLINE_MODE: u64 = 2 << 17 | 0xec;

fn with_timer() -> Bench {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    bench.write_msr(0x832, DEADLINE_MODE).unwrap();
    bench
}

fn end_of_interrupt(bench: &mut Bench) {
    bench.write_msr(0x80b, 0).unwrap();
}

#[test]
fn a_halted_guest_sleeps_until_its_deadline() {
    let mut bench = with_timer();
    bench.set_if(true);
    let deadline = bench.read_msr(0x10).unwrap() + 20_000;
    bench.write_msr(0x6e0, deadline).unwrap();
    let due = bench.now_ns() + 10_000;
    assert_eq!(bench.host.armed.last(), Some(&due), "the host's timer is set at once");
    assert_eq!(bench.exit(Exit::Halt), Pause::Idle(Some(due)));
    assert_eq!(bench.run(), Pause::Idle(Some(due)), "nothing happened meanwhile");
    bench.pass(9_999);
    assert_eq!(bench.run(), Pause::Idle(Some(due)));
    assert_eq!(bench.taken(), []);
    bench.pass(1);
    assert_eq!(bench.run(), Pause::Interrupted);
    assert_eq!(bench.taken(), [Event::Interrupt(0xec)]);
    assert_eq!(bench.read_msr(0x6e0), Ok(0), "disarmed");
}

#[test]
fn who_is_called_for_mail_takes_it_and_runs_on() {
    let mut bench = with_timer();
    bench.set_if(true);
    let machine = bench.machine.clone();
    bench.then(move |_| {
        let mail = Mail::Vector { vector: 0x41, level_triggered: false };
        assert_eq!(machine.mailboxes[0].post(mail), Tell::Vcpu);
        Exit::HostInterrupt
    });
    bench.host.runs_on = 2;
    bench.exit(Exit::HostInterrupt);
    assert_eq!(bench.host.runs_on, 0, "it was asked each time, until it had to leave");
    assert_eq!(bench.taken(), [Event::Interrupt(0x41)]);
}

#[test]
fn who_lingers_is_told_nothing_and_goes_on() {
    let mut bench = with_timer();
    bench.set_if(true);
    let machine = bench.machine.clone();
    let tells = Arc::new(Mutex::new(Vec::new()));
    let told = tells.clone();
    bench.host.lingers.push(Box::new(move || {
        let mail = Mail::Vector { vector: 0x41, level_triggered: false };
        told.lock().unwrap().push(machine.mailboxes[0].post(mail));
    }));
    assert_eq!(bench.exit(Exit::Halt), Pause::Interrupted, "it did not sleep");
    assert_eq!(bench.taken(), [Event::Interrupt(0x41)]);
    assert_eq!(*tells.lock().unwrap(), [Tell::Nobody]);
    assert_eq!(bench.exit(Exit::Halt), Pause::Idle(None), "nothing came");
}

#[test]
fn mail_that_wakes_nobody_does_not_keep_the_host() {
    let mut bench = with_timer();
    bench.set_if(false);
    for _ in 0..10 {
        let machine = bench.machine.clone();
        bench.host.lingers.push(Box::new(move || {
            let _ = machine.mailboxes[0].post(Mail::Vector { vector: 0x41, level_triggered: false });
        }));
    }
    assert_eq!(bench.exit(Exit::Halt), Pause::Idle(None), "interrupts are off");
    assert_eq!(bench.host.lingers.len(), 9, "once a halt");
}

#[test]
fn a_deadline_comes_while_the_guest_runs() {
    let mut bench = with_timer();
    bench.set_if(true);
    bench.write_msr(0x6e0, bench.now_ns() * 2 + 20_000).unwrap();
    bench.pass(20_000);
    // The host's timer ends the run; the next one finds the deadline passed.
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0xec)]);
    bench.set_if(true);
    bench.run();
    assert_eq!(bench.taken(), [], "once");
}

#[test]
fn a_halted_guest_without_interrupts_sleeps_for_ever() {
    let mut bench = with_timer();
    bench.write_msr(0x83f, 0x41).unwrap();
    assert_eq!(bench.exit(Exit::Halt), Pause::Idle(None), "IF is clear");
    assert_eq!(bench.taken(), []);
}

#[test]
fn halt_does_not_sleep_over_a_waiting_interrupt() {
    let mut bench = with_timer();
    bench.write_msr(0x83f, 0x41).unwrap();
    bench.then(|state| {
        state.rflags |= rflags::IF;
        Exit::Halt
    });
    assert_eq!(bench.run(), Pause::Interrupted);
    assert_eq!(bench.taken(), [Event::Interrupt(0x41)]);
}

#[test]
fn halt_under_single_step_takes_the_trap() {
    let mut bench = Bench::new();
    bench.then(|state| {
        state.rflags |= rflags::TF;
        Exit::Halt
    });
    assert_eq!(bench.run(), Pause::Interrupted);
    assert_eq!(bench.taken(), [Event::Exception(vcpu::Exception::DEBUG)]);
}

#[test]
fn an_nmi_wakes_unless_another_is_served() {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    assert_eq!(bench.exit(Exit::Halt), Pause::Idle(None));
    let nmi = Message { vector: 0, mode: DeliveryMode::Nmi, target: Target::All, level_triggered: false };
    bench.machine.send(&nmi, &mut bench.host);
    assert!(bench.machine.has_mail(0));
    assert_eq!(bench.run(), Pause::Interrupted);
    assert_eq!(bench.taken(), [Event::Nmi], "although IF is clear");
    bench.machine.send(&nmi, &mut bench.host);
    assert_eq!(bench.exit(Exit::Halt), Pause::Idle(None), "blocked by the first");
    assert_eq!(bench.taken(), []);
}

#[test]
fn an_interrupt_waits_for_its_window() {
    let mut bench = with_timer();
    bench.write_msr(0x83f, 0x41).unwrap();
    bench.exit(Exit::Pause);
    assert_eq!(bench.taken(), [], "IF is clear");
    bench.then(|state| {
        state.rflags |= rflags::IF;
        Exit::CacheFlush
    });
    assert_eq!(bench.run(), Pause::Interrupted);
    assert_eq!(bench.taken(), [Event::Interrupt(0x41)]);
}

#[test]
fn the_window_opens_without_another_exit() {
    let mut bench = with_timer();
    bench.write_msr(0x83f, 0x41).unwrap();
    bench.set_if(true);
    // The mock leaves with the window's exit before it does anything else.
    bench.then(|state| {
        assert_eq!(state.rflags & rflags::IF, 0, "the handler runs first");
        Exit::Pause
    });
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x41)]);
}

#[test]
fn priorities_decide_who_is_next() {
    let mut bench = with_timer();
    for vector in [0x41, 0x91, 0x42, 0x91] {
        bench.write_msr(0x83f, vector).unwrap();
    }
    let mut order = vec![];
    for _ in 0..4 {
        bench.set_if(true);
        bench.run();
        order.extend(bench.taken());
        end_of_interrupt(&mut bench);
    }
    assert_eq!(order, [0x91, 0x42, 0x41].map(Event::Interrupt));
}

#[test]
fn a_pit_that_is_set_by_port_wakes_the_guest() {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    bench.set_ioapic_pin(2, 0x31);
    bench.out(0x43, 1, 0x34);
    bench.out(0x40, 1, 0x9c);
    bench.out(0x40, 1, 0x2e);
    let due = bench.machine.board.lock().chipset.deadline_ns().unwrap();
    assert_eq!(bench.host.armed.last(), Some(&due), "the host's timer is set at once");
    bench.set_if(true);
    let Pause::Idle(Some(until)) = bench.exit(Exit::Halt) else { panic!("it sleeps until the PIT") };
    assert_eq!(until, due);
    bench.pass(until - bench.now_ns());
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x31)]);
}

/// Makes the PIC pair raise vectors 0x20 to 0x2f, all open.
fn program_pics(bench: &mut Bench) {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
        (0x21, 0),
        (0xa1, 0),
    ] {
        bench.out(port, 1, value);
    }
}

#[test]
fn the_pic_interrupts_through_lint0() {
    let mut bench = Bench::new();
    program_pics(&mut bench);
    // The UART's transmitter is empty: its interrupt comes as it is enabled.
    bench.out(0x3fc, 1, 8);
    bench.out(0x3f9, 1, 2);
    bench.set_if(true);
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x24)]);
    bench.set_if(true);
    bench.run();
    assert_eq!(bench.taken(), [], "in service, nothing else waits");
    bench.out(0x20, 1, 0x20);
    bench.out(0x3f9, 1, 0);
    bench.out(0x3f9, 1, 2);
    assert_eq!(bench.taken(), [Event::Interrupt(0x24)]);
}

#[test]
fn a_masked_pic_does_not_interrupt() {
    let mut bench = Bench::new();
    program_pics(&mut bench);
    bench.out(0x21, 1, 0xff);
    bench.out(0x3fc, 1, 8);
    bench.out(0x3f9, 1, 2);
    bench.set_if(true);
    assert_eq!(bench.exit(Exit::Halt), Pause::Idle(None));
}

#[test]
fn a_level_repeats_after_its_end_while_it_is_asserted() {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    bench.set_ioapic_pin(9, 1 << 15 | 0x49);
    // The power button's enable bit.
    bench.out(0x602, 2, 0x100);
    bench.set_if(true);
    bench.machine.power_button(&mut bench.host);
    assert_eq!(bench.host.kicks, [0]);
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x49)], "SCI");
    bench.set_if(true);
    bench.run();
    assert_eq!(bench.taken(), [], "remote IRR holds it back");
    bench.then(|_| Exit::MsrWrite { index: 0x80b, value: 0 });
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x49)], "the status is still set");
    assert_eq!(bench.input(0x600, 2) & 0x100, 0x100);
    bench.out(0x600, 2, 0x100);
    bench.set_if(true);
    end_of_interrupt(&mut bench);
    bench.run();
    assert_eq!(bench.taken(), []);
}

#[test]
fn level_interrupts_are_not_offered_to_end_in_memory() {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    bench.write_msr(0x4b56_4d04, 0x5001).unwrap();
    bench.set_ioapic_pin(9, 1 << 15 | 0x49);
    bench.out(0x602, 2, 0x100);
    bench.set_if(true);
    bench.machine.power_button(&mut bench.host);
    let machine = bench.machine.clone();
    bench.then(move |_| {
        assert_eq!(machine.memory().load(addr::Gpa::new(0x5000), 1).unwrap(), 0);
        Exit::Pause
    });
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x49)]);
}

#[test]
fn the_xapic_page_works_as_the_registers_do() {
    let mut bench = Bench::new();
    bench.mmio_write(0xfee0_00f0, 4, 0x1ff);
    bench.mmio_write(0xfee0_0320, 4, 0xec);
    bench.mmio_write(0xfee0_03e0, 4, 0xb);
    bench.mmio_write(0xfee0_0380, 4, 5_000);
    assert_eq!(bench.mmio_read(0xfee0_0380, 4), 5_000);
    bench.set_if(true);
    assert_eq!(bench.exit(Exit::Halt), Pause::Idle(Some(bench.now_ns() + 5_000)));
    bench.pass(5_000);
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0xec)]);
}

#[test]
fn cr8_and_the_local_apic_have_one_task_priority() {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    bench.write_msr(0x808, 0x5f).unwrap();
    bench.run();
    assert_eq!(bench.shared.lock().unwrap().tpr, 5, "CR8 shows what was written to the local APIC");
    bench.run();
    assert_eq!(bench.read_msr(0x808), Ok(0x5f), "and leaves its lower bits alone");
    let shared = bench.shared.clone();
    bench.then(move |_| {
        shared.lock().unwrap().tpr = 3;
        Exit::HostInterrupt
    });
    bench.run();
    assert_eq!(bench.read_msr(0x808), Ok(0x30), "what the guest moved to CR8");
}

#[test]
fn an_interrupt_that_cr8_holds_back_comes_when_it_falls() {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    bench.set_if(true);
    bench.write_msr(0x808, 0x50).unwrap();
    bench.write_msr(0x83f, 0x51).unwrap();
    bench.run();
    assert_eq!(bench.taken(), [], "of the same class");
    // The guest's MOV to CR8, after which the processor exits as it was asked to.
    let shared = bench.shared.clone();
    bench.then(move |_| {
        shared.lock().unwrap().tpr = 4;
        Exit::InterruptWindow
    });
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x51)]);
}

/// On a processor that delivers what waits in the local APIC's page.
fn with_virtual_interrupts() -> Bench {
    let mut bench = Bench::new();
    bench.shared.lock().unwrap().delivers = true;
    bench.thread.put_lapic(chipset::Lapic::new(0, true, 1));
    bench.enable_x2apic();
    bench
}

fn level(vector: u8) -> Message {
    Message { vector, mode: DeliveryMode::Fixed, target: Target::All, level_triggered: true }
}

#[test]
fn a_processor_that_delivers_gets_nothing_injected() {
    let mut bench = with_virtual_interrupts();
    let page = bench.shared.lock().unwrap().apic.clone().unwrap();
    bench.write_msr(0x83f, 0x41).unwrap();
    bench.run();
    assert_eq!(bench.taken(), [], "IF is clear");
    assert!(page.requested().contains(0x41) && page.take_change(), "it waits where the processor looks");
    bench.set_if(true);
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x41)]);
    assert!(page.in_service().contains(0x41), "the processor's doing, and nobody's else");
    // It ends it by itself, too: no exit tells.
    page.end();
    bench.write_msr(0x83f, 0x42).unwrap();
    bench.set_if(true);
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x42)]);
}

#[test]
fn the_page_is_open_in_x2apic_mode_while_interrupts_are_accepted() {
    let mut bench = with_virtual_interrupts();
    let is_open = |bench: &Bench| bench.shared.lock().unwrap().is_apic_open;
    assert!(is_open(&bench));
    bench.write_msr(0x80f, 0xff).unwrap();
    assert!(!is_open(&bench), "disabled by software");
    bench.write_msr(0x80f, 0x1ff).unwrap();
    let base = bench.read_msr(0x1b).unwrap();
    bench.write_msr(0x1b, base & !0xc00).unwrap();
    assert!(!is_open(&bench), "off");
}

#[test]
fn a_halted_guest_wakes_for_what_waits_in_the_page() {
    let mut bench = with_virtual_interrupts();
    bench.set_if(true);
    assert_eq!(bench.exit(Exit::Halt), Pause::Idle(None));
    bench.machine.send(&level(0x51), &mut bench.host);
    assert_eq!(bench.run(), Pause::Interrupted);
    assert_eq!(bench.taken(), [Event::Interrupt(0x51)]);
}

#[test]
fn the_end_of_a_level_triggered_interrupt_reaches_the_board() {
    let mut bench = with_virtual_interrupts();
    bench.set_if(true);
    const LEVEL: u32 = 1 << 15;
    bench.set_ioapic_pin(16, LEVEL | 0x51);
    let mut effects = Vec::new();
    bench.machine.board.lock().chipset.set_gsi(16, true, &mut effects);
    assert_eq!(effects, [Effect::Interrupt(Message { target: Target::Physical(0), ..level(0x51) })]);
    bench.machine.send(&level(0x51), &mut bench.host);
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x51)]);
    let page = bench.shared.lock().unwrap().apic.clone().unwrap();
    assert_eq!(page.end(), Some(0x51));
    assert!(page.trigger_mode().contains(0x51));
    bench.exit(Exit::EndOfInterrupt { vector: 0x51 });
    bench.run();
    assert!(page.requested().contains(0x51), "the line is still up");
}

#[test]
fn an_illegal_vector_to_itself_is_an_error() {
    let mut bench = with_virtual_interrupts();
    bench.exit(Exit::SelfIpi { vector: 3 });
    bench.write_msr(0x828, 0).unwrap();
    assert_eq!(bench.read_msr(0x828), Ok(1 << 5), "send illegal vector");
}
