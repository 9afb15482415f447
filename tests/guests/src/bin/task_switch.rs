//! Checks hardware task switches: by JMP, CALL and IRET, and through task gates by exceptions and interrupts; with segments
//! of 16 and 32 bits, other page tables, and wrong ones.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "`guest!` exports a symbol, and instructions are given as bytes")]

use guests::legacy_modes::{self, BASE, CODE, Fault, Mode, Registers, get, put};
use guests::tasks::{self, MAIN, MAPPED, NARROW, OTHER, PROLOGUE, STACK, field, selector, word};
use guests::{apic, boot, guest, println, tap};

guest!(task_switch);

const BUSY: u64 = 0x8b;
const AVAILABLE: u64 = 0x89;
const NESTED: u64 = 1 << 14;
const INTERRUPTS: u64 = 1 << 9;
const TASK_SWITCHED: u64 = 1 << 3;
const UNDEFINED: u64 = 6;
const DOUBLE_FAULT: u64 = 8;
const INVALID_TSS: u64 = 10;
const NOT_PRESENT: u64 = 11;
const PROTECTION: u64 = 13;
const UD2: &[u8] = &[0x0f, 0x0b];
/// MOV DS, EAX.
const LOAD_DS: &[u8] = &[0x8e, 0xd8];

fn task_switch() {
    // QEMU's processor has two faults of its own, Bochs' SVM one. The words lie where the tasks will.
    let (is_tcg, has_int) = (boot::number("tcg") == Some(1), boot::number("int") != Some(0));
    legacy_modes::start();
    jump();
    call();
    debug_registers(is_tcg);
    exceptions(has_int);
    interrupts();
    nmis();
    narrow();
    level_3();
    virtual_8086();
    paged(Mode::Paged32);
    paged(Mode::PagedPae);
    wrong();
    wrong_inside(is_tcg);
}

fn jump() {
    println!("# JMP");
    tasks::prepare(Mode::Protected32);
    tasks::tell(word::JUMPS, 1);
    put(OTHER + field::LINK, 0x77);
    put(OTHER + field::EFLAGS, 0x8d7);
    put(OTHER + field::LDT, selector::LDT.into());
    put(OTHER + field::FS, selector::LOCAL.into());
    put(OTHER + field::GS, 0);
    let before = Registers { eax: 0x11, ebx: 0x22, ecx: 0x33, edx: 0x44, edi: 0x66, ..Registers::default() };
    let after = goes(Mode::Protected32, &tasks::jump(selector::OTHER), before, "there and back");
    tap::check(Registers { esi: 0, ..after } == before, "the old task's registers are kept");
    tap::check(u64::from(after.esi) & TASK_SWITCHED != 0, "CR0.TS is set");
    let is_loaded = (0..8).zip([0x1001, 0x1002, 0x1003, 0x1004, STACK, 0x1006, 0x1007, 0x1008]);
    let is_loaded = is_loaded.fold(true, |all, (index, value)| all && seen(word::GPRS + 4 * index) == value);
    tap::check(is_loaded, "the new task's registers are loaded");
    tap::check(seen(word::EFLAGS) == 0x8d7, "and its flags, NT as it is there");
    tap::check(seen(word::TR) == selector::OTHER.into() && seen(word::LDT) == selector::LDT.into(), "TR and LDTR");
    tap::check(seen(word::GS) == 0, "a null selector");
    tap::check(noted_rights() == (AVAILABLE, BUSY), "the old task is busy no more, the new one is");
    tap::check(seen(word::LINK) == 0x77, "the link is left alone");
    tap::check(all_rights() == (BUSY, AVAILABLE), "and the other way round on the way back");
    tap::check(tasks::left_at() == 7, "the old task goes on behind its JMP");
    tap::check(get(OTHER + field::ESP) == STACK && get(OTHER + field::DS) == selector::FLAT.into(), "and is saved");
}

