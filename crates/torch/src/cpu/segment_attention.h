// Attention of packed segments, forward and backward, in tiles of 16 queries by 16 keys. Work item = (segment, kv head). Its rows
// are that segment's queries of all heads sharing the kv head, ordered by token.

#pragma once

#include "gemm_tiles.h"

namespace vlm_r1 {
namespace {

// Hands out parts of a task's scratch.
struct Room {
  float *next;
  float *take(int64_t panels, int64_t words) {
    float *here = next;
    next += panels * words * LANES;
    return here;
  }
};

// Numbers from `begin` to `end`.
struct Span {
  int64_t begin, end;
};

// Which keys of a block the queries of a tile attend to: those from `from` and below `upto`. All do to those from `all.begin` to
// `all.end`, none to those outside of `some`, whose begin is rounded down to a tile.
struct Seen {
  IntLanes from, upto;
  Span all, some;
  bool masks(int64_t key) const { return key < all.begin || key + LANES > all.end; }
  IntLanes mask(int64_t key) const { return (upto > (int32_t)key) & (from <= (int32_t)key); }
};

// Constants of a task.
template <typename T>
struct View {
  const SegmentAttention<T> &a;
  const Segment &segment;
  int64_t kv_head, repeats, dim, dim_words, channel_panels;

  View(const SegmentAttention<T> &a, int64_t segment, int64_t kv_head)
      : a(a),
        segment(a.segments[segment]),
        kv_head(kv_head),
        repeats(a.heads / a.kv_heads),
        dim(a.head_dim),
        dim_words(words<T>(a.head_dim)),
        channel_panels(panels(a.head_dim)) {}

  int64_t num_rows() const { return segment.len * repeats; }
  int64_t width() const { return channel_panels * LANES; }
  HeadRows<const T> rows_of(const Strided<const T> &x) const {
    const int64_t head = kv_head * repeats;
    return {x.data + segment.start * x.token + head * x.head, x.token, x.head, repeats};
  }
  // Of a contiguous tensor.
  template <typename U>
  HeadRows<U> rows_in(U *x) const {
    return {x + (segment.start * a.heads + kv_head * repeats) * dim, a.heads * dim, dim, repeats};
  }
  HeadRows<const T> keys_of(const Strided<const T> &x, int64_t start) const {
    return {x.data + start * x.token + kv_head * x.head, x.token, 0, 1};
  }
  // Numbers of the rows, one each.
  float *numbers(float *x) const { return x + (kv_head * a.tokens + segment.start) * repeats; }

