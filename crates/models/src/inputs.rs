//! Prompts and completions packed into one sequence of tokens.

use std::sync::Arc;

use base::{ImageLayout, PreparedImage, Prompt};
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::layers::attention::Layout;
use crate::model::{ImageRows, PassInputs, VisionLanguageModel};

/// A packed batch: the inputs of a forward pass.
#[derive(Debug)]
pub struct ModelInputs {
    /// `[T]`.
    pub input_ids: Tensor,
    /// `[3, T]`.
    pub position_ids: Tensor,
    /// The distinct images; `None` where all is text.
    pub images: Option<ImageInputs>,
    /// Which tokens attend to which.
    pub layout: Layout,
}

/// Images of a batch, without duplicates.
#[derive(Debug)]
pub struct ImageInputs {
    /// The images.
    pub distinct: Vec<Arc<PreparedImage>>,
    /// For each placeholder token, its row of the tower's output.
    pub sources: Tensor,
    /// For each placeholder token, its index in the packed tokens.
    pub targets: Tensor,
}

impl ModelInputs {
    /// What the layers of `model` read beside hidden states in a pass over this batch.
    pub fn pass_inputs(&self, model: &dyn VisionLanguageModel) -> PassInputs {
        let rows = self.images.as_ref().map(|images| ImageRows {
            sources: images.sources.shallow_clone(),
            targets: images.targets.shallow_clone(),
        });
        model.pass_inputs(&self.position_ids, rows)
    }
}

impl ImageInputs {
    /// `[patches, patch_dim]` of all of them.
    pub fn pixel_values(&self, kind: Kind, device: Device) -> Tensor {
        pixel_values(&self.distinct, kind, device)
    }

    /// Tiles of all of them.
    pub fn tiles(&self) -> Vec<[usize; 3]> {
        self.distinct.iter().flat_map(|image| image.layout.tiles.iter().copied()).collect()
    }
}

/// Packs prompts and completions.
pub struct InputsBuilder<'m> {
    model: &'m dyn VisionLanguageModel,
    ids: Vec<i64>,
    positions: [Vec<i64>; 3],
    layout: Layout,
    next_position: Vec<i64>,
    images: Vec<Arc<PreparedImage>>,
    /// First output row of each distinct image.
    first_row: Vec<i64>,
    rows: i64,
    sources: Vec<i64>,
    targets: Vec<i64>,
}

