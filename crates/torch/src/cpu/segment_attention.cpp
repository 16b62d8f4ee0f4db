// Attention of packed segments as a torch operation with a gradient: tasks of `kernels.h`, scheduled dynamically over threads.
// Each sum lies within one task and has a fixed order, so results do not depend on the number of threads.

#include "torch_op.h"

#include <atomic>
#include <c10/core/CPUAllocator.h>
#include <torch/csrc/autograd/custom_function.h>
#include <vector>

#include "../catch.h"

namespace {

using namespace vlm_r1;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Below this many products a second thread costs more than it saves.
constexpr int64_t WORK_OF_A_THREAD = 1 << 20;

struct Table {
  const Segment *segments;
  int64_t count;

  // `segments [count, 3]` in int64, as the Rust side checked it.
  explicit Table(const Tensor &segments) : segments(reinterpret_cast<const Segment *>(read<int64_t>(segments))), count(segments.size(0)) {
    static_assert(sizeof(Segment) == 3 * sizeof(int64_t));
  }

  // Tasks over each segment's tokens times `per_token`, at most `most` a task.
  std::vector<AttentionTask> tasks(int64_t kv_heads, int64_t per_token, int64_t most) const {
    std::vector<AttentionTask> tasks;
    for (int64_t segment = 0; segment < count; ++segment) {
      const int64_t numbers = segments[segment].len * per_token, parts = (numbers + most - 1) / most;
      const int64_t part = ((numbers + parts - 1) / parts + 15) / 16 * 16;
      for (int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
        for (int64_t from = 0; from < numbers; from += part) {
          tasks.push_back({segment, kv_head, from, std::min(numbers, from + part)});
        }
      }
    }
    return tasks;
  }

  // Query-key pairs, masked ones included.
  int64_t pairs() const {
    int64_t pairs = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t prefix = segments[i].prefix < 0 ? 0 : segments[segments[i].prefix].len;
      pairs += segments[i].len * (prefix + segments[i].len);
    }
    return pairs;
  }
};

template <typename T>
using Loop = void (*)(const SegmentAttention<T> &, const AttentionTask &, float *);

template <typename T>
void run(Loop<T> loop, const SegmentAttention<T> &a, const Table &table, const std::vector<AttentionTask> &tasks) {
  const int64_t work = table.pairs() * a.heads * a.head_dim, count = static_cast<int64_t>(tasks.size());
  const int64_t workers = std::min({count, 1 + work / WORK_OF_A_THREAD, static_cast<int64_t>(at::get_num_threads())});
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    // Aligned as tensors are.
    const at::DataPtr scratch = c10::GetCPUAllocator()->allocate(attention_scratch(a.head_dim) * sizeof(float));
    for (int64_t i = next++; i < count; i = next++) loop(a, tasks[i], static_cast<float *>(scratch.get()));
  });
}

template <typename T>
Strided<const T> strided(const Tensor &x) {
  return {read<T>(x), x.stride(0), x.stride(1)};
}

// `intervals` may be undefined.
struct Visible {
  Tensor intervals;
  bool causal;
  double scale;
};

template <typename T>
SegmentAttention<T> view(const Tensor &q, const Tensor &k, const Tensor &v, const Table &table, const Visible &visible) {
  SegmentAttention<T> a{};
  a.q = strided<T>(q), a.k = strided<T>(k), a.v = strided<T>(v);
  a.segments = table.segments;
  a.tokens = q.size(0), a.heads = q.size(1), a.kv_heads = k.size(1), a.head_dim = q.size(2);
  a.intervals = visible.intervals.defined() ? read<int64_t>(visible.intervals) : nullptr;
  a.causal = visible.causal;
  a.scale = static_cast<float>(visible.scale);
  return a;
}