  int64_t prefix_len() const { return segment.prefix < 0 ? 0 : a.segments[segment.prefix].len; }
  // The keys that a token of the segment sees, of the own segment or of the prefix.
  Span keys_seen(bool own, int64_t token) const {
    const int64_t before = prefix_len();
    if (!a.intervals) return {0, !own ? before : a.causal ? token + 1 : segment.len};
    // Rows behind the last stand for it.
    const int64_t *interval = a.intervals + 2 * (segment.start + (token < segment.len ? token : segment.len - 1));
    if (own) return {interval[0] < before ? 0 : interval[0] - before, interval[1] - before};
    return {interval[0], interval[1] < before ? interval[1] : before};
  }
  // Of `n` keys from `first` of the own segment, or of the prefix.
  Seen seen(bool own, int64_t row, int64_t first, int64_t n) const {
    Seen seen;
    seen.all = {0, n}, seen.some = {n, 0};
    const auto limited = [n](int64_t x) { return x < 0 ? 0 : x < n ? x : n; };
    for (int i = 0; i < LANES; ++i) {
      const Span keys = keys_seen(own, (row + i) / repeats);
      const int64_t from = limited(keys.begin - first), upto = limited(keys.end - first);
      seen.from[i] = (int32_t)from, seen.upto[i] = (int32_t)upto;
      seen.all.begin = from > seen.all.begin ? from : seen.all.begin;
      seen.all.end = upto < seen.all.end ? upto : seen.all.end;
      if (from >= upto) continue;
      seen.some.begin = from < seen.some.begin ? from : seen.some.begin;
      seen.some.end = upto > seen.some.end ? upto : seen.some.end;
    }
    seen.some.begin = seen.some.begin / LANES * LANES;
    return seen;
  }
  // Whether 16 rows from `row` see all of 16 keys from `key`.
  bool all_see(bool own, int64_t row, int64_t key) const {
    if (!a.intervals) return !own || !a.causal || row / repeats + 1 >= key + LANES;
    for (int64_t token = row / repeats; token <= (row + LANES - 1) / repeats; ++token) {
      const Span keys = keys_seen(own, token);
      if (keys.begin > key || keys.end < key + LANES) return false;
    }
    return true;
  }
  // The keys that some of the rows `from` to `end` see.
  Span keys_of_rows(bool own, int64_t from, int64_t end) const {
    if (!a.intervals) return keys_seen(own, (end - 1) / repeats);
    Span all = {INT64_MAX, 0};
    for (int64_t token = from / repeats; token <= (end - 1) / repeats; ++token) {
      const Span keys = keys_seen(own, token);
      if (keys.begin >= keys.end) continue;
      all.begin = keys.begin < all.begin ? keys.begin : all.begin;
      all.end = keys.end > all.end ? keys.end : all.end;
    }
    return all;
  }
  // The rows, of those from `from` to `end`, some of which see keys from `first` to `last`. None: its begin is not below its end.
  Span rows_that_see(bool own, int64_t from, int64_t end, int64_t first, int64_t last) const {
    if (!a.intervals) {
      const int64_t begin = own && a.causal ? first * repeats : 0;
      return {begin > from ? begin : from, end};
    }
    Span rows = {end, from};
    for (int64_t token = from / repeats; token <= (end - 1) / repeats; ++token) {
      const Span keys = keys_seen(own, token);
      if (keys.begin >= last || keys.end <= first || keys.begin >= keys.end) continue;
      const int64_t begin = token * repeats > from ? token * repeats : from, upto = (token + 1) * repeats;
      rows.begin = begin < rows.begin ? begin : rows.begin;
      rows.end = upto < end ? upto : end;
    }
    return rows;
  }

