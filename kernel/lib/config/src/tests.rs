//! The configuration file as a whole.

use core::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

/// The error's line and text.
fn error(text: &str) -> (u32, String) {
    let error = parse(text).unwrap_err();
    (error.line, error.cause.to_string())
}

#[test]
fn an_empty_file_is_a_host_with_defaults() {
    let config = parse("# nothing\n").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.host.name.as_str(), "pollux");
    assert_eq!(config.host.management, Management::Dhcp);
    assert_eq!(config.host.detach_key, ControlKey::DETACH);
}

/// What [`reads_everything`] reads of the first VM.
fn everything() -> VmSpec {
    let mac = Mac::new([2, 0, 0, 0, 0, 7]);
    let mut web = VmSpec {
        modules: Vec::new(),
        name: "web".parse().unwrap(),
        kernel: Some("vmlinuz".into()),
        initrd: Some("initrd.img".into()),
        command_line: "root=/dev/vda1 console=ttyS0".into(),
        memory: Size::from_mib(1024),
        reserved: Size::from_mib(512),
        vcpus: 2,
        weight: 200,
        limits: Limits {
            cpu_percent: Some(150),
            iops: Some(500),
            disk_rate: Some(Size::from_mib(20)),
            ..Limits::default()
        },
        pin: vec![3, 2],
        disks: vec![DiskSpec::own("web-root".into()), DiskSpec::own("web data".into()), DiskSpec::cdrom("iso".into())],
        nics: vec![NicSpec { mac }, NicSpec { mac: None }],
        cpu_profile: None,
        debug_exit: true,
        debug_console: true,
        start: true,
    };
    web.add_module("one".into()).unwrap();
    web.add_module("two  with words".into()).unwrap();
    assert_eq!((web.modules[1].name(), web.modules[1].text()), ("two", "two  with words"));
    web
}

#[test]
fn the_texts_of_modules_fit_into_a_message() {
    let mut vm = VmSpec::new("web".parse().unwrap(), Some("kernel".into()));
    let text = format!("module {}", "x".repeat(2000));
    let taken = (0..32).take_while(|_| vm.add_module(text.clone()).is_ok()).count();
    assert_eq!(taken, (16 << 10) / text.len());
    let invalid = vm.add_module(text).unwrap_err();
    assert!(invalid.message.contains("together"), "{}", invalid.message);
    vm.add_module("small".into()).unwrap();
}

#[test]
fn reads_everything() {
    let config = parse(
        r#"
        [host]
        name = "rack1-03"
        management = "static"
        address = "192.168.7.20/24"
        gateway = "192.168.7.1"
        detach_key = "ctrl-q"

        [[vm]]
        name = "web"
        kernel = "vmlinuz"
        initrd = "initrd.img"
        command_line = "root=/dev/vda1 console=ttyS0"
        memory = "1G"
        reserved = "512M"
        vcpus = 2
        weight = 200
        cpu_limit = 150
        iops = 500
        disk_rate = "20M"
        pin = [3, 2]
        disks = ["web-root", "web data"]
        cdrom = "iso"
        modules = ["one", "two  with words"]
        nics = [{ mac = "02:00:00:00:00:07" }, {}]
        debug_exit = true
        debug_console = true
        autostart = true

        [[vm]]
        name = "db"
        kernel = "vmlinuz"
        nics = 2
        "#,
    )
    .unwrap();
    let address = StaticAddress {
        address: Ipv4Addr::new(192, 168, 7, 20),
        prefix_bits: 24,
        gateway: Some(Ipv4Addr::new(192, 168, 7, 1)),
    };
    assert_eq!(config.host.name.as_str(), "rack1-03");
    assert_eq!(config.host.management, Management::Static(address));
    assert_eq!(config.host.detach_key.byte(), 0x11);
    let mut db = VmSpec::new("db".parse().unwrap(), Some("vmlinuz".into()));
    db.nics = vec![NicSpec::default(); 2];
    assert_eq!(config.vms, [everything(), db]);
}

#[test]
fn the_example_in_the_documentation_is_good() {
    let source = include_str!("lib.rs");
    let lines = source.lines().map_while(|line| line.strip_prefix("//!")).skip_while(|line| line.trim() != "```toml");
    let example: Vec<&str> = lines.skip(1).take_while(|line| line.trim() != "```").collect();
    let config = parse(&example.join("\n")).unwrap();
    assert_eq!(config.vms.len(), 1);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    assert_eq!(error("[hots]\n"), (1, "unknown key `hots`: did you mean `host`?".into()));
    let (line, text) = error("[[vm]]\nname = \"a\"\nkernel = \"k\"\nmemroy = \"1G\"\n");
    assert_eq!((line, text.as_str()), (4, "unknown key `memroy`: did you mean `memory`?"));
    let (line, text) = error("[host]\n\nzzz = 1\n");
    assert_eq!(line, 3);
    assert_eq!(text, "unknown key `zzz`: [host] can have name, management, address, gateway, detach_key, key");
    let (line, text) = error("[[vm]]\nname = \"a\"\nkernel = \"k\"\nnics = [\n  { mca = \"\" },\n]\n");
    assert_eq!((line, text.as_str()), (5, "unknown key `mca`: did you mean `mac`?"));
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    assert_eq!(error("[host]\nname = pollux\n").0, 2);
    assert_eq!(error("[host]\nname = \"a\"\nname = \"b\"\n").0, 3);
    assert_eq!(error("[host\n").0, 1);
    assert!(!error("a = \"\n").1.contains('\n'));
}

