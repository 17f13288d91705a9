// Cumulative sums and products on the CPU: see scan.h.
//
//   bytes: x and y once; one addition an element, in a chain along the axis
//
// Rows (inner == 1) run one chain each; else up to 512 columns run side by side.
#include "ops/reduce/scan.h"
#include "simd/convert.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 32768;

struct Sum {
  template <class T>
  static T join(T a, T b) {
    return T(a + b);
  }
  template <class T>
  static T identity() {
    return T(0);
  }
};
struct Product {
  template <class T>
  static T join(T a, T b) {
    return T(a * b);
  }
  template <class T>
  static T identity() {
    return T(1);
  }
};

template <class T>
void load(const ScanArgs& args, int64_t offset, int64_t n, T* row) {
  const char* x = static_cast<const char*>(args.x) + offset * int64_t(item_size(args.x_dtype));
  FASTNN_LEVEL::load_row(row, x, args.x_dtype, 1, n);
}

template <class T>
void store(const ScanArgs& args, int64_t offset, int64_t n, const T* row) {
  char* y = static_cast<char*>(args.y) + offset * int64_t(item_size(args.y_dtype));
  FASTNN_LEVEL::store_row(y, args.y_dtype, 1, row, n);
}

template <class F, class T>
void scan_row(const ScanArgs& args, int64_t offset) {
  alignas(64) T row[kRowChunk];
  T joined = F::template identity<T>();
  const int64_t blocks = (args.n + kRowChunk - 1) / kRowChunk;
  for (int64_t step = 0; step < blocks; ++step) {
    const int64_t begin = (args.reverse ? blocks - 1 - step : step) * kRowChunk;
    const int64_t n = args.n - begin < kRowChunk ? args.n - begin : kRowChunk;
    load(args, offset + begin, n, row);
    if (args.reverse) {
      for (int64_t i = n - 1; i >= 0; --i) row[i] = joined = F::join(joined, row[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) row[i] = joined = F::join(joined, row[i]);
    }
    store(args, offset + begin, n, row);
  }
}

// `n` columns from `offset`.
template <class F, class T>
void scan_columns(const ScanArgs& args, int64_t offset, int64_t n) {
  alignas(64) T row[kRowChunk], joined[kRowChunk];
  for (int64_t i = 0; i < n; ++i) joined[i] = F::template identity<T>();
  for (int64_t step = 0; step < args.n; ++step) {
    const int64_t at = offset + (args.reverse ? args.n - 1 - step : step) * args.inner;
    load(args, at, n, row);
    for (int64_t i = 0; i < n; ++i) joined[i] = F::join(joined[i], row[i]);
    store(args, at, n, joined);
  }
}

template <class F, class T>
void scan_with(const ScanArgs& args) {
  const int64_t size = args.n * args.inner;
  if (args.inner == 1) {
    parallel_for(args.outer, kGrain / (size + 8) + 1, [&](int64_t first, int64_t past) {
      for (int64_t outer = first; outer < past; ++outer) scan_row<F, T>(args, outer * size);
    });
    return;
  }
  const int64_t blocks = (args.inner + kRowChunk - 1) / kRowChunk;
  parallel_for(args.outer * blocks, kGrain / (size / blocks + 64) + 1, [&](int64_t first, int64_t past) {
    for (int64_t work = first; work < past; ++work) {
      const int64_t column = work % blocks * kRowChunk, left = args.inner - column;
      scan_columns<F, T>(args, work / blocks * size + column, left < kRowChunk ? left : kRowChunk);
    }
  });
}

template <class T>
void scan_typed(const ScanArgs& args) {
  if (args.op == ScanOp::Sum)
    scan_with<Sum, T>(args);
  else
    scan_with<Product, T>(args);
}

void scan(const ScanArgs& args) {
  if (args.compute == DType::Int64)
    scan_typed<int64_t>(args);
  else
    scan_typed<double>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(scan_rows, scan)

}  // namespace fastnn
