// Adjacent elements widened to a compute type in registers: for kernels that read 16-bit operands in place.
#pragma once

#include "core/dtype.h"
#include "simd/transpose.h"

namespace fastnn {
namespace {

// A vector of elements of S as vectors of T, in an order that is the same for all operands; `restore`
// puts it right.
template <class T, class S>
struct DotElements {  // S is T
  static constexpr int kVectors = 1;
  static void load(const S* p, Vec<T>* out) { out[0] = Vec<T>::load(p); }
  static void load(const S* p, int64_t n, Vec<T>* out) { out[0] = Vec<T>::load(p, n); }
  static void restore(Vec<T>*) {}
};

// 16-bit elements: two vectors of float32 for one of them.
template <class S>
struct WidenedElements {
  static constexpr int kVectors = 2, kLanes = Vec<float>::size;
  static void load(const S* p, Vec<float>* out) {
    if constexpr (dtype_of<S>() == DType::BFloat16) {
      // The elements of even index, then those of odd index.
      typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
      Words words;
      memcpy(&words, p, sizeof words);
      out[0] = Vec<float>(Vec<float>::Raw(words << 16));
      out[1] = Vec<float>(Vec<float>::Raw(words & 0xffff0000u));
    } else {
#if defined(__AVX512F__)
      // With a mask, since GCC 12 warns of the plain conversion's own code (bug 105593).
      const __m256i* halves = reinterpret_cast<const __m256i*>(p);
      out[0] = Vec<float>(Vec<float>::Raw(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(halves))));
      out[1] = Vec<float>(Vec<float>::Raw(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(halves + 1))));
#elif defined(__AVX2__)
      out[0] = Vec<float>(Vec<float>::Raw(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
      out[1] =
          Vec<float>(Vec<float>::Raw(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + kLanes)))));
#else
      float widened[2 * kLanes];
      for (int i = 0; i < 2 * kLanes; ++i) widened[i] = to_float(p[i]);
      out[0] = Vec<float>::load(widened);
      out[1] = Vec<float>::load(widened + kLanes);
#endif
    }
  }
  static void load(const S* p, int64_t n, Vec<float>* out) {
    S whole[2 * kLanes] = {};
    memcpy(whole, p, size_t(n) * sizeof(S));
    load(whole, out);
  }
  static void restore(Vec<float>* vectors) {
    if constexpr (dtype_of<S>() == DType::BFloat16) interleave(vectors[0], vectors[1]);
  }
};
template <>
struct DotElements<float, bfloat16> : WidenedElements<bfloat16> {};
template <>
struct DotElements<float, float16> : WidenedElements<float16> {};

}  // namespace
}  // namespace fastnn
