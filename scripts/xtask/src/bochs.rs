//! Finds Bochs, which emulates Intel's VT-x: version 3, built once from Debian's source, or else Debian 12's own version 2.
//! The main function is [`find`].
//!
//! Version 3 executes 2.5 to 3 times as many instructions a second, and has posted interrupts; Debian 12 does not package it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use e2e::{Bochs, Release};

use crate::{guest, setup, steps};

/// Debian 13's source of Bochs 3.0, below any mirror of Debian's, and its hash.
const SOURCE: &str = "pool/main/b/bochs/bochs_3.0+dfsg.orig.tar.xz";
const SOURCE_SHA256: &str = "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b";
/// Where it is when no mirror of this machine's has it.
const MIRROR: &str = "http://deb.debian.org/debian";
/// What tests need and no more: a debugger, for one, would cost speed. Without `--disable-show-ips` a signal handler logs,
/// and can deadlock with what it interrupts.
const CONFIGURE: &str = "--with-nogui --disable-docbook --enable-all-optimizations --enable-cpu-level=6 --enable-x86-64 \
                         --enable-smp --enable-vmx=2 --enable-svm --enable-avx --enable-evex --enable-amx --enable-memtype \
                         --enable-protection-keys --enable-cet --enable-pci --enable-usb --enable-e1000 --enable-cdrom \
                         --enable-large-ramfile --enable-a20-pin --disable-show-ips";
const FLAGS: &str = "-O2 -pipe";

