//! What the operator's commands do, and the answers to them.

use crate::confinement;
use crate::cpu_loop::InputHost;
use crate::host::{self, Host};
use crate::log_ring::{self, Message};
use crate::management;
use crate::measure::{self, Outcome};
use crate::probe;
use crate::processor;
use crate::profiles;
use crate::saved::{self, Begun};
use crate::services;
use crate::vm::{self, Order, Refusal, Running, Start, Vm, hotplug};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use block::Health;
use config::{Limits, Name, NicSpec, Size, VmSpec};
use shell::{
    BalloonInfo, CardCounts, CardInfo, Command, CpuProfileCommand, DiskInfo, DiskIo, DiskState, ExitStat, HostReport,
    Idle, Invocation, LimitChanges, LimitsInfo, LogLine, Memory, MigrateOptions, ModuleInfo, NicIo, PortInfo, PortLink,
    Reply, TraceLine, VmAction, VmDetail, VmPart, VmStat, VmSummary,
};

/// How long guests get to shut down before the host goes off.
const SHUTDOWN_NS: u64 = 30_000_000_000;

/// What a balloon leaves a guest at least.
const BALLOON_KEEPS_BYTES_MIN: u64 = 16 << 20;

/// The services run on this CPU.
const SERVICE_CPU: usize = 0;

/// What a command leads to.
pub enum Answer {
    /// This, at once; in JSON or not.
    Reply(Reply, bool),
    /// The guest's console, from now on.
    Attach(Arc<Vm>),
    /// This reply once a start has succeeded, or why it did not once all of it is taken back.
    Start(Arc<Start>, Weak<Running>, Reply, bool),
    /// This reply once a save has succeeded and its life has ended, or a restore; or why not.
    Saved(Begun, Reply, bool),
    /// This reply once a VM has lost a disk or NIC, or why it has not.
    Removal(Arc<Start>, Reply, bool),
    /// What was measured or asked of others, or why it was not.
    Measure(Arc<Outcome>, bool),
    /// This reply once a life has ended and everything of it is free.
    End(Weak<Running>, Reply, bool),
    /// This reply once a paused VM has come to rest, or is no more.
    Rest(Weak<Running>, Reply, bool),
    /// The host's end, once the guests are off or the moment has come.
    Power { off: bool, at_ns: u64 },
}

