// Errors: every bad input becomes one of these, with the operation, what came and what was expected.
//
//   check(x.ndim() == 4, "conv2d: expected a 4-D input, got shape ", x.shape());
//   check<IndexError>(i < n, "embedding: index ", i, " is out of range for a table of ", n, " rows");
//
// The message parts are only formatted when the check fails. The Python layer maps each kind to
// the Python exception of the same name.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <utility>

namespace fastnn {

class Error : public std::exception {
 public:
  explicit Error(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

struct ValueError : Error {
  using Error::Error;
};
struct TypeError : Error {
  using Error::Error;
};
struct IndexError : Error {
  using Error::Error;
};
struct RuntimeError : Error {
  using Error::Error;
};
struct MemoryError : Error {
  using Error::Error;
};
// A device has no memory left: fastnn.cuda.OutOfMemoryError.
struct OutOfMemoryError : MemoryError {
  using MemoryError::MemoryError;
};
struct BufferError : Error {
  using Error::Error;
};
struct NotImplementedError : Error {
  using Error::Error;
};
struct DeviceError : RuntimeError {
  using RuntimeError::RuntimeError;
};

// A Python exception is already set on the calling thread (an interrupt, a failed callback).
struct PythonError : Error {
  PythonError() : Error("a Python exception is pending") {}
};

template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class Kind = ValueError, class... Parts>
[[noreturn]] __attribute__((noinline, cold)) void fail(const Parts&... parts) {
  throw Kind(str(parts...));
}

template <class Kind = ValueError, class... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (__builtin_expect(!condition, 0)) fail<Kind>(parts...);
}

}  // namespace fastnn
