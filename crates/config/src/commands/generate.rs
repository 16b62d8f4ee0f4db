//! What `generate` takes.

use crate::ranges::demand;
use crate::sections::{DeviceSection, FilterSection, LoadSection};
use crate::{ConfigError, CudaGraphs, ImageProcessor, Validate, command, section};

section! {
    /// The model that answers.
    pub struct AskedSection {
        "model" {
            /// Model folder in Hugging Face format, an adapter over one, a run's folder (its newest checkpoint; `RUN@100`,
            /// `RUN@best`), or the name of a model on the hub.
            model: String,
            /// Whose way of resizing images to follow.
            image_processor: ImageProcessor = ImageProcessor::Torchvision,
        }
    }
}

section! {
    /// The questions, and where the completions go.
    pub struct QuestionSection {
        "question" {
            /// Images of the question, in order.
            image: Vec<String> = Vec::new(),
            /// The question.
            prompt: Option<String> = None,
            /// File of questions, one JSON object a line: `images`, `prompt`.
            input: Option<String> = None,
            /// Where the completions go, one JSON object a line; without it, their texts go to stdout.
            output: Option<String> = None,
            /// Write these objects, with token ids and log-probabilities, to stdout too.
            json: bool = false,
            /// Folder of the images of `input`; without it, the folder of `input`.
            image_folder: Option<String> = None,
        }
    }
}

section! {
    /// How many completions, how long, how random.
    pub struct GenerationSection {
        "sampling" {
            /// Completions of each question.
            num_generations: usize = 1,
            /// Longest completion, tokens.
            max_new_tokens: usize = 2048,
            /// No end of a completion before this many tokens.
            min_completion_length: usize = 0,
            /// Divides the logits; 0 takes the likeliest token.
            temperature: f64 = 1.0,
        }
    }
}

section! {
    /// How completions are sampled.
    pub struct DecodingSection {
        "sampling" {
            /// Seed of the random draws.
            seed: u64 = 42,
            /// Completions sampled at the same time.
            max_concurrent_completions: usize = 256,
            /// Decode with static shapes and CUDA graphs: `auto`, where they are proven on this device; `true`; `false`.
            cuda_graphs: CudaGraphs = CudaGraphs::Auto,
        }
    }
}

command! {
    /// Sampling completions.
    pub struct GenerateConfig {
        asked: AskedSection,
        load: LoadSection,
        machine: DeviceSection,
        question: QuestionSection,
        sampling: GenerationSection,
        filters: FilterSection,
        decoding: DecodingSection,
    }
}

impl Validate for GenerateConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        self.question.validate()?;
        self.sampling.validate()?;
        let at_once = self.decoding.max_concurrent_completions;
        demand(at_once > 0, "max_concurrent_completions", 0, "at least 1")?;
        self.machine.validate()?;
        self.filters.validate()
    }
}

impl QuestionSection {
    fn validate(&self) -> Result<(), ConfigError> {
        let got = if self.prompt.is_some() { "both `prompt` and `input`" } else { "nothing" };
        let is_one = self.prompt.is_some() != self.input.is_some();
        demand(is_one, "prompt", got, "either `prompt` or `input`")?;
        let is_without = self.input.is_none() || self.image.is_empty();
        demand(is_without, "image", self.image.join(" "), "nothing beside `input`")
    }
}

impl GenerationSection {
    fn validate(&self) -> Result<(), ConfigError> {
        demand(self.num_generations > 0, "num_generations", 0, "at least 1")?;
        demand(self.max_new_tokens > 0, "max_new_tokens", 0, "at least 1")?;
        let least = self.min_completion_length;
        let holds = least <= self.max_new_tokens;
        demand(holds, "min_completion_length", least, "at most `max_new_tokens`")?;
        demand(self.temperature >= 0.0, "temperature", self.temperature, "at least 0")
    }
}
