//! What differs between machines: where the console is, what the processor leaks, and which errors
//! it reports, and what is on the screen.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::guests;
use crate::{Artifacts, COMMAND_LIMIT, Host, Launch, Medium, Serial};

/// The prompt comes on COM2, on a UART on PCI, and on the one that the firmware names.
pub fn serial_lines(artifacts: &Artifacts) -> Result<()> {
    prompt_on(artifacts, "serial_com2", Serial::Com2, None, "COM2, 115200 baud, interrupt")?;
    prompt_on(artifacts, "serial_pci", Serial::Pci, None, ", PCI 00:0")?;
    let table = console_table(0x2f8, 3);
    prompt_on(
        artifacts,
        "serial_spcr",
        Serial::Com2BesideCom1,
        Some(&table),
        "COM2, as the firmware's (SPCR), 57600 baud",
    )
}

fn prompt_on(artifacts: &Artifacts, name: &str, serial: Serial, table: Option<&[u8]>, reported: &str) -> Result<()> {
    let mut launch = artifacts.bare_with(name, &[])?.serial(serial);
    if let Some(table) = table {
        fs::create_dir_all(&artifacts.logs)?;
        let path = artifacts.logs.join(format!("{name}.spcr"));
        fs::write(&path, table).with_context(|| format!("writing {}", path.display()))?;
        launch = launch.argument("-acpitable", format!("sig=SPCR,rev=2,data={}", path.display()));
    }
    let mut host = artifacts.boot(&launch).context(name.to_owned())?;
    let log = host.ask("log")?.to_string();
    ensure!(log.contains(reported), "{name}: the log does not say \"{reported}\": {log}");
    host.power_off()
}

/// An emulator needs no guarded world switch; made to have one, guests run through it as before.
pub fn mitigations(artifacts: &Artifacts) -> Result<()> {
    const GUESTS: [&str; 2] = ["exits", "timer"];
    let modules = GUESTS.map(|name| Ok((artifacts.guest(name)?.to_path_buf(), name.to_owned())));
    let modules: Vec<_> = modules.into_iter().collect::<Result<_>>()?;
    for (name, word, expected) in
        [("mitigations_none", "", "not_affected"), ("mitigations_all", "mitigate-emulated", "mitigated")]
    {
        let launch = Launch::new(name).accel(artifacts.accel).multiboot(&artifacts.kernel32, word, &modules)?;
        let mut host = artifacts.boot(&launch.disk(&artifacts.datastore))?;
        let found = weakness(&mut host, "return_stack")?;
        ensure!(found == expected, "{name}: the return stack is {found}, not {expected}");
        for guest in GUESTS {
            guests::run(&mut host, guest, "", guests::DISK).with_context(|| format!("{name}: test guest `{guest}`"))?;
        }
        host.power_off()?;
    }
    Ok(())
}

/// A corrected error is counted and the host runs on; an uncorrected one in the host ends it with the reason.
pub fn machine_check(artifacts: &Artifacts) -> Result<()> {
    /// VALID, ENABLED, MISC_VALID, ADDRESS_VALID: a read from memory. Then the same with UNCORRECTED and
    /// CONTEXT_CORRUPT. In bank 4 of CPU 0, at an address of RAM.
    const CORRECTED: &str = "mce 0 4 0x9c00000000000090 0x0 0x12345000 0x8c";
    const FATAL: &str = "mce 0 4 0xbe00000000000090 0x5 0x12345000 0x8c";
    let mut host = artifacts.boot(&artifacts.bare_with("machine_check", &[])?)?;
    for count in 1..=2 {
        host.emulator().monitor(CORRECTED)?;
        let report = host.ask("host")?;
        ensure!(report["errors"]["corrected"] == count, "it is not counted: {}", report["errors"]);
    }
    let log = host.ask("log")?.to_string();
    ensure!(log.contains("CPU 0: corrected: memory error in bank 4 at 0x12345000"), "it is not logged: {log}");
    host.emulator().monitor(FATAL)?;
    // From here on its last words are waited for; after these nothing else comes.
    host.emulator().fail_on("the machine is halted");
    let epitaph = "Pollux stopped: machine check: memory error in bank 4 at 0x12345000";
    host.emulator().expect(epitaph, COMMAND_LIMIT).map(|_| ())
}

/// The log is on the screen too: as text after a BIOS, as pixels after UEFI.
pub fn screen(artifacts: &Artifacts) -> Result<()> {
    const TEXT_BYTES: usize = 80 * 25 * 2;
    let file = |name: &str| artifacts.logs.join(name);
    let mut host =
        artifacts.boot(&artifacts.from_stick("screen_bios", Medium::Usb, false).argument("-device", "VGA"))?;
    let path = file("screen_bios.bin");
    host.emulator().monitor(&format!("pmemsave 0xb8000 {TEXT_BYTES} \"{}\"", path.display()))?;
    let cells = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let text: String = cells.iter().step_by(2).map(|&byte| char::from(byte)).collect();
    ensure!(text.contains("Pollux") && text.contains("starts, loaded by GRUB"), "the screen shows: {text}");
    host.power_off()?;

    let mut host =
        artifacts.boot(&artifacts.from_stick("screen_uefi", Medium::Usb, true).argument("-device", "VGA"))?;
    let path = file("screen_uefi.ppm");
    host.emulator().monitor(&format!("screendump \"{}\"", path.display()))?;
    let picture = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    // "P6\nWIDTH HEIGHT\n255\n", then three bytes a pixel.
    let header = picture.splitn(4, |&byte| byte == b'\n').nth(1).map(String::from_utf8_lossy).unwrap_or_default();
    let mut sides = header.split(' ').filter_map(|side| side.parse::<usize>().ok());
    let (width, height) = sides.next().zip(sides.next()).context("the picture has no size")?;
    let pixels = &picture[picture.len().saturating_sub(width * height * 3)..];
    let line_of_text = |row: usize| pixels.chunks(width * 3 * 16).nth(row).unwrap_or_default();
    let lit = |row: usize| line_of_text(row).chunks(3).filter(|pixel| pixel[0] > 0x40).count();
    ensure!(lit(0) > 200, "{width} x {height}: the first line of the screen is empty");
    ensure!(lit(height / 16 - 1) == 0, "{width} x {height}: the last line of the screen is not");
    host.power_off()
}

/// How a weakness stands, as `host` tells.
fn weakness(host: &mut Host, name: &str) -> Result<String> {
    let report = host.ask("host")?;
    let weaknesses = report["speculation"]["weaknesses"].as_array().context("`host` lists no weaknesses")?;
    let found = weaknesses.iter().find(|weakness| weakness["name"] == name).context("it is not listed")?;
    found["status"].as_str().map(str::to_owned).context("it has no status")
}

/// What follows an SPCR's header: a 16550 at an I/O port, 57600 baud (Microsoft, revision 2 of the table).
fn console_table(port: u16, irq: u8) -> Vec<u8> {
    const HEADER_BYTES: usize = 36;
    let mut table = vec![0; 80];
    table[40..44].copy_from_slice(&[1, 8, 0, 1]);
    table[44..46].copy_from_slice(&port.to_le_bytes());
    table[52..54].copy_from_slice(&[1, irq]);
    table[58] = 6;
    table[64..68].fill(0xff);
    table.split_off(HEADER_BYTES)
}
