//! The choice of a token for each row of logits: where nothing is filtered by the CPU kernel, or in few launches; else by libtorch's
//! operations.

mod filters;

use std::ffi::{c_char, c_int};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::TorchError;
use crate::call::{call_for_tensor, pointer};
use crate::fused::{check, dims, has_cpu_kernel};

use filters::{min_p, penalised, top_k, top_p};

unsafe extern "C" {
    fn vlm_r1_sample_tokens(
        logits: *mut C_tensor,
        banned: *const *mut C_tensor,
        unfinished: *mut C_tensor,
        uniforms: *mut C_tensor,
        scale: f64,
        table: *mut *mut C_tensor,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// A sample or an argmax this close to another outcome may differ by rounding alone.
pub const BOUNDARY: f64 = 1e-4;

/// Probabilities are scaled by this and truncated to integers before they are summed. Integer sums are exact in any order, so a prefix
/// sum never falls and a token of probability 0 is never sampled.
const UNITS: f64 = (1u64 << 52) as f64;

/// Inputs of [`sample_tokens`], by row.
#[derive(Debug)]
pub struct TokenSampling<'a> {
    /// `[n, vocab_size]`.
    pub logits: &'a Tensor,
    /// Divides the logits; 1 when greedy.
    pub temperature: f64,
    /// `[n, vocab_size]` in bool: tokens whose logits the penalty divides where positive and multiplies where negative.
    pub penalty: Option<(&'a Tensor, f64)>,
    /// `[vocab_size]` in bool each: tokens banned for all rows, and those banned for unfinished rows.
    pub banned: [&'a Tensor; 2],
    /// For [`TokenTable::Intervals`]; `None`: the table holds distances.
    pub constants: Option<&'a SamplingConstants>,
    /// `[n, 1]` in bool: the unfinished rows; `None`: no row.
    pub unfinished: Option<&'a Tensor>,
    /// `[n]` in f64, from 0 to below 1: inverse-CDF sampling in order of ids. `None`: greedy, the lowest id among equals.
    pub uniforms: Option<&'a Tensor>,
    /// Not for greedy choices.
    pub filters: TokenFilters,
}

/// Which tokens may be sampled, with the meanings of transformers' logits processors, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenFilters {
    /// Keeps the `k` largest; `None`: all.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most probable tokens that holds this probability.
    pub top_p: f64,
    /// Keeps tokens at least this probable, relative to the most probable one.
    pub min_p: f64,
}

impl TokenFilters {
    /// The `k` of a top-k that drops anything.
    fn limit(&self, vocab_size: i64) -> Option<i64> {
        self.top_k.map(|k| k as i64).filter(|&k| k < vocab_size)
    }

    fn is_off(&self, vocab_size: i64) -> bool {
        self.limit(vocab_size).is_none() && self.top_p >= 1.0 && self.min_p <= 0.0
    }
}

/// What the choice of a token in few launches reads besides its inputs.
#[derive(Debug)]
pub struct SamplingConstants {
    /// `[2, vocab_size]` in f32: what is added to the scores for each of [`TokenSampling::banned`].
    bans: Tensor,
    /// `[3]`: from a token to itself, to the one before it, and beyond the last.
    around: Tensor,
}

impl SamplingConstants {
    /// For the masks `[vocab_size]` of [`TokenSampling::banned`].
    pub fn new(banned: [&Tensor; 2]) -> Self {
        let masks = Tensor::stack(&banned, 0);
        let (vocab_size, device) = (masks.size()[1], masks.device());
        let bans = Tensor::zeros([2, vocab_size], (Kind::Float, device));
        SamplingConstants {
            bans: bans.masked_fill(&masks, f64::NEG_INFINITY),
            around: Tensor::from_slice(&[0, -1, vocab_size]).to_device(device),
        }
    }

    /// `[vocab_size]`, or `[n, vocab_size]` where `unfinished` says that rows differ.
    fn bans_of(&self, unfinished: Option<&Tensor>) -> Tensor {
        match unfinished {
            None => self.bans.get(0),
            Some(unfinished) => self.bans.get(1).where_self(unfinished, &self.bans.get(0)),
        }
    }
}

/// What a row of the table of [`sample_tokens`] holds, in f64, the token always first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenTable {
    /// `[n, 5]`: the token; its log-softmax over the whole vocabulary, before penalty, bans and filters; two numbers; whether rounding could
    /// move a filter's cut. The two numbers are, sampled, the distances of the uniform number to both ends of the token's interval (1 where
    /// no token lies beyond); greedy, the second largest and the largest score.
    Distances,
    /// `[n, 8]`: the token, the one before it (0 has none), the last of the vocabulary; the cumulative sums of all three; the log-softmax;
    /// the number that was looked up among the sums.
    Intervals,
}

impl TokenTable {
    /// The kind of a table of so many columns.
    ///
    /// # Panics
    /// On another number.
    pub fn of_columns(columns: i64) -> Self {
        match columns {
            5 => TokenTable::Distances,
            8 => TokenTable::Intervals,
            _ => panic!("a table of tokens has 5 or 8 columns, got {columns}"),
        }
    }

    /// Token, log-probability and whether rounding alone could have changed the choice, of one row; `greedy` says how it was chosen.
    pub fn read(self, row: &[f64], greedy: bool) -> (f64, f64, bool) {
        match self {
            TokenTable::Distances => {
                let near_boundary = match greedy {
                    true => row[3] - row[2] < BOUNDARY,
                    false => row[2] < BOUNDARY || row[3] < BOUNDARY || row[4] > 0.0,
                };
                (row[0], row[1], near_boundary)
            }
            TokenTable::Intervals => {
                let [id, end, total, target] = [row[0], row[3], row[5], row[7]];
                let start = if id > 0.0 { row[4] } else { 0.0 };
                let near_start = start > 0.0 && target - start < BOUNDARY * total;
                let near_end = end < total && end - target < BOUNDARY * total;
                (id, row[6], near_start || near_end)
            }
        }
    }
}

/// Chooses a token for each row, on the device of the logits and without synchronization: a [`TokenTable`], of intervals where the inputs
/// have constants for it and there is no kernel, nothing filtered and a uniform number.
///
/// # Panics
/// On tensors that do not fit.
pub fn sample_tokens(inputs: &TokenSampling<'_>) -> Tensor {
    let is_plain = inputs.penalty.is_none()
        && (inputs.uniforms.is_none() || inputs.filters.is_off(dims::<2>(inputs.logits)[1]));
    if is_plain && has_cpu_kernel(inputs.logits) {
        return by_kernel(inputs).expect("masks as long as the vocabulary");
    }
    match (inputs.constants, inputs.uniforms) {
        (Some(constants), Some(uniforms)) if is_plain => {
            sample_in_few_launches(inputs, constants, uniforms)
        }
        _ => sample_tokens_reference(inputs),
    }
}

/// Inverse-CDF sampling without filters: [`TokenTable::Intervals`].
///
/// # Panics
/// On tensors that do not fit.
pub fn sample_in_few_launches(
    inputs: &TokenSampling<'_>,
    constants: &SamplingConstants,
    uniforms: &Tensor,
) -> Tensor {
    let vocab_size = inputs.logits.size()[1];
    let logprobs = inputs.tempered(&inputs.logits.to_kind(Kind::Float));
    let logprobs = logprobs.log_softmax(-1, Kind::Float);
    let scores = &logprobs + constants.bans_of(inputs.unfinished);
    // The product is exact, and the sum truncates it to integers first.
    let sums = (scores.softmax(-1, Kind::Float) * UNITS).cumsum(-1, Kind::Int64);
    let target = uniforms.unsqueeze(1) * sums.narrow(1, vocab_size - 1, 1);
    let ids = target.to_kind(Kind::Int64).searchsorted(&sums, false, true, "right", None::<Tensor>);
    // Clamped also for rows of NaN, which the caller refuses.
    let around = (ids + &constants.around).clamp_(0, vocab_size - 1);
    let logprob = logprobs.gather(1, &around.narrow(1, 0, 1), false);
    // One column in f64 makes all of it f64.
    Tensor::cat(&[&around, &sums.gather(1, &around, false), &logprob, &target], 1)
}

/// [`sample_tokens`] by libtorch's operations: [`TokenTable::Distances`].
pub fn sample_tokens_reference(inputs: &TokenSampling<'_>) -> Tensor {
    let logits = inputs.logits.to_kind(Kind::Float);
    let logprobs = inputs.tempered(&logits).log_softmax(-1, Kind::Float);
    let mut scores = match inputs.penalty {
        Some((seen, penalty)) => inputs.tempered(&penalised(&logits, seen, penalty)),
        // Greedy compares the logits themselves: log-softmax may round two of them to one.
        None if inputs.uniforms.is_none() => logits.shallow_clone(),
        None => logprobs.shallow_clone(),
    };
    scores = scores.masked_fill(inputs.banned[0], f64::NEG_INFINITY);
    if let Some(unfinished) = inputs.unfinished {
        let banned = unfinished.logical_and(inputs.banned[1]);
        scores = scores.masked_fill(&banned, f64::NEG_INFINITY);
    }
    let picked = match inputs.uniforms {
        None => largest(&scores),
        Some(uniforms) => draw(scores, &inputs.filters, uniforms),
    };
    let logprob = logprobs.gather(1, &picked.ids, false);
    let columns = [&picked.ids, &logprob, &picked.low, &picked.high, &picked.near_cut];
    let columns: Vec<Tensor> = columns.iter().map(|x| x.to_kind(Kind::Double)).collect();
    Tensor::cat(&columns, 1)
}

impl TokenSampling<'_> {
    fn tempered(&self, logits: &Tensor) -> Tensor {
        match self.temperature {
            1.0 => logits.shallow_clone(),
            temperature => logits / temperature,
        }
    }
}