/// Starts to carry out a command.
pub fn carry_out(host: &'static Host, invocation: Invocation) -> Answer {
    let Invocation { command, json } = invocation;
    let reply = match command {
        Command::Help { topic } => shell::help(&topic),
        Command::Host => Reply::Host(host_report(host)),
        Command::VmCreate(spec) => return create(host, *spec, json),
        Command::VmList => Reply::Vms(host.vms.lock().iter().map(|vm| summary(host, vm)).collect()),
        Command::VmShow { name } => match host.vm(&name) {
            Some(vm) => Reply::Vm(detail(host, &vm)),
            None => no_such_vm(host, &name),
        },
        Command::VmControl { name, action } => return on_vm(host, &name, json, |vm| control(host, vm, action, json)),
        Command::VmBalloon { name, keeps } => match host.vm(&name) {
            Some(vm) => done(balloon(host, &vm, keeps.bytes()), || format!("{name} is to keep {keeps}")),
            None => no_such_vm(host, &name),
        },
        Command::VmSet { name, changes } => return on_vm(host, &name, json, |vm| set(host, vm, &changes, json)),
        Command::VmAdd { name, part } => return on_vm(host, &name, json, |vm| add(host, vm, &part, json)),
        Command::VmRemove { name, part, force } => {
            return on_vm(host, &name, json, |vm| remove(host, vm, &part, force, json));
        }
        Command::VmSave { name, to } => match host.vm(&name) {
            Some(vm) => return begun(saved::save(host, &vm, &to), format!("{name} is saved to {to}"), json),
            None => no_such_vm(host, &name),
        },
        Command::VmRestore { name, from } => match host.vm(&name) {
            Some(vm) => return begun(saved::restore(host, &vm, &from), format!("{name} is running"), json),
            None => no_such_vm(host, &name),
        },
        Command::VmConsole { name } => match host.vm(&name) {
            Some(vm) => return Answer::Attach(vm),
            None => no_such_vm(host, &name),
        },
        Command::VmMigrate { name, to, options } => match host.vm(&name) {
            Some(vm) => migrate(host, &vm, &to, options),
            None => no_such_vm(host, &name),
        },
        Command::MigrateStatus => Reply::Moves(host.migrations.lock().status(host.clock.now_ns())),
        Command::MigrateCancel { name } => {
            let cancelled = host.migrations.lock().cancel(&name);
            done(cancelled, || format!("{name} is to stay where it is"))
        }
        Command::PeerList => Reply::Peers(host.migrations.lock().peers()),
        Command::PeerAdd(peer) => {
            let name = peer.name.clone();
            let added = host.migrations.lock().add_peer(peer);
            done(added, || format!("{name} is trusted"))
        }
        Command::PeerRemove { name } => {
            let removed = host.migrations.lock().remove_peer(&name);
            done(removed, || format!("{name} is trusted no more"))
        }
        Command::CpuProfile(command) => return cpu_profile(host, command, json),
        Command::DiskList => Reply::Disks(disks(host)),
        Command::DiskShow { name } => disk(host, &name),
        Command::DiskMeasure { name } => return measured(measure::disk::begin(host, &name), json),
        Command::VmMeasure { name } => match host.vm(&name) {
            Some(vm) => return measured(vm.must_run().and_then(|running| measure::writes::begin(host, running)), json),
            None => no_such_vm(host, &name),
        },
        Command::NetList => Reply::Ports(ports(host)),
        Command::Log { lines } => Reply::Log(log_ring::last(lines).iter().map(log_line).collect()),
        Command::Trace { cpu, lines, vm } => trace(host, cpu, lines, vm),
        Command::Stat { name } => stat(host, name),
        Command::Modules => Reply::Modules(modules(host)),
        Command::PowerOff => return power(host, true),
        Command::Reboot => return power(host, false),
    };
    Answer::Reply(reply, json)
}

/// Looks whether a command that goes on is over, and what it answers.
pub fn proceed(host: &'static Host, answer: &mut Answer) -> Option<Answer> {
    match answer {
        Answer::Reply(reply, json) => Some(Answer::Reply(reply.clone(), *json)),
        Answer::Attach(vm) => Some(Answer::Attach(vm.clone())),
        Answer::Start(start, life, reply, json) => match start.outcome()? {
            Ok(()) => Some(Answer::Reply(reply.clone(), *json)),
            Err(refusal) => (life.strong_count() == 0).then(|| Answer::Reply(refused(refusal), *json)),
        },
        Answer::Saved(begun, reply, json) => match begun.outcome.outcome()? {
            Ok(()) => (begun.life.strong_count() == 0).then(|| Answer::Reply(reply.clone(), *json)),
            Err(refusal) => Some(Answer::Reply(refused(refusal), *json)),
        },
        Answer::Removal(outcome, reply, json) => {
            let reply = outcome.outcome()?.map_or_else(refused, |()| reply.clone());
            Some(Answer::Reply(reply, *json))
        }
        Answer::Measure(outcome, json) => {
            let reply = outcome.take()?.unwrap_or_else(refused);
            Some(Answer::Reply(reply, *json))
        }
        Answer::End(life, reply, json) => (life.strong_count() == 0).then(|| Answer::Reply(reply.clone(), *json)),
        Answer::Rest(life, reply, json) => {
            let rests = life.upgrade().is_none_or(|running| !running.has_started() || running.is_quiescent());
            rests.then(|| Answer::Reply(reply.clone(), *json))
        }
        Answer::Power { off, at_ns } => {
            let all_off = host.vms.lock().iter().all(|vm| vm.running().is_none());
            if !all_off && host.clock.now_ns() < *at_ns {
                return None;
            }
            if *off { platform::power_off(&host.platform) } else { platform::reset(&host.platform) }
        }
    }
}

/// Types into a guest's console. What it does not take is lost, as on a line without flow control.
pub fn type_into(host: &'static Host, vm: &Vm, bytes: &[u8]) {
    if let Some(running) = vm.running() {
        running.machine.console_input(bytes, &mut InputHost::new(host, SERVICE_CPU, &running));
    }
}

