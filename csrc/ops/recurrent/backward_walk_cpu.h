// The steps of a recurrent layer backwards: from the gradients of its results to those of its gates (walk_cpu.h).
#pragma once

#include "ops/recurrent/walk_cpu.h"

namespace fastnn {
namespace {

template <class Product>
class BackwardWalk {
  using T = typename Product::Sum;
  using Operand = typename Product::Operand;

 public:
  explicit BackwardWalk(const RecurrentBackwardArgs& args)
      : args_(args),
        projected_(args.weight_hr != nullptr),
        resets_(args.cell == Cell::GruResetBefore),
        width_(cell_gradients(args.cell) * args.hidden) {
    const int64_t hidden = args.hidden, outputs = args.outputs, gates = resets_ ? 2 : cell_gates(args.cell);
    weights_[0] = {args.weight_hh, args.dtype, 1, outputs, gates, hidden, 0, 1, outputs};
    if (args.cell == Cell::Gru) weights_[0].first_run = 2;
    if (projected_) weights_[1] = {args.weight_hr, args.dtype, 1, hidden, 1, outputs, 0, 1, hidden};
    if (resets_) weights_[1] = {weights_[0].at(0, 2 * hidden), args.dtype, 1, hidden, 1, hidden, 0, 1, hidden};
  }

