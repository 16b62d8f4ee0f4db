//! CUDA's libraries are those of the libtorch at hand, of whatever version: they are looked for beside it, in its own
//! folder and in those of the NVIDIA packages that a PyTorch is installed with.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};

use crate::elf;

/// libtorch's part for GPUs.
pub const CUDA_LIBRARY: &str = "libtorch_cuda.so";
/// libtorch's libraries, whose own needs say which of several versions is theirs.
const OF_LIBTORCH: [&str; 2] = [CUDA_LIBRARY, "libtorch_cpu.so"];
const RUNTIME: &str = "libcudart";

/// The folders of the libraries of the libtorch whose own lie in `lib`: `lib` itself, then those of the NVIDIA packages
/// beside the package `torch` (`site-packages/nvidia/*/lib`).
pub fn library_folders(lib: &Path) -> Vec<PathBuf> {
    let mut folders = vec![lib.to_owned()];
    // `site-packages/torch/lib`, also where a link led here.
    let packages = lib.canonicalize().ok();
    let packages = packages.as_deref().and_then(|lib| lib.parent()?.parent());
    let nvidia = packages.and_then(|folder| fs::read_dir(folder.join("nvidia")).ok());
    let nvidia = nvidia.into_iter().flatten().flatten();
    let mut beside: Vec<PathBuf> =
        nvidia.map(|entry| entry.path().join("lib")).filter(|path| path.is_dir()).collect();
    beside.sort();
    folders.extend(beside);
    folders
}

/// The file of library `name` (`libcudart`, `libnvrtc`, `libnccl`) that belongs to the libtorch in `lib`; `None` where
/// there is none. Of several it is the one that libtorch itself asks for, else the one of its CUDA, else the newest.
pub fn library_beside(lib: &Path, name: &str) -> Option<PathBuf> {
    let asked = asked_for(lib);
    let of = |file: &str| version_of(file, name);
    let major = match asked.iter().any(|file| of(file).is_some()) {
        true => None,
        false => asked.iter().find_map(|file| version_of(file, RUNTIME)?.first().copied()),
    };
    let rank = |file: &str, version: &[u32]| {
        let is_asked = asked.iter().any(|asked| asked == file);
        let is_of_cuda = major.is_some() && version.first().copied() == major;
        Reverse((is_asked, is_of_cuda, version.to_vec()))
    };
    let mut found = Vec::new();
    for folder in library_folders(lib) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            // A link to nothing is no library.
            if let Some(version) = of(&file).filter(|_| entry.path().exists()) {
                found.push((rank(&file, &version), entry.path()));
            }
        }
    }
    // Of equals the first folder's: the sort keeps their order.
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Some(found.into_iter().next()?.1)
}

/// The major version of the CUDA that the libtorch in `lib` was built for; `None` for a build for CPUs alone.
pub fn cuda_major(lib: &Path) -> Option<u32> {
    let asked = asked_for(lib);
    if let Some(version) = asked.iter().find_map(|file| version_of(file, RUNTIME)) {
        return version.first().copied();
    }
    let library = library_beside(lib, RUNTIME)?;
    version_of(&library.file_name()?.to_string_lossy(), RUNTIME)?.first().copied()
}

/// The names that libtorch's own libraries in `lib` need.
fn asked_for(lib: &Path) -> Vec<String> {
    let needs = OF_LIBTORCH.map(|library| elf::needed(&lib.join(library)).unwrap_or_default());
    needs.concat()
}

