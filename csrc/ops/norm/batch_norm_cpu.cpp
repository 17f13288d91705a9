// Batch normalization on the CPU: norm.h has the formulas, blocks_cpu.h what the directions have in common.
//
// bytes, at the least: forward x and y once, backward dy, x and dx once. Arithmetic is a few operations a value, so
// the kernels are as fast as memory. Row-major tensors go plane by plane (planes_cpu.h), channels-last ones row by
// row (rows_cpu.h); here is what a channel's sums mean in each direction. 16-bit floats pass through float32.
#include "ops/norm/planes_cpu.h"
#include "ops/norm/rows_cpu.h"
#include "ops/norm/statistics.h"
#include "simd/float_type.h"
#include "simd/math.h"

namespace fastnn {
namespace {

// (x - mean) slope + offset, from the centre that T has nearest to the mean.
template <class T>
Line<T> line_through(double mean, double slope, double offset) {
  const T centre = T(mean);
  return {centre, T(slope), T(offset + (double(centre) - mean) * slope), T(0)};
}

template <class T>
struct ForwardPass {
  static constexpr bool kBackward = false;
  const BatchNormArgs& args;

  const ChannelView& view() const { return args.view; }
  const void* x() const { return args.x; }
  const void* dy() const { return nullptr; }
  void* out() const { return args.y; }
  bool wants_sums() const { return args.options.training; }

  // `sum` and `square` are of d = x - centre.
  Line<T> line(int64_t channel, T centre, double sum, double square) const {
    const auto [mean, var] = channel_statistics<T>(args, channel, double(centre), sum, square);
    const double rstd = 1 / sqrt_(var + args.options.eps);
    args.mean[channel] = mean;
    args.rstd[channel] = rstd;
    return line_through<T>(mean, rstd * value_or<T>(args.weight, channel, 1), value_or<T>(args.bias, channel, 0));
  }
};

template <class T>
struct BackwardPass {
  static constexpr bool kBackward = true;
  const BatchNormBackwardArgs& args;

  const ChannelView& view() const { return args.view; }
  const void* x() const { return args.x; }
  const void* dy() const { return args.dy; }
  void* out() const { return args.dx; }
  bool wants_sums() const { return true; }
  T centre(int64_t channel) const { return T(args.mean[channel]); }

  // `sum` is of dy, `product` of dy (x - centre).
  Line<T> line(int64_t channel, T centre, double sum, double product) const {
    const double n = double(args.view.outer) * double(args.view.inner);
    const double mean = args.mean[channel], rstd = args.rstd[channel];
    const double scale = rstd * value_or<T>(args.weight, channel, 1);
    const double dweight = rstd * (product + sum * (double(centre) - mean));
    static_cast<T*>(args.dbias)[channel] = T(sum);
    static_cast<T*>(args.dweight)[channel] = T(dweight);
    Line<T> line = line_through<T>(mean, -scale * rstd * dweight / n, -scale * sum / n);
    line.dy_slope = T(scale);
    return line;
  }
};

// No tensor here is empty. Direction: a pass of the compute type.
template <template <class> class Direction, class Args>
void run(const Args& args) {
  with_float_type(args.view.dtype, [&](auto type) {
    using Stored = typename decltype(type)::type;
    const Direction<Compute<Stored>> pass{args};
    args.view.inner == 1 ? run_rows<Compute<Stored>>(pass) : run_planes<Stored>(pass);
  });
}

void forward(const BatchNormArgs& args) { run<ForwardPass>(args); }
void backward(const BatchNormBackwardArgs& args) { run<BackwardPass>(args); }

}  // namespace

FASTNN_CPU_KERNEL(batch_norm_forward, forward)
FASTNN_CPU_KERNEL(batch_norm_backward, backward)

}  // namespace fastnn
