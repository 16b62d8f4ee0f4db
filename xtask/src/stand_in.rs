//! `cargo xtask stand-in`: a `libtorch_cuda.so` that needs no GPU (`tools/stand_in`), in `target/stand-in/lib` beside libtorch's libraries.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

const SOURCES: [&str; 5] = ["memory", "device", "graphs", "faults", "operations"];
const KERNELS: &str = "cuda_kernels.inc";

/// Builds what is not up to date and returns the folder of the libraries.
pub fn build(root: &Path) -> Result<PathBuf> {
    let libtorch = root.join(".libtorch");
    ensure!(
        libtorch.join("complete").exists(),
        "no libtorch in `{}`\nhint: run `cargo xtask libtorch` once",
        libtorch.display()
    );
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), |folder| root.join(folder));
    let out = target.join("stand-in");
    let lib = out.join("lib");
    let stamp = out.join("complete");
    let wanted = fingerprint(root, &libtorch)?;
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(lib);
    }
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    fs::write(out.join(KERNELS), kernel_list(&libtorch.join("include/ATen/ops"))?)?;
    compile(root, &libtorch, &out)?;
    link(&libtorch, &out)?;
    place_libraries(&libtorch.join("lib"), &lib)?;
    fs::write(stamp, wanted)?;
    Ok(lib)
}

fn sources(root: &Path) -> PathBuf {
    root.join("tools/stand_in")
}

fn fingerprint(root: &Path, libtorch: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(sources(root))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.push(libtorch.join("complete"));
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The operations with CUDA kernels, each in quotes with a comma, by the names in libtorch's headers.
fn kernel_list(headers: &Path) -> Result<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(headers).with_context(|| format!("{}", headers.display()))? {
        let path = entry?.path();
        if !path.to_string_lossy().ends_with("_cuda_dispatch.h") {
            continue;
        }
        for line in fs::read_to_string(&path)?.lines() {
            names.extend(line.strip_prefix("TORCH_API ").and_then(function_name));
        }
    }
    ensure!(names.len() > 500, "{}: {} names of CUDA kernels", headers.display(), names.len());
    Ok(names.iter().map(|name| format!("\"{name}\",\n")).collect())
}

/// `add` of `at::Tensor & add_out(at::Tensor & out, ..`.
fn function_name(declaration: &str) -> Option<String> {
    let before = declaration.split_once('(')?.0;
    let name = before.rsplit([' ', '&', '*']).next()?;
    let name = name.strip_suffix("_symint").unwrap_or(name);
    let name = name.strip_suffix("_outf").or(name.strip_suffix("_out")).unwrap_or(name);
    Some(name.to_owned())
}

fn compile(root: &Path, libtorch: &Path, out: &Path) -> Result<()> {
    let folders = [
        out.to_owned(),
        root.join("crates/torch/src/cuda/include"),
        libtorch.join("include"),
        libtorch.join("include/torch/csrc/api/include"),
    ];
    let start = |name: &&str| -> Result<(String, Child)> {
        let source = sources(root).join(name).with_extension("cpp");
        let mut command = Command::new(compiler());
        command.args(["-std=c++20", "-O1", "-fPIC", "-w", "-c"]);
        for folder in &folders {
            command.arg("-I").arg(folder);
        }
        command.arg(&source).arg("-o").arg(out.join(name).with_extension("o"));
        let child = command.spawn().context("cannot start the C++ compiler")?;
        Ok((source.display().to_string(), child))
    };
    let children: Vec<_> = SOURCES.iter().map(start).collect::<Result<_>>()?;
    let mut failed = Vec::new();
    for (source, mut child) in children {
        if !child.wait()?.success() {
            failed.push(source);
        }
    }
    ensure!(failed.is_empty(), "cannot compile {}", failed.join(", "));
    Ok(())
}

fn link(libtorch: &Path, out: &Path) -> Result<()> {
    let mut command = Command::new(compiler());
    command.args(["-shared", "-s", "-Wl,-soname,libtorch_cuda.so", "-Wl,--no-undefined", "-o"]);
    command.arg(out.join("lib/libtorch_cuda.so"));
    command.args(SOURCES.map(|name| out.join(name).with_extension("o")));
    command.arg("-L").arg(libtorch.join("lib")).args(["-l:libtorch_cpu.so", "-l:libc10.so"]);
    if !command.status().context("cannot start the C++ compiler")?.success() {
        bail!("cannot link libtorch_cuda.so");
    }
    // A CUDA build of libtorch has two libraries; here both are one.
    std::os::unix::fs::symlink("libtorch_cuda.so", out.join("lib/libc10_cuda.so"))?;
    Ok(())
}

fn compiler() -> std::ffi::OsString {
    std::env::var_os("CXX").unwrap_or_else(|| "c++".into())
}

/// The program looks for CUDA beside the `libtorch_cpu.so` that it has mapped, under the name by which it found it: links, not symlinks.
fn place_libraries(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let source = entry?.path();
        let name = source.file_name().context("a file of libtorch")?;
        if name == "libtorch_cuda.so" || name == "libc10_cuda.so" {
            continue;
        }
        let source = source.canonicalize()?;
        let place = to.join(name);
        if fs::hard_link(&source, &place).is_err() {
            fs::copy(&source, &place).with_context(|| {
                format!("cannot copy {} to {}", source.display(), place.display())
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_declarations() {
        for (line, name) in [
            ("at::Tensor add(const at::Tensor & self)", "add"),
            ("at::Tensor & arange_out(at::Tensor & out)", "arange"),
            ("at::Tensor & add_(at::Tensor & self)", "add_"),
            ("at::Tensor _fused_rms_norm_symint(const at::Tensor & x)", "_fused_rms_norm"),
            ("::std::tuple<at::Tensor &,at::Tensor &> topk_outf(const at::Tensor & x)", "topk"),
        ] {
            assert_eq!(function_name(line).as_deref(), Some(name));
        }
    }
}
