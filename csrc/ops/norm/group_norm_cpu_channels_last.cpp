// Group normalization of tensors with their channels last on the CPU: norm.h has the formulas.
//
// A sample is (inner, channels): its channels are summed side by side and its lines drawn row by row, as in batch
// normalization (rows_cpu.h). In between, the sums of a group's channels give the line of each; backward they also
// give, added over the samples in their order, dw and db. All channels of a group have one centre: forward the mean
// of the group's first rows. Samples that stay in L2 go one by one, read from memory once; when they are few or
// larger, every step goes through all of them, in parts of their rows.
//
// bytes, at the least: forward x and y once, backward dy, x and dx once.
#include "ops/norm/moments_cpu.h"
#include "ops/norm/norm.h"
#include "ops/norm/rows_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kCachedBytes = 2 << 20;  // of a sample
constexpr int64_t kMinCachedSamples = 8;   // fewer are too coarse a unit to share among threads

// Sums over a sample's rows for each channel, in float64.
struct ChannelSums {
  double *values, *products;
};

double total_of(const double* values, int64_t n) {
  return row_sum<double>(
      n, [&](int64_t i, int64_t count) FASTNN_INLINED { return load_values<double>(values + i, count); });
}

// A parameter in float64, where it is missing all `missing`.
template <class T>
void widen_parameter(const void* parameter, double missing, int64_t n, double* to) {
  const T* from = static_cast<const T*>(parameter);
  for (int64_t c = 0; c < n; ++c) to[c] = from ? double(from[c]) : missing;
}

template <class T>
struct ForwardPass {
  static constexpr bool kBackward = false;
  const GroupNormArgs& args;

  const GroupView& view() const { return args.view; }
  const void* x() const { return args.x; }
  const void* dy() const { return nullptr; }
  void* out() const { return args.y; }

  void centre(int64_t, const RowKernel<T, ForwardPass>& kernel, int64_t begin, int64_t end, T* centres) const {
    for (int64_t group = 0; group < kernel.grid.groups; ++group)
      kernel.means(group, begin, end, centres + kernel.grid.first_column(group));
    for (int64_t first = 0; first < kernel.grid.channels; first += args.view.channels) {
      T mean = T(0);
      for (int64_t c = 0; c < args.view.channels; ++c) mean += centres[first + c] / T(args.view.channels);
      for (int64_t c = 0; c < args.view.channels; ++c) centres[first + c] = mean;
    }
  }

  // `sums` are of d = x - centre and of d^2.
  void draw(int64_t sample, const ChannelSums& sums, const double* weight, const double* bias,
            const Lines<T>& lines) const {
    const int64_t n = args.view.channels;
    for (int64_t group = 0; group < args.view.groups; ++group) {
      const int64_t first = group * n;
      const Spread spread({total_of(sums.values + first, n), total_of(sums.products + first, n)}, n * args.view.inner,
                          args.eps);
      double* stats = args.stats + 2 * (sample * args.view.groups + group);
      stats[0] = double(lines.centre[first]) + spread.shift;
      stats[1] = spread.rstd;
#pragma GCC ivdep
      for (int64_t c = first; c < first + n; ++c) {
        const double slope = spread.rstd * weight[c];
        lines.slope[c] = T(slope);
        lines.offset[c] = T(bias[c] - spread.shift * slope);
      }
    }
  }
};

template <class T>
struct BackwardPass {
  static constexpr bool kBackward = true;
  const GroupNormBackwardArgs& args;

  const GroupView& view() const { return args.view; }
  const void* x() const { return args.x; }
  const void* dy() const { return args.dy; }
  void* out() const { return args.dx; }
  const double* stats(int64_t sample, int64_t group) const {
    return args.stats + 2 * (sample * args.view.groups + group);
  }

  void centre(int64_t sample, const RowKernel<T, BackwardPass>&, int64_t, int64_t, T* centres) const {
    for (int64_t group = 0; group < args.view.groups; ++group)
      for (int64_t c = 0; c < args.view.channels; ++c)
        centres[group * args.view.channels + c] = T(stats(sample, group)[0]);
  }

