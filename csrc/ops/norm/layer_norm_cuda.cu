// Layer and RMS normalization on CUDA: norm.h has the formulas.
//
// bytes, at the least: forward x and y once; backward dy, x and dx once, and dy and x again for dw and db.
//
// y and dx go through simd/row_cuda.h. The variance is summed around the mean, so that it keeps its digits
// however large that is. dw and db are sums down the columns: blocks of 32 columns and
// a part of the rows, whose sums are added up in their order.
#include "ops/norm/norm.h"
#include "simd/math.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int kColumns = kWarp;
constexpr int kStrips = 16;           // rows that a block takes at once
constexpr int64_t kMinPart = 64;      // rows of a part
constexpr int64_t kMaxBlocks = 1024;  // that share the columns' sums

// Of a row: forward of d = x - mid and of d^2, where mid is about the mean, or 0; backward of g and of g z.
template <class T>
struct RowSums {
  T value = T(0), product = T(0);
  static __device__ RowSums merge(const RowSums& a, const RowSums& b) {
    RowSums both;
    both.value = a.value + b.value;
    both.product = a.product + b.product;
    return both;
  }
};

// ------------------------------------------------------------------------------------------- forward

template <class Stored, bool kCentred>
struct ForwardRow {
  using T = Compute<Stored>;
  const Stored *x, *residual;
  Stored *sum, *y;
  const T *weight, *bias;
  double* stats;
  double eps;
  int64_t n;
  T mid = T(0), rstd = T(0), offset = T(0);  // (x - mean) rstd is (x - mid) rstd + offset

  template <int kWidth>
  __device__ void load(int64_t i, T (&elements)[kWidth]) const {
    load_elements(x + i, elements);
    if (!residual) return;
    const Pack<T, kWidth> added = load_values<kWidth>(residual + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) elements[j] = to_compute<T>(to_stored<Stored>(elements[j] + added.at[j]));
    store_elements(sum + i, elements, [](T value) { return value; });
  }
  __device__ void centre(T mean) { mid = mean; }
  __device__ void add(RowSums<T>& state, T x) const {
    const T d = x - mid;
    if (kCentred) state.value += d;
    state.product += d * d;
  }
  __device__ void finish(const RowSums<T>& row) {
    const double shift = double(row.value) / double(n), var = double(row.product) / double(n) - shift * shift;
    const double scale = 1 / sqrt((var < 0 ? 0 : var) + eps);
    rstd = T(scale);
    offset = T(-shift * scale);
    if (threadIdx.x == 0) stats[0] = double(mid) + shift, stats[1] = scale;
  }
  template <int kWidth>
  __device__ void store(int64_t i, const T (&elements)[kWidth]) const {
    Pack<T, kWidth> w, b, values;
    if (weight) w = load_pack<kWidth>(weight + i);
    if (bias) b = load_pack<kWidth>(bias + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      values.at[j] = (elements[j] - mid) * rstd + offset;
      if (weight) values.at[j] *= w.at[j];
      if (bias) values.at[j] += b.at[j];
    }
    store_values<kWidth>(y + i, values);
  }
};

template <class Stored, bool kIsCentred>
struct ForwardRows {
  using T = Compute<Stored>;
  using Element = T;
  using State = RowSums<T>;
  static constexpr bool kCentred = kIsCentred;
  int64_t count, n;
  LayerNormArgs args;

  __device__ ForwardRow<Stored, kIsCentred> at(int64_t row) const {
    const int64_t first = row * n;
    const auto of = [first](void* data) { return data ? static_cast<Stored*>(data) + first : nullptr; };
    return {of(const_cast<void*>(args.x)),
            of(const_cast<void*>(args.residual)),
            of(args.sum),
            of(args.y),
            static_cast<const T*>(args.weight),
            static_cast<const T*>(args.bias),
            args.stats + 2 * row,
            args.eps,
            n};
  }
};

template <class Stored, bool kCentred>
void forward_of(const LayerNormArgs& args) {
  if (args.rows == 0 || args.n == 0) return;
  const bool packs = rows_fit_packs<Stored>(args.n, {args.x, args.residual, args.sum, args.y}) &&
                     is_aligned(args.weight, 32) && is_aligned(args.bias, 32);
  map_rows<Stored>(ForwardRows<Stored, kCentred>{args.rows, args.n, args}, packs);
}

// ----------------------------------------------------------------------------------------------- dx

template <class T>
struct Slope {
  T g, z;
};

template <class Stored, bool kCentred>
struct BackwardRow {
  using T = Compute<Stored>;
  const Stored *dy, *x, *dsum;
  Stored* dx;
  const T* weight;
  double mean, rstd;
  T n, g_mean = T(0), gz_mean = T(0);

  template <int kWidth>
  __device__ void load(int64_t i, Slope<T> (&elements)[kWidth]) const {
    const Pack<T, kWidth> slopes = load_values<kWidth>(dy + i), values = load_values<kWidth>(x + i);
    Pack<T, kWidth> w;
    if (weight) w = load_pack<kWidth>(weight + i);
    const T centre = T(mean), rest = T(double(centre) - mean), scale = T(rstd);
#pragma unroll
    for (int j = 0; j < kWidth; ++j)
      elements[j] = {weight ? slopes.at[j] * w.at[j] : slopes.at[j], ((values.at[j] - centre) + rest) * scale};
  }
  static __device__ void add(RowSums<T>& state, const Slope<T>& e) {
    state.value += e.g;
    state.product += e.g * e.z;
  }
  __device__ void finish(const RowSums<T>& row) {
    g_mean = kCentred ? row.value / n : T(0);
    gz_mean = row.product / n;
  }
  template <int kWidth>
  __device__ void store(int64_t i, const Slope<T> (&elements)[kWidth]) const {
    Pack<T, kWidth> values, added;
    if (dsum) added = load_values<kWidth>(dsum + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      values.at[j] = T(rstd) * (elements[j].g - g_mean - elements[j].z * gz_mean);
      if (dsum) values.at[j] += added.at[j];
    }
    store_values<kWidth>(dx + i, values);
  }
};

