// libtorch's c10d: the store where ranks meet, Gloo, and the collectives of any backend. Objects cross as pointers to their smart pointers;
// who got one deletes it.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <chrono>
#include <thread>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <vector>

#include "../catch.h"

namespace {

using Store = c10::intrusive_ptr<c10d::Store>;
using Backend = c10::intrusive_ptr<c10d::Backend>;
using Work = c10::intrusive_ptr<c10d::Work>;
using std::chrono::milliseconds;

// As in c10d.rs.
enum Operation { ALL_REDUCE_SUM, ALL_REDUCE_MAX, REDUCE_SCATTER_SUM, ALL_GATHER, BROADCAST };

// The part of a flat tensor that a rank has.
at::Tensor part(const at::Tensor &whole, const c10d::Backend &backend) {
  const int64_t length = whole.numel() / backend.getSize();
  return whole.narrow(0, backend.getRank() * length, length);
}

Work all_reduce(c10d::Backend &backend, const at::Tensor &tensor, c10d::ReduceOp::RedOpType kind) {
  std::vector<at::Tensor> tensors{tensor};
  c10d::AllreduceOptions options;
  options.reduceOp = kind;
  return backend.allreduce(tensors, options);
}

Work start(c10d::Backend &backend, int operation, at::Tensor tensor, int64_t root) {
  switch (operation) {
    case ALL_REDUCE_SUM:
      return all_reduce(backend, tensor, c10d::ReduceOp::SUM);
    case ALL_REDUCE_MAX:
      return all_reduce(backend, tensor, c10d::ReduceOp::MAX);
    case REDUCE_SCATTER_SUM: {
      at::Tensor own = part(tensor, backend);
      return backend._reduce_scatter_base(own, tensor);
    }
    case ALL_GATHER: {
      at::Tensor own = part(tensor, backend);
      return backend._allgather_base(tensor, own);
    }
    case BROADCAST: {
      std::vector<at::Tensor> tensors{tensor};
      c10d::BroadcastOptions options;
      options.rootRank = root;
      return backend.broadcast(tensors, options);
    }
  }
  TORCH_CHECK(false, "no operation ", operation);
}

bool wait(c10d::Work &work, milliseconds at_most) {
  if (work.isCompleted()) return true;
  try {
    work.wait(at_most);
  } catch (const std::exception &) {
    // Its time is over, or it has failed: then it is completed.
  }
  return work.isCompleted();
}

bool poll(c10d::Work &work, milliseconds at_most) {
  using Clock = std::chrono::steady_clock;
  const auto began = Clock::now();
  while (!work.isCompleted()) {
    const auto waited = Clock::now() - began;
    if (waited > at_most) return false;
    // Short work is worth a busy wait.
    if (waited > milliseconds(2)) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return true;
}

}  // namespace

extern "C" {

// A store within this process.
int vlm_r1_store_in_process(Store **store, char *error, size_t capacity) {
  *store = nullptr;
  return catch_into(error, capacity, [&] { *store = new Store(c10::make_intrusive<c10d::HashStore>()); });
}

int vlm_r1_store_tcp(const char *host, uint16_t port, int hosts, int64_t millis, Store **store, char *error, size_t capacity) {
  *store = nullptr;
  return catch_into(error, capacity, [&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = hosts != 0;
    options.waitWorkers = false;
    options.timeout = milliseconds(millis);
    *store = new Store(c10::make_intrusive<c10d::TCPStore>(host, options));
  });
}

int vlm_r1_store_prefixed(const Store *store, const char *prefix, Store **prefixed, char *error, size_t capacity) {
  *prefixed = nullptr;
  return catch_into(error, capacity, [&] { *prefixed = new Store(c10::make_intrusive<c10d::PrefixStore>(prefix, *store)); });
}

int vlm_r1_store_set(const Store *store, const char *key, const uint8_t *bytes, size_t length, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { (*store)->set(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

// `*value`: what lies under the key, or null where nothing does.
int vlm_r1_store_get(const Store *store, const char *key, std::vector<uint8_t> **value, char *error, size_t capacity) {
  *value = nullptr;
  return catch_into(error, capacity, [&] {
    if ((*store)->check({key})) *value = new std::vector<uint8_t>((*store)->get(key));
  });
}

int vlm_r1_store_wait(const Store *store, const char *key, int64_t millis, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { (*store)->wait({key}, milliseconds(millis)); });
}

int vlm_r1_store_add(const Store *store, const char *key, int64_t amount, int64_t *sum, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { *sum = (*store)->add(key, amount); });
}

void vlm_r1_store_delete(Store *store) { delete store; }

const uint8_t *vlm_r1_bytes(const std::vector<uint8_t> *value, size_t *length) {
  *length = value->size();
  return value->data();
}

void vlm_r1_bytes_delete(std::vector<uint8_t> *value) { delete value; }

// Waits for the other ranks, at most so long. `address`: what this rank listens at.
int vlm_r1_gloo(const Store *store, const char *address, int rank, int size, int64_t millis, Backend **backend, char *error,
                size_t capacity) {
  *backend = nullptr;
  return catch_into(error, capacity, [&] {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(millis));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    *backend = new Backend(c10::make_intrusive<c10d::ProcessGroupGloo>(*store, rank, size, options));
  });
}

int vlm_r1_backend_set_limit(Backend *backend, int64_t millis, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { (*backend)->setTimeout(milliseconds(millis)); });
}

// `*kind`: 0 where the backend knows of no error (`c10d::ErrorType`).
int vlm_r1_backend_error(Backend *backend, int *kind, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { *kind = static_cast<int>((*backend)->getError()); });
}

int vlm_r1_backend_shutdown(Backend *backend, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { (*backend)->shutdown(); });
}

void vlm_r1_backend_delete(Backend *backend) { delete backend; }

// Begins a collective over `tensor`, in place.
int vlm_r1_collective(Backend *backend, int operation, const at::Tensor *tensor, int64_t root, Work **work, char *error,
                      size_t capacity) {
  *work = nullptr;
  return catch_into(error, capacity, [&] {
    const at::NoGradGuard no_grad;
    *work = new Work(start(**backend, operation, tensor->detach(), root));
  });
}

// Waits at most so long; `*is_done` says whether it has ended. `polls`: for work of a GPU, whose own wait is the stream's, not the caller's.
int vlm_r1_work_wait(Work *work, int64_t millis, int polls, int *is_done, char *error, size_t capacity) {
  *is_done = 0;
  return catch_into(error, capacity, [&] {
    c10d::Work &waited = **work;
    if (!(polls != 0 ? poll(waited, milliseconds(millis)) : wait(waited, milliseconds(millis)))) return;
    if (const auto exception = waited.exception()) std::rethrow_exception(exception);
    // What the stream does next comes after it.
    if (polls != 0) waited.wait();
    *is_done = 1;
  });
}

void vlm_r1_work_delete(Work *work) { delete work; }

}  // extern "C"
