// CUDA graphs: the names that `crates/torch/src/cuda/graphs.cpp` opens. A capture runs its operations once, for their shapes, and gives back
// what they wrote; a replay runs them again into the same outputs.

#include <c10/cuda/CUDAStream.h>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "stand_in.h"

namespace stand_in {

namespace {

struct Graph {
  std::vector<std::function<void()>> work;
  // Content of the memory that the capture wrote, by address.
  std::map<void *, std::pair<at::Storage, std::vector<char>>> before;
  std::set<void *> own_memory;
  std::function<void(void *)> hook;
  bool is_invalid = false;
  bool is_complete = false;
};

std::mutex mutex;
std::map<void *, Graph *> graphs;
thread_local Graph *capture = nullptr;

Graph &graph_of(void *handle) {
  const std::lock_guard<std::mutex> lock(mutex);
  return *graphs.at(handle);
}

}  // namespace

bool is_capturing() { return capture != nullptr; }

void refuse_in_capture(const char *what) {
  capture->is_invalid = true;
  TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing (", what, ")");
}

void record(std::function<void()> work) { capture->work.push_back(std::move(work)); }

void protect(const at::Tensor &tensor) {
  void *data = tensor.storage().mutable_data();
  if (data == nullptr || capture->own_memory.count(data) != 0 || capture->before.count(data) != 0) return;
  const auto *from = static_cast<const char *>(to_host_address(data));
  capture->before.emplace(data, std::pair(tensor.storage(), std::vector<char>(from, from + tensor.storage().nbytes())));
}

}  // namespace stand_in

using MempoolId = std::pair<unsigned long long, unsigned long long>;

// Under the names of at::cuda::CUDAGraph, whose header needs more of CUDA than there is here. The objects themselves are not touched.
#define NAMED(name) asm(name) __attribute__((visibility("default"), used))

MempoolId stand_in_pool_handle() NAMED("_ZN2at4cuda17graph_pool_handleEv");
void stand_in_construct(void *graph, bool) NAMED("_ZN2at4cuda9CUDAGraphC1Eb");
void stand_in_destroy(void *graph) NAMED("_ZN2at4cuda9CUDAGraphD1Ev");
void stand_in_begin(void *graph, MempoolId, int mode)
    NAMED("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
void stand_in_end(void *graph) NAMED("_ZN2at4cuda9CUDAGraph11capture_endEv");
void stand_in_replay(void *graph) NAMED("_ZN2at4cuda9CUDAGraph6replayEv");

MempoolId stand_in_pool_handle() {
  static std::atomic<unsigned long long> next{1};
  return {0, next++};
}

void stand_in_construct(void *graph, bool) {
  const std::lock_guard<std::mutex> lock(stand_in::mutex);
  stand_in::graphs[graph] = new stand_in::Graph;
}

void stand_in_destroy(void *graph) {
  stand_in::Graph *own = nullptr;
  {
    const std::lock_guard<std::mutex> lock(stand_in::mutex);
    const auto found = stand_in::graphs.find(graph);
    own = found->second;
    stand_in::graphs.erase(found);
  }
  delete own;
}

void stand_in_begin(void *handle, MempoolId, int) {
  using namespace stand_in;
  TORCH_CHECK(c10::cuda::getCurrentCUDAStream(current_device()).unwrap().id() != 0,
              "CUDA graphs must be captured on a non-default stream.");
  TORCH_CHECK(capture == nullptr, "CUDA error: operation not permitted when stream is capturing (cudaStreamBeginCapture)");
  Graph &graph = graph_of(handle);
  graph.hook = [&graph](void *pointer) { graph.own_memory.insert(pointer); };
  note_allocations(&graph.hook);
  capture = &graph;
  counts().captures += 1;
}

void stand_in_end(void *handle) {
  using namespace stand_in;
  Graph &graph = graph_of(handle);
  TORCH_CHECK(capture == &graph, "CUDA error: this thread captures no such graph");
  note_allocations(nullptr);
  capture = nullptr;
  for (auto &[data, content] : graph.before) {
    std::memcpy(to_host_address(data), content.second.data(), content.second.size());
  }
  graph.before.clear();
  graph.is_complete = !graph.is_invalid;
  if (graph.is_invalid) graph.work.clear();
  TORCH_CHECK(!graph.is_invalid,
              "CUDA error: operation failed due to a previous error during capture (cudaErrorStreamCaptureInvalidated)");
}

void stand_in_replay(void *handle) {
  using namespace stand_in;
  Graph &graph = graph_of(handle);
  TORCH_CHECK(graph.is_complete, "Called CUDAGraph::replay without a preceding successful capture.");
  TORCH_CHECK(capture == nullptr, "CUDA error: a graph is replayed in a capture");
  counts().replays += 1;
  count_launch("graph");
  damage(fault_of("graph") == Fault::THROW ? Fault::THROW : Fault::NONE, "graph", {});
  for (const auto &work : graph.work) work();
}