fn call() {
    println!("# CALL and IRET");
    tasks::prepare(Mode::Protected32);
    let twice: [[u8; 7]; 2] = [tasks::call(selector::OTHER); 2];
    goes(Mode::Protected32, twice.as_flattened(), Registers::default(), "there and back, twice");
    tap::check(seen(word::COUNT) == 2, "a task goes on where it returned");
    tap::check(seen(word::LINK) == selector::MAIN.into(), "the link is the old task's");
    tap::check(seen(word::EFLAGS) & NESTED != 0, "NT is set");
    tap::check(noted_rights() == (BUSY, BUSY), "both are busy");
    tap::check(get(OTHER + field::EFLAGS) & NESTED == 0, "IRET saves NT clear");
    tap::check(all_rights() == (BUSY, AVAILABLE), "and leaves its task not busy");
    tasks::prepare(Mode::Protected32);
    goes(Mode::Protected32, &tasks::call(selector::GATE), Registers::default(), "through a task gate");
    tap::check(seen(word::TR) == selector::OTHER.into(), "to its task");
}

fn debug_registers(is_tcg: bool) {
    println!("# Debug registers");
    tasks::prepare(Mode::Protected32);
    // MOV DR7, EAX; the CALL; MOV EAX, DR7; XOR ECX, ECX; MOV DR7, ECX.
    let [a, b, c, d, e, f, g] = tasks::call(selector::OTHER);
    let code = [0x0f, 0x23, 0xf8, a, b, c, d, e, f, g, 0x0f, 0x21, 0xf8, 0x31, 0xc9, 0x0f, 0x23, 0xf9];
    // The first locally, the second globally, for writes that do not come.
    let before = Registers { eax: 0x0011_0409, ..Registers::default() };
    let after = goes(Mode::Protected32, &code, before, "with breakpoints");
    tap::check(seen(word::DR7) & 0xff == 8 && after.eax & 0xff == 8, "local breakpoints are disabled, others are not");
    if is_tcg {
        return tap::skip("the T flag", "QEMU's TCG ignores it");
    }
    tasks::prepare(Mode::Protected32);
    put(OTHER + field::TRAP, 1);
    let expected = Fault { vector: 1, error_code: 0, offset: get(OTHER + field::EIP).wrapping_sub(BASE + CODE) };
    ends(
        &tasks::jump(selector::OTHER),
        Registers::default(),
        expected,
        "the T flag traps before the first instruction",
    );
}

fn exceptions(has_int: bool) {
    println!("# Exceptions");
    tasks::prepare(Mode::Protected32);
    tasks::gate(UNDEFINED);
    tasks::tell(word::SKIPS, UD2.len() as u64);
    goes(Mode::Protected32, UD2, Registers::default(), "#UD through a task gate");
    tap::check(seen(word::GPRS + 16) == STACK, "pushes nothing");
    tap::check(seen(word::EFLAGS) & NESTED != 0 && seen(word::LINK) == selector::MAIN.into(), "and returns");
    for (stack, top) in [(STACK, "a stack of 32 bits"), (STACK + 2, "a stack that is not aligned")] {
        tasks::prepare(Mode::Protected32);
        tasks::gate(PROTECTION);
        put(OTHER + field::ESP, stack);
        tasks::tell(word::SKIPS, LOAD_DS.len() as u64);
        tasks::tell(word::POPS, 4);
        let before = Registers { eax: 0x1234, ..Registers::default() };
        goes(Mode::Protected32, LOAD_DS, before, "#GP through a task gate");
        tap::check(seen(word::GPRS + 16) == stack - 4 && seen(word::TOP) == 0x1234, top);
    }
    tasks::prepare(Mode::Protected32);
    tasks::gate(DOUBLE_FAULT);
    // No gate for #GP, and none for the #NP of that.
    put(BASE + 0x200 + 8 * PROTECTION + 4, 0);
    tasks::tell(word::SKIPS, LOAD_DS.len() as u64);
    tasks::tell(word::POPS, 4);
    let before = Registers { eax: 0x1234, ..Registers::default() };
    goes(Mode::Protected32, LOAD_DS, before, "#DF through a task gate");
    tap::check(seen(word::GPRS + 16) == STACK - 4 && seen(word::TOP) == 0, "pushes a zero");
    if !has_int {
        return tap::skip("INT through a task gate", "the emulator takes it for another event");
    }
    tasks::prepare(Mode::Protected32);
    tasks::gate(0x31);
    goes(Mode::Protected32, &[0xcd, 0x31], Registers::default(), "INT through a task gate");
    tap::check(seen(word::GPRS + 16) == STACK && tasks::left_at() == 2, "goes on behind itself");
}

