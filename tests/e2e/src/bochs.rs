//! Machines in Bochs, which emulates Intel's VT-x as well as AMD-V. The main type is [`Bochs`], the emulator where it is
//! installed; [`Pc`] is a machine to be, and [`crate::Emulator`] one that runs.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::emulator::{Emulator, Kind, Line};

/// An interpreter: slower than QEMU by this much at worst.
const PATIENCE: u32 = 3;

/// Where Bochs and the firmware that it runs are.
#[derive(Debug, Clone)]
pub struct Bochs {
    /// The program.
    pub program: PathBuf,
    /// Which one it is: what it understands differs.
    pub release: Release,
    /// The BIOS. It must start all CPUs, which SeaBIOS does not do there.
    pub bios: PathBuf,
    /// The video BIOS.
    pub video_bios: PathBuf,
}

/// Which Bochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Version 3, built without its debugger.
    Three,
    /// Version 2 as Debian packages it: with its debugger, and a terminal for a display.
    Two,
}

/// A processor that Bochs knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// Skylake-X, with everything that VT-x has there.
    Intel,
    /// Haswell, whose VT-x notes writes and keeps no log of them.
    OldIntel,
    /// Ivy Bridge, whose VT-x notes no writes.
    OldestIntel,
    /// Sapphire Rapids, which has the registers that control speculation. The others have none of them.
    NewIntel,
    /// Ryzen.
    Amd,
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::Intel => "corei7_skylake_x",
            Self::OldIntel => "corei7_haswell_4770",
            Self::OldestIntel => "corei7_ivy_bridge_3770k",
            Self::NewIntel => "sapphire_rapids",
            Self::Amd => "ryzen",
        }
    }

    /// The features that it shall not have: random numbers that are this machine's, unless it `has_others` on a network; and
    /// five levels of page tables, since Bochs stops when a guest exits that has them to a host with four.
    fn excluded(self, has_others: bool) -> &'static str {
        match (self, has_others) {
            (Self::NewIntel, _) => ", exclude_features=\"rdrand,rdseed,la57\"",
            (_, false) => ", exclude_features=\"rdrand,rdseed\"",
            (_, true) => "",
        }
    }

    /// What `host` calls the back end that it runs guests by.
    #[must_use]
    pub fn backend(self) -> &'static str {
        match self {
            Self::Intel | Self::OldIntel | Self::OldestIntel | Self::NewIntel => "vmx",
            Self::Amd => "svm",
        }
    }
}

/// A machine that has not been switched on: i440FX, 1 GiB, an image in its CD drive.
#[derive(Debug, Clone)]
pub struct Pc {
    /// Names its log files.
    pub name: String,
    /// The processor.
    pub model: Model,
    /// How many there are.
    pub cpus: u32,
    /// What it boots.
    pub image: PathBuf,
    /// The disk on its first ATA channel, if it has one.
    pub disk: Option<PathBuf>,
    /// What is written to it is still there when the machine is off.
    pub keeps_disk: bool,
    /// Its network card, an 82540EM, if it has one.
    pub card: Option<Card>,
    /// How many instructions make a second there, and the rate of the time stamp counter: nothing else takes time.
    pub instructions_per_second: u64,
}

impl Pc {
    /// A machine without a disk or a card.
    #[must_use]
    pub fn new(name: &str, model: Model, cpus: u32, image: &Path) -> Self {
        let instructions_per_second = Bochs::INSTRUCTIONS_PER_SECOND;
        let (name, image) = (name.to_owned(), image.to_path_buf());
        Self { name, model, cpus, image, disk: None, keeps_disk: false, card: None, instructions_per_second }
    }
}

/// A network card. What it sends leaves Bochs in UDP datagrams, a frame in each.
#[derive(Debug, Clone, Copy)]
pub struct Card {
    /// The last byte of its address, which is the machine's number on its network.
    pub number: u8,
    /// Where Bochs receives, on this machine; it sends to the port after it.
    pub port: u16,
}

impl Bochs {
    /// How many instructions make a second, unless somebody wants another number.
    pub const INSTRUCTIONS_PER_SECOND: u64 = 100_000_000;