/// A message in one line.
pub fn log_text(message: &Message) -> String {
    let Message { time_ns, level, text } = message;
    let (seconds, millis) = (time_ns / 1_000_000_000, time_ns / 1_000_000 % 1000);
    match level {
        log::Level::Info => format!("[{seconds:4}.{millis:03}] {text}"),
        _ => format!("[{seconds:4}.{millis:03}] {}: {text}", level.as_str().to_lowercase()),
    }
}

fn create(host: &'static Host, spec: VmSpec, json: bool) -> Answer {
    let name = spec.name.clone();
    match vm::create(host, spec) {
        Ok(Some(running)) => started(&running, json),
        Ok(None) => Answer::Reply(Reply::done(format!("{name} is created")), json),
        Err(refusal) => Answer::Reply(refused(refusal), json),
    }
}

fn started(running: &Arc<Running>, json: bool) -> Answer {
    let reply = Reply::done(format!("{} is running", running.vm.name()));
    Answer::Start(running.start.clone(), Arc::downgrade(running), reply, json)
}

fn begun(job: Result<Begun, Refusal>, done: String, json: bool) -> Answer {
    match job {
        Ok(begun) => Answer::Saved(begun, Reply::done(done), json),
        Err(refusal) => Answer::Reply(refused(refusal), json),
    }
}

fn migrate(host: &'static Host, vm: &Vm, to: &Name, options: MigrateOptions) -> Reply {
    let name = vm.name();
    let started = host.migrations.lock().start(host, vm, to, options);
    // This command is carried out after the services looked at migrations.
    services::note_management(host, SERVICE_CPU);
    done(started, || format!("{name} is on its way to {to}; \"migrate status\" tells how far it is"))
}

fn cpu_profile(host: &'static Host, command: CpuProfileCommand, json: bool) -> Answer {
    let reply = match command {
        CpuProfileCommand::List => profiles::list(host),
        CpuProfileCommand::Show { name } => profiles::show(host, &name).unwrap_or_else(refused),
        CpuProfileCommand::Derive { name, hosts, without } if hosts.is_empty() => {
            profiles::keep(host, name, Vec::new(), profiles::own(host), &without).unwrap_or_else(refused)
        }
        CpuProfileCommand::Derive { name, hosts, without } => {
            let begun = host.migrations.lock().survey(host, name, &hosts, without);
            services::note_management(host, SERVICE_CPU);
            return measured(begun, json);
        }
        CpuProfileCommand::Remove { name } => {
            let removed = host.profiles.lock().remove(&name);
            done(removed, || format!("{name} is forgotten"))
        }
    };
    Answer::Reply(reply, json)
}

fn done(result: Result<(), Refusal>, message: impl FnOnce() -> String) -> Reply {
    result.map_or_else(refused, |()| Reply::done(message()))
}

/// A VM between two hosts takes orders from nobody.
fn must_stay(vm: &Vm) -> Result<(), Refusal> {
    let moves = vm.running().is_some_and(|running| running.is_moving() || running.is_arriving());
    let message = || format!("{} is on its way between hosts", vm.name());
    if moves { Err((message(), format!("let it arrive, or: migrate cancel {}", vm.name()))) } else { Ok(()) }
}

