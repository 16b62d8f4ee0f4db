//! Sampling parameters.

use crate::EngineError;

/// Sampling parameters with the meanings of transformers' `GenerationConfig`.
///
/// Top-k is off by default, so that what is sampled is the policy whose log-probabilities are trained.
/// VLM-R1 samples otherwise: it names no top-k in its `GenerationConfig`, which then inherits
/// transformers' 50. `top_k: Some(50)` gives its behaviour.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy: the largest logit, the lowest id among equals.
    pub temperature: f64,
    /// Keeps the `k` most probable tokens; `None` or 0 keeps all.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most probable tokens that holds this probability, in `(0, 1]`.
    pub top_p: f64,
    /// Keeps tokens at least this probable, relative to the most probable one, in `[0, 1]`.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens that prompt or completion already hold.
    pub repetition_penalty: f64,
    /// Longest completion, tokens.
    pub max_new_tokens: usize,
    /// No end before this many tokens.
    pub min_new_tokens: usize,
    /// Ids that end a completion (and are its last token).
    pub eos_ids: Vec<u32>,
    /// Ids never sampled, besides the model's image placeholder, which never is.
    pub forbidden_ids: Vec<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new_tokens: 256,
            min_new_tokens: 0,
            eos_ids: Vec::new(),
            forbidden_ids: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Whether the largest logit is taken.
    pub fn greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// The number of most probable tokens kept, where it is limited.
    pub fn effective_top_k(&self) -> Option<usize> {
        self.top_k.filter(|&k| k > 0)
    }

    /// Checks ranges, and ids against the `vocab_size` rows of a head whose image placeholder is `image_token`.
    ///
    /// # Errors
    /// [`EngineError::Parameter`], [`EngineError::TokenId`] or [`EngineError::NothingLeft`].
    pub fn validate(&self, vocab_size: i64, image_token: u32) -> Result<(), EngineError> {
        let in_range = |name, value: f64, ok: bool, expected| {
            let got = value.to_string();
            if ok { Ok(()) } else { Err(EngineError::Parameter { name, got, expected }) }
        };
        let (t, p, m, r) = (self.temperature, self.top_p, self.min_p, self.repetition_penalty);
        in_range("temperature", t, t.is_finite() && t >= 0.0, "a finite number, 0 or more")?;
        in_range("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        in_range("min_p", m, (0.0..=1.0).contains(&m), "between 0 and 1")?;
        in_range("repetition_penalty", r, r.is_finite() && r > 0.0, "a finite number above 0")?;
        let (longest, shortest) = (self.max_new_tokens, self.min_new_tokens);
        in_range("max_new_tokens", longest as f64, longest >= 1, "1 or more")?;
        in_range(
            "min_new_tokens",
            shortest as f64,
            shortest <= longest,
            "at most `max_new_tokens`",
        )?;
        self.validate_ids(vocab_size, image_token)
    }

    fn validate_ids(&self, vocab_size: i64, image_token: u32) -> Result<(), EngineError> {
        let lists = [("eos_ids", &self.eos_ids), ("forbidden_ids", &self.forbidden_ids)];
        for (name, ids) in lists {
            if let Some(&id) = ids.iter().find(|&&id| i64::from(id) >= vocab_size) {
                return Err(EngineError::TokenId { name, id, vocab_size });
            }
        }
        let mut barred: Vec<u32> =
            [&self.eos_ids[..], &self.forbidden_ids[..], &[image_token]].concat();
        barred.sort_unstable();
        barred.dedup();
        if barred.len() as i64 >= vocab_size {
            return Err(EngineError::NothingLeft { vocab_size });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_parameter_and_its_range() {
        let message = |change: &dyn Fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            params.validate(10, 9).expect_err("refused").to_string()
        };
        assert_eq!(
            message(&|p| p.temperature = -1.0),
            "sampling parameter `temperature`: got -1, expected a finite number, 0 or more"
        );
        assert!(message(&|p| p.temperature = f64::NAN).contains("`temperature`: got NaN"));
        assert!(
            message(&|p| p.top_p = 0.0).contains("`top_p`: got 0, expected above 0 and at most 1")
        );
        assert!(message(&|p| p.top_p = 1.1).contains("`top_p`"));
        assert!(
            message(&|p| p.min_p = -0.1).contains("`min_p`: got -0.1, expected between 0 and 1")
        );
        assert!(message(&|p| p.repetition_penalty = 0.0).contains("`repetition_penalty`"));
        assert!(
            message(&|p| p.max_new_tokens = 0)
                .contains("`max_new_tokens`: got 0, expected 1 or more")
        );
        assert!(message(&|p| p.min_new_tokens = 257).contains("`min_new_tokens`: got 257"));
        assert!(
            message(&|p| p.eos_ids = vec![10])
                .contains("`eos_ids`: token id 10, expected below the 10 rows")
        );
        assert!(
            message(&|p| p.forbidden_ids = (0..9).collect()).contains("no token is left to sample")
        );
        assert!(SamplingParams::default().validate(10, 9).is_ok());
    }
}
