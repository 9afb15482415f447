//! The console both ways, by UART and by virtio.

use super::bench::*;
use super::driver::{BUFFERS, Driver, VERSION_1};
use addr::Gpa;
use vcpu::{Event, Exit};

const DEVICE: u32 = 1;
const INPUT: usize = 0;
const OUTPUT: usize = 1;

fn driver(bench: &mut Bench) -> Driver {
    Driver::new(bench, DEVICE, VERSION_1, &[128, 128])
}

fn say(bench: &mut Bench, driver: &mut Driver, text: &[u8]) {
    bench.machine.memory().write(Gpa::new(BUFFERS), text).unwrap();
    driver.add(bench, OUTPUT, &[(BUFFERS, text.len() as u32, false)]);
    driver.kick(bench, OUTPUT as u32);
}

/// What is in a used input buffer.
fn text(bench: &Bench, at: u64, bytes: u32) -> Vec<u8> {
    let mut text = vec![0; bytes as usize];
    bench.machine.memory().read(Gpa::new(at), &mut text).unwrap();
    text
}

#[test]
fn the_uart_prints() {
    let mut bench = Bench::new();
    for byte in b"login: " {
        bench.out(0x3f8, 1, u32::from(*byte));
    }
    assert_eq!(bench.host.console, b"login: ");
}

#[test]
fn keys_wait_for_the_uart_to_be_read() {
    let mut bench = Bench::new();
    bench.out(0x3fa, 1, 1);
    let keys: Vec<u8> = (0..200).collect();
    assert_eq!(bench.machine.console_input(&keys, &mut bench.host), 200);
    let mut got = vec![];
    while bench.input(0x3fd, 1) & 1 != 0 {
        got.push(bench.input(0x3f8, 1) as u8);
    }
    assert_eq!(got, keys, "sixteen fit the UART, the rest follows");
}

#[test]
fn keys_interrupt_a_guest_that_sleeps() {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    bench.set_ioapic_pin(4, 0x34);
    bench.out(0x3f9, 1, 1);
    bench.out(0x3fc, 1, 8);
    bench.set_if(true);
    bench.exit(Exit::Halt);
    bench.machine.console_input(b"x", &mut bench.host);
    assert!(bench.machine.has_mail(0) && !bench.host.kicks.is_empty());
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(0x34)]);
}

#[test]
fn only_so_many_keys_wait() {
    let mut bench = Bench::new();
    let taken = bench.machine.console_input(&[b'x'; 10_000], &mut bench.host);
    assert!((4096..5000).contains(&taken));
    assert!(bench.machine.console_input(b"yyyyyyyyyyyyyyyyyyyyyyyyyyyy", &mut bench.host) <= 16);
}

#[test]
fn virtio_prints_and_is_told() {
    let mut bench = Bench::new();
    bench.enable_x2apic();
    let mut driver = driver(&mut bench);
    say(&mut bench, &mut driver, b"hello");
    assert_eq!(bench.host.console, b"hello");
    assert_eq!(driver.used(&bench, OUTPUT), [(0, 0)]);
    bench.set_if(true);
    bench.run();
    assert_eq!(bench.taken(), [Event::Interrupt(driver.vector(1))]);
}

#[test]
fn keys_go_to_the_console_that_spoke_last() {
    let mut bench = Bench::new();
    let mut driver = driver(&mut bench);
    driver.add(&bench, INPUT, &[(BUFFERS + 0x1000, 64, true)]);
    driver.kick(&mut bench, INPUT as u32);
    bench.machine.console_input(b"a", &mut bench.host);
    assert_eq!(bench.input(0x3f8, 1) as u8, b'a', "nobody spoke: the UART");
    say(&mut bench, &mut driver, b"$ ");
    bench.machine.console_input(b"ls", &mut bench.host);
    assert_eq!(driver.used(&bench, INPUT), [(0, 2)]);
    assert_eq!(text(&bench, BUFFERS + 0x1000, 2), b"ls");
    bench.out(0x3f8, 1, b'#'.into());
    bench.machine.console_input(b"b", &mut bench.host);
    assert_eq!(bench.input(0x3f8, 1) as u8, b'b');
}

#[test]
fn keys_wait_for_virtio_buffers() {
    let mut bench = Bench::new();
    let mut driver = driver(&mut bench);
    say(&mut bench, &mut driver, b"$ ");
    bench.machine.console_input(b"abcdef", &mut bench.host);
    for at in [0x1000, 0x2000] {
        driver.add(&bench, INPUT, &[(BUFFERS + at, 4, true)]);
    }
    driver.kick(&mut bench, INPUT as u32);
    assert_eq!(driver.used(&bench, INPUT), [(0, 4), (1, 2)]);
    assert_eq!([text(&bench, BUFFERS + 0x1000, 4), text(&bench, BUFFERS + 0x2000, 2)].concat(), b"abcdef");
}

#[test]
fn all_waiting_keys_go_at_once_wherever_they_wait() {
    let mut bench = Bench::new();
    let mut driver = driver(&mut bench);
    say(&mut bench, &mut driver, b"$ ");
    // Turn the waiting room so that it wraps.
    let keys: Vec<u8> = (0..4096u32).map(|index| index as u8).collect();
    bench.machine.console_input(&keys, &mut bench.host);
    driver.add(&bench, INPUT, &[(BUFFERS, 4000, true)]);
    driver.kick(&mut bench, INPUT as u32);
    bench.machine.console_input(&keys[..3000], &mut bench.host);
    driver.add(&bench, INPUT, &[(BUFFERS, 8192, true)]);
    driver.add(&bench, INPUT, &[(BUFFERS + 8192, 8192, true)]);
    driver.kick(&mut bench, INPUT as u32);
    let used = driver.used(&bench, INPUT);
    assert_eq!(used.iter().map(|(_, bytes)| bytes).sum::<u32>(), 4096 + 3000);
    assert_eq!(used.len(), 2, "one buffer takes all that is left");
}

#[test]
fn a_reset_gives_the_keys_back_to_the_uart() {
    let mut bench = Bench::new();
    let mut driver = driver(&mut bench);
    say(&mut bench, &mut driver, b"$ ");
    driver.set_status(&mut bench, 0);
    bench.machine.console_input(b"x", &mut bench.host);
    assert_eq!(bench.input(0x3f8, 1) as u8, b'x');
}

#[test]
fn much_output_leaves_in_pieces() {
    let mut bench = Bench::new();
    let mut driver = driver(&mut bench);
    for _ in 0..100 {
        driver.add(&bench, OUTPUT, &[(BUFFERS, 64 << 10, false)]);
    }
    driver.kick(&mut bench, OUTPUT as u32);
    assert_eq!(bench.host.console.len(), 100 * (64 << 10));
    assert!(bench.host.flush_max[0] <= 256 << 10, "{}", bench.host.flush_max[0]);
    assert_eq!(driver.used(&bench, OUTPUT).len(), 100);
}
