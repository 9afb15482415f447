//! The screen that the boot loader left, where the log is shown beside the serial line, or where there is none.

use boot::{BootInfo, ScreenKind};
use drivers::screen::{Kind, Layout, Screen};
use memory::Dma;
use spin::Once;

static SCREEN: Once<Screen> = Once::new();

/// Takes the screen over, blank. Called once, before other processors start.
pub fn init(boot: &BootInfo) {
    let Some(found) = boot.screen else { return };
    let kind = match found.kind {
        ScreenKind::Text => Kind::Text,
        ScreenKind::Pixels => Kind::Pixels,
    };
    let boot::Screen { address, pitch_bytes, width, height, .. } = found;
    match Screen::new::<Dma>(Layout { address, pitch_bytes, width, height, kind }) {
        Some(mut screen) => {
            screen.clear();
            let what = if kind == Kind::Text { "cells of text" } else { "pixels" };
            log::info!("screen: {width} x {height} {what}");
            SCREEN.call_once(|| screen);
        }
        None => log::warn!("the screen that the boot loader left cannot be used: {found:?}"),
    }
}

/// The screen, its writing at the top.
pub fn open() -> Option<Screen> {
    SCREEN.get().copied()
}
