// Products of vector units for the walk over a recurrent layer's steps (walk_cpu.h).
//
// Weights are packed once a sequence, as panels [k][kUnits] for each block of units and gate; the state is read where
// it lies, one broadcast an element. A tile of rows times a panel is 14 x 32 sums in registers (float32, AVX-512). Of
// few rows, the panels of all gates are read side by side: a panel for itself would wait for its few sums.
#pragma once

#include "gemm/pack_cpu.h"
#include "ops/recurrent/walk_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kVectorPackWork = int64_t(1) << 14;  // elements that pay for a task
constexpr int kFetchRows = 4;                          // fewer only load, and have no room for fetching

// sums[gate][row] = sum over k of a[row][k] panel[gate][k]: kGates panels `gate_stride` apart. Panels are fetched
// `ahead` elements further on, for the tiles to come.
template <class T, int kGates, int kTileRows>
__attribute__((noinline)) void multiply_tile(const T* a, int64_t a_row, const T* panel, int64_t gate_stride, int64_t k,
                                             int64_t ahead, T* sums, int64_t sums_gate) {
  constexpr int kLanes = Vec<T>::size;
  Vec<T> sum[kTileRows][kGates][2];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) sum[r][g][0] = sum[r][g][1] = Vec<T>::zero();
  const T* rows[(kTileRows + 3) / 4];  // one pointer serves four rows
#pragma GCC unroll 4
  for (int i = 0; i < (kTileRows + 3) / 4; ++i) rows[i] = a + 4 * i * a_row;
  for (int64_t p = 0; p < k; ++p, panel += 2 * kLanes) {
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) {
      if constexpr (kTileRows >= kFetchRows) {
        __builtin_prefetch(panel + g * gate_stride + ahead, 0, 2);
        if (kLanes * sizeof(T) == 64) __builtin_prefetch(panel + g * gate_stride + ahead + kLanes, 0, 2);
      }
      const Vec<T> left = Vec<T>::load(panel + g * gate_stride), right = Vec<T>::load(panel + g * gate_stride + kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        const Vec<T> x = Vec<T>::broadcast(rows[r / 4][r % 4 * a_row]);
        sum[r][g][0] += x * left;
        sum[r][g][1] += x * right;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < (kTileRows + 3) / 4; ++i) ++rows[i];
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) {
      sum[r][g][0].store(sums + g * sums_gate + r * 2 * kLanes);
      sum[r][g][1].store(sums + g * sums_gate + r * 2 * kLanes + kLanes);
    }
}

// Searches the kernel of the tile's height from the largest down.
template <class T, int kGates, int kTileRows, class... Arguments>
inline void run_tile(int64_t rows, const Arguments&... arguments) {
  if constexpr (kTileRows > 1) {
    if (rows < kTileRows) return run_tile<T, kGates, kTileRows - 1>(rows, arguments...);
  }
  multiply_tile<T, kGates, kTileRows>(arguments...);
}

template <class T>
class VectorProduct {
 public:
  using Sum = T;
  static constexpr int64_t kForm = 0;
  static constexpr int64_t kRows = Tile<T>::kRows;
  static constexpr int64_t kGateSums = kRows * kUnits<T>;

  // Rows of the compute type.
  struct Operand {
    T* data = nullptr;
    int64_t width = 0;

    void take(Arena& memory, int64_t rows, int64_t columns) {
      width = ceil_div(columns, 16) * 16 + 16;  // not a power of two: rows would meet in the same sets of the caches
      data = memory.take<T>(rows * width);
    }
    bool exact() const { return true; }
    FASTNN_INLINED void set(int64_t row, int64_t column, const Units<T>& units, int64_t n) const {
      store_units(data + row * width + column, units, n);
    }
    void load(int64_t row, const void* matrix, DType dtype, int64_t at, int64_t n) {
      const char* from = static_cast<const char*>(matrix) + at * int64_t(item_size(dtype));
      FASTNN_LEVEL::load_row(data + row * width, from, dtype, 1, n);
    }
  };

  static int64_t padded(int64_t depth) { return depth; }
  bool exact() const { return true; }

  void take(Arena& memory, const PhaseWeights& weights) {
    gates_ = weights.gates;
    outputs_ = weights.outputs;
    depth_ = weights.runs * weights.depth;
    panels_ = memory.take<T>(ceil_div(weights.outputs, kUnits<T>) * gates_ * panel_size() + kPanelPadding);
  }

  void pack(const PhaseWeights& weights) {
    const int64_t blocks = ceil_div(weights.outputs, kUnits<T>), block_size = gates_ * panel_size();
    parallel_for(blocks, max(1, kVectorPackWork / max(1, block_size)), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kUnits<T>, width = min(end * kUnits<T>, weights.outputs) - first;
      const int64_t shift = first * weights.output_stride * int64_t(item_size(weights.dtype));
      for (int64_t gate = 0; gate < gates_; ++gate)
        for (int64_t run = 0; run < weights.runs; ++run)
          pack_panels<int(kUnits<T>)>(
              weights.run_at(gate, run) + shift, weights.dtype, weights.k_stride, weights.output_stride, weights.depth,
              width, panels_ + begin * block_size + gate * panel_size() + run * weights.depth * kUnits<T>, block_size);
    });
  }

  void multiply(const Operand& operand, int64_t row, int64_t rows, int64_t block, T* sums) const {
    constexpr int kAllOfFour = max_rows(4), kAllOfThree = max_rows(3);
    const T* a = operand.data + row * operand.width;
    const T* panel = panels_ + block * gates_ * panel_size();
    const int64_t bytes = ceil_div(outputs_, kUnits<T>) * gates_ * panel_size() * int64_t(sizeof(T));
    const int64_t ahead = bytes > kCachedWeights ? gates_ * panel_size() : 0;  // of the next block
    if (gates_ == 4 && rows <= kAllOfFour)
      return run_tile<T, 4, kAllOfFour>(rows, a, operand.width, panel, panel_size(), depth_, ahead, sums, kGateSums);
    if (gates_ == 3 && rows <= kAllOfThree)
      return run_tile<T, 3, kAllOfThree>(rows, a, operand.width, panel, panel_size(), depth_, ahead, sums, kGateSums);
    for (int64_t gate = 0; gate < gates_; ++gate)
      run_tile<T, 1, kRows>(rows, a, operand.width, panel + gate * panel_size(), panel_size(), depth_, ahead,
                            sums + gate * kGateSums, kGateSums);
  }

  static FASTNN_INLINED Units<T> units(const T* sums, int64_t gate, int64_t row) {
    return load_units(sums + gate * kGateSums + row * kUnits<T>, kUnits<T>);
  }
  static FASTNN_INLINED void set_units(T* sums, int64_t gate, int64_t row, const Units<T>& units) {
    store_units(sums + gate * kGateSums + row * kUnits<T>, units, kUnits<T>);
  }

 private:
  // As many rows as leave the sums of all gates in registers.
  static constexpr int max_rows(int gates) { return Tile<T>::kRows / gates; }
  int64_t panel_size() const { return depth_ * kUnits<T>; }

  int64_t gates_ = 0, outputs_ = 0, depth_ = 0;
  T* panels_ = nullptr;
};

}  // namespace
}  // namespace fastnn