fn interrupts() {
    const VECTOR: u8 = 0x32;
    println!("# Interrupts");
    apic::start();
    tasks::prepare(Mode::Protected32);
    tasks::gate(VECTOR.into());
    apic::send_to_self(VECTOR);
    // STI, five NOPs, CLI.
    let code = [0xfb, 0x90, 0x90, 0x90, 0x90, 0x90, 0xfa];
    goes(Mode::Protected32, &code, Registers::default(), "an interrupt through a task gate");
    apic::acknowledge();
    tap::check(seen(word::COUNT) == 1 && seen(word::EFLAGS) & INTERRUPTS == 0, "comes once, with the task's flags");
    tap::check(get(MAIN + field::EFLAGS) & INTERRUPTS != 0, "and saves those of the old task");
}

fn nmis() {
    const COMMAND: u32 = 0x830;
    const NMI: u32 = 0x4400;
    println!("# NMIs");
    if !apic::has_x2apic() {
        return tap::skip("NMIs through a task gate", "no x2APIC mode");
    }
    tasks::prepare(Mode::Protected32);
    tasks::gate(2);
    // WRMSR, CPUID, and again with the registers that CPUID changes.
    let [a, b, c, d] = COMMAND.to_le_bytes();
    let [e, f, ..] = NMI.to_le_bytes();
    let send = [0xb9, a, b, c, d, 0xb8, e, f, 0, 0, 0x89, 0xfa, 0x0f, 0x30, 0x31, 0xc0, 0x0f, 0xa2];
    let before = Registers { edi: apic::id(), ..Registers::default() };
    goes(Mode::Protected32, [send; 2].as_flattened(), before, "two NMIs through a task gate");
    tap::check(seen(word::COUNT) == 2, "the first one's IRET lets the second come");
}

fn narrow() {
    println!("# 16 bits");
    tasks::prepare(Mode::Protected32);
    let before = Registers { eax: 0x1234_5678, ebx: 0x9abc_def0, ..Registers::default() };
    let after = goes(Mode::Protected32, &tasks::call(selector::NARROW), before, "there and back");
    tap::check((after.eax, after.ebx) == (before.eax, before.ebx), "the old task's registers are kept");
    let noted = [0, 4, 8, 12, 16].map(|at| seen(word::NARROW + at));
    tap::check(noted[0] & 0xffff == 0x1001 && noted[1] & 0xffff == 0x2800, "the new task's are loaded");
    tap::check(noted[2] & 0xffff == 2 | NESTED && noted[3] == selector::NARROW.into(), "flags and TR");
    tap::check(noted[4] == 0, "FS is null");
    tap::check(get(NARROW) & 0xffff == selector::MAIN.into(), "the link");
    tap::check(get(NARROW + 0x10) & 0xffff == 2 && get(NARROW + 0x2c) == 0, "it is saved with its 16 bits");
    tap::check(tasks::rights(selector::NARROW) == 0x81, "and busy no more");
}

fn level_3() {
    println!("# Level 3");
    tasks::prepare(Mode::Protected32);
    put(OTHER + field::CS, selector::USER_CODE.into());
    for register in [field::ES, field::SS, field::DS] {
        put(OTHER + register, selector::USER_DATA.into());
    }
    for register in [field::FS, field::GS] {
        put(OTHER + register, 0);
    }
    put(OTHER + field::EIP, BASE + 0x2e00);
    // MOV EAX, CS; MOV [SEEN], EAX; IRET.
    for (at, code) in (0..).step_by(4).zip([0x00a3_c88c, 0xcf00_0208]) {
        put(BASE + 0x2e00 + at, code);
    }
    goes(Mode::Protected32, &tasks::call(selector::OTHER), Registers::default(), "there and back");
    tap::check(seen(word::GPRS) == selector::USER_CODE.into(), "code of that level runs");
}