fn control(host: &'static Host, vm: &Arc<Vm>, action: VmAction, json: bool) -> Answer {
    if let Err(refusal) = must_stay(vm) {
        return Answer::Reply(refused(refusal), json);
    }
    let name = vm.name();
    let order = |order: Order| {
        let running = vm.must_run()?;
        // What reads its memory from a disk sees each order by itself.
        let is_free = order == Order::Kill || running.is_reading();
        if running.machine.memory().is_waiting() && !is_free {
            let remedy = "wait for that (\"migrate status\"), or kill it".to_string();
            return Err((format!("{name}'s memory is still on its way here"), remedy));
        }
        if running.is_held() && !is_free {
            return Err((
                format!("{name} is being saved, moved or measured, or its devices change"),
                "wait for that, or kill it".to_string(),
            ));
        }
        let ending = || (format!("{name} is being stopped"), "see \"vm list\"".to_string());
        running.command(host, SERVICE_CPU, order).then_some(Arc::downgrade(&running)).ok_or_else(ending)
    };
    let done = |what: &str| Reply::done(format!("{name} {what}"));
    let result = match action {
        VmAction::Start => match vm.start(host) {
            Ok(running) => return started(&running, json),
            Err(refusal) => Err(refusal),
        },
        VmAction::Stop => vm.must_run().map(|running| {
            press_power_button(host, &running);
            done("was asked to shut down")
        }),
        VmAction::Kill => match order(Order::Kill) {
            Ok(life) => return Answer::End(life, done("is stopped"), json),
            Err(refusal) => Err(refusal),
        },
        VmAction::Reset => order(Order::Reset).map(|_| done("resets")),
        VmAction::Pause => match order(Order::Pause) {
            Ok(life) => return Answer::Rest(life, done("is paused"), json),
            Err(refusal) => Err(refusal),
        },
        VmAction::Resume => order(Order::Run).map(|_| done("is running")),
        VmAction::EraseVariables => {
            return begun(saved::erase(host, vm), format!("{name}'s UEFI variables are erased"), json);
        }
        VmAction::Delete => vm::delete(host, vm).map(|()| done("is deleted")),
    };
    Answer::Reply(result.unwrap_or_else(refused), json)
}

/// Changes what a VM may use at most.
fn set(host: &'static Host, vm: &Vm, changes: &LimitChanges, json: bool) -> Answer {
    let set = hotplug::may_change(vm).map(|()| vm.set_limits(host, changes.apply(&vm.limits())));
    Answer::Reply(done(set, || format!("{} has new limits", vm.name())), json)
}

fn limits_info(limits: &Limits) -> LimitsInfo {
    LimitsInfo {
        cpu_percent: limits.cpu_percent,
        iops: limits.iops,
        disk_bytes_per_s: limits.disk_rate.map(Size::bytes),
        net_bytes_per_s: limits.net_rate.map(Size::bytes),
        receive_bytes_per_s: limits.receive_rate.map(Size::bytes),
    }
}

/// Carries out a command about a VM, where there is one of that name.
fn on_vm(host: &'static Host, name: &str, json: bool, act: impl FnOnce(&Arc<Vm>) -> Answer) -> Answer {
    host.vm(name).map_or_else(|| Answer::Reply(no_such_vm(host, name), json), |vm| act(&vm))
}

fn add(host: &'static Host, vm: &Arc<Vm>, part: &VmPart, json: bool) -> Answer {
    let name = vm.name();
    let reply = match part {
        VmPart::Disk(disk) => done(hotplug::add_disk(host, vm, disk), || format!("{name} has {disk}")),
        VmPart::Nic(mac) => match hotplug::add_nic(host, vm, NicSpec { mac: *mac }) {
            Ok(mac) => Reply::done(format!("{name} has NIC {mac}")),
            Err(refusal) => refused(refusal),
        },
    };
    Answer::Reply(reply, json)
}

fn remove(host: &'static Host, vm: &Arc<Vm>, part: &VmPart, force: bool, json: bool) -> Answer {
    let name = vm.name();
    let what = match part {
        VmPart::Disk(disk) => format!("{name} has no {disk} any more"),
        VmPart::Nic(Some(mac)) => format!("{name} has no NIC {mac} any more"),
        VmPart::Nic(None) => format!("{name} has no NIC any more"),
    };
    match hotplug::remove(host, vm, part, force) {
        Ok(outcome) => Answer::Removal(outcome, Reply::done(what), json),
        Err(refusal) => Answer::Reply(refused(refusal), json),
    }
}

fn power(host: &'static Host, off: bool) -> Answer {
    for vm in host.vms.lock().iter() {
        if let Some(running) = vm.running() {
            press_power_button(host, &running);
        }
    }
    Answer::Power { off, at_ns: host.clock.now_ns() + SHUTDOWN_NS }
}

fn press_power_button(host: &'static Host, running: &Arc<Running>) {
    running.machine.power_button(&mut InputHost::new(host, SERVICE_CPU, running));
}

fn measured(begun: Result<Arc<Outcome>, Refusal>, json: bool) -> Answer {
    match begun {
        Ok(outcome) => Answer::Measure(outcome, json),
        Err(refusal) => Answer::Reply(refused(refusal), json),
    }
}

