//! Lines that are commands, and lines that are not.

use config::{DiskSpec, Limits, Mac, NicSpec, Size, VmSpec};
use proptest::prelude::*;

use super::*;
use crate::{CpuProfileCommand, LimitChanges, VmAction, VmPart};

fn command(line: &str) -> Command {
    parse(line).unwrap_or_else(|error| panic!("{line}: {error}")).unwrap().command
}

fn error(line: &str) -> String {
    parse(line).expect_err(line).to_string()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[test]
fn blank_lines_and_comments_are_nothing() {
    for line in ["", "   ", "\t", "# vm list", "#"] {
        assert_eq!(parse(line), Ok(None));
    }
}

#[test]
fn short_commands() {
    assert_eq!(command("help"), Command::Help { topic: "".into() });
    assert_eq!(command("help vm create"), Command::Help { topic: "vm create".into() });
    assert_eq!(command("vm create --help"), Command::Help { topic: "vm create".into() });
    assert_eq!(command("host"), Command::Host);
    assert_eq!(command("vm list"), Command::VmList);
    assert_eq!(command("vm show web"), Command::VmShow { name: name("web") });
    assert_eq!(command("vm console web"), Command::VmConsole { name: name("web") });
    assert_eq!(command("disk"), Command::DiskList);
    assert_eq!(command("disk list"), Command::DiskList);
    assert_eq!(command("vm measure web"), Command::VmMeasure { name: "web".into() });
    assert_eq!(command("disk measure disk0"), Command::DiskMeasure { name: "disk0".into() });
    assert_eq!(command("disk show 'my disk'"), Command::DiskShow { name: "my disk".into() });
    assert_eq!(command("net"), Command::NetList);
    assert_eq!(command("net list"), Command::NetList);
    assert_eq!(command("log"), Command::Log { lines: 40 });
    assert_eq!(command("log --lines 7"), Command::Log { lines: 7 });
    assert_eq!(command("trace"), Command::Trace { cpu: None, lines: 40, vm: None });
    let trace = Command::Trace { cpu: Some(1), lines: 9, vm: Some(name("web")) };
    assert_eq!(command("trace --vm web --cpu=1 --lines 9"), trace);
    assert_eq!(command("stat"), Command::Stat { name: None });
    assert_eq!(command("stat web"), Command::Stat { name: Some(name("web")) });
    assert_eq!(command("modules"), Command::Modules);
    assert_eq!(command("poweroff"), Command::PowerOff);
    assert_eq!(command("reboot"), Command::Reboot);
}

#[test]
fn cpu_profiles() {
    assert_eq!(command("cpu profile"), Command::CpuProfile(CpuProfileCommand::List));
    assert_eq!(command("cpu profile --json"), Command::CpuProfile(CpuProfileCommand::List));
    assert_eq!(command("cpu profile show rack1"), Command::CpuProfile(CpuProfileCommand::Show { name: name("rack1") }));
    assert_eq!(
        command("cpu profile remove rack1"),
        Command::CpuProfile(CpuProfileCommand::Remove { name: name("rack1") })
    );
    let derive =
        |hosts, without| Command::CpuProfile(CpuProfileCommand::Derive { name: name("rack1"), hosts, without });
    assert_eq!(command("cpu profile derive rack1 a b"), derive(vec![name("a"), name("b")], vec![]));
    let without = vec!["AVX".into(), "1 GiB pages".into()];
    assert_eq!(command("cpu profile derive rack1 --without \"AVX, 1 GiB pages\""), derive(vec![], without));
    assert!(error("cpu profile derive rack1").contains("at least one peer"));
    assert!(error("cpu profile derive rack1 a b a").contains("a is given twice"));
    assert!(error("cpu").contains("one of profile"));
    assert!(error("cpu profile drive x y").contains("did you mean `cpu profile derive`?"));
    assert!(error("profile").contains("did you mean `cpu profile list`?"));
    match command("vm create web --kernel k --cpu-profile rack1") {
        Command::VmCreate(vm) => assert_eq!(vm.cpu_profile, Some(name("rack1"))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn limits_change_alone_or_are_lifted() {
    let Command::VmSet { changes, .. } = command("vm set web --cpu-limit 150 --iops none") else { panic!() };
    let most = Some(Size::from_mib(3));
    assert_eq!(
        command("vm set web --receive-rate 3M --net-rate none"),
        Command::VmSet {
            name: name("web"),
            changes: LimitChanges {
                to: Limits { receive_rate: most, ..Limits::default() },
                lifted: [false, false, false, true, false],
            },
        }
    );
    let before = Limits { iops: Some(7), net_rate: Some(Size::from_mib(1)), ..Limits::default() };
    let after = Limits { cpu_percent: Some(150), net_rate: Some(Size::from_mib(1)), ..Limits::default() };
    assert_eq!(changes.apply(&before), after);
    let Command::VmCreate(vm) = command("vm create web --kernel k --disk-rate 20M --cpu-limit=50") else { panic!() };
    let limits = Limits { cpu_percent: Some(50), disk_rate: Some(Size::from_mib(20)), ..Limits::default() };
    assert_eq!(vm.limits, limits);
    assert!(error("vm set web").starts_with("no limit is named"));
    assert_eq!(error("vm set web --cpu-limit 0"), "`0` is not a percentage: give 1 to 6400");
    assert!(error("vm set web --net-rate 1K").starts_with("a VM cannot be limited to 1K a second"));
}

#[test]
fn what_a_vm_gets_and_loses() {
    let add = |part| Command::VmAdd { name: name("web"), part };
    let remove = |part, force| Command::VmRemove { name: name("web"), part, force };
    let mac = Mac::new([2, 0, 0, 0, 0, 7]);
    assert_eq!(command("vm add web --disk scratch"), add(VmPart::Disk(DiskSpec::own("scratch".into()))));
    assert_eq!(command("vm add web --cdrom iso"), add(VmPart::Disk(DiskSpec::cdrom("iso".into()))));
    assert_eq!(command("vm remove web --cdrom iso"), remove(VmPart::Disk(DiskSpec::cdrom("iso".into())), false));
    assert_eq!(command("vm add web --nic"), add(VmPart::Nic(None)));
    assert_eq!(command("vm add web --nic mac=02:00:00:00:00:07"), add(VmPart::Nic(mac)));
    assert_eq!(command("vm remove web --disk scratch"), remove(VmPart::Disk(DiskSpec::own("scratch".into())), false));
    assert_eq!(command("vm remove web --nic mac=02:00:00:00:00:07 --force"), remove(VmPart::Nic(mac), true));
    assert_eq!(command("vm remove web --force --nic"), remove(VmPart::Nic(None), true));
    assert_eq!(error("vm add web"), "no disk, CD or NIC is named: give --disk DISK, --cdrom DISK or --nic");
    assert_eq!(error("vm remove web --disk a --nic"), "several things are named: one at a time");
    assert_eq!(error("vm remove web --disk a --cdrom b"), "several things are named: one at a time");
    assert!(error("vm add web --cdrom ''").starts_with("--cdrom names nothing"));
    assert_eq!(error("vm add web --disk a --disk b"), "--disk is given twice: give it once");
    assert!(error("vm add web --disk ''").starts_with("--disk names nothing"));
}

#[test]
fn what_is_done_to_a_vm() {
    for (word, action) in [
        ("start", VmAction::Start),
        ("stop", VmAction::Stop),
        ("kill", VmAction::Kill),
        ("reset", VmAction::Reset),
        ("pause", VmAction::Pause),
        ("resume", VmAction::Resume),
        ("delete", VmAction::Delete),
        ("erase-variables", VmAction::EraseVariables),
    ] {
        assert_eq!(command(&format!("vm {word} web")), Command::VmControl { name: name("web"), action });
    }
}

#[test]
fn a_vm_is_saved_to_a_disk_and_restored_from_one() {
    let (name, to, from) = (name("web"), "slot".into(), "slot".into());
    assert_eq!(command("vm save web --to slot"), Command::VmSave { name: name.clone(), to });
    assert_eq!(command("vm restore web --from slot"), Command::VmRestore { name, from });
    assert!(parse("vm save web").is_err(), "to where?");
}

#[test]
fn every_command_takes_json() {
    for spec in CATALOG {
        for example in spec.examples {
            let line = format!("{example} --json");
            if !example.contains("--json") {
                assert!(parse(&line).unwrap().unwrap().json, "{line}");
            }
        }
    }
    assert!(parse("disk --json").unwrap().unwrap().json);
    assert!(parse("vm show --json web").unwrap().unwrap().json);
    assert!(!parse("host").unwrap().unwrap().json);
}

#[test]
fn creates_a_vm() {
    let mut wanted = VmSpec::new(name("web"), Some("vmlinuz".into()));
    assert_eq!(command("vm create web --kernel vmlinuz"), Command::VmCreate(wanted.clone().into()));
    wanted.initrd = Some("initrd.img".into());
    wanted.add_module("one".into()).unwrap();
    wanted.add_module("two a=b c".into()).unwrap();
    wanted.command_line = "root=/dev/vda1 console=ttyS0".into();
    wanted.memory = Size::from_mib(1024);
    wanted.vcpus = 2;
    (wanted.weight, wanted.pin) = (50, vec![1, 0]);
    wanted.disks =
        vec![DiskSpec::own("web-root".into()), DiskSpec::own("my disk".into()), DiskSpec::cdrom("an iso".into())];
    wanted.nics = vec![NicSpec { mac: None }, NicSpec { mac: Mac::new([2, 0, 0, 0, 0, 7]) }, NicSpec { mac: None }];
    wanted.start = true;
    let line = "vm create --nic --kernel=vmlinuz web --initrd initrd.img --module one --module 'two a=b c' --cmdline \"root=/dev/vda1 console=ttyS0\" \
                --memory 1G --vcpus 2 --weight 50 --pin 1,0 --disk web-root --cdrom 'an iso' --disk \"my disk\" --nic mac=02:00:00:00:00:07 --start --nic";
    assert_eq!(command(line), Command::VmCreate(wanted.into()));
}

#[test]
fn a_quoted_value_may_look_like_an_option() {
    let Command::VmCreate(vm) = command("vm create a --kernel k --cmdline '--x y'") else { panic!() };
    assert_eq!(vm.command_line, "--x y");
}

#[test]
fn mistyped_commands_get_the_remedy() {
    for (line, message) in [
        ("hlep", "unknown command `hlep`: did you mean `help`?"),
        ("vn list", "unknown command `vn`: did you mean `vm`?"),
        ("vm strat web", "unknown command `vm strat`: did you mean `vm start`?"),
        ("start web", "unknown command `start`: did you mean `vm start`?"),
        ("xyzzy", "unknown command `xyzzy`: `help` lists the commands"),
        (
            "vm",
            "`vm` needs one more word: one of create, list, show, start, stop, kill, reset, pause, resume, measure, balloon, set, add, remove, save, restore, erase-variables, console, delete, migrate, such as `vm list`",
        ),
        (
            "vm --json",
            "`vm` needs one more word: one of create, list, show, start, stop, kill, reset, pause, resume, measure, balloon, set, add, remove, save, restore, erase-variables, console, delete, migrate, such as `vm list`",
        ),
        ("disk shwo x", "unknown command `disk shwo`: did you mean `disk show`?"),
        ("disk web-root", "unknown command `disk web-root`: `disk` goes with list, show, measure"),
        ("help vm strat", "unknown command `vm strat`: did you mean `vm start`?"),
        ("help xyzzy", "unknown command `xyzzy`: `help` lists the commands"),
    ] {
        assert_eq!(error(line), message);
    }
}

#[test]
fn mistyped_options_get_the_remedy() {
    for (line, message) in [
        ("vm create a --kernel k --memroy 1G", "unknown option --memroy: did you mean --memory?"),
        ("vm list --jsno", "unknown option --jsno: did you mean --json?"),
        ("log --count 3", "unknown option --count: `log` takes --lines, --json"),
        ("vm create a --kernel", "--kernel needs a value: write --kernel MODULE"),
        ("vm create a --kernel --start", "--kernel needs a value: write --kernel MODULE"),
        ("vm create a --kernel k --start=yes", "--start takes no value: write --start alone"),
        ("log --lines 3 --lines 4", "--lines is given twice: give it once"),
        (
            "vm create a --kernel k --nic=02:00:00:00:00:07",
            "--nic cannot have `02:00:00:00:00:07`: write --nic alone or --nic mac=02:00:00:00:00:07",
        ),
        (
            "vm create a --kernel k mac=02:00:00:00:00:07",
            "`mac=02:00:00:00:00:07` is one word too many: write it right behind --nic",
        ),
    ] {
        assert_eq!(error(line), message);
    }
}

#[test]
fn what_is_missing_or_too_much_is_named() {
    for (line, message) in [
        ("vm start", "`vm start` needs NAME: for example `vm start web`"),
        (
            "vm create --kernel k",
            "`vm create` needs NAME: for example `vm create db --disk db --memory 2G --vcpus 2 --nic mac=02:00:00:00:00:07`",
        ),
        ("vm create a", "the VM has nothing to boot: give it a kernel, or a disk or CD that it boots by UEFI"),
        ("vm start a b", "`b` is one word too many: `vm start` takes one NAME; quote it where it contains blanks"),
        ("host x", "`x` is one word too many: `host` takes only options; `help host` lists them"),
        ("disk show ''", "a name is empty: type `help disk show`"),
        ("vm create a --kernel ''", "--kernel names nothing: `modules` lists the boot modules"),
        ("vm list \"", "a \" is not closed: add \""),
        ("vm list \\", "the line ends with a backslash: type what it stands before"),
    ] {
        assert_eq!(error(line), message);
    }
}

#[test]
fn bad_values_say_what_is_allowed() {
    for (line, message) in [
        ("vm start Web", "`Web` is not a name: use 1 to 32 of a-z, 0-9 and -, such as web-1"),
        ("vm create a --kernel k --memory lots", "`lots` is not a size: write a number with K, M or G, such as 256M"),
        (
            "vm create a --kernel k --reserved 1M",
            "1M cannot be reserved for a VM of 256M: give a multiple of 2M up to its memory",
        ),
        ("vm create a --kernel k --memory 1M", "a VM cannot have 1M of memory: give 16M to 4T, such as 256M"),
        ("vm create a --kernel k --vcpus 0", "`0` is not a number of vCPUs: give 1 to 64"),
        ("vm create a --kernel k --weight 9", "`9` is not a weight: give 10 to 1000"),
        ("vm create a --kernel k --pin 1,", "`` is not a CPU's number: give 0 to 63"),
        ("vm create a --kernel k --vcpus two", "`two` is not a number of vCPUs: give 1 to 64"),
        ("vm create a --kernel k --vcpus ''", "`` is not a number of vCPUs: give 1 to 64"),
        (
            "vm create a --kernel k --disk d --disk d",
            "disk `d` is given twice: give each disk once, by its partition's name",
        ),
        ("vm create a --kernel k --nic mac=1", "`1` is not a MAC address: write six bytes, such as 02:00:00:00:00:07"),
        ("log --lines 0", "`0` is not a number of lines: give 1 to 100000"),
        ("log --lines 99999999999999999999", "`99999999999999999999` is not a number of lines: give 1 to 100000"),
        ("trace --cpu -1", "`-1` is not a CPU's number: give 0 to 4294967295"),
    ] {
        assert_eq!(error(line), message);
    }
}

proptest! {
    #[test]
    fn no_line_panics_and_every_error_is_one_line(line in "\\PC{0,80}") {
        if let Err(error) = parse(&line) {
            prop_assert!(!error.message.is_empty() && !error.remedy.is_empty());
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn no_mixture_of_words_panics(words in prop::collection::vec(prop::sample::select(vec![
        "vm", "create", "disk", "show", "help", "web", "--kernel", "--nic", "mac=02:00:00:00:00:07", "--json", "--memory",
        "1G", "\"", "'", "\\", "--", "--=", "=", "--help", "trace", "--cpu",
    ]), 0..8)) {
        let line = words.join(" ");
        let _ = parse(&line);
        crate::complete::complete(&line, &crate::complete::tests::SomeNames);
    }
}
