//! Says hello and powers off.
#![no_std]
#![no_main]

use guests::{boot, guest, println, tap};

guest!(hello);

fn hello() {
    println!("hello from a guest: {}", boot::command_line());
    boot::memory().for_each(|(start, bytes)| println!("# memory {start:#x} {bytes:#x}"));
    tap::check(true, "boots, prints and powers off");
}
