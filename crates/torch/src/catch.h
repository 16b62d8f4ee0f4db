// No C++ exception crosses into Rust: functions return 0, or -1 with the message in `error`, cut to its capacity.

#pragma once

#include <c10/util/Exception.h>
#include <cstddef>
#include <cstring>
#include <exception>

template <typename F>
int catch_into(char *error, size_t capacity, F &&body) {
  try {
    body();
    return 0;
  } catch (const c10::Error &e) {
    std::strncpy(error, e.what_without_backtrace(), capacity - 1);
    error[capacity - 1] = '\0';
    return -1;
  } catch (const std::exception &e) {
    std::strncpy(error, e.what(), capacity - 1);
    error[capacity - 1] = '\0';
    return -1;
  } catch (...) {
    std::strncpy(error, "an exception that is not a std::exception", capacity - 1);
    error[capacity - 1] = '\0';
    return -1;
  }
}
