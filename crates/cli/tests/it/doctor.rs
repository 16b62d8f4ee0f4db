//! `doctor`, and what commands say of a device that they cannot use: on stand-ins for NVIDIA's driver and for libtorch's
//! part for GPUs, or without either.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use testing::{checkpoint, compile, library_path, repository, stand_in_driver};

use crate::fake_hub::{Fault, Hub};
use crate::program::{CallResult, call_result, command};
use crate::training::line;

/// A folder for the loader that holds nothing yet.
struct Libraries(TempDir);

impl Libraries {
    /// On the disk of the repository, where libtorch can be linked.
    fn new() -> Self {
        Self(TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn with_driver() -> Self {
        let libraries = Self::new();
        stand_in_driver(libraries.0.path());
        libraries
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The libtorch of this repository, which then lies here.
    fn add_libtorch(self) -> Self {
        for entry in fs::read_dir(repository(".libtorch/lib")).unwrap() {
            let entry = entry.unwrap();
            let (from, to) = (fs::canonicalize(entry.path()).unwrap(), entry.file_name());
            let to = self.path().join(to);
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).unwrap();
        }
        self
    }

    /// A part for GPUs that loads where `needs` is there, and registers nothing.
    fn add_cuda_library(self, needs: Option<&str>) -> Self {
        let folder = TempDir::new().unwrap();
        let source = folder.path().join("source.c");
        fs::write(&source, "int nothing;\n").unwrap();
        let needed = needs.map(|name| folder.path().join(name));
        if let (Some(path), Some(name)) = (&needed, needs) {
            compile(&source, path, &[&format!("-Wl,-soname,{name}")]);
        }
        let needed = needed.map(|path| path.display().to_string());
        let mut arguments = vec!["-Wl,--no-as-needed"];
        arguments.extend(needed.as_deref());
        compile(&source, &self.path().join("libtorch_cuda.so"), &arguments);
        self
    }

    /// A program that finds these.
    fn command(&self) -> Command {
        let mut command = command();
        command.env("LD_LIBRARY_PATH", library_path(&[self.path()]));
        command.env("HF_HUB_OFFLINE", "1").env_remove("CUDA_VISIBLE_DEVICES");
        command
    }
}

fn page(command: &mut Command) -> Value {
    page_with(command, &[])
}

fn page_with(command: &mut Command, flags: &[&str]) -> Value {
    command.args(["doctor", "--json", "true"]).args(flags);
    let output = call_result(command.output().unwrap());
    assert_eq!((output.code, &*output.stderr), (Some(0), ""), "{}", output.stdout);
    serde_json::from_str(&output.stdout).unwrap()
}

fn fact<'a>(page: &'a Value, section: &str, name: &str) -> &'a str {
    page["sections"][section]["facts"][name].as_str().unwrap_or_else(|| panic!("{name}: {page:#}"))
}

