// CPU kernels of sampling, without gradients: decoding attention, packed linear layers, whole decoder layers, token sampling.

#include "torch_op.h"
#include "thread_team.h"

#include <ATen/core/grad_mode.h>
#include <memory>
#include <vector>

#include "../catch.h"

namespace {

using namespace vlm_r1;
using at::Tensor;

struct Heads {
  int64_t queries, keys, dim;
};

// `cache`: the tensors of `KvView` in order; the last may be null.
template <typename T>
DecodeAttention<T> attention(const T *q, const T *k, const T *v, T *output, Tensor **cache, Heads heads, double scale) {
  return {
      q,
      k,
      v,
      read<T>(*cache[0]),
      read<T>(*cache[1]),
      write<T>(*cache[2]),
      write<T>(*cache[3]),
      read<int64_t>(*cache[4]),
      read<int64_t>(*cache[5]),
      read<int64_t>(*cache[6]),
      cache[7] ? read<int64_t>(*cache[7]) : nullptr,
      output,
      heads.queries,
      heads.keys,
      heads.dim,
      cache[1]->size(2),
      cache[2]->size(2),
      static_cast<float>(scale),
  };
}

template <typename T>
PackedLinear<T> linear(Tensor *packed, Tensor *bias, T *y, int64_t in, int64_t out) {
  return {read<T>(*packed), bias ? read<T>(*bias) : nullptr, y, in, out};
}

}  // namespace

// As `decoding.rs` has it. Norms, in this order: before attention, before the MLP, of queries, of keys, after attention, after the MLP.
constexpr int NUM_NORMS = 6;
struct DecodeLayerNumbers {
  int64_t outs[7], head_dim;
  double eps[NUM_NORMS], offset[NUM_NORMS], scale;
  int activation, adjacent;
};

namespace {

// See `vlm_r1_decode_layer`.
template <typename T>
class DecodeLayer {
 public:
  DecodeLayer(Tensor **tensors, const DecodeLayerNumbers &layer, T *y)
      : x(read<T>(*tensors[0])), rows(tensors[0]->size(0)), hidden(tensors[0]->size(1)), wide(layer.outs[0]),
        inner(layer.outs[4]), head_dim(layer.head_dim), activation(static_cast<Activation>(layer.activation)),
        y(y) {
    const int64_t *outs = layer.outs, keys = outs[1];
    for (int i = 0; i < NUM_NORMS; ++i) {
      norms[i] = {{nullptr, 0, 0}, tensors[1 + i] ? read<T>(*tensors[1 + i]) : nullptr, static_cast<float>(layer.offset[i]),
                  static_cast<float>(layer.eps[i]), 1, i == QUERIES || i == KEYS ? head_dim : hidden};
    }
    turn = {{nullptr, 0, head_dim}, read<T>(*tensors[21]), read<T>(*tensors[22]), 0, head_dim, tensors[21]->size(1), 1,
            layer.adjacent != 0};
    weights = hidden * (wide + 2 * keys) + wide * hidden + 3 * hidden * inner;
    const int64_t most = std::max(std::max(hidden, wide), inner);
    arranged.reset(new float[rows * even(most)]);
    numbers.reset(new T[rows * (2 * hidden + 2 * wide + 2 * keys + 2 * inner)]);
    normed = numbers.get();
    between = normed + rows * hidden;
    q = between + rows * hidden;
    k = q + rows * wide;
    v = k + rows * keys;
    seen = v + rows * keys;
    gate = seen + rows * wide;
    up = gate + rows * inner;
    const auto part = [&](int i, T *to, int64_t in) { return linear<T>(tensors[7 + i], tensors[14 + i], to, in, outs[i]); };
    qkv[0] = part(0, q, hidden);
    qkv[1] = part(1, k, hidden);
    qkv[2] = part(2, v, hidden);
    o = part(3, between, wide);
    gate_up[0] = part(4, gate, hidden);
    gate_up[1] = part(5, up, hidden);
    down = part(6, y, inner);
    attend = attention<T>(q, k, v, seen, tensors + 23, {wide / head_dim, keys / head_dim, head_dim}, layer.scale);
    scratch.reset(new float[at::get_num_threads() * decode_scratch(attend)]);
  }

  void run() {
    together(rows * weights, [&](Team &team) {
      normalise(team, x, BEFORE_ATTENTION);
      team.linears(qkv, 3, arranged.get(), rows);
      team.wait();
      over_keys(team);
      team.wait();
      team.arrange(seen, rows, wide, arranged.get());
      add_to(team, o, x, AFTER_ATTENTION);
      team.wait();
      normalise(team, between, BEFORE_MLP);
      // Each thread activates its own outputs: no barrier.
      const auto [from, to] = team.share(panels(inner));
      for (const auto &layer : gate_up) typed<T>().packed_linear(layer, arranged.get(), rows, from, to);
      activate(from * 16, std::min(inner, to * 16));
      team.wait();
      team.arrange(gate, rows, inner, arranged.get());
      add_to(team, down, between, AFTER_MLP);
    });
  }

