//! `doctor`: what this machine has and lacks for the program, as a page to paste into a report. It changes nothing, needs
//! neither libtorch nor a GPU nor a network, and waits for nothing without a limit.

mod cards;
mod disk;
mod fast_paths;
mod host;
mod hub;
mod libtorch;
mod section;
mod within;

use std::path::Path;

use anyhow::Result;
use base::run_folder::utc_now;
use config::DoctorConfig;
use serde_json::{Map, Value, json};

use crate::launch;
pub use libtorch::LibtorchFacts;
use section::Section;

/// Prints the page. What is broken is on it, so that it is no failure of this command.
///
/// # Errors
/// Never, as yet.
pub fn doctor(config: &DoctorConfig) -> Result<()> {
    let sections = sections(Path::new(&config.folder));
    if config.json {
        base::print_data!("{:#}", as_json(&sections));
    } else {
        base::print_data!("{}", base::console::printable(page(&sections).trim_end()));
    }
    Ok(())
}

fn sections(folder: &Path) -> Vec<Section> {
    let (libtorch, facts) = libtorch::section();
    vec![
        program(),
        cards::section(facts.as_ref()),
        libtorch,
        fast_paths::section(fast_paths::verdict_file().as_deref()),
        host::section(),
        disk::section(folder),
        hub::section(),
    ]
}

fn program() -> Section {
    let mut section = Section::new("program");
    section.fact("version", launch::build());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    section.fact("system", format!("{os} {}, {arch}", kernel.trim()));
    section
}

fn page(sections: &[Section]) -> String {
    let mut page = format!("vlm-r1 doctor, {}\n", utc_now());
    for section in sections {
        page += &section.text();
    }
    let problems: Vec<_> =
        sections.iter().flat_map(|of| of.problems.iter().map(move |one| (of.name, one))).collect();
    page += &format!("\nproblems: {}\n", problems.len());
    for (index, (name, problem)) in problems.iter().enumerate() {
        page += &format!("{}. {name}: {}\n", index + 1, problem.replace('\n', "\n   "));
    }
    page
}

fn as_json(sections: &[Section]) -> Value {
    let all: Map<String, Value> =
        sections.iter().map(|section| (section.name.to_owned(), section.json())).collect();
    json!({ "time": utc_now(), "sections": all })
}
