//! Why a card cannot be used: what was got, what is needed, and what to do. One message for each cause.

use std::path::{Path, PathBuf};

use crate::{
    CUDA_LIBRARY, CardFacts, CudaVersion, DriverError, Machine, Version, cuda_major,
    library_folders,
};

/// The compute capability from which cards compute in bf16.
pub const BF16_NEEDS: Version = Version::new(8, 0);
/// The compute capability from which libtorch's flash attention runs.
pub const FLASH_ATTENTION_NEEDS: Version = Version::new(8, 0);

/// From which major version of CUDA on a build has kernels only for cards from this compute capability on; NVIDIA's
/// compilers drop older cards.
const CARDS_OF_CUDA: [(u32, Version); 3] =
    [(13, Version::new(7, 5)), (12, Version::new(5, 0)), (11, Version::new(3, 5))];
/// The first driver that supports a major version of CUDA.
const DRIVER_OF_CUDA: [(u32, &str); 3] = [(13, "580.65"), (12, "525.60"), (11, "450.80")];

/// The libtorch of a process.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// Folder of its libraries.
    pub folder: PathBuf,
    /// Major version of the CUDA that it was built for.
    pub cuda_major: Option<u32>,
    /// Whether its part for GPUs lies there.
    pub has_cuda_library: bool,
    /// Why that part did not load.
    pub failure: Option<String>,
}

impl Build {
    /// The libtorch whose libraries lie in `folder`.
    pub fn of(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            cuda_major: cuda_major(folder),
            has_cuda_library: folder.join(CUDA_LIBRARY).exists(),
            failure: None,
        }
    }

    /// Whether libtorch has a part for GPUs at all: known without a driver.
    ///
    /// # Errors
    /// [`Refusal::CpuBuild`].
    pub fn check(&self) -> Result<(), Refusal> {
        match self.has_cuda_library {
            true => Ok(()),
            false => Err(Refusal::CpuBuild { folder: self.folder.display().to_string() }),
        }
    }
}

