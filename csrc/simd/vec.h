// Vec<T>: one register of the level, on the compilers' vector extensions (GCC and clang).
//
// For micro-kernels that place values in registers by hand. Elementwise formulas are written on
// plain T in math.h and functors.h, branch-free, and the compiler vectorises their loops.
// The width is exactly the level's register: GCC turns wider vectors into scalar code.
#pragma once

#include <cstdint>
#include <cstring>

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
  explicit Vec(T scalar) : raw(scalar - Raw{}) {}  // broadcast

  static Vec zero() { return Vec(Raw{}); }
  static Vec load(const T* p) { return Vec(Raw(*reinterpret_cast<const Unaligned*>(p))); }
  void store(T* p) const { *reinterpret_cast<Unaligned*>(p) = raw; }

  // The first n < size elements; the rest read as zero and are not touched by a store.
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

}  // namespace
}  // namespace fastnn