/// The version in `file` if it is library `name`: `[12, 8]` of `libcudart.so.12.8` or `libcudart-d0da41ae.so.12.8`,
/// nothing of `libcudart.so`.
fn version_of(file: &str, name: &str) -> Option<Vec<u32>> {
    let rest = file.strip_prefix(name)?;
    let (hash, version) = rest.split_once(".so")?;
    // Archives of libtorch name their libraries by a digest too.
    let is_hash = |text: &str| text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !hash.is_empty() && !hash.strip_prefix('-').is_some_and(is_hash) {
        return None;
    }
    match version.strip_prefix('.') {
        None => version.is_empty().then(Vec::new),
        Some(numbers) => numbers.split('.').map(|number| number.parse().ok()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    const NAMES: [&str; 3] = ["libcudart", "libnvrtc", "libnccl"];

    /// `site-packages` with these files; `torch/lib` of it.
    fn packages(files: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let lib = root.path().join("torch/lib");
        fs::create_dir_all(&lib).unwrap();
        (root, lib)
    }

    /// A library at `path` that needs a library of each name.
    fn link_library(path: &Path, needs: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let cc = |output: &Path, more: &[PathBuf], soname: &str| {
            let mut command = Command::new("cc");
            command.args(["-shared", "-x", "c", "/dev/null", "-x", "none", "-Wl,--no-as-needed"]);
            command.arg(format!("-Wl,-soname,{soname}")).arg("-o").arg(output).args(more);
            assert!(command.status().unwrap().success());
        };
        let needed: Vec<PathBuf> = needs.iter().map(|name| folder.path().join(name)).collect();
        for (path, name) in needed.iter().zip(needs) {
            cc(path, &[], name);
        }
        cc(path, &needed, "libtorch_cuda.so");
    }

    fn found(root: &Path, lib: &Path, name: &str) -> Option<String> {
        let path = library_beside(lib, name)?;
        Some(path.strip_prefix(root).unwrap().display().to_string())
    }

    #[test]
    fn both_layouts_of_both_majors() {
        for major in [12, 13] {
            let (cudart, nvrtc) = (format!("libcudart.so.{major}"), format!("libnvrtc.so.{major}"));
            // All in one folder, a package for each library, a package for all, libtorch's archive.
            let cudart_of_archive = format!("libcudart-d0da41ae.so.{major}");
            for (cudart, nvrtc, nccl) in [
                (
                    format!("torch/lib/{cudart}"),
                    format!("torch/lib/{nvrtc}"),
                    "torch/lib/libnccl.so.2",
                ),
                (
                    format!("nvidia/cuda_runtime/lib/{cudart}"),
                    format!("nvidia/cuda_nvrtc/lib/{nvrtc}"),
                    "nvidia/nccl/lib/libnccl.so.2",
                ),
                (
                    format!("nvidia/cu{major}/lib/{cudart}"),
                    format!("nvidia/cu{major}/lib/{nvrtc}"),
                    "nvidia/nccl/lib/libnccl.so.2",
                ),
                (
                    format!("torch/lib/{cudart_of_archive}"),
                    format!("torch/lib/{nvrtc}"),
                    "torch/lib/libnccl.so.2",
                ),
            ] {
                let files = [&*cudart, &*nvrtc, nccl];
                let others = ["torch/lib/libnvrtc-builtins.so.99", "torch/lib/libnvrtc.alt.so.99"];
                let (root, lib) = packages(&[&files[..], &others].concat());
                for (name, file) in NAMES.iter().zip(files) {
                    assert_eq!(found(root.path(), &lib, name).as_deref(), Some(file));
                }
                assert_eq!(cuda_major(&lib), Some(major));
            }
        }
    }

    #[test]
    fn the_newest_of_several_is_taken_as_a_number() {
        let names = ["libcudart.so.12.8", "libcudart.so.12.10", "libcudart.so.9.2", "libcudart.so"];
        let files = names.map(|name| format!("nvidia/cuda_runtime/lib/{name}"));
        let (root, lib) = packages(&files.each_ref().map(|file| &**file));
        let newest = found(root.path(), &lib, "libcudart");
        assert_eq!(newest.as_deref(), Some("nvidia/cuda_runtime/lib/libcudart.so.12.10"));
        // The nearest folder of equals.
        fs::write(lib.join("libcudart.so.12.10"), "").unwrap();
        let nearest = found(root.path(), &lib, "libcudart");
        assert_eq!(nearest.as_deref(), Some("torch/lib/libcudart.so.12.10"));
    }

    #[test]
    fn what_libtorch_asks_for_goes_before_what_is_newer() {
        let (root, lib) = packages(&[
            "nvidia/cuda_runtime/lib/libcudart.so.12",
            "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "nvidia/cu13/lib/libcudart.so.13",
            "nvidia/cu13/lib/libnvrtc.so.13",
            "nvidia/nccl/lib/libnccl.so.2",
        ]);
        assert_eq!(cuda_major(&lib), Some(13));
        link_library(&lib.join("libtorch_cuda.so"), &["libcudart.so.12", "libnccl.so.2"]);
        assert_eq!(cuda_major(&lib), Some(12));
        let expected = [
            ("libcudart", "nvidia/cuda_runtime/lib/libcudart.so.12"),
            // Not asked for when libtorch starts, so of the same CUDA as what is.
            ("libnvrtc", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),
            ("libnccl", "nvidia/nccl/lib/libnccl.so.2"),
        ];
        for (name, file) in expected {
            assert_eq!(found(root.path(), &lib, name).as_deref(), Some(file));
        }
    }

    #[test]
    fn links_are_followed_and_links_to_nothing_are_none() {
        let (root, lib) = packages(&["nvidia/cu13/lib/libcudart.so.13.0.96"]);
        let folder = root.path().join("nvidia/cu13/lib");
        symlink("libcudart.so.13.0.96", folder.join("libcudart.so.13")).unwrap();
        symlink("gone", folder.join("libcudart.so.14")).unwrap();
        symlink("gone", folder.join("libnvrtc.so.13")).unwrap();
        let target = library_beside(&lib, "libcudart").unwrap().canonicalize().unwrap();
        assert_eq!(
            target,
            root.path().join("nvidia/cu13/lib/libcudart.so.13.0.96").canonicalize().unwrap()
        );
        assert_eq!(found(root.path(), &lib, "libnvrtc"), None);
        // A folder that links to `torch/lib` leads to the packages beside it.
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(&lib, elsewhere.path().join("lib")).unwrap();
        assert!(library_beside(&elsewhere.path().join("lib"), "libcudart").is_some());
    }

    #[test]
    fn no_library_and_no_folder_are_none() {
        let (root, lib) = packages(&["torch/lib/libtorch_cpu.so"]);
        for name in NAMES {
            assert_eq!(found(root.path(), &lib, name), None);
        }
        assert_eq!((cuda_major(&lib), cuda_major(Path::new("/nonexistent/lib"))), (None, None));
        assert_eq!(library_folders(&lib), [lib]);
    }
}
