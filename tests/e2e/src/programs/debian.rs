//! Debian moves to and fro under a client, while it writes its file system and its memory: the client misses nothing, and
//! nothing that was written is lost. The main function is [`under_traffic`]; the [`Stage`] is `traffic`'s.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use super::smoke::SHUTDOWN_LIMIT;
use super::tiny;
use super::traffic::{ADDRESS, PORT, Stage, check_answers};
use crate::{Artifacts, COMMAND_LIMIT, DEBIAN_DISK, DEBIAN_INITRD, DEBIAN_PASSWORD, Host, LINUX};

/// How often it moves, unless the environment says otherwise.
const MOVES: usize = 6;
const MOVES_VARIABLE: &str = "POLLUX_MOVES";
const MEMORY_MIB: u64 = 256;
/// How much of it is looked at and written again and again.
const PATTERN_MIB: u64 = 16;
/// Where the root file system is on the disk.
const PARTITION_AT: u64 = 1 << 20;
/// What runs in the guest, from here.
const PROGRAMS: [&str; 3] = ["serve", "files", "pattern"];
const FOLDER: &str = "/usr/local/bin";
/// What the guest answered is in this file.
const ANSWERS: &str = "/root/answers";
/// Tells the programs to end, and gives what they say then.
const END: &str = "kill $P $F; for i in $(seq 120); do \
    test $(grep -l -e ' ok ' -e FAILED /run/files /run/pattern | wc -l) = 2 && break; sleep 1; done; \
    grep -h -v ready /run/files /run/pattern";

/// Moves it under everything.
pub fn under_traffic(artifacts: &Artifacts) -> Result<()> {
    let moves = std::env::var(MOVES_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(MOVES);
    let disk = make_disk(artifacts, "migrate_traffic")?;
    let guest =
        vec![(artifacts.linux.clone(), LINUX.to_owned()), (artifacts.debian_initrd.clone(), DEBIAN_INITRD.to_owned())];
    let mut stage = Stage::set(artifacts, "migrate_traffic", &disk, guest, start)?;
    for round in 0..moves {
        stage.move_once(round % 2).with_context(|| format!("move {}", round + 1))?;
    }
    end(stage, moves % 2, &disk)?;
    fs::remove_file(&disk).context("removing the disk")
}

/// Ends client, programs and guest, and looks whether all is well: what they checked, and what is on the disk.
fn end(stage: Stage<'_>, here: usize, disk: &Path) -> Result<()> {
    let Stage { mut pair, mut client, .. } = stage;
    let answered = client.wait(1)?.answered;
    client.finish()?;
    let host = &mut pair.hosts[here];
    let said = tiny::run(host, 1, END)?.replace(['\r', '\n'], " ");
    eprintln!("        {answered} answers; {said}");
    ensure!(said.contains("FILES ok ") && said.contains("PATTERN ok "), "the guest's own checks: {said}");
    host.ask("vm stop t")?;
    host.wait_state("t", "stopped", SHUTDOWN_LIMIT)?;
    check_file_system(disk)?;
    check_answered(disk, answered)
}

/// Boots it, and starts what runs in it.
fn start(host: &mut Host) -> Result<()> {
    host.ask(&format!(
        "vm create t --kernel {LINUX} --initrd {DEBIAN_INITRD} --cmdline \"root=/dev/vda rw console=ttyS0 \
         net.ifnames=0 quiet\" --memory {MEMORY_MIB}M --vcpus 2 --disk {DEBIAN_DISK} --nic --start"
    ))?;
    let mut console = host.attach("t")?;
    console.login("root", DEBIAN_PASSWORD)?;
    console.run("systemctl stop systemd-networkd.socket systemd-networkd.service")?;
    console.run(&format!("ip link set eth0 up && ip address add {ADDRESS}/24 dev eth0"))?;
    console.run(&format!("mkdir /root/files && : > {ANSWERS}"))?;
    console.send(&format!("files /root/files > /run/files & F=$!; pattern {PATTERN_MIB} > /run/pattern & P=$!\r"))?;
    console.send(&format!("serve {PORT} {ANSWERS} &\r"))?;
    console.expect("SERVE ready", COMMAND_LIMIT)?;
    console.leave()
}

/// A copy of the datastore, with the programs on Debian's file system.
fn make_disk(artifacts: &Artifacts, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(&artifacts.logs)?;
    let disk = artifacts.logs.join(format!("{name}.img"));
    output(Command::new("cp").arg("--sparse=always").arg(&artifacts.datastore).arg(&disk))?;
    for program in PROGRAMS {
        let (file, path) = (artifacts.debian_programs.join(program), format!("{FOLDER}/{program}"));
        debugfs(&disk, &format!("write {} {path}", file.display()))?;
        debugfs(&disk, &format!("set_inode_field {path} mode 0100755"))?;
    }
    Ok(disk)
}

/// Nothing is wrong with the file system, which nobody uses.
fn check_file_system(disk: &Path) -> Result<()> {
    output(Command::new("e2fsck").arg("-fn").arg(partition(disk))).context("the guest's file system").map(drop)
}

/// What was answered is in the file.
fn check_answered(disk: &Path, answered: u64) -> Result<()> {
    let copy = disk.with_extension("answers");
    debugfs(disk, &format!("dump {ANSWERS} {}", copy.display()))?;
    check_answers(&copy, 0, answered)?;
    fs::remove_file(&copy).context("removing the copy of the answers")
}

/// Carries out one of debugfs's commands, which says what is wrong beside its own name and with status 0.
fn debugfs(disk: &Path, command: &str) -> Result<()> {
    let output = output(Command::new("debugfs").args(["-w", "-R", command]).arg(partition(disk)))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.lines().all(|line| line.starts_with("debugfs ")), "debugfs: {command}: {said}");
    Ok(())
}

/// Debian's file system, as e2fsprogs call a part of a file.
fn partition(disk: &Path) -> String {
    format!("{}?offset={PARTITION_AT}", disk.display())
}

fn output(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("starting {}", command.get_program().display()))?;
    let said = [&output.stdout[..], &output.stderr].concat();
    ensure!(output.status.success(), "{}: {}", command.get_program().display(), String::from_utf8_lossy(&said));
    Ok(output)
}
