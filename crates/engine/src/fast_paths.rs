//! Which fast forms of GPU work a run uses: each proves itself on the device before the run, in the run's own type and sizes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use models::VisionLanguageModel;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};
use torch::{FastPath, ProofShape, kind_name, prove, set_enabled};

use crate::EngineError;

/// What `--fast_paths` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FastPathChoice {
    /// Those that hold.
    Auto,
    /// These, untried.
    Only(Vec<FastPath>),
}

impl FastPathChoice {
    /// Reads `auto`, `all`, `none` or names with commas between.
    ///
    /// # Errors
    /// An unknown name.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        match text.trim() {
            "auto" => return Ok(FastPathChoice::Auto),
            "all" => return Ok(FastPathChoice::Only(FastPath::ALL.to_vec())),
            "none" => return Ok(FastPathChoice::Only(Vec::new())),
            _ => {}
        }
        let path = |name: &str| {
            FastPath::of_name(name.trim()).ok_or_else(|| EngineError::FastPath {
                got: name.trim().to_owned(),
                known: FastPath::ALL.map(FastPath::name).join(", "),
            })
        };
        text.split(',').map(path).collect::<Result<_, _>>().map(FastPathChoice::Only)
    }
}

/// What was found of one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathVerdict {
    /// Its name.
    pub name: String,
    /// `proven`, `off` with the cause, `not used` for this type, or `on` and `off` `as asked`.
    pub verdict: String,
    /// The largest difference from the plain operations, relative to their largest number.
    pub error: Option<f64>,
    /// What rounding may make of it.
    pub tolerance: Option<f64>,
    /// How long the trial took.
    pub seconds: Option<f64>,
}

impl PathVerdict {
    fn is_on(&self) -> bool {
        [PROVEN, NOT_USED, "on as asked"].contains(&self.verdict.as_str())
    }
}

const PROVEN: &str = "proven";
const NOT_USED: &str = "not used";

/// What was found on a device; empty on a CPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FastPaths {
    /// The device, as messages name it.
    pub device: String,
    /// In the order of [`FastPath::ALL`].
    pub verdicts: Vec<PathVerdict>,
    /// Whether they were found by an earlier run.
    pub is_known: bool,
}

impl FastPaths {
    /// One line of what is in use, and one for each path that failed its trial.
    pub fn lines(&self) -> Vec<String> {
        if self.verdicts.is_empty() {
            return Vec::new();
        }
        let names = |is: &dyn Fn(&PathVerdict) -> bool| -> Vec<&str> {
            self.verdicts.iter().filter(|v| is(v)).map(|v| v.name.as_str()).collect()
        };
        let proven = names(&|v| v.verdict == PROVEN);
        let on = names(&|v| v.verdict == "on as asked");
        let secs: f64 = self.verdicts.iter().filter_map(|v| v.seconds).sum();
        let mut line = match (proven.is_empty(), self.is_known) {
            (true, _) => format!("fast paths on {}:", self.device),
            (false, true) => {
                format!("fast paths on {}: {} (proven before)", self.device, proven.join(", "))
            }
            (false, false) => {
                let names = proven.join(", ");
                format!("fast paths on {}: {names} (proven in {secs:.1} s)", self.device)
            }
        };
        if proven.is_empty() {
            let untried = if on.is_empty() { "none".to_owned() } else { on.join(", ") };
            line += &format!(" {untried} (--fast_paths, untried)");
        }
        let failed = self.verdicts.iter().filter(|v| v.verdict.starts_with("off:"));
        let failed = failed.map(|v| {
            let cause = v.verdict.trim_start_matches("off:").trim();
            format!("warning: fast path `{}` is off, the run goes on without it: {cause}", v.name)
        });
        std::iter::once(line).chain(failed).collect()
    }
}

/// Tries the paths where `choice` is [`FastPathChoice::Auto`], and takes those in use that hold. Before anything is computed with `model`.
pub fn choose_fast_paths(model: &dyn VisionLanguageModel, choice: &FastPathChoice) -> FastPaths {
    let (kind, device) = model.compute();
    let Device::Cuda(index) = device else {
        return FastPaths::default();
    };
    // What the cache does not hold is refused when sampling begins.
    let Ok(attention) = model.text_shape().uniform() else {
        return FastPaths::default();
    };
    let shape = ProofShape {
        hidden_size: model.text_shape().hidden_size,
        num_heads: attention.heads,
        num_kv_heads: attention.kv_heads,
        head_dim: attention.head_dim,
    };
    let card = torch::card(index);
    let device_name =
        card.as_ref().map_or_else(|| format!("cuda:{index}"), |card| card.name.clone());
    let chosen = match choice {
        FastPathChoice::Only(paths) => FastPaths {
            verdicts: FastPath::ALL.iter().map(|path| as_asked(*path, paths)).collect(),
            device: device_name,
            is_known: false,
        },
        FastPathChoice::Auto => {
            // A card that no driver names may be another one tomorrow.
            let key = card.map(|card| Key::new(&card, &shape, kind));
            let known = key.as_ref().and_then(Key::read);
            known.unwrap_or_else(|| {
                let found = FastPaths {
                    verdicts: tried_all(&shape, kind, device),
                    device: device_name,
                    is_known: false,
                };
                if let Some(key) = &key {
                    key.keep(&found);
                }
                found
            })
        }
    };
    for (path, verdict) in FastPath::ALL.into_iter().zip(&chosen.verdicts) {
        set_enabled(path, verdict.is_on());
    }
    chosen
}

