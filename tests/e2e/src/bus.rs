//! A hand on a machine's bus from outside: ports and device registers, over QEMU's test protocol (one command a line, "OK"
//! back). The main type is [`Bus`]. A test makes a device do what no driver would.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// For an answer of a machine that may be busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// PCI configuration mechanism 1.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const CONFIG_ENABLE: u32 = 1 << 31;

/// The bus of a machine that was started with [`Bus::argument`].
pub struct Bus {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Bus {
    /// A socket for a machine of this name, and the value of QEMU's `-qtest` for it.
    #[must_use]
    pub fn argument(name: &str) -> (PathBuf, String) {
        let socket = std::env::temp_dir().join(format!("pollux-{}-{name}.qtest", std::process::id()));
        let value = format!("unix:{},server=on,wait=off", socket.display());
        (socket, value)
    }

    /// Joins the machine.
    ///
    /// # Errors
    /// If it does not listen.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let answers = BufReader::new(stream.try_clone()?);
        let _ = std::fs::remove_file(socket);
        Ok(Self { stream, answers })
    }

    /// The bus 0 function with these IDs, as the value that configuration address 0 takes.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(&mut self, vendor: u16, device: u16) -> Result<u32> {
        let wanted = u32::from(device) << 16 | u32::from(vendor);
        for slot in 0..32 {
            let function = CONFIG_ENABLE | slot << 11;
            if self.config_read(function)? == wanted {
                return Ok(function);
            }
        }
        bail!("no device {vendor:04x}:{device:04x} is on bus 0")
    }

    /// Reads a doubleword of configuration space.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub fn config_read(&mut self, address: u32) -> Result<u32> {
        self.ask(&format!("outl {CONFIG_ADDRESS:#x} {address:#x}"))?;
        let answer = self.ask(&format!("inl {CONFIG_DATA:#x}"))?;
        u32::from_str_radix(answer.trim_start_matches("0x"), 16).with_context(|| format!("it said {answer:?}"))
    }

    /// Writes one.
    ///
    /// # Errors
    /// As [`Bus::config_read`].
    pub fn config_write(&mut self, address: u32, value: u32) -> Result<()> {
        self.ask(&format!("outl {CONFIG_ADDRESS:#x} {address:#x}"))?;
        self.ask(&format!("outl {CONFIG_DATA:#x} {value:#x}")).map(drop)
    }

    /// Writes a register of 32 bits.
    ///
    /// # Errors
    /// As [`Bus::config_read`].
    pub fn write32(&mut self, address: u64, value: u32) -> Result<()> {
        self.ask(&format!("writel {address:#x} {value:#x}")).map(drop)
    }

    /// Writes a register of 64 bits.
    ///
    /// # Errors
    /// As [`Bus::config_read`].
    pub fn write64(&mut self, address: u64, value: u64) -> Result<()> {
        self.ask(&format!("writeq {address:#x} {value:#x}")).map(drop)
    }

    /// Reads a register of 64 bits.
    ///
    /// # Errors
    /// As [`Bus::config_read`].
    pub fn read64(&mut self, address: u64) -> Result<u64> {
        let answer = self.ask(&format!("readq {address:#x}"))?;
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).with_context(|| format!("it said {answer:?}"))
    }

    /// Sends a command and gives what comes behind "OK".
    fn ask(&mut self, command: &str) -> Result<String> {
        writeln!(self.stream, "{command}")?;
        let mut line = String::new();
        while self.answers.read_line(&mut line)? > 0 {
            // Interrupts are told of between answers.
            if let Some(answer) = line.strip_prefix("OK") {
                return Ok(answer.trim().to_owned());
            }
            if line.starts_with("FAIL") || line.starts_with("ERR") {
                bail!("`{command}` was answered by {line:?}");
            }
            line.clear();
        }
        bail!("the machine hung up at `{command}`")
    }
}