  // `sums` are of dy and of dy (x - centre); the latter become those of dy (x - mean) rstd.
  void draw(int64_t sample, const ChannelSums& sums, const double* weight, const double*, const Lines<T>& lines) const {
    const int64_t n = args.view.channels;
    for (int64_t group = 0; group < args.view.groups; ++group) {
      const int64_t first = group * n;
      const double mean = stats(sample, group)[0], rstd = stats(sample, group)[1];
      const double rest = double(lines.centre[first]) - mean;  // x - mean = (x - centre) + rest
      double *values = sums.values + first, *products = sums.products + first;
      const Sums weighted = fold_row<double>(
          n, [&](int64_t i, int64_t count, Values<double>& product, Values<double>& value) FASTNN_INLINED {
            const Values<double> scale = load_values<double>(weight + first + i, count);
            const Values<double> plain = load_values<double>(values + i, count);
            const Values<double> normalized = (load_values<double>(products + i, count) + plain * rest) * rstd;
            store_values<double>(products + i, normalized, count);
            product += scale * normalized;
            value += scale * plain;
          });
      const double count = double(n) * double(args.view.inner);
      const double slope = -rstd * rstd * (weighted.first / count);
      const double offset = rest * slope - rstd * (weighted.second / count);
#pragma GCC ivdep
      for (int64_t c = first; c < first + n; ++c) {
        lines.slope[c] = T(slope);
        lines.offset[c] = T(offset);
        lines.dy_slope[c] = T(rstd * weight[c]);
      }
    }
  }
};

// A sample.
ChannelView rows_of(const GroupView& view) { return {view.inner, view.groups * view.channels, 1, view.dtype}; }

// The steps of a sample. `shared` holds weights and biases, then for every sample the sums of its parts, and lines.
template <class T, class Pass>
class Samples {
 public:
  const RowGrid grid;  // of a sample

  Samples(const Pass& pass, const void* weight, const void* bias)
      : grid(rows_of(pass.view())), pass_(pass), view_(pass.view()), n_sums_(2 * grid.parts * grid.channels) {
    const int64_t n_doubles = 2 * grid.channels + view_.samples * n_sums_;
    weight_ = static_cast<double*>(
        thread_scratch(Scratch::OperationShared,
                       size_t(n_doubles) * sizeof(double) + size_t(4 * view_.samples * grid.channels) * sizeof(T)));
    lines_ = reinterpret_cast<T*>(weight_ + n_doubles);
    widen_parameter<T>(weight, 1, grid.channels, weight_);
    widen_parameter<T>(bias, 0, grid.channels, weight_ + grid.channels);
  }

  ChannelSums sums_of(int64_t sample, int64_t part) const {
    double* values = weight_ + 2 * grid.channels + sample * n_sums_ + 2 * part * grid.channels;
    return {values, values + grid.channels};
  }

  void run() const {
    const int64_t size = view_.inner * grid.channels;
    const int64_t bytes = size * int64_t(item_size(view_.dtype)) * (Pass::kBackward ? 2 : 1);
    const int64_t sample_grain = ceil_div(kPart, size);
    if (bytes <= kCachedBytes && view_.samples >= kMinCachedSamples) {
      for_each(view_.samples, sample_grain, [&](const RowKernel<T, Pass>& kernel, int64_t sample) {
        centre(kernel, sample);
        for (int64_t part = 0; part < grid.parts; ++part) sum(kernel, sample, part);
        draw(sample);
        for (int64_t part = 0; part < grid.parts; ++part) apply(kernel, sample, part);
      });
      return;
    }
    const int64_t parts = view_.samples * grid.parts;
    const int64_t grain = ceil_div(kPart, min(grid.part_rows, view_.inner) * grid.channels);
    for_each(view_.samples, sample_grain,
             [&](const RowKernel<T, Pass>& kernel, int64_t sample) { centre(kernel, sample); });
    for_each(parts, grain,
             [&](const RowKernel<T, Pass>& kernel, int64_t i) { sum(kernel, i / grid.parts, i % grid.parts); });
    for_each(view_.samples, sample_grain, [&](const RowKernel<T, Pass>&, int64_t sample) { draw(sample); });
    for_each(parts, grain,
             [&](const RowKernel<T, Pass>& kernel, int64_t i) { apply(kernel, i / grid.parts, i % grid.parts); });
  }

