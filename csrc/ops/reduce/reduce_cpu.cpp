// Reductions on the CPU.
//
//   y[k] = finish(join over r of f(x[k, r]))     bytes: x once; arithmetic: 1 to ~25 operations an element
//
// By rows (the reduced axis is the contiguous one): a run of up to 2048 elements is joined in four
// vectors, then across their lanes. By columns (a kept axis is): blocks of 512 columns join row after
// row, 64 rows at a time. The runs and the groups of rows are joined in float64 for float32, so the
// error does not grow with the length. A range too long for one thread is cut into chunks; their
// results wait in `partials` and are joined in order by a second pass.
#include "ops/reduce/walk_cpu.h"
#include "simd/convert.h"
#include "simd/lanes.h"
#include "simd/math.h"

namespace fastnn {
namespace {

constexpr int64_t kRun = 2048;     // elements joined in the compute type
constexpr int64_t kGroup = 64;     // rows joined in the compute type
constexpr int64_t kGrain = 32768;  // elements of one parallel piece
constexpr int64_t kColumns = kRowChunk;
constexpr int64_t kPrefetchBytes = 4096;  // ahead: the hardware's prefetcher stops at the end of a page

template <class T>
struct WideOf {
  using type = T;
};
template <>
struct WideOf<float> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

// -------------------------------------------------------------- formulas, for scalars and for vectors

template <class V>
inline V splat(double value) {
  if constexpr (sizeof(V) == 8 || sizeof(V) == 4)
    return V(value);
  else
    return decltype(V{}[0] + V{}[0])(value) - V{};
}

struct Plain {
  template <class V>
  static V map(V x, V) {
    return x;
  }
};
struct Magnitude {
  template <class V>
  static V map(V x, V) {
    return x > V{} ? x : V{} - x;
  }
};
struct SquareOf {
  template <class V>
  static V map(V x, V) {
    return x * x;
  }
};
struct IsSet {
  template <class V>
  static V map(V x, V) {
    return x != V{} ? splat<V>(1) : V{};
  }
};
struct DeviationSquare {
  template <class V>
  static V map(V x, V center) {
    return (x - center) * (x - center);
  }
};

struct Sum {
  template <class V>
  static V join(V a, V b) {
    return a + b;
  }
  template <class T>
  static T identity() {
    return T(0);
  }
};
struct Product {
  template <class V>
  static V join(V a, V b) {
    return a * b;
  }
  template <class T>
  static T identity() {
    return T(1);
  }
};
// NaN wins: it is not equal to itself, and nothing compares larger than it.
struct Larger {
  template <class V>
  static V join(V a, V b) {
    return ((b > a) | (b != b)) ? b : a;
  }
  template <class T>
  static T identity() {
    return T(0.5) != T(0) ? T(-INFINITY) : T(INT64_MIN);
  }
};
struct Smaller {
  template <class V>
  static V join(V a, V b) {
    return ((b < a) | (b != b)) ? b : a;
  }
  template <class T>
  static T identity() {
    return T(0.5) != T(0) ? T(INFINITY) : T(INT64_MAX);
  }
};

// A transcendental f is applied to the loaded row first.
enum class Prepare { None, Pow, Exp };

template <class MapF, class JoinF, Prepare kPrepare = Prepare::None>
struct Formula {
  using Map = MapF;
  using Join = JoinF;
  static constexpr Prepare prepare = kPrepare;
};

// ------------------------------------------------------------------------------------------- loading

template <class T>
bool is_direct(const ReduceArgs& args, int64_t stride, Prepare prepare) {
  return prepare == Prepare::None && stride == 1 && args.x_dtype == args.compute;
}

// n elements of x from `offset`: in place, or converted (n <= kRowChunk) into the buffer.
template <class T>
const T* load(const ReduceArgs& args, int64_t offset, int64_t stride, int64_t n, bool direct, T* buffer) {
  if (direct) return static_cast<const T*>(args.x) + offset;
  const char* x = static_cast<const char*>(args.x) + offset * int64_t(item_size(args.x_dtype));
  FASTNN_LEVEL::load_row(buffer, x, args.x_dtype, stride, n);
  return buffer;
}

// `centers` has one center an element, or one for the row when `center_step` is 0.
template <Prepare prepare, class T>
void prepare_row(const ReduceArgs& args, T* row, const T* centers, int64_t center_step, int64_t n) {
  if constexpr (prepare == Prepare::Pow) {
    const T power = static_cast<T>(args.power);
    for (int64_t i = 0; i < n; ++i) row[i] = pow_(fabs_(row[i]), power);
  } else if constexpr (prepare == Prepare::Exp) {
    if (center_step) {
      for (int64_t i = 0; i < n; ++i) row[i] = exp_(row[i] - centers[i]);
    } else {
      const T center = *centers;
      for (int64_t i = 0; i < n; ++i) row[i] = exp_(row[i] - center);
    }
  }
}

// ------------------------------------------------------------------------------------------- storing

template <class F, class T>
T finish(const ReduceArgs& args, Wide<T> joined, T center) {
  if constexpr (T(0.5) != T(0)) {
    if (F::prepare == Prepare::Exp) return static_cast<T>(log_(joined) + Wide<T>(center));
    if (args.divisor != 1) joined /= static_cast<Wide<T>>(args.divisor);
    if (args.root == 2)
      joined = sqrt_(joined);
    else if (args.root != 1)
      joined = pow_(joined, static_cast<Wide<T>>(1 / args.root));
  }
  return static_cast<T>(joined);
}

template <class F, class T>
void store(const ReduceArgs& args, int64_t kept, Wide<T> joined) {
  const int64_t at = offset_of(kept, args.n_kept_axes, args.kept_shape, args.kept_y_strides);
  const T value = finish<F, T>(args, joined, args.center ? static_cast<const T*>(args.center)[at] : T(0));
  char* y = static_cast<char*>(args.y) + at * int64_t(item_size(args.y_dtype));
  FASTNN_LEVEL::store_row(y, args.y_dtype, 1, &value, 1);
}

// ------------------------------------------------------------------------------------------- by rows

// Joins lanes, halves first.
template <class Join, class T, int apart = kLanes<T> / 2>
T join_lanes(Values<T> values) {
  const Values<T> joined = Join::join(values, pick<T>(values, values, lane_numbers<T>() ^ Number<T>(apart)));
  if constexpr (apart > 1)
    return join_lanes<Join, T, apart / 2>(joined);
  else
    return joined[0];
}

// Joins a run: four vectors, then their lanes, then what does not fill a vector.
template <class F, class T>
T join_run(const T* x, int64_t n, T center) {
  using V = Values<T>;
  using Join = typename F::Join;
  constexpr int64_t lanes = kLanes<T>;
  T result = Join::template identity<T>();
  int64_t i = 0;
  if (n >= 4 * lanes) {
    const V centers = broadcast<T>(center);
    V joined[4];
    for (V& each : joined) each = broadcast<T>(result);
    for (; i + 4 * lanes <= n; i += 4 * lanes)
      for (int k = 0; k < 4; ++k) {
        __builtin_prefetch(reinterpret_cast<const char*>(x + i + k * lanes) + kPrefetchBytes);
        joined[k] = Join::join(joined[k], F::Map::map(Vec<T>::load(x + i + k * lanes).raw, centers));
      }
    result = join_lanes<Join, T>(Join::join(Join::join(joined[0], joined[1]), Join::join(joined[2], joined[3])));
  }
  for (; i < n; ++i) result = Join::join(result, F::Map::map(x[i], center));
  return result;
}

// Reduced positions [begin, end) of one kept position.
template <class F, class T>
Wide<T> join_range(const ReduceArgs& args, int64_t kept, int64_t begin, int64_t end) {
  alignas(64) T buffer[kRowChunk];
  const int last = args.n_reduced_axes - 1;
  const int64_t length = last < 0 ? 1 : args.reduced_shape[last];
  const int64_t stride = last < 0 ? 1 : args.reduced_x_strides[last];
  const bool direct = is_direct<T>(args, stride, F::prepare);
  const int64_t longest = direct ? kRun : kRowChunk;
  const int64_t base = offset_of(kept, args.n_kept_axes, args.kept_shape, args.kept_x_strides);
  T center = T(0);
  if (args.center)
    center =
        static_cast<const T*>(args.center)[offset_of(kept, args.n_kept_axes, args.kept_shape, args.kept_y_strides)];
  Wide<T> joined = F::Join::template identity<Wide<T>>();
  for (int64_t at = begin; at < end;) {
    const int64_t column = at % length;
    const int64_t row = base + offset_of(at / length, last, args.reduced_shape, args.reduced_x_strides);
    const int64_t n = min(min(length - column, end - at), longest);
    const T* x = load(args, row + column * stride, stride, n, direct, buffer);
    prepare_row<F::prepare>(args, buffer, &center, 0, n);
    joined = F::Join::join(joined, Wide<T>(join_run<F>(x, n, center)));
    at += n;
  }
  return joined;
}

template <class F, class T>
void reduce_rows(const ReduceArgs& args, int64_t n_chunks) {
  const int64_t unit = min(args.chunk, args.n_reduced);
  const int64_t grain = kGrain / (unit + 8) + 1;
  parallel_for(args.n_kept * n_chunks, grain, [&](int64_t first, int64_t past) {
    for (int64_t work = first; work < past; ++work) {
      const int64_t kept = work / n_chunks, chunk = work % n_chunks;
      const int64_t begin = chunk * args.chunk;
      const Wide<T> joined = join_range<F, T>(args, kept, begin, min(begin + args.chunk, args.n_reduced));
      if (args.partials)
        static_cast<Wide<T>*>(args.partials)[chunk * args.n_kept + kept] = joined;
      else
        store<F, T>(args, kept, joined);
    }
  });
}

// ---------------------------------------------------------------------------------------- by columns

template <class F, class T>
void join_row(T* __restrict joined, const T* __restrict x, const T* __restrict centers, int64_t n) {
  for (int64_t i = 0; i < n; ++i) joined[i] = F::Join::join(joined[i], F::Map::map(x[i], centers[i]));
}

// A block of `n` columns from the kept position `kept`, all in one innermost kept row.
template <class F, class T>
struct ColumnBlock {
  alignas(64) T group[kColumns];
  alignas(64) T buffer[kColumns];
  alignas(64) T centers[kColumns];
  alignas(64) Wide<T> joined[kColumns];