fn by_kernel(inputs: &TokenSampling<'_>) -> Result<Tensor, TorchError> {
    let TokenSampling { logits, banned, unfinished, uniforms, .. } = inputs;
    let [rows, vocab_size] = dims(logits);
    let fits = logits.dim() == 2
        && vocab_size > 0
        && banned.iter().all(|mask| {
            mask.size() == [vocab_size]
                && mask.kind() == Kind::Bool
                && mask.is_contiguous()
                && mask.device() == logits.device()
        })
        && unfinished.is_none_or(|x| {
            x.size() == [rows, 1]
                && x.kind() == Kind::Bool
                && x.is_contiguous()
                && x.device() == logits.device()
        })
        && uniforms.is_none_or(|x| {
            x.size() == [rows]
                && x.kind() == Kind::Double
                && x.is_contiguous()
                && x.device() == logits.device()
        });
    check("sample_tokens", fits, &[logits, banned[0], banned[1]])?;
    let optional = |x: Option<&Tensor>| x.map_or(std::ptr::null_mut(), pointer);
    let banned = banned.map(pointer);
    // SAFETY: valid `at::Tensor*` (two may be null) of shapes and types that fit, borrowed for the call.
    call_for_tensor(|table, error, capacity| unsafe {
        vlm_r1_sample_tokens(
            pointer(logits),
            banned.as_ptr(),
            optional(*unfinished),
            optional(*uniforms),
            1.0 / inputs.temperature,
            table,
            error,
            capacity,
        )
    })
}