// The output, and if `keeps` the log-sum-exp of each row.
std::tuple<Tensor, Tensor> attention(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &segments,
                                     const Visible &visible, bool keeps) {
  Tensor output = at::empty(q.sizes(), q.options());
  Tensor lse = keeps ? at::empty({q.size(0) * q.size(1)}, q.options().dtype(at::kFloat)) : Tensor();
  by_type(q.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const Table table(segments);
    SegmentAttention<T> a = view<T>(q, k, v, table, visible);
    a.output = write<T>(output);
    a.lse = keeps ? write<float>(lse) : nullptr;
    run<T>(typed<T>().segment_attention, a, table, table.tasks(a.kv_heads, a.heads / a.kv_heads, ATTENTION_ROWS));
  });
  return {output, lse};
}

// Segments by their prefix, in the form of `SegmentAttention`.
struct Viewers {
  std::vector<int64_t> from, all;

  explicit Viewers(const Table &table) : from(table.count + 1) {
    for (int64_t i = 0; i < table.count; ++i) {
      if (table.segments[i].prefix >= 0) ++from[table.segments[i].prefix + 1];
    }
    for (int64_t i = 0; i < table.count; ++i) from[i + 1] += from[i];
    all.resize(from[table.count]);
    std::vector<int64_t> next = from;
    for (int64_t i = 0; i < table.count; ++i) {
      if (table.segments[i].prefix >= 0) all[next[table.segments[i].prefix]++] = i;
    }
  }
};

struct Attention : torch::autograd::Function<Attention> {
  static Tensor forward(AutogradContext *context, const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &segments,
                        const std::optional<Tensor> &intervals, bool causal, double scale) {
    const Visible visible = {intervals.value_or(Tensor()), causal, scale};
    auto [output, lse] = attention(q, k, v, segments, visible, true);
    context->save_for_backward({q, k, v, output, lse, segments, visible.intervals});
    context->saved_data["causal"] = causal;
    context->saved_data["scale"] = scale;
    return output;
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], upstream = grads[0].contiguous();
    Tensor output = saved[3], lse = saved[4], dots = at::empty_like(lse);
    Tensor grad_q = at::empty(q.sizes(), q.options());
    Tensor grad_k = at::empty(k.sizes(), k.options()), grad_v = at::empty(v.sizes(), v.options());
    by_type(q.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const Table table(saved[5]);
      const Viewers viewers(table);
      const Visible visible = {saved[6], context->saved_data["causal"].toBool(), context->saved_data["scale"].toDouble()};
      SegmentAttention<T> a = view<T>(q, k, v, table, visible);
      a.output = static_cast<T *>(output.data_ptr());
      a.lse = write<float>(lse), a.dots = write<float>(dots);
      a.grad_output = read<T>(upstream);
      a.grad_q = write<T>(grad_q), a.grad_k = write<T>(grad_k), a.grad_v = write<T>(grad_v);
      a.viewers_from = viewers.from.data(), a.viewers = viewers.all.data();
      const int64_t repeats = a.heads / a.kv_heads;
      run<T>(typed<T>().segment_attention_rows, a, table, table.tasks(a.kv_heads, repeats, ATTENTION_ROWS));
      run<T>(typed<T>().segment_attention_keys, a, table, table.tasks(a.kv_heads, 1, ATTENTION_OWN_KEYS));
    });
    return {grad_q, grad_k, grad_v, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// `qkv`: q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]`; `segments [n, 3]`: start, length, prefix or -1;
// `intervals [tokens, 2]` of `kernels.h`, or null.
int vlm_r1_segment_attention(Tensor **qkv, Tensor *segments, Tensor *intervals, int causal, double scale, Tensor **output,
                             char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    const auto channels_in_a_row = [](const Tensor &x) { return x.stride(2) == 1 ? x : x.contiguous(); };
    const Tensor q = channels_in_a_row(*qkv[0]), k = channels_in_a_row(*qkv[1]), v = channels_in_a_row(*qkv[2]);
    const std::optional<Tensor> by_token = intervals ? std::optional<Tensor>(*intervals) : std::nullopt;
    const Visible visible = {by_token.value_or(Tensor()), causal != 0, scale};
    *output = new Tensor(recorded({&q, &k, &v}) ? Attention::apply(q, k, v, *segments, by_token, visible.causal, scale)
                                                : std::get<0>(attention(q, k, v, *segments, visible, false)));
  });
}

}  // extern "C"
