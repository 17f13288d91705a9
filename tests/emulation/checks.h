// What the programs beside this share: arrays on the device, and a line for each check.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/cuda.h"
#include "core/cuda_launch.h"

// What core/cuda.cpp defines in the module.
namespace fastnn {
void check_cuda(cudaError_t error, const char* what) {
  check<DeviceError>(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}
cudaStream_t cuda_stream() { return nullptr; }
void* cuda_allocate(size_t bytes, Device) {
  void* block = nullptr;
  check_cuda(cudaMalloc(&block, bytes), "cudaMalloc");
  return block;
}
void cuda_release(void* block, Device) { cudaFree(block); }

namespace {

// ------------------------------------------------------------------------------ helpers of the host

template <class T>
class Array {
 public:
  explicit Array(std::vector<T> values) : values_(std::move(values)) {
    check_cuda(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()), "cudaMalloc");
    check_cuda(cudaMemcpy(data_, values_.data(), bytes(), cudaMemcpyHostToDevice), "copy");
  }
  explicit Array(size_t n) : Array(std::vector<T>(n)) {}
  ~Array() { cudaFree(data_); }
  T* data() const { return data_; }
  const std::vector<T>& read() {
    check_cuda(cudaMemcpy(values_.data(), data_, bytes(), cudaMemcpyDeviceToHost), "copy");
    return values_;
  }

 private:
  size_t bytes() const { return values_.size() * sizeof(T); }
  std::vector<T> values_;
  T* data_ = nullptr;
};

inline int failures = 0;

inline void report(const char* name, bool good) {
  printf("%s %s\n", good ? "ok" : "FAILED", name);
  failures += !good;
}

// Eighths: sums of products are exact in float.
inline float value_of(int i) { return float((i * 7919 + 13) % 31 - 15) / 8; }

}  // namespace
}  // namespace fastnn