/// `[n, 1]` each. `low` and `high` are, sampled, the distances to the ends of the token's interval; greedy, the second largest and the
/// largest score.
struct Picked {
    ids: Tensor,
    low: Tensor,
    high: Tensor,
    near_cut: Tensor,
}

fn largest(scores: &Tensor) -> Picked {
    let ids = scores.argmax(1, true);
    let high = scores.gather(1, &ids, false);
    let low = scores.scatter_value(1, &ids, f64::NEG_INFINITY).amax([1i64], true);
    let near_cut = ids.zeros_like();
    Picked { ids, low, high, near_cut }
}

/// Inverse-CDF sampling from the filtered scores in order of ids.
fn draw(scores: Tensor, filters: &TokenFilters, uniforms: &Tensor) -> Picked {
    let vocab_size = scores.size()[1];
    let mut near_cut = Tensor::zeros([scores.size()[0], 1], (Kind::Bool, scores.device()));
    let mut scores = scores;
    if let Some(k) = filters.limit(vocab_size) {
        scores = top_k(&scores, k, &mut near_cut);
    }
    if filters.top_p < 1.0 {
        scores = top_p(&scores, filters.top_p, &mut near_cut);
    }
    if filters.min_p > 0.0 {
        scores = min_p(&scores, filters.min_p, &mut near_cut);
    }
    let units =
        (scores.softmax(-1, Kind::Float).to_kind(Kind::Double) * UNITS).to_kind(Kind::Int64);
    let cumulative = units.cumsum(-1, Kind::Int64);
    let total = cumulative.narrow(1, vocab_size - 1, 1);
    let total_f64 = total.to_kind(Kind::Double);
    // Below `total`, since a uniform number is below 1.
    let target = (uniforms.unsqueeze(1) * &total_f64).to_kind(Kind::Int64);
    // The first id whose sum lies above the target; clamped for rows of NaN, which the caller refuses.
    let ids = target
        .searchsorted(&cumulative, false, true, "right", None::<Tensor>)
        .clamp_max(vocab_size - 1);
    let end = cumulative.gather(1, &ids, false);
    let start = &end - units.gather(1, &ids, false);
    // Distances to both ends of the token's interval; none where no token lies beyond.
    let low =
        ((&target - &start).to_kind(Kind::Double) / &total_f64).masked_fill(&start.le(0), 1.0);
    let high = ((&end - &target).to_kind(Kind::Double) / &total_f64)
        .masked_fill(&end.ge_tensor(&total), 1.0);
    Picked { ids, low, high, near_cut }
}
