// Layer and RMS normalization on the CPU: norm.h has the formulas.
//
// A row stays in L1 or L2 while it is summed for its centre, summed around it (moments_cpu.h), and written. Short rows
// take each step in groups, so that one's sums are known while another's are added up.
//
// Backward, the rows are cut into parts of a size that the problem fixes. Four rows at a time are summed, give dx, and
// are added to the part's sums for dw and db; sums of float32 are carried over to float64 after every kRowBlock
// elements and every kMaxRows rows. The parts are added up in their order.
//
// bytes, at the least: forward x and y once, backward dy, x and dx once.
#include "ops/norm/moments_cpu.h"
#include "ops/norm/norm.h"
#include "simd/stream.h"

namespace fastnn {
namespace {

constexpr int64_t kPart = 16384;  // elements of a chunk
constexpr int64_t kMaxParts = 64;
constexpr int64_t kMaxRows = 64;  // rows summed in the compute type
constexpr int64_t kGroup = 4;     // rows of a group

// ------------------------------------------------------------------------------------------- forward

template <class Stored>
void add_rows(const Stored* a, const Stored* b, Stored* sum, int64_t n) {
  using T = Compute<Stored>;
  for_each_register<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    store_values<Stored>(sum + i, load_values<Stored>(a + i, count) + load_values<Stored>(b + i, count), count);
  });
}

// y = (x - centre) scale + offset, then w and b.
template <class Stored, bool kStreamed>
void write_y(const Stored* x, Stored* y, const Compute<Stored>* weight, const Compute<Stored>* bias, int64_t n,
             double centre, double scale, double offset) {
  using T = Compute<Stored>;
  const Values<T> centres = broadcast<T>(T(centre)), scales = broadcast<T>(T(scale)), offsets = broadcast<T>(T(offset));
  const auto write = [&](auto weighted, auto biased) FASTNN_INLINED {
    write_row<kStreamed>(y, n, [&](int64_t i, int64_t count) FASTNN_INLINED {
      Values<T> z = (load_values<Stored>(x + i, count) - centres) * scales + offsets;
      if constexpr (weighted.value) z *= load_values<T>(weight + i, count);
      if constexpr (biased.value) z += load_values<T>(bias + i, count);
      return z;
    });
  };
  if (bias && weight) return write(Constant<1>(), Constant<1>());
  if (weight) return write(Constant<1>(), Constant<0>());
  if (bias) return write(Constant<0>(), Constant<1>());
  write(Constant<0>(), Constant<0>());
}

template <class Stored, bool kCentred, bool kStreamed>
void forward_group(const LayerNormArgs& args, int64_t first, int64_t rows) {
  using T = Compute<Stored>;
  const int64_t n = args.n;
  const Stored* x = static_cast<const Stored*>(args.x) + first * n;
  if (args.residual) {
    Stored* sum = static_cast<Stored*>(args.sum) + first * n;
    add_rows(x, static_cast<const Stored*>(args.residual) + first * n, sum, rows * n);
    x = sum;
  }
  T centres[kGroup] = {};
  Sums sums[kGroup];
  for (int64_t k = 0; kCentred && k < rows; ++k) centres[k] = centre_of(x + k * n, n);
  for (int64_t k = 0; k < rows; ++k) sums[k] = moments<Stored, kCentred>(x + k * n, n, centres[k]);
  for (int64_t k = 0; k < rows; ++k) {
    const Spread spread(sums[k], n, args.eps);
    args.stats[2 * (first + k)] = double(centres[k]) + spread.shift;
    args.stats[2 * (first + k) + 1] = spread.rstd;
    write_y<Stored, kStreamed>(x + k * n, static_cast<Stored*>(args.y) + (first + k) * n,
                               static_cast<const T*>(args.weight), static_cast<const T*>(args.bias), n,
                               double(centres[k]), spread.rstd, -spread.shift * spread.rstd);
  }
}

// Rows that go through each step together, so that one's sums are known while another's are added up.
inline int64_t group_rows(int64_t n) { return n <= kRowBlock / kGroup ? kGroup : 1; }

template <class Stored, bool kCentred>
void forward_stored(const LayerNormArgs& args) {
  const int64_t group = group_rows(args.n);
  parallel_for(args.rows, ceil_div(kPart, max(args.n, 1)), [&](int64_t begin, int64_t end) {
    with_streaming(streams_rows<Stored>(args.rows, args.n), [&](auto streamed) {
      for (int64_t row = begin; row < end; row += group)
        forward_group<Stored, kCentred, streamed.value>(args, row, min(group, end - row));
    });
  });
}

