// Reductions on CUDA: see reduce.h for the formulas.
//
// bytes: x once; 16-bit floats at 4.8 TB/s are 2.4 T elements/s, 12 instructions each.
//
// Where the reduced axis is the dense one, a team of 4 to 256 threads takes a kept position ("row") in packs of 16
// bytes. Else threads take packs of neighbouring kept positions ("columns"), and the strips of a block take turns along
// the reduced axes. Where there are too few rows or columns to fill the GPU, or too many reduced positions for sums in
// float32, these are cut into chunks, whose results a second kernel joins.
//
// A thread joins in the compute type, at most 512 packs; threads, strips and chunks are joined in float64 (int64), in
// an order that the problem fixes. A kernel switches on the operation once a pack, the same way for the whole grid.
#include "ops/reduce/reduce.h"

#include <algorithm>

#include "core/cuda_index.h"
#include "simd/element_cuda.h"
#include "simd/math.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kLongest = 512;   // packs that a thread joins in the compute type
constexpr int64_t kBusy = 1 << 18;  // threads that keep a large GPU busy

// ----------------------------------------------------------------------------------------- what is read

// The kept and the reduced positions, whose index arithmetic is prepared.
struct Walk : ReduceArgs {
  StridedWalk kept, reduced;

  explicit Walk(const ReduceArgs& args) : ReduceArgs(args), kept(over_kept(args)), reduced(over_reduced(args)) {}
  __device__ int64_t kept_x(int64_t position) const { return kept.offset(position, kept_x_strides); }
  __device__ int64_t kept_y(int64_t position) const { return kept.offset(position, kept_y_strides); }
  __device__ int64_t reduced_x(int64_t position) const { return reduced.offset(position, reduced_x_strides); }

 private:
  static StridedWalk over_kept(const ReduceArgs& args) {
    const int64_t* const strides[] = {args.kept_x_strides, args.kept_y_strides};
    return {args.n_kept_axes, args.kept_shape, strides};
  }
  static StridedWalk over_reduced(const ReduceArgs& args) {
    const int64_t* const strides[] = {args.reduced_x_strides};
    return {args.n_reduced_axes, args.reduced_shape, strides};
  }
};

// Bool and integers: their dtype is looked at element by element.
struct AnyInteger {};

template <class Stored>
struct Reading {
  using T = Compute<Stored>;
  using Wide = double;
  static constexpr int kPack = kPackOf16<Stored>;

  template <int kWidth>
  static __device__ void load(const Walk& walk, int64_t offset, T (&x)[kWidth]) {
    load_elements(static_cast<const Stored*>(walk.x) + offset, x);
  }
};

template <>
struct Reading<AnyInteger> {
  using T = int64_t;
  using Wide = int64_t;
  static constexpr int kPack = 1;

  template <int kWidth>
  static __device__ void load(const Walk& walk, int64_t offset, T (&x)[kWidth]) {
    x[0] = load_element<int64_t>(walk.x, walk.x_dtype, offset);
  }
};

// --------------------------------------------------------------------------------------------- formulas

// NaN wins: it is not equal to itself, and nothing compares larger than it.
template <class T>
__device__ T larger(T a, T b) {
  return b > a || b != b ? b : a;
}
template <class T>
__device__ T smaller(T a, T b) {
  return b < a || b != b ? b : a;
}

// reduce_values. State is what a thread joins into, Wide what is joined of threads.
template <class Stored>
struct Values {
  using Source = Reading<Stored>;
  using T = typename Source::T;
  using State = T;
  using Wide = typename Source::Wide;
  static constexpr int kAhead = std::is_same_v<T, float> ? 4 : 1;  // packs that are read before they are joined
  Walk walk;

  template <class Any>
  __device__ Any identity() const {
    switch (walk.op) {
      case ReduceOp::Prod: return Any(1);
      case ReduceOp::Max:
      case ReduceOp::AbsMax:
      case ReduceOp::Any: return is_float_type<Any> ? Any(-INFINITY) : Any(INT64_MIN);
      case ReduceOp::Min:
      case ReduceOp::AbsMin:
      case ReduceOp::All: return is_float_type<Any> ? Any(INFINITY) : Any(INT64_MAX);
      default: return Any(0);
    }
  }

