// The matrix engine on the CPU. Three ways through it, chosen by shape and strides alone:
//
//   dot      both operands are contiguous in k (x W^T) and there are few rows or columns: in place (dot_cpu.h).
//   direct   the product is small, or has few rows, or a short k: in place, or with B packed (direct_cpu.h).
//   blocked  the rest: blocks of both operands are packed for the caches (blocked_cpu.h).
//
// Where the machine has AMX, most products go there instead: skinny_amx.cpp where one operand fits the second-level
// cache, gemm_amx.cpp the other large ones.
//
//   gemm.h           the contract                     product_cpu.h    operands, tasks, packed parts of B
//   tile.h           the register tile's size         pack_cpu.h       packing
//   blocking_cpu.h   every other block size, the five loops and their arithmetic
//   micro_cpu.h      the micro-kernels                epilogue.h       what follows a product
//
// k is not split between threads, except where C is so small and k so long that there is nothing else
// to split: then into chunks fixed by k, whose partial products are added in order.
#include "gemm/blocked_cpu.h"
#include "gemm/direct_cpu.h"
#include "gemm/dot_cpu.h"
#include "gemm/gemm.h"
#include "gemm/gemm_amx.h"

namespace fastnn {
namespace {

template <class T>
void multiply_whole(const Product<T>& product) {
  const bool in_place = product.a.dtype == dtype_of<T>();
  const bool along_k = product.a.depth == 1 && product.b.depth == 1 && product.k > 1;
  const bool few = product.m <= kDotRows || product.n <= kDotColumns;
  const bool few_rows = product.m <= 2 * Tile<T>::kRows && has_whole_rows(product);
  const bool few_columns = product.n <= kFewColumns && product.a.outer == 1 && product.a.depth != 1;
  if (along_k && few && (product.k >= kLeastDot || product.m == 1 || product.n == 1)) return dot(product);
  if (in_place && few_columns) return direct_transposed(product);
  const bool small = product.work() <= kDirectWork || product.k <= kShortDepth;
  if (in_place && (few_rows || (small && (has_whole_rows(product) || product.n * product.k <= kSlabElements))))
    return direct(product, product.n * product.k * int64_t(sizeof(T)) > kCachedBytes);
  blocked(product);
}

// A long k over few outputs: partial products of fixed chunks of k, added in order.
template <class T>
void multiply_split(const Product<T>& product) {
  const int64_t depth = max(kSplitDepth, ceil_div(product.k, kSplitChunks)), chunks = ceil_div(product.k, depth);
  const int64_t outputs = product.m * product.n;
  T* partials = static_cast<T*>(thread_scratch(Scratch::GemmPartials, size_t(chunks * outputs) * sizeof(T)));
  parallel_for(chunks, max(1, kTaskWork / (depth * outputs)), [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      Product<T> part = product;
      part.a.data = product.a.at(0, chunk * depth);
      part.b.data = product.b.at(0, chunk * depth);
      part.k = min(depth, product.k - chunk * depth);
      part.out = {partials + chunk * outputs, product.n, T(1), false, nullptr, nullptr, nullptr, Activation::None};
      multiply_whole(part);
    }
  });
  for (int64_t i = 0; i < product.m; ++i)
    for (int64_t j = 0; j < product.n; ++j) {
      T sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partials[chunk * outputs + i * product.n + j];
      product.out.put_one(sum, i, j);
    }
}

template <class T>
void multiply(const Product<T>& product) {
  if (product.k >= 2 * kSplitDepth && product.m * product.n <= kSplitOutputs) return multiply_split(product);
  if (product.k > 0) return multiply_whole(product);
  for (int64_t i = 0; i < product.m; ++i)
    for (int64_t j = 0; j < product.n; ++j) product.out.put_one(T(0), i, j);
}

template <class T>
Product<T> make_product(const GemmArgs& args, const GemmItem& item, const Destination<T>& out) {
  // Strides along a dimension of size one mean nothing: they count as adjacent.
  return {args.m,
          args.n,
          args.k,
          {item.a, args.dtype, args.a_row, args.k == 1 ? 1 : args.a_column},
          {item.b, args.dtype, args.n == 1 ? 1 : args.b_column, args.k == 1 ? 1 : args.b_row},
          out};
}

template <class T>
void multiply_item(const GemmArgs& args, const GemmItem& item) {
  const T* bias = static_cast<const T*>(args.bias);
  const T* residual = static_cast<const T*>(args.residual);
  T* c = reinterpret_cast<T*>(item.c);
  multiply(make_product<T>(
      args, item,
      {c, args.c_row, T(args.alpha), args.accumulate, args.bias_kind == GemmBias::PerRow ? bias : nullptr,
       args.bias_kind == GemmBias::PerColumn ? bias : nullptr,
       residual ? residual + (c - static_cast<const T*>(args.c)) : nullptr, args.activation}));
}

// A 16-bit C: the sums are made in float32, and rounded once.
void multiply_rounded(const GemmArgs& args, const GemmItem& item) {
  float* sums = static_cast<float*>(thread_scratch(Scratch::GemmSums, size_t(args.m * args.n) * sizeof(float)));
  multiply(make_product<float>(args, item,
                               {sums, args.n, float(args.alpha), false, nullptr, nullptr, nullptr, Activation::None}));
  const int64_t size = int64_t(item_size(args.c_dtype));
  const char* bias = static_cast<const char*>(args.bias);
  parallel_for(args.m, max(1, (1 << 16) / args.n), [&](int64_t begin, int64_t end) {
    float addend[kCastRun];
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < args.n; j += kCastRun) {
        const int64_t run = min(kCastRun, args.n - j);
        float* row = sums + i * args.n + j;
        char* target = item.c + (i * args.c_row + j) * size;
        const auto add = [&](const char* source, int64_t stride) {
          FASTNN_LEVEL::load_row(addend, source, args.c_dtype, stride, run);
          for (int64_t e = 0; e < run; ++e) row[e] += addend[e];
        };
        if (args.accumulate) add(target, 1);
        if (args.bias_kind == GemmBias::PerRow) add(bias + i * size, 0);
        if (args.bias_kind == GemmBias::PerColumn) add(bias + j * size, 1);
        if (args.residual) add(static_cast<const char*>(args.residual) + (target - static_cast<char*>(args.c)), 1);
        activate_row(args.activation, row, run);
        FASTNN_LEVEL::store_row(target, args.c_dtype, 1, row, run);
      }
  });
}

