// The walk over the steps of a recurrent layer, forward and backward, around products of whichever kind.
//
// A step is one or two phases; a phase makes, for each block of kUnits units and each tile of rows, the sums of an
// operand's row with the block's weights (for each gate), and what follows them in registers and the first-level
// cache. Products read what the phase before left, so operands that a phase also writes exist twice.
//
//               first phase                                            second phase
//   forward     h (W_hh^T of all gates) -> h'                          LSTM with a projection: o tanh(c') W_hr^T -> h'
//                                                                      GRU resetting before: (r h) W_hn^T -> h'
//   backward    dgates of the step after (W_hh) -> dh -> dgates        the same two, the other way
//
// Work is split between threads by rows while all of the packed weights stay in each core's second-level cache and
// there are rows enough: no thread then waits for another. Else it is split by units, each core keeping its part of
// the weights, and the threads meet after each phase; where a core's part does not stay in its cache, every other phase
// takes the units from the last on, whose weights do. A sum's order depends on none of this.
//
// A Product has: Sum, kForm, kRows of a tile, kGateSums of it for one gate, padded, Operand {take, set, load, exact},
// and take, pack, multiply, units, set_units, exact.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "core/steps.h"
#include "ops/recurrent/cells_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kCachedWeights = int64_t(1) << 20;  // bytes: half of a second-level cache
constexpr int64_t kKeptWeights = int64_t(3) << 19;    // bytes that stay in such a cache from phase to phase
constexpr int64_t kLeastRows = 4;                     // of a thread that has rows of its own
constexpr int64_t kTeamWork = int64_t(1) << 18;       // multiply-adds of a sequence that pay for a second thread
constexpr int64_t kPieceWork = int64_t(1) << 14;      // and of a thread's part of a phase
constexpr int64_t kStretchWork = int64_t(1) << 30;    // after which Ctrl-C is looked for

// Memory handed out piece by piece; without a base it only measures.
struct Arena {
  char* base = nullptr;
  int64_t used = 0;

  template <class T>
  T* take(int64_t n) {
    char* p = base ? base + used : nullptr;
    used += ceil_div(n * int64_t(sizeof(T)), 64) * 64;
    return reinterpret_cast<T*>(p);
  }
};

// The weights of a phase: for each gate, the sums of `outputs` units are made from `runs` runs of `depth` columns of
// the operand, which begin Product::padded(depth) apart. Element (gate, output, run, k) lies at gate * gate_stride +
// output * output_stride + (run * depth + k) * k_stride, where the operand's first run takes the weights' run
// `first_run` (a GRU's backward has gate n before r and z).
struct PhaseWeights {
  const void* data;
  DType dtype;
  int64_t gates, outputs, runs, depth;
  int64_t gate_stride, output_stride, k_stride;
  int64_t first_run = 0;

  const char* at(int64_t gate, int64_t k) const {
    return static_cast<const char*>(data) + (gate * gate_stride + k * k_stride) * int64_t(item_size(dtype));
  }
  const char* run_at(int64_t gate, int64_t run) const { return at(gate, (run + first_run) % runs * depth); }
  int64_t work() const { return gates * outputs * runs * depth; }
};

// Lays weights out where they are kept, or else in a walk's own memory.
template <class Owner>
void place_weights(Owner& owner, const PackedWeights& packed, Arena& memory) {
  Arena kept{static_cast<char*>(packed.data)};
  owner.take_weights(packed.data ? kept : memory);
}
template <class Owner>
int64_t packed_bytes(Owner& owner) {
  Arena measure;
  owner.take_weights(measure);
  return measure.used;
}

struct Share {
  int64_t part, parts;
  int64_t begin(int64_t n) const { return n * part / parts; }
  int64_t end(int64_t n) const { return n * (part + 1) / parts; }
};

struct Split {
  bool by_rows;
  int64_t parts;
  bool to_and_fro = false;
};

// One thread's part of a phase. Its rows are those of the batch, of which later steps may have fewer: a row stays with
// its thread.
struct Piece {
  int64_t part;
  Share rows, units;
  bool backwards = false;  // from the last of its units on
};