  __device__ T center(int64_t kept) const {
    return walk.center ? static_cast<const T*>(walk.center)[walk.kept_y(kept)] : T(0);
  }

  template <int kWidth>
  __device__ void add(State (&joined)[kWidth], const T (&x)[kWidth], const T (&center)[kWidth], int64_t,
                      int64_t) const {
    switch (walk.op) {
      case ReduceOp::Sum: return each<kWidth>([&](int j) { joined[j] += x[j]; });
      case ReduceOp::Prod: return each<kWidth>([&](int j) { joined[j] *= x[j]; });
      case ReduceOp::Max: return each<kWidth>([&](int j) { joined[j] = larger(joined[j], x[j]); });
      case ReduceOp::Min: return each<kWidth>([&](int j) { joined[j] = smaller(joined[j], x[j]); });
      case ReduceOp::Any: return each<kWidth>([&](int j) { joined[j] = larger(joined[j], T(x[j] != T(0))); });
      case ReduceOp::All: return each<kWidth>([&](int j) { joined[j] = smaller(joined[j], T(x[j] != T(0))); });
      default: break;
    }
    if constexpr (is_float_type<T>) {
      switch (walk.op) {
        case ReduceOp::AbsSum: return each<kWidth>([&](int j) { joined[j] += fabs_(x[j]); });
        case ReduceOp::AbsMax: return each<kWidth>([&](int j) { joined[j] = larger(joined[j], fabs_(x[j])); });
        case ReduceOp::AbsMin: return each<kWidth>([&](int j) { joined[j] = smaller(joined[j], fabs_(x[j])); });
        case ReduceOp::SquareSum: return each<kWidth>([&](int j) { joined[j] += x[j] * x[j]; });
        case ReduceOp::PowSum: return each<kWidth>([&](int j) { joined[j] += pow_(fabs_(x[j]), T(walk.power)); });
        case ReduceOp::ExpSum: return each<kWidth>([&](int j) { joined[j] += exp_(x[j] - center[j]); });
        default: break;
      }
      each<kWidth>([&](int j) { joined[j] += (x[j] - center[j]) * (x[j] - center[j]); });
    }
  }

  __device__ Wide merge(Wide a, Wide b) const {
    switch (walk.op) {
      case ReduceOp::Prod: return a * b;
      case ReduceOp::Max:
      case ReduceOp::AbsMax:
      case ReduceOp::Any: return larger(a, b);
      case ReduceOp::Min:
      case ReduceOp::AbsMin:
      case ReduceOp::All: return smaller(a, b);
      default: return a + b;
    }
  }

  __device__ void finish(int64_t kept, Wide joined) const {
    if constexpr (is_float_type<T>) {
      if (walk.op == ReduceOp::ExpSum) {
        joined = log_(joined) + Wide(center(kept));
      } else {
        if (walk.divisor != 1) joined /= walk.divisor;
        if (walk.root == 2)
          joined = sqrt_(joined);
        else if (walk.root != 1)
          joined = pow_(joined, 1 / walk.root);
      }
    }
    store_element(walk.y, walk.y_dtype, walk.kept_y(kept), T(joined));
  }

 private:
  template <int kWidth, class Visit>
  static __device__ void each(const Visit& visit) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) visit(j);
  }
};

// reduce_find_first: the smallest reduced position whose element is the one that was found.
template <class Stored>
struct First {
  using Source = Reading<Stored>;
  using T = typename Source::T;
  using State = int64_t;
  using Wide = int64_t;
  static constexpr int kAhead = 1;
  Walk walk;
  int64_t* index;

  template <class Any>
  __device__ Any identity() const {
    return INT64_MAX;
  }
  __device__ T center(int64_t kept) const { return load_element<T>(walk.y, walk.y_dtype, walk.kept_y(kept)); }

