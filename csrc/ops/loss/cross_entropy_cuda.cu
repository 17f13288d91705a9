// Cross-entropy and negative log likelihood on CUDA: see loss.h for the formulas.
//
// bytes: x once forward, x and dx once backward; arithmetic: one exponential an element each way, below what memory
// leaves time for. Smoothing and probabilities take the row a second time, from the caches.
//
// A warp or a block, the team of a row, goes through it once for its maximum and its sum of exponentials together.
// Rows may begin anywhere (a vocabulary of 50257 classes): elements before the first whole 16 bytes and after the last
// go one by one. The losses and weights of rows are added up in float64: 16384 rows a block, then the blocks in their
// order; the first row with a bad label is found on the way.
#include "core/divisor.h"
#include "ops/loss/loss.h"
#include "simd/exp_sum_cuda.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int64_t kWarpClasses = 1024;  // of a row that a warp takes
constexpr int kTeamOfLong = 512;        // threads for a longer one
constexpr int64_t kRowsOfPart = 16384;

// ------------------------------------------------------------------------------------------- a row

template <int width>
struct Width {
  static constexpr int value = width;
};

// Elements of a row before the first whole pack of each of these addresses; all, when they begin differently.
template <class Stored>
__device__ int64_t head_of(int64_t n, const Stored* a, const Stored* b = nullptr) {
  const unsigned past = unsigned(reinterpret_cast<uintptr_t>(a) % 16);
  if (b && unsigned(reinterpret_cast<uintptr_t>(b) % 16) != past) return n;
  return min(n, int64_t((16 - past) % 16 / sizeof(Stored)));
}

// visit(Width, c) for each Width elements from c on that are this thread's.
template <int kTeam, class Stored, class Visit>
__device__ void for_row(int64_t n, int64_t head, const Visit& visit) {
  constexpr int kPack = kPackOf16<Stored>;
  const int64_t tail = head + (n - head) / kPack * kPack;
  for (int64_t c = threadIdx.x; c < head; c += kTeam) visit(Width<1>(), c);
  for (int64_t c = head + int64_t(threadIdx.x) * kPack; c < tail; c += kTeam * kPack) visit(Width<kPack>(), c);
  for (int64_t c = tail + threadIdx.x; c < n; c += kTeam) visit(Width<1>(), c);
}

template <class T>
__device__ T weight_of(const CrossEntropyArgs& args, int64_t c) {
  return args.weight ? static_cast<const T*>(args.weight)[c] : T(1);
}

// A label out of range is found and counts as ignored.
__device__ inline bool is_bad(const CrossEntropyArgs& args, int64_t row) {
  if (!args.labels || args.labels[row] == args.ignore_index) return false;
  return args.labels[row] < 0 || args.labels[row] >= args.classes;
}
__device__ inline bool is_counted(const CrossEntropyArgs& args, int64_t row) {
  return !args.labels || (args.labels[row] != args.ignore_index && !is_bad(args, row));
}

// The class weights T of loss.h of one row.
template <class Stored>
struct ClassWeights {
  using T = Compute<Stored>;
  const T* weight;
  const Stored* p;  // probabilities, or null
  int64_t label;
  T keep, spread;

  __device__ ClassWeights(const CrossEntropyArgs& args, int64_t row)
      : weight(static_cast<const T*>(args.weight)),
        p(args.probabilities ? static_cast<const Stored*>(args.probabilities) + row * args.classes : nullptr),
        label(args.labels ? args.labels[row] : -1),
        keep(T(1 - args.label_smoothing)),
        spread(T(args.label_smoothing / double(args.classes))) {}

  // Those of kWidth classes from c on.
  template <int kWidth>
  __device__ Pack<T, kWidth> at(int64_t c) const {
    Pack<T, kWidth> values;
    if (p) values = load_values<kWidth>(p + c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      values.at[i] = p ? values.at[i] * keep + spread : spread + (c + i == label ? keep : T(0));
      if (weight) values.at[i] *= weight[c + i];
    }
    return values;
  }
};

// ------------------------------------------------------------------------------------------ forward

