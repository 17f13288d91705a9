// Group normalization on the CPU: norm.h has the formulas.
//
// A group is one contiguous row, summed as in layer normalization, and written plane by plane: a channel's weight and
// bias are part of the plane's line. Backward, the sums of dy and dy d of each plane give the group's line and, added
// over the samples in their order, dw and db. A group stays in L2 between its passes, so that memory is read once.
//
// bytes, at the least: forward x and y once, backward dy, x and dx once.
#include "ops/norm/moments_cpu.h"
#include "ops/norm/norm.h"
#include "simd/stream.h"

namespace fastnn {
namespace {

constexpr int64_t kPart = 16384;  // elements of a chunk

template <class View>
int64_t grain_of(const View& view) {
  return max(1, kPart / max(1, view.channels * view.inner));
}

template <class T>
T value_or(const void* values, int64_t channel, T missing) {
  return values ? static_cast<const T*>(values)[channel] : missing;
}

// ------------------------------------------------------------------------------------------- forward

template <class Stored, bool kStreamed>
void forward_group(const GroupNormArgs& args, int64_t index) {
  using T = Compute<Stored>;
  const GroupView& view = args.view;
  const int64_t n = view.channels * view.inner, first_channel = index % view.groups * view.channels;
  const Stored* x = static_cast<const Stored*>(args.x) + index * n;
  Stored* y = static_cast<Stored*>(args.y) + index * n;
  const T centre = centre_of(x, n);
  const Spread spread(moments<Stored, true>(x, n, centre), n, args.eps);
  args.stats[2 * index] = double(centre) + spread.shift;
  args.stats[2 * index + 1] = spread.rstd;
  for (int64_t c = 0; c < view.channels; ++c) {
    const double scale = spread.rstd * double(value_or<T>(args.weight, first_channel + c, T(1)));
    const double offset = double(value_or<T>(args.bias, first_channel + c, T(0))) - spread.shift * scale;
    const Values<T> scales = broadcast<T>(T(scale)), offsets = broadcast<T>(T(offset));
    const Stored* plane = x + c * view.inner;
    write_row<kStreamed>(y + c * view.inner, view.inner, [&](int64_t i, int64_t count) FASTNN_INLINED {
      return (load_values<Stored>(plane + i, count) - broadcast<T>(centre)) * scales + offsets;
    });
  }
}

template <class Stored>
void forward_of(const GroupNormArgs& args) {
  const GroupView& view = args.view;
  const int64_t groups = view.samples * view.groups;
  parallel_for(groups, grain_of(view), [&](int64_t begin, int64_t end) {
    with_streaming(streams_rows<Stored>(groups, view.channels * view.inner), [&](auto streamed) {
      for (int64_t index = begin; index < end; ++index) forward_group<Stored, streamed.value>(args, index);
    });
  });
}

// ------------------------------------------------------------------------------------------ backward

// `planes` takes the sums of dy (x - mean) rstd and of dy of each of the group's channels.
template <class Stored, bool kStreamed>
void backward_group(const GroupNormBackwardArgs& args, int64_t index, Sums* planes) {
  using T = Compute<Stored>;
  const GroupView& view = args.view;
  const int64_t n = view.channels * view.inner, first_channel = index % view.groups * view.channels;
  const Stored* x = static_cast<const Stored*>(args.x) + index * n;
  const Stored* dy = static_cast<const Stored*>(args.dy) + index * n;
  const double mean = args.stats[2 * index], rstd = args.stats[2 * index + 1];
  const T centre = T(mean);
  const double rest = double(centre) - mean;  // x - mean = (x - centre) + rest
  double g_mean = 0, gz_mean = 0;
  for (int64_t c = 0; c < view.channels; ++c) {
    const Stored *x_plane = x + c * view.inner, *dy_plane = dy + c * view.inner;
    const Sums sums =
        fold_row<T>(view.inner, [&](int64_t i, int64_t count, Values<T>& products, Values<T>& values) FASTNN_INLINED {
          const Values<T> gradient = load_values<Stored>(dy_plane + i, count);
          products += gradient * (load_values<Stored>(x_plane + i, count) - broadcast<T>(centre));
          values += gradient;
        });
    planes[c] = {rstd * (sums.first + rest * sums.second), sums.second};
    const double weight = double(value_or<T>(args.weight, first_channel + c, T(1)));
    gz_mean += weight * planes[c].first / double(n);
    g_mean += weight * planes[c].second / double(n);
  }
  if (!args.dx) return;
  const double d_slope = -rstd * rstd * gz_mean;
  const Values<T> d_slopes = broadcast<T>(T(d_slope)), offsets = broadcast<T>(T(rest * d_slope - rstd * g_mean));
  for (int64_t c = 0; c < view.channels; ++c) {
    const Stored *x_plane = x + c * view.inner, *dy_plane = dy + c * view.inner;
    const Values<T> slopes = broadcast<T>(T(rstd * double(value_or<T>(args.weight, first_channel + c, T(1)))));
    write_row<kStreamed>(
        static_cast<Stored*>(args.dx) + index * n + c * view.inner, view.inner,
        [&](int64_t i, int64_t count) FASTNN_INLINED {
          return load_values<Stored>(dy_plane + i, count) * slopes +
                 ((load_values<Stored>(x_plane + i, count) - broadcast<T>(centre)) * d_slopes + offsets);
        });
  }
}

template <class Stored>
void backward_of(const GroupNormBackwardArgs& args) {
  using T = Compute<Stored>;
  const GroupView& view = args.view;
  const int64_t groups = view.samples * view.groups, channels = view.groups * view.channels;
  Sums* planes =
      static_cast<Sums*>(thread_scratch(Scratch::OperationShared, size_t(view.samples * channels) * sizeof(Sums)));
  parallel_for(groups, grain_of(view), [&](int64_t begin, int64_t end) {
    with_streaming(args.dx && streams_rows<Stored>(groups, view.channels * view.inner), [&](auto streamed) {
      for (int64_t index = begin; index < end; ++index)
        backward_group<Stored, streamed.value>(args, index, planes + index * view.channels);
    });
  });
  parallel_for(channels, max(1, kPart / max(1, view.samples)), [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      Sums total;
      for (int64_t sample = 0; sample < view.samples; ++sample) {
        total.first += planes[sample * channels + channel].first;
        total.second += planes[sample * channels + channel].second;
      }
      if (args.dweight) static_cast<T*>(args.dweight)[channel] = T(total.first);
      if (args.dbias) static_cast<T*>(args.dbias)[channel] = T(total.second);
    }
  });
}

// ------------------------------------------------------------------------------------------ launchers

void forward(const GroupNormArgs& args) {
  const DType dtype = args.view.dtype;
  if (dtype == DType::Float32) return forward_of<float>(args);
  if (dtype == DType::Float64) return forward_of<double>(args);
  dtype == DType::BFloat16 ? forward_of<bfloat16>(args) : forward_of<float16>(args);
}

void backward(const GroupNormBackwardArgs& args) {
  const DType dtype = args.view.dtype;
  if (dtype == DType::Float32) return backward_of<float>(args);
  if (dtype == DType::Float64) return backward_of<double>(args);
  dtype == DType::BFloat16 ? backward_of<bfloat16>(args) : backward_of<float16>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(group_norm_forward, forward)
FASTNN_CPU_KERNEL(group_norm_backward, backward)

}  // namespace fastnn