fn refused((message, remedy): Refusal) -> Reply {
    Reply::error(message, remedy)
}

fn no_such_vm(host: &Host, name: &str) -> Reply {
    let names: Vec<String> = host.vms.lock().iter().map(|vm| vm.name().to_string()).collect();
    Reply::no_such("VM", name, names.iter().map(String::as_str), "vm list")
}

fn host_report(host: &Host) -> HostReport {
    // Commands are carried out by CPU 0; the others' banks are as they last saw them.
    processor::look(0);
    let now_ns = host.clock.now_ns();
    let guests_bytes = running(host).iter().map(|running| running.held_bytes()).sum();
    // What the heap holds idle is Pollux's own: this number then moves with guests only.
    let (free_bytes, total_bytes) = {
        let frames = memory::FRAMES.lock();
        (frames.free_bytes(), frames.total_bytes())
    };
    let image = boot::BootInfo::image();
    HostReport {
        name: host.config.host.name.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        cpu_model: probe::cpu_model(),
        cpus: host.cpus.count() as u32,
        idle: host.cpus.sleeps(now_ns).map(|(sleeps, idle_ns)| Idle { sleeps, idle_ns }).collect(),
        tsc_hz: host.clock.tsc_khz() * 1000,
        backend: probe::backend(host),
        features: probe::features(host),
        speculation: processor::speculation(),
        errors: processor::errors(),
        memory: Memory {
            total_bytes: host.memory_bytes(),
            free_bytes,
            promised_bytes: vm::promised_bytes(),
            own_bytes: total_bytes - free_bytes - guests_bytes + (image.end - image.text),
            guests_bytes,
        },
        dma: confinement::report(),
        disks: probe::disks(&host.storage.lock()),
        nics: probe::nics(),
        management_address: management::address(),
        key: host.migrations.lock().key().to_string(),
        uptime_ns: now_ns,
    }
}

fn running(host: &Host) -> Vec<Arc<Running>> {
    host.vms.lock().iter().filter_map(|vm| vm.running()).collect()
}

fn summary(host: &Host, vm: &Vm) -> VmSummary {
    let started_ns = vm.running().map(|running| running.started_ns);
    VmSummary {
        name: vm.spec.name.clone(),
        state: vm.state(),
        vcpus: vm.spec.vcpus,
        memory_bytes: vm.spec.memory.bytes(),
        held_bytes: vm.running().map_or(0, |running| running.held_bytes()),
        uptime_ns: started_ns.map_or(0, |started_ns| host.clock.now_ns() - started_ns),
    }
}

fn detail(host: &'static Host, vm: &Vm) -> VmDetail {
    let running = vm.running();
    VmDetail {
        summary: summary(host, vm),
        balloon: running.as_ref().map(|running| balloon_info(host, running)),
        kernel: vm.spec.kernel.clone(),
        initrd: vm.spec.initrd.clone(),
        modules: vm.spec.modules.iter().map(|module| module.text().to_string()).collect(),
        command_line: vm.spec.command_line.clone(),
        reserved_bytes: vm.reservation.bytes(),
        limits: limits_info(&vm.limits()),
        disks: vm.disks().into_iter().filter(|disk| !disk.is_cdrom).map(|disk| disk.name).collect(),
        cdrom: vm.disks().into_iter().find(|disk| disk.is_cdrom).map(|disk| disk.name),
        nics: vm.macs(),
        cpus: running.as_ref().map_or_else(Vec::new, |running| running.cpus()),
        cpu_profile: vm.spec.cpu_profile.clone(),
        variables: vm.variables_place(),
        exits: running.as_ref().map_or(0, |running| running.counters().total().count),
        cpu_time_ns: running.map_or(0, |running| running.cpu_ns(host.clock.now_ns())),
    }
}

fn balloon_info(host: &'static Host, running: &Arc<Running>) -> BalloonInfo {
    let memory_bytes = running.machine.memory().total_bytes();
    let state = running.machine.balloon(&mut InputHost::new(host, SERVICE_CPU, running));
    BalloonInfo {
        driver: state.has_driver,
        target_bytes: memory_bytes.saturating_sub(state.target_bytes),
        keeps_bytes: memory_bytes.saturating_sub(state.given_up_bytes),
        unused_bytes: state.statistics.free_bytes,
        available_bytes: state.statistics.available_bytes,
    }
}

