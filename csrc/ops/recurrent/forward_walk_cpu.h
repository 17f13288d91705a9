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
      for (Operand& state : states_) state.set(row, unit, h_.get(row, unit), n);
    });
    if (c_.taken()) c_.load(args_.c0, args_.dtype);
  }

  // Rows end with the state that they left.
  void finish() {
    h_.store(args_.hn, args_.dtype);
    if (c_.taken()) c_.store(args_.cn, args_.dtype);
  }

  int64_t row_at(const Step& step, int64_t row) const { return step.begin + row * args_.rows.row_stride; }

  // A row's new state of some units goes everywhere.
  void set_state(int64_t s, const Step& step, int64_t row, int64_t unit, const Units<T>& h, int64_t n) {
    h_.set(row, unit, h);
    states_[(s + 1) % 2].set(row, unit, h, n);
    store_units(args_.y, args_.dtype, row_at(step, row) * args_.outputs + unit, h, n);
  }

  // What the second phase reads.
  void set_middle(const Step& step, int64_t row, int64_t unit, const Units<T>& units, int64_t n) {
    middle_.set(row, unit, units, n);
    if (args_.middle) store_units(args_.middle, args_.dtype, row_at(step, row) * args_.hidden + unit, units, n);
  }

  void save_gate(const Step& step, int64_t row, int64_t block, int64_t gate, const Units<T>& units) {
    if (!args_.saved) return;
    const int64_t at = saved_gates_at<T>(args_.cell, args_.rows, row_at(step, row), block) + gate * kUnits<T>;
    store_units(args_.saved, args_.dtype, at, units, kUnits<T>);
  }
  void save_cells(const Step& step, int64_t row, int64_t block, const Units<T>& c) {
    if (!args_.saved) return;
    const int64_t at = saved_cells_at<T>(args_.rows, args_.hidden, row_at(step, row), block);
    store_units(args_.saved, args_.dtype, at, c, kUnits<T>);
  }

  template <class Visit>
  void for_each_row(int phase, const Operand& operand, const Step& step, const Piece& piece, const Visit& visit) {
    const Product& product = products_[phase];
    const int64_t n_units = weights_[phase].outputs, gates = weights_[phase].gates;
    alignas(64) T sums[4 * Product::kGateSums];
    for_each_tile<Product>(n_units, args_.rows.batch, step.rows, piece,
                           [&](int64_t block, int64_t first, int64_t count) {
                             const int64_t unit = block * kUnits<T>, n = min(kUnits<T>, n_units - unit);
                             product.multiply(operand, first, count, block, sums);
                             for (int64_t i = 0; i < count; ++i) {
                               Units<T> made[4];
                               for (int64_t gate = 0; gate < gates; ++gate) made[gate] = Product::units(sums, gate, i);
                               visit(first + i, block, n, made);
                             }
                           });
  }

  Units<T> bias_units(const void* bias, int64_t at, int64_t n) const {
    return load_units(static_cast<const T*>(bias) + at, n);
  }

  // The input's part of a gate's sum.
  Units<T> input_units(const typename Inputs::View& inputs, int64_t row, int64_t block, int64_t gate, int64_t n) const {
    Units<T> sum = inputs_.get(inputs, row, block, gate);
    if (args_.bias) add_units(sum, bias_units(args_.bias, gate * args_.hidden + block * kUnits<T>, n));
    return sum;
  }

  void advance(int64_t s, const Piece& piece) {
    const Step step = step_at(args_.rows, s);
    const int64_t gates = weights_[0].gates;
    const auto inputs = inputs_.make(s, piece);
    for_each_row(0, states_[s % 2], step, piece, [&](int64_t row, int64_t block, int64_t n, Units<T>* made) {
      const int64_t unit = block * kUnits<T>;
      Units<T> x[4];
      for (int64_t gate = 0; gate < gates; ++gate) {
        x[gate] = input_units(inputs, row, block, gate, n);
        if (args_.cell != Cell::Gru || gate != 2) add_units(x[gate], made[gate]);
      }
      if (args_.cell == Cell::Lstm) {
        Units<T> c = c_.get(row, unit);
        const Units<T> h = lstm_cell(x, c);
        c_.set(row, unit, c);
        save_cells(step, row, block, c);
        projected_ ? set_middle(step, row, unit, h, n) : set_state(s, step, row, unit, h, n);
      } else if (resets_) {
        set_middle(step, row, unit, gru_reset(x, h_.get(row, unit)), n);
        inputs_.set(inputs, row, block, 1, x[1]);
      } else if (args_.cell == Cell::Gru) {
        x[3] = made[2];
        if (args_.bias_n) add_units(x[3], bias_units(args_.bias_n, unit, n));
        set_state(s, step, row, unit, gru_cell(x, x[3], h_.get(row, unit)), n);
        save_gate(step, row, block, 3, x[3]);
      } else {
        set_state(s, step, row, unit, rnn_cell(args_.cell == Cell::RnnRelu, x), n);
      }
      for (int64_t gate = 0; gate < gates; ++gate) save_gate(step, row, block, gate, x[gate]);
    });
  }

  void project(int64_t s, const Piece& piece) {
    const Step step = step_at(args_.rows, s);
    for_each_row(1, middle_, step, piece, [&](int64_t row, int64_t block, int64_t n, Units<T>* made) {
      set_state(s, step, row, block * kUnits<T>, made[0], n);
    });
  }

  // The candidate and the state of a GRU that resets before the product.
  void update(int64_t s, const Piece& piece) {
    const Step step = step_at(args_.rows, s);
    const auto inputs = inputs_.view(s, piece);
    for_each_row(1, middle_, step, piece, [&](int64_t row, int64_t block, int64_t n, Units<T>* made) {
      const int64_t unit = block * kUnits<T>;
      Units<T> candidate = input_units(inputs, row, block, 2, n);
      add_units(candidate, made[0]);
      const Units<T> h = gru_update(candidate, inputs_.get(inputs, row, block, 1), h_.get(row, unit));
      save_gate(step, row, block, 2, candidate);
      set_state(s, step, row, unit, h, n);
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