template <class Stored, int kTeam>
__global__ void __launch_bounds__(kTeam == kWarp ? kWarp * kRowsOfWarps : kTeam)
    losses_of_rows(const __grid_constant__ CrossEntropyArgs args) {
  using T = Compute<Stored>;
  __shared__ ExpSum<T> partial[kWarp];
  __shared__ Total<T> totals[kWarp];
  const int64_t row = team_row(), n = args.classes;
  if (row >= args.rows) return;
  const Stored* x = static_cast<const Stored*>(args.x) + row * n;
  ExpSum<T> state;
  for_row<kTeam, Stored>(n, head_of(n, x), [&](auto width, int64_t c) {
    const auto values = load_values<decltype(width)::value>(x + c);
#pragma unroll
    for (const T value : values.at) state.add(value);
  });
  state = merge_team<kTeam>(state, partial);
  const T highest = state.maximum, log_sum = log_(state.sum);

  T loss = T(0);
  if (is_counted(args, row)) {
    const ClassWeights<Stored> weights(args, row);
    if (weights.p || args.label_smoothing > 0) {
      Total<T> total;
      for_row<kTeam, Stored>(n, head_of(n, x, weights.p), [&](auto width, int64_t c) {
        constexpr int kWidth = decltype(width)::value;
        const auto values = load_values<kWidth>(x + c);
        const auto of = weights.template at<kWidth>(c);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) total.sum += of.at[i] * (log_sum - (values.at[i] - highest));
      });
      loss = merge_team<kTeam>(total, totals).sum;
    } else {
      loss = weight_of<T>(args, weights.label) * (log_sum - (to_compute<T>(x[weights.label]) - highest));
    }
  }
  if (threadIdx.x > 0) return;
  static_cast<T*>(args.stats)[2 * row] = highest;
  static_cast<T*>(args.stats)[2 * row + 1] = log_sum;
  static_cast<T*>(args.losses)[row] = loss;
}

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads) nll_of_rows(const __grid_constant__ CrossEntropyArgs args) {
  using T = Compute<Stored>;
  const int64_t row = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (row >= args.rows) return;
  T loss = T(0);
  if (is_counted(args, row)) {
    const int64_t label = args.labels[row];
    loss = -weight_of<T>(args, label) * to_compute<T>(static_cast<const Stored*>(args.x)[row * args.classes + label]);
  }
  static_cast<T*>(args.losses)[row] = loss;
}

// ------------------------------------------------------------------------------------------- totals

struct Totals {
  double loss = 0, weight = 0;
  int64_t bad_row = INT64_MAX;

  static __device__ Totals merge(const Totals& a, const Totals& b) {
    Totals both;
    both.loss = a.loss + b.loss;
    both.weight = a.weight + b.weight;
    both.bad_row = min(a.bad_row, b.bad_row);
    return both;
  }
};

template <class Stored>
__device__ void write_totals(const CrossEntropyArgs& args, const Totals& totals) {
  *args.total_weight = totals.weight;
  *args.bad_row = totals.bad_row == INT64_MAX ? -1 : totals.bad_row;
  const double loss = args.reduction == Reduction::Mean ? totals.loss / totals.weight : totals.loss;
  if (args.result) *static_cast<Stored*>(args.result) = to_stored<Stored>(loss);
}

// A single part is the whole.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    total_rows(const __grid_constant__ CrossEntropyArgs args, Totals* parts) {
  using T = Compute<Stored>;
  __shared__ Totals partial[kWarp];
  const int64_t begin = blockIdx.x * kRowsOfPart, end = min(begin + kRowsOfPart, args.rows);
  Totals totals;
  for (int64_t row = begin + threadIdx.x; row < end; row += kBlockThreads) {
    if (is_bad(args, row)) totals.bad_row = min(totals.bad_row, row);
    if (!is_counted(args, row)) continue;
    totals.loss += double(static_cast<const T*>(args.losses)[row]);
    totals.weight += args.labels ? double(weight_of<T>(args, args.labels[row])) : 1;
  }
  totals = merge_team<kBlockThreads>(totals, partial);
  if (threadIdx.x > 0) return;
  if (gridDim.x > 1)
    parts[blockIdx.x] = totals;
  else
    write_totals<Stored>(args, totals);
}

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    total_parts(const __grid_constant__ CrossEntropyArgs args, const Totals* parts, int64_t n) {
  __shared__ Totals partial[kWarp];
  Totals totals;
  for (int64_t part = threadIdx.x; part < n; part += kBlockThreads) totals = Totals::merge(totals, parts[part]);
  totals = merge_team<kBlockThreads>(totals, partial);
  if (threadIdx.x == 0) write_totals<Stored>(args, totals);
}

template <class Stored>
void add_up(const CrossEntropyArgs& args) {
  const int64_t parts = max((args.rows + kRowsOfPart - 1) / kRowsOfPart, int64_t(1));
  const CudaScratch scratch(size_t(parts) * sizeof(Totals));
  launch(total_rows<Stored>, unsigned(parts), kBlockThreads, 0, args, scratch.as<Totals>());
  if (parts > 1) launch(total_parts<Stored>, 1, kBlockThreads, 0, args, scratch.as<Totals>(), parts);
}

// ----------------------------------------------------------------------------------------- backward

// The gradient of a row's loss: its own, or its share of the reduced one.
template <class Stored>
__device__ Compute<Stored> row_gradient(const CrossEntropyArgs& args, int64_t row) {
  using T = Compute<Stored>;
  const Stored* dy = static_cast<const Stored*>(args.dy);
  if (args.reduction == Reduction::None) return to_compute<T>(dy[row]);
  const double gradient = to_compute<double>(dy[0]);
  return T(args.reduction == Reduction::Mean ? gradient / *args.total_weight : gradient);
}