/// Tells a guest how much of its memory to keep.
fn balloon(host: &'static Host, vm: &Vm, keeps_bytes: u64) -> Result<(), Refusal> {
    must_stay(vm)?;
    let running = vm.must_run()?;
    let name = vm.name();
    let all_bytes = running.machine.memory().total_bytes();
    let least_bytes = vm.reservation.bytes().max(BALLOON_KEEPS_BYTES_MIN);
    if !(least_bytes..=all_bytes).contains(&keeps_bytes) {
        let message = format!("{name} cannot keep {} MiB of its {} MiB", keeps_bytes >> 20, all_bytes >> 20);
        return Err((message, format!("give {} to {} MiB", least_bytes >> 20, all_bytes >> 20)));
    }
    let mut input = InputHost::new(host, SERVICE_CPU, &running);
    if !running.machine.balloon(&mut input).has_driver {
        let remedy = "wait until it has started, or load virtio_balloon in it".into();
        return Err((format!("{name}'s guest does not drive its balloon"), remedy));
    }
    let (needed_bytes, free_bytes) = (keeps_bytes.saturating_sub(running.held_bytes()), vm.reservation.free_bytes());
    if needed_bytes > free_bytes {
        let message =
            format!("{name} would need {} MiB more and {} MiB are free", needed_bytes >> 20, free_bytes >> 20);
        return Err((message, "let it keep less, or stop another VM".into()));
    }
    running.machine.set_balloon(all_bytes - keeps_bytes, &mut input);
    Ok(())
}

fn disks(host: &Host) -> Vec<DiskInfo> {
    let storage = host.storage.lock();
    let mut disks = Vec::new();
    for (index, datastore) in storage.datastores().iter().enumerate() {
        for (position, (partition, _)) in datastore.partitions().enumerate() {
            disks.push(DiskInfo {
                name: partition.name.clone(),
                bytes: partition.sectors * 512,
                disk: datastore.name().to_string(),
                partition: partition.number,
                used_by: storage.owners(index, position).iter().map(|running| running.vm.spec.name.clone()).collect(),
                read_only: partition.read_only || datastore.geometry().read_only,
                state: match datastore.health() {
                    Health::Ready => DiskState::Ready,
                    Health::Recovering => DiskState::Recovering,
                    Health::Failed => DiskState::Failed,
                },
            });
        }
    }
    disks
}

fn disk(host: &Host, name: &str) -> Reply {
    let found = host.storage.lock().catalog().find(name);
    match found {
        Ok(place) => {
            let first = host.storage.lock().datastores()[..place.datastore]
                .iter()
                .map(|datastore| datastore.partitions().count())
                .sum::<usize>();
            Reply::Disks(disks(host).into_iter().skip(first + place.partition).take(1).collect())
        }
        Err(_) => {
            let names: Vec<String> = disks(host).into_iter().map(|disk| disk.name).collect();
            Reply::no_such("disk", name, names.iter().map(String::as_str), "disk list")
        }
    }
}

fn ports(host: &Host) -> Vec<PortInfo> {
    let report = host.network.lock().report();
    let info = |port: crate::network::PortReport| PortInfo {
        name: port.name,
        mac: port.mac,
        frames_in: port.counters.frames_in,
        frames_out: port.counters.frames_out,
        bytes_in: port.counters.bytes_in,
        bytes_out: port.counters.bytes_out,
        drops: port.counters.drops_out,
        link: match port.link {
            switch::Link::Up(_) => PortLink::Up,
            switch::Link::Down => PortLink::Down,
            switch::Link::Failed => PortLink::Failed,
        },
        speed_mbps: if let switch::Link::Up(mbps) = port.link { mbps } else { None },
        card: port.card.map(|(name, counters)| card(name, counters)),
    };
    report.into_iter().map(info).collect()
}

