// Cross-entropy and negative log likelihood on the CPU: see loss.h for the formulas.
//
// bytes: x once forward, x and dx backward; arithmetic: one exp an element each way. A row stays in cache
// between its maximum and its sum. loss_i is computed from (x_c - maximum) - log sum, which is exact where
// maximum + log sum would round logits of 10^4 to 3 digits.
#include "ops/loss/loss.h"
#include "simd/row.h"
#include "simd/stream.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 16384;  // elements of a chunk, at least one row

inline int64_t grain_of(int64_t classes) { return classes < kGrain ? kGrain / classes : 1; }

template <class Stored>
const Stored* row_of(const CrossEntropyArgs& args, const void* data, int64_t row) {
  return static_cast<const Stored*>(data) + row * args.classes;
}

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

template <class Stored>
void reduce_losses(const CrossEntropyArgs& args) {
  *args.total_weight = total_weight(args);
  if (!args.result) return;
  const auto* losses = static_cast<const Compute<Stored>*>(args.losses);
  double total = 0;
  for (int64_t row = 0; row < args.rows; ++row) total += double(losses[row]);
  if (args.reduction == Reduction::Mean) total /= *args.total_weight;
  *static_cast<Stored*>(args.result) = to_stored<Stored>(total);
}

// The class weights T of loss.h: `of` a row of probabilities, and `of_label` what smoothing gives each class.
template <class T>
struct ClassWeights {
  T keep, spread;
  const T* weight;

  explicit ClassWeights(const CrossEntropyArgs& args)
      : keep(T(1 - args.label_smoothing)),
        spread(T(args.label_smoothing / double(args.classes))),
        weight(static_cast<const T*>(args.weight)) {}
  Values<T> weighted(Values<T> values, int64_t c, int64_t count) const {
    return weight ? values * load_values<T>(weight + c, count) : values;
  }
  Values<T> of(Values<T> probabilities, int64_t c, int64_t count) const {
    return weighted(probabilities * keep + spread, c, count);
  }
  Values<T> of_label(int64_t c, int64_t count) const { return weighted(broadcast<T>(spread), c, count); }
};

// ------------------------------------------------------------------------------------- cross-entropy

template <class Stored>
Compute<Stored> loss_of_row(const CrossEntropyArgs& args, int64_t row, Compute<Stored> highest,
                            Compute<Stored> log_sum) {
  using T = Compute<Stored>;
  if (is_ignored(args, row)) return T(0);
  const ClassWeights<T> weights(args);
  const Stored* x = row_of<Stored>(args, args.x, row);
  const auto surprise = [&](int64_t c, int64_t count) FASTNN_INLINED {  // -log softmax(x)_c
    return broadcast<T>(log_sum) - (load_values<Stored>(x + c, count) - broadcast<T>(highest));
  };
  if (args.probabilities) {
    const Stored* p = row_of<Stored>(args, args.probabilities, row);
    return T(row_sum<T>(args.classes, [&](int64_t c, int64_t count) FASTNN_INLINED {
      return weights.of(load_values<Stored>(p + c, count), c, count) * surprise(c, count);
    }));
  }
  const int64_t label = args.labels[row];
  const T loss = weights.keep * weight_of<T>(args, label) * (log_sum - (to_compute<T>(x[label]) - highest));
  if (args.label_smoothing == 0) return loss;
  return loss + T(row_sum<T>(args.classes, [&](int64_t c, int64_t count) FASTNN_INLINED {
           return weights.of_label(c, count) * surprise(c, count);
         }));
}

template <class Stored>
void forward_of(const CrossEntropyArgs& args) {
  using T = Compute<Stored>;
  parallel_for(args.rows, grain_of(args.classes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Stored* x = row_of<Stored>(args, args.x, row);
      const T highest = row_max(x, args.classes);
      const T log_sum = T(log_(row_sum<T>(args.classes, [&](int64_t c, int64_t count) FASTNN_INLINED {
        return exp_lanes(load_values<Stored>(x + c, count) - broadcast<T>(highest));
      })));
      T* stats = static_cast<T*>(args.stats) + 2 * row;
      stats[0] = highest;
      stats[1] = log_sum;
      static_cast<T*>(args.losses)[row] = loss_of_row<Stored>(args, row, highest, log_sum);
    }
  });
  reduce_losses<Stored>(args);
}

// The gradient of a row's loss: its own, or its share of the reduced one.
template <class Stored>
Compute<Stored> row_gradient(const CrossEntropyArgs& args, int64_t row) {
  using T = Compute<Stored>;
  const Stored* dy = static_cast<const Stored*>(args.dy);
  if (args.reduction == Reduction::None) return to_compute<T>(dy[row]);
  const double gradient = to_compute<double>(dy[0]);
  return T(args.reduction == Reduction::Mean ? gradient / *args.total_weight : gradient);
}

