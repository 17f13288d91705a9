// The input's products with weight_ih, made for a stretch of steps at a time: many rows share what is read of the
// weights, and the sums stay in the second-level cache until their steps come.
//
// A thread makes the sums of its own rows and units, when it comes to the first step of a stretch: nobody waits for
// them. They lie as tiles, [rows' part][block of units][tile of rows][gate], a step's rows after those of the step
// before.
#pragma once

#include "ops/recurrent/walk_cpu.h"

namespace fastnn {
namespace {

template <class Product>
class InputSums {
  using T = typename Product::Sum;

 public:
  // Some rows of a step.
  struct View {
    T* sums;
    int64_t first;  // where the batch's row 0 would lie
  };

  explicit InputSums(const RecurrentArgs& args)
      : rows_(args.rows), x_data_(args.x), blocks_(ceil_div(args.hidden, kUnits<T>)) {
    const int64_t gates = cell_gates(args.cell), hidden = args.hidden, inputs = args.inputs;
    weights_ = {args.weight_ih, args.dtype, gates, hidden, 1, inputs, hidden * inputs, inputs, 1};
  }

  void take_weights(Arena& memory) { product_.take(memory, weights_); }

  void take(Arena& memory, const Split& split) {
    constexpr int64_t kRingBytes = int64_t(1) << 21, kMostRows = 256;  // of a thread: its second-level cache
    const int64_t row_parts = split.by_rows ? split.parts : 1, unit_parts = split.by_rows ? 1 : split.parts;
    const int64_t height = ceil_div(rows_.batch, row_parts);
    const int64_t row_bytes = ceil_div(blocks_, unit_parts) * weights_.gates * kUnits<T> * int64_t(sizeof(T));
    const int64_t most_rows = min(kMostRows, kRingBytes / row_bytes);
    stretch_ = min(max(1, most_rows / height), rows_.n_steps);
    tiles_ = ceil_div(stretch_ * height, Product::kRows);
    x_.take(memory, split.parts * tiles_ * Product::kRows, weights_.depth);
    sums_ = memory.take<T>(row_parts * blocks_ * tiles_ * weights_.gates * Product::kGateSums);
  }

  void pack() { product_.pack(weights_); }
  bool exact() const { return product_.exact() && x_.exact(); }

  // The sums of step s for a piece. Its first phase makes those of the whole stretch at the stretch's first step.
  View make(int64_t s, const Piece& piece) {
    const Stretch stretch = stretch_of(s, piece);
    if (s == stretch.first && stretch.height > 0) {
      const int64_t target = piece.part * tiles_ * Product::kRows;
      for (int64_t step = s; step < s + stretch.steps; ++step) load_step(step, stretch, target);
      multiply(target, stretch.steps * stretch.height, piece.units, part_sums(piece));
    }
    return view(s, piece);
  }
  View view(int64_t s, const Piece& piece) const {
    const Stretch stretch = stretch_of(s, piece);
    return {part_sums(piece), (s - stretch.first) * stretch.height - stretch.row};
  }

  // Those of one block.
  struct BlockView {
    T* sums;
    int64_t first, gates;

    FASTNN_INLINED Units<T> get(int64_t row, int64_t gate) const {
      return Product::units(tile(row), gate, (first + row) % Product::kRows);
    }
    FASTNN_INLINED void set(int64_t row, int64_t gate, const Units<T>& units) const {
      Product::set_units(tile(row), gate, (first + row) % Product::kRows, units);
    }
    FASTNN_INLINED T* tile(int64_t row) const {
      return sums + int64_t(uint64_t(first + row) / Product::kRows) * gates * Product::kGateSums;
    }
  };
  // `row` is what the block's rows are counted from.
  BlockView of_block(const View& view, int64_t block, int64_t row) const {
    return {tile(view.sums, block, 0), view.first + row, weights_.gates};
  }

 private:
  T* tile(T* sums, int64_t block, int64_t tile) const {
    return sums + (block * tiles_ + tile) * weights_.gates * Product::kGateSums;
  }

  // A piece's rows of some steps: `height` from `row` on, of which later steps may have fewer.
  struct Stretch {
    int64_t first, steps, row, height;
  };
  Stretch stretch_of(int64_t s, const Piece& piece) const {
    const int64_t first = s / stretch_ * stretch_, steps = min(stretch_, rows_.n_steps - first);
    const int64_t most = max(step_at(rows_, first).rows, step_at(rows_, first + steps - 1).rows);
    const int64_t row = piece.rows.begin(rows_.batch);
    return {first, steps, row, max(0, min(piece.rows.end(rows_.batch), most) - row)};
  }

  T* part_sums(const Piece& piece) const {
    return sums_ + piece.rows.part * blocks_ * tiles_ * weights_.gates * Product::kGateSums;
  }

  void load_step(int64_t s, const Stretch& stretch, int64_t target) {
    const Step step = step_at(rows_, s);
    const int64_t n = weights_.depth, count = min(stretch.height, step.rows - stretch.row);
    for (int64_t i = 0; i < count; ++i)
      x_.load(target + (s - stretch.first) * stretch.height + i, x_data_, weights_.dtype,
              (step.begin + (stretch.row + i) * rows_.row_stride) * n, n);
  }

  void multiply(int64_t first, int64_t n_rows, const Share& units, T* sums) const {
    for (int64_t block = units.begin(blocks_); block < units.end(blocks_); ++block)
      for (int64_t row = 0; row < n_rows; row += Product::kRows)
        product_.multiply(x_, first + row, min(Product::kRows, n_rows - row), block,
                          tile(sums, block, row / Product::kRows));
  }

  const RecurrentRows rows_;
  const void* const x_data_;
  const int64_t blocks_;
  PhaseWeights weights_;
  int64_t stretch_ = 0, tiles_ = 0;  // steps of a stretch, tiles of its rows
  Product product_;
  typename Product::Operand x_;
  T* sums_ = nullptr;
};

}  // namespace
}  // namespace fastnn
