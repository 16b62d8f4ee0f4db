//! The token samplers of a batch: one for each set of parameters in use.

use std::rc::Rc;

use models::VisionLanguageModel;

use crate::params::SamplingParams;
use crate::schedule::Slot;
use crate::token_sampler::TokenSampler;

/// Requests with equal parameters share a sampler. A sampler is in use while a request holds its parameters.
#[derive(Debug, Default)]
pub(crate) struct Samplers {
    list: Vec<TokenSampler>,
    /// How many there were so far.
    made: u64,
}

/// The slots of one sampler.
pub(crate) struct SamplerRows<'a> {
    pub sampler: &'a TokenSampler,
    /// Their indices, ascending.
    pub rows: Vec<usize>,
}

impl Samplers {
    /// The parameters that `params` equal, of a sampler that is there from now on.
    pub fn share(
        &mut self,
        model: &dyn VisionLanguageModel,
        params: &SamplingParams,
    ) -> Rc<SamplingParams> {
        self.list.retain(|sampler| Rc::strong_count(sampler.params()) > 1);
        if let Some(sampler) = self.list.iter().find(|sampler| **sampler.params() == *params) {
            return Rc::clone(sampler.params());
        }
        let params = Rc::new(params.clone());
        self.list.push(TokenSampler::new(model, Rc::clone(&params), self.made));
        self.made += 1;
        params
    }

    /// Whether any of them penalises repetitions.
    pub fn any_penalises(&self) -> bool {
        self.list.iter().any(|sampler| sampler.params().repetition_penalty != 1.0)
    }

    /// The longest completion; 0 where all are greedy, for which no random numbers are drawn.
    pub fn longest_drawn(&self) -> usize {
        let params = self.list.iter().map(TokenSampler::params);
        if params.clone().all(|params| params.greedy()) {
            return 0;
        }
        params.map(|params| params.max_new_tokens).max().unwrap_or(0)
    }

    /// The samplers of `slots`, by their first slot.
    pub fn of(&self, slots: &[Slot]) -> Vec<SamplerRows<'_>> {
        let mut groups: Vec<SamplerRows<'_>> = Vec::new();
        for (row, slot) in slots.iter().enumerate() {
            let is_of = |sampler: &TokenSampler| Rc::ptr_eq(sampler.params(), &slot.params);
            match groups.iter_mut().find(|group| is_of(group.sampler)) {
                Some(group) => group.rows.push(row),
                None => groups.push(SamplerRows {
                    sampler: self
                        .list
                        .iter()
                        .find(|sampler| is_of(sampler))
                        .expect("a slot holds the parameters of a sampler"),
                    rows: vec![row],
                }),
            }
        }
        groups
    }
}
