//! The driver as a stand-in for it answers: each test starts this binary anew, because a process reads its driver once.

use std::process::Command;

use gpu::{Build, Driver, Link, Machine, Nvml};
use testing::{library_path, stand_in_driver};

/// Set in the process that asks.
const ASKS: &str = "STAND_IN_ASKS";

/// What the asking process says with these settings.
fn told(settings: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("folder");
    stand_in_driver(folder.path());
    ask(settings, &library_path(&[folder.path()]))
}

fn ask(settings: &[(&str, &str)], libraries: &std::ffi::OsStr) -> String {
    let me = std::env::current_exe().expect("this binary");
    let mut command = Command::new(me);
    command.args(["--exact", "asks", "--nocapture", "--ignored"]);
    command.env_remove("CUDA_VISIBLE_DEVICES").env(ASKS, "1").env("LD_LIBRARY_PATH", libraries);
    let output = command.envs(settings.iter().copied()).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Not a test: what the started process does.
#[test]
#[ignore = "started by the others"]
fn asks() {
    if std::env::var_os(ASKS).is_none() {
        return;
    }
    let machine = Machine::read();
    match &machine.driver {
        Ok(Driver { cuda, cards }) => {
            println!("cuda {cuda}, driver {:?}, {} cards", machine.driver_version, cards.len());
            for card in cards {
                let gib = card.memory_bytes >> 30;
                println!(
                    "{} {gib} GiB {} {} {:?}",
                    card.name, card.capability, card.bus, card.peers
                );
            }
        }
        Err(error) => println!("error: {error}"),
    }
    if let (Some(nvml), Ok(Driver { cards, .. })) = (Nvml::open(), &machine.driver)
        && let [a, b, ..] = &cards[..]
    {
        println!("between: {:?}", nvml.between(&a.bus, &b.bus));
    }
    let build = Build { has_cuda_library: true, cuda_major: Some(13), ..Build::default() };
    println!("refusal: {}", machine.why_not(&build, 0, 0));
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn cards_are_read() {
    let text = told(&[("STAND_IN_CARDS", "3"), ("STAND_IN_CAPABILITY", "86")]);
    has(&text, &["cuda 13.0, driver Some(\"550.54.15\"), 3 cards"]);
    has(&text, &["Stand-in 2 80 GiB 8.6 0000:03:00.0 [false, false, true]"]);
    has(&text, &[&format!("between: {:?}", Some(Link::Pcie("from one NUMA node to another")))]);
}

#[test]
fn links_are_told_apart() {
    let two = |link| told(&[("STAND_IN_CARDS", "2"), ("STAND_IN_LINK", link)]);
    has(&two("nvlink"), &["between: Some(NvLink)", "[true, true]"]);
    has(&two("10"), &["between: Some(Pcie(\"through one switch\"))"]);
}

#[test]
fn what_is_visible_counts() {
    let visible = |value| told(&[("STAND_IN_CARDS", "2"), ("CUDA_VISIBLE_DEVICES", value)]);
    has(&visible("1"), &["1 cards", "Stand-in 1 "]);
    has(&visible(""), &["0 cards", "refusal: ", "CUDA_VISIBLE_DEVICES is empty"]);
    has(&visible("7"), &["0 cards", "CUDA_VISIBLE_DEVICES=`7`"]);
}

#[test]
fn a_driver_that_fails_says_how() {
    let fabric = told(&[("STAND_IN_INIT", "802")]);
    has(&fabric, &["`cuInit` of `libcuda.so.1` says 802: system not yet initialized", "fabric"]);
    has(&told(&[("STAND_IN_INIT", "77")]), &["77: an error that it has no words for"]);
    has(&told(&[("STAND_IN_CUDA", "12040")]), &["cuda 12.4", "supports CUDA up to 12.4"]);
}

#[test]
fn other_files_of_that_name_are_no_driver() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("libcuda.so.1"), "no library").expect("write");
    has(&ask(&[], &library_path(&[folder.path()])), &["error: ", "libcuda.so.1"]);
    let empty = folder.path().join("empty.c");
    std::fs::write(&empty, "int nothing;\n").expect("write");
    testing::compile(&empty, &folder.path().join("libcuda.so.1"), &[]);
    has(&ask(&[], &library_path(&[folder.path()])), &["has no function `cuDriverGetVersion`"]);
}
