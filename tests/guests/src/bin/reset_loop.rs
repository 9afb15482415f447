//! Resets, each time it boots: by port 0xCF9, or with `8042` on the command line by the keyboard controller.
#![no_std]
#![no_main]

use guests::{boot, guest, power, println};

guest!(reset);

fn reset() {
    println!("resetting");
    if boot::command_line().split_ascii_whitespace().any(|word| word == "8042") {
        power::reset_by_keyboard_controller()
    }
    power::reset()
}
