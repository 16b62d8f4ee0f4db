// NCCL of libtorch. Compiled into a library of its own, since its names are in libtorch_cuda.so; the program embeds it and loads it only where
// ranks have GPUs. Of `ProcessGroupNCCL.hpp`, which needs headers of CUDA and NCCL, only two constructors are declared here; all else goes
// through `c10d::Backend`. How large the objects are is libtorch's affair, which differs with its NCCL: they get more room than they need, and
// are never deleted.

#include <ATen/ATen.h>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "../catch.h"

namespace c10d {

class ProcessGroupNCCL : public Backend {
 public:
  struct Options : Backend::Options {
    explicit Options(bool is_high_priority_stream);
    ~Options() override;
  };

  ProcessGroupNCCL(c10::intrusive_ptr<Store> store, int rank, int size, c10::intrusive_ptr<Options> options);
  ~ProcessGroupNCCL() override;
};

}  // namespace c10d

namespace {

// 248 and 1112 bytes in libtorch 2.11 with NCCL 2.28.
constexpr size_t ROOM = 16384;

void *room() {
  void *place = ::operator new(ROOM, std::align_val_t(64));
  std::memset(place, 0, ROOM);
  return place;
}

// What libtorch does by itself at an error of NCCL is to end the process with a trace. Our waits find errors too.
void leave_errors_to_us() { ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", /*overwrite=*/0); }

// `millis`: libtorch's own limit.
int make(const c10::intrusive_ptr<c10d::Store> *store, int rank, int size, int card, int64_t millis,
         c10::intrusive_ptr<c10d::Backend> **backend, char *error, size_t capacity) {
  *backend = nullptr;
  return catch_into(error, capacity, [&] {
    leave_errors_to_us();
    using Options = c10d::ProcessGroupNCCL::Options;
    auto options = c10::intrusive_ptr<Options>::unsafe_steal_from_new(new (room()) Options(false));
    c10::raw::intrusive_ptr::incref(options.get());
    options->timeout = std::chrono::milliseconds(millis);
    c10d::Backend *made = new (room()) c10d::ProcessGroupNCCL(*store, rank, size, options);
    auto held = c10::intrusive_ptr<c10d::Backend>::unsafe_steal_from_new(made);
    c10::raw::intrusive_ptr::incref(made);
    made->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(card)));
    *backend = new c10::intrusive_ptr<c10d::Backend>(std::move(held));
  });
}

}  // namespace

// `Functions` of nccl.rs.
extern "C" {

struct Functions {
  decltype(&make) make_;
};

extern const Functions vlm_r1_nccl;
const Functions vlm_r1_nccl{make};

}  // extern "C"