 private:
  enum Place { BEFORE_ATTENTION, BEFORE_MLP, QUERIES, KEYS, AFTER_ATTENTION, AFTER_MLP };

  void norm(Place place, const T *from, T *to, int64_t begin, int64_t end) const {
    NormRows<T> own = norms[place];
    own.x = {from, own.n, 0};
    typed<T>().rms_norm(own, begin, end, to, nullptr);
  }

  void normalise(Team &team, const T *from, Place place) {
    const auto [a, b] = team.share(rows);
    norm(place, from, normed, a, b);
    team.wait();
    team.arrange(normed, rows, hidden, arranged.get());
  }

  // Norms and rotary embedding of heads, and attention, of work items (slot, kv head).
  void over_keys(Team &team) {
    const auto [from, to] = team.share(rows * attend.kv_heads);
    float *own = scratch.get() + team.thread() * decode_scratch(attend);
    const int64_t repeats = attend.heads / attend.kv_heads;
    for (int64_t pair = from; pair < to; ++pair) {
      const int64_t slot = pair / attend.kv_heads;
      prepare(QUERIES, slot, q + pair * repeats * head_dim, repeats);
      prepare(KEYS, slot, k + pair * head_dim, 1);
      typed<T>().decode_attention(attend, pair, pair + 1, own);
    }
  }

  void prepare(Place place, int64_t slot, T *heads, int64_t n) const {
    if (norms[place].w) norm(place, heads, heads, 0, n);
    Rotation<T, T> own = turn;
    own.x.data = heads, own.heads = n;
    own.cos += slot * own.width, own.sin += slot * own.width;
    typed<T>().rotate(own, 0, 1, heads);
  }

  // Writes residual + product, or residual + norm of the product; each is rounded before the sum.
  void add_to(Team &team, const PackedLinear<T> &layer, const T *residual, Place place) {
    const auto [from, to] = team.share(panels(hidden));
    typed<T>().packed_linear(layer, arranged.get(), rows, from, to);
    if (!norms[place].w) {
      typed<T>().add(residual, layer.y, rows, hidden, from * 16, std::min(hidden, to * 16));
      return;
    }
    team.wait();
    const auto [a, b] = team.share(rows);
    norm(place, layer.y, layer.y, a, b);
    typed<T>().add(residual + a * hidden, layer.y + a * hidden, b - a, hidden, 0, hidden);
  }

  void activate(int64_t from, int64_t to) {
    for (int64_t row = 0; row < rows && from < to; ++row) {
      T *g = gate + row * inner + from;
      typed<T>().gated(activation, g, up + row * inner + from, g, to - from);
    }
  }

  const T *x;
  int64_t rows, hidden, wide, inner, head_dim, weights;
  Activation activation;
  T *y;
  NormRows<T> norms[NUM_NORMS];
  Rotation<T, T> turn;
  std::unique_ptr<float[]> arranged, scratch;
  std::unique_ptr<T[]> numbers;
  T *normed, *between, *q, *k, *v, *seen, *gate, *up;
  PackedLinear<T> qkv[3], o, gate_up[2], down;
  DecodeAttention<T> attend;
};

}  // namespace

extern "C" {

// `tensors`: q, k, v, then those of `KvView`.
int vlm_r1_decode_attention(Tensor **tensors, double scale, Tensor **output, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    const Tensor q = tensors[0]->contiguous(), k = tensors[1]->contiguous(), v = tensors[2]->contiguous();
    for (int i = 3; i < 11; ++i) TORCH_CHECK(!tensors[i] || tensors[i]->is_contiguous(), "tensor ", i, " has gaps");
    Tensor y = at::empty_like(q);
    by_type(q.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const auto a = attention<T>(read<T>(q), read<T>(k), read<T>(v), write<T>(y), tensors + 3, {q.size(1), k.size(1), q.size(2)}, scale);
      const int64_t pairs = q.size(0) * a.kv_heads;
      const int64_t work = (a.heads / a.kv_heads) * (a.prompt_width + a.completion_width) * a.head_dim;
      at::parallel_for(0, pairs, std::max<int64_t>(1, 8 * GRAIN / std::max<int64_t>(work, 1)), [&](int64_t from, int64_t to) {
        std::vector<float> scratch(decode_scratch(a));
        typed<T>().decode_attention(a, from, to, scratch.data());
      });
    });
    *output = new Tensor(std::move(y));
  });
}

