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

  Units<T> saved_gate(const Step& step, int64_t row, int64_t block, int64_t gate) const {
    const int64_t at = saved_gates_at<T>(args_.cell, args_.rows, row_at(step, row), block) + gate * kUnits<T>;
    return load_units<T>(args_.saved, args_.dtype, at, kUnits<T>);
  }
  Units<T> saved_cells(const Step& step, int64_t row, int64_t block) const {
    const int64_t at = saved_cells_at<T>(args_.rows, args_.hidden, row_at(step, row), block);
    return load_units<T>(args_.saved, args_.dtype, at, kUnits<T>);
  }

  // h that a row of the s-th step came from.
  Units<T> h_before(int64_t forward_s, int64_t row, int64_t unit, int64_t n) const {
    const Step before = step_at(args_.rows, forward_s - 1);
    if (row < before.rows) return load_units<T>(args_.y, args_.dtype, row_at(before, row) * args_.hidden + unit, n);
    return load_units<T>(args_.h0, args_.dtype, row * args_.hidden + unit, n);
  }
  Units<T> c_before(int64_t forward_s, int64_t row, int64_t block, int64_t n) const {
    const Step before = step_at(args_.rows, forward_s - 1);
    if (row < before.rows) return saved_cells(before, row, block);
    return load_units<T>(args_.c0, args_.dtype, row * args_.hidden + block * kUnits<T>, n);
  }

  // A gate's gradient goes to dgates and, where `into` is one, to an operand.
  void set_gate(Operand* into, const Step& step, int64_t row, int64_t gate, int64_t unit, const Units<T>& d,
                int64_t n) {
    store_units(args_.dgates, args_.dtype, row_at(step, row) * width_ + gate * args_.hidden + unit, d, n);
    if (into) into->set(row, gate * Product::padded(args_.hidden) + unit, d, n);
  }

  // dh of the step before the one just made, and the gradients of its gates.
  void go_back(int64_t s, const Piece& piece) {
    const int64_t forward_s = args_.rows.n_steps - 1 - s, outputs = args_.outputs;
    const Step made = step_at(args_.rows, forward_s + 1), step = step_at(args_.rows, forward_s);
    const Operand& operand = gates_[(s + 1) % 2];
    const int64_t n_rows = max(made.rows, step.rows);
    alignas(64) T sums[Product::kGateSums];
    for_each_tile<Product>(outputs, args_.rows.batch, n_rows, piece, [&](int64_t block, int64_t first, int64_t count) {
      const int64_t unit = block * kUnits<T>, n = min(kUnits<T>, outputs - unit);
      const int64_t with_sums = min(count, made.rows - first);
      if (with_sums > 0) products_[0].multiply(operand, first, with_sums, block, sums);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = first + i;
        Units<T> dh = dh_.get(row, unit);
        if (i < with_sums) add_units(dh, Product::units(sums, 0, i));
        if (row < step.rows) {
          add_units(dh, load_units<T>(args_.dy, args_.dtype, row_at(step, row) * outputs + unit, n));
          differentiate(s, forward_s, step, row, block, n, dh);
        }
        dh_.set(row, unit, dh);
      }
    });
  }

  // Through the cell; dh becomes what goes to the state before it directly.
  void differentiate(int64_t s, int64_t forward_s, const Step& step, int64_t row, int64_t block, int64_t n,
                     Units<T>& dh) {
    const int64_t unit = block * kUnits<T>;
    if (projected_) {
      middle_.set(row, unit, dh, n);
      store_units(args_.doutputs, args_.dtype, row_at(step, row) * args_.outputs + unit, dh, n);
      return clear(dh);
    }
    Operand& operand = gates_[s % 2];
    if (args_.cell == Cell::Lstm) {
      differentiate_lstm(s, forward_s, step, row, block, n, dh);
      return clear(dh);
    }
    if (args_.cell < Cell::Lstm) {
      Units<T> a = saved_gate(step, row, block, 0);
      rnn_gradient(args_.cell == Cell::RnnRelu, &a, dh);
      set_gate(&operand, step, row, 0, unit, a, n);
      return clear(dh);
    }
    const Units<T> before = h_before(forward_s, row, unit, n);
    if (resets_) {
      Units<T> z = saved_gate(step, row, block, 1), candidate = saved_gate(step, row, block, 2);
      gru_update_gradient(z, candidate, before, dh);
      set_gate(&operand, step, row, 1, unit, z, n);
      set_gate(nullptr, step, row, 2, unit, candidate, n);
      return middle_.set(row, unit, candidate, n);
    }
    Units<T> a[4];
    for (int64_t gate = 0; gate < 4; ++gate) a[gate] = saved_gate(step, row, block, gate);
    gru_gradient(a, before, dh);
    for (int64_t gate = 0; gate < 4; ++gate) set_gate(gate < 3 ? &operand : nullptr, step, row, gate, unit, a[gate], n);
  }

  static void clear(Units<T>& units) {
    for (int64_t i = 0; i < kUnits<T>; ++i) units[i] = 0;
  }

  void differentiate_lstm(int64_t s, int64_t forward_s, const Step& step, int64_t row, int64_t block, int64_t n,
                          const Units<T>& dh) {
    const int64_t unit = block * kUnits<T>;
    Units<T> a[4], dc = dc_.get(row, unit);
    for (int64_t gate = 0; gate < 4; ++gate) a[gate] = saved_gate(step, row, block, gate);
    lstm_gradient(a, saved_cells(step, row, block), c_before(forward_s, row, block, n), dh, dc);
    dc_.set(row, unit, dc);
    for (int64_t gate = 0; gate < 4; ++gate) set_gate(&gates_[s % 2], step, row, gate, unit, a[gate], n);
  }

  template <class Visit>
  void for_each_second(const Step& step, const Piece& piece, const Visit& visit) {
    alignas(64) T sums[Product::kGateSums];
    for_each_tile<Product>(args_.hidden, args_.rows.batch, step.rows, piece,
                           [&](int64_t block, int64_t first, int64_t count) {
                             products_[1].multiply(middle_, first, count, block, sums);
                             const int64_t n = min(kUnits<T>, args_.hidden - block * kUnits<T>);
                             for (int64_t i = 0; i < count; ++i) visit(first + i, block, n, Product::units(sums, 0, i));
                           });
  }

  // dh before the projection, and the LSTM's gates.
  void unproject(int64_t s, const Piece& piece) {
    const int64_t forward_s = args_.rows.n_steps - 1 - s;
    const Step step = step_at(args_.rows, forward_s);
    for_each_second(step, piece, [&](int64_t row, int64_t block, int64_t n, const Units<T>& dh) {
      differentiate_lstm(s, forward_s, step, row, block, n, dh);
    });
  }

  // The reset gate of a GRU that resets before the product.
  void reset(int64_t s, const Piece& piece) {
    const int64_t forward_s = args_.rows.n_steps - 1 - s;
    const Step step = step_at(args_.rows, forward_s);
    for_each_second(step, piece, [&](int64_t row, int64_t block, int64_t n, const Units<T>& dreset) {
      const int64_t unit = block * kUnits<T>;
      Units<T> r = saved_gate(step, row, block, 0);
      Units<T> dh = dh_.get(row, unit);
      gru_reset_gradient(r, dreset, h_before(forward_s, row, unit, n), dh);
      set_gate(&gates_[s % 2], step, row, 0, unit, r, n);
      dh_.set(row, unit, dh);
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