/// Why a card cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// libtorch without its part for GPUs.
    #[error(
        "the libtorch in `{folder}` is for CPUs: no `{CUDA_LIBRARY}` there\n\
         hint: LD_LIBRARY_PATH names the folder `torch/lib` of a PyTorch for CUDA (docs/building.md); --device cpu does without a GPU"
    )]
    CpuBuild {
        /// Where it lies.
        folder: String,
    },
    /// No driver to ask.
    #[error(
        "no NVIDIA driver answers: {cause}{}\nhint: {}",
        files(device_files),
        way_to_driver(device_files)
    )]
    NoDriver {
        /// The loader's words.
        cause: String,
        /// Cards that the system knows.
        device_files: Vec<String>,
    },
    /// A driver that is there and fails.
    #[error("the NVIDIA driver{} fails: {error}\nhint: {}", named(driver_version), way_out(error))]
    BrokenDriver {
        /// Its version.
        driver_version: Option<String>,
        /// What it says.
        error: DriverError,
    },
    /// A driver older than the build's CUDA.
    #[error(
        "the NVIDIA driver{} supports CUDA up to {supports}, and the libtorch in `{folder}` is built for CUDA {needs}\n\
         hint: install {}; or take a PyTorch of the same version that is built for CUDA {} or older; --device cpu does without a GPU",
        named(driver_version), newer_driver(*needs), supports.major
    )]
    OldDriver {
        /// Its version.
        driver_version: Option<String>,
        /// The newest CUDA that it supports.
        supports: CudaVersion,
        /// Major version that the build needs.
        needs: u32,
        /// Where libtorch lies.
        folder: String,
    },
    /// The card's compute capability is below what the build has kernels for.
    #[error(
        "`{name}` has compute capability {got}, and the libtorch in `{folder}`, built for CUDA {cuda_major}, needs {needs} or above\n\
         hint: take a PyTorch of the same version that is built for an older CUDA, or another card; --device cpu does without a GPU"
    )]
    OldCard {
        /// The card.
        name: String,
        /// What it can do.
        got: Version,
        /// What is needed.
        needs: Version,
        /// CUDA of the build.
        cuda_major: u32,
        /// Where libtorch lies.
        folder: String,
    },
    /// The card does not compute in bf16.
    #[error(
        "`{name}` has compute capability {got}, and bfloat16 needs {BF16_NEEDS} or above\n\
         hint: float32 runs there (`--dtype float32`, in training `--bf16 false`): twice the memory, other rounding"
    )]
    NoBf16 {
        /// The card.
        name: String,
        /// What it can do.
        got: Version,
    },
    /// The driver shows no card.
    #[error(
        "the NVIDIA driver{} shows no card{}\nhint: {}",
        named(driver_version),
        hidden(visible),
        way_to_card(visible)
    )]
    NoCard {
        /// Its version.
        driver_version: Option<String>,
        /// `CUDA_VISIBLE_DEVICES`.
        visible: Option<String>,
    },
    /// A number that no card has.
    #[error(
        "expected {}; {}{}\nhint: --device cuda takes the first, --device cpu none",
        range(cards.len()), list(cards), hidden(visible)
    )]
    NoSuchCard {
        /// The cards' names.
        cards: Vec<String>,
        /// `CUDA_VISIBLE_DEVICES`.
        visible: Option<String>,
    },
    /// A library that libtorch's part for GPUs needs.
    #[error(
        "`{library}` needs `{missing}`, which is not there: looked in {}, and where the loader looks (LD_LIBRARY_PATH, the system's folders)\n\
         hint: install the whole PyTorch with the NVIDIA packages that it requires (`pip install --force-reinstall torch==VERSION`), not parts of it; --device cpu does without a GPU",
        folders.join(", ")
    )]
    MissingLibrary {
        /// libtorch's part for GPUs.
        library: String,
        /// The file that was not found.
        missing: String,
        /// Where it would lie.
        folders: Vec<String>,
    },
    /// Anything else that keeps libtorch's part for GPUs from loading.
    #[error(
        "`{library}` does not load: {cause}\n\
         hint: it must be of the same PyTorch as the libraries beside it; install that anew; --device cpu does without a GPU"
    )]
    DoesNotLoad {
        /// libtorch's part for GPUs.
        library: String,
        /// The loader's words.
        cause: String,
    },
    /// The driver shows the card, and libtorch does not.
    #[error(
        "the driver shows {cards} card(s), and libtorch in `{folder}` sees {seen}\n\
         hint: `vlm-r1 doctor` shows what fits and what does not; --device cpu does without a GPU"
    )]
    Unseen {
        /// Cards of the driver.
        cards: usize,
        /// Cards of libtorch.
        seen: usize,
        /// Where libtorch lies.
        folder: String,
    },
}

impl Refusal {
    /// Whether there is nothing to use rather than something that does not work: no part for GPUs, no driver and no card's
    /// file, or no card that may be seen.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::CpuBuild { .. } | Self::NoCard { .. } => true,
            Self::NoDriver { device_files, .. } => device_files.is_empty(),
            _ => false,
        }
    }
}

impl Machine {
    /// Whether the driver is too old for a build: known before libtorch is asked.
    ///
    /// # Errors
    /// [`Refusal::OldDriver`].
    pub fn check_driver(&self, build: &Build) -> Result<(), Refusal> {
        let (Ok(driver), Some(needs)) = (&self.driver, build.cuda_major) else {
            return Ok(());
        };
        // Within a major version older drivers run newer builds.
        if driver.cuda.major >= needs {
            return Ok(());
        }
        Err(Refusal::OldDriver {
            driver_version: self.driver_version.clone(),
            supports: driver.cuda,
            needs,
            folder: build.folder.display().to_string(),
        })
    }

