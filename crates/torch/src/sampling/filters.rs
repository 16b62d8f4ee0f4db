//! Penalty and filters of `[n, vocab_size]` scores, with the meanings of transformers' logits processors.
//!
//! A filter also marks in `near_cut [n, 1]` the rows where rounding could keep or drop a token.

use tch::{Kind, Tensor};

use super::BOUNDARY;

/// Divides positive and multiplies negative logits of `seen` tokens.
pub(super) fn penalised(logits: &Tensor, seen: &Tensor, penalty: f64) -> Tensor {
    let lowered = (logits * penalty).where_self(&logits.lt(0.0), &(logits / penalty));
    lowered.where_self(seen, logits)
}

/// Keeps scores not below the `k`-th largest.
pub(super) fn top_k(scores: &Tensor, k: i64, near_cut: &mut Tensor) -> Tensor {
    let (largest, _) = scores.topk(k + 1, 1, true, true);
    let (kept, next) = (largest.narrow(1, k - 1, 1), largest.narrow(1, k, 1));
    let close = (&kept - &next).lt(BOUNDARY).logical_and(&kept.isfinite());
    *near_cut = near_cut.logical_or(&close);
    scores.masked_fill(&scores.lt_tensor(&kept), f64::NEG_INFINITY)
}

/// Drops the least probable tokens whose probabilities sum to at most `1 - p`, never the most probable.
pub(super) fn top_p(scores: &Tensor, p: f64, near_cut: &mut Tensor) -> Tensor {
    let vocab_size = scores.size()[1];
    let (sorted, order) = scores.sort_stable(true, 1, false);
    let probabilities = sorted.softmax(-1, Kind::Double);
    let cumulative = probabilities.cumsum(-1, Kind::Double);
    note_close(
        near_cut,
        &cumulative,
        // A CPU scalar is passed as a kernel argument, without a transfer.
        &Tensor::from(1.0 - p),
        &probabilities,
    );
    let dropped = cumulative.le(1.0 - p);
    let _ = dropped.narrow(1, vocab_size - 1, 1).fill_(0);
    scores.masked_fill(&dropped.zeros_like().scatter(1, &order, &dropped), f64::NEG_INFINITY)
}

/// Drops tokens less probable than `p` times the most probable.
pub(super) fn min_p(scores: &Tensor, p: f64, near_cut: &mut Tensor) -> Tensor {
    let probabilities = scores.softmax(-1, Kind::Float);
    let cut = probabilities.amax([1i64], true) * p;
    note_close(near_cut, &probabilities, &cut, &probabilities);
    scores.masked_fill(&probabilities.lt_tensor(&cut), f64::NEG_INFINITY)
}

/// Marks rows where a token of some weight lies at the cut: rounding could keep or drop it.
fn note_close(near_cut: &mut Tensor, keys: &Tensor, cut: &Tensor, probabilities: &Tensor) {
    let close = (keys - cut).abs().lt(BOUNDARY).logical_and(&probabilities.gt(BOUNDARY));
    *near_cut = near_cut.logical_or(&close.any_dim(1, true));
}
