// What `ProcessGroupGloo.hpp` asks of Gloo, whose headers libtorch does not ship. Gloo itself is in `libtorch_cpu.so`; objects of these
// types are made and used there alone.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