fn virtual_8086() {
    const VIRTUAL: u64 = 1 << 17;
    println!("# Virtual-8086 mode");
    tasks::prepare(Mode::Protected32);
    put(OTHER + field::EFLAGS, 2 | VIRTUAL);
    put(OTHER + field::CS, BASE >> 4);
    put(OTHER + field::SS, BASE >> 4);
    put(OTHER + field::EIP, 0x2e00);
    // MOV AX, 1234h; UD2.
    put(BASE + 0x2e00, 0x0f12_34b8);
    put(BASE + 0x2e04, 0x0b);
    let expected = Fault { vector: UNDEFINED, error_code: 0, offset: 0x2e03_u64.wrapping_sub(BASE + CODE) };
    let after = ends(&tasks::jump(selector::OTHER), Registers::default(), expected, "its code runs");
    tap::check(after.eax & 0xffff == 0x1234, "with its registers");
}

fn paged(mode: Mode) {
    const FRAME: u64 = 0x0200_0000;
    println!("# {mode:?}");
    tasks::prepare(mode);
    put(OTHER + field::CR3, other_tables(mode, FRAME));
    put(MAPPED & 0xfff_ffff, 0x1111_1111);
    put(FRAME | MAPPED & 0x3f_ffff, 0x2222_2222);
    let entry = legacy_modes::entry(mode, MAPPED);
    let old = get(entry);
    put(entry, 0x83);
    // MOV EAX, [MAPPED]; the CALL; MOV EDX, [MAPPED]; MOV EDI, CR3.
    let [a, b, c, d, ..] = MAPPED.to_le_bytes();
    let [e, f, g, h, i, j, k] = tasks::call(selector::OTHER);
    let code = [0xa1, a, b, c, d, e, f, g, h, i, j, k, 0x8b, 0x15, a, b, c, d, 0x0f, 0x20, 0xdf];
    let before = Registers { ds: selector::FLAT.into(), ..Registers::default() };
    let after = goes(mode, &code, before, "there and back");
    put(entry, old);
    tap::check(seen(word::CR3) == get(OTHER + field::CR3), "the new task's tables are used");
    tap::check(u64::from(after.edi) == legacy_modes::cr3(mode), "then the old one's again");
    tap::check(seen(word::MAPPED) == 0x2222_2222, "what was cached of the old one's is forgotten");
    tap::check((after.eax, after.edx) == (0x1111_1111, 0x1111_1111), "and what was of the new one's");
}

/// Makes page tables that are the mode's, but for one address, which leads to another frame.
fn other_tables(mode: Mode, frame: u64) -> u64 {
    const POINTERS: u64 = BASE + 0xa80;
    let entry = legacy_modes::entry(mode, MAPPED);
    for at in (0..4096).step_by(4) {
        put(tasks::TABLE + at, get((entry & !0xfff) + at));
    }
    put(tasks::TABLE + (entry & 0xfff), frame | 0x83);
    if mode == Mode::Paged32 {
        return tasks::TABLE;
    }
    (0..32).step_by(4).for_each(|at| put(POINTERS + at, get(legacy_modes::cr3(mode) + at)));
    put(POINTERS + 8 * (MAPPED >> 30), tasks::TABLE | 1);
    POINTERS
}

/// What is refused in the old task, which is left as it was.
fn wrong() {
    println!("# Refused");
    let refused = |code: &[u8], vector: u64, error_code: u64, name: &str| {
        let eflags = get(OTHER + field::EFLAGS);
        ends(code, Registers::default(), Fault { vector, error_code, offset: PROLOGUE }, name);
        let is_kept = tasks::rights(selector::MAIN) == BUSY && get(OTHER + field::EFLAGS) == eflags;
        tap::check(is_kept && task_register() == selector::MAIN.into(), "and nothing has changed");
    };
    let other = u64::from(selector::OTHER);
    tasks::prepare(Mode::Protected32);
    tasks::describe(selector::OTHER, OTHER, 0x67, BUSY);
    refused(&tasks::jump(selector::OTHER), PROTECTION, other, "JMP to a busy task");
    tasks::prepare(Mode::Protected32);
    refused(&tasks::call(selector::MAIN), PROTECTION, selector::MAIN.into(), "CALL of itself");
    tasks::prepare(Mode::Protected32);
    tasks::describe(selector::OTHER, OTHER, 0x67, 0x09);
    refused(&tasks::call(selector::OTHER), NOT_PRESENT, other, "a task that is not present");
    tasks::prepare(Mode::Protected32);
    tasks::describe(selector::OTHER, OTHER, 0x66, AVAILABLE);
    refused(&tasks::jump(selector::OTHER), INVALID_TSS, other, "a segment that is too short");
    tasks::prepare(Mode::Protected32);
    tasks::describe(selector::NARROW, NARROW, 0x2a, 0x81);
    refused(&tasks::jump(selector::NARROW), INVALID_TSS, selector::NARROW.into(), "one of 16 bits that is too short");
    tasks::prepare(Mode::Protected32);
    refused(&tasks::jump(selector::BEYOND), PROTECTION, selector::BEYOND.into(), "a selector beyond the table");
    tasks::prepare(Mode::Protected32);
    put(MAIN + field::LINK, other);
    // PUSHFD, OR of NT, POPFD, IRET.
    let code = [0x9c, 0x81, 0x0c, 0x24, 0, 0x40, 0, 0, 0x9d, 0xcf];
    let fault = Fault { vector: INVALID_TSS, error_code: other, offset: PROLOGUE + 9 };
    ends(&code, Registers::default(), fault, "IRET to a task that is not busy");
}

