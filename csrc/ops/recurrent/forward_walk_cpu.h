// The steps of a recurrent layer, from the first state to the last (walk_cpu.h).
#pragma once

#include "ops/recurrent/walk_cpu.h"

namespace fastnn {
namespace {

template <class Product>
class ForwardWalk {
  using T = typename Product::Sum;
  using Operand = typename Product::Operand;

 public:
  explicit ForwardWalk(const RecurrentArgs& args)
      : args_(args),
        projected_(args.weight_hr != nullptr),
        resets_(args.cell == Cell::GruResetBefore),
        width_(cell_saved(args.cell) * args.hidden) {
    const int64_t gates = cell_gates(args.cell), hidden = args.hidden, outputs = args.outputs;
    weights_[0] = {args.weight_hh, args.dtype, resets_ ? 2 : gates, hidden, 1, outputs, hidden * outputs, outputs, 1};
    if (projected_) weights_[1] = {args.weight_hr, args.dtype, 1, outputs, 1, hidden, 0, hidden, 1};
    if (resets_) weights_[1] = {weights_[0].at(2, 0), args.dtype, 1, hidden, 1, hidden, 0, hidden, 1};
  }

  // False where a number is not one that the products are exact for.
  bool run() {
    Arena measure;
    lay_out(measure);
    Arena memory{static_cast<char*>(thread_scratch(Scratch::OperationShared, size_t(measure.used)))};
    lay_out(memory);
    start();
    const int64_t phases = phases_per_step(), work = weights_[0].work() + weights_[1].work();
    const Split split =
        split_work(args_.rows, phases, work, packed_bytes_, ceil_div(min(args_.hidden, args_.outputs), kUnits<T>));
    walk(split, args_.rows.n_steps * phases, work * args_.rows.batch / phases,
         [&](int64_t phase, const Share& rows, const Share& units) {
           const int64_t s = phase / phases;
           if (phase % phases == 1) return projected_ ? project(s, rows, units) : update(s, rows, units);
           advance(s, rows, units);
         });
    finish();
    return exact();
  }

 private:
  bool exact() const {
    for (int i = 0; i < phases_per_step(); ++i)
      if (!products_[i].exact()) return false;
    return states_[0].exact() && states_[1].exact() && (phases_per_step() == 1 || middle_.exact());
  }

  int64_t phases_per_step() const { return projected_ || resets_ ? 2 : 1; }

  void lay_out(Arena& memory) {
    const int64_t batch = args_.rows.batch;
    for (int i = 0; i < phases_per_step(); ++i) products_[i].take(memory, weights_[i]);
    packed_bytes_ = memory.used;
    for (Operand& state : states_) state.take(memory, batch, args_.outputs);
    if (phases_per_step() == 2) middle_.take(memory, batch, args_.hidden);
    h_.take(memory, batch, args_.outputs);
    if (args_.cell == Cell::Lstm) c_.take(memory, batch, args_.hidden);
  }

