// Stores past the caches, for results too large to stay in them: the line is not read before it is
// overwritten, which halves the traffic of writing. They pay where whole lines are written from registers and
// nothing stored shortly before is loaded again. Ordinary stores at levels below AVX2.
#pragma once

#include "simd/lanes.h"

namespace fastnn {
namespace {

constexpr int64_t kStreamedBytes = int64_t(16) << 20;

inline bool is_line_start(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

// Do `rows` rows of n values want to be streamed: are they stored at full width, and too many for the caches?
template <class Stored>
inline bool streams_rows(int64_t rows, int64_t n) {
  return sizeof(Stored) == sizeof(Compute<Stored>) && rows * n * int64_t(sizeof(Stored)) > kStreamedBytes;
}

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

// A row written register by register, put(i, count) giving the values: partial registers at its ends where it is
// streamed, so that the others are aligned.
template <bool kStreamed, class Stored, class Put>
inline FASTNN_INLINED void write_row(Stored* to, int64_t n, const Put& put) {
  using T = Compute<Stored>;
  int64_t i = 0;
  if constexpr (kStreamed && sizeof(Stored) == sizeof(T)) {
    i = min(int64_t(-reinterpret_cast<uintptr_t>(to) % kVectorBytes / sizeof(T)), n);
    if (i) store_values<Stored>(to, put(int64_t(0), i), i);
    for (; i + kLanes<T> <= n; i += kLanes<T>) stream_values<T>(to + i, put(i, int64_t(kLanes<T>)));
  } else {
    for (; i + kLanes<T> <= n; i += kLanes<T>) store_values<Stored>(to + i, put(i, int64_t(kLanes<T>)));
  }
  if (i < n) store_values<Stored>(to + i, put(i, n - i), n - i);
}

// Streamed stores are seen by other threads only after this.
inline void finish_streaming() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Calls run(streamed) with a constant, and finishes.
template <class Run>
inline FASTNN_INLINED void with_streaming(bool streamed, const Run& run) {
  if (!streamed) return run(Constant<0>());
  run(Constant<1>());
  finish_streaming();
}

// memcpy whose whole lines are streamed.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
  char* target = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
  const int64_t head = min(int64_t(-reinterpret_cast<uintptr_t>(target) % 64), bytes);
  memcpy(target, source, size_t(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64)
    for (int64_t part = 0; part < 64; part += kVectorBytes)
      stream_values(reinterpret_cast<float*>(target + i + part),
                    Vec<float>::load(reinterpret_cast<const float*>(source + i + part)).raw);
  memcpy(target + i, source + i, size_t(bytes - i));
}

// n times the value; stream_fill streams the whole lines.
template <class Stored>
inline void fill(Stored* to, Compute<Stored> value, int64_t n) {
  using T = Compute<Stored>;
  const Values<T> values = broadcast<T>(value);
  for_each_block<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED { store_values<Stored>(to + i, values, count); });
}
template <class Stored>
inline void stream_fill(Stored* to, Compute<Stored> value, int64_t n) {
  constexpr int64_t per_line = 64 / int64_t(sizeof(Stored));
  const int64_t head = min(int64_t(-reinterpret_cast<uintptr_t>(to) % 64) / int64_t(sizeof(Stored)), n);
  alignas(64) Stored line[per_line];
  fill<Stored>(line, value, per_line);
  fill<Stored>(to, value, head);
  const int64_t lines = (n - head) / per_line;
  for (int64_t i = 0; i < lines; ++i)
    for (int64_t part = 0; part < 64; part += kVectorBytes)
      stream_values(reinterpret_cast<float*>(reinterpret_cast<char*>(to + head + i * per_line) + part),
                    Vec<float>::load(reinterpret_cast<const float*>(reinterpret_cast<const char*>(line) + part)).raw);
  fill<Stored>(to + head + lines * per_line, value, n - head - lines * per_line);
}

}  // namespace
}  // namespace fastnn