// ------------------------------------------------------------------------------------------ backward

// dx of a row is g slope + d d_slope + offset with g = dy w, d = x - centre; z is d rstd + shift.
template <class T>
struct RowLine {
  T centre, slope, d_slope, offset, rstd, shift;
};

template <class Stored, bool kCentred>
RowLine<Compute<Stored>> row_line(const LayerNormBackwardArgs& args, int64_t row) {
  using T = Compute<Stored>;
  const Stored* x = static_cast<const Stored*>(args.x) + row * args.n;
  const Stored* dy = static_cast<const Stored*>(args.dy) + row * args.n;
  const T* weight = static_cast<const T*>(args.weight);
  const double mean = args.stats[2 * row], rstd = args.stats[2 * row + 1];
  const T centre = T(mean);
  const double rest = double(centre) - mean;  // x - mean = d + rest
  RowLine<T> line{centre, T(rstd), T(0), T(0), T(rstd), T(rest * rstd)};
  if (!args.dx) return line;
  const auto sum = [&](auto weighted) FASTNN_INLINED {
    return fold_row<T>(args.n, [&](int64_t i, int64_t count, Values<T>& g_sum, Values<T>& gd_sum) FASTNN_INLINED {
      Values<T> g = load_values<Stored>(dy + i, count);
      if constexpr (weighted.value) g *= load_values<T>(weight + i, count);
      if (kCentred) g_sum += g;
      gd_sum += g * (load_values<Stored>(x + i, count) - broadcast<T>(centre));
    });
  };
  const Sums sums = weight ? sum(Constant<1>()) : sum(Constant<0>());
  const double g_mean = sums.first / double(args.n);
  const double gz_mean = rstd * (sums.second + rest * sums.first) / double(args.n);
  line.d_slope = T(-rstd * rstd * gz_mean);
  line.offset = T(-rstd * g_mean - rest * rstd * rstd * gz_mean);
  return line;
}

template <class Stored, bool kStreamed>
void write_dx(const LayerNormBackwardArgs& args, int64_t row, const RowLine<Compute<Stored>>& line) {
  using T = Compute<Stored>;
  const Stored* x = static_cast<const Stored*>(args.x) + row * args.n;
  const Stored* dy = static_cast<const Stored*>(args.dy) + row * args.n;
  const Stored* dsum = args.dsum ? static_cast<const Stored*>(args.dsum) + row * args.n : nullptr;
  const T* weight = static_cast<const T*>(args.weight);
  Stored* dx = static_cast<Stored*>(args.dx) + row * args.n;
  const Values<T> centre = broadcast<T>(line.centre), slope = broadcast<T>(line.slope);
  const Values<T> d_slope = broadcast<T>(line.d_slope), offset = broadcast<T>(line.offset);
  const auto write = [&](auto weighted, auto summed) FASTNN_INLINED {
    write_row<kStreamed>(dx, args.n, [&](int64_t i, int64_t count) FASTNN_INLINED {
      Values<T> g = load_values<Stored>(dy + i, count) * slope;
      if constexpr (weighted.value) g *= load_values<T>(weight + i, count);
      Values<T> value = (load_values<Stored>(x + i, count) - centre) * d_slope + (g + offset);
      if constexpr (summed.value) value += load_values<Stored>(dsum + i, count);
      return value;
    });
  };
  if (weight && dsum) return write(Constant<1>(), Constant<1>());
  if (weight) return write(Constant<1>(), Constant<0>());
  if (dsum) return write(Constant<0>(), Constant<1>());
  write(Constant<0>(), Constant<0>());
}

// Adds dy z and dy of up to kGroup rows to dw and db.
template <class Stored>
void add_parameter_sums(const LayerNormBackwardArgs& args, int64_t row, int64_t rows,
                        const RowLine<Compute<Stored>>* lines, Compute<Stored>* dweight, Compute<Stored>* dbias) {
  using T = Compute<Stored>;
  const Stored* x = static_cast<const Stored*>(args.x) + row * args.n;
  const Stored* dy = static_cast<const Stored*>(args.dy) + row * args.n;
  const auto add = [&](auto group) FASTNN_INLINED {
    for_each_register<T>(args.n, [&](int64_t i, int64_t count) FASTNN_INLINED {
      Values<T> products{}, values{};
#pragma GCC unroll 4
      for (int64_t k = 0; k < group.value; ++k) {
        const Values<T> d = load_values<Stored>(x + k * args.n + i, count) - broadcast<T>(lines[k].centre);
        const Values<T> gradient = load_values<Stored>(dy + k * args.n + i, count);
        products += gradient * (d * broadcast<T>(lines[k].rstd) + broadcast<T>(lines[k].shift));
        values += gradient;
      }
      store_values<T>(dweight + i, load_values<T>(dweight + i, count) + products, count);
      store_values<T>(dbias + i, load_values<T>(dbias + i, count) + values, count);
    });
  };
  if (rows == kGroup) return add(Constant<kGroup>());
  for (int64_t k = 0; k < rows; ++k) add(Constant<1>()), ++lines, x += args.n, dy += args.n;
}

