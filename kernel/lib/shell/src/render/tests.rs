//! What replies look like.

use config::{Mac, Name};

use super::*;
use crate::{
    BalloonInfo, CardCounts, CardInfo, DiskIo, Dma, Feature, HardwareErrors, Idle, MeasuredLoad, Memory, NicIo,
    Speculation, Weakness, WeaknessStatus, Writes, help, parse,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn mac() -> Mac {
    Mac::new([2, 0, 0, 0, 0, 7]).unwrap()
}

fn host(backend: Backend) -> Reply {
    Reply::Host(HostReport {
        name: "pollux".into(),
        version: "0.1.0".into(),
        cpu_model: "AMD EPYC 7763".into(),
        cpus: 4,
        idle: vec![Idle { sleeps: 9, idle_ns: 100_000_000_000 }; 4],
        tsc_hz: 2_450_000_000,
        backend,
        features: vec![
            Feature { name: "nested paging".into(), present: true },
            Feature { name: "NRIP save".into(), present: false },
        ],
        errors: HardwareErrors { corrected: 1200, thermal: 2, ..HardwareErrors::default() },
        speculation: Speculation {
            microcode: 0x0a00_11d1,
            threads: true,
            control: Some(0x401),
            weaknesses: vec![
                Weakness { name: "l1tf".into(), status: WeaknessStatus::NotAffected },
                Weakness { name: "mds".into(), status: WeaknessStatus::Mitigated { by: "VERW".into() } },
                Weakness { name: "retbleed".into(), status: WeaknessStatus::Exposed { reason: "no barrier".into() } },
            ],
        },
        memory: Memory {
            total_bytes: 4 << 30,
            free_bytes: 3 << 30,
            promised_bytes: 1 << 30,
            own_bytes: 10 << 20,
            guests_bytes: 1014 << 20,
        },
        dma: Dma {
            confined: true,
            interrupts_confined: true,
            description: "AMD-Vi: 2 devices reach what they were given".into(),
            stopped: 3,
        },
        disks: vec![Device {
            name: "disk0".into(),
            description: "virtio-blk, 4 GiB".into(),
            status: DeviceStatus::Ready,
        }],
        nics: vec![Device {
            name: "00:04.0".into(),
            description: "8086:10d3".into(),
            status: DeviceStatus::NotSupported { reason: "no driver".into() },
        }],
        management_address: Some("10.0.2.15/24".into()),
        key: "3b6a".into(),
        uptime_ns: 125_000_000_000,
    })
}

fn vm(state: VmState) -> VmSummary {
    VmSummary {
        name: name("web"),
        state,
        vcpus: 2,
        memory_bytes: 1 << 30,
        held_bytes: 1 << 29,
        uptime_ns: 3_400_000_000,
    }
}

#[test]
fn the_host_for_people() {
    let text = render(&host(Backend::Svm), false);
    assert_eq!(
        text,
        "host        pollux\n\
         version     Pollux 0.1.0\n\
         up          2 min 5 s\n\
         processor   AMD EPYC 7763, TSC 2.4 GHz\n\
         CPUs        4, 80 % idle\n\
         guests      AMD-V (SVM), ready\n\
         key         3b6a\n\
         memory      4 GiB: 3 GiB free (1 GiB of it kept for VMs), 10 MiB Pollux, 1014 MiB guests\n\
         DMA         AMD-Vi: 2 devices reach what they were given, 3 accesses stopped\n\
         management  10.0.2.15/24\n\
         features\n  nested paging  ready\n  NRIP save      not supported\n\
         hardware errors\n\
         \x20 corrected              1,200\n\
         \x20 uncorrected, not used      0\n\
         \x20 uncorrected                0\n\
         \x20 too hot                    2\n\
         \x20 NMIs                       0\n\
         speculation (microcode 0xa0011d1, hyper-threading on, SPEC_CTRL 0x401)\n\
         \x20 mds       mitigated: VERW\n  retbleed  EXPOSED: no barrier\n\
         disks\n  disk0  virtio-blk, 4 GiB  ready\n\
         NICs\n  00:04.0  8086:10d3  not supported: no driver\n"
    );
    let none = render(&host(Backend::None { reason: "the firmware locked SVM (VM_CR.SVMDIS)".into() }), false);
    assert!(none.contains("guests      not supported: the firmware locked SVM (VM_CR.SVMDIS)\n"));
}

#[test]
fn the_host_for_programs() {
    let json = render(&host(Backend::None { reason: "locked".into() }), true);
    assert_eq!(json.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let host = &value["host"];
    assert_eq!(host["backend"], "none");
    assert_eq!(host["backend_reason"], "locked");
    assert_eq!(host["memory"]["free_bytes"], 3_u64 << 30);
    assert_eq!(host["uptime_ns"], 125_000_000_000_u64);
    assert_eq!(host["features"][1]["present"], false);
    assert_eq!(host["nics"][0]["status"], "not_supported");
    assert_eq!(host["speculation"]["weaknesses"][0]["status"], "not_affected");
    assert_eq!(host["speculation"]["weaknesses"][2]["reason"], "no barrier");
}

#[test]
fn vms_for_people_and_programs() {
    let crashed = vm(VmState::Crashed { reason: "triple fault".into() });
    let reply = Reply::Vms(vec![vm(VmState::Running), crashed]);
    assert_eq!(
        render(&reply, false),
        "NAME  VCPUS  MEMORY     HELD     UP  STATE\n\
         web       2   1 GiB  512 MiB  3.4 s  running\n\
         web       2   1 GiB  512 MiB  3.4 s  crashed: triple fault\n"
    );
    assert_eq!(
        render(&reply, true),
        "{\"vms\":[{\"name\":\"web\",\"state\":\"running\",\"vcpus\":2,\"memory_bytes\":1073741824,\"held_bytes\":536870912,\"uptime_ns\":3400000000},\
         {\"name\":\"web\",\"state\":\"crashed\",\"reason\":\"triple fault\",\"vcpus\":2,\"memory_bytes\":1073741824,\
         \"held_bytes\":536870912,\"uptime_ns\":3400000000}]}\n"
    );
    let to = || name("b");
    let away = Reply::Vms(vec![vm(VmState::Given { to: to() }), vm(VmState::Serving { to: to() })]);
    let text = render(&away, false);
    assert!(text.contains("  given to b, which has not answered\n") && text.contains("  moved to b, serving pages\n"));
    assert!(render(&away, true).contains("\"state\":\"serving\",\"to\":\"b\","));
    assert_eq!(render(&Reply::Vms(vec![]), true), "{\"vms\":[]}\n");
    assert!(render(&Reply::Vms(vec![]), false).contains("help vm create"));
}

#[test]
fn one_vm_in_full() {
    let reply = Reply::Vm(VmDetail {
        summary: vm(VmState::Paused),
        balloon: Some(BalloonInfo {
            driver: true,
            target_bytes: 1 << 29,
            keeps_bytes: 600 << 20,
            unused_bytes: Some(100 << 20),
            available_bytes: None,
        }),
        kernel: Some("vmlinuz".into()),
        initrd: None,
        modules: vec!["m a=b".into()],
        command_line: String::new(),
        reserved_bytes: 256 << 20,
        limits: LimitsInfo { cpu_percent: Some(50), iops: Some(2000), ..LimitsInfo::default() },
        disks: vec!["a".into(), "b".into()],
        cdrom: Some("iso".into()),
        nics: vec![mac()],
        cpus: vec![1, 0],
        cpu_profile: Some("rack1".parse().unwrap()),
        variables: Some("kept on a-vars".into()),
        exits: 12_345,
        cpu_time_ns: 1_500_000,
    });
    let text = render(&reply, false);
    for line in [
        "initrd        none\n",
        ", 256 MiB reserved\n",
        "limits        50 % of a CPU, 2,000 disk requests/s\n",
        "disks         a, b\n",
        "CD            iso\n",
        "module        m a=b\n",
        "NICs          02:00:00:00:00:07\n",
        "on CPUs       1, 0\n",
        "CPU profile   rack1\n",
        "variables     kept on a-vars\n",
        "exits         12,345\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let value: serde_json::Value = serde_json::from_str(&render(&reply, true)).unwrap();
    assert_eq!(value["vm"]["state"], "paused");
    assert_eq!(value["vm"]["initrd"], serde_json::Value::Null);
    assert_eq!(value["vm"]["nics"][0], "02:00:00:00:00:07");
}

#[test]
fn statistics_list_the_costliest_exit_first() {
    let exit = |reason: &str, count, time_ns| ExitStat { reason: reason.into(), count, time_ns };
    let reply = Reply::Stat(vec![VmStat {
        name: name("web"),
        exits: vec![exit("cpuid", 10, 20_000), exit("halt", 0, 0), exit("port", 2000, 4_000_000)],
        cpu_time_ns: 2_000_000_000,
        steal_ns: 1_000_000,
        disks: vec![DiskIo {
            name: "root".into(),
            reads: 5,
            writes: 6,
            flushes: 1,
            read_bytes: 4096,
            written_bytes: 512,
            errors: 0,
        }],
        nics: vec![NicIo { mac: mac(), frames_in: 1, frames_out: 2, bytes_in: 60, bytes_out: 120, drops: 0 }],
    }]);
    assert_eq!(
        render(&reply, false),
        "web: 2 s on CPUs, 1 ms waiting\n\
         \x20 EXITS  COUNT   TIME  EACH\n\
         \x20 port   2,000   4 ms  2 us\n\
         \x20 cpuid     10  20 us  2 us\n\
         \x20 total  2,010   4 ms  2 us\n\
         \x20 DISK  READS   READ  WRITES  WRITTEN  FLUSHES  ERRORS\n\
         \x20 root      5  4 KiB       6    512 B        1       0\n\
         \x20 NIC                IN  BYTES  OUT  BYTES  DROPS\n\
         \x20 02:00:00:00:00:07   1   60 B    2  120 B      0\n"
    );
}

#[test]
fn the_other_lists() {
    let disk = DiskInfo {
        name: "root".into(),
        bytes: 1 << 30,
        disk: "disk0".into(),
        partition: 1,
        used_by: vec![name("web")],
        read_only: false,
        state: DiskState::Failed,
    };
    assert_eq!(
        render(&Reply::Disks(vec![disk]), false),
        "NAME   SIZE  ON                 ACCESS          USED BY  STATE\nroot  1 GiB  disk0 partition 1  read and write  web      failed\n"
    );
    assert_eq!(crate::listed(&["a", "b", "c"]), "a, b, c");
    assert_eq!(crate::listed(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
    let port = PortInfo {
        name: "uplink".into(),
        mac: None,
        frames_in: 1,
        frames_out: 2,
        bytes_in: 3,
        bytes_out: 4,
        drops: 0,
        link: PortLink::Up,
        speed_mbps: None,
        card: None,
    };
    let ports = |port: &PortInfo| render(&Reply::Ports(vec![port.clone()]), false);
    assert!(ports(&port).ends_with("uplink  -        up     1    3 B    2    4 B      0\n"));
    let counters = CardCounts { received: 1, transmitted: 2, missed: 3, crc_errors: 4, other_errors: 5 };
    let card = CardInfo { name: "Intel".into(), counters: Some(counters) };
    let port = PortInfo { speed_mbps: Some(1000), card: Some(card), ..port };
    let text = ports(&port);
    assert!(text.contains("up, 1000 Mbit/s"), "{text}");
    assert!(text.ends_with("uplink: Intel: 1 received, 2 sent, 3 missed, 4 with CRC errors, 5 with others\n"));
    assert!(ports(&PortInfo { link: PortLink::Down, ..port }).contains(" down "));
    let log = LogLine { time_ns: 1_234_567_000, level: "info".into(), message: "hello".into() };
    assert_eq!(render(&Reply::Log(vec![log]), false), "[    1.234567] info  hello\n");
    let trace = TraceLine { time_ns: 1_000, cpu: 1, vm: None, event: "irq vector=0x20".into() };
    assert_eq!(
        render(&Reply::Trace(vec![trace]), false),
        "    TIME  CPU  VM  EVENT\n0.000001    1  -   irq vector=0x20\n"
    );
    let module = ModuleInfo { name: "vmlinuz".into(), bytes: 12 << 20 };
    assert_eq!(render(&Reply::Modules(vec![module]), false), "MODULE     SIZE\nvmlinuz  12 MiB\n");
}

#[test]
fn how_fast_a_vm_writes() {
    let (vm, time_ns, look_ns) = ("web".into(), 1_000_000_000, 45_200);
    let writes = Writes { vm, looks: 10, time_ns, pages: 3000, distinct_pages: 1024, look_ns, noted_by: NotedBy::Log };
    let text = "web writes 3,000 pages a second, 1,024 different ones in 1 s\n\
                each of 10 looks took 45.2 us: the processor logs writes\n";
    assert_eq!(render(&Reply::Writes(writes), false), text);
    assert!(render(&Reply::Writes(Writes::default()), false).contains(" 0 pages a second"));
}

#[test]
fn how_fast_a_disk_reads() {
    let load = |order, read_bytes, depth, bytes_per_second, reads_per_second| {
        let (reads, time_ns) = (reads_per_second, 1_000_000_000);
        MeasuredLoad { order, read_bytes, depth, reads, time_ns, bytes_per_second, reads_per_second }
    };
    let loads = vec![
        load(LoadOrder::Sequential, 1 << 20, 8, 1_258_291_200, 1200),
        load(LoadOrder::Random, 4096, 32, 40_960, 10),
    ];
    let reply = Reply::Measured(Measured { disk: "disk0".into(), device: "NVMe at 00:04.0".into(), loads });
    assert_eq!(
        render(&reply, false),
        "disk0: NVMe at 00:04.0\n\
         READS             DEPTH     MB/S   IOPS\n\
         1 MiB sequential      8  1,258.2  1,200\n\
         4 KiB random         32      0.0     10\n"
    );
    let json = render(&reply, true);
    assert!(
        json.contains(r#"{"order":"random","read_bytes":4096,"depth":32,"reads":10,"time_ns":1000000000,"#),
        "{json}"
    );
}

#[test]
fn what_was_done_and_what_was_not() {
    assert_eq!(render(&Reply::done("web is running"), false), "web is running\n");
    assert_eq!(render(&Reply::done("web is running"), true), "{\"done\":{\"message\":\"web is running\"}}\n");
    let error = Reply::from(parse("hlep").unwrap_err());
    assert_eq!(render(&error, false), "error: unknown command `hlep`: did you mean `help`?\n");
    assert_eq!(
        render(&error, true),
        "{\"error\":{\"message\":\"unknown command `hlep`\",\"remedy\":\"did you mean `help`?\"}}\n"
    );
    let no_such = Reply::no_such("VM", "wbe", ["db", "web"], "vm list");
    assert_eq!(render(&no_such, false), "error: there is no VM `wbe`: did you mean `web`?\n");
    let no_such = Reply::no_such("VM", "xyz", ["db", "web"], "vm list");
    assert_eq!(render(&no_such, false), "error: there is no VM `xyz`: `vm list` shows what there is\n");
}

#[test]
fn nothing_that_a_guest_says_controls_the_terminal() {
    let hostile = "\x1b[2J\x07\u{9b}\u{7f}x";
    let reply = Reply::done(hostile);
    assert_eq!(render(&reply, false), "?[2J???x\n");
    assert!(render(&reply, true).trim_end().chars().all(|char| !char.is_control()));
    let value: serde_json::Value = serde_json::from_str(&render(&reply, true)).unwrap();
    assert_eq!(value["done"]["message"], hostile);
}

#[test]
fn help_for_all_and_for_one() {
    let all = render(&help(""), false);
    assert!(all.lines().any(|line| line.starts_with("vm create NAME ") && line.ends_with(" define a VM")));
    for topic in all.lines().filter_map(|line| line.split("  ").next()).chain([""]) {
        let words: Vec<&str> = topic.split(' ').take_while(|word| word.starts_with(char::is_lowercase)).collect();
        let text = render(&help(&words.join(" ")), false);
        let shown = text.split("\nexamples\n").next().unwrap();
        assert!(shown.lines().all(|line| line.len() < 80), "{text}");
    }
    let one = render(&help("vm create"), false);
    assert!(one.starts_with("vm create NAME\n  define a VM\n  Without a kernel"));
    assert!(one.contains("\n  --memory SIZE        its memory, 256M when not given\n"));
    assert!(one.contains("\nexamples\n  vm create web --kernel"));
    let value: serde_json::Value = serde_json::from_str(&render(&help("disk"), true)).unwrap();
    assert_eq!(value["help"]["commands"].as_array().unwrap().len(), 3);
}

#[test]
fn a_terminal_gets_carriage_returns() {
    let mut out = Vec::new();
    to_terminal("a\nb\n", &mut out);
    assert_eq!(out, b"a\r\nb\r\n");
}