  template <int kWidth>
  __device__ void add(State (&joined)[kWidth], const T (&x)[kWidth], const T (&center)[kWidth], int64_t reduced,
                      int64_t step) const {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const bool same = x[j] == center[j] || (x[j] != x[j] && center[j] != center[j]);
      if (same) joined[j] = smaller(joined[j], reduced + j * step);
    }
  }
  __device__ Wide merge(Wide a, Wide b) const { return smaller(a, b); }
  __device__ void finish(int64_t kept, Wide joined) const {
    index[walk.kept_y(kept)] = joined == INT64_MAX ? 0 : joined;
  }
};

// ------------------------------------------------------------------------------------------------ walks

// How the reduced positions are cut; one chunk needs no partial results.
struct Chunks {
  int64_t length, count;
  void* partials;  // (count, n_kept) of Wide
};

template <class Reducer>
__device__ void put(const Reducer& reducer, const Chunks& chunks, int64_t kept, int64_t chunk,
                    typename Reducer::Wide joined) {
  if (chunks.partials)
    static_cast<typename Reducer::Wide*>(chunks.partials)[chunk * reducer.walk.n_kept + kept] = joined;
  else
    reducer.finish(kept, joined);
}

// Of teams of neighbouring threads, a power of two up to a warp or the whole block.
template <class Reducer>
__device__ typename Reducer::Wide join_team(const Reducer& reducer, typename Reducer::Wide joined, int team) {
  __shared__ typename Reducer::Wide partial[kThreads / kWarp];
  for (int step = smaller(team, kWarp) / 2; step > 0; step /= 2)
    joined = reducer.merge(joined, shuffle_xor(joined, step));
  if (team <= kWarp) return joined;
  if (lane_id() == 0) partial[warp_id()] = joined;
  block_sync();
  joined = partial[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) joined = reducer.merge(joined, partial[warp]);
  return joined;
}

// Two blocks a multiprocessor: left to choose, ptxas spills to fit in a third.
template <class Reducer, int kWidth>
__global__ void __launch_bounds__(kThreads, 2)
    reduce_rows(const __grid_constant__ Reducer reducer, const __grid_constant__ Chunks chunks, int team) {
  using T = typename Reducer::T;
  using Wide = typename Reducer::Wide;
  constexpr int kAhead = Reducer::kAhead;
  const Walk& walk = reducer.walk;
  const int64_t unit = int64_t(blockIdx.x) * (kThreads / team) + threadIdx.x / unsigned(team);
  const int lane = int(threadIdx.x) & (team - 1);
  const int64_t chunk = unit / walk.n_kept, kept = unit - chunk * walk.n_kept;
  Wide whole = reducer.template identity<Wide>();
  if (chunk < chunks.count) {
    typename Reducer::State joined[kWidth];
    T x[kAhead][kWidth], center[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      joined[j] = reducer.template identity<typename Reducer::State>();
      center[j] = reducer.center(kept);
    }
    const int64_t row = walk.kept_x(kept), begin = chunk * chunks.length;
    const int64_t end = smaller(begin + chunks.length, walk.n_reduced);
    const int64_t step = int64_t(team) * kWidth;
    for (int64_t at = begin + lane * kWidth; at < end; at += kAhead * step) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (at + k * step < end)
          Reducer::Source::template load<kWidth>(walk, row + walk.reduced_x(at + k * step), x[k]);
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (at + k * step < end) reducer.template add<kWidth>(joined, x[k], center, at + k * step, 1);
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) whole = reducer.merge(whole, Wide(joined[j]));
  }
  whole = join_team(reducer, whole, team);
  if (lane == 0 && chunk < chunks.count) put(reducer, chunks, kept, chunk, whole);
}