// dx_c = (softmax(x)_c sum T - T_c) gradient, element by element: dx may be x.
template <class Stored, bool kStreamed>
void backward_row(const CrossEntropyArgs& args, int64_t row, Compute<Stored> weight_sum, Compute<Stored> gradient) {
  using T = Compute<Stored>;
  const ClassWeights<T> weights(args);
  const int64_t n = args.classes;
  const Stored* x = row_of<Stored>(args, args.x, row);
  Stored* dx = static_cast<Stored*>(args.dx) + row * n;
  const T* stats = static_cast<const T*>(args.stats) + 2 * row;
  const T highest = stats[0], log_sum = stats[1];
  const auto write = [&](T total, const auto& weight) FASTNN_INLINED {
    const Values<T> scale = broadcast<T>(total * gradient);
    write_row<kStreamed>(dx, n, [&](int64_t c, int64_t count) FASTNN_INLINED {
      const Values<T> d = load_values<Stored>(x + c, count) - broadcast<T>(highest);
      return exp_lanes(d - broadcast<T>(log_sum)) * scale - weight(c, count) * broadcast<T>(gradient);
    });
  };
  if (args.probabilities) {
    const Stored* p = row_of<Stored>(args, args.probabilities, row);
    const auto weight = [&](int64_t c, int64_t count)
                            FASTNN_INLINED { return weights.of(load_values<Stored>(p + c, count), c, count); };
    return write(T(row_sum<T>(n, weight)), weight);
  }
  const int64_t label = args.labels[row];
  const T kept = weights.keep * weight_of<T>(args, label), total = kept + weights.spread * weight_sum;
  const T probability = exp_((to_compute<T>(x[label]) - highest) - log_sum);
  if (args.label_smoothing > 0)
    write(total, [&](int64_t c, int64_t count) FASTNN_INLINED { return weights.of_label(c, count); });
  else
    write(total, [](int64_t, int64_t) FASTNN_INLINED { return Values<T>{}; });
  const T of_label = kept + weights.spread * weight_of<T>(args, label);
  dx[label] = to_stored<Stored>((probability * total - of_label) * gradient);
}

template <class Stored>
void backward_of(const CrossEntropyArgs& args) {
  using T = Compute<Stored>;
  const T* weight = static_cast<const T*>(args.weight);
  T weight_sum = T(args.classes);
  if (weight)
    weight_sum = T(row_sum<T>(
        args.classes, [&](int64_t c, int64_t count) FASTNN_INLINED { return load_values<T>(weight + c, count); }));
  parallel_for(args.rows, grain_of(args.classes), [&](int64_t begin, int64_t end) {
    with_streaming(streams_rows<Stored>(args.rows, args.classes), [&](auto streamed) {
      for (int64_t row = begin; row < end; ++row) {
        if (is_ignored(args, row))
          memset(static_cast<Stored*>(args.dx) + row * args.classes, 0, size_t(args.classes) * sizeof(Stored));
        else
          backward_row<Stored, streamed.value>(args, row, weight_sum, row_gradient<Stored>(args, row));
      }
    });
  });
}

// ---------------------------------------------------------------------------- negative log likelihood

template <class Stored>
void nll_forward_of(const CrossEntropyArgs& args) {
  using T = Compute<Stored>;
  for (int64_t row = 0; row < args.rows; ++row) {
    T loss = T(0);
    if (!is_ignored(args, row)) {
      const int64_t label = args.labels[row];
      loss = -weight_of<T>(args, label) * to_compute<T>(row_of<Stored>(args, args.x, row)[label]);
    }
    static_cast<T*>(args.losses)[row] = loss;
  }
  reduce_losses<Stored>(args);
}

template <class Stored>
void nll_backward_of(const CrossEntropyArgs& args) {
  using T = Compute<Stored>;
  parallel_for(args.rows, grain_of(args.classes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      Stored* dx = static_cast<Stored*>(args.dx) + row * args.classes;
      memset(dx, 0, size_t(args.classes) * sizeof(Stored));
      if (is_ignored(args, row)) continue;
      const int64_t label = args.labels[row];
      dx[label] = to_stored<Stored>(-weight_of<T>(args, label) * row_gradient<Stored>(args, row));
    }
  });
}

// ------------------------------------------------------------------------------------------ launchers

#define FASTNN_OF_DTYPE(name)                                            \
  void name(const CrossEntropyArgs& args) {                              \
    if (args.dtype == DType::Float32) return name##_of<float>(args);     \
    if (args.dtype == DType::Float64) return name##_of<double>(args);    \
    if (args.dtype == DType::BFloat16) return name##_of<bfloat16>(args); \
    name##_of<float16>(args);                                            \
  }
FASTNN_OF_DTYPE(forward)
FASTNN_OF_DTYPE(backward)
FASTNN_OF_DTYPE(nll_forward)
FASTNN_OF_DTYPE(nll_backward)
#undef FASTNN_OF_DTYPE

void checked_forward(const CrossEntropyArgs& args) {
  *args.bad_row = find_bad_row(args);
  if (*args.bad_row < 0) forward(args);
}

void checked_nll_forward(const CrossEntropyArgs& args) {
  *args.bad_row = find_bad_row(args);
  if (*args.bad_row < 0) nll_forward(args);
}

}  // namespace

FASTNN_CPU_KERNEL(cross_entropy_forward, checked_forward)
FASTNN_CPU_KERNEL(cross_entropy_backward, backward)
FASTNN_CPU_KERNEL(nll_loss_forward, checked_nll_forward)
FASTNN_CPU_KERNEL(nll_loss_backward, nll_backward)

}  // namespace fastnn