  void start() {
    for (int i = 0; i < phases_per_step(); ++i) products_[i].pack(weights_[i]);
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

  // A row's new state of some units goes everywhere.
  void set_state(int64_t s, const Step& step, int64_t row, int64_t unit, const Units<T>& h, int64_t n) {
    h_.set(row, unit, h);
    states_[(s + 1) % 2].set(row, unit, h, n);
    store_units(args_.y, args_.dtype, (step.begin + row * args_.rows.row_stride) * args_.outputs + unit, h, n);
  }

  template <class Visit>
  void for_each_row(int phase, const Operand& operand, const Step& step, const Share& rows, const Share& units,
                    const Visit& visit) {
    const Product& product = products_[phase];
    const int64_t n_units = weights_[phase].outputs, gates = weights_[phase].gates;
    alignas(64) T sums[Product::kSums];
    for_each_tile<Product>(n_units, step.rows, rows, units, [&](int64_t block, int64_t first, int64_t count) {
      const int64_t unit = block * kUnits<T>, n = min(kUnits<T>, n_units - unit);
      for (int64_t i = 0; i < count; ++i) prefetch_units(gates_at(step, first + i) + unit, gates, args_.hidden);
      product.multiply(operand, first, count, block, sums);
      for (int64_t i = 0; i < count; ++i) {
        Units<T> made[4];
        for (int64_t gate = 0; gate < gates; ++gate) made[gate] = Product::units(sums, gate, i);
        visit(first + i, unit, n, made);
      }
    });
  }

  T* gates_at(const Step& step, int64_t row) const {
    return static_cast<T*>(args_.gates) + (step.begin + row * args_.rows.row_stride) * width_;
  }

  void advance(int64_t s, const Share& rows, const Share& units) {
    const Step step = step_at(args_.rows, s);
    const int64_t hidden = args_.hidden, gates = weights_[0].gates;
    for_each_row(0, states_[s % 2], step, rows, units, [&](int64_t row, int64_t unit, int64_t n, Units<T>* made) {
      T* saved = gates_at(step, row) + unit;
      Units<T> x[4];
      for (int64_t gate = 0; gate < gates; ++gate) {
        x[gate] = load_units(saved + gate * hidden, n);
        if (args_.cell == Cell::Gru && gate == 2) continue;
        for (int64_t i = 0; i < kUnits<T>; ++i) x[gate][i] += made[gate][i];
      }
      int64_t kept = args_.save || resets_ ? gates : 0;
      if (args_.cell == Cell::Lstm) {
        Units<T> c = c_.get(row, unit);
        const Units<T> h = lstm_cell(x, c);
        c_.set(row, unit, c);
        const int64_t at = (step.begin + row * args_.rows.row_stride) * hidden + unit;
        if (args_.cells) store_units(static_cast<T*>(args_.cells) + at, c, n);
        if (!projected_) {
          set_state(s, step, row, unit, h, n);
        } else {
          middle_.set(row, unit, h, n);
          if (args_.unprojected) store_units(args_.unprojected, args_.dtype, at, h, n);
        }
      } else if (resets_) {
        middle_.set(row, unit, gru_reset(x, h_.get(row, unit)), n);
      } else if (args_.cell == Cell::Gru) {
        x[3] = made[2];
        if (args_.bias_n) {
          const Units<T> bias = load_units(static_cast<const T*>(args_.bias_n) + unit, n);
          for (int64_t i = 0; i < kUnits<T>; ++i) x[3][i] += bias[i];
        }
        set_state(s, step, row, unit, gru_cell(x, x[3], h_.get(row, unit)), n);
        kept = args_.save ? 4 : 0;
      } else {
        set_state(s, step, row, unit, rnn_cell(args_.cell == Cell::RnnRelu, x), n);
      }
      for (int64_t gate = 0; gate < kept; ++gate) store_units(saved + gate * hidden, x[gate], n);
    });
  }

  void project(int64_t s, const Share& rows, const Share& units) {
    const Step step = step_at(args_.rows, s);
    for_each_row(1, middle_, step, rows, units, [&](int64_t row, int64_t unit, int64_t n, Units<T>* made) {
      set_state(s, step, row, unit, made[0], n);
    });
  }

  // The candidate and the state of a GRU that resets before the product.
  void update(int64_t s, const Share& rows, const Share& units) {
    const Step step = step_at(args_.rows, s);
    const int64_t hidden = args_.hidden;
    for_each_row(1, middle_, step, rows, units, [&](int64_t row, int64_t unit, int64_t n, Units<T>* made) {
      T* saved = gates_at(step, row) + unit;
      Units<T> candidate = load_units(saved + 2 * hidden, n);
      for (int64_t i = 0; i < kUnits<T>; ++i) candidate[i] += made[0][i];
      const Units<T> h = gru_update(candidate, load_units(saved + hidden, n), h_.get(row, unit));
      if (args_.save) store_units(saved + 2 * hidden, candidate, n);
      set_state(s, step, row, unit, h, n);
    });
  }

  const RecurrentArgs& args_;
  const bool projected_, resets_;
  const int64_t width_;  // of a row of gates
  PhaseWeights weights_[2] = {};
  Product products_[2];
  Operand states_[2];  // h, as products take it: step s reads states_[s % 2]
  Operand middle_;     // what the second phase reads
  int64_t packed_bytes_ = 0;
  Carried<T> h_, c_;
};

}  // namespace
}  // namespace fastnn