  // False where a number is not one that the products are exact for.
  bool run() {
    const int64_t bytes = packed_bytes(*this);
    if (args_.form_hh) {
      *args_.form_hh = {bytes, Product::kForm};
      return true;
    }
    Arena measure;
    lay_out(measure);
    Arena memory{static_cast<char*>(thread_scratch(Scratch::OperationShared, size_t(measure.used)))};
    lay_out(memory);
    start();
    const int64_t phases = phases_per_step(), work = weights_[0].work() + weights_[1].work();
    const Split split =
        split_work(args_.rows, phases, work, bytes, ceil_div(min(args_.hidden, args_.outputs), kUnits<T>));
    // After the last step its gradients still go back to the first state.
    walk(split, args_.rows.n_steps * phases + 1, work * args_.rows.batch / phases,
         [&](int64_t phase, const Piece& piece) {
           const int64_t s = phase / phases;
           if (phase % phases == 1) return projected_ ? unproject(s, piece) : reset(s, piece);
           go_back(s, piece);
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
    return gates_[0].exact() && gates_[1].exact() && (phases_per_step() == 1 || middle_.exact());
  }

  int64_t phases_per_step() const { return projected_ || resets_ ? 2 : 1; }

  void lay_out(Arena& memory) {
    const int64_t batch = args_.rows.batch;
    place_weights(*this, args_.packed_hh, memory);
    for (Operand& gates : gates_) gates.take(memory, batch, weights_[0].runs * Product::padded(weights_[0].depth));
    if (phases_per_step() == 2) middle_.take(memory, batch, weights_[1].depth);
    dh_.take(memory, batch, args_.outputs);
    if (args_.cell == Cell::Lstm) dc_.take(memory, batch, args_.hidden);
  }

  void start() {
    for (int i = 0; i < phases_per_step() && !args_.packed_hh.ready; ++i) products_[i].pack(weights_[i]);
    dh_.load(args_.dhn, args_.dtype);
    if (dc_.taken()) dc_.load(args_.dcn, args_.dtype);
  }

  void finish() {
    dh_.store(args_.dh0, args_.dtype);
    if (dc_.taken()) dc_.store(args_.dc0, args_.dtype);
  }

  int64_t row_at(const Step& step, int64_t row) const { return step.begin + row * args_.rows.row_stride; }

  // A tile's rows of a matrix, `width` wide.
  template <class Data>
  StoredRows<T, Data> rows_of(Data* matrix, int64_t width, const Step& step, const TileOfRows& tile) const {
    return {matrix, args_.dtype, row_at(step, tile.first) * width + tile.unit, args_.rows.row_stride * width};
  }
  using SavedRows = StoredRows<T, const void>;
  SavedRows saved_gates(const Step& step, const TileOfRows& tile) const {
    return {args_.saved, args_.dtype, saved_gates_at<T>(args_.cell, args_.rows, row_at(step, tile.first), tile.block),
            args_.rows.row_stride * cell_gradients(args_.cell) * kUnits<T>};
  }
  SavedRows saved_cells(const Step& step, const TileOfRows& tile) const {
    return {args_.saved, args_.dtype, saved_cells_at<T>(args_.rows, args_.hidden, row_at(step, tile.first), tile.block),
            args_.rows.row_stride * kUnits<T>};
  }

  // The states that the rows of a step came from: those that the step before made, and for the others the first.
  struct StatesBefore {
    SavedRows made, first;
    int64_t n_made, n_in_made, n_in_first;

    FASTNN_INLINED Units<T> load(int64_t row) const {
      return row < n_made ? made.load(row, n_in_made) : first.load(row, n_in_first);
    }
  };
  SavedRows first_states(const void* states, int64_t width, const TileOfRows& tile) const {
    return {states, args_.dtype, tile.first * width + tile.unit, width};
  }
  StatesBefore h_before(int64_t forward_s, const TileOfRows& tile) const {
    const Step before = step_at(args_.rows, forward_s - 1);
    return {rows_of(args_.y, args_.hidden, before, tile), first_states(args_.h0, args_.hidden, tile),
            before.rows - tile.first, tile.n, tile.n};
  }
  StatesBefore c_before(int64_t forward_s, const TileOfRows& tile) const {
    const Step before = step_at(args_.rows, forward_s - 1);
    return {saved_cells(before, tile), first_states(args_.c0, args_.hidden, tile), before.rows - tile.first, kUnits<T>,
            tile.n};
  }

  // Gates' gradients go to dgates, and to the operand of the next products.
  struct NewGradients {
    StoredRows<T, void> dgates;
    Operand operand;
    TileOfRows tile;
    int64_t hidden, padded_hidden;

    FASTNN_INLINED void store(int64_t row, int64_t gate, const Units<T>& d) const {
      dgates.store(row, d, tile.n, gate * hidden);
    }
    FASTNN_INLINED void set(int64_t row, int64_t gate, const Units<T>& d) const {
      store(row, gate, d);
      operand.set(tile.first + row, gate * padded_hidden + tile.unit, d, tile.n);
    }
  };
  NewGradients new_gradients(int64_t s, const Step& step, const TileOfRows& tile) const {
    return {rows_of(args_.dgates, width_, step, tile), gates_[s % 2], tile, args_.hidden,
            Product::padded(args_.hidden)};
  }

  // dh of the step before the one just made, and the gradients of its gates.
  void go_back(int64_t s, const Piece& piece) {
    const int64_t forward_s = args_.rows.n_steps - 1 - s;
    const Step made = step_at(args_.rows, forward_s + 1), step = step_at(args_.rows, forward_s);
    alignas(64) T sums[Product::kGateSums];
    for_each_tile<Product>(args_.outputs, args_.rows.batch, max(made.rows, step.rows), piece,
                           [&](const TileOfRows& tile) {
                             const int64_t with_sums = min(tile.count, made.rows - tile.first);
                             if (with_sums > 0)
                               products_[0].multiply(gates_[(s + 1) % 2], tile.first, with_sums, tile.block, sums);
                             const UnitRows<T> dh = dh_.rows(tile.first, tile.unit);
                             for (int64_t row = 0; row < with_sums; ++row) {
                               Units<T> sum = dh.get(row);
                               add_units(sum, Product::units(sums, 0, row));
                               dh.set(row, sum);
                             }
                             TileOfRows there = tile;
                             there.count = min(tile.count, step.rows - tile.first);
                             if (there.count > 0) differentiate(s, forward_s, step, there);
                           });
  }

  // Through the cells; dh becomes what goes to the states before it directly.
  void differentiate(int64_t s, int64_t forward_s, const Step& step, const TileOfRows& tile) {
    if (projected_) return differentiate_projected(step, tile);
    switch (args_.cell) {
      case Cell::RnnTanh: return differentiate_rnn<false>(s, step, tile);
      case Cell::RnnRelu: return differentiate_rnn<true>(s, step, tile);
      case Cell::Lstm: return differentiate_lstm(s, forward_s, step, tile, whole_dh(step, tile));
      case Cell::Gru: return differentiate_gru(s, forward_s, step, tile);
      case Cell::GruResetBefore: return differentiate_gru_update(s, forward_s, step, tile);
    }
  }

  // What came from later steps, and dy.
  struct WholeGradients {
    UnitRows<T> dh;
    SavedRows dy;
    int64_t n;

    FASTNN_INLINED Units<T> get(int64_t row) const {
      Units<T> sum = dh.get(row);
      add_units(sum, dy.load(row, n));
      return sum;
    }
    // Leaves nothing for the step before.
    FASTNN_INLINED Units<T> take(int64_t row) const {
      const Units<T> sum = get(row);
      dh.set(row, {});
      return sum;
    }
  };
  WholeGradients whole_dh(const Step& step, const TileOfRows& tile) const {
    return {dh_.rows(tile.first, tile.unit), rows_of(args_.dy, args_.outputs, step, tile), tile.n};
  }

  void differentiate_projected(const Step& step, const TileOfRows& tile) {
    const WholeGradients whole = whole_dh(step, tile);
    const StoredRows<T, void> doutputs = rows_of(args_.doutputs, args_.outputs, step, tile);
    const Operand middle = middle_;
    for (int64_t row = 0; row < tile.count; ++row) {
      const Units<T> dh = whole.take(row);
      middle.set(tile.first + row, tile.unit, dh, tile.n);
      doutputs.store(row, dh, tile.n);
    }
  }

  template <bool relu>
  __attribute__((noinline)) void differentiate_rnn(int64_t s, const Step& step, const TileOfRows tile) {
    const WholeGradients whole = whole_dh(step, tile);
    const SavedRows saved = saved_gates(step, tile);
    const NewGradients gradients = new_gradients(s, step, tile);
    for (int64_t row = 0; row < tile.count; ++row) {
      Units<T> a = saved.load(row, kUnits<T>);
      rnn_gradient(relu, &a, whole.take(row));
      gradients.set(row, 0, a);
    }
  }

  // `whole` gives dh of a row.
  template <class Whole>
  __attribute__((noinline)) void differentiate_lstm(int64_t s, int64_t forward_s, const Step& step,
                                                    const TileOfRows tile, const Whole whole) {
    const SavedRows saved = saved_gates(step, tile), cells = saved_cells(step, tile);
    const StatesBefore before = c_before(forward_s, tile);
    const NewGradients gradients = new_gradients(s, step, tile);
    const UnitRows<T> carried = dc_.rows(tile.first, tile.unit);
    for (int64_t row = 0; row < tile.count; ++row) {
      Units<T> a[4], dc = carried.get(row);
#pragma GCC unroll 4
      for (int gate = 0; gate < 4; ++gate) a[gate] = saved.load(row, kUnits<T>, gate * kUnits<T>);
      lstm_gradient(a, cells.load(row, kUnits<T>), before.load(row), whole.take(row), dc);
      carried.set(row, dc);
#pragma GCC unroll 4
      for (int gate = 0; gate < 4; ++gate) gradients.set(row, gate, a[gate]);
    }
  }

  __attribute__((noinline)) void differentiate_gru(int64_t s, int64_t forward_s, const Step& step,
                                                   const TileOfRows tile) {
    const WholeGradients whole = whole_dh(step, tile);
    const SavedRows saved = saved_gates(step, tile);
    const StatesBefore before = h_before(forward_s, tile);
    const NewGradients gradients = new_gradients(s, step, tile);
    for (int64_t row = 0; row < tile.count; ++row) {
      Units<T> a[4], dh = whole.get(row);
#pragma GCC unroll 4
      for (int gate = 0; gate < 4; ++gate) a[gate] = saved.load(row, kUnits<T>, gate * kUnits<T>);
      gru_gradient(a, before.load(row), dh);
      whole.dh.set(row, dh);
#pragma GCC unroll 3
      for (int gate = 0; gate < 3; ++gate) gradients.set(row, gate, a[gate]);
      gradients.store(row, 3, a[3]);
    }
  }

  // The update gate and the candidate of a GRU that resets before the product.
  void differentiate_gru_update(int64_t s, int64_t forward_s, const Step& step, const TileOfRows& tile) {
    const WholeGradients whole = whole_dh(step, tile);
    const SavedRows saved = saved_gates(step, tile);
    const StatesBefore before = h_before(forward_s, tile);
    const NewGradients gradients = new_gradients(s, step, tile);
    const Operand middle = middle_;
    for (int64_t row = 0; row < tile.count; ++row) {
      Units<T> dh = whole.get(row);
      Units<T> z = saved.load(row, kUnits<T>, kUnits<T>), candidate = saved.load(row, kUnits<T>, 2 * kUnits<T>);
      gru_update_gradient(z, candidate, before.load(row), dh);
      whole.dh.set(row, dh);
      gradients.set(row, 1, z);
      gradients.store(row, 2, candidate);
      middle.set(tile.first + row, tile.unit, candidate, tile.n);
    }
  }

  // Calls visit(tile, sums) with what the second product gives.
  template <class Visit>
  void for_each_second(const Step& step, const Piece& piece, const Visit& visit) {
    alignas(64) T sums[Product::kGateSums];
    for_each_tile<Product>(args_.hidden, args_.rows.batch, step.rows, piece, [&](const TileOfRows& tile) {
      products_[1].multiply(middle_, tile.first, tile.count, tile.block, sums);
      visit(tile, sums);
    });
  }

  // dh before the projection, and the LSTM's gates.
  struct UnprojectedGradients {
    T* sums;
    FASTNN_INLINED Units<T> take(int64_t row) const { return Product::units(sums, 0, row); }
  };
  void unproject(int64_t s, const Piece& piece) {
    const int64_t forward_s = args_.rows.n_steps - 1 - s;
    const Step step = step_at(args_.rows, forward_s);
    for_each_second(step, piece, [&](const TileOfRows& tile, T* sums) {
      differentiate_lstm(s, forward_s, step, tile, UnprojectedGradients{sums});
    });
  }

  // The reset gate of a GRU that resets before the product.
  void reset(int64_t s, const Piece& piece) {
    const int64_t forward_s = args_.rows.n_steps - 1 - s;
    const Step step = step_at(args_.rows, forward_s);
    for_each_second(step, piece, [&](const TileOfRows& tile, T* sums) {
      const UnitRows<T> carried = dh_.rows(tile.first, tile.unit);
      const SavedRows saved = saved_gates(step, tile);
      const StatesBefore before = h_before(forward_s, tile);
      const NewGradients gradients = new_gradients(s, step, tile);
      for (int64_t row = 0; row < tile.count; ++row) {
        Units<T> r = saved.load(row, kUnits<T>), dh = carried.get(row);
        gru_reset_gradient(r, Product::units(sums, 0, row), before.load(row), dh);
        gradients.set(row, 0, r);
        carried.set(row, dh);
      }
    });
  }

  const RecurrentBackwardArgs& args_;
  const bool projected_, resets_;
  const int64_t width_;  // of a row of dgates
  PhaseWeights weights_[2] = {};
  Product products_[2];
  Operand gates_[2];  // their gradients: step s writes gates_[s % 2]
  Operand middle_;
  Carried<T> dh_, dc_;
};

}  // namespace
}  // namespace fastnn