  void load_centers(const ReduceArgs& args, int64_t y_offset, int64_t y_stride, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      centers[i] = args.center ? static_cast<const T*>(args.center)[y_offset + i * y_stride] : T(0);
  }

  void join_rows(const ReduceArgs& args, int64_t base, int64_t stride, int64_t begin, int64_t end, int64_t n) {
    const bool direct = is_direct<T>(args, stride, F::prepare);
    for (int64_t i = 0; i < n; ++i) joined[i] = F::Join::template identity<Wide<T>>();
    for (int64_t start = begin; start < end; start += kGroup) {
      for (int64_t i = 0; i < n; ++i) group[i] = F::Join::template identity<T>();
      for (int64_t r = start; r < min(start + kGroup, end); ++r) {
        const int64_t row = base + offset_of(r, args.n_reduced_axes, args.reduced_shape, args.reduced_x_strides);
        const T* x = load(args, row, stride, n, direct, buffer);
        prepare_row<F::prepare>(args, buffer, centers, 1, n);
        join_row<F>(group, x, centers, n);
      }
      for (int64_t i = 0; i < n; ++i) joined[i] = F::Join::join(joined[i], Wide<T>(group[i]));
    }
  }

  void store_columns(const ReduceArgs& args, int64_t y_offset, int64_t y_stride, int64_t n) {
    for (int64_t i = 0; i < n; ++i) group[i] = finish<F, T>(args, joined[i], centers[i]);
    char* y = static_cast<char*>(args.y) + y_offset * int64_t(item_size(args.y_dtype));
    FASTNN_LEVEL::store_row(y, args.y_dtype, y_stride, group, n);
  }
};

template <class F, class T>
void reduce_columns(const ReduceArgs& args, int64_t n_chunks) {
  const int last = args.n_kept_axes - 1;
  const int64_t width = args.kept_shape[last];
  const int64_t blocks = (width + kColumns - 1) / kColumns;
  const int64_t units = args.n_kept / width * blocks * n_chunks;
  const int64_t unit = min(args.chunk, args.n_reduced) * min(width, kColumns);
  parallel_for(units, kGrain / (unit + 64) + 1, [&](int64_t first, int64_t past) {
    ColumnBlock<F, T> block;
    for (int64_t work = first; work < past; ++work) {
      // Neighbouring blocks follow each other: what the prefetcher read beyond a row's end is used.
      const int64_t column = work % blocks * kColumns, chunk = work / blocks % n_chunks;
      const int64_t outer = work / blocks / n_chunks, n = min(kColumns, width - column);
      const int64_t x_offset = offset_of(outer, last, args.kept_shape, args.kept_x_strides);
      const int64_t y_stride = args.kept_y_strides[last], x_stride = args.kept_x_strides[last];
      const int64_t y_offset = offset_of(outer, last, args.kept_shape, args.kept_y_strides) + column * y_stride;
      const int64_t begin = chunk * args.chunk;
      block.load_centers(args, y_offset, y_stride, n);
      block.join_rows(args, x_offset + column * x_stride, x_stride, begin, min(begin + args.chunk, args.n_reduced), n);
      if (!args.partials) {
        block.store_columns(args, y_offset, y_stride, n);
        continue;
      }
      Wide<T>* partials = static_cast<Wide<T>*>(args.partials) + chunk * args.n_kept + outer * width + column;
      for (int64_t i = 0; i < n; ++i) partials[i] = block.joined[i];
    }
  });
}

// ---------------------------------------------------------------------------------------- launchers

// A block of kept positions joins chunk after chunk.
template <class F, class T>
void join_partials(const ReduceArgs& args, int64_t n_chunks) {
  const Wide<T>* partials = static_cast<const Wide<T>*>(args.partials);
  parallel_for(ceil_div(args.n_kept, kColumns), kGrain / (n_chunks * kColumns) + 1, [&](int64_t first, int64_t past) {
    alignas(64) Wide<T> joined[kColumns];
    for (int64_t begin = first * kColumns; begin < min(past * kColumns, args.n_kept); begin += kColumns) {
      const int64_t n = min(kColumns, args.n_kept - begin);
      for (int64_t i = 0; i < n; ++i) joined[i] = partials[begin + i];
      for (int64_t chunk = 1; chunk < n_chunks; ++chunk) {
        const Wide<T>* of_chunk = partials + chunk * args.n_kept + begin;
        for (int64_t i = 0; i < n; ++i) joined[i] = F::Join::join(joined[i], of_chunk[i]);
      }
      for (int64_t i = 0; i < n; ++i) store<F, T>(args, begin + i, joined[i]);
    }
  });
}

template <class F, class T>
void reduce_with(const ReduceArgs& args) {
  const int64_t n_chunks = args.partials ? (args.n_reduced + args.chunk - 1) / args.chunk : 1;
  if (args.by_rows)
    reduce_rows<F, T>(args, n_chunks);
  else
    reduce_columns<F, T>(args, n_chunks);
  if (args.partials) join_partials<F, T>(args, n_chunks);
}

template <class T>
void reduce_typed(const ReduceArgs& args) {
  switch (args.op) {
    case ReduceOp::Sum: return reduce_with<Formula<Plain, Sum>, T>(args);
    case ReduceOp::Prod: return reduce_with<Formula<Plain, Product>, T>(args);
    case ReduceOp::Max: return reduce_with<Formula<Plain, Larger>, T>(args);
    case ReduceOp::Min: return reduce_with<Formula<Plain, Smaller>, T>(args);
    case ReduceOp::Any: return reduce_with<Formula<IsSet, Larger>, T>(args);
    case ReduceOp::All: return reduce_with<Formula<IsSet, Smaller>, T>(args);
    default: break;
  }
  if constexpr (T(0.5) != T(0)) {
    switch (args.op) {
      case ReduceOp::AbsSum: return reduce_with<Formula<Magnitude, Sum>, T>(args);
      case ReduceOp::AbsMax: return reduce_with<Formula<Magnitude, Larger>, T>(args);
      case ReduceOp::AbsMin: return reduce_with<Formula<Magnitude, Smaller>, T>(args);
      case ReduceOp::SquareSum: return reduce_with<Formula<SquareOf, Sum>, T>(args);
      case ReduceOp::PowSum: return reduce_with<Formula<Plain, Sum, Prepare::Pow>, T>(args);
      case ReduceOp::DeviationSquareSum: return reduce_with<Formula<DeviationSquare, Sum>, T>(args);
      case ReduceOp::ExpSum: return reduce_with<Formula<Plain, Sum, Prepare::Exp>, T>(args);
      default: break;
    }
  }
}

void reduce(const ReduceArgs& args) {
  if (args.compute == DType::Float32) return reduce_typed<float>(args);
  if (args.compute == DType::Float64) return reduce_typed<double>(args);
  reduce_typed<int64_t>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(reduce_values, reduce)

}  // namespace fastnn