template <class Stored, bool kIsCentred>
struct BackwardRows {
  using T = Compute<Stored>;
  using Element = Slope<T>;
  using State = RowSums<T>;
  static constexpr bool kCentred = false;
  int64_t count, n;
  LayerNormBackwardArgs args;

  __device__ BackwardRow<Stored, kIsCentred> at(int64_t row) const {
    const int64_t first = row * n;
    const auto of = [first](const void* data) { return data ? static_cast<const Stored*>(data) + first : nullptr; };
    return {of(args.dy),
            of(args.x),
            of(args.dsum),
            static_cast<Stored*>(args.dx) + first,
            static_cast<const T*>(args.weight),
            args.stats[2 * row],
            args.stats[2 * row + 1],
            T(n)};
  }
};

// ---------------------------------------------------------------------------------------- dw and db

// partials (parts, 2, n): the sums of dy z and of dy over the rows of a part.
template <class Stored>
__global__ void __launch_bounds__(kColumns* kStrips, 2)
    sum_columns(const __grid_constant__ LayerNormBackwardArgs args, int64_t part_rows, Compute<Stored>* partials) {
  using T = Compute<Stored>;
  __shared__ T products[kStrips][kColumns], values[kStrips][kColumns];
  const int64_t column = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t begin = int64_t(blockIdx.y) * part_rows;
  const int64_t end = column < args.n ? min(begin + part_rows, args.rows) : begin;
  const Stored *x = static_cast<const Stored*>(args.x), *dy = static_cast<const Stored*>(args.dy);
  T product = T(0), value = T(0);
  for (int64_t row = begin + threadIdx.y; row < end; row += kStrips) {
    const double mean = args.stats[2 * row], rstd = args.stats[2 * row + 1];
    const T centre = T(mean), rest = T(double(centre) - mean);
    const T slope = to_compute<T>(dy[row * args.n + column]);
    product += slope * (((to_compute<T>(x[row * args.n + column]) - centre) + rest) * T(rstd));
    value += slope;
  }
  products[threadIdx.y][threadIdx.x] = product;
  values[threadIdx.y][threadIdx.x] = value;
  block_sync();
  if (threadIdx.y != 0 || column >= args.n) return;
  for (int strip = 1; strip < kStrips; ++strip) {
    product += products[strip][threadIdx.x];
    value += values[strip][threadIdx.x];
  }
  partials[2 * int64_t(blockIdx.y) * args.n + column] = product;
  partials[(2 * int64_t(blockIdx.y) + 1) * args.n + column] = value;
}

template <class T>
__global__ void add_parts(const T* partials, int parts, int64_t n, T* dweight, T* dbias) {
  const int64_t column = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= n) return;
  double product = 0, value = 0;
  for (int part = 0; part < parts; ++part) {
    product += double(partials[2 * part * n + column]);
    value += double(partials[(2 * part + 1) * n + column]);
  }
  if (dweight) dweight[column] = T(product);
  if (dbias) dbias[column] = T(value);
}

template <class Stored>
void parameter_gradients(const LayerNormBackwardArgs& args) {
  using T = Compute<Stored>;
  const int64_t groups = (args.n + kColumns - 1) / kColumns, most = max(int64_t(1), kMaxBlocks / groups);
  const int64_t part_rows = max(kMinPart, (args.rows + most - 1) / most);
  const int64_t parts = (args.rows + part_rows - 1) / part_rows;
  const CudaScratch partials(size_t(parts * 2 * args.n) * sizeof(T));
  launch(sum_columns<Stored>, dim3(unsigned(groups), unsigned(parts)), dim3(kColumns, kStrips), 0, args, part_rows,
         partials.as<T>());
  launch(add_parts<T>, unsigned(blocks_for(args.n)), kBlockThreads, 0, partials.as<T>(), int(parts), args.n,
         static_cast<T*>(args.dweight), static_cast<T*>(args.dbias));
}

template <class Stored, bool kCentred>
void backward_of(const LayerNormBackwardArgs& args) {
  if (args.n == 0) return;
  const bool packs =
      rows_fit_packs<Stored>(args.n, {args.dy, args.x, args.dsum, args.dx}) && is_aligned(args.weight, 32);
  if (args.dx && args.rows > 0) map_rows<Stored>(BackwardRows<Stored, kCentred>{args.rows, args.n, args}, packs);
  if (args.dweight || args.dbias) parameter_gradients<Stored>(args);
}

// ------------------------------------------------------------------------------------------ launchers

void forward(const LayerNormArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    args.centred ? forward_of<Stored, true>(args) : forward_of<Stored, false>(args);
  });
}

void backward(const LayerNormBackwardArgs& args) {
  with_float_type(args.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    args.centred ? backward_of<Stored, true>(args) : backward_of<Stored, false>(args);
  });
}

}  // namespace

FASTNN_CUDA_KERNEL(layer_norm_forward, forward)
FASTNN_CUDA_KERNEL(layer_norm_backward, backward)

}  // namespace fastnn