    /// Switches the machine on, its logs in `log_directory`: `NAME.log` what the serial line said, `NAME.bochs.log` and
    /// `NAME.devices.log` what Bochs itself said.
    ///
    /// # Errors
    /// If Bochs cannot be started, or a file cannot be created.
    pub fn start(&self, pc: &Pc, log_directory: &Path) -> Result<Emulator> {
        fs::create_dir_all(log_directory).with_context(|| format!("creating {}", log_directory.display()))?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening for the serial line")?;
        let file = |ending: &str| log_directory.join(format!("{}.{ending}", pc.name));
        let (configuration, orders) = (file("bochsrc"), file("bochsdbg"));
        let text = self.configuration(pc, listener.local_addr()?.port(), &file("devices.log"));
        fs::write(&configuration, text).with_context(|| format!("writing {}", configuration.display()))?;
        let mut command = Command::new(&self.program);
        command.args(["-q", "-f"]).arg(&configuration);
        if self.release == Release::Two {
            fs::write(&orders, "c\n").with_context(|| format!("writing {}", orders.display()))?;
            command.arg("-rc").arg(&orders).env("TERM", "vt100");
        }
        Emulator::start(
            command,
            Kind { name: "bochs", patience: PATIENCE },
            Line::Socket(listener),
            &pc.name,
            log_directory,
        )
    }

    /// The configuration file. With `sync=none` time is what has been executed, so that a run does not depend on this
    /// machine's speed; RDRAND would read this machine's random numbers. On a network there are others' clocks, and keys: an idle
    /// machine must not run ahead of one at work.
    fn configuration(&self, pc: &Pc, serial_port: u16, log: &Path) -> String {
        let display = match self.release {
            Release::Three => "display_library: nogui\nspeaker: enabled=0\n",
            // It crashes when it opens a speaker that is not there.
            Release::Two => "display_library: term\nplugin_ctrl: speaker=0\ndebugger_log: /dev/null\n",
        };
        let Self { bios, video_bios, .. } = self;
        let (bios, video_bios, image, log) = (bios.display(), video_bios.display(), pc.image.display(), log.display());
        let mode = if pc.keeps_disk { "flat" } else { "volatile" };
        let disk = pc
            .disk
            .as_ref()
            .map_or(String::new(), |disk| format!("ata0-master: type=disk, path={}, mode={mode}\n", disk.display()));
        let hidden = pc.model.excluded(pc.card.is_some());
        let (clock, card) = match &pc.card {
            None => ("none", String::new()),
            Some(Card { number, port }) => {
                let address = format!("52:54:00:50:4d:{number:02x}");
                ("slowdown", format!("e1000: card=0, enabled=1, mac={address}, ethmod=socket, ethdev={port}\n"))
            }
        };
        format!(
            "config_interface: textconfig\n{display}\
             cpu: model={}, count={}, ips={}, reset_on_triple_fault=0, ignore_bad_msrs=1{hidden}\n\
             memory: guest=1024, host=1024\n\
             romimage: file={bios}, options=fastboot\n\
             vgaromimage: file={video_bios}\n\
             vga: extension=vbe, update_freq=1, realtime=0\n\
             pci: enabled=1, chipset=i440fx\n\
             clock: sync={clock}, time0=1790000000, rtc_sync=0\n\
             mouse: enabled=0\n\
             {disk}{card}ata1-master: type=cdrom, path={image}, status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=socket-client, dev=localhost:{serial_port}\n\
             log: {log}\n\
             panic: action=fatal\nerror: action=report\ninfo: action=report\ndebug: action=ignore\n",
            pc.model.name(),
            pc.cpus,
            pc.instructions_per_second,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_machine() {
        let bochs =
            |release| Bochs { program: "bochs".into(), release, bios: "/bios".into(), video_bios: "/vga".into() };
        let mut pc = Pc::new("t", Model::Amd, 2, Path::new("/image"));
        let text = bochs(Release::Three).configuration(&pc, 1234, Path::new("/log"));
        for line in
            ["model=ryzen, count=2", "file=/bios,", "path=/image,", "dev=localhost:1234\n", "nogui", "log: /log\n"]
        {
            assert!(text.contains(line), "{line:?} is missing in {text}");
        }
        assert!(text.contains("sync=none") && text.contains("rdrand") && !text.contains("e1000"));
        assert!(bochs(Release::Two).configuration(&pc, 1, Path::new("/log")).contains("speaker=0"));
        pc.card = Some(Card { number: 10, port: 4000 });
        let text = bochs(Release::Three).configuration(&pc, 1, Path::new("/log"));
        assert!(text.contains("mac=52:54:00:50:4d:0a, ethmod=socket, ethdev=4000\n") && text.contains("slowdown"));
        assert!(!text.contains("rdrand"), "keys come from there");
    }
}
