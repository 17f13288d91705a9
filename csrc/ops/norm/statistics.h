// What the channels of batch normalization have in common on the CPU and on CUDA: their statistics, from sums or from
// running ones, and parameters that may be missing.
#pragma once

#include "ops/norm/norm.h"
#include "simd/half.h"

namespace fastnn {
namespace {

template <class T>
FASTNN_HD inline double value_or(const void* values, int64_t channel, double missing) {
  return values ? double(static_cast<const T*>(values)[channel]) : missing;
}

struct MeanAndVariance {
  double mean, var;
};

// In training of the batch, whose sums of d = x - centre and of d^2 these are, and the running ones are moved; in
// evaluation the running ones.
template <class T>
FASTNN_HD inline MeanAndVariance channel_statistics(const BatchNormArgs& args, int64_t channel, double centre,
                                                    double sum, double square) {
  T* running_mean = static_cast<T*>(args.running_mean);
  T* running_var = static_cast<T*>(args.running_var);
  if (!args.options.training) return {double(running_mean[channel]), double(running_var[channel])};
  const double n = double(args.view.outer) * double(args.view.inner), shift = sum / n;
  const double mean = centre + shift, around = square / n - shift * shift, var = around < 0 ? 0 : around;
  if (running_mean) {
    const double momentum = args.options.momentum, kept = 1 - momentum;
    running_mean[channel] = T(kept * double(running_mean[channel]) + momentum * mean);
    running_var[channel] = T(kept * double(running_var[channel]) + momentum * var * n / (n - 1));
  }
  return {mean, var};
}

}  // namespace
}  // namespace fastnn