#[test]
fn values_of_another_type_are_refused() {
    let vm = "[[vm]]\nname = \"a\"\nkernel = \"k\"\n";
    for (text, line, message) in [
        ("host = 1\n".into(), 1, "`host` must be a table, not integer: write [host] and its keys below"),
        (
            "[vm]\nname = \"a\"\n".into(),
            1,
            "`vm` must be an array, not table: write [[vm]] for each and its keys below",
        ),
        ("[host]\nname = 3\n".into(), 2, "`name` must be text, not integer: put it in double quotes"),
        (format!("{vm}memory = 256\n"), 4, "`memory` must be text, not integer: put it in double quotes"),
        (format!("{vm}vcpus = \"2\"\n"), 4, "`vcpus` must be a number, not string: write digits without quotes"),
        (format!("{vm}disks = \"d\"\n"), 4, "`disks` must be an array, not string: write disks = [\"one\", \"two\"]"),
        (format!("{vm}disks = [\n\"d\",\n1]\n"), 6, "`disks` must be text, not integer: put it in double quotes"),
        (
            format!("{vm}autostart = 1\n"),
            4,
            "`autostart` must be true or false, not integer: write true or false without quotes",
        ),
    ] {
        assert_eq!(error(&text), (line, message.into()), "{text}");
    }
}

#[test]
fn bad_values_of_a_vm_are_refused() {
    let vm = "[[vm]]\nname = \"a\"\nkernel = \"k\"\n";
    for (rest, message) in [
        ("memory = \"1X\"", "`1X` is not a size"),
        ("memory = \"1M\"", "a VM cannot have 1M of memory: give 16M to 4T"),
        ("memory = \"5T\"", "a VM cannot have 5T of memory"),
        ("reserved = \"257M\"", "257M cannot be reserved for a VM of 256M: give a multiple of 2M up to its memory"),
        ("memory = \"17M\"", "a VM cannot have 17M of memory: give a multiple of 2M"),
        ("vcpus = 0", "a VM cannot have 0 vCPUs: give 1 to 64"),
        ("vcpus = 65", "a VM cannot have 65 vCPUs"),
        ("vcpus = -1", "`vcpus` is negative"),
        ("weight = 9", "a VM cannot have a weight of 9: give 10 to 1000"),
        ("weight = 1001", "a VM cannot have a weight of 1001"),
        ("pin = [64]", "there is no CPU 64: give numbers from 0 to 63"),
        ("pin = [-1]", "`pin` is negative"),
        ("pin = 2", "`pin` must be an array"),
        ("vcpus = 0x7fffffffffffffff", "a VM cannot have"),
        ("initrd = \"\"", "`initrd` names nothing"),
        ("disks = [\"a\", \"a\"]", "disk `a` is given twice"),
        ("disks = [\"\"]", "a disk has no name"),
        ("cdrom = \"\"", "a disk has no name"),
        ("cdrom = 1", "`cdrom` must be text"),
        ("modules = [\"a\", \" \"]", "a module names nothing"),
        ("modules = [\"a\\u0000\"]", "a module's text contains a zero byte"),
        ("disks = [\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]", "a VM cannot have more than 8 disks"),
        ("nics = 9", "a VM cannot have more than 8 NICs"),
        ("nics = 9223372036854775807", "a VM cannot have more than 8 NICs"),
        ("nics = [{ mac = \"01:00:00:00:00:00\" }]", "`01:00:00:00:00:00` is a group address"),
        (
            "nics = [{ mac = \"02:00:00:00:00:01\" }, { mac = \"02:00:00:00:00:01\" }]",
            "MAC address 02:00:00:00:00:01 is given twice",
        ),
        ("command_line = \"a\\u0000b\"", "the kernel's command line contains a zero byte"),
    ] {
        let (line, text) = error(&format!("{vm}{rest}\n"));
        assert!(line == 4 && text.starts_with(message), "{rest}: line {line}: {text}");
    }
    let long = format!("{vm}command_line = \"{}\"\n", "x".repeat(2048));
    assert_eq!(error(&long).0, 4);
    let long = format!("{vm}modules = [\"{}\"]\n", "x".repeat(2048));
    assert_eq!(error(&long).1, "a module's text is too long: keep it to 2047 bytes");
    let many = format!("{vm}modules = [{}]\n", "\"m\",".repeat(33));
    assert_eq!(error(&many).1, "a VM cannot have more than 32 modules: leave some out");
    let (line, text) = error(&format!("{vm}disks = [\"a\"]\ncdrom = \"a\"\n"));
    assert!(line == 5 && text.starts_with("disk `a` is given twice"), "line {line}: {text}");
    let mut vm = VmSpec::new("a".parse().unwrap(), None);
    vm.add_disk(DiskSpec::cdrom("a".into())).unwrap();
    assert_eq!(vm.add_disk(DiskSpec::cdrom("b".into())).unwrap_err().message, "a VM cannot have two CDs");
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(error("\n[[vm]]\nkernel = \"k\"\n"), (2, "[[vm]] has no `name`: add name = \"web\"".into()));
    assert_eq!(
        error("[[vm]]\nname = \"a\"\n"),
        (1, "the VM has nothing to boot: give it a kernel, or a disk or CD that it boots by UEFI".into())
    );
}

