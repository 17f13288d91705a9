// Cross-entropy and negative log likelihood on the CPU: see loss.h for the formulas.
//
// bytes: x once forward, x and dx backward; arithmetic: one exp an element each way. A row stays in cache
// between its maximum and its sum. loss_i is computed from (x_c - maximum) - log sum, which is exact where
// maximum + log sum would round logits of 10^4 to 3 digits. 16-bit rows pass through float32 buffers.
#include "ops/loss/loss.h"
#include "simd/convert.h"
#include "simd/row.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 8192;  // elements of a chunk, at least one row

inline int64_t grain_of(int64_t classes) { return classes < kGrain ? kGrain / classes : 1; }

template <class T>
T read(const void* data, DType dtype, int64_t i) {
  T value;
  FASTNN_LEVEL::load_row(&value, static_cast<const char*>(data) + i * int64_t(item_size(dtype)), dtype, 1, 1);
  return value;
}

template <class T>
struct Rows {
  const CrossEntropyArgs& args;
  T* buffer;  // three rows, for 16-bit types

  explicit Rows(const CrossEntropyArgs& a) : args(a), buffer(nullptr) {
    if (args.dtype != dtype_of<T>())
      buffer = static_cast<T*>(thread_scratch(Scratch::Operation, size_t(3 * args.classes) * sizeof(T)));
  }
  const T* load(const void* data, int64_t row, int slot) const {
    const int64_t n = args.classes, first = row * n;
    if (!buffer) return static_cast<const T*>(data) + first;
    T* to = buffer + slot * n;
    FASTNN_LEVEL::load_row(to, static_cast<const char*>(data) + first * int64_t(item_size(args.dtype)), args.dtype, 1,
                           n);
    return to;
  }
  const T* x(int64_t row) const { return load(args.x, row, 0); }
  const T* probabilities(int64_t row) const { return load(args.probabilities, row, 1); }
  T* dx(int64_t row) const {
    return buffer ? buffer + 2 * args.classes : static_cast<T*>(args.dx) + row * args.classes;
  }
  void store_dx(int64_t row, const T* from) const {
    if (!buffer) return;
    const int64_t n = args.classes;
    FASTNN_LEVEL::store_row(static_cast<char*>(args.dx) + row * n * int64_t(item_size(args.dtype)), args.dtype, 1, from,
                            n);
  }
};

template <class T>
T weight_of(const CrossEntropyArgs& args, int64_t c) {
  return args.weight ? static_cast<const T*>(args.weight)[c] : T(1);
}

bool is_ignored(const CrossEntropyArgs& args, int64_t row) {
  return args.labels && args.labels[row] == args.ignore_index;
}

// The first row whose label is out of range, or -1.
int64_t find_bad_row(const CrossEntropyArgs& args) {
  if (!args.labels) return -1;
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t label = args.labels[row];
    if ((label < 0 || label >= args.classes) && label != args.ignore_index) return row;
  }
  return -1;
}

double total_weight(const CrossEntropyArgs& args) {
  if (!args.labels) return double(args.rows);
  const bool wide = args.dtype == DType::Float64;
  double total = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    if (is_ignored(args, row)) continue;
    total += wide ? weight_of<double>(args, args.labels[row]) : double(weight_of<float>(args, args.labels[row]));
  }
  return total;
}

template <class T>
void reduce_losses(const CrossEntropyArgs& args) {
  *args.total_weight = total_weight(args);
  if (!args.result) return;
  const T* losses = static_cast<const T*>(args.losses);
  double total = row_sum<double>(args.rows, [&](int64_t row) { return double(losses[row]); });
  if (args.reduction == Reduction::Mean) total /= *args.total_weight;
  FASTNN_LEVEL::store_row(args.result, args.dtype, 1, &total, 1);
}

// The weights T of a row of probabilities: the class weight times the smoothed probability.
template <class T>
struct Smoothed {
  T keep, spread;
  explicit Smoothed(const CrossEntropyArgs& args)
      : keep(T(1 - args.label_smoothing)), spread(T(args.label_smoothing / double(args.classes))) {}
};

// ------------------------------------------------------------------------------------- cross-entropy

template <class T>
T loss_of_row(const CrossEntropyArgs& args, const Rows<T>& rows, int64_t row, const T* x, T highest, T log_sum) {
  const Smoothed<T> smoothed(args);
  auto surprise = [&](int64_t c) { return log_sum - (x[c] - highest); };  // -log softmax(x)_c
  if (args.probabilities) {
    const T* p = rows.probabilities(row);
    if (!args.weight)
      return T(
          row_sum<T>(args.classes, [&](int64_t c) { return (smoothed.keep * p[c] + smoothed.spread) * surprise(c); }));
    const T* w = static_cast<const T*>(args.weight);
    return T(row_sum<T>(args.classes,
                        [&](int64_t c) { return w[c] * (smoothed.keep * p[c] + smoothed.spread) * surprise(c); }));
  }
  const int64_t label = args.labels[row];
  if (label == args.ignore_index) return T(0);
  const T loss = smoothed.keep * weight_of<T>(args, label) * surprise(label);
  if (args.label_smoothing == 0) return loss;
  return loss +
         T(row_sum<T>(args.classes, [&](int64_t c) { return smoothed.spread * weight_of<T>(args, c) * surprise(c); }));
}