  // Calls `body(start, n, own, first)` for blocks of keys that some rows of the task see, those of the prefix first: the token they start at,
  // their number, and the place of the first in its segment.
  template <typename F>
  void key_blocks(const AttentionTask &task, F &&body) const {
    for (int own = 0; own < 2; ++own) {
      if (!own && segment.prefix < 0) continue;
      const int64_t start = own ? segment.start : a.segments[segment.prefix].start;
      const Span keys = keys_of_rows(own, task.from, task.end);
      for (int64_t first = keys.begin / ATTENTION_KEYS * ATTENTION_KEYS; first < keys.end; first += ATTENTION_KEYS) {
        const int64_t left = keys.end - first;
        body(start + first, left < ATTENTION_KEYS ? left : ATTENTION_KEYS, own != 0, first);
      }
    }
  }
};

constexpr float LOG2_E = 1.44269504088896341f;

// Below all scores. Finite: rows that see nothing of a block keep it, and differences of infinities are not numbers.
constexpr float NOTHING_YET = -3e38f;

// Running softmax state of a tile of queries.
struct Softmax {
  float most[LANES], total[LANES];
};

// Online softmax of a tile: replaces scores by exp(score - largest so far) and returns the factors that rescale earlier sums.
template <typename T>
inline void soften_tile(float *scores, const Seen &seen, float scale, Lanes most, Softmax &state, float *factors) {
  const Lanes factor = power_of_two((load(state.most) - most) * scale);
  Lanes total = load(state.total) * factor;
  for (int64_t key = seen.some.begin; key < seen.some.end; key += LANES) {
    Lanes weights[LANES];
    for (int i = 0; i < LANES; ++i) weights[i] = power_of_two((load(scores + (key + i) * LANES) - most) * scale);
    if (seen.masks(key)) {
      for (int i = 0; i < LANES; ++i) weights[i] = seen.mask(key + i) ? weights[i] : Lanes{};
    }
    for (int i = 0; i < LANES; ++i) total += weights[i];
    put_words<T>(weights, scores + key / Word<T>::NUMBERS * LANES);
  }
  store(state.most, most);
  store(state.total, total);
  store(factors, factor);
}

// What the queries of any of C tiles attend to.
template <int C>
inline Span seen_of_any(const Seen *seen) {
  Span any = seen[0].some;
  for (int c = 1; c < C; ++c) {
    any.begin = seen[c].some.begin < any.begin ? seen[c].some.begin : any.begin;
    any.end = seen[c].some.end > any.end ? seen[c].some.end : any.end;
  }
  return any;
}

// Attention of the rows of a task.
template <typename T>
void segment_attention(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch) {
  const View<T> view(a, task.segment, task.kv_head);
  const int64_t tiles = tiles_of(task.end - task.from), width = view.width();
  const int64_t panel = view.dim_words * LANES, block = words<T>(ATTENTION_KEYS) * LANES;
  Room room{scratch};
  float *queries = room.take(tiles, view.dim_words), *sums = room.take(tiles, width);
  float *keys = room.take(ATTENTION_KEYS / LANES, view.dim_words);
  float *values = room.take(view.channel_panels, block / LANES), *scores = room.take(MOST_COLUMNS, ATTENTION_KEYS);
  Softmax states[ATTENTION_ROWS / LANES];
  const HeadRows<const T> rows = view.rows_of(a.q);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = task.from + tile * LANES;
    pack_rows(rows, row, task.end - row, view.dim, queries + tile * panel);
    store(states[tile].most, all(NOTHING_YET));
    store(states[tile].total, Lanes{});
  }
  memset(sums, 0, tiles * LANES * width * sizeof(float));
  view.key_blocks(task, [&](int64_t start, int64_t n, bool own, int64_t first) {
    const HeadRows<const T> of_keys = view.keys_of(a.k, start);
    for (int64_t key = 0; key < n; key += LANES) {
      pack_rows(of_keys, key, n - key, view.dim, keys + key / LANES * panel);
    }
    pack_channels(view.keys_of(a.v, start), 0, n, view.dim, values, block / LANES);
    in_columns(tiles, [&](int64_t tile, auto number) {
      constexpr int C = decltype(number)::value;
      Seen seen[C];
      Lanes most[C];
      for (int c = 0; c < C; ++c) {
        seen[c] = view.seen(own, task.from + (tile + c) * LANES, first, n);
        most[c] = load(states[tile + c].most);
      }
      const Span keys_seen = seen_of_any<C>(seen);
      for (int64_t key = keys_seen.begin; key < keys_seen.end; key += LANES) {
        Lanes sums_of[C][LANES] = {};
        multiply_panels<T, C>(keys + key / LANES * panel, queries + tile * panel, panel, view.dim_words, sums_of);
        for (int c = 0; c < C; ++c) {
          if (seen[c].masks(key)) {
            for (int i = 0; i < LANES; ++i) sums_of[c][i] = seen[c].mask(key + i) ? sums_of[c][i] : all(-INFINITY);
          }
          for (int i = 0; i < LANES; ++i) {
            most[c] = greater(sums_of[c][i], most[c]);
            store(scores + (c * ATTENTION_KEYS + key + i) * LANES, sums_of[c][i]);
          }
        }
      }
      for (int c = 0; c < C; ++c) {
        const Span some = seen[c].some;
        if (some.begin >= some.end) continue;
        float factors[LANES], *weights = scores + c * ATTENTION_KEYS * LANES;
        soften_tile<T>(weights, seen[c], a.scale * LOG2_E, most[c], states[tile + c], factors);
        const int64_t skipped = words<T>(some.begin) * LANES, depth = words<T>(tiles_of(some.end - some.begin) * LANES);
        add_product<T>(weights + skipped, values + skipped, block, depth, factors, sums + (tile + c) * LANES * width,
                       view.channel_panels);
      }
    });
  });
  const HeadRows<T> output = view.rows_in(a.output);
  for (int64_t row = task.from; row < task.end; ++row) {
    const int64_t i = row - task.from;
    const Softmax &state = states[i / LANES];
    const float most = state.most[i % LANES], total = state.total[i % LANES], inverse = 1.0f / total;
    T *to = output.at(row);
    in_lanes(view.dim, [&](int64_t d, int64_t len) { put(to + d, load(sums + i * width + d) * inverse, len); });
    if (a.lse) view.numbers(a.lse)[row] = most * (a.scale * LOG2_E) + log2f(total);
  }
}

// Gradients of the rows of a task; also writes the dot products of outputs and their gradients.
template <typename T>
void segment_attention_rows(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch) {
  const View<T> view(a, task.segment, task.kv_head);
  const int64_t tiles = tiles_of(task.end - task.from), width = view.width();
  const int64_t panel = view.dim_words * LANES, block = words<T>(ATTENTION_KEYS) * LANES;
  Room room{scratch};
  float *queries = room.take(tiles, view.dim_words), *upstream = room.take(tiles, view.dim_words);
  float *sums = room.take(tiles, width);
  float *keys = room.take(ATTENTION_KEYS / LANES, view.dim_words);
  float *values = room.take(ATTENTION_KEYS / LANES, view.dim_words);
  float *channels = room.take(view.channel_panels, block / LANES), *scores = room.take(MOST_COLUMNS, block / LANES);
  const HeadRows<const T> rows = view.rows_of(a.q), grads = view.rows_in(a.grad_output);
  const HeadRows<T> outputs = view.rows_in(a.output);
  const float *lse = view.numbers(a.lse), scale = a.scale * LOG2_E;
  float *dots = view.numbers(a.dots);
  for (int64_t row = task.from; row < task.end; ++row) {
    Lanes dot = {};
    const T *x = outputs.at(row), *y = grads.at(row);
    in_lanes(view.dim, [&](int64_t d, int64_t len) { dot += get(x + d, len) * get(y + d, len); });
    dots[row] = sum(dot);
  }
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = task.from + tile * LANES;
    pack_rows(rows, row, task.end - row, view.dim, queries + tile * panel);
    pack_rows(grads, row, task.end - row, view.dim, upstream + tile * panel);
  }
  memset(sums, 0, tiles * LANES * width * sizeof(float));
  float ones[LANES];
  store(ones, all(1));
  view.key_blocks(task, [&](int64_t start, int64_t n, bool own, int64_t first) {
    const HeadRows<const T> of_keys = view.keys_of(a.k, start), of_values = view.keys_of(a.v, start);
    for (int64_t key = 0; key < n; key += LANES) {
      pack_rows(of_keys, key, n - key, view.dim, keys + key / LANES * panel);
      pack_rows(of_values, key, n - key, view.dim, values + key / LANES * panel);
    }
    pack_channels(of_keys, 0, n, view.dim, channels, block / LANES);
    in_columns(tiles, [&](int64_t tile, auto number) {
      constexpr int C = decltype(number)::value;
      Seen seen[C];
      Lanes norm[C], dot[C];
      for (int c = 0; c < C; ++c) {
        const int64_t row = task.from + (tile + c) * LANES, left = task.end - row < LANES ? task.end - row : LANES;
        seen[c] = view.seen(own, row, first, n);
        norm[c] = get(lse + row, left), dot[c] = get(dots + row, left);
      }
      const Span keys_seen = seen_of_any<C>(seen);
      for (int64_t key = keys_seen.begin; key < keys_seen.end; key += LANES) {
        Lanes weights[C][LANES] = {}, products[C][LANES] = {};
        const int64_t at = key / LANES * panel;
        multiply_panels<T, C>(keys + at, queries + tile * panel, panel, view.dim_words, weights);
        multiply_panels<T, C>(values + at, upstream + tile * panel, panel, view.dim_words, products);
        for (int c = 0; c < C; ++c) {
          for (int i = 0; i < LANES; ++i) {
            products[c][i] = power_of_two(weights[c][i] * scale - norm[c]) * (products[c][i] - dot[c]);
          }
          if (seen[c].masks(key)) {
            for (int i = 0; i < LANES; ++i) products[c][i] = seen[c].mask(key + i) ? products[c][i] : Lanes{};
          }
          put_words<T>(products[c], scores + c * block + key / Word<T>::NUMBERS * LANES);
        }
      }
      for (int c = 0; c < C; ++c) {
        const Span some = seen[c].some;
        if (some.begin >= some.end) continue;
        const int64_t skipped = words<T>(some.begin) * LANES, depth = words<T>(tiles_of(some.end - some.begin) * LANES);
        float *to = sums + (tile + c) * LANES * width;
        add_product<T>(scores + c * block + skipped, channels + skipped, block, depth, ones, to, view.channel_panels);
      }
    });
  });
  const HeadRows<T> to = view.rows_in(a.grad_q);
  for (int64_t row = task.from; row < task.end; ++row) {
    const float *from = sums + (row - task.from) * width;
    in_lanes(view.dim, [&](int64_t d, int64_t len) { put(to.at(row) + d, load(from + d) * a.scale, len); });
  }
}