#[test]
fn names_and_addresses_are_given_once() {
    let two = "[[vm]]\nname = \"a\"\nkernel = \"k\"\n[[vm]]\nname = \"a\"\nkernel = \"k\"\n";
    assert_eq!(error(two), (4, "a VM `a` is defined already: give each VM a name of its own".into()));
    let mac = "nics = [{ mac = \"02:00:00:00:00:01\" }]";
    let two = format!("[[vm]]\nname = \"a\"\nkernel = \"k\"\n{mac}\n[[vm]]\nname = \"b\"\nkernel = \"k\"\n{mac}\n");
    assert_eq!(error(&two).0, 5);
}

#[test]
fn bad_addresses_are_refused() {
    let host = "[host]\nmanagement = \"static\"\n";
    for (rest, line, message) in [
        ("", 1, "[host] has no `address`: add address = \"192.168.7.20/24\""),
        ("address = \"10.0.0.1\"", 3, "`10.0.0.1` has no prefix length"),
        ("address = \"10.0.0.256/8\"", 3, "`10.0.0.256/8` is not an IPv4 address"),
        ("address = \"10.0.0.1/0\"", 3, "`10.0.0.1/0` needs a prefix of 1 to 31 bits"),
        ("address = \"10.0.0.1/33\"", 3, "`10.0.0.1/33` needs a prefix"),
        ("address = \"10.0.0.1/+8\"", 3, "`10.0.0.1/+8` needs a prefix"),
        ("address = \"10.0.0.0/24\"", 3, "`10.0.0.0/24` is not an address for a host"),
        ("address = \"10.0.0.255/24\"", 3, "`10.0.0.255/24` is not an address for a host"),
        ("address = \"224.0.0.1/24\"", 3, "`224.0.0.1/24` is not an address for a host"),
        (
            "address = \"10.0.0.1/24\"\ngateway = \"10.0.1.1\"",
            4,
            "the gateway 10.0.1.1 cannot be reached from 10.0.0.1/24",
        ),
        ("address = \"10.0.0.1/24\"\ngateway = \"10.0.0.1\"", 4, "the gateway 10.0.0.1 cannot be reached"),
        ("address = \"10.0.0.1/24\"\ngateway = \"x\"", 4, "`x` is not an IPv4 address"),
    ] {
        let (at, text) = error(&format!("{host}{rest}\n"));
        assert!(at == line && text.starts_with(message), "{rest}: line {at}: {text}");
    }
    assert!(error("[host]\naddress = \"10.0.0.1/8\"\n").1.starts_with("DHCP gives the `address`"));
    assert!(error("[host]\nmanagement = \"none\"\n").1.contains("\"dhcp\" or \"static\""));
    assert!(parse("[host]\nmanagement = \"static\"\naddress = \"10.0.0.0/31\"\ngateway = \"10.0.0.1\"\n").is_ok());
}

#[test]
fn deep_and_long_texts_are_refused_quickly() {
    assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
    assert!(parse(&" ".repeat(TEXT_BYTES_MAX + 1)).is_err());
    assert!(parse(&"[[vm]]\n".repeat(10_000)).is_err());
}

proptest! {
    #[test]
    fn no_text_panics_and_every_error_names_a_line_of_it(text in "(\\[\\[?(vm|host|nics)\\]?\\]\n|(name|kernel|memory|nics|vcpus|disks|address|management) ?= ?(\"[a-z0-9/.:]{0,8}\"|-?[0-9]{1,20}|\\[.{0,6}\\]|\\{.{0,6}\\}|0x[0-9a-f]+|inf|.{0,5})\n|.{0,12}\n?){0,12}") {
        if let Err(error) = parse(&text) {
            prop_assert!(error.line >= 1 && error.line as usize <= text.matches('\n').count() + 1);
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
    }
}
