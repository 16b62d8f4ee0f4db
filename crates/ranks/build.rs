//! Lets this crate's binaries and tests find libtorch without any environment variable.
#![allow(clippy::print_stdout, reason = "cargo listens to it")]

fn main() {
    if let Ok(lib) = std::env::var("DEP_VLM_R1_TORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-link-arg=-Wl,-rpath-link,{lib}");
    }
}