fn card(name: String, counters: Option<switch::CardCounters>) -> CardInfo {
    CardInfo {
        name,
        counters: counters.map(|counters| CardCounts {
            received: counters.received,
            transmitted: counters.transmitted,
            missed: counters.missed,
            crc_errors: counters.crc_errors,
            other_errors: counters.other_errors,
        }),
    }
}

fn log_line(message: &Message) -> LogLine {
    LogLine { time_ns: message.time_ns, level: message.level.as_str().to_lowercase(), message: message.text.clone() }
}

fn trace(host: &Host, cpu: Option<u32>, lines: usize, vm: Option<Name>) -> Reply {
    let id = match &vm {
        None => None,
        Some(name) => match host.vm(name) {
            Some(vm) => Some(vm.id),
            None => return no_such_vm(host, name),
        },
    };
    let count = host.cpus.count();
    if cpu.is_some_and(|cpu| cpu as usize >= count) {
        return Reply::error(format!("there are {count} CPUs"), format!("name one from 0 to {}", count - 1));
    }
    let name_of = |id: u16| host.vms.lock().iter().find(|vm| vm.id == id).map(|vm| vm.spec.name.clone());
    let mut found = Vec::new();
    for index in (0..count).filter(|&index| cpu.is_none_or(|cpu| cpu as usize == index)) {
        let ring = host::trace_of(index).lock();
        let wanted = ring.iter().rev().filter(|entry| id.is_none() || entry.event.vm() == id).take(lines);
        found.extend(wanted.map(|entry| (entry.time_tsc, index, entry.event)));
    }
    found.sort_by_key(|(time_tsc, ..)| *time_tsc);
    let line = |(time_tsc, index, event): (u64, usize, ::trace::Event)| TraceLine {
        time_ns: host.clock.ns_of_tsc(time_tsc),
        cpu: index as u32,
        vm: event.vm().and_then(name_of),
        event: event.describe(&vcpu::Exit::KIND_NAMES).to_string(),
    };
    Reply::Trace(found.into_iter().map(line).collect())
}

fn stat(host: &Host, name: Option<Name>) -> Reply {
    let vms: Vec<Arc<Vm>> = match name {
        None => host.vms.lock().clone(),
        Some(name) => match host.vm(&name) {
            Some(vm) => alloc::vec![vm],
            None => return no_such_vm(host, &name),
        },
    };
    let ports = host.network.lock().report();
    Reply::Stat(vms.iter().filter_map(|vm| vm_stat(host, vm, &ports)).collect())
}

fn vm_stat(host: &Host, vm: &Vm, ports: &[crate::network::PortReport]) -> Option<VmStat> {
    let running = vm.running()?;
    let counters = running.counters();
    let exits = counters.by_kind().iter().zip(vcpu::Exit::KIND_NAMES).filter(|(counter, _)| counter.count > 0);
    let disk = |(name, io): (String, vm::DiskIo)| DiskIo {
        name,
        reads: io.reads,
        writes: io.writes,
        flushes: io.flushes,
        read_bytes: io.read_bytes,
        written_bytes: io.written_bytes,
        errors: io.errors,
    };
    let nic = |mac: &config::Mac| {
        let counters = ports.iter().find(|port| port.mac == Some(*mac)).map(|port| port.counters).unwrap_or_default();
        NicIo {
            mac: *mac,
            frames_in: counters.frames_out,
            frames_out: counters.frames_in,
            bytes_in: counters.bytes_out,
            bytes_out: counters.bytes_in,
            drops: counters.drops_out,
        }
    };
    Some(VmStat {
        name: vm.spec.name.clone(),
        exits: exits
            .map(|(counter, reason)| ExitStat {
                reason: reason.to_string(),
                count: counter.count,
                time_ns: host.clock.ns(counter.cycles),
            })
            .collect(),
        cpu_time_ns: running.cpu_ns(host.clock.now_ns()),
        steal_ns: running.steal_ns(),
        disks: running.disk_io().into_iter().map(disk).collect(),
        nics: vm.macs().iter().map(nic).collect(),
    })
}

fn modules(host: &Host) -> Vec<ModuleInfo> {
    host.modules()
        .iter()
        .map(|module| ModuleInfo { name: module.name.to_string(), bytes: module.bytes.len() as u64 })
        .collect()
}
