// The steps of a recurrent layer, from the first state to the last (walk_cpu.h).
#pragma once

#include "ops/recurrent/input_sums_cpu.h"

namespace fastnn {
namespace {

template <class Product, class InputProduct>
class ForwardWalk {
  using T = typename Product::Sum;
  using Operand = typename Product::Operand;
  using Inputs = InputSums<InputProduct>;

 public:
  explicit ForwardWalk(const RecurrentArgs& args)
      : args_(args), projected_(args.weight_hr != nullptr), resets_(args.cell == Cell::GruResetBefore), inputs_(args) {
    const int64_t gates = cell_gates(args.cell), hidden = args.hidden, outputs = args.outputs;
    weights_[0] = {args.weight_hh, args.dtype, resets_ ? 2 : gates, hidden, 1, outputs, hidden * outputs, outputs, 1};
    if (projected_) weights_[1] = {args.weight_hr, args.dtype, 1, outputs, 1, hidden, 0, hidden, 1};
    if (resets_) weights_[1] = {weights_[0].at(2, 0), args.dtype, 1, hidden, 1, hidden, 0, hidden, 1};
  }

  // False where a number is not one that the products are exact for.
  bool run() {
    const int64_t phases = phases_per_step(), work = weights_[0].work() + weights_[1].work();
    const int64_t bytes = packed_bytes(*this);
    if (args_.form_ih) {
      *args_.form_ih = {packed_bytes(inputs_), InputProduct::kForm};
      *args_.form_hh = {bytes, Product::kForm};
      return true;
    }
    split_ = split_work(args_.rows, phases, work, bytes, ceil_div(min(args_.hidden, args_.outputs), kUnits<T>));
    Arena measure;
    lay_out(measure);
    Arena memory{static_cast<char*>(thread_scratch(Scratch::OperationShared, size_t(measure.used)))};
    lay_out(memory);
    start();
    walk(split_, args_.rows.n_steps * phases, work * args_.rows.batch / phases, [&](int64_t phase, const Piece& piece) {
      const int64_t s = phase / phases;
      if (phase % phases == 1) return projected_ ? project(s, piece) : update(s, piece);
      advance(s, piece);
    });
    finish();
    return exact();
  }

  void take_weights(Arena& memory) {
    for (int i = 0; i < phases_per_step(); ++i) products_[i].take(memory, weights_[i]);
  }

 private:
  bool exact() const {
    for (int i = 0; i < phases_per_step(); ++i)
      if (!products_[i].exact()) return false;
    return inputs_.exact() && states_[0].exact() && states_[1].exact() && (phases_per_step() == 1 || middle_.exact());
  }

  int64_t phases_per_step() const { return projected_ || resets_ ? 2 : 1; }

  void lay_out(Arena& memory) {
    const int64_t batch = args_.rows.batch;
    place_weights(*this, args_.packed_hh, memory);
    place_weights(inputs_, args_.packed_ih, memory);
    inputs_.take(memory, split_);
    for (Operand& state : states_) state.take(memory, batch, args_.outputs);
    if (phases_per_step() == 2) middle_.take(memory, batch, args_.hidden);
    h_.take(memory, batch, args_.outputs);
    if (args_.cell == Cell::Lstm) c_.take(memory, batch, args_.hidden);
  }

  void start() {
    for (int i = 0; i < phases_per_step() && !args_.packed_hh.ready; ++i) products_[i].pack(weights_[i]);
    if (!args_.packed_ih.ready) inputs_.pack();
    h_.load(args_.h0, args_.dtype);
    h_.for_each([&](int64_t row, int64_t unit, int64_t n) {
      for (const Operand& state : states_) state.set(row, unit, h_.rows(row, unit).get(0), n);
    });
    if (c_.taken()) c_.load(args_.c0, args_.dtype);
  }

  // Rows end with the state that they left.
  void finish() {
    h_.store(args_.hn, args_.dtype);
    if (c_.taken()) c_.store(args_.cn, args_.dtype);
  }

  int64_t row_at(const Step& step, int64_t row) const { return step.begin + row * args_.rows.row_stride; }

  // A tile's rows of a matrix of results, `width` wide.
  StoredRows<T, void> result_rows(void* matrix, int64_t width, const Step& step, const TileOfRows& tile) const {
    return {matrix, args_.dtype, row_at(step, tile.first) * width + tile.unit, args_.rows.row_stride * width};
  }