// The keys of a task, and the gradients of them and of their values so far.
template <typename T>
struct KeySums {
  static constexpr int64_t BLOCK = ATTENTION_KEYS / Word<T>::NUMBERS * LANES;

  const SegmentAttention<T> &a;
  const AttentionTask &task;
  const View<T> own;
  const int64_t tiles, width, panel;
  float *keys, *values, *key_sums, *value_sums;
  // Of a block of rows.
  float *queries, *upstream, *query_channels, *upstream_channels, *weights_to, *products_to;
  float ones[LANES];

  KeySums(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch)
      : a(a),
        task(task),
        own(a, task.segment, task.kv_head),
        tiles(tiles_of(task.end - task.from)),
        width(own.width()),
        panel(own.dim_words * LANES) {
    Room room{scratch};
    keys = room.take(tiles, own.dim_words), values = room.take(tiles, own.dim_words);
    key_sums = room.take(tiles, width), value_sums = room.take(tiles, width);
    queries = room.take(ATTENTION_KEYS / LANES, own.dim_words);
    upstream = room.take(ATTENTION_KEYS / LANES, own.dim_words);
    query_channels = room.take(own.channel_panels, BLOCK / LANES);
    upstream_channels = room.take(own.channel_panels, BLOCK / LANES);
    weights_to = room.take(MOST_COLUMNS, BLOCK / LANES), products_to = room.take(MOST_COLUMNS, BLOCK / LANES);
    const HeadRows<const T> of_keys = own.keys_of(a.k, own.segment.start), of_values = own.keys_of(a.v, own.segment.start);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t key = task.from + tile * LANES;
      pack_rows(of_keys, key, task.end - key, own.dim, keys + tile * panel);
      pack_rows(of_values, key, task.end - key, own.dim, values + tile * panel);
    }
    memset(key_sums, 0, tiles * LANES * width * sizeof(float));
    memset(value_sums, 0, tiles * LANES * width * sizeof(float));
    store(ones, all(1));
  }

  // What the rows of a segment add: this one, or one of which it is the prefix.
  void add(const View<T> &view, bool is_own) {
    const HeadRows<const T> rows = view.rows_of(a.q), grads = view.rows_in(a.grad_output);
    const Span seeing = view.rows_that_see(is_own, 0, view.num_rows(), task.from, task.end);
    for (int64_t from = seeing.begin / LANES * LANES; from < seeing.end; from += ATTENTION_KEYS) {
      const int64_t left = seeing.end - from, n = left < ATTENTION_KEYS ? left : ATTENTION_KEYS;
      float norms[ATTENTION_KEYS] = {}, dots[ATTENTION_KEYS] = {};
      memcpy(norms, view.numbers(a.lse) + from, n * sizeof(float));
      memcpy(dots, view.numbers(a.dots) + from, n * sizeof(float));
      for (int64_t row = 0; row < n; row += LANES) {
        pack_rows(rows, from + row, n - row, own.dim, queries + row / LANES * panel);
        pack_rows(grads, from + row, n - row, own.dim, upstream + row / LANES * panel);
      }
      pack_channels(rows, from, n, own.dim, query_channels, BLOCK / LANES);
      pack_channels(grads, from, n, own.dim, upstream_channels, BLOCK / LANES);
      in_columns(tiles, [&](int64_t tile, auto number) {
        add_block<decltype(number)::value>(view, is_own, tile, from, n, norms, dots);
      });
    }
  }

  // What `n` packed rows from `from` add to C tiles.
  template <int C>
  void add_block(const View<T> &view, bool is_own, int64_t tile, int64_t from, int64_t n, const float *norms, const float *dots) {
    // Of each tile, the rows that see its keys, from a multiple of 16.
    Span seeing[C], any = {n, 0};
    for (int c = 0; c < C; ++c) {
      const int64_t key = task.from + (tile + c) * LANES;
      const Span rows = view.rows_that_see(is_own, from, from + n, key, key + LANES);
      seeing[c] = {(rows.begin - from) / LANES * LANES, rows.end - from};
      if (seeing[c].begin >= seeing[c].end) continue;
      any.begin = seeing[c].begin < any.begin ? seeing[c].begin : any.begin;
      any.end = seeing[c].end > any.end ? seeing[c].end : any.end;
    }
    for (int64_t row = any.begin; row < any.end; row += LANES) {
      Lanes weights[C][LANES] = {}, products[C][LANES] = {};
      const int64_t at = row / LANES * panel;
      multiply_panels<T, C>(queries + at, keys + tile * panel, panel, own.dim_words, weights);
      multiply_panels<T, C>(upstream + at, values + tile * panel, panel, own.dim_words, products);
      for (int c = 0; c < C; ++c) {
        soften(view, is_own, weights[c], from + row, task.from + (tile + c) * LANES, norms + row);
        for (int i = 0; i < LANES; ++i) products[c][i] = weights[c][i] * (products[c][i] - dots[row + i]);
        const int64_t to = c * BLOCK + row / Word<T>::NUMBERS * LANES;
        put_words<T>(weights[c], weights_to + to);
        put_words<T>(products[c], products_to + to);
      }
    }
    for (int c = 0; c < C; ++c) {
      if (seeing[c].begin >= seeing[c].end) continue;
      const int64_t skipped = seeing[c].begin / Word<T>::NUMBERS * LANES, to = (tile + c) * LANES * width;
      const int64_t depth = words<T>(tiles_of(seeing[c].end - seeing[c].begin) * LANES), at = c * BLOCK + skipped;
      add_product<T>(weights_to + at, upstream_channels + skipped, BLOCK, depth, ones, value_sums + to, own.channel_panels);
      add_product<T>(products_to + at, query_channels + skipped, BLOCK, depth, ones, key_sums + to, own.channel_panels);
    }
  }

  // Weights of 16 rows from `row` and 16 keys from `key`, 0 where a key is masked.
  void soften(const View<T> &view, bool is_own, Lanes *scores, int64_t row, int64_t key, const float *norms) const {
    const float scale = a.scale * LOG2_E;
    for (int i = 0; i < LANES; ++i) scores[i] = power_of_two(scores[i] * scale - norms[i]);
    if (view.all_see(is_own, row, key)) return;
    const Seen seen = view.seen(is_own, row, key, LANES);
    const IntLanes lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int i = 0; i < LANES; ++i) {
      scores[i] = (lane < seen.upto[i]) & (lane >= seen.from[i]) ? scores[i] : Lanes{};
    }
  }

  void write() const {
    for (int64_t key = task.from; key < task.end; ++key) {
      const int64_t to = ((own.segment.start + key) * a.kv_heads + task.kv_head) * own.dim, from = (key - task.from) * width;
      in_lanes(own.dim, [&](int64_t d, int64_t len) {
        put(a.grad_k + to + d, load(key_sums + from + d) * a.scale, len);
        put(a.grad_v + to + d, load(value_sums + from + d), len);
      });
    }
  }
};

// Gradients of the keys and values of a task, summed over all rows that attend to them, segment by segment.
template <typename T>
void segment_attention_keys(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch) {
  KeySums<T> sums(a, task, scratch);
  sums.add(sums.own, true);
  for (int64_t i = a.viewers_from[task.segment]; i < a.viewers_from[task.segment + 1]; ++i) {
    sums.add(View<T>(a, a.viewers[i], task.kv_head), false);
  }
  sums.write();
}

}  // namespace
}  // namespace vlm_r1