// `lanes` neighbouring packs of columns side by side, in kThreads / lanes strips.
template <class Reducer, int kWidth>
__global__ void __launch_bounds__(kThreads)
    reduce_columns(const __grid_constant__ Reducer reducer, const __grid_constant__ Chunks chunks, int lanes) {
  using T = typename Reducer::T;
  using Wide = typename Reducer::Wide;
  constexpr int kAhead = Reducer::kAhead;
  __shared__ Wide shared[kThreads * kWidth];
  const Walk& walk = reducer.walk;
  const int lane = int(threadIdx.x) & (lanes - 1), strip = int(threadIdx.x) / lanes, strips = kThreads / lanes;
  const int64_t blocks = (walk.n_kept + lanes * kWidth - 1) / (lanes * kWidth);
  const int64_t chunk = blockIdx.x / blocks;
  const int64_t kept = ((blockIdx.x - chunk * blocks) * lanes + lane) * kWidth;
  if (kept < walk.n_kept) {
    typename Reducer::State joined[kWidth];
    T x[kAhead][kWidth], center[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      joined[j] = reducer.template identity<typename Reducer::State>();
      center[j] = reducer.center(kept + j);
    }
    const int64_t column = walk.kept_x(kept), begin = chunk * chunks.length;
    const int64_t end = smaller(begin + chunks.length, walk.n_reduced);
    for (int64_t at = begin + strip; at < end; at += kAhead * strips) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (at + k * strips < end)
          Reducer::Source::template load<kWidth>(walk, column + walk.reduced_x(at + k * strips), x[k]);
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (at + k * strips < end) reducer.template add<kWidth>(joined, x[k], center, at + k * strips, 0);
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) shared[j * kThreads + threadIdx.x] = Wide(joined[j]);
  }
  for (int half = strips / 2; half > 0; half /= 2) {
    block_sync();
    if (strip < half && kept < walk.n_kept)
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        Wide& mine = shared[j * kThreads + threadIdx.x];
        mine = reducer.merge(mine, shared[j * kThreads + threadIdx.x + half * lanes]);
      }
  }
  if (strip == 0 && kept < walk.n_kept)
#pragma unroll
    for (int j = 0; j < kWidth; ++j) put(reducer, chunks, kept + j, chunk, shared[j * kThreads + threadIdx.x]);
}

// A warp joins the chunks of a kept position.
template <class Reducer>
__global__ void __launch_bounds__(kThreads)
    join_chunks(const __grid_constant__ Reducer reducer, const __grid_constant__ Chunks chunks) {
  using Wide = typename Reducer::Wide;
  const int64_t n_kept = reducer.walk.n_kept, kept = int64_t(blockIdx.x) * (kThreads / kWarp) + warp_id();
  const Wide* partials = static_cast<const Wide*>(chunks.partials);
  Wide whole = reducer.template identity<Wide>();
  if (kept < n_kept)
    for (int64_t chunk = lane_id(); chunk < chunks.count; chunk += kWarp)
      whole = reducer.merge(whole, partials[chunk * n_kept + kept]);
  whole = join_team(reducer, whole, kWarp);
  if (lane_id() == 0 && kept < n_kept) reducer.finish(kept, whole);
}

// -------------------------------------------------------------------------------------------- launchers

int64_t quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The dense axis of x decides; threads of columns that are apart would each fetch a line of 128 bytes.
bool takes_rows(const ReduceArgs& walk) {
  if (walk.n_kept_axes == 0 || walk.n_reduced_axes == 0) return walk.n_kept_axes == 0;
  return std::abs(walk.reduced_x_strides[walk.n_reduced_axes - 1]) <=
         std::abs(walk.kept_x_strides[walk.n_kept_axes - 1]);
}

// Is every pack of `width` elements along the last of the dense axes one of x's, and aligned?
bool fits_packs(const ReduceArgs& walk, bool rows, int64_t width) {
  const int last = (rows ? walk.n_reduced_axes : walk.n_kept_axes) - 1;
  if (last < 0 || (rows ? walk.reduced_x_strides : walk.kept_x_strides)[last] != 1) return false;
  if ((rows ? walk.reduced_shape : walk.kept_shape)[last] % width != 0 || !is_aligned(walk.x, 16)) return false;
  bool fits = true;
  for (int i = 0; i < walk.n_reduced_axes; ++i) fits &= (rows && i == last) || walk.reduced_x_strides[i] % width == 0;
  for (int i = 0; i < walk.n_kept_axes; ++i) fits &= (!rows && i == last) || walk.kept_x_strides[i] % width == 0;
  return fits;
}

