// softmax on CUDA: see softmax.h for the formulas.
//
// bytes, at the least: forward x and y once, backward dy, y and dx once; arithmetic: two exponentials an element, far
// below what memory leaves time for (4.8 TB/s of 8 bytes an element are 600 G elements/s, 45 instructions each).
//
// Along the last axis rows go through simd/row_cuda.h; along another one a block takes 32 columns, of which 16 strips
// of the axis are summed up apart, and reads them twice.
#include "ops/softmax/softmax.h"

#include "simd/exp_sum_cuda.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int kColumns = kWarp;
constexpr int kStrips = 16;

// ------------------------------------------------------------------------------------------ formulas

// A line of the axis: its elements are `step` apart.
template <class Stored, bool kLog>
struct ForwardLine {
  using T = Compute<Stored>;
  const Stored* x;
  Stored* y;
  ExpSum<T> whole{};

  template <int kWidth>
  __device__ void load(int64_t i, T (&elements)[kWidth]) const {
    load_elements(x + i, elements);
  }
  static __device__ void add(ExpSum<T>& state, T x) { state.add(x); }
  __device__ void finish(const ExpSum<T>& state) { whole = state; }
  __device__ T result(T x) const {
    const T shifted = x - whole.maximum;
    return kLog ? shifted - log_(whole.sum) : exp_(shifted) / whole.sum;
  }
  template <int kWidth>
  __device__ void store(int64_t i, const T (&elements)[kWidth]) const {
    store_elements(y + i, elements, [&](T x) { return result(x); });
  }
};

template <class T>
struct Slope {
  T dy, y;
};

template <class Stored, bool kLog>
struct BackwardLine {
  using T = Compute<Stored>;
  const Stored *dy, *y;
  Stored* dx;
  T sum = T(0);

  template <int kWidth>
  __device__ void load(int64_t i, Slope<T> (&elements)[kWidth]) const {
    const Pack<T, kWidth> slopes = load_values<kWidth>(dy + i), values = load_values<kWidth>(y + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) elements[j] = {slopes.at[j], values.at[j]};
  }
  static __device__ void add(Total<T>& state, const Slope<T>& e) { state.sum += kLog ? e.dy : e.dy * e.y; }
  __device__ void finish(const Total<T>& state) { sum = state.sum; }
  __device__ T result(const Slope<T>& e) const { return kLog ? e.dy - exp_(e.y) * sum : e.y * (e.dy - sum); }
  template <int kWidth>
  __device__ void store(int64_t i, const Slope<T> (&elements)[kWidth]) const {
    store_elements(dx + i, elements, [&](const Slope<T>& e) { return result(e); });
  }
};

template <class Stored, bool kLog>
struct Forward {
  using Element = Compute<Stored>;
  using State = ExpSum<Element>;
  static constexpr bool kCentred = false;
  int64_t count, n;
  const Stored* x;
  Stored* y;

  __device__ ForwardLine<Stored, kLog> from(int64_t first) const { return {x + first, y + first}; }
  __device__ ForwardLine<Stored, kLog> at(int64_t row) const { return from(row * n); }
};

template <class Stored, bool kLog>
struct Backward {
  using Element = Slope<Compute<Stored>>;
  using State = Total<Compute<Stored>>;
  static constexpr bool kCentred = false;
  int64_t count, n;
  const Stored *dy, *y;
  Stored* dx;

  __device__ BackwardLine<Stored, kLog> from(int64_t first) const { return {dy + first, y + first, dx + first}; }
  __device__ BackwardLine<Stored, kLog> at(int64_t row) const { return from(row * n); }
};

// -------------------------------------------------------------------------------- along another axis

template <class Lines>
__global__ void __launch_bounds__(kColumns* kStrips, 2)
    map_columns(const __grid_constant__ Lines lines, int64_t outer, int64_t inner) {
  using State = typename Lines::State;
  __shared__ State strips[kStrips][kColumns];
  const int64_t column = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t n = column < outer * inner ? lines.n : 0;
  auto line = lines.from(column / inner * lines.n * inner + column % inner);
  typename Lines::Element element[1];
  State state;
  for (int64_t i = threadIdx.y; i < n; i += kStrips) {
    line.template load<1>(i * inner, element);
    line.add(state, element[0]);
  }
  strips[threadIdx.y][threadIdx.x] = state;
  block_sync();
  state = strips[0][threadIdx.x];
  for (int strip = 1; strip < kStrips; ++strip) state = State::merge(state, strips[strip][threadIdx.x]);
  line.finish(state);
  for (int64_t i = threadIdx.y; i < n; i += kStrips) {
    line.template load<1>(i * inner, element);
    line.template store<1>(i * inner, element);
  }
}

template <class Stored, class Lines>
void map_lines(const Lines& lines, int64_t outer, int64_t inner, bool packs) {
  if (outer == 0 || lines.n == 0 || inner == 0) return;
  if (inner == 1) return map_rows<Stored>(lines, packs);
  const int64_t blocks = (outer * inner + kColumns - 1) / kColumns;
  launch(map_columns<Lines>, dim3(unsigned(blocks)), dim3(kColumns, kStrips), 0, lines, outer, inner);
}

// ----------------------------------------------------------------------------------------- launchers

template <class Stored, bool kLog>
void forward_of(const SoftmaxArgs& args) {
  const Forward<Stored, kLog> lines{args.outer, args.n, static_cast<const Stored*>(args.x),
                                    static_cast<Stored*>(args.y)};
  map_lines<Stored>(lines, args.outer, args.inner, rows_fit_packs<Stored>(args.n, {args.x, args.y}));
}

template <class Stored, bool kLog>
void backward_of(const SoftmaxBackwardArgs& args) {
  const Backward<Stored, kLog> lines{args.outer, args.n, static_cast<const Stored*>(args.dy),
                                     static_cast<const Stored*>(args.y), static_cast<Stored*>(args.dx)};
  map_lines<Stored>(lines, args.outer, args.inner, rows_fit_packs<Stored>(args.n, {args.dy, args.y, args.dx}));
}

void forward(const SoftmaxArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    args.log ? forward_of<Stored, true>(args) : forward_of<Stored, false>(args);
  });
}

void backward(const SoftmaxBackwardArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    args.log ? backward_of<Stored, true>(args) : backward_of<Stored, false>(args);
  });
}

}  // namespace

FASTNN_CUDA_KERNEL(softmax_forward, forward)
FASTNN_CUDA_KERNEL(softmax_backward, backward)

}  // namespace fastnn
