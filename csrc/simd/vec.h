// Vec<T>: one register of the level, on the compilers' vector extensions (GCC and clang).
//
// For micro-kernels that place values in registers by hand. Elementwise formulas are written on
// plain T in math.h and functors.h, branch-free, and the compiler vectorises their loops.
// The width is exactly the level's register: GCC turns wider vectors into scalar code.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastnn {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Vec {
  typedef T Raw __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int size = kVectorBytes / int(sizeof(T));

  Raw raw;

  Vec() = default;
  Vec(Raw value) : raw(value) {}
  static Vec broadcast(T scalar) { return Vec(Raw(scalar - Raw{})); }

  static Vec zero() { return Vec(Raw{}); }
  static Vec load(const T* p) { return Vec(Raw(*reinterpret_cast<const Unaligned*>(p))); }
  void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = raw; }

  // The first n <= size elements; the rest read as zero and are not touched by a store.
  static Vec load(const T* p, int64_t n) {
    Raw value{};
    memcpy(&value, p, size_t(n) * sizeof(T));
    return Vec(value);
  }
  void store(T* p, int64_t n) const { memcpy(p, &raw, size_t(n) * sizeof(T)); }

  friend Vec operator+(Vec a, Vec b) { return Vec(a.raw + b.raw); }
  friend Vec operator-(Vec a, Vec b) { return Vec(a.raw - b.raw); }
  friend Vec operator*(Vec a, Vec b) { return Vec(a.raw * b.raw); }
  friend Vec operator/(Vec a, Vec b) { return Vec(a.raw / b.raw); }
  Vec& operator+=(Vec other) {
    raw += other.raw;
    return *this;
  }
};

// Partial loads and stores by mask, where the level has masks.
#if defined(__AVX512F__)
template <>
inline Vec<float> Vec<float>::load(const float* p, int64_t n) {
  return Vec(Raw(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)));
}
template <>
inline void Vec<float>::store(float* p, int64_t n) const {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), __m512(raw));
}
template <>
inline Vec<double> Vec<double>::load(const double* p, int64_t n) {
  return Vec(Raw(_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p)));
}
template <>
inline void Vec<double>::store(double* p, int64_t n) const {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), __m512d(raw));
}
#elif defined(__AVX2__)
inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
inline Vec<float> Vec<float>::load(const float* p, int64_t n) {
  return Vec(Raw(_mm256_maskload_ps(p, first_lanes(int(n)))));
}
template <>
inline void Vec<float>::store(float* p, int64_t n) const {
  _mm256_maskstore_ps(p, first_lanes(int(n)), __m256(raw));
}
template <>
inline Vec<double> Vec<double>::load(const double* p, int64_t n) {
  return Vec(Raw(_mm256_maskload_pd(p, first_lanes(2 * int(n)))));
}
template <>
inline void Vec<double>::store(double* p, int64_t n) const {
  _mm256_maskstore_pd(p, first_lanes(2 * int(n)), __m256d(raw));
}
#endif

// The compiler would rather read a factor again for each product than keep it in one of AVX-512's 32 registers.
template <class Raw>
inline __attribute__((always_inline)) void keep_in_register([[maybe_unused]] Raw& raw) {
#if defined(__AVX512F__)
  asm("" : "+v"(raw));
#endif
}

}  // namespace
}  // namespace fastnn