void multiply_any(const GemmArgs& args, const GemmItem& item) {
  if (is_reduced_float(args.c_dtype)) {
    multiply_rounded(args, item);
  } else if (args.c_dtype == DType::Float64) {
    multiply_item<double>(args, item);
  } else {
    multiply_item<float>(args, item);
  }
}

}  // namespace

namespace FASTNN_LEVEL {

#ifdef FASTNN_AMX
void gemm_vectors(const GemmArgs& args, const GemmItem& item) { multiply_any(args, item); }
#endif

void gemm(const GemmArgs& args) {
  const int64_t batch = gemm_batch_size(args);
  if (args.m == 0 || args.n == 0 || batch == 0) return;
#ifdef FASTNN_AMX
  const bool has_tiles = cpu_level() == CpuLevel::Amx;
  const bool skinny = has_tiles && amx::gemm_skinny_suits(args), tiles = has_tiles && amx::gemm_suits(args);
#endif
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const GemmItem item = gemm_item(args, index);
#ifdef FASTNN_AMX
      if (skinny || tiles) {
        skinny ? amx::gemm_skinny(args, item) : amx::gemm(args, item);
        continue;
      }
#endif
      multiply_any(args, item);
    }
  };
  const int64_t work = max(1, args.m * args.n * args.k);
  if (batch > 1 && work <= kItemWork) {
    parallel_for(batch, max(1, kTaskWork / work), run);
  } else {
    run(0, batch);
  }
}

void gemm_outer_tile(const OuterTile<float>& tile, float* block) { run_outer_tile(tile, block, Tile<float>::kColumns); }
void gemm_outer_tile(const OuterTile<double>& tile, double* block) {
  run_outer_tile(tile, block, Tile<double>::kColumns);
}
void gemm_dot_tile(const DotTile<float>& tile, float* block) { dot_tile<float>(tile, block); }
void gemm_dot_tile(const DotTile<double>& tile, double* block) { dot_tile<double>(tile, block); }

}  // namespace FASTNN_LEVEL
}  // namespace fastnn
