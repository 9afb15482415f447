//! From a reply to what the operator sees.

use alloc::{format, string::String, vec::Vec};

use crate::{
    Backend, BalloonInfo, CommandHelp, Device, DeviceStatus, DiskInfo, DiskState, ExitStat, HardwareErrors, Help,
    HostReport, LimitsInfo, LoadOrder, LogLine, Measured, ModuleInfo, NotedBy, PortInfo, PortLink, Reply, Speculation,
    TraceLine, VmDetail, VmStat, VmState, VmSummary, WeaknessStatus, Writes,
    moves::{render_moves, render_peers},
    profiles::{render_profile, render_profiles},
    table::{
        Side::{Left, Right},
        Table,
    },
    units::{bytes, count, duration, hertz, moment},
    words::listed,
};

/// The reply as text, each line with its end (`\n`): for people, or where `json` is asked for, one object on one line,
/// whose only key is the reply's kind. Neither contains control characters other than the line ends.
pub fn render(reply: &Reply, json: bool) -> String {
    if json {
        return render_json(reply);
    }
    let text = match reply {
        Reply::Help(help) => render_help(help),
        Reply::Host(report) => render_host(report),
        Reply::Vms(vms) => render_vms(vms),
        Reply::Vm(vm) => render_vm(vm),
        Reply::Disks(disks) => render_disks(disks),
        Reply::Writes(writes) => render_writes(writes),
        Reply::Measured(measured) => render_measured(measured),
        Reply::Ports(ports) => render_ports(ports),
        Reply::Log(lines) => lines.iter().map(log_line).collect(),
        Reply::Trace(lines) => render_trace(lines),
        Reply::Stat(vms) => render_stats(vms),
        Reply::Modules(modules) => render_modules(modules),
        Reply::Moves(moves) => render_moves(moves),
        Reply::Peers(peers) => render_peers(peers),
        Reply::CpuProfiles(profiles) => render_profiles(profiles),
        Reply::CpuProfile(profile) => render_profile(profile),
        Reply::Done(done) => format!("{}\n", done.message),
        Reply::Error(error) => match &error.remedy {
            Some(remedy) => format!("error: {}: {remedy}\n", error.message),
            None => format!("error: {}\n", error.message),
        },
    };
    text.replace(|char: char| char.is_control() && char != '\n', "?")
}

/// Appends text to what goes to a terminal, which wants a carriage return with every line feed.
pub fn to_terminal(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        if byte == b'\n' {
            out.push(b'\r');
        }
        out.push(byte);
    }
}

fn render_json(reply: &Reply) -> String {
    let json = serde_json::to_string(reply).expect("a reply has only text for keys");
    let mut line = String::with_capacity(json.len() + 1);
    for char in json.chars() {
        // JSON lets DEL and the C1 controls stand for themselves, and some terminals obey them.
        if char.is_control() {
            line.push_str(&format!("\\u{:04x}", u32::from(char)));
        } else {
            line.push(char);
        }
    }
    line.push('\n');
    line
}

fn render_help(help: &Help) -> String {
    if let [command] = help.commands.as_slice() {
        return render_command_help(command);
    }
    let mut table = Table::plain([Left, Left]);
    for command in &help.commands {
        table.row([command.usage.clone(), command.summary.clone()]);
    }
    table.render()
        + "\n`help COMMAND` explains one, with examples. Every command takes --json.\n\
           Tab completes; the arrows go back and edit.\n"
}

fn render_command_help(command: &CommandHelp) -> String {
    let mut text = format!("{}\n  {}\n", command.usage, command.summary);
    if !command.details.is_empty() {
        text += &wrap(&command.details, 78);
    }
    let mut options = Table::plain([Left, Left]).indented(2);
    for option in &command.options {
        options.row([option.usage.clone(), option.summary.clone()]);
    }
    text += &format!("options\n{}examples\n", options.render());
    for example in &command.examples {
        text += &format!("  {example}\n");
    }
    text
}

/// A text in lines of at most `columns`, indented by two.
fn wrap(text: &str, columns: usize) -> String {
    let mut lines = String::new();
    let mut line = String::from(" ");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > columns && line.len() > 1 {
            lines += &(core::mem::replace(&mut line, " ".into()) + "\n");
        }
        line = line + " " + word;
    }
    lines + &line + "\n"
}