/// Mistakes and gaps that are mended before it is built: a file, what stands there once, and what shall.
const MENDS: [(&str, &str, &str); 30] = [
    // The first two are in the loop for several CPUs; with one, another loop runs. These variables live across setjmp: where
    // they are in registers each exception or VM exit sets them back, so that the first CPU hardly runs while another's
    // guest exits, and time stands almost still.
    (
        "main.cc",
        "Bit32u executed = 0, processor = 0;\n        bool run = true;",
        "volatile Bit32u executed = 0, processor = 0;\n        volatile bool run = true;",
    ),
    // An exception leaves `prev_rip` at the instruction that raised it. A VM exit before its handler's first instruction
    // would give that as the guest's RIP, with the exception's frame on the guest's stack.
    (
        "cpu/cpu.cc",
        "void BX_CPU_C::cpu_run_trace(void)\n{\n",
        "void BX_CPU_C::cpu_run_trace(void)\n{\n  prev_rip = RIP;\n  speculative_rsp = false;\n\n",
    ),
    // A guest's trap that waits when it leaves for something else than an exception would be raised in its host.
    (
        "cpu/svm.cc",
        "  BX_CPU_THIS_PTR in_svm_guest = false;\n",
        "  BX_CPU_THIS_PTR in_svm_guest = false;\n  BX_CPU_THIS_PTR debug_trap = 0;\n",
    ),
    // A #DB that its host intercepts has changed DR6 and DR7 as it would for its handler (APM volume 2, 15.12.2).
    (
        "cpu/svm.cc",
        "  BX_CPU_THIS_PTR debug_trap = 0; // clear debug_trap field\n",
        "  if (vector == BX_DB_EXCEPTION) {\n    \
         BX_CPU_THIS_PTR dr6.val32 = (BX_CPU_THIS_PTR dr6.val32 & 0xffff6ff0) | (BX_CPU_THIS_PTR debug_trap & 0xe00f);\n    \
         BX_CPU_THIS_PTR dr7.set_GD(0);\n  }\n  \
         BX_CPU_THIS_PTR debug_trap = 0;\n",
    ),
    // VMRUN would leave CR2 as the host or another guest had it (APM volume 2, 15.5.1).
    (
        "cpu/svm.cc",
        "  BX_CPU_THIS_PTR cr3 = guest.cr3;\n",
        "  BX_CPU_THIS_PTR cr3 = guest.cr3;\n  BX_CPU_THIS_PTR cr2 = guest.cr2;\n",
    ),
    // A guest that is entered with IF clear would not leave for its host's interrupts: what masks them looks at whether a
    // guest runs before that is noted, and does not let in again what was masked before: two mends.
    (
        "cpu/svm.cc",
        "  BX_CPU_THIS_PTR svm_gif = true;\n  BX_CPU_THIS_PTR async_event = 1;\n\n  //\n  // Step 4",
        "  BX_CPU_THIS_PTR svm_gif = true;\n  handleInterruptMaskChange();\n  BX_CPU_THIS_PTR async_event = 1;\n\n  \
         //\n  // Step 4",
    ),
    (
        "cpu/flag_ctrl_pro.cc",
        "mask_event(BX_EVENT_PENDING_INTR | BX_EVENT_PENDING_LAPIC_INTR | BX_EVENT_PENDING_UINTR);\n\n     mask_event",
        "mask_event(BX_EVENT_PENDING_INTR | BX_EVENT_PENDING_LAPIC_INTR | BX_EVENT_PENDING_UINTR);\n     else\n       \
         unmask_event(BX_EVENT_PENDING_INTR | BX_EVENT_PENDING_LAPIC_INTR | BX_EVENT_PENDING_UINTR);\n\n     mask_event",
    ),
    // A physical interrupt would deliver a virtual one that waits for the guest to set IF.
    (
        "cpu/event.cc",
        "if (is_pending(BX_EVENT_PENDING_VMX_VIRTUAL_INTR))",
        "if (is_unmasked_event_pending(BX_EVENT_PENDING_VMX_VIRTUAL_INTR))",
    ),
    // A notification after everything posted was taken would have vector 255 wait for ever.
    (
        "cpu/vapic.cc",
        "  vector = BX_CPU_THIS_PTR lapic->highest_priority_int(virr);\n  if (vector >= vm->rvi) vm->rvi = vector;",
        "  int highest = BX_CPU_THIS_PTR lapic->highest_priority_int(virr);\n  \
         if (highest >= vm->rvi) vm->rvi = highest;",
    ),
    // An exit from the delivery of a virtual interrupt would name the event before it (SDM volume 3, 28.2.4).
    (
        "cpu/vapic.cc",
        "    interrupt(vector, BX_EXTERNAL_INTERRUPT, 0, 0);\n",
        "    vm->idt_vector_error_code = 0;\n    vm->idt_vector_info = vector | (BX_EXTERNAL_INTERRUPT << 8);\n    \
         interrupt(vector, BX_EXTERNAL_INTERRUPT, 0, 0);\n",
    ),
    // STTILECFG would have another encoding than the manual gives.
    (
        "cpu/decoder/fetchdecode_opmap_avx.cc",
        "ATTR_VEX_W1 | ATTR_VL128 | ATTR_MOD_MEM | ATTR_IS64, BX_IA_STTILECFG",
        "ATTR_VEX_W0 | ATTR_VL128 | ATTR_MOD_MEM | ATTR_IS64, BX_IA_STTILECFG",
    ),
    // Rows and bytes per row of a tile are stored in each other's place.
    (
        "cpu/xsave.cc",
        "      tilecfg.vmm16u(8+n)    = BX_CPU_THIS_PTR amx->tilecfg[n].rows;\n      \
         tilecfg.vmmubyte(48+n) = BX_CPU_THIS_PTR amx->tilecfg[n].bytes_per_row;\n",
        "      tilecfg.vmm16u(8+n)    = BX_CPU_THIS_PTR amx->tilecfg[n].bytes_per_row;\n      \
         tilecfg.vmmubyte(48+n) = BX_CPU_THIS_PTR amx->tilecfg[n].rows;\n",
    ),
    // Half of each tile would be saved, and half come back: two mends.
    (
        "cpu/xsave.cc",
        "row < BX_TILE_REGISTERS; row++) {\n      write_virtual_zmmword",
        "row < BX_TILE_MAX_ROWS; row++) {\n      write_virtual_zmmword",
    ),
    (
        "cpu/xsave.cc",
        "row < BX_TILE_REGISTERS; row++) {\n      read_virtual_zmmword",
        "row < BX_TILE_MAX_ROWS; row++) {\n      read_virtual_zmmword",
    ),
    // Tiles count as in use while none is, and before the first is from what was in memory: two mends.
    (
        "cpu/xsave.cc",
        "(BX_CPU_THIS_PTR amx->tile_use_tracker == 0);",
        "(BX_CPU_THIS_PTR amx->tile_use_tracker != 0 && BX_CPU_THIS_PTR msr.ia32_xfd == 0);",
    ),
    (
        "cpu/avx/amx.h",
        "AMX(): palette_id(0), start_row(0) {}",
        "AMX(): palette_id(0), start_row(0), tile_use_tracker(0) {}",
    ),
    // AMX has no IA32_XFD, without which no system uses it (SDM volume 1, 13.14). The registers, in five mends:
    ("cpu/cpu.h", "  Bit64u ia32_xss;\n", "  Bit64u ia32_xss, ia32_xfd, ia32_xfd_err;\n"),
    (
        "cpu/init.cc",
        "  BX_CPU_THIS_PTR msr.ia32_xss = 0;\n",
        "  BX_CPU_THIS_PTR msr.ia32_xss = BX_CPU_THIS_PTR msr.ia32_xfd = BX_CPU_THIS_PTR msr.ia32_xfd_err = 0;\n",
    ),
    (
        "cpu/msr.cc",
        "  msr_desc[BX_MSR_XSS] =",
        "  msr_desc[BX_MSR_IA32_XFD] = new MSR_Descriptor(\"MSR_IA32_XFD\", BX_ISA_AMX);\n  \
         msr_desc[BX_MSR_IA32_XFD_ERROR] = new MSR_Descriptor(\"MSR_IA32_XFD_ERR\", BX_ISA_AMX);\n  \
         msr_desc[BX_MSR_XSS] =",
    ),
    (
        "cpu/msr.cc",
        "    case BX_MSR_XSS:\n      if",
        "    case BX_MSR_IA32_XFD:\n    case BX_MSR_IA32_XFD_ERROR:\n      \
         val64 = index == BX_MSR_IA32_XFD ? BX_CPU_THIS_PTR msr.ia32_xfd : BX_CPU_THIS_PTR msr.ia32_xfd_err;\n      \
         break;\n    case BX_MSR_XSS:\n      if",
    ),
    (
        "cpu/msr.cc",
        "    case BX_MSR_XSS:\n      {",
        "    case BX_MSR_IA32_XFD:\n    case BX_MSR_IA32_XFD_ERROR:\n      \
         if (val_64 & ~Bit64u(BX_XCR0_XTILEDATA_MASK)) return false;\n      \
         (index == BX_MSR_IA32_XFD ? BX_CPU_THIS_PTR msr.ia32_xfd : BX_CPU_THIS_PTR msr.ia32_xfd_err) = val_64;\n      \
         handleAvxModeChange();\n      break;\n    case BX_MSR_XSS:\n      {",
    ),
    // What CPUID says of them, in two:
    (
        "cpu/cpuid.cc",
        "      leaf->eax |= (1<<3);\n\n    // EBX[31:00]",
        "      leaf->eax |= (1<<3);\n    if (is_cpu_extension_supported(BX_ISA_AMX))\n      leaf->eax |= (1<<4);\n\n    \
         // EBX[31:00]",
    ),
    (
        "cpu/cpuid.cc",
        "      leaf->ecx = (cpu->ia32_xss_suppmask & (1 << subfunction)) != 0;\n",
        "      leaf->ecx = (cpu->ia32_xss_suppmask & (1 << subfunction)) != 0;\n      \
         if (subfunction == xcr0_t::BX_XCR0_XTILEDATA_BIT) leaf->ecx |= 1 << 2;\n",
    ),
    // And what they do, in three: tiles cannot be used, nor restored; and seem unused, see above.
    (
        "cpu/proc_ctrl.cc",
        "(BX_XCR0_XTILECFG_MASK | BX_XCR0_XTILEDATA_MASK)) != 0)\n    clear_amx_ok();",
        "(BX_XCR0_XTILECFG_MASK | BX_XCR0_XTILEDATA_MASK)) != 0 ||\n      BX_CPU_THIS_PTR msr.ia32_xfd != 0)\n    \
         clear_amx_ok();",
    ),
    (
        "cpu/proc_ctrl.cc",
        "  if (~BX_CPU_THIS_PTR xcr0.val32 & (BX_XCR0_XTILECFG_MASK | BX_XCR0_XTILEDATA_MASK))\n    \
         exception(BX_UD_EXCEPTION, 0);\n",
        "  if (~BX_CPU_THIS_PTR xcr0.val32 & (BX_XCR0_XTILECFG_MASK | BX_XCR0_XTILEDATA_MASK))\n    \
         exception(BX_UD_EXCEPTION, 0);\n\n  \
         if (i->getIaOpcode() == BX_IA_STTILECFG) { STTILECFG(i); return; }\n  \
         if (i->getIaOpcode() == BX_IA_TILERELEASE) { TILERELEASE(i); return; }\n  \
         BX_CPU_THIS_PTR msr.ia32_xfd_err = BX_CPU_THIS_PTR msr.ia32_xfd;\n  \
         exception(BX_NM_EXCEPTION, 0);\n",
    ),
    (
        "cpu/xsave.cc",
        "  Bit32u restore_mask = xstate_bv & format;\n",
        "  Bit32u restore_mask = xstate_bv & format;\n  \
         if (requested_feature_bitmap & restore_mask & BX_CPU_THIS_PTR msr.ia32_xfd) {\n    \
         BX_CPU_THIS_PTR msr.ia32_xfd_err = BX_CPU_THIS_PTR msr.ia32_xfd;\n    \
         exception(BX_NM_EXCEPTION, 0);\n  }\n",
    ),
    // The last four are in what carries a network card's frames, of which a move sends more than one a millisecond.
    ("iodev/network/eth_socket.cc", "#define BX_PACKET_POLL  1000 ", "#define BX_PACKET_POLL  100 "),
    // A frame for which the card has no room yet would be lost, as would those behind it in a socket that is full: two mends.
    (
        "iodev/network/eth_socket.cc",
        "#include \"netmod.h\"\n",
        "#include \"netmod.h\"\n#include <deque>\n#include <vector>\n",
    ),
    (
        "iodev/network/eth_socket.cc",
        "  nbytes = recvfrom(this->fd, (char*)rxbuf, sizeof(rxbuf), MSG_NOSIGNAL,\n                    \
         (struct sockaddr*) &sin, &slen);\n",
        "  static std::deque<std::vector<Bit8u> > waiting;\n  \
         while ((nbytes = recvfrom(this->fd, (char*)rxbuf, sizeof(rxbuf), MSG_NOSIGNAL,\n                            \
         (struct sockaddr*) &sin, &slen)) > 0)\n    \
         waiting.emplace_back(rxbuf, rxbuf + nbytes);\n  \
         if (waiting.empty() || !(this->rxstat(this->netdev) & BX_NETDEV_RXREADY))\n    \
         return;\n  \
         nbytes = (int)waiting.front().size();\n  \
         memcpy(rxbuf, &waiting.front()[0], nbytes);\n  \
         waiting.pop_front();\n",
    ),
    // The card itself knows which addresses it listens to; a hypervisor's is to hear its guests'.
    (
        "iodev/network/eth_socket.cc",
        "  if ((memcmp(rxbuf, this->socket_macaddr, 6) != 0) &&\n      (memcmp(rxbuf, broadcast_macaddr, 6) != 0)) {\n    \
         return;\n  }\n",
        "",
    ),
];

