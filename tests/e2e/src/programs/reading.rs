//! A VM is saved or is not, whatever fails; one that is restored runs before all of its memory is read. What cannot be read
//! stops it, is tried again, and costs nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::migrate::{check_after, modules};
use super::saved::{PARTITION_AT, flip, make_disk};
use crate::{Artifacts, COMMAND_LIMIT, GUEST_BOOT_LIMIT, Host, Launch};

/// The guest, which checks all of its memory again and again.
const DEFINITION: &str = "--kernel memory_hash --cmdline \"mib=4 rounds=0 every=10\" --memory 64M";
const SECTOR_BYTES: u64 = 512;
const PAGE_BYTES: u64 = 4096;
/// Where a saved image says how many bytes it has before the stream that is behind its pages.
const STREAM_AT: u64 = 16;
/// The guest tells of every so many rounds.
const EVERY: u64 = 10;
/// How often the disk fails.
const FAILURES: u32 = 2;
/// The flushes that fail: a save's third, which makes the image one, and the first of a restore that follows a save that
/// follows that, which makes it void.
const FAILING: [u32; 2] = [3, 8];

/// The last page that was saved cannot be read, then it is damaged.
pub fn reading(artifacts: &Artifacts) -> Result<()> {
    let disk = make_disk(&artifacts.logs, "restore_reading")?;
    let mut host = artifacts.boot(&launch(artifacts, "save")?.disk_failing_to_flush(&disk, &FAILING))?;
    host.ask(&format!("vm create g {DEFINITION} --start"))?;
    let mut console = host.attach("g")?;
    console.expect(&format!("HASH {EVERY} "), GUEST_BOOT_LIMIT)?;
    console.leave()?;
    image_fails(&mut host, &disk).context("the image's header cannot be made durable")?;
    let last_page = save(&mut host, &disk)?;
    host.power_off()?;
    let failing = launch(artifacts, "restore")?.failing_disk(&disk, last_page / SECTOR_BYTES, FAILURES);
    let mut host = artifacts.boot(&failing)?;
    host.ask(&format!("vm create g {DEFINITION}"))?;
    disk_fails(&mut host).context("the disk fails")?;
    page_is_damaged(&mut host, &disk).context("a page is damaged")?;
    killed(&mut host, &disk).context("it is killed")?;
    host.power_off()
}

/// A save that fails leaves a VM and no image, a restore that fails an image and no VM.
fn image_fails(host: &mut Host, disk: &Path) -> Result<()> {
    let refusal = host.refusal("vm save g --to slot")?;
    ensure!(refusal.contains("disk slot failed"), "{refusal}");
    ensure!(host.state("g")?.as_deref() == Some("running"), "it does not go on");
    ensure!(!has_image(disk)?, "it runs, and is on the disk as well");
    host.ask("vm save g --to slot")?;
    ensure!(has_image(disk)?, "it is saved, and not on the disk");
    let refusal = host.refusal("vm restore g --from slot")?;
    ensure!(refusal.contains("disk slot failed"), "{refusal}");
    ensure!(host.state("g")?.as_deref() == Some("saved") && has_image(disk)?, "it is lost");
    host.ask("vm restore g --from slot")?;
    check_after(host, 20 * EVERY).map(drop)
}

/// It stands, and takes only orders that need no memory, until the disk reads again.
fn disk_fails(host: &mut Host) -> Result<()> {
    host.ask("vm restore g --from slot")?;
    for _ in 1..FAILURES {
        stands(host, "disk slot failed")?;
        host.ask("vm resume g")?;
    }
    stands(host, "disk slot failed")?;
    host.ask(&format!("peer add b 10.9.0.2 {}", "22".repeat(32)))?;
    for order in ["vm save g --to other", "vm migrate g to b"] {
        let refusal = host.refusal(order)?;
        ensure!(refusal.contains("still on its way here"), "`{order}`: {refusal}");
    }
    let refusal = host.refusal("vm add g --disk other")?;
    ensure!(refusal.contains("is being"), "{refusal}");
    goes_on(host)
}

/// What was saved is read again when it is right again.
fn page_is_damaged(host: &mut Host, disk: &Path) -> Result<()> {
    let page = save(host, disk)?;
    flip(disk, page + 100)?;
    host.ask("vm restore g --from slot")?;
    stands(host, "does not match its checksum")?;
    host.ask("vm resume g")?;
    stands(host, "does not match its checksum")?;
    flip(disk, page + 100)?;
    goes_on(host)
}

/// Its life can end meanwhile, and then there is nothing left to restore.
fn killed(host: &mut Host, disk: &Path) -> Result<()> {
    let page = save(host, disk)?;
    flip(disk, page + 100)?;
    host.ask("vm restore g --from slot")?;
    stands(host, "does not match its checksum")?;
    host.ask("vm kill g")?;
    let refusal = host.refusal("vm restore g --from slot")?;
    ensure!(refusal.contains("no saved VM is there"), "{refusal}");
    Ok(())
}

/// It is let go on, and finds all of its memory as it was.
fn goes_on(host: &mut Host) -> Result<()> {
    let console = host.attach("g")?;
    // What has been kept is printed before anything is typed.
    std::thread::sleep(Duration::from_secs(1));
    console.leave()?;
    let text = host.emulator().transcript();
    let told = text.rsplit("HASH ").find_map(|line| line.split_once(' ')?.0.parse::<u64>().ok());
    let told = told.context("it told of no round")?;
    host.ask("vm resume g")?;
    check_after(host, told + 2 * EVERY).map(drop)
}

/// Saves the guest once all of its memory is here; gives where its last page is.
fn save(host: &mut Host, disk: &Path) -> Result<u64> {
    let until = host.emulator().elapsed() + COMMAND_LIMIT;
    loop {
        let answer = host.command("vm save g --to slot --json")?;
        if !answer.contains("still on its way here") {
            ensure!(!answer.contains("error"), host.emulator().failure(&answer));
            break;
        }
        ensure!(host.emulator().elapsed() < until, host.emulator().failure("its memory does not come"));
    }
    last_page(disk)
}

/// It waits, and says for what.
fn stands(host: &mut Host, why: &str) -> Result<()> {
    host.wait_state("g", "paused", COMMAND_LIMIT)?;
    let log = host.command("log")?;
    let said = log.lines().rfind(|line| line.contains("g waits")).unwrap_or_default();
    ensure!(said.contains(why) && said.contains("vm resume g"), "it says {said:?}");
    Ok(())
}

fn launch(artifacts: &Artifacts, name: &str) -> Result<Launch> {
    let launch = Launch::new(&format!("restore_reading-{name}")).accel(artifacts.accel).memory_mib(512);
    launch.multiboot(&artifacts.kernel32, "", &modules(artifacts)?)
}

/// Whether the partition begins with something.
fn has_image(disk: &Path) -> Result<bool> {
    let mut bytes = [0; PAGE_BYTES as usize];
    File::open(disk)?.read_exact_at(&mut bytes, PARTITION_AT)?;
    Ok(bytes.iter().any(|&byte| byte != 0))
}

/// Where the last of the pages is that were saved.
fn last_page(disk: &Path) -> Result<u64> {
    let mut bytes = [0; 8];
    File::open(disk)?.read_exact_at(&mut bytes, PARTITION_AT + STREAM_AT)?;
    Ok(PARTITION_AT + u64::from_le_bytes(bytes) - PAGE_BYTES)
}
