// What follows a product on CUDA: from sums to C, as gemm.h has it.
#pragma once

#include <type_traits>

#include "core/cuda_device.h"
#include "gemm/gemm.h"
#include "gemm/tile_cuda.h"
#include "simd/element.h"
#include "simd/functors.h"

namespace fastnn {
namespace {

// What products of Stored are summed in.
template <class Stored>
using SumOf = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

// Elements of a row that are stored together: 16 bytes of sums.
template <class Sum>
constexpr int kStored = kPackOf16<Sum>;

// gemm_item on the device, of operands of Stored.
template <class Stored>
__device__ inline GemmItem device_item(const GemmArgs& args, int64_t index) {
  const GemmOffsets at = gemm_offsets(args, index);
  const bool as_float = sizeof(Stored) == 2 && args.c_dtype == DType::Float32;
  return {reinterpret_cast<const char*>(static_cast<const Stored*>(args.a) + at.a),
          reinterpret_cast<const char*>(static_cast<const Stored*>(args.b) + at.b),
          static_cast<char*>(args.c) + at.c * int64_t(as_float ? sizeof(float) : sizeof(Stored))};
}

template <class Functor, class Sum, int kWidth>
__device__ inline void apply(Pack<Sum, kWidth>& values) {
#pragma unroll
  for (Sum& value : values.at) value = Functor::forward(value, Params<Sum>{});
}

template <class Sum, int kWidth>
__device__ inline void activate(Activation activation, Pack<Sum, kWidth>& values) {
  switch (activation) {
    case Activation::None: return;
    case Activation::Relu: return apply<Relu>(values);
    case Activation::Gelu: return apply<Gelu>(values);
    case Activation::GeluTanh: return apply<GeluTanh>(values);
    case Activation::Silu: return apply<Silu>(values);
    case Activation::Sigmoid: return apply<Sigmoid>(values);
    case Activation::Tanh: return apply<Tanh>(values);
  }
}

// The first `present` elements from `from` on, added.
template <class Stored, class Sum, int kWidth>
__device__ inline void add_elements(Pack<Sum, kWidth>& values, const Stored* from, int present) {
  if (present == kWidth && is_aligned(from, sizeof(Stored) * kWidth)) {
    const Pack<Stored, kWidth> whole = load_pack<kWidth>(from);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values.at[i] += to_compute<Sum>(whole.at[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      if (i < present) values.at[i] += to_compute<Sum>(from[i]);
  }
}

template <class Stored, class Sum, int kWidth>
__device__ inline void store_elements(Stored* to, const Pack<Sum, kWidth>& values, int present) {
  Pack<Stored, kWidth> stored;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) stored.at[i] = to_stored<Stored>(values.at[i]);
  if (present == kWidth && is_aligned(to, sizeof stored)) return store_pack(to, stored);
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    if (i < present) to[i] = stored.at[i];
}

// A pack of a row of C by its sums, of which `present` are in C. Stored is the type of the operands; C is of that
// type or of float32.
template <class Stored, int kWidth>
struct Epilogue {
  using Sum = SumOf<Stored>;
  const GemmArgs& args;
  const GemmItem& item;

  template <class C>
  __device__ void add_terms(Pack<Sum, kWidth>& values, int64_t row, int64_t column, int present) const {
    const C* const c = reinterpret_cast<const C*>(item.c) + row * args.c_row + column;
    const C* const bias = static_cast<const C*>(args.bias);
    if (args.accumulate) add_elements(values, c, present);
    if (args.bias_kind == GemmBias::PerColumn) add_elements(values, bias + column, present);
    if (args.bias_kind == GemmBias::PerRow) {
      const Sum addend = to_compute<Sum>(bias[row]);
#pragma unroll
      for (Sum& value : values.at) value += addend;
    }
    if (args.residual)
      add_elements(values, static_cast<const C*>(args.residual) + (c - static_cast<const C*>(args.c)), present);
  }

  __device__ void store(Pack<Sum, kWidth> values, int64_t row, int64_t column, int present) const {
#pragma unroll
    for (Sum& value : values.at) value *= Sum(args.alpha);
    const bool as_float = sizeof(Stored) == 2 && args.c_dtype == DType::Float32;
    const int64_t at = row * args.c_row + column;
    as_float ? add_terms<float>(values, row, column, present) : add_terms<Stored>(values, row, column, present);
    activate(args.activation, values);
    as_float ? store_elements(reinterpret_cast<float*>(item.c) + at, values, present)
             : store_elements(reinterpret_cast<Stored*>(item.c) + at, values, present);
  }
};

// All threads of the block store a tile of sums that lies in shared memory, rows kPitch apart: into C, or for a part of
// k into the partials.
template <class Stored, int kRows, int kColumns, int kPitch, int kThreads>
__device__ inline void store_tile(const SumOf<Stored>* sums, const GemmArgs& args, const GemmItem& item,
                                  const GemmGrid& grid, const GemmTile& tile) {
  using Sum = SumOf<Stored>;
  constexpr int kWidth = kStored<Sum>, kPacks = kColumns / kWidth;
  const Epilogue<Stored, kWidth> epilogue{args, item};
  const int64_t column = tile.column * kColumns + thread_in_block() % kPacks * kWidth;
  const int present = int(args.n - column < kWidth ? args.n - column : kWidth);
  if (present <= 0) return;
  Sum* const partials =
      static_cast<Sum*>(grid.partials) + (tile.split * grid.items + tile.item) * args.m * args.n + column;
#pragma unroll 1
  for (int i = thread_in_block() / kPacks; i < kRows; i += kThreads / kPacks) {
    const int64_t row = tile.row * kRows + i;
    if (row >= args.m) return;
    const Pack<Sum, kWidth> values = load_pack<kWidth>(sums + i * kPitch + thread_in_block() % kPacks * kWidth);
    if (grid.splits > 1)
      store_elements(partials + row * args.n, values, present);
    else
      epilogue.store(values, row, column, present);
  }
}

}  // namespace
}  // namespace fastnn