/// Debian's packages: version 2, and the BIOS that both run.
const PACKAGED: &str = "/usr/bin/bochs";
const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VIDEO_BIOS: [&str; 2] = ["/usr/share/seabios/vgabios-stdvga.bin", "/usr/share/bochs/VGABIOS-lgpl-latest"];

/// Bochs, built if it must be; version 2 where that fails.
pub fn find() -> Result<Bochs> {
    let video_bios = VIDEO_BIOS.into_iter().map(Path::new).find(|path| path.exists());
    let video_bios = video_bios.context("no video BIOS for Bochs is installed (package seabios)")?;
    ensure!(Path::new(BIOS).exists(), "{BIOS} is missing (package bochsbios)");
    let (program, release) = match guest::cached("bochs", &recipe(), build) {
        Ok(folder) => (folder.join("bochs"), Release::Three),
        Err(error) => {
            eprintln!("{error:#}\nnote: going on with Debian's package of Bochs 2.7, which is slower");
            (packaged()?, Release::Two)
        }
    };
    Ok(Bochs { program, release, bios: BIOS.into(), video_bios: video_bios.to_path_buf() })
}

fn recipe() -> String {
    let mends = MENDS.map(|(_, _, after)| after).join("\n");
    [SOURCE_SHA256, CONFIGURE, FLAGS, &mends].join("\n")
}