  // Rows' new states of some units go everywhere.
  struct NewStates {
    UnitRows<T> carried;
    Operand operand;
    StoredRows<T, void> y;
    TileOfRows tile;

    FASTNN_INLINED void set(int64_t row, const Units<T>& h) const {
      carried.set(row, h);
      operand.set(tile.first + row, tile.unit, h, tile.n);
      y.store(row, h, tile.n);
    }
  };
  NewStates new_states(int64_t s, const Step& step, const TileOfRows& tile) const {
    return {h_.rows(tile.first, tile.unit), states_[(s + 1) % 2], result_rows(args_.y, args_.outputs, step, tile),
            tile};
  }

  // What the second phase reads.
  struct NewMiddles {
    Operand operand;
    StoredRows<T, void> saved;
    TileOfRows tile;

    FASTNN_INLINED void set(int64_t row, const Units<T>& units) const {
      operand.set(tile.first + row, tile.unit, units, tile.n);
      if (saved.data) saved.store(row, units, tile.n);
    }
  };
  NewMiddles new_middles(const Step& step, const TileOfRows& tile) const {
    return {middle_, result_rows(args_.middle, args_.hidden, step, tile), tile};
  }

  // The activations and the cells, kept for the backward.
  struct SavedGates {
    StoredRows<T, void> gates, cells;

    FASTNN_INLINED void set(int64_t row, int64_t gate, const Units<T>& units) const {
      if (gates.data) gates.store(row, units, kUnits<T>, gate * kUnits<T>);
    }
    FASTNN_INLINED void set_cells(int64_t row, const Units<T>& c) const {
      if (cells.data) cells.store(row, c, kUnits<T>);
    }
  };
  SavedGates saved_gates(const Step& step, const TileOfRows& tile) const {
    const int64_t row = row_at(step, tile.first), stride = args_.rows.row_stride * kUnits<T>;
    return {{args_.saved, args_.dtype, saved_gates_at<T>(args_.cell, args_.rows, row, tile.block),
             stride * cell_gradients(args_.cell)},
            {args_.saved, args_.dtype, saved_cells_at<T>(args_.rows, args_.hidden, row, tile.block), stride}};
  }

  // Calls visit(tile, sums) with the products of the operand's rows with a block's weights.
  template <int kGates, class Visit>
  void for_each_product(int phase, const Operand& operand, const Step& step, const Piece& piece, const Visit& visit) {
    alignas(64) T sums[kGates * Product::kGateSums];
    for_each_tile<Product>(weights_[phase].outputs, args_.rows.batch, step.rows, piece, [&](const TileOfRows& tile) {
      products_[phase].multiply(operand, tile.first, tile.count, tile.block, sums);
      visit(tile, sums);
    });
  }

  // Zeros without a bias.
  Units<T> bias_units(const void* bias, int64_t gate, const TileOfRows& tile) const {
    return load_units<T>(bias, dtype_of<T>(), gate * args_.hidden + tile.unit, tile.n);
  }

  void advance(int64_t s, const Piece& piece) {
    switch (args_.cell) {
      case Cell::RnnTanh: return advance<Cell::RnnTanh>(s, piece);
      case Cell::RnnRelu: return advance<Cell::RnnRelu>(s, piece);
      case Cell::Lstm: return advance<Cell::Lstm>(s, piece);
      case Cell::Gru: return advance<Cell::Gru>(s, piece);
      case Cell::GruResetBefore: return advance<Cell::GruResetBefore>(s, piece);
    }
  }

  template <Cell cell>
  void advance(int64_t s, const Piece& piece) {
    constexpr int kGates = cell == Cell::GruResetBefore ? 2 : int(cell_gates(cell));
    const Step step = step_at(args_.rows, s);
    const auto inputs = inputs_.make(s, piece);
    for_each_product<kGates>(0, states_[s % 2], step, piece, [&](const TileOfRows& tile, T* sums) {
      advance_tile<cell, kGates>(s, step, tile, inputs_.of_block(inputs, tile.block, tile.first), sums);
    });
  }