template <class Stored, bool kCentred, bool kStreamed>
void backward_part(const LayerNormBackwardArgs& args, int64_t begin, int64_t end, double* sums) {
  using T = Compute<Stored>;
  const int64_t n = args.n;
  T* rows_sums = static_cast<T*>(thread_scratch(Scratch::Operation, size_t(2 * n) * sizeof(T)));
  for (int64_t i = 0; sums && i < 2 * n; ++i) sums[i] = 0;
  for (int64_t first = begin; first < end; first += kMaxRows) {
    const int64_t last = min(end, first + kMaxRows);
    for (int64_t i = 0; sums && i < 2 * n; ++i) rows_sums[i] = T(0);
    for (int64_t row = first; row < last; row += kGroup) {
      const int64_t rows = min(kGroup, last - row);
      RowLine<T> lines[kGroup];
      for (int64_t k = 0; k < rows; ++k) lines[k] = row_line<Stored, kCentred>(args, row + k);
      for (int64_t k = 0; args.dx && k < rows; ++k) write_dx<Stored, kStreamed>(args, row + k, lines[k]);
      if (sums) add_parameter_sums<Stored>(args, row, rows, lines, rows_sums, rows_sums + n);
    }
    for (int64_t i = 0; sums && i < 2 * n; ++i) sums[i] += double(rows_sums[i]);
  }
}

template <class Stored, bool kCentred>
void backward_stored(const LayerNormBackwardArgs& args) {
  using T = Compute<Stored>;
  const int64_t n = args.n, rows = args.rows;
  const bool wants_sums = args.dweight || args.dbias;
  const int64_t part_rows = max(max(ceil_div(kPart, max(n, 1)), 16), ceil_div(rows, kMaxParts));
  const int64_t parts = ceil_div(rows, part_rows);
  double* sums = nullptr;
  if (wants_sums)
    sums = static_cast<double*>(thread_scratch(Scratch::OperationShared, size_t(parts * 2 * n) * sizeof(double)));
  parallel_for(rows, part_rows, [&](int64_t begin, int64_t end) {
    double* part_sums = sums ? sums + begin / part_rows * 2 * n : nullptr;
    with_streaming(args.dx && streams_rows<Stored>(rows, n), [&](auto streamed) {
      backward_part<Stored, kCentred, streamed.value>(args, begin, end, part_sums);
    });
  });
  if (!wants_sums) return;
  parallel_for(n, max(1024, ceil_div(kPart, max(parts, 1))), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double dweight = 0, dbias = 0;
      for (int64_t part = 0; part < parts; ++part) {
        dweight += sums[2 * part * n + i];
        dbias += sums[(2 * part + 1) * n + i];
      }
      if (args.dweight) static_cast<T*>(args.dweight)[i] = T(dweight);
      if (args.dbias) static_cast<T*>(args.dbias)[i] = T(dbias);
    }
  });
}

// ------------------------------------------------------------------------------------------ launchers

template <class Stored>
void forward_of(const LayerNormArgs& args) {
  args.centred ? forward_stored<Stored, true>(args) : forward_stored<Stored, false>(args);
}

template <class Stored>
void backward_of(const LayerNormBackwardArgs& args) {
  args.centred ? backward_stored<Stored, true>(args) : backward_stored<Stored, false>(args);
}

void forward(const LayerNormArgs& args) {
  if (args.dtype == DType::Float32) return forward_of<float>(args);
  if (args.dtype == DType::Float64) return forward_of<double>(args);
  args.dtype == DType::BFloat16 ? forward_of<bfloat16>(args) : forward_of<float16>(args);
}

void backward(const LayerNormBackwardArgs& args) {
  if (args.dtype == DType::Float32) return backward_of<float>(args);
  if (args.dtype == DType::Float64) return backward_of<double>(args);
  args.dtype == DType::BFloat16 ? backward_of<bfloat16>(args) : backward_of<float16>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(layer_norm_forward, forward)
FASTNN_CPU_KERNEL(layer_norm_backward, backward)

}  // namespace fastnn