inline Split split_work(const RecurrentRows& rows, int64_t phases, int64_t work, int64_t bytes, int64_t blocks) {
  const int64_t threads = num_threads();
  if (threads == 1 || work * rows.batch * rows.n_steps < kTeamWork) return {false, 1, bytes > kKeptWeights};
  if (bytes <= kCachedWeights && rows.batch >= kLeastRows * threads) return {true, threads};
  const int64_t parts = min(min(threads, blocks), work * rows.batch / (phases * kPieceWork));
  return {false, max(parts, 1), bytes > kKeptWeights * max(parts, 1)};
}

// Calls work_on(phase, piece) for phases in order.
template <class WorkOn>
void walk(const Split& split, int64_t phases, int64_t work, const WorkOn& work_on) {
  constexpr Share kAll{0, 1};
  const int64_t stretch = max(1, kStretchWork / max(1, work));
  for (int64_t first = 0; first < phases; first += stretch) {
    const int64_t count = min(stretch, phases - first);
    if (split.by_rows) {
      parallel_for(split.parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part)
          for (int64_t phase = first; phase < first + count; ++phase)
            work_on(phase, Piece{part, {part, split.parts}, kAll});
      });
    } else {
      parallel_steps(count, split.parts, [&](int64_t phase, int64_t part) {
        work_on(first + phase, Piece{part, kAll, {part, split.parts}, split.to_and_fro && phase % 2 == 1});
      });
    }
  }
}

// What a walk carries from step to step, as [block of units][row][kUnits]: a tile's part of it is adjacent.
template <class T>
class Carried {
 public:
  void take(Arena& memory, int64_t rows, int64_t units) {
    rows_ = rows;
    units_ = units;
    data_ = memory.take<T>(ceil_div(units, kUnits<T>) * rows * kUnits<T>);
  }
  bool taken() const { return data_ != nullptr; }
  // From a row on, of a block that begins at `unit`.
  UnitRows<T> rows(int64_t row, int64_t unit) const { return {data_ + (unit / kUnits<T> * rows_ + row) * kUnits<T>}; }

  // From and to a matrix (rows, units); a null one is zeros.
  void load(const void* matrix, DType dtype) {
    for_each([&](int64_t row, int64_t unit, int64_t n) {
      rows(row, unit).set(0, load_units<T>(matrix, dtype, row * units_ + unit, n));
    });
  }
  void store(void* matrix, DType dtype) const {
    for_each([&](int64_t row, int64_t unit, int64_t n) {
      store_units(matrix, dtype, row * units_ + unit, rows(row, unit).get(0), n);
    });
  }
  template <class Visit>
  void for_each(const Visit& visit) const {
    for (int64_t row = 0; row < rows_; ++row)
      for (int64_t unit = 0; unit < units_; unit += kUnits<T>) visit(row, unit, min(kUnits<T>, units_ - unit));
  }

 private:
  T* data_ = nullptr;
  int64_t rows_ = 0, units_ = 0;
};

// Some rows of a block of units, of which n are there.
struct TileOfRows {
  int64_t block, unit, n, first, count;
};

// Calls visit(tile) for the tiles of a piece, of a batch of which `n_rows` are there.
template <class Product, class Visit>
void for_each_tile(int64_t units, int64_t batch, int64_t n_rows, const Piece& piece, const Visit& visit) {
  constexpr int64_t kWidth = kUnits<typename Product::Sum>;
  const int64_t blocks = ceil_div(units, kWidth);
  const int64_t row_begin = piece.rows.begin(batch), row_end = min(piece.rows.end(batch), n_rows);
  const int64_t count = row_end - row_begin;
  if (count <= 0) return;
  const int64_t height = ceil_div(count, ceil_div(count, Product::kRows));
  const int64_t begin = piece.units.begin(blocks), last = piece.units.end(blocks) - 1;
  for (int64_t i = begin; i <= last; ++i) {
    const int64_t block = piece.backwards ? begin + last - i : i, unit = block * kWidth;
    for (int64_t row = row_begin; row < row_end; row += height)
      visit(TileOfRows{block, unit, min(kWidth, units - unit), row, min(height, row_end - row)});
  }
}

}  // namespace
}  // namespace fastnn