/// The package, installed when that can be done.
fn packaged() -> Result<PathBuf> {
    if !Path::new(PACKAGED).exists() {
        ensure!(setup::is_root(), "Bochs is missing; run: sudo apt-get install bochs bochs-term");
        setup::install_packages(&["bochs", "bochs-term"])?;
    }
    Ok(PACKAGED.into())
}

fn build(folder: &Path) -> Result<()> {
    let archive = folder.join("bochs.tar.xz");
    download(&archive)?;
    steps::output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(folder)).context("unpacking Bochs")?;
    let tree = folder.join("bochs-3.0");
    for (file, before, after) in MENDS {
        mend(&tree.join(file), before, after)?;
    }
    let mut configure = Command::new("./configure");
    configure.current_dir(&tree).env("CFLAGS", FLAGS).env("CXXFLAGS", FLAGS).args(CONFIGURE.split_whitespace());
    steps::logged("configuring Bochs", "bochs-configure", &mut configure)?;
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut make = Command::new("make");
    make.current_dir(&tree).arg(format!("-j{jobs}"));
    steps::logged("building Bochs (two CPU minutes, once)", "bochs-make", &mut make)?;
    fs::rename(tree.join("bochs"), folder.join("bochs")).context("taking the program out of Bochs' tree")?;
    fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))
}

fn mend(path: &Path, before: &str, after: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(text.matches(before).count() == 1, "{} is not as expected", path.display());
    fs::write(path, text.replace(before, after)).with_context(|| format!("writing {}", path.display()))
}

/// Downloads the source by APT's own helper, which knows this machine's proxy and checks the hash.
fn download(archive: &Path) -> Result<()> {
    const HELPER: &str = "/usr/lib/apt/apt-helper";
    ensure!(Path::new(HELPER).exists(), "Bochs 3 is not built: there is no {HELPER} to download its source by");
    let mut mirrors = setup::mirrors();
    if !mirrors.iter().any(|mirror| mirror.trim_end_matches('/') == MIRROR) {
        mirrors.push(MIRROR.to_owned());
    }
    let mut last = None;
    for mirror in mirrors {
        let mut helper = Command::new(HELPER);
        helper.arg("download-file").arg(format!("{}/{SOURCE}", mirror.trim_end_matches('/'))).arg(archive);
        helper.arg(format!("SHA256:{SOURCE_SHA256}"));
        match steps::logged("downloading the source of Bochs", "bochs-download", &mut helper) {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.context("Bochs 3 is not built: its source cannot be had")),
        None => bail!("Bochs 3 is not built: there is no mirror"),
    }
}