// dx may be x: a thread reads what it writes.
template <class Stored, int kTeam>
__global__ void __launch_bounds__(kTeam == kWarp ? kWarp * kRowsOfWarps : kTeam)
    gradients_of_rows(const __grid_constant__ CrossEntropyArgs args) {
  using T = Compute<Stored>;
  __shared__ Total<T> totals[kWarp];
  const int64_t row = team_row(), n = args.classes;
  if (row >= args.rows) return;
  const Stored* x = static_cast<const Stored*>(args.x) + row * n;
  Stored* dx = static_cast<Stored*>(args.dx) + row * n;
  const bool counted = is_counted(args, row);
  const ClassWeights<Stored> weights(args, row);
  T total = counted && !weights.p ? weights.keep * weight_of<T>(args, weights.label) + weights.spread * T(n) : T(0);
  if (counted && (weights.p || (weights.weight && args.label_smoothing > 0))) {
    Total<T> sum;
    for_row<kTeam, Stored>(n, head_of(n, weights.p ? weights.p : x), [&](auto width, int64_t c) {
      const auto of = weights.template at<decltype(width)::value>(c);
#pragma unroll
      for (const T value : of.at) sum.sum += value;
    });
    total = merge_team<kTeam>(sum, totals).sum;
  }
  const T highest = static_cast<const T*>(args.stats)[2 * row],
          log_sum = static_cast<const T*>(args.stats)[2 * row + 1];
  const T gradient = counted ? row_gradient<Stored>(args, row) : T(0);
  const int64_t head = head_of(n, x, dx) == n ? n : head_of(n, x, weights.p);
  for_row<kTeam, Stored>(n, head, [&](auto width, int64_t c) {
    constexpr int kWidth = decltype(width)::value;
    auto values = load_values<kWidth>(x + c);
    const auto of = weights.template at<kWidth>(c);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const T probability = exp_((values.at[i] - highest) - log_sum);
      values.at[i] = counted ? (probability * total - of.at[i]) * gradient : T(0);
    }
    store_values<kWidth>(dx + c, values);
  });
}

// -w_label dy at the labels, in packs over all of dx.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    nll_gradients(const __grid_constant__ CrossEntropyArgs args, const __grid_constant__ Divisor classes, bool packs) {
  using T = Compute<Stored>;
  constexpr int kWidth = kPackOf16<Stored>;
  const int64_t n = args.rows * args.classes, at = (int64_t(blockIdx.x) * kBlockThreads + threadIdx.x) * kWidth;
  if (at >= n) return;
  Division place = classes.divide(at);
  Pack<T, kWidth> values{};
  const int count = int(min(n - at, int64_t(kWidth)));
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i == count) break;
    const int64_t row = place.quotient;
    if (args.labels[row] == place.rest && is_counted(args, row))
      values.at[i] = -weight_of<T>(args, place.rest) * row_gradient<Stored>(args, row);
    if (++place.rest == args.classes) place = {row + 1, 0};
  }
  Stored* dx = static_cast<Stored*>(args.dx) + at;
  if (packs && count == kWidth) return store_values<kWidth>(dx, values);
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    if (i < count) dx[i] = to_stored<Stored>(values.at[i]);
}

// ----------------------------------------------------------------------------------------- launchers

void forward(const CrossEntropyArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    if (args.classes <= kWarpClasses)
      launch(losses_of_rows<Stored, kWarp>, row_shape<kWarp>(args.rows), args);
    else
      launch(losses_of_rows<Stored, kTeamOfLong>, row_shape<kTeamOfLong>(args.rows), args);
    add_up<Stored>(args);
  });
}

void backward(const CrossEntropyArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    if (args.classes <= kWarpClasses)
      launch(gradients_of_rows<Stored, kWarp>, row_shape<kWarp>(args.rows), args);
    else
      launch(gradients_of_rows<Stored, kTeamOfLong>, row_shape<kTeamOfLong>(args.rows), args);
  });
}

void nll_forward(const CrossEntropyArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    launch(nll_of_rows<Stored>, unsigned(blocks_for(args.rows)), kBlockThreads, 0, args);
    add_up<Stored>(args);
  });
}

void nll_backward(const CrossEntropyArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    const int64_t packs = (args.rows * args.classes + kPackOf16<Stored> - 1) / kPackOf16<Stored>;
    launch(nll_gradients<Stored>, unsigned(blocks_for(packs)), kBlockThreads, 0, args,
           Divisor(max(args.classes, int64_t(1))), is_aligned(args.dx, 16));
  });
}

}  // namespace

FASTNN_CUDA_KERNEL(cross_entropy_forward, forward)
FASTNN_CUDA_KERNEL(cross_entropy_backward, backward)
FASTNN_CUDA_KERNEL(nll_loss_forward, nll_forward)
FASTNN_CUDA_KERNEL(nll_loss_backward, nll_backward)

}  // namespace fastnn