fn render_host(report: &HostReport) -> String {
    let mut facts = Table::plain([Left, Left]);
    let backend = match &report.backend {
        Backend::Svm => "AMD-V (SVM), ready".into(),
        Backend::Vmx => "Intel VT-x (VMX), ready".into(),
        Backend::None { reason } => format!("not supported: {reason}"),
    };
    let memory = report.memory;
    let address = report.management_address.clone().unwrap_or_else(|| "no address yet".into());
    facts.row(["host".into(), report.name.clone()]);
    facts.row(["version".into(), format!("Pollux {}", report.version)]);
    facts.row(["up".into(), duration(report.uptime_ns)]);
    facts.row(["processor".into(), format!("{}, TSC {}", report.cpu_model, hertz(report.tsc_hz))]);
    facts.row(["CPUs".into(), format!("{}, {} % idle", count(report.cpus.into()), idle_percent(report))]);
    facts.row(["guests".into(), backend]);
    facts.row(["key".into(), report.key.clone()]);
    facts.row([
        "memory".into(),
        format!(
            "{}: {} free{}, {} Pollux, {} guests",
            bytes(memory.total_bytes),
            bytes(memory.free_bytes),
            if memory.promised_bytes > 0 {
                format!(" ({} of it kept for VMs)", bytes(memory.promised_bytes))
            } else {
                String::new()
            },
            bytes(memory.own_bytes),
            bytes(memory.guests_bytes)
        ),
    ]);
    let stopped = if report.dma.stopped == 0 {
        String::new()
    } else {
        format!(", {} accesses stopped", count(report.dma.stopped))
    };
    facts.row(["DMA".into(), format!("{}{stopped}", report.dma.description)]);
    facts.row(["management".into(), address]);
    let mut text = facts.render();
    let mut features = Table::plain([Left, Left]).indented(2);
    for feature in &report.features {
        features.row([feature.name.clone(), if feature.present { "ready" } else { "not supported" }.into()]);
    }
    text += &format!("features\n{}", features.render());
    text += &render_errors(&report.errors);
    text += &render_speculation(&report.speculation);
    text + &render_devices("disks", &report.disks) + &render_devices("NICs", &report.nics)
}

/// How much of all CPUs' time since the start they slept.
fn idle_percent(report: &HostReport) -> u64 {
    let idle_ns: u64 = report.idle.iter().map(|cpu| cpu.idle_ns).sum();
    let all_ns = u128::from(report.uptime_ns) * report.idle.len() as u128;
    (u128::from(idle_ns) * 100 / all_ns.max(1)) as u64
}

/// What went wrong in the hardware, if anything did.
fn render_errors(errors: &HardwareErrors) -> String {
    let HardwareErrors { corrected, deferred, uncorrected, thermal, nmis } = *errors;
    if *errors == HardwareErrors::default() {
        return String::new();
    }
    let counts = [
        ("corrected", corrected),
        ("uncorrected, not used", deferred),
        ("uncorrected", uncorrected),
        ("too hot", thermal),
        ("NMIs", nmis),
    ];
    let mut table = Table::plain([Left, Right]).indented(2);
    counts.iter().for_each(|(name, number)| table.row([(*name).into(), count(*number)]));
    format!("hardware errors\n{}", table.render())
}

/// The weaknesses that this processor has; those that it has not are not worth a line.
fn render_speculation(speculation: &Speculation) -> String {
    let mut table = Table::plain([Left, Left]).indented(2);
    for weakness in &speculation.weaknesses {
        let status = match &weakness.status {
            WeaknessStatus::NotAffected => continue,
            WeaknessStatus::Mitigated { by } => format!("mitigated: {by}"),
            WeaknessStatus::Exposed { reason } => format!("EXPOSED: {reason}"),
        };
        table.row([weakness.name.clone(), status]);
    }
    let rows = table.render();
    let rows = if rows.is_empty() { "  not affected by any weakness known\n".into() } else { rows };
    let threads = if speculation.threads { "on" } else { "off" };
    let control = speculation.control.map_or(String::new(), |value| format!(", SPEC_CTRL {value:#x}"));
    format!("speculation (microcode {:#x}, hyper-threading {threads}{control})\n{rows}", speculation.microcode)
}

