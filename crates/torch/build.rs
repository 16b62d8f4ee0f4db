//! Compiles the C++ that reaches what `tch` does not bind, and tells dependents where libtorch lies.
#![allow(clippy::print_stdout, reason = "cargo listens to it")]

use std::env;
use std::path::{Path, PathBuf};

const SOURCES: [&str; 9] = [
    "src/ops.cpp",
    "src/device.cpp",
    "src/memory.cpp",
    "src/cpu/dispatch.cpp",
    "src/cpu/fused.cpp",
    "src/cpu/decoding.cpp",
    "src/cpu/bf16_master.cpp",
    "src/cpu/segment_attention.cpp",
    "src/ranks/c10d.cpp",
];
const KERNELS: &str = "src/cpu/kernels.cpp";
/// Libraries of their own with names that only `libtorch_cuda.so` has; the crate carries them in itself. Source, file, and the variable that
/// says where the file is.
const CARRIED: [[&str; 3]; 2] = [
    ["src/cuda/graphs.cpp", "libvlm_r1_graphs.so", "VLM_R1_GRAPHS"],
    ["src/ranks/nccl.cpp", "libvlm_r1_nccl.so", "VLM_R1_NCCL"],
];
/// What libtorch's headers need of CUDA's.
const CUDA_HEADERS: &str = "src/cuda/include";
/// What libtorch's headers need of Gloo's.
const GLOO_HEADERS: &str = "src/ranks/include";
const HEADERS: [&str; 2] = ["src/catch.h", "src/adamw_options.h"];
/// The kernels and the operations made of them.
const CPU: &str = "src/cpu";
/// The instruction sets that the kernels are compiled for, as `kernels.h` names them.
const BASELINE: (&str, &[&str]) = ("kernels_baseline", &[]);
const AVX512: [&str; 6] =
    ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"];
const X86_ISAS: [(&str, &[&str]); 3] = [
    ("kernels_avx2", &["-mavx2", "-mfma"]),
    ("kernels_avx512", &AVX512),
    (
        "kernels_avx512_bf16",
        &[AVX512[0], AVX512[1], AVX512[2], AVX512[3], AVX512[4], AVX512[5], "-mavx512bf16"],
    ),
];

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let carried = CARRIED.iter().map(|[source, ..]| *source);
    let folders = [CPU, CUDA_HEADERS, GLOO_HEADERS];
    for source in SOURCES.into_iter().chain(HEADERS).chain(folders).chain(carried) {
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
    CARRIED.into_iter().for_each(|carried| build_carried(&root, carried));
    // `DEP_VLM_R1_TORCH_LIB` in the build scripts of direct dependents.
    println!("cargo:lib={}", root.join("lib").display());
    link_arguments(&root.join("lib"));
}

fn compile(root: &Path) {
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let build = || {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").warnings(false).pic(true);
        if x86 {
            build.define("VLM_R1_X86", None);
        }
        build
    };
    build()
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .include(GLOO_HEADERS)
        .define("USE_C10D_GLOO", None)
        // Threads as libtorch has them.
        .flag("-fopenmp")
        .files(SOURCES)
        .compile("vlm_r1_ops");
    let sets: &[(&str, &[&str])] = if x86 { &X86_ISAS } else { &[] };
    for (name, flags) in [BASELINE].iter().chain(sets) {
        let mut kernels = build();
        kernels
            .opt_level(3)
            .define("VLM_R1_ISA", *name)
            // Roots without a look at `errno` are a vector's.
            .flag("-fno-math-errno")
            // Vectors are passed within the file only.
            .flag("-Wno-psabi")
            .file(KERNELS);
        for flag in *flags {
            kernels.flag(flag);
        }
        kernels.compile(name);
    }
    println!("cargo:rustc-link-search=native={}", root.join("lib").display());
    println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1");
}

fn build_carried(root: &Path, [source, file, variable]: [&str; 3]) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let library = out.join(file);
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(false).pic(true);
    for folder in [
        Path::new(CUDA_HEADERS),
        &root.join("include"),
        &root.join("include/torch/csrc/api/include"),
    ] {
        build.include(folder);
    }
    let status = build
        .get_compiler()
        .to_command()
        .args(["-shared", "-s", source, "-o"])
        .arg(&library)
        .status()
        .expect("the C++ compiler starts");
    assert!(status.success(), "cannot compile `{source}`");
    println!("cargo:rustc-env={variable}={}", library.display());
}

fn link_arguments(lib: &Path) {
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath-link,{}", lib.display());
}
