//! Links the kernel as `boot/linker.ld` lays it out.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../boot/linker.ld");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rustc-link-arg-bins=--no-pie");
    println!("cargo:rerun-if-changed={script}");
}