impl<'m> InputsBuilder<'m> {
    /// An empty batch for `model`.
    pub fn new(model: &'m dyn VisionLanguageModel) -> Self {
        InputsBuilder {
            model,
            ids: Vec::new(),
            positions: Default::default(),
            layout: Layout::default(),
            next_position: Vec::new(),
            images: Vec::new(),
            first_row: Vec::new(),
            rows: 0,
            sources: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Tokens so far.
    pub fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    /// The layout so far.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Appends a prompt and returns its segment.
    ///
    /// # Errors
    /// [`ModelError::EmptyPrompt`]; [`ModelError::TokenId`] of a token the model does not know;
    /// [`ModelError::Placeholders`] where the prompt's placeholders and images disagree;
    /// [`ModelError::PatchDim`] of images prepared for another model.
    pub fn push_prompt(&mut self, prompt: &Prompt) -> Result<usize, ModelError> {
        self.check(prompt)?;
        let image_token = self.model.image_token_id();
        let layouts: Vec<&ImageLayout> = prompt.images.iter().map(|i| &i.layout).collect();
        let start = self.ids.len() as i64;
        let placeholders = prompt.ids.iter().enumerate().filter(|&(_, &id)| id == image_token);
        self.targets.extend(placeholders.map(|(i, _)| start + i as i64));
        for image in &prompt.images {
            let first = self.distinct(image);
            self.sources.extend(first..first + image.layout.num_tokens() as i64);
        }
        self.ids.extend(prompt.ids.iter().map(|&id| i64::from(id)));
        let positions = self.model.prompt_positions(&prompt.ids, &layouts);
        for (axis, list) in self.positions.iter_mut().enumerate() {
            list.extend(positions.positions.iter().map(|p| p[axis]));
        }
        self.next_position.push(positions.next);
        Ok(self.layout.push(prompt.ids.len(), None))
    }

    /// Appends a completion over the prompt at segment `prompt` and returns its segment.
    ///
    /// # Panics
    /// On an empty completion.
    pub fn push_completion(&mut self, prompt: usize, ids: &[u32]) -> usize {
        let next = self.next_position[prompt];
        self.ids.extend(ids.iter().map(|&id| i64::from(id)));
        for list in &mut self.positions {
            list.extend(next..next + ids.len() as i64);
        }
        self.next_position.push(next + ids.len() as i64);
        self.layout.push(ids.len(), Some(prompt))
    }

    /// Checks what libtorch would fail on later, or not notice.
    fn check(&self, prompt: &Prompt) -> Result<(), ModelError> {
        if prompt.ids.is_empty() {
            return Err(ModelError::EmptyPrompt);
        }
        let rows = self.model.text_shape().vocab_size;
        if let Some(&id) = prompt.ids.iter().find(|&&id| i64::from(id) >= rows) {
            return Err(ModelError::TokenId { id, rows });
        }
        let runs = prompt.images.iter().flat_map(|image| image.layout.runs.iter().copied());
        let expected: Vec<usize> = runs.collect();
        let got = placeholder_runs(&prompt.ids, self.model.image_token_id(), &expected);
        if got != expected {
            return Err(ModelError::Placeholders { got, expected });
        }
        let dim = self.model.patch_dim();
        for image in &prompt.images {
            let patches = image.layout.num_patches();
            if image.pixel_values.len() != patches * dim {
                return Err(ModelError::PatchDim {
                    expected: dim,
                    got: image.pixel_values.len() / patches.max(1),
                });
            }
        }
        Ok(())
    }

    fn distinct(&mut self, image: &Arc<PreparedImage>) -> i64 {
        if let Some(i) = self.images.iter().position(|other| Arc::ptr_eq(other, image)) {
            return self.first_row[i];
        }
        let first = self.rows;
        self.first_row.push(first);
        self.rows += image.layout.num_tokens() as i64;
        self.images.push(image.clone());
        first
    }

    /// The batch on the model's device.
    pub fn build(self) -> ModelInputs {
        let device = self.model.compute().1;
        let vector = |list: &[i64]| torch::upload(list, device);
        let positions: Vec<Tensor> = self.positions.iter().map(|list| vector(list)).collect();
        let images = (!self.images.is_empty()).then(|| ImageInputs {
            distinct: self.images,
            sources: vector(&self.sources),
            targets: vector(&self.targets),
        });
        ModelInputs {
            input_ids: vector(&self.ids),
            position_ids: Tensor::stack(&positions, 0),
            images,
            layout: self.layout,
        }
    }
}

/// Lengths of the runs of placeholders; runs may touch, so one ends where it is complete.
fn placeholder_runs(ids: &[u32], image_token: u32, expected: &[usize]) -> Vec<usize> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < ids.len() {
        let run = ids[at..].iter().take_while(|&&id| id == image_token);
        let run = run.count();
        if run == 0 {
            at += 1;
            continue;
        }
        let run = expected.get(runs.len()).map_or(run, |&n| run.min(n.max(1)));
        runs.push(run);
        at += run;
    }
    runs
}

/// Patches of images, one after another.
pub(crate) fn pixel_values(images: &[Arc<PreparedImage>], kind: Kind, device: Device) -> Tensor {
    let parts: Vec<Tensor> = images
        .iter()
        .map(|image| {
            let patches = image.layout.num_patches() as i64;
            Tensor::from_slice(&image.pixel_values).view([patches, -1]).to_kind(kind)
        })
        .collect();
    Tensor::cat(&parts, 0).to_device(device)
}
