// Stores past the caches, for results too large to stay in them: the line is not read before it is
// overwritten, which saves a third of a copy's traffic. Ordinary stores at levels below AVX2.
#pragma once

#include "ops/pool/lanes_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kStreamedBytes = int64_t(16) << 20;

inline bool is_line_start(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

// 32-bit and 64-bit values only; p is aligned to the register.
template <class T>
inline void stream_values(T* p, Values<T> values) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), __m512i(values));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), __m256i(values));
#else
  store_values<T>(p, values);
#endif
}

// Streamed stores are seen by other threads only after this.
inline void finish_streaming() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// memcpy whose whole lines are streamed.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
  char* target = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
  const int64_t head = smaller(int64_t(-reinterpret_cast<uintptr_t>(target) % 64), bytes);
  memcpy(target, source, size_t(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64)
    for (int64_t part = 0; part < 64; part += kVectorBytes)
      stream_values(reinterpret_cast<float*>(target + i + part),
                    Vec<float>::load(reinterpret_cast<const float*>(source + i + part)).raw);
  memcpy(target + i, source + i, size_t(bytes - i));
}

}  // namespace
}  // namespace fastnn
