//! libtorch, as the engine has it. The engine is asked, because this program maps no libtorch.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::section::Section;
use super::within::run;
use crate::launch;

/// Loading CUDA's libraries from a network disk takes long.
const LIMIT: Duration = Duration::from_secs(60);
/// Libraries of CUDA that are taken from beside libtorch.
const OF_CUDA: [&str; 3] = ["libcudart", "libnvrtc", "libnccl"];

/// What the engine says of its libtorch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LibtorchFacts {
    /// Folder of its libraries.
    pub folder: PathBuf,
    /// Major version of the CUDA that it was built for.
    pub cuda_major: Option<u32>,
    /// Whether its part for GPUs lies there.
    pub has_cuda_library: bool,
    /// Why that part did not load.
    pub failure: Option<String>,
    /// Cards that it sees.
    pub num_cards: usize,
    /// Threads that it computes with.
    pub num_threads: usize,
}

impl LibtorchFacts {
    /// As the checks of cards take it.
    pub fn build(&self) -> gpu::Build {
        gpu::Build {
            folder: self.folder.clone(),
            cuda_major: self.cuda_major,
            has_cuda_library: self.has_cuda_library,
            failure: self.failure.clone(),
        }
    }
}

/// The section, and what the engine said.
pub fn section() -> (Section, Option<LibtorchFacts>) {
    let mut section = Section::new("libtorch");
    if let Some(path) = std::env::var_os("LD_LIBRARY_PATH").filter(|path| !path.is_empty()) {
        section.fact("LD_LIBRARY_PATH", path.to_string_lossy());
    }
    let facts = match ask() {
        Ok((engine, facts)) => {
            section.fact("engine", engine);
            facts
        }
        Err(why) => {
            section.fact("engine", "does not answer");
            let (why, hint) = match why.split_once("\nhint: ") {
                Some((why, hint)) => (why, hint),
                None => (
                    &*why,
                    "libtorch is missing, broken or of another version: `make setup` and `make build` here; on a GPU machine LD_LIBRARY_PATH names the folder `torch/lib` of its PyTorch (docs/building.md)",
                ),
            };
            section.problem(why, hint);
            return (section, None);
        }
    };
    section.fact("version", version(&facts.folder).unwrap_or_else(|| "not told".to_owned()));
    let cuda = facts.cuda_major.map_or("none".to_owned(), |major| format!("CUDA {major}"));
    section.fact("built for", cuda);
    section.fact("libtorch_cpu.so", facts.folder.display().to_string());
    section.fact(gpu::CUDA_LIBRARY, part_for_gpus(&facts));
    for name in OF_CUDA {
        if let Some(path) = gpu::library_beside(&facts.folder, name) {
            section.fact(name, path.display().to_string());
        }
    }
    section.fact("threads", facts.num_threads.to_string());
    (section, Some(facts))
}

fn part_for_gpus(facts: &LibtorchFacts) -> String {
    match (&facts.failure, facts.has_cuda_library) {
        (Some(_), _) => "there, does not load".to_owned(),
        (None, true) => {
            format!("loads, sees {}", base::console::count(facts.num_cards as u64, "card"))
        }
        (None, false) => "not there: CPU only".to_owned(),
    }
}

/// Path and answer of the engine.
fn ask() -> Result<(String, LibtorchFacts), String> {
    let (program, mut command) = launch::engine().map_err(|error| error.to_string())?;
    let name = program.display().to_string();
    command.arg("doctor");
    let output = run(command, LIMIT)
        .map_err(|error| format!("cannot start `{name}`: {error}\n{}", launch::HINT))?;
    let facts = output.status.success().then(|| serde_json::from_slice(&output.stdout).ok());
    match facts.flatten() {
        Some(facts) => Ok((name, facts)),
        None => Err(format!("`{name}` {}", ended(&output))),
    }
}

/// How a program ended that gave no answer, and its last words.
fn ended(output: &Output) -> String {
    let how = match (output.status.code(), output.status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(4)..].join("\n");
    match last.is_empty() {
        true => format!("{how} and said nothing"),
        false => format!("{how}: {}", last.trim_start_matches("error: ")),
    }
}

/// PyTorch's own words beside the folder of its libraries, else the file of an archive of libtorch.
fn version(lib: &Path) -> Option<String> {
    let package = lib.parent()?;
    let text = fs::read_to_string(package.join("version.py")).unwrap_or_default();
    let of_python = text.lines().find_map(|line| {
        let value = line.strip_prefix("__version__")?.split_once('=')?.1;
        Some(value.trim().trim_matches(['\'', '"']).to_owned())
    });
    of_python.or_else(|| {
        let text = fs::read_to_string(package.join("build-version")).ok()?;
        Some(text.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_beside_the_libraries() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("lib");
        assert_eq!(version(&lib), None);
        fs::write(folder.path().join("build-version"), "2.11.0\n").unwrap();
        assert_eq!(version(&lib).as_deref(), Some("2.11.0"));
        let text = "from typing import Optional\n__version__ = '2.11.0+cu126'\ncuda = '12.6'\n";
        fs::write(folder.path().join("version.py"), text).unwrap();
        assert_eq!(version(&lib).as_deref(), Some("2.11.0+cu126"));
    }
}
