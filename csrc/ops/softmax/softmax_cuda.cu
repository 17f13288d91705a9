// softmax on CUDA: see softmax.h for the formulas.
//
// bytes, at the least: forward x and y once, backward dy, y and dx once; arithmetic: two exponentials an element, far
// below what memory leaves time for (4.8 TB/s of 8 bytes an element are 600 G elements/s, 45 instructions each).
//
// A formula has a state that elements are added to (the maximum and the sum, or the sum of the backward) and a result
// of an element and the whole row's state. Three walks share it:
//   held      rows that fit the registers of a warp or a block: one read
//   long      longer rows, a block each: a second read, which finds a row of up to some 300 KB in L2
//   columns   along another axis than the last: a block of 32 columns x 16 strips of the axis
#include "ops/softmax/softmax.h"

#include "simd/math.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int kHeld = 32;        // elements of each input that a thread holds
constexpr int kLongTeam = 512;   // threads of a long row
constexpr int kColumns = kWarp;  // columns of a block
constexpr int kStrips = 16;      // threads of a column

// ------------------------------------------------------------------------------------------ formulas

// sum exp(x - maximum), with the maximum so far: a larger one scales the sum down. An element of -inf adds nothing, of
// +inf or NaN makes the sum NaN.
template <class T>
struct ExpSum {
  T maximum = T(-INFINITY), sum = T(0);

  __device__ void add(T x) {
    if (x > maximum) {
      sum = sum * exp_(maximum - x) + (x - x + T(1));
      maximum = x;
    } else if (x != T(-INFINITY)) {
      sum += exp_(x - maximum);
    }
  }
  static __device__ ExpSum merge(const ExpSum& a, const ExpSum& b) {
    ExpSum both;
    both.maximum = a.maximum > b.maximum ? a.maximum : b.maximum;
    both.sum = a.scaled(both.maximum) + b.scaled(both.maximum);
    return both;
  }
  __device__ T scaled(T top) const { return maximum == top ? sum : sum * exp_(maximum - top); }
};

template <class T, bool kLog>
struct Forward {
  static constexpr int kInputs = 1;
  using State = ExpSum<T>;
  static __device__ void add(State& state, const T (&in)[1]) { state.add(in[0]); }
  static __device__ T result(const State& row, const T (&in)[1]) {
    const T shifted = in[0] - row.maximum;
    return kLog ? shifted - log_(row.sum) : exp_(shifted) / row.sum;
  }
};

template <class T>
struct Total {
  T sum = T(0);
  static __device__ Total merge(const Total& a, const Total& b) {
    Total both;
    both.sum = a.sum + b.sum;
    return both;
  }
};

// Inputs dy, y.
template <class T, bool kLog>
struct Gradient {
  static constexpr int kInputs = 2;
  using State = Total<T>;
  static __device__ void add(State& state, const T (&in)[2]) { state.sum += kLog ? in[0] : in[0] * in[1]; }
  static __device__ T result(const State& row, const T (&in)[2]) {
    return kLog ? in[0] - exp_(in[1]) * row.sum : in[1] * (in[0] - row.sum);
  }
};

// --------------------------------------------------------------------------------------------- walks

template <class Stored, int kInputs>
struct Operands {
  const Stored* in[kInputs];
  Stored* out;
  int64_t outer, n, inner;
};

template <class T, int kInputs, int kWidth>
__device__ void element_of(const Pack<T, kWidth> (&packs)[kInputs], int i, T (&element)[kInputs]) {
#pragma unroll
  for (int k = 0; k < kInputs; ++k) element[k] = packs[k].at[i];
}

template <class Formula, int kTeam, int kWidth, class Stored>
__global__ void __launch_bounds__(kTeam == kWarp ? kWarp * kRowsOfWarps : kTeam)
    held_rows(const __grid_constant__ Operands<Stored, Formula::kInputs> args) {
  using T = Compute<Stored>;
  using State = typename Formula::State;
  constexpr int kPacks = kHeld / kWidth;
  __shared__ State partial[kWarp];
  const int64_t row = team_row();
  if (row >= args.outer) return;
  Pack<T, kWidth> held[kPacks][Formula::kInputs];
  T element[Formula::kInputs];
  State state;
#pragma unroll
  for (int pack = 0; pack < kPacks; ++pack) {
    const int64_t i = int64_t(pack * kTeam + threadIdx.x) * kWidth;
    if (i >= args.n) break;
#pragma unroll
    for (int k = 0; k < Formula::kInputs; ++k) held[pack][k] = load_values<kWidth>(args.in[k] + row * args.n + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      element_of(held[pack], j, element);
      Formula::add(state, element);
    }
  }
  state = merge_team<kTeam>(state, partial);
#pragma unroll
  for (int pack = 0; pack < kPacks; ++pack) {
    const int64_t i = int64_t(pack * kTeam + threadIdx.x) * kWidth;
    if (i >= args.n) break;
    Pack<T, kWidth> result;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      element_of(held[pack], j, element);
      result.at[j] = Formula::result(state, element);
    }
    store_values<kWidth>(args.out + row * args.n + i, result);
  }
}