/// What is found wrong in the new task.
fn wrong_inside(is_tcg: bool) {
    println!("# Wrong inside");
    let inside = |register: u64, value: u16, vector: u64, name: &str| {
        tasks::prepare(Mode::Protected32);
        put(OTHER + register, value.into());
        let eip = get(OTHER + field::EIP);
        // Of EIP, QEMU's TCG has the place in the page from the old task.
        let eip = if is_tcg { eip & !0xfff | (BASE + CODE + PROLOGUE) & 0xfff } else { eip };
        let fault = Fault { vector, error_code: value.into(), offset: eip.wrapping_sub(BASE + CODE) };
        ends(&tasks::jump(selector::OTHER), Registers::default(), fault, name);
        tap::check(all_rights() == (AVAILABLE, BUSY) && task_register() == selector::OTHER.into(), "in the new task");
    };
    inside(field::FS, selector::ABSENT, NOT_PRESENT, "a segment that is not present");
    inside(field::GS, selector::BEYOND, INVALID_TSS, "one beyond the table");
    inside(field::ES, selector::MAIN, INVALID_TSS, "a task's segment for data");
    tasks::prepare(Mode::Protected32);
    put(OTHER + field::EIP, 0);
    put(OTHER + field::CS, 0x20);
    // Its segment begins with the null descriptor, which may hold anything: UD2.
    put(BASE, 0x0b0f);
    let fault = Fault { vector: UNDEFINED, error_code: 0, offset: 0_u64.wrapping_sub(BASE + CODE) };
    ends(&tasks::jump(selector::OTHER), Registers::default(), fault, "code of 16 bits in a task of 32");
}

/// Runs instructions that end without a fault.
fn goes(mode: Mode, code: &[u8], registers: Registers, name: &str) -> Registers {
    let mut after = registers;
    // SAFETY: the tasks write to low memory that is this program's.
    let fault = unsafe { tasks::run(mode, code, &mut after) };
    if fault.is_some() {
        println!("# {fault:x?} {after:x?}");
    }
    tap::check(fault.is_none(), name);
    after
}

/// Runs instructions that end with a fault.
fn ends(code: &[u8], registers: Registers, expected: Fault, name: &str) -> Registers {
    let mut after = registers;
    // SAFETY: as `goes`.
    let fault = unsafe { tasks::run(Mode::Protected32, code, &mut after) };
    if fault != Some(expected) {
        println!("# {fault:x?} {after:x?}");
    }
    tap::check(fault == Some(expected), name);
    after
}

fn seen(word: u64) -> u64 {
    tasks::seen(word)
}

/// The rights of the two tasks' segments, as the other noted them.
fn noted_rights() -> (u64, u64) {
    (seen(word::MAIN_RIGHTS) >> 8 & 0xff, seen(word::OTHER_RIGHTS) >> 8 & 0xff)
}

/// As they are now.
fn all_rights() -> (u64, u64) {
    (tasks::rights(selector::MAIN), tasks::rights(selector::OTHER))
}

/// TR.
fn task_register() -> u64 {
    let selector: u64;
    // SAFETY: STR writes a register.
    unsafe { core::arch::asm!("str {0:e}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    selector
}