// `weight [out, in]` in the order of `kernels.h`, `[panels * 16, in]` with an even `in`.
int vlm_r1_pack_linear(Tensor *weight, Tensor **packed, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    const Tensor w = weight->contiguous();
    const int64_t in = w.size(1), out = w.size(0), panel_size = packed_size(in, 16);
    Tensor result = at::empty({panels(out) * 16, panel_size / 16}, w.options());
    by_type(w.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const T *from = read<T>(w);
      T *to = write<T>(result);
      at::parallel_for(0, panels(out), rows_at_once(panel_size), [&](int64_t a, int64_t b) {
        typed<T>().pack(from + a * 16 * in, in, std::min(out, b * 16) - a * 16, to + a * panel_size);
      });
    });
    *packed = new Tensor(std::move(result));
  });
}

// `x [rows, in]` by `n` packed layers of `outs` outputs, each with a bias or null: `n` handles into `y`.
int vlm_r1_packed_linears(Tensor *x, size_t n, Tensor **packed, Tensor **biases, const int64_t *outs, Tensor **y,
                          char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    const Tensor input = x->contiguous();
    const int64_t rows = input.size(0), in = input.size(1);
    std::vector<Tensor> results;
    for (size_t i = 0; i < n; ++i) results.push_back(at::empty({rows, outs[i]}, input.options()));
    by_type(input.scalar_type(), [&](auto one) {
      using T = decltype(one);
      std::vector<PackedLinear<T>> layers;
      for (size_t i = 0; i < n; ++i) layers.push_back(linear<T>(packed[i], biases[i], write<T>(results[i]), in, outs[i]));
      int64_t weights = 0;
      for (size_t i = 0; i < n; ++i) weights += in * outs[i];
      std::unique_ptr<float[]> arranged(new float[rows * even(in)]);
      together(rows * weights, [&](Team &team) {
        team.arrange(read<T>(input), rows, in, arranged.get());
        team.linears(layers.data(), n, arranged.get(), rows);
      });
    });
    for (size_t i = 0; i < n; ++i) y[i] = new Tensor(std::move(results[i]));
  });
}

// A decoder layer over one new token per slot, `x [slots, hidden]` to the same. `tensors`: x; the norms' weights, of which all but the
// first two may be null; the packed weights of q, k, v, o, gate, up and down, then their biases, null where there is none; cosines
// and sines `[slots, width]`; the tensors of `KvView`. Bit for bit the same as the single operations, but threads are woken once.
int vlm_r1_decode_layer(Tensor **tensors, const DecodeLayerNumbers *numbers, Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    for (int i = 0; i < 31; ++i) {
      TORCH_CHECK(!tensors[i] || tensors[i]->is_contiguous(), "tensor ", i, " has gaps");
    }
    Tensor result = at::empty_like(*tensors[0]);
    by_type(result.scalar_type(), [&](auto one) {
      using T = decltype(one);
      DecodeLayer<T>(tensors, *numbers, write<T>(result)).run();
    });
    *y = new Tensor(std::move(result));
  });
}

// `logits [rows, vocabulary]`; `banned`: two masks `[vocabulary]`, for all rows and for those that `unfinished` (`[rows, 1]` or null)
// marks; `uniforms [rows]` in f64, null for greedy. Gives `[rows, 5]` in f64, see `kernels.h`.
int vlm_r1_sample_tokens(Tensor *logits, Tensor **banned, Tensor *unfinished, Tensor *uniforms, double scale, Tensor **table,
                  char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    const Tensor scores = logits->contiguous();
    const int64_t rows = scores.size(0), n = scores.size(1);
    Tensor result = at::empty({rows, 5}, scores.options().dtype(at::kDouble));
    const bool *masks[2] = {read<bool>(*banned[0]), read<bool>(*banned[1])};
    const bool *early = unfinished ? read<bool>(*unfinished) : nullptr;
    const double *uniform = uniforms ? read<double>(*uniforms) : nullptr;
    double *out = write<double>(result);
    by_type(scores.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const T *from = read<T>(scores);
      at::parallel_for(0, rows, rows_at_once(4 * n), [&](int64_t a, int64_t b) {
        std::vector<float> weights(n);
        for (int64_t i = a; i < b; ++i) {
          typed<T>().sample_token(from + i * n, n, static_cast<float>(scale), masks[early && early[i]],
                                  uniform ? uniform[i] : -1.0, weights.data(), out + 5 * i);
        }
      });
    });
    *table = new Tensor(std::move(result));
  });
}

}  // extern "C"