int power_of_two(int64_t at_least, int most) {
  int power = 1;
  while (power < at_least && power < most) power *= 2;
  return power;
}

// `units` teams or blocks of one chunk, whose `threads` take turns along the reduced positions, `pack` at a time.
Chunks cut(const ReduceArgs& walk, int64_t units, int64_t threads, int64_t pack, int64_t unit_threads) {
  const int64_t turn = threads * pack;
  const int64_t wanted = std::min(kBusy / (units * unit_threads), walk.n_reduced / (16 * turn));
  const int64_t count = std::max({wanted, quotient(walk.n_reduced, kLongest * turn), int64_t(1)});
  const int64_t length = std::max(quotient(quotient(walk.n_reduced, count), turn), int64_t(1)) * turn;
  return {length, std::max(quotient(walk.n_reduced, length), int64_t(1)), nullptr};
}

template <class Reducer, int kWidth>
void reduce_packs(const Reducer& reducer, bool rows) {
  using Wide = typename Reducer::Wide;
  const ReduceArgs& walk = reducer.walk;
  const int64_t packs = quotient(walk.n_reduced, kWidth);
  const bool few = walk.n_kept * kWarp < kBusy;  // too few for warps: a block each
  const int team = packs > (few ? 8 : 64) * kWarp ? kThreads : power_of_two(packs, kWarp);
  const int lanes = power_of_two(quotient(walk.n_kept, kWidth), kWarp);
  const int64_t blocks = quotient(walk.n_kept, int64_t(lanes) * kWidth);
  Chunks chunks = rows ? cut(walk, walk.n_kept, team, kWidth, team) : cut(walk, blocks, kThreads / lanes, 1, kThreads);
  CudaScratch scratch(chunks.count > 1 ? size_t(chunks.count) * size_t(walk.n_kept) * sizeof(Wide) : 0);
  chunks.partials = chunks.count > 1 ? scratch.as<void>() : nullptr;
  if (rows) {
    const int64_t grid = quotient(walk.n_kept * chunks.count, kThreads / team);
    launch(reduce_rows<Reducer, kWidth>, unsigned(grid), kThreads, 0, reducer, chunks, team);
  } else {
    launch(reduce_columns<Reducer, kWidth>, unsigned(blocks * chunks.count), kThreads, 0, reducer, chunks, lanes);
  }
  if (chunks.partials)
    launch(join_chunks<Reducer>, unsigned(quotient(walk.n_kept, kThreads / kWarp)), kThreads, 0, reducer, chunks);
}

template <class Reducer>
void reduce_with(const Reducer& reducer) {
  constexpr int kPack = Reducer::Source::kPack;
  const bool rows = takes_rows(reducer.walk);
  fits_packs(reducer.walk, rows, kPack) ? reduce_packs<Reducer, kPack>(reducer, rows)
                                        : reduce_packs<Reducer, 1>(reducer, rows);
}

void reduce(const ReduceArgs& args) {
  if (args.compute == DType::Int64) return reduce_with(Values<AnyInteger>{Walk(args)});
  with_float_type(args.x_dtype, [&](auto tag) { reduce_with(Values<typename decltype(tag)::type>{Walk(args)}); });
}

void find_first(const FindFirstArgs& args) {
  if (args.walk.compute == DType::Int64) return reduce_with(First<AnyInteger>{Walk(args.walk), args.index});
  with_float_type(args.walk.x_dtype,
                  [&](auto tag) { reduce_with(First<typename decltype(tag)::type>{Walk(args.walk), args.index}); });
}

}  // namespace

FASTNN_CUDA_KERNEL(reduce_values, reduce)
FASTNN_CUDA_KERNEL(reduce_find_first, find_first)

}  // namespace fastnn
