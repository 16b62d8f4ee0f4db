// Operations made wrong on purpose.

#include <cstdlib>
#include <map>
#include <sstream>

#include "stand_in.h"

namespace stand_in {

namespace {

std::map<std::string, Fault> read() {
  std::map<std::string, Fault> faults;
  const char *text = std::getenv("VLM_R1_STAND_IN_WRONG");
  std::stringstream list(text == nullptr ? "" : text);
  for (std::string entry; std::getline(list, entry, ',');) {
    const size_t colon = entry.find(':');
    const std::string how = colon == std::string::npos ? "" : entry.substr(colon + 1);
    const Fault fault = how == "number" ? Fault::NUMBER
                        : how == "nan"  ? Fault::NOT_A_NUMBER
                        : how == "throw" ? Fault::THROW
                                         : Fault::NONE;
    TORCH_CHECK(fault != Fault::NONE, "VLM_R1_STAND_IN_WRONG: expected NAME:number, NAME:nan or NAME:throw, got ", entry);
    faults[entry.substr(0, colon)] = fault;
  }
  return faults;
}

}  // namespace

Fault fault_of(const std::string &name) {
  static const auto *faults = new std::map<std::string, Fault>(read());
  const auto found = faults->find(name);
  return found == faults->end() ? Fault::NONE : found->second;
}

void damage(Fault fault, const std::string &name, const at::Tensor &host_view) {
  if (fault == Fault::NONE) return;
  TORCH_CHECK(fault != Fault::THROW, "stand-in: ", name, " was told to fail");
  if (!host_view.defined() || host_view.numel() == 0) return;
  at::Tensor first = host_view.dim() == 0 ? host_view : host_view.select(0, 0);
  if (!host_view.is_floating_point()) {
    first.add_(1);
  } else if (fault == Fault::NUMBER) {
    first.mul_(1.25).add_(0.25);
  } else {
    first.fill_(std::numeric_limits<double>::quiet_NaN());
  }
}

}  // namespace stand_in