 private:
  const Pass& pass_;
  const GroupView& view_;
  int64_t n_sums_;
  double* weight_;
  T* lines_;

  template <class Visit>
  void for_each(int64_t n, int64_t grain, const Visit& visit) const {
    parallel_for(n, grain, [&](int64_t begin, int64_t end) {
      const RowKernel<T, Pass> kernel(pass_, grid);
      for (int64_t i = begin; i < end; ++i) visit(kernel, i);
    });
  }

  Lines<T> lines_of(int64_t sample) const {
    T* rows = lines_ + 4 * sample * grid.channels;
    return {rows, rows + grid.channels, rows + 2 * grid.channels, rows + 3 * grid.channels};
  }

  // Calls visit(column group, begin, end) for the rows of a part, counted through all samples.
  template <class Visit>
  void for_each_columns(int64_t sample, int64_t part, const Visit& visit) const {
    const int64_t row = sample * view_.inner, begin = part * grid.part_rows;
    for (int64_t group = 0; group < grid.groups; ++group)
      visit(group, row + begin, row + min(begin + grid.part_rows, view_.inner));
  }

  void centre(const RowKernel<T, Pass>& kernel, int64_t sample) const {
    const int64_t begin = sample * view_.inner;
    pass_.centre(sample, kernel, begin, begin + view_.inner, lines_of(sample).centre);
  }

  void sum(const RowKernel<T, Pass>& kernel, int64_t sample, int64_t part) const {
    const ChannelSums sums = sums_of(sample, part);
    for_each_columns(sample, part, [&](int64_t group, int64_t begin, int64_t end) {
      const int64_t column = grid.first_column(group);
      kernel.sums(group, begin, end, lines_of(sample).centre + column, sums.values + column, sums.products + column);
    });
  }

  void draw(int64_t sample) const {
    const ChannelSums sums = sums_of(sample, 0);
    for (int64_t part = 1; part < grid.parts; ++part) {
      const ChannelSums more = sums_of(sample, part);
#pragma GCC ivdep
      for (int64_t c = 0; c < grid.channels; ++c) {
        sums.values[c] += more.values[c];
        sums.products[c] += more.products[c];
      }
    }
    pass_.draw(sample, sums, weight_, weight_ + grid.channels, lines_of(sample));
  }

  void apply(const RowKernel<T, Pass>& kernel, int64_t sample, int64_t part) const {
    if (!pass_.out()) return;
    for_each_columns(sample, part, [&](int64_t group, int64_t begin, int64_t end) {
      kernel.apply(group, begin, end, lines_of(sample));
    });
  }
};

template <class T>
void forward_of(const GroupNormArgs& args) {
  const ForwardPass<T> pass{args};
  Samples<T, ForwardPass<T>>(pass, args.weight, args.bias).run();
}

template <class T>
void backward_of(const GroupNormBackwardArgs& args) {
  const BackwardPass<T> pass{args};
  const Samples<T, BackwardPass<T>> samples(pass, args.weight, nullptr);
  samples.run();
  if (!args.dweight && !args.dbias) return;
  const int64_t channels = samples.grid.channels;
  const ChannelSums total = samples.sums_of(0, 0);
  for (int64_t sample = 1; sample < args.view.samples; ++sample) {
    const ChannelSums more = samples.sums_of(sample, 0);
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; ++c) {
      total.values[c] += more.values[c];
      total.products[c] += more.products[c];
    }
  }
  for (int64_t c = 0; args.dweight && c < channels; ++c) static_cast<T*>(args.dweight)[c] = T(total.products[c]);
  for (int64_t c = 0; args.dbias && c < channels; ++c) static_cast<T*>(args.dbias)[c] = T(total.values[c]);
}

void forward(const GroupNormArgs& args) {
  args.view.dtype == DType::Float64 ? forward_of<double>(args) : forward_of<float>(args);
}

void backward(const GroupNormBackwardArgs& args) {
  args.view.dtype == DType::Float64 ? backward_of<double>(args) : backward_of<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(group_norm_channels_last_forward, forward)
FASTNN_CPU_KERNEL(group_norm_channels_last_backward, backward)

}  // namespace fastnn