fn render_devices(heading: &str, devices: &[Device]) -> String {
    if devices.is_empty() {
        return format!("{heading}\n  none\n");
    }
    let mut table = Table::plain([Left, Left, Left]).indented(2);
    for device in devices {
        let status = match &device.status {
            DeviceStatus::Ready => "ready".into(),
            DeviceStatus::Failed => "failed".into(),
            DeviceStatus::NotSupported { reason } => format!("not supported: {reason}"),
        };
        table.row([device.name.clone(), device.description.clone(), status]);
    }
    format!("{heading}\n{}", table.render())
}

fn state(state: &VmState) -> String {
    match state {
        VmState::Exited { code } => format!("{} with {code}", state.name()),
        VmState::Crashed { reason } => format!("{}: {reason}", state.name()),
        VmState::Given { to } => format!("given to {to}, which has not answered"),
        VmState::Serving { to } => format!("moved to {to}, serving pages"),
        VmState::Created
        | VmState::Running
        | VmState::Paused
        | VmState::Waiting
        | VmState::Arriving
        | VmState::Stopped
        | VmState::Saved => state.name().into(),
    }
}

fn render_vms(vms: &[VmSummary]) -> String {
    if vms.is_empty() {
        return "no VMs: `help vm create` shows how to make one\n".into();
    }
    let mut table = Table::new([
        ("NAME", Left),
        ("VCPUS", Right),
        ("MEMORY", Right),
        ("HELD", Right),
        ("UP", Right),
        ("STATE", Left),
    ]);
    for vm in vms {
        let up = if vm.uptime_ns == 0 { "-".into() } else { duration(vm.uptime_ns) };
        let held = if vm.held_bytes == 0 { "-".into() } else { bytes(vm.held_bytes) };
        let (vcpus, memory) = (count(vm.vcpus.into()), bytes(vm.memory_bytes));
        table.row([vm.name.as_str().into(), vcpus, memory, held, up, state(&vm.state)]);
    }
    table.render()
}

fn render_vm(vm: &VmDetail) -> String {
    let nics: Vec<String> = vm.nics.iter().map(|mac| format!("{mac}")).collect();
    let or_none = |text: String| if text.is_empty() { "none".into() } else { text };
    let mut facts = Table::plain([Left, Left]);
    facts.row(["name".into(), vm.summary.name.as_str().into()]);
    facts.row(["state".into(), state(&vm.summary.state)]);
    facts.row(["up".into(), duration(vm.summary.uptime_ns)]);
    facts.row(["vCPUs".into(), count(vm.summary.vcpus.into())]);
    let (all, held) = (bytes(vm.summary.memory_bytes), bytes(vm.summary.held_bytes));
    facts.row(["memory".into(), format!("{all}, {held} held, {} reserved", bytes(vm.reserved_bytes))]);
    if let Some(balloon) = &vm.balloon {
        facts.row(["balloon".into(), render_balloon(balloon)]);
    }
    facts.row(["kernel".into(), vm.kernel.clone().unwrap_or_else(|| "none: it boots by UEFI".into())]);
    facts.row(["initrd".into(), vm.initrd.clone().unwrap_or_else(|| "none".into())]);
    vm.modules.iter().for_each(|module| facts.row(["module".into(), module.clone()]));
    facts.row(["command line".into(), or_none(vm.command_line.clone())]);
    facts.row(["limits".into(), or_none(render_limits(&vm.limits))]);
    facts.row(["disks".into(), or_none(vm.disks.join(", "))]);
    if let Some(cdrom) = &vm.cdrom {
        facts.row(["CD".into(), cdrom.clone()]);
    }
    facts.row(["NICs".into(), or_none(nics.join(", "))]);
    if !vm.cpus.is_empty() {
        let cpus: Vec<String> = vm.cpus.iter().map(|cpu| format!("{cpu}")).collect();
        facts.row(["on CPUs".into(), cpus.join(", ")]);
    }
    if let Some(profile) = &vm.cpu_profile {
        facts.row(["CPU profile".into(), profile.as_str().into()]);
    }
    if let Some(variables) = &vm.variables {
        facts.row(["variables".into(), variables.clone()]);
    }
    facts.row(["exits".into(), count(vm.exits)]);
    facts.row(["CPU time".into(), duration(vm.cpu_time_ns)]);
    facts.render()
}

