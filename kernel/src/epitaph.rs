//! The last words: what a panic or an exception of the host's own code leaves on the serial line.

use crate::{host, screen, serial};
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use cpu::percpu::CPUS_MAX;
use drivers::screen::Screen;
use drivers::uart::SerialPort;
use interrupts::Frame;

/// Trace entries that are printed.
const TRACE_LINES: usize = 16;

/// Somebody is dying already.
static DYING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    die(|words| {
        let _ = writeln!(words, "\nPollux stopped: {}", info.message());
        if let Some(location) = info.location() {
            let _ = writeln!(words, "at {location}");
        }
    })
}

/// An exception of the host's own code.
pub fn exception(frame: &Frame) -> ! {
    die(|words| {
        let Frame { vector, error_code, rip, rsp, rflags, .. } = frame;
        let _ = writeln!(words, "\nPollux stopped: exception {vector}, error code {error_code:#x}, at {rip:#x}");
        let _ = writeln!(words, "rsp {rsp:#018x} rflags {rflags:#x}");
        let Frame { rax, rbx, rcx, rdx, rsi, rdi, rbp, .. } = frame;
        let _ = writeln!(words, "rax {rax:#018x} rbx {rbx:#018x} rcx {rcx:#018x} rdx {rdx:#018x}");
        let _ = writeln!(words, "rsi {rsi:#018x} rdi {rdi:#018x} rbp {rbp:#018x}");
        let Frame { r8, r9, r10, r11, r12, r13, r14, r15, .. } = frame;
        let _ = writeln!(words, "r8  {r8:#018x} r9  {r9:#018x} r10 {r10:#018x} r11 {r11:#018x}");
        let _ = writeln!(words, "r12 {r12:#018x} r13 {r13:#018x} r14 {r14:#018x} r15 {r15:#018x}");
    })
}

/// Stops the other processors, then writes `words` and the end of each trace, and stops.
fn die(words: impl FnOnce(&mut Words)) -> ! {
    cpu::shut_interrupts();
    if DYING.swap(true, Ordering::AcqRel) {
        cpu::halt_forever();
    }
    // No guest runs on, and nothing of theirs is written any more: their disks are as after a power failure.
    interrupts::stop_others();
    let mut out = Words { line: serial::open(), screen: last_screen() };
    words(&mut out);
    if interrupts::nmis() > 0 {
        let _ = writeln!(out, "{} NMIs arrived before: an error of the hardware?", interrupts::nmis());
    }
    for index in 0..CPUS_MAX {
        let Some(ring) = host::trace_of(index).try_lock() else { continue };
        for entry in ring.iter().rev().take(TRACE_LINES) {
            let _ =
                writeln!(out, "cpu {index} {:#x} {}", entry.time_tsc, entry.event.describe(&vcpu::Exit::KIND_NAMES));
        }
    }
    let _ = writeln!(out, "the machine is halted; reset it to start again");
    cpu::halt_forever()
}

/// The screen, for what is said last.
fn last_screen() -> Option<Screen> {
    let mut screen = screen::open()?;
    screen.clear();
    screen.stop_at_end();
    Some(screen)
}

/// Text straight to the serial line and to the screen.
struct Words {
    line: Option<SerialPort>,
    screen: Option<Screen>,
}

impl Write for Words {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // Nothing is allocated here: the heap may be what failed.
        if let Some(screen) = &mut self.screen {
            screen.write(text);
        }
        if let Some(line) = &mut self.line {
            for (index, part) in text.split('\n').enumerate() {
                if index > 0 {
                    line.drain(b"\r\n");
                }
                line.drain(part.as_bytes());
            }
        }
        Ok(())
    }
}
