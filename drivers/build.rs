//! Compiles `src/uml/xstate.c` into a shared object that the uml driver carries with it. Without a C compiler, or for
//! another architecture, it is empty, and guests on CPUs with AMX are told not to work.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = "src/uml/xstate.c";
    println!("cargo::rerun-if-changed={source}");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("xstate.so");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let native = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let mut cc = Command::new(compiler);
    cc.args(["-shared", "-fPIC", "-O2", "-s", "-fno-stack-protector", "-o"]).arg(&out).arg(source);
    if !native || !cc.status().is_ok_and(|status| status.success()) {
        println!("cargo::warning=no C compiler: the uml driver will not work on CPUs with AMX");
        std::fs::write(&out, []).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
    }
}
