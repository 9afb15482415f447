//! A machine of whose memory a part is still on its way: what needs it waits, and then happens once.

use super::bench::*;
use super::driver::{BUFFERS, Driver, VERSION_1};
use crate::Pause;
use addr::Gpa;
use alloc::vec;
use guestmem::PageSet;
use vcpu::{Access, Exit, Gpr, PortAccess, PortDirection, cr0, cr4, efer};

const DATA: u64 = BUFFERS + 0x1_0000;
const CODE: u64 = 0x8000;

/// Has the page behind an address be on its way.
fn away(bench: &Bench, at: u64) {
    let memory = bench.machine.memory();
    let mut pages = PageSet::new(memory.pages_end()).unwrap();
    pages.insert(at / 4096, 1);
    memory.start_waiting(&pages).unwrap();
}

/// The page comes, full of this byte.
fn comes(bench: &mut Bench, at: u64, byte: u8) {
    assert_eq!(bench.machine.memory().put(at / 4096, Some(&[byte; 4096])), Ok(true), "it was wanted");
    bench.machine.memory_arrived(&mut bench.host);
}

#[test]
fn a_request_waits_for_its_buffer_and_is_made_once() {
    let mut bench = Bench::with(vec![disk(1000)], vec![]);
    bench.enable_x2apic();
    let mut driver = Driver::new(&mut bench, 3, VERSION_1, &[256]);
    bench.store(BUFFERS, 8, 0);
    away(&bench, DATA + 0x1000);
    driver.add(&bench, 0, &[(BUFFERS, 16, false), (DATA, 0x2000, true), (BUFFERS + 0x8000, 1, true)]);
    driver.kick(&mut bench, 0);
    assert!(bench.host.transfers.is_empty());
    assert_eq!(driver.status(&mut bench) & 0x40, 0, "the device is well");
    comes(&mut bench, DATA + 0x1000, 0);
    bench.exit(Exit::Pause);
    assert_eq!(bench.host.transfers.len(), 1);
    bench.machine.memory_arrived(&mut bench.host);
    bench.exit(Exit::Pause);
    assert_eq!(bench.host.transfers.len(), 1);
}

#[test]
fn a_string_waits_at_the_element_whose_memory_is_away() {
    let mut bench = Bench::new();
    bench.store(0x1_0ffe, 2, u64::from(u16::from_le_bytes(*b"ab")));
    bench.store(CODE, 2, 0x6ef3);
    away(&bench, 0x1_1000);
    bench.set_gpr(Gpr::Rsi, 0x1_0ffe);
    bench.set_gpr(Gpr::Rcx, 4);
    bench.set_gpr(Gpr::Rdx, 0x3f8);
    let outs = |bench: &mut Bench| {
        bench.then(|state| {
            state.rip = CODE;
            Exit::Port(PortAccess { port: 0x3f8, size: 1, direction: PortDirection::Out, string: true })
        });
        bench.run()
    };
    assert!(matches!(outs(&mut bench), Pause::Idle(Some(_))));
    assert_eq!((bench.gpr(Gpr::Rcx), bench.thread.rip()), (2, CODE));
    comes(&mut bench, 0x1_1000, b'c');
    assert_eq!(outs(&mut bench), Pause::Interrupted);
    assert_eq!((bench.host.console.as_slice(), bench.gpr(Gpr::Rcx)), (&b"abcc"[..], 0));
}

#[test]
fn a_device_is_not_read_for_memory_that_cannot_take_it() {
    let mut bench = Bench::new();
    away(&bench, 0x1_1000);
    // REP INSB from the keyboard controller's data port: each read takes a byte away.
    bench.store(CODE, 2, 0x6cf3);
    bench.set_gpr(Gpr::Rdi, 0x1_1000);
    bench.set_gpr(Gpr::Rcx, 1);
    bench.set_gpr(Gpr::Rdx, 0x3fd);
    bench.then(|state| {
        state.rip = CODE;
        Exit::Port(PortAccess { port: 0x3fd, size: 1, direction: PortDirection::In, string: true })
    });
    assert!(matches!(bench.run(), Pause::Idle(Some(_))));
    assert_eq!((bench.gpr(Gpr::Rdi), bench.gpr(Gpr::Rcx)), (0x1_1000, 1));
}

#[test]
fn the_guest_waits_for_what_it_touches_and_registers() {
    let mut bench = Bench::new();
    away(&bench, 0x1_1000);
    let gpa = Gpa::new(0x1_1008);
    let touch = Exit::NestedFault { gpa, access: Access::Write, page_walk: true };
    assert!(matches!(bench.exit(touch), Pause::Idle(Some(_))));
    assert_eq!(bench.host.backed, [gpa]);
    let rip = bench.thread.rip();
    let register = Exit::MsrWrite { index: 0x4b56_4d01, value: 0x1_1001 };
    assert!(matches!(bench.exit(register), Pause::Idle(Some(_))));
    assert_eq!(bench.thread.rip(), rip, "it comes again");
    comes(&mut bench, 0x1_1000, 0);
    assert_eq!(bench.exit(register), Pause::Interrupted);
    let mut essential = PageSet::new(bench.machine.memory().pages_end()).unwrap();
    bench.machine.essential([&bench.thread].into_iter(), &mut essential);
    assert_eq!(essential.iter().collect::<alloc::vec::Vec<_>>(), [0x11]);
}

/// What a machine at rest cannot do without, but for its rings.
fn essential(bench: &Bench) -> alloc::vec::Vec<u64> {
    let mut pages = PageSet::new(bench.machine.memory().pages_end()).unwrap();
    bench.machine.essential([&bench.thread].into_iter(), &mut pages);
    pages.iter().collect()
}

#[test]
fn a_processor_keeps_the_pointers_of_pae_paging_alone() {
    let mut bench = Bench::new();
    let paging = [
        (cr0::PG, cr4::PAE, 0, vec![0x12]),
        (0, cr4::PAE, 0, vec![]),
        (cr0::PG, 0, 0, vec![]),
        (cr0::PG, cr4::PAE, efer::LMA, vec![]),
    ];
    for (cr0, cr4, efer, pages) in paging {
        bench.then(move |state| {
            (state.cr0, state.cr3, state.cr4, state.efer) = (cr0 | 1, 0x1_2fe0, cr4, efer);
            Exit::Pause
        });
        bench.run();
        assert_eq!(essential(&bench), pages);
    }
}

#[test]
fn a_write_that_waits_for_its_flush_is_answered() {
    const STATUS: u64 = BUFFERS + 0x8000;
    let mut bench = Bench::with(vec![disk(1000)], vec![]);
    bench.enable_x2apic();
    let mut driver = Driver::new(&mut bench, 3, VERSION_1, &[256]);
    bench.store(BUFFERS, 8, 1);
    bench.store(BUFFERS + 8, 8, 0);
    let before = essential(&bench);
    driver.add(&bench, 0, &[(BUFFERS, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
    driver.kick(&mut bench, 0);
    let (transfer, _) = bench.host.transfers.remove(0);
    bench.machine.disk_done(0, transfer.id, virtio::blk::Outcome::Ok, &mut bench.host);
    bench.machine.disks_settle(0, &mut bench.host);
    let with_status: alloc::vec::Vec<_> = essential(&bench).into_iter().filter(|page| !before.contains(page)).collect();
    assert_eq!(with_status, [STATUS / 4096]);
}
