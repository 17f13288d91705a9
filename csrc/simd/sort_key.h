// Unsigned keys in the order of values: NaN above all, -0 equal to 0.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/half.h"

namespace fastnn {
namespace {

FASTNN_HD inline uint64_t key_of(int64_t value) { return uint64_t(value) ^ (uint64_t(1) << 63); }
FASTNN_HD inline uint64_t key_of(double value) {
  uint64_t bits;
  value += 0.0;  // -0 becomes 0
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return ~uint64_t(0);
  return bits >> 63 ? ~bits : bits | (uint64_t(1) << 63);
}
FASTNN_HD inline uint64_t key_of(float value) {
  value += 0.0f;
  const uint32_t bits = float_to_bits(value);
  if (value != value) return UINT32_MAX;
  return bits >> 31 ? uint32_t(~bits) : bits | (uint32_t(1) << 31);
}

}  // namespace
}  // namespace fastnn