fn problems(page: &Value, section: &str) -> Vec<String> {
    let list = page["sections"][section]["problems"].as_array().unwrap();
    let list: Vec<String> = list.iter().map(|one| one.as_str().unwrap().to_owned()).collect();
    for one in &list {
        assert!(one.contains("\nhint: "), "{one}");
    }
    list
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn cards_links_and_driver_are_shown() {
    let libraries = Libraries::with_driver();
    let of = |settings: &[(&str, &str)]| page(libraries.command().envs(settings.iter().copied()));
    let two = of(&[("STAND_IN_CARDS", "2"), ("STAND_IN_LINK", "nvlink")]);
    assert_eq!(fact(&two, "cards", "driver"), "550.54.15, supports CUDA up to 13.0");
    let card = "Stand-in 1, 85.9 GB, compute capability 9.0, bf16, flash attention";
    assert_eq!(fact(&two, "cards", "cuda:1"), card);
    assert_eq!(fact(&two, "cards", "cuda:0 - cuda:1"), "NVLink, read each other's memory");
    // There are cards, and the libtorch of this repository is for CPUs.
    has(&problems(&two, "cards").concat(), &["is for CPUs: no `libtorch_cuda.so`"]);
    let old = of(&[("STAND_IN_CAPABILITY", "75"), ("STAND_IN_CARDS", "2")]);
    has(fact(&old, "cards", "cuda:0"), &["capability 7.5, no bf16, no flash attention"]);
    has(fact(&old, "cards", "cuda:0 - cuda:1"), &["PCIe", "do not read each other's memory"]);
    let hidden = of(&[("CUDA_VISIBLE_DEVICES", "5")]);
    has(&problems(&hidden, "cards").concat(), &["shows no card, with CUDA_VISIBLE_DEVICES=`5`"]);
    let broken = of(&[("STAND_IN_INIT", "802")]);
    has(&problems(&broken, "cards").concat(), &["802: system not yet initialized", "fabric"]);
}

#[test]
fn libtorch_is_named_with_what_is_wrong_with_it() {
    let page_of = |libraries: &Libraries| page(libraries.command().env("STAND_IN_CUDA", "99000"));
    let whole = Libraries::with_driver().add_libtorch().add_cuda_library(None);
    let told = page_of(&whole);
    let folder = fs::canonicalize(whole.path()).unwrap();
    let shown = fact(&told, "libtorch", "libtorch_cpu.so");
    assert!(shown.ends_with(folder.file_name().unwrap().to_str().unwrap()), "{shown}");
    has(fact(&told, "libtorch", "libtorch_cuda.so"), &["loads, sees 0 cards"]);
    has(fact(&told, "libtorch", "libcudart"), &["/libcudart.so."]);
    let major = gpu::cuda_major(&folder).unwrap();
    assert_eq!(fact(&told, "libtorch", "built for"), format!("CUDA {major}"));
    has(&problems(&told, "cards").concat(), &["the driver shows 1 card(s)", "sees 0"]);

    let broken = Libraries::with_driver().add_libtorch();
    fs::write(broken.path().join("libtorch_cuda.so"), "no library").unwrap();
    let told = page_of(&broken);
    has(fact(&told, "libtorch", "libtorch_cuda.so"), &["does not load"]);
    has(&problems(&told, "cards").concat(), &["libtorch_cuda.so` does not load: "]);

    let lacking = Libraries::with_driver().add_libtorch().add_cuda_library(Some("libcudnn.so.0"));
    let told = page_of(&lacking);
    has(&problems(&told, "cards").concat(), &["needs `libcudnn.so.0`, which is not there"]);
}

#[test]
fn a_bare_machine_gets_a_page() {
    let mut command = command();
    command.env_clear().env("VLM_R1_ENGINE", "/nonexistent/engine").env("HF_HUB_OFFLINE", "1");
    // Nothing can be written there, by nobody.
    let told = page(command.current_dir("/proc"));
    let sections: Vec<&String> = told["sections"].as_object().unwrap().keys().collect();
    let all = ["program", "cards", "libtorch", "fast paths proven here", "host", "disk", "hub"];
    assert_eq!(sections, all);
    has(&problems(&told, "libtorch").concat(), &["/nonexistent/engine", "`make build`"]);
    has(&problems(&told, "disk").concat(), &["/proc: cannot be written: ", "--folder"]);
    assert_eq!(fact(&told, "fast paths proven here", "none"), "tried yet");
    assert_eq!(fact(&told, "hub", "reached"), "not tried: HF_HUB_OFFLINE is set");
    has(fact(&told, "program", "version"), &[env!("CARGO_PKG_VERSION")]);
}

#[test]
fn an_engine_that_ends_without_an_answer_is_quoted() {
    let dir = TempDir::new().unwrap();
    let script = dir.path().join("engine");
    let of = |text: &str| {
        fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = command();
        let told = page(command.env("VLM_R1_ENGINE", &script).env("HF_HUB_OFFLINE", "1"));
        problems(&told, "libtorch").concat()
    };
    let loader = "engine: error while loading shared libraries: libtorch_cpu.so: not there";
    has(&of(&format!("echo '{loader}' >&2; exit 127")), &["code 127", loader, "LD_LIBRARY_PATH"]);
    has(&of("kill -SEGV $$"), &["ended by signal 11"]);
    has(&of("echo no JSON"), &["ended with code 0 and said nothing"]);
}

#[test]
fn the_disk_is_tried_where_runs_are_to_be() {
    let dir = TempDir::new().unwrap();
    let mut command = command();
    command.env("HF_HUB_OFFLINE", "1").env("VLM_R1_ENGINE", "/nonexistent/engine");
    let told = page_with(&mut command, &["--folder", dir.path().to_str().unwrap()]);
    has(fact(&told, "disk", "folder"), &[dir.path().file_name().unwrap().to_str().unwrap()]);
    has(fact(&told, "disk", "written"), &["B/s (", "brought to the disk"]);
    assert_eq!(fact(&told, "disk", "locks"), "yes");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_hub_is_asked_and_no_secret_is_told() {
    let home = TempDir::new().unwrap();
    let call = |endpoint: &str, json: &str| -> CallResult {
        let mut command = command();
        command.env("HF_ENDPOINT", endpoint).env("HF_HOME", home.path());
        command.env("HF_TOKEN", "hf_hush").env("https_proxy", "").env("http_proxy", "");
        command.env("VLM_R1_ENGINE", "/nonexistent/engine").args(["doctor", "--json", json]);
        call_result(command.output().unwrap())
    };
    for json in ["true", "false"] {
        let told = call("http://user:hush@127.0.0.1:9", json);
        assert_eq!(told.code, Some(0), "{}", told.stderr);
        has(&told.stdout, &["http://127.0.0.1:9 cannot be reached: ", "HF_HUB_OFFLINE=1"]);
        assert!(!told.stdout.contains("hush") && !told.stderr.contains("hush"), "{}", told.stdout);
    }
    let hub = Hub::start(&checkpoint("flat"), Fault::None, None);
    let told: Value = serde_json::from_str(&call(&hub.endpoint, "true").stdout).unwrap();
    // It has no such model, and says so.
    has(fact(&told, "hub", "reached"), &["yes, in "]);
    assert_eq!(fact(&told, "hub", "token"), "yes");
    assert!(problems(&told, "hub").is_empty(), "{told:#}");
    let wrong = call("no address", "true");
    has(&wrong.stdout, &["HF_ENDPOINT is an address"]);
}

#[test]
fn the_page_reads_as_text() {
    let libraries = Libraries::with_driver();
    let output = call_result(libraries.command().arg("doctor").output().unwrap());
    has(
        &output.stdout,
        &["vlm-r1 doctor, 2", "\ncards\n  driver ", "\nproblems: ", "\n1. cards: "],
    );
    has(&output.stdout, &["\n   hint: "]);
}

/// What a dry run of `grpo` says of `--device`; all but the device is right.
fn refused(libraries: &Libraries, device: &str, settings: &[(&str, OsString)]) -> String {
    let dir = TempDir::new().unwrap();
    let line = line("grpo", dir.path(), "run", &format!("--dry_run --device {device}"));
    let mut command = libraries.command();
    command.args(line.split_whitespace()).envs(settings.iter().map(|(name, to)| (*name, to)));
    let result = call_result(command.output().unwrap());
    assert_eq!(result.code == Some(0), result.stderr.is_empty(), "{}", result.stderr);
    result.stderr
}

fn set(name: &'static str, value: &str) -> Vec<(&'static str, OsString)> {
    vec![(name, value.into())]
}

#[test]
fn a_device_that_cannot_be_used_says_got_needed_and_remedy() {
    let cpu = Libraries::with_driver();
    let gpu = Libraries::with_driver().add_libtorch().add_cuda_library(None);
    let lacking = Libraries::with_driver().add_libtorch().add_cuda_library(Some("libcudnn.so.0"));
    let without = Libraries::new().add_libtorch().add_cuda_library(None);
    fs::write(without.path().join("libcuda.so.1"), "no driver").unwrap();
    let two = |name, value: &str| {
        let mut settings = set("STAND_IN_CUDA", "99000");
        settings.extend([("STAND_IN_CARDS", "2".into()), (name, value.into())]);
        settings
    };
    let cases: [(&Libraries, &str, Vec<_>, &[&str]); 10] = [
        (&cpu, "cuda", vec![], &["is for CPUs", "docs/building.md"]),
        (&without, "cuda", vec![], &["no NVIDIA driver answers: ", "libcuda.so.1"]),
        (&gpu, "cuda", set("STAND_IN_CUDA", "9000"), &["550.54.15 supports CUDA up to 9.0"]),
        (&gpu, "cuda", set("STAND_IN_INIT", "999"), &["`cuInit`", "999: unknown error"]),
        (&gpu, "cuda:3", two("X", ""), &["device `cuda:3`: expected `cuda:0` to `cuda:1`"]),
        (&gpu, "cuda", two("CUDA_VISIBLE_DEVICES", ""), &["CUDA_VISIBLE_DEVICES is empty"]),
        (&gpu, "cuda:1", two("CUDA_VISIBLE_DEVICES", "1"), &["expected `cuda:0`", "DEVICES=`1`"]),
        (&gpu, "cuda", two("STAND_IN_CAPABILITY", "30"), &["capability 3.0", "or above"]),
        (&gpu, "cuda", two("X", ""), &["the driver shows 2 card(s)", "`vlm-r1 doctor`"]),
        (&lacking, "cuda", two("X", ""), &["needs `libcudnn.so.0`", "whole PyTorch"]),
    ];
    for (libraries, device, settings, parts) in cases {
        let said = refused(libraries, device, &settings);
        has(&said, parts);
        assert_eq!(said.matches("hint: ").count(), 1, "{said}");
        // libtorch adds no lines of its own.
        assert_eq!(said.matches("device `").count(), 1, "{said}");
        assert!(said.starts_with("error: "), "{said}");
    }
}

#[test]
fn auto_takes_the_cpu_where_there_is_nothing_and_fails_where_something_is_broken() {
    let gpu = Libraries::with_driver().add_libtorch().add_cuda_library(None);
    assert_eq!(refused(&gpu, "auto", &set("CUDA_VISIBLE_DEVICES", "")), "");
    assert_eq!(refused(&Libraries::with_driver(), "auto", &[]), "");
    let old = refused(&gpu, "auto", &set("STAND_IN_CUDA", "9000"));
    has(&old, &["device `auto`: a GPU is here, but the NVIDIA driver", "up to 9.0"]);
    let broken = Libraries::with_driver().add_libtorch();
    fs::write(PathBuf::from(broken.path()).join("libtorch_cuda.so"), "no library").unwrap();
    let said = refused(&broken, "auto", &set("STAND_IN_CUDA", "99000"));
    has(&said, &["a GPU is here, but", "does not load"]);
}
