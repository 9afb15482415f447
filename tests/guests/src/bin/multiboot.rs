//! Booted by Multiboot with itself as each of its modules: what it was told, and the debug ports, of which the last ends it.
//!
//! The command line's `modules=N` says how many modules there are, of which the last has the text `multiboot last=yes`;
//! `debug=N` that there are debug ports, and with which code to end.
#![no_std]
#![no_main]

use guests::{boot, cpu, guest, println, tap};

const DEBUG_CONSOLE: u16 = 0xe9;
const DEBUG_EXIT: u16 = 0xf4;

guest!(multiboot);

fn multiboot() {
    if !boot::is_multiboot() {
        tap::skip("is told what Multiboot says", "booted by another protocol");
        return;
    }
    tap::check(boot::command_line().starts_with("multiboot"), "the command line begins with the kernel's name");
    let module = boot::modules().next();
    tap::check(module.as_ref().is_some_and(|module| module.name.starts_with("multiboot")), "the module has its name");
    tap::check(module.is_some_and(|module| module.bytes.starts_with(b"\x7fELF")), "the module has its content");
    let (free, bytes) = boot::free_memory();
    println!("# free memory {free:#x} {bytes:#x}");
    tap::check(bytes > 1 << 20, "the memory map has the kernel's memory");
    tap::check(boot::memory().any(|(start, bytes)| start == 0 && bytes == 0xa_0000), "conventional memory is there");
    if let Some(count) = boot::number("modules") {
        let is_page = |module: &boot::Module| module.bytes.as_ptr() as u64 % 4096 == 0;
        tap::check(boot::modules().count() as u64 == count, "all modules are there");
        tap::check(boot::modules().all(|module| is_page(&module)), "each begins on a page");
        let starts = || boot::modules().map(|module| module.bytes.as_ptr_range());
        tap::check(starts().zip(starts().skip(1)).all(|(one, next)| one.end <= next.start), "they lie apart");
        let same = |module: boot::Module| boot::modules().all(|other| other.bytes == module.bytes);
        tap::check(boot::modules().next().is_some_and(same), "each has its content");
        tap::check(boot::modules().last().is_some_and(|last| last.name.ends_with(" last=yes")), "each has its text");
    }
    if let Some(code) = boot::number("debug") {
        tap::check(cpu::in8(DEBUG_CONSOLE) == 0xe9, "the debug console answers");
        b"# by the debug console\n".iter().for_each(|&byte| cpu::out8(DEBUG_CONSOLE, byte));
        cpu::out8(DEBUG_EXIT, code as u8);
        tap::check(false, "the debug exit ends the machine");
    }
}
