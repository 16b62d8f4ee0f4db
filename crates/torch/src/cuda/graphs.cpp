// CUDA graphs of libtorch. Compiled into a library of its own, since its symbols are in libtorch_cuda.so and libc10_cuda.so; the program
// embeds it and loads it only where graphs are asked for.

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "../catch.h"

namespace {

// One per device: libtorch never frees what it caches for a stream.
c10::cuda::CUDAStream side_stream(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, c10::cuda::CUDAStream> streams;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = streams.find(device);
  if (known != streams.end()) return known->second;
  return streams.emplace(device, c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device)).first->second;
}

// The memory pool that captures share, and the stream they are captured on.
struct Pool {
  c10::cuda::CUDAStream side;
  c10::MempoolId_t memory;
  std::optional<c10::cuda::CUDAStream> outer;
  c10::DeviceIndex outer_device = -1;
};

void wait(c10::DeviceIndex device) {
  const c10::DeviceIndex before = c10::cuda::ExchangeDevice(device);
  c10::cuda::device_synchronize();
  c10::cuda::ExchangeDevice(before);
}

int make_pool(int device, Pool **pool, char *error, size_t capacity) {
  *pool = nullptr;
  return catch_into(error, capacity, [&] {
    *pool = new Pool{side_stream(static_cast<c10::DeviceIndex>(device)), at::cuda::graph_pool_handle(),
                     std::nullopt};
  });
}

void delete_pool(Pool *pool) { delete pool; }

// Waits for the device, then makes the side stream the current one of this thread.
int enter(Pool *pool, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    const c10::DeviceIndex device = pool->side.device_index();
    wait(device);
    pool->outer = c10::cuda::getCurrentCUDAStream(device);
    pool->outer_device = c10::cuda::ExchangeDevice(device);
    c10::cuda::setCurrentCUDAStream(pool->side);
  });
}

// Restores the previous stream, then waits for the device.
int leave(Pool *pool, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    if (!pool->outer) return;
    c10::cuda::setCurrentCUDAStream(*pool->outer);
    pool->outer.reset();
    c10::cuda::ExchangeDevice(pool->outer_device);
    wait(pool->side.device_index());
  });
}

// Begins a capture on the side stream: this thread's work is recorded from now on, not executed.
int begin(Pool *pool, at::cuda::CUDAGraph **graph, char *error, size_t capacity) {
  *graph = nullptr;
  return catch_into(error, capacity, [&] {
    auto made = std::make_unique<at::cuda::CUDAGraph>();
    // Other threads may do what a capture does not allow.
    made->capture_begin(pool->memory, cudaStreamCaptureModeThreadLocal);
    *graph = made.release();
  });
}

int end(at::cuda::CUDAGraph *graph, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { graph->capture_end(); });
}

// On the current stream.
int replay(at::cuda::CUDAGraph *graph, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { graph->replay(); });
}

void delete_graph(at::cuda::CUDAGraph *graph) { delete graph; }

}  // namespace

// `Functions` of graphs.rs.
extern "C" {

struct Functions {
  decltype(&make_pool) make_pool_;
  decltype(&delete_pool) delete_pool_;
  decltype(&enter) enter_;
  decltype(&leave) leave_;
  decltype(&begin) begin_;
  decltype(&end) end_;
  decltype(&replay) replay_;
  decltype(&delete_graph) delete_graph_;
};

extern const Functions vlm_r1_graphs;
const Functions vlm_r1_graphs{make_pool, delete_pool, enter, leave, begin, end, replay, delete_graph};

}  // extern "C"
