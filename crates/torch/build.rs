//! Compiles the C++ that reaches what `tch` does not bind, and tells dependents where libtorch lies.

use std::env;
use std::path::{Path, PathBuf};

const SOURCES: [&str; 2] = ["src/ops.cpp", "src/memory.cpp"];

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    let root = env::var("LIBTORCH").map(PathBuf::from).unwrap_or_default();
    let root = root.canonicalize().unwrap_or(root);
    assert!(
        root.join("lib/libtorch_cpu.so").exists(),
        "no libtorch in `{}`\nhint: run `cargo xtask libtorch` once",
        root.display()
    );
    compile(&root);
    // `DEP_VLM_R1_TORCH_LIB` in the build scripts of direct dependents.
    println!("cargo:lib={}", root.join("lib").display());
    link_arguments(&root.join("lib"));
}

fn compile(root: &Path) {
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .pic(true)
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .files(SOURCES)
        .compile("vlm_r1_ops");
}

fn link_arguments(lib: &Path) {
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath-link,{}", lib.display());
}