template <class T>
void forward_typed(const CrossEntropyArgs& args) {
  parallel_for(args.rows, grain_of(args.classes), [&](int64_t begin, int64_t end) {
    const Rows<T> rows(args);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = rows.x(row);
      const T highest = row_max(x, args.classes);
      const T log_sum = T(log_(row_sum<T>(args.classes, [&](int64_t c) { return exp_(x[c] - highest); })));
      T* stats = static_cast<T*>(args.stats) + 2 * row;
      stats[0] = highest;
      stats[1] = log_sum;
      static_cast<T*>(args.losses)[row] = loss_of_row(args, rows, row, x, highest, log_sum);
    }
  });
  reduce_losses<T>(args);
}

// dx_c = (softmax(x)_c total - T_c) gradient.
template <class T>
void backward_row(const CrossEntropyArgs& args, const Rows<T>& rows, int64_t row, T weight_sum, T gradient, T* dx) {
  const Smoothed<T> smoothed(args);
  const int64_t n = args.classes;
  const T* x = rows.x(row);
  const T highest = static_cast<const T*>(args.stats)[2 * row],
          log_sum = static_cast<const T*>(args.stats)[2 * row + 1];
  const T* p = args.probabilities ? rows.probabilities(row) : nullptr;
  T total = smoothed.spread * weight_sum;
  if (p)
    total += smoothed.keep * T(row_sum<T>(n, [&](int64_t c) { return p[c] * weight_of<T>(args, c); }));
  else
    total += smoothed.keep * weight_of<T>(args, args.labels[row]);
  const T scale = total * gradient;
#pragma GCC ivdep
  for (int64_t c = 0; c < n; ++c) dx[c] = exp_((x[c] - highest) - log_sum) * scale;
  if (p)
    for (int64_t c = 0; c < n; ++c)
      dx[c] -= (smoothed.keep * p[c] + smoothed.spread) * weight_of<T>(args, c) * gradient;
  else if (args.label_smoothing > 0)
    for (int64_t c = 0; c < n; ++c) dx[c] -= smoothed.spread * weight_of<T>(args, c) * gradient;
  if (!p) dx[args.labels[row]] -= smoothed.keep * weight_of<T>(args, args.labels[row]) * gradient;
}

// The gradient of a row's loss: its own, or its share of the reduced one.
template <class T>
T row_gradient(const CrossEntropyArgs& args, int64_t row) {
  if (args.reduction == Reduction::None) return read<T>(args.dy, args.dtype, row);
  const double dy = read<double>(args.dy, args.dtype, 0);
  return T(args.reduction == Reduction::Mean ? dy / *args.total_weight : dy);
}

template <class T>
void backward_typed(const CrossEntropyArgs& args) {
  const T weight_sum = T(row_sum<T>(args.classes, [&](int64_t c) { return weight_of<T>(args, c); }));
  parallel_for(args.rows, grain_of(args.classes), [&](int64_t begin, int64_t end) {
    const Rows<T> rows(args);
    for (int64_t row = begin; row < end; ++row) {
      T* dx = rows.dx(row);
      if (is_ignored(args, row))
        for (int64_t c = 0; c < args.classes; ++c) dx[c] = T(0);
      else
        backward_row(args, rows, row, weight_sum, row_gradient<T>(args, row), dx);
      rows.store_dx(row, dx);
    }
  });
}

void forward(const CrossEntropyArgs& args) {
  *args.bad_row = find_bad_row(args);
  if (*args.bad_row >= 0) return;
  args.dtype == DType::Float64 ? forward_typed<double>(args) : forward_typed<float>(args);
}

void backward(const CrossEntropyArgs& args) {
  args.dtype == DType::Float64 ? backward_typed<double>(args) : backward_typed<float>(args);
}

// ---------------------------------------------------------------------------- negative log likelihood

template <class T>
void nll_forward_typed(const CrossEntropyArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t label = args.labels[row];
    const bool ignored = label == args.ignore_index;
    static_cast<T*>(args.losses)[row] =
        ignored ? T(0) : -weight_of<T>(args, label) * read<T>(args.x, args.dtype, row * args.classes + label);
  }
  reduce_losses<T>(args);
}

template <class T>
void nll_backward_typed(const CrossEntropyArgs& args) {
  parallel_for(args.rows, grain_of(args.classes), [&](int64_t begin, int64_t end) {
    const Rows<T> rows(args);
    for (int64_t row = begin; row < end; ++row) {
      T* dx = rows.dx(row);
      for (int64_t c = 0; c < args.classes; ++c) dx[c] = T(0);
      const int64_t label = args.labels[row];
      if (label != args.ignore_index) dx[label] = -weight_of<T>(args, label) * row_gradient<T>(args, row);
      rows.store_dx(row, dx);
    }
  });
}

void nll_forward(const CrossEntropyArgs& args) {
  *args.bad_row = find_bad_row(args);
  if (*args.bad_row >= 0) return;
  args.dtype == DType::Float64 ? nll_forward_typed<double>(args) : nll_forward_typed<float>(args);
}

void nll_backward(const CrossEntropyArgs& args) {
  args.dtype == DType::Float64 ? nll_backward_typed<double>(args) : nll_backward_typed<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(cross_entropy_forward, forward)
FASTNN_CPU_KERNEL(cross_entropy_backward, backward)
FASTNN_CPU_KERNEL(nll_loss_forward, nll_forward)
FASTNN_CPU_KERNEL(nll_loss_backward, nll_backward)

}  // namespace fastnn
