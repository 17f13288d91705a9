// Random tensors and dropout. Every value is a function of (seed, offset, its index): see core/random.h.
//
// A null generator means the default one. rand, randn and bernoulli give floats of any type; 24 random
// bits for types up to float32, 53 for float64.
#pragma once

#include "core/kernel.h"
#include "core/random.h"
#include "core/tensor.h"

namespace fastnn {

enum class Distribution : uint8_t { Uniform, Normal, Integer, Bernoulli };

// y[i] drawn from `distribution`; contiguous, of any dtype.
//   Uniform   a + (b - a) u, u in [0, 1)     Normal     a + b z
//   Integer   low + floor(range * u64 / 2^64)  Bernoulli  u < p[i]; p null means the number a
struct RandomArgs {
  Distribution distribution;
  DType dtype;
  void* y;
  int64_t n;
  RandomStream stream;
  double a, b;
  int64_t low;
  uint64_t range;
  const void* p;  // in p_dtype
  DType p_dtype;
};
extern Kernel<RandomArgs> random_fill;

// y[i] = scale x[i] where the i-th 32 random bits are >= threshold, else 0.
struct DropoutArgs {
  const void* x;
  void* y;
  DType dtype;
  int64_t n;
  RandomStream stream;
  uint32_t threshold;
  double scale;
};
extern Kernel<DropoutArgs> dropout_apply;

Tensor rand(const Dims& shape, DType dtype, Device device, Generator* generator = nullptr);
Tensor randn(const Dims& shape, DType dtype, Device device, Generator* generator = nullptr);
Tensor randint(int64_t low, int64_t high, const Dims& shape, DType dtype, Device device,
               Generator* generator = nullptr);  // low <= value < high
Tensor randperm(int64_t n, DType dtype, Device device, Generator* generator = nullptr);
Tensor uniform_(const Tensor& x, double low, double high, Generator* generator = nullptr);
Tensor normal_(const Tensor& x, double mean, double std, Generator* generator = nullptr);
Tensor bernoulli(const Tensor& p, Generator* generator = nullptr);
Tensor bernoulli_(const Tensor& x, double p, Generator* generator = nullptr);
// (n_samples) or (rows, n_samples) int64 categories, drawn with the weights in the last axis.
Tensor multinomial(const Tensor& weights, int64_t n_samples, bool replacement, Generator* generator = nullptr);

// Zeroes elements with probability p and scales the rest by 1 / (1 - p); x itself when not training.
Tensor dropout(const Tensor& x, double p, bool training, Generator* generator = nullptr);

}  // namespace fastnn