template <class Formula, int kWidth, class Stored>
__global__ void __launch_bounds__(kLongTeam)
    long_rows(const __grid_constant__ Operands<Stored, Formula::kInputs> args) {
  using T = Compute<Stored>;
  using State = typename Formula::State;
  __shared__ State partial[kWarp];
  const int64_t first = team_row() * args.n;
  T element[Formula::kInputs];
  Pack<T, kWidth> packs[Formula::kInputs];
  const auto load = [&](int64_t i) {
#pragma unroll
    for (int k = 0; k < Formula::kInputs; ++k) packs[k] = load_values<kWidth>(args.in[k] + first + i);
  };
  State state;
  for_packs<kLongTeam, kWidth>(args.n, [&](int64_t i) {
    load(i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      element_of(packs, j, element);
      Formula::add(state, element);
    }
  });
  state = merge_team<kLongTeam>(state, partial);
  for_packs<kLongTeam, kWidth>(args.n, [&](int64_t i) {
    load(i);
    Pack<T, kWidth> result;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      element_of(packs, j, element);
      result.at[j] = Formula::result(state, element);
    }
    store_values<kWidth>(args.out + first + i, result);
  });
}

template <class Formula, class Stored>
__global__ void __launch_bounds__(kColumns* kStrips)
    columns(const __grid_constant__ Operands<Stored, Formula::kInputs> args) {
  using T = Compute<Stored>;
  using State = typename Formula::State;
  __shared__ State strips[kStrips][kColumns];
  const int64_t column = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  const bool inside = column < args.outer * args.inner;
  const int64_t first = column / args.inner * args.n * args.inner + column % args.inner;
  T element[Formula::kInputs];
  const auto load = [&](int64_t i) {
#pragma unroll
    for (int k = 0; k < Formula::kInputs; ++k) element[k] = to_compute<T>(args.in[k][first + i * args.inner]);
  };
  State state;
  for (int64_t i = threadIdx.y; inside && i < args.n; i += kStrips) {
    load(i);
    Formula::add(state, element);
  }
  strips[threadIdx.y][threadIdx.x] = state;
  block_sync();
  state = strips[0][threadIdx.x];
  for (int strip = 1; strip < kStrips; ++strip) state = State::merge(state, strips[strip][threadIdx.x]);
  for (int64_t i = threadIdx.y; inside && i < args.n; i += kStrips) {
    load(i);
    args.out[first + i * args.inner] = to_stored<Stored>(Formula::result(state, element));
  }
}

// ----------------------------------------------------------------------------------------- launchers

template <class Formula, int kWidth, class Stored>
void launch_rows(const Operands<Stored, Formula::kInputs>& args) {
  constexpr int kBlock = 256;
  if (args.n <= kHeld * kWarp)
    launch(held_rows<Formula, kWarp, kWidth, Stored>, row_shape<kWarp>(args.outer), args);
  else if (args.n <= kHeld * kBlock)
    launch(held_rows<Formula, kBlock, kWidth, Stored>, row_shape<kBlock>(args.outer), args);
  else
    launch(long_rows<Formula, kWidth, Stored>, row_shape<kLongTeam>(args.outer), args);
}

template <class Formula, class Stored>
void run(const Operands<Stored, Formula::kInputs>& args) {
  constexpr int kWidth = kPackOf16<Stored>;
  if (args.outer == 0 || args.n == 0 || args.inner == 0) return;
  if (args.inner > 1) {
    const int64_t blocks = (args.outer * args.inner + kColumns - 1) / kColumns;
    launch(columns<Formula, Stored>, dim3(unsigned(blocks)), dim3(kColumns, kStrips), 0, args);
    return;
  }
  bool fits = rows_fit_packs<Stored>(args.n, kWidth, {args.out});
  for (const Stored* in : args.in) fits = fits && rows_fit_packs<Stored>(args.n, kWidth, {in});
  fits ? launch_rows<Formula, kWidth>(args) : launch_rows<Formula, 1>(args);
}

void forward(const SoftmaxArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    using T = Compute<Stored>;
    const Operands<Stored, 1> operands{
        {static_cast<const Stored*>(args.x)}, static_cast<Stored*>(args.y), args.outer, args.n, args.inner};
    args.log ? run<Forward<T, true>>(operands) : run<Forward<T, false>>(operands);
  });
}

void backward(const SoftmaxBackwardArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    using T = Compute<Stored>;
    const Operands<Stored, 2> operands{{static_cast<const Stored*>(args.dy), static_cast<const Stored*>(args.y)},
                                       static_cast<Stored*>(args.dx),
                                       args.outer,
                                       args.n,
                                       args.inner};
    args.log ? run<Gradient<T, true>>(operands) : run<Gradient<T, false>>(operands);
  });
}

}  // namespace

FASTNN_CUDA_KERNEL(softmax_forward, forward)
FASTNN_CUDA_KERNEL(softmax_backward, backward)

}  // namespace fastnn