fn as_asked(path: FastPath, on: &[FastPath]) -> PathVerdict {
    let verdict = if on.contains(&path) { "on as asked" } else { "off as asked" };
    PathVerdict {
        name: path.name().to_owned(),
        verdict: verdict.to_owned(),
        error: None,
        tolerance: None,
        seconds: None,
    }
}

/// Copies come first, since the trials of others upload by them.
fn tried_all(shape: &ProofShape, kind: Kind, device: Device) -> Vec<PathVerdict> {
    let copies = tried(FastPath::PinnedCopies, shape, kind, device);
    set_enabled(FastPath::PinnedCopies, copies.is_on());
    let verdict = |path: FastPath| match path {
        FastPath::PinnedCopies => copies.clone(),
        path => tried(path, shape, kind, device),
    };
    FastPath::ALL.into_iter().map(verdict).collect()
}

fn tried(path: FastPath, shape: &ProofShape, kind: Kind, device: Device) -> PathVerdict {
    let started = Instant::now();
    let found = prove(path, shape, kind, device);
    let proof = found.as_ref().ok().copied().flatten();
    let verdict = match &found {
        Ok(None) => NOT_USED.to_owned(),
        Ok(Some(proof)) if proof.holds() => PROVEN.to_owned(),
        Ok(Some(proof)) => format!(
            "off: differs by {:.1e} from plain operations (tolerance {:.1e})",
            proof.error, proof.tolerance
        ),
        Err(cause) => format!("off: {cause}"),
    };
    PathVerdict {
        name: path.name().to_owned(),
        verdict,
        // JSON has no infinity.
        error: proof.map(|proof| proof.error).filter(|error| error.is_finite()),
        tolerance: proof.map(|proof| proof.tolerance),
        seconds: Some(started.elapsed().as_secs_f64()),
    }
}

/// What a verdict depends on.
struct Key {
    file: PathBuf,
    name: String,
}

impl Key {
    fn new(card: &torch::Card, shape: &ProofShape, kind: Kind) -> Self {
        let ProofShape { hidden_size, num_heads, num_kv_heads, head_dim } = shape;
        let name = format!(
            "{}, driver {}, libtorch {}, vlm-r1 {}, {}, {hidden_size} channels, {num_heads}/{num_kv_heads} heads of {head_dim}",
            card.name,
            card.driver,
            card.libtorch,
            env!("CARGO_PKG_VERSION"),
            kind_name(kind),
        );
        Key { file: base::fast_path_file(), name }
    }

    fn read(&self) -> Option<FastPaths> {
        let mut all = all_of(&self.file);
        let found = all.remove(&self.name)?;
        let names = found.verdicts.iter().map(|v| v.name.as_str());
        names.eq(FastPath::ALL.map(FastPath::name)).then_some(FastPaths { is_known: true, ..found })
    }

    /// Keeps what held; a failure is tried again by the next run. A cache that cannot be written costs the next run its trials.
    fn keep(&self, found: &FastPaths) {
        if found.verdicts.iter().any(|v| v.verdict.starts_with("off")) {
            return;
        }
        let mut all = all_of(&self.file);
        all.insert(self.name.clone(), found.clone());
        let text = serde_json::to_string_pretty(&all).expect("plain values");
        let part = self.file.with_extension(format!("{}.part", std::process::id()));
        let folder = self.file.parent().map_or(Ok(()), fs::create_dir_all);
        let _ = folder
            .and_then(|()| fs::write(&part, text))
            .and_then(|()| fs::rename(&part, &self.file));
    }
}

fn all_of(file: &Path) -> BTreeMap<String, FastPaths> {
    let text = fs::read_to_string(file).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read() {
        use FastPathChoice::{Auto, Only};
        assert_eq!(FastPathChoice::parse("auto").unwrap(), Auto);
        assert_eq!(FastPathChoice::parse("none").unwrap(), Only(vec![]));
        assert_eq!(FastPathChoice::parse("all").unwrap(), Only(FastPath::ALL.to_vec()));
        let two = FastPathChoice::parse("rotation, cuda_graphs").unwrap();
        assert_eq!(two, Only(vec![FastPath::Rotation, FastPath::CudaGraphs]));
        let error = FastPathChoice::parse("rotations").unwrap_err().to_string();
        assert!(error.contains("`rotations`") && error.contains("fused_norm"), "{error}");
    }

    #[test]
    fn a_path_that_failed_is_named_with_its_cause() {
        let verdict = |name: &str, verdict: &str| PathVerdict {
            name: name.into(),
            verdict: verdict.into(),
            error: None,
            tolerance: None,
            seconds: Some(0.25),
        };
        let found = FastPaths {
            device: "NVIDIA H200".into(),
            verdicts: vec![
                verdict("fused_norm", PROVEN),
                verdict(
                    "rotation",
                    "off: differs by 3.0e-1 from plain operations (tolerance 2.4e-2)",
                ),
            ],
            is_known: false,
        };
        let lines = found.lines();
        assert_eq!(lines[0], "fast paths on NVIDIA H200: fused_norm (proven in 0.5 s)");
        assert_eq!(
            lines[1],
            "warning: fast path `rotation` is off, the run goes on without it: differs by 3.0e-1 from plain operations (tolerance 2.4e-2)"
        );
        assert!(FastPaths::default().lines().is_empty());
    }
}
