//! Packed weights for decoding on the CPU. A decoding step has few rows of input and is bound by reading weights, which is faster in the order
//! of use.

use torch::PackedCopy;

use super::Linear;
use crate::VisionLanguageModel;

/// Packed copies of a model's linear weights, each made at first use. Whoever decodes owns it and passes it to every pass; passes with a
/// gradient get none. Copies are of the weights as they were: after an update they are wrong, and a new one is due.
#[derive(Debug)]
pub struct PackedWeights {
    /// By [`Linear::number`].
    copies: Vec<PackedCopy>,
}

impl PackedWeights {
    /// Room for the copies of `model`, to which alone it may be passed.
    pub fn new(model: &dyn VisionLanguageModel) -> Self {
        let mut packed = PackedWeights { copies: Vec::new() };
        packed.copies.resize_with(model.parameters().linears.len(), PackedCopy::default);
        packed
    }

    /// The place of a layer's copy.
    pub(super) fn copy_of(&self, layer: &Linear) -> &PackedCopy {
        &self.copies[layer.number()]
    }
}