fn render_limits(limits: &LimitsInfo) -> String {
    let LimitsInfo { cpu_percent, iops, disk_bytes_per_s, net_bytes_per_s, receive_bytes_per_s } = *limits;
    let said = [
        cpu_percent.map(|percent| format!("{percent} % of a CPU")),
        iops.map(|number| format!("{} disk requests/s", count(number.into()))),
        disk_bytes_per_s.map(|rate| format!("disks {}/s", bytes(rate))),
        net_bytes_per_s.map(|rate| format!("NICs {}/s", bytes(rate))),
        receive_bytes_per_s.map(|rate| format!("receiving {}/s", bytes(rate))),
    ];
    said.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn render_balloon(balloon: &BalloonInfo) -> String {
    let BalloonInfo { driver, target_bytes, keeps_bytes, unused_bytes, available_bytes } = *balloon;
    if !driver {
        return "the guest has no driver for it".into();
    }
    let said =
        |number: Option<u64>, what: &str| number.map_or(String::new(), |number| format!(", {} {what}", bytes(number)));
    let (unused, available) = (said(unused_bytes, "unused"), said(available_bytes, "available"));
    format!("keeps {} of {} wanted{unused}{available}", bytes(keeps_bytes), bytes(target_bytes))
}

fn render_disks(disks: &[DiskInfo]) -> String {
    if disks.is_empty() {
        return "no virtual disks: each partition of a disk with a GPT is one\n".into();
    }
    let mut table = Table::new([
        ("NAME", Left),
        ("SIZE", Right),
        ("ON", Left),
        ("ACCESS", Left),
        ("USED BY", Left),
        ("STATE", Left),
    ]);
    for disk in disks {
        let used_by: Vec<&str> = disk.used_by.iter().map(|name| name.as_str()).collect();
        table.row([
            disk.name.clone(),
            bytes(disk.bytes),
            format!("{} partition {}", disk.disk, disk.partition),
            if disk.read_only { "read only" } else { "read and write" }.into(),
            if disk.used_by.is_empty() { "-".into() } else { listed(&used_by) },
            match disk.state {
                DiskState::Ready => "ready".into(),
                DiskState::Recovering => "recovering".into(),
                DiskState::Failed => "failed".into(),
            },
        ]);
    }
    table.render()
}

fn render_ports(ports: &[PortInfo]) -> String {
    let mut table = Table::new([
        ("PORT", Left),
        ("ADDRESS", Left),
        ("LINK", Left),
        ("IN", Right),
        ("BYTES", Right),
        ("OUT", Right),
        ("BYTES", Right),
        ("DROPS", Right),
    ]);
    for port in ports {
        table.row([
            port.name.clone(),
            port.mac.map_or_else(|| "-".into(), |mac| format!("{mac}")),
            link(port),
            count(port.frames_in),
            bytes(port.bytes_in),
            count(port.frames_out),
            bytes(port.bytes_out),
            count(port.drops),
        ]);
    }
    ports.iter().filter_map(card_line).fold(table.render(), |text, line| text + &line)
}

fn link(port: &PortInfo) -> String {
    match (port.link, port.speed_mbps) {
        (PortLink::Up, Some(mbps)) => format!("up, {mbps} Mbit/s"),
        (PortLink::Up, None) => "up".into(),
        (PortLink::Down, _) => "down".into(),
        (PortLink::Failed, _) => "failed".into(),
    }
}

/// What the card behind a port counted.
fn card_line(port: &PortInfo) -> Option<String> {
    let card = port.card.as_ref()?;
    let counters = card.counters.as_ref()?;
    Some(format!(
        "{}: {}: {} received, {} sent, {} missed, {} with CRC errors, {} with others\n",
        port.name,
        card.name,
        count(counters.received),
        count(counters.transmitted),
        count(counters.missed),
        count(counters.crc_errors),
        count(counters.other_errors),
    ))
}

fn log_line(line: &LogLine) -> String {
    format!("[{:>12}] {:5} {}\n", moment(line.time_ns), line.level, line.message)
}

fn render_trace(lines: &[TraceLine]) -> String {
    let mut table = Table::new([("TIME", Right), ("CPU", Right), ("VM", Left), ("EVENT", Left)]);
    for line in lines {
        let vm = line.vm.as_ref().map_or_else(|| "-".into(), |name| name.as_str().into());
        table.row([moment(line.time_ns), count(line.cpu.into()), vm, line.event.clone()]);
    }
    table.render()
}

fn render_stats(vms: &[VmStat]) -> String {
    if vms.is_empty() {
        return "no VMs\n".into();
    }
    vms.iter().map(render_stat).collect::<Vec<_>>().join("\n")
}

fn render_stat(vm: &VmStat) -> String {
    let mut text = format!("{}: {} on CPUs, {} waiting\n", vm.name, duration(vm.cpu_time_ns), duration(vm.steal_ns));
    text += &render_exits(&vm.exits);
    if !vm.disks.is_empty() {
        let mut table = Table::new([
            ("DISK", Left),
            ("READS", Right),
            ("READ", Right),
            ("WRITES", Right),
            ("WRITTEN", Right),
            ("FLUSHES", Right),
            ("ERRORS", Right),
        ])
        .indented(2);
        for disk in &vm.disks {
            table.row([
                disk.name.clone(),
                count(disk.reads),
                bytes(disk.read_bytes),
                count(disk.writes),
                bytes(disk.written_bytes),
                count(disk.flushes),
                count(disk.errors),
            ]);
        }
        text += &table.render();
    }
    if !vm.nics.is_empty() {
        let mut table = Table::new([
            ("NIC", Left),
            ("IN", Right),
            ("BYTES", Right),
            ("OUT", Right),
            ("BYTES", Right),
            ("DROPS", Right),
        ])
        .indented(2);
        for nic in &vm.nics {
            table.row([
                format!("{}", nic.mac),
                count(nic.frames_in),
                bytes(nic.bytes_in),
                count(nic.frames_out),
                bytes(nic.bytes_out),
                count(nic.drops),
            ]);
        }
        text += &table.render();
    }
    text
}

/// The exits that happened, the costliest first.
fn render_exits(exits: &[ExitStat]) -> String {
    let mut exits: Vec<&ExitStat> = exits.iter().filter(|exit| exit.count > 0).collect();
    exits.sort_by_key(|exit| core::cmp::Reverse((exit.time_ns, exit.count)));
    let sum = |part: fn(&ExitStat) -> u64| exits.iter().fold(0_u64, |sum, exit| sum.saturating_add(part(exit)));
    let (total, total_ns) = (sum(|exit| exit.count), sum(|exit| exit.time_ns));
    let mut table = Table::new([("EXITS", Left), ("COUNT", Right), ("TIME", Right), ("EACH", Right)]).indented(2);
    for exit in exits {
        let each = exit.time_ns / exit.count.max(1);
        table.row([exit.reason.clone(), count(exit.count), duration(exit.time_ns), duration(each)]);
    }
    table.row(["total".into(), count(total), duration(total_ns), duration(total_ns / total.max(1))]);
    table.render()
}

fn render_writes(writes: &Writes) -> String {
    let Writes { vm, looks, time_ns, pages, distinct_pages, look_ns, noted_by } = writes;
    let per_second = u128::from(*pages) * 1_000_000_000 / u128::from((*time_ns).max(1));
    let how = match noted_by {
        NotedBy::DirtyBits => "by dirty bits",
        NotedBy::Log => "the processor logs writes",
        NotedBy::Faults => "by faults",
    };
    format!(
        "{vm} writes {} pages a second, {} different ones in {}\neach of {} looks took {}: {how}\n",
        count(per_second as u64),
        count(*distinct_pages),
        duration(*time_ns),
        count(*looks),
        duration(*look_ns)
    )
}

fn render_measured(measured: &Measured) -> String {
    let mut table = Table::new([("READS", Left), ("DEPTH", Right), ("MB/S", Right), ("IOPS", Right)]);
    for load in &measured.loads {
        let order = match load.order {
            LoadOrder::Sequential => "sequential",
            LoadOrder::Random => "random",
        };
        let tenths = load.bytes_per_second / 100_000;
        table.row([
            format!("{} {order}", bytes(load.read_bytes.into())),
            count(load.depth.into()),
            format!("{}.{}", count(tenths / 10), tenths % 10),
            count(load.reads_per_second),
        ]);
    }
    format!("{}: {}\n{}", measured.disk, measured.device, table.render())
}

fn render_modules(modules: &[ModuleInfo]) -> String {
    if modules.is_empty() {
        return "no boot modules: the boot image has no kernels for guests\n".into();
    }
    let mut table = Table::new([("MODULE", Left), ("SIZE", Right)]);
    for module in modules {
        table.row([module.name.clone(), bytes(module.bytes)]);
    }
    table.render()
}

#[cfg(test)]
mod tests;
