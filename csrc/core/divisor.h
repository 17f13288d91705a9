// Division of indices by one number many times: a multiplication and a shift instead of some 20 instructions for 32
// bits or 70 for 64 (Granlund and Montgomery 1994). Tested without a GPU by tests/test_cuda_host.py.
#pragma once

#include <cstdint>

#include "simd/half.h"

namespace fastnn {

struct Division {
  int64_t quotient, rest;
};

// With 2^(shift - 1) < divisor <= 2^shift and magic = 2^b (2^shift - divisor) / divisor + 1,
//   n / divisor = (n + n magic / 2^b) / 2^shift for 0 <= n < 2^(b - 1)
// in b = 32 bits where they do, else in 64.
class Divisor {
 public:
  constexpr Divisor() = default;  // by 1
  FASTNN_HD constexpr explicit Divisor(int64_t divisor) : divisor_(divisor) {
    while ((uint64_t(1) << shift_) < uint64_t(divisor)) ++shift_;
    wide_magic_ = uint64_t(((Wide(uint64_t(1) << shift_) - Wide(divisor)) << 64) / Wide(divisor)) + 1;
    magic_ = uint32_t((wide_magic_ - 1) >> 32) + 1;
  }
  FASTNN_HD constexpr int64_t divisor() const { return divisor_; }

  FASTNN_HD constexpr int64_t quotient(int64_t n) const {
    return (n >> 31) == 0 && shift_ < 32 ? quotient_of(int32_t(n)) : quotient_of(n);
  }
  FASTNN_HD constexpr Division divide(int64_t n) const {
    const int64_t by = quotient(n);
    return {by, n - by * divisor_};
  }

  // Where it is known which they fit: in 32 bits, for a divisor below 2^31 too, or in 64.
  FASTNN_HD constexpr int32_t quotient_of(int32_t n) const {
    const uint32_t high = uint32_t(uint64_t(uint32_t(n)) * magic_ >> 32);
    return int32_t((high + uint32_t(n)) >> shift_);
  }
  FASTNN_HD constexpr int64_t quotient_of(int64_t n) const {
    return int64_t((uint64_t(Wide(n) * wide_magic_ >> 64) + uint64_t(n)) >> shift_);
  }

 private:
  using Wide = unsigned __int128;
  int64_t divisor_ = 1;
  uint64_t wide_magic_ = 1;
  uint32_t magic_ = 1, shift_ = 0;
};

}  // namespace fastnn