    /// Whether a build has kernels for a card. A card that the driver does not tell of is taken.
    ///
    /// # Errors
    /// [`Refusal::OldCard`].
    pub fn check_card(&self, build: &Build, index: usize) -> Result<(), Refusal> {
        let Some((card, cuda_major)) = self.card(index).zip(build.cuda_major) else {
            return Ok(());
        };
        let needs = CARDS_OF_CUDA.iter().find(|(major, _)| cuda_major >= *major);
        match needs {
            Some((_, needs)) if card.capability < *needs => Err(Refusal::OldCard {
                name: card.name.clone(),
                got: card.capability,
                needs: *needs,
                cuda_major,
                folder: build.folder.display().to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether a card computes in bf16. A card that the driver does not tell of is taken.
    ///
    /// # Errors
    /// [`Refusal::NoBf16`].
    pub fn check_bf16(&self, index: usize) -> Result<(), Refusal> {
        match self.card(index) {
            Some(card) if card.capability < BF16_NEEDS => {
                Err(Refusal::NoBf16 { name: card.name.clone(), got: card.capability })
            }
            _ => Ok(()),
        }
    }

    /// Whether flash attention runs on a card, as far as the driver tells.
    pub fn has_flash_attention(&self, index: usize) -> bool {
        self.card(index).is_none_or(|card| card.capability >= FLASH_ATTENTION_NEEDS)
    }

    /// Why libtorch, which sees `seen` cards, has no card of that number.
    pub fn why_not(&self, build: &Build, index: usize, seen: usize) -> Refusal {
        if let Err(refusal) = build.check() {
            return refusal;
        }
        let driver_version = self.driver_version.clone();
        let driver = match &self.driver {
            Ok(driver) => driver,
            Err(DriverError::NoLibrary { cause }) => {
                let device_files = self.device_files.clone();
                return Refusal::NoDriver { cause: cause.clone(), device_files };
            }
            Err(error) => return Refusal::BrokenDriver { driver_version, error: error.clone() },
        };
        let visible = self.visible.clone();
        if driver.cards.is_empty() {
            return Refusal::NoCard { driver_version, visible };
        }
        if let Err(refusal) = self.check_driver(build) {
            return refusal;
        }
        if index >= driver.cards.len() {
            let cards = driver.cards.iter().map(|card| card.name.clone()).collect();
            return Refusal::NoSuchCard { cards, visible };
        }
        if let Some(cause) = &build.failure {
            return does_not_load(build, cause);
        }
        match self.check_card(build, index) {
            Err(refusal) => refusal,
            Ok(()) => Refusal::Unseen {
                cards: driver.cards.len(),
                seen,
                folder: build.folder.display().to_string(),
            },
        }
    }

    fn card(&self, index: usize) -> Option<&CardFacts> {
        self.driver.as_ref().ok()?.cards.get(index)
    }
}

/// Why libtorch's part for GPUs did not load, from the loader's words.
pub(crate) fn does_not_load(build: &Build, cause: &str) -> Refusal {
    let library = build.folder.join(CUDA_LIBRARY).display().to_string();
    match cause.split_once(": cannot open shared object file") {
        Some((missing, _)) if missing != library => Refusal::MissingLibrary {
            library,
            missing: missing.to_owned(),
            folders: library_folders(&build.folder)
                .iter()
                .map(|folder| format!("`{}`", folder.display()))
                .collect(),
        },
        _ => Refusal::DoesNotLoad { library, cause: cause.to_owned() },
    }
}

fn named(driver_version: &Option<String>) -> String {
    driver_version.as_ref().map_or_else(String::new, |version| format!(" {version}"))
}

fn files(device_files: &[String]) -> String {
    match device_files {
        [] => ", and there is no card's file (`/dev/nvidia0`)".to_owned(),
        files => format!(", though the system has {}", files.join(", ")),
    }
}

fn way_to_driver(device_files: &[String]) -> String {
    let way = match device_files {
        [] => {
            "install NVIDIA's driver; a container needs its cards given (`docker run --gpus all`)"
        }
        _ => {
            "a container gets the driver's library from NVIDIA's container toolkit (`--gpus all`); elsewhere install the driver anew"
        }
    };
    format!("{way}; --device cpu does without a GPU")
}

fn newer_driver(cuda_major: u32) -> String {
    match DRIVER_OF_CUDA.iter().find(|(major, _)| *major == cuda_major) {
        Some((_, driver)) => format!("driver {driver} or newer"),
        None => format!("a driver that supports CUDA {cuda_major}.0"),
    }
}

/// What to do after an answer of the driver.
fn way_out(error: &DriverError) -> String {
    let code = match error {
        DriverError::Refused { code, .. } => *code,
        _ => 0,
    };
    // `CUresult`.
    let way = match code {
        2 => "its memory is full: end what else runs there (`nvidia-smi`)",
        34 => {
            "this `libcuda.so.1` is CUDA's stub for linking: take its folder out of LD_LIBRARY_PATH"
        }
        46 => "another process holds the card alone (`nvidia-smi`, compute mode)",
        802 => "start NVIDIA's fabric manager, or wait for it: the cards' links are not up yet",
        803 | 804 => {
            "the driver's library and its kernel module differ: restart the machine, or take `cuda-compat` out of LD_LIBRARY_PATH"
        }
        _ => {
            "`nvidia-smi` should show the cards; where it fails too, restart the machine or install the driver anew"
        }
    };
    format!("{way}; --device cpu does without a GPU")
}

fn hidden(visible: &Option<String>) -> String {
    match visible.as_deref() {
        None => String::new(),
        Some("") => ", because CUDA_VISIBLE_DEVICES is empty".to_owned(),
        Some(value) => format!(", with CUDA_VISIBLE_DEVICES=`{value}`"),
    }
}

fn way_to_card(visible: &Option<String>) -> String {
    let way = match visible {
        Some(_) => "unset CUDA_VISIBLE_DEVICES, or name cards that `nvidia-smi -L` lists",
        None => {
            "`nvidia-smi -L` lists the cards that there are; a container needs them given (`docker run --gpus all`)"
        }
    };
    format!("{way}; --device cpu does without a GPU")
}

fn range(count: usize) -> String {
    match count {
        1 => "`cuda:0`".to_owned(),
        count => format!("`cuda:0` to `cuda:{}`", count - 1),
    }
}

fn list(cards: &[String]) -> String {
    match cards {
        [card] => format!("the one card is {card}"),
        cards => format!("the {} cards are {}", cards.len(), cards.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Driver;

    fn card(name: &str, major: u32, minor: u32) -> CardFacts {
        CardFacts {
            name: name.to_owned(),
            memory_bytes: 1 << 34,
            capability: Version::new(major, minor),
            bus: "0000:01:00.0".to_owned(),
            peers: vec![true],
        }
    }

    fn machine(cuda: Version, cards: Vec<CardFacts>) -> Machine {
        Machine {
            driver: Ok(Driver { cuda, cards }),
            driver_version: Some("550.54.15".to_owned()),
            device_files: Vec::new(),
            visible: None,
        }
    }

    fn build(cuda_major: u32) -> Build {
        Build {
            folder: "/torch/lib".into(),
            cuda_major: Some(cuda_major),
            has_cuda_library: true,
            failure: None,
        }
    }

    /// All parts, and a way out on a line of its own.
    fn says(refusal: &Refusal, parts: &[&str]) {
        let text = refusal.to_string();
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.matches("\nhint: ").count(), 1, "{text}");
    }

    #[test]
    fn a_driver_is_too_old_by_its_major_version_alone() {
        let h200 = vec![card("H200", 9, 0)];
        let old = machine(Version::new(12, 4), h200);
        let refusal = old.check_driver(&build(13)).unwrap_err();
        says(&refusal, &["550.54.15", "up to 12.4", "CUDA 13\n", "580.65 or newer", "CUDA 12 or"]);
        assert_eq!(old.why_not(&build(13), 0, 0), refusal);
        assert!(!refusal.is_absence());
        old.check_driver(&build(12)).unwrap();
        let future = old.check_driver(&build(17)).unwrap_err();
        says(&future, &["a driver that supports CUDA 17.0"]);
    }

    #[test]
    fn cards_are_held_to_what_is_compiled_for_them() {
        let cards = ["V100", "T4", "A100"];
        let machine = machine(
            Version::new(13, 0),
            vec![card(cards[0], 7, 0), card(cards[1], 7, 5), card(cards[2], 8, 0)],
        );
        let refusal = machine.check_card(&build(13), 0).unwrap_err();
        says(&refusal, &["`V100`", "capability 7.0", "7.5 or above"]);
        machine.check_card(&build(12), 0).unwrap();
        machine.check_card(&build(13), 1).unwrap();
        says(&machine.check_bf16(1).unwrap_err(), &["`T4`", "7.5", "8.0 or above", "float32"]);
        machine.check_bf16(2).unwrap();
        assert_eq!([0, 1, 2].map(|index| machine.has_flash_attention(index)), [false, false, true]);
        // Nothing is known of it.
        machine.check_bf16(3).unwrap();
        assert!(machine.has_flash_attention(3));
    }

    #[test]
    fn each_cause_has_its_own_words() {
        let two = machine(Version::new(13, 0), vec![card("A", 9, 0), card("B", 9, 0)]);
        says(&two.why_not(&build(13), 3, 2), &["`cuda:0` to `cuda:1`", "2 cards are A, B"]);
        says(&two.why_not(&build(13), 1, 0), &["shows 2 card(s)", "sees 0"]);
        let visible = Machine { visible: Some("7".into()), ..machine(Version::new(13, 0), vec![]) };
        let refusal = visible.why_not(&build(13), 0, 0);
        says(&refusal, &["shows no card", "CUDA_VISIBLE_DEVICES=`7`", "unset"]);
        assert!(refusal.is_absence());
        let empty = Machine { visible: Some(String::new()), ..visible };
        says(&empty.why_not(&build(13), 0, 0), &["CUDA_VISIBLE_DEVICES is empty"]);
        let cpu = Build { has_cuda_library: false, ..build(13) };
        says(&two.why_not(&cpu, 0, 0), &["is for CPUs", "/torch/lib"]);
    }

    #[test]
    fn a_driver_that_is_not_there_or_fails_is_told_apart() {
        let cause = "libcuda.so.1: cannot open shared object file: No such file or directory";
        let none = Machine {
            driver: Err(DriverError::NoLibrary { cause: cause.to_owned() }),
            driver_version: None,
            ..machine(Version::new(13, 0), vec![])
        };
        let refusal = none.why_not(&build(13), 0, 0);
        says(&refusal, &[cause, "no card's file", "install NVIDIA's driver"]);
        assert!(refusal.is_absence());
        let container = Machine { device_files: vec!["/dev/nvidia0".into()], ..none };
        let refusal = container.why_not(&build(13), 0, 0);
        says(&refusal, &["/dev/nvidia0", "container toolkit"]);
        assert!(!refusal.is_absence());
        for (code, way) in [(802, "fabric manager"), (34, "stub"), (999, "nvidia-smi")] {
            let error =
                DriverError::Refused { function: "cuInit".into(), code, text: "words".into() };
            let broken = Machine { driver: Err(error), ..container.clone() };
            let refusal = broken.why_not(&build(13), 0, 0);
            says(&refusal, &["`cuInit`", &code.to_string(), "words", way]);
            assert!(!refusal.is_absence());
        }
    }

    #[test]
    fn a_missing_library_is_told_from_a_broken_one() {
        let one = machine(Version::new(13, 0), vec![card("A", 9, 0)]);
        let with = |cause: &str| Build { failure: Some(cause.to_owned()), ..build(13) };
        let missing = "libcudnn.so.9: cannot open shared object file: No such file or directory";
        says(
            &one.why_not(&with(missing), 0, 0),
            &["needs `libcudnn.so.9`", "looked in `/torch/lib`", "whole PyTorch"],
        );
        let broken = "/torch/lib/libtorch_cuda.so: undefined symbol: x";
        says(&one.why_not(&with(broken), 0, 0), &["does not load", "undefined symbol"]);
        let itself =
            "/torch/lib/libtorch_cuda.so: cannot open shared object file: Permission denied";
        says(&one.why_not(&with(itself), 0, 0), &["does not load", "Permission denied"]);
    }
}