  template <Cell cell, int kGates>
  __attribute__((noinline)) void advance_tile(int64_t s, const Step& step, const TileOfRows tile,
                                              const typename Inputs::BlockView inputs, T* sums) {
    Units<T> bias[kGates], bias_n = {};
    for (int gate = 0; gate < kGates; ++gate) bias[gate] = bias_units(args_.bias, gate, tile);
    if (cell == Cell::Gru) bias_n = bias_units(args_.bias_n, 0, tile);
    const NewStates states = new_states(s, step, tile);
    const NewMiddles middles = new_middles(step, tile);
    const SavedGates saved = saved_gates(step, tile);
    const UnitRows<T> cells = cell == Cell::Lstm ? c_.rows(tile.first, tile.unit) : UnitRows<T>{};
    for (int64_t row = 0; row < tile.count; ++row) {
      Units<T> x[4];
#pragma GCC unroll 4
      for (int gate = 0; gate < kGates; ++gate) {
        x[gate] = inputs.get(row, gate);
        add_units(x[gate], bias[gate]);
        if (cell != Cell::Gru || gate != 2) add_units(x[gate], Product::units(sums, gate, row));
      }
      if constexpr (cell == Cell::Lstm) {
        Units<T> c = cells.get(row);
        lstm_gates(x, c);
        cells.set(row, c);
        saved.set_cells(row, c);
        Product::set_units(sums, 3, row, x[3]);
      } else if constexpr (cell == Cell::GruResetBefore) {
        middles.set(row, gru_reset(x, states.carried.get(row)));
        inputs.set(row, 1, x[1]);
      } else if constexpr (cell == Cell::Gru) {
        x[3] = Product::units(sums, 2, row);
        add_units(x[3], bias_n);
        gru_gates(x, x[3]);
        saved.set(row, 3, x[3]);
        Product::set_units(sums, 1, row, x[1]);
        Product::set_units(sums, 2, row, x[2]);
      } else {
        states.set(row, rnn_cell(cell == Cell::RnnRelu, x));
      }
#pragma GCC unroll 4
      for (int gate = 0; gate < kGates; ++gate)
        if (cell != Cell::Gru || gate != 2) saved.set(row, gate, x[gate]);
    }
    // What follows these activations, for all rows again: a row's chain of operations is too long to be hidden behind
    // the next one's.
    if constexpr (cell == Cell::Lstm) {
      const auto finish = [&](const auto& results) FASTNN_INLINED {
        for (int64_t row = 0; row < tile.count; ++row)
          results.set(row, lstm_output(Product::units(sums, 3, row), cells.get(row)));
      };
      projected_ ? finish(middles) : finish(states);
    }
    if constexpr (cell == Cell::Gru)
      for (int64_t row = 0; row < tile.count; ++row) {
        Units<T> n = Product::units(sums, 2, row);
        states.set(row, gru_update(n, Product::units(sums, 1, row), states.carried.get(row)));
        saved.set(row, 2, n);
      }
  }

  void project(int64_t s, const Piece& piece) {
    const Step step = step_at(args_.rows, s);
    for_each_product<1>(1, middle_, step, piece, [&](const TileOfRows& tile, T* sums) {
      const NewStates states = new_states(s, step, tile);
      for (int64_t row = 0; row < tile.count; ++row) states.set(row, Product::units(sums, 0, row));
    });
  }

  // The candidate and the state of a GRU that resets before the product.
  void update(int64_t s, const Piece& piece) {
    const Step step = step_at(args_.rows, s);
    const auto view = inputs_.view(s, piece);
    for_each_product<1>(1, middle_, step, piece, [&](const TileOfRows& tile, T* sums) {
      const Units<T> bias = bias_units(args_.bias, 2, tile);
      const NewStates states = new_states(s, step, tile);
      const SavedGates saved = saved_gates(step, tile);
      const auto inputs = inputs_.of_block(view, tile.block, tile.first);
      for (int64_t row = 0; row < tile.count; ++row) {
        Units<T> candidate = inputs.get(row, 2);
        add_units(candidate, bias);
        add_units(candidate, Product::units(sums, 0, row));
        const Units<T> h = gru_update(candidate, inputs.get(row, 1), states.carried.get(row));
        saved.set(row, 2, candidate);
        states.set(row, h);
      }
    });
  }

  const RecurrentArgs& args_;
  const bool projected_, resets_;
  PhaseWeights weights_[2] = {};
  Split split_{};
  Product products_[2];
  Inputs inputs_;
  Operand states_[2];  // h, as products take it: step s reads states_[s % 2]
  Operand middle_;     // what the second phase reads
  Carried<T> h_, c_;
};

}  // namespace
}  // namespace fastnn
