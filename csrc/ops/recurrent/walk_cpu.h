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
// the weights, and the threads meet after each phase. A sum's order depends on neither.
//
// A Product has: Sum, kRows of a tile, kSums of it for four gates, padded, Operand {take, set, exact}, and
// take, pack, multiply, units, exact.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "core/steps.h"
#include "ops/recurrent/cells_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kCachedWeights = int64_t(1) << 20;  // bytes: half of a second-level cache
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

struct Share {
  int64_t part, parts;
  int64_t begin(int64_t n) const { return n * part / parts; }
  int64_t end(int64_t n) const { return n * (part + 1) / parts; }
};

struct Split {
  bool by_rows;
  int64_t parts;
};

inline Split split_work(const RecurrentRows& rows, int64_t phases, int64_t work, int64_t bytes, int64_t blocks) {
  const int64_t threads = num_threads();
  if (threads == 1 || work * rows.batch * rows.n_steps < kTeamWork) return {true, 1};
  if (bytes <= kCachedWeights && rows.batch >= kLeastRows * threads) return {true, threads};
  const int64_t parts = min(min(threads, blocks), work * rows.batch / (phases * kPieceWork));
  return {false, max(parts, 1)};
}

// Calls piece(phase, rows, units) for phases in order.
template <class Piece>
void walk(const Split& split, int64_t phases, int64_t work, const Piece& piece) {
  constexpr Share kAll{0, 1};
  const int64_t stretch = max(1, kStretchWork / max(1, work));
  for (int64_t first = 0; first < phases; first += stretch) {
    const int64_t count = min(stretch, phases - first);
    if (split.by_rows) {
      parallel_for(split.parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part)
          for (int64_t phase = first; phase < first + count; ++phase) piece(phase, Share{part, split.parts}, kAll);
      });
    } else {
      parallel_steps(count, split.parts,
                     [&](int64_t phase, int64_t part) { piece(first + phase, kAll, Share{part, split.parts}); });
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
  Units<T> get(int64_t row, int64_t unit) const { return load_units(at(row, unit), kUnits<T>); }
  void set(int64_t row, int64_t unit, const Units<T>& units) { store_units(at(row, unit), units, kUnits<T>); }

  // From and to a matrix (rows, units); a null one is zeros.
  void load(const void* matrix, DType dtype) {
    for_each([&](int64_t row, int64_t unit, int64_t n) {
      set(row, unit, load_units<T>(matrix, dtype, row * units_ + unit, n));
    });
  }
  void store(void* matrix, DType dtype) const {
    for_each([&](int64_t row, int64_t unit, int64_t n) {
      store_units(matrix, dtype, row * units_ + unit, get(row, unit), n);
    });
  }
  template <class Visit>
  void for_each(const Visit& visit) const {
    for (int64_t row = 0; row < rows_; ++row)
      for (int64_t unit = 0; unit < units_; unit += kUnits<T>) visit(row, unit, min(kUnits<T>, units_ - unit));
  }

 private:
  T* at(int64_t row, int64_t unit) const { return data_ + (unit / kUnits<T> * rows_ + row) * kUnits<T>; }

  T* data_ = nullptr;
  int64_t rows_ = 0, units_ = 0;
};

// The lines of one row's units of `gates` gates: rows are pages apart, which the hardware does not foresee.
template <class T>
inline void prefetch_units(const T* p, int64_t gates, int64_t gate_stride) {
  for (int64_t gate = 0; gate < gates; ++gate, p += gate_stride)
    for (int64_t i = 0; i < kUnits<T>; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(p + i, 1);
}

// Calls visit(block, row, rows) for the tiles of a piece.
template <class Product, class Visit>
void for_each_tile(int64_t units, int64_t n_rows, const Share& row_share, const Share& unit_share, const Visit& visit) {
  const int64_t blocks = ceil_div(units, kUnits<typename Product::Sum>);
  const int64_t row_end = row_share.end(n_rows), row_begin = row_share.begin(n_rows), count = row_end - row_begin;
  if (count <= 0) return;
  const int64_t height = ceil_div(count, ceil_div(count, Product::kRows));
  for (int64_t block = unit_share.begin(blocks); block < unit_share.end(blocks); ++block)
    for (int64_t row = row_begin; row < row_end; row += height) visit(block, row, min(height, row_end - row));
}

// ---------------------------------------------------------------------------------- forward

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

// --------------------------------------------------------------------------------- backward

template <class Product>
class BackwardWalk {
  using T = typename Product::Sum;
  using Operand = typename Product::Operand;

 public:
  explicit BackwardWalk(const RecurrentBackwardArgs& args)
      : args_(args),
        projected_(args.weight_hr != nullptr),
        resets_(args.cell == Cell::GruResetBefore),
        width_(cell_saved(args.cell) * args.hidden) {
    const int64_t hidden = args.hidden, outputs = args.outputs, gates = resets_ ? 2 : cell_gates(args.cell);
    weights_[0] = {args.weight_hh, args.dtype, 1, outputs, gates, hidden, 0, 1, outputs};
    if (args.cell == Cell::Gru) weights_[0].first_run = 2;
    if (projected_) weights_[1] = {args.weight_hr, args.dtype, 1, hidden, 1, outputs, 0, 1, hidden};
    if (resets_) weights_[1] = {weights_[0].at(0, 2 * hidden), args.dtype, 1, hidden, 1, hidden, 0, 1, hidden};
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
    // After the last step its gradients still go back to the first state.
    walk(split, args_.rows.n_steps * phases + 1, work * args_.rows.batch / phases,
         [&](int64_t phase, const Share& rows, const Share& units) {
           const int64_t s = phase / phases;
           if (phase % phases == 1) return projected_ ? unproject(s, rows, units) : reset(s, rows, units);
           go_back(s, rows, units);
         });
    finish();
    return exact();
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
    for (int i = 0; i < phases_per_step(); ++i) products_[i].take(memory, weights_[i]);
    packed_bytes_ = memory.used;
    for (Operand& gates : gates_) gates.take(memory, batch, weights_[0].runs * Product::padded(weights_[0].depth));
    if (phases_per_step() == 2) middle_.take(memory, batch, weights_[1].depth);
    dh_.take(memory, batch, args_.outputs);
    if (args_.cell == Cell::Lstm) dc_.take(memory, batch, args_.hidden);
  }

  void start() {
    for (int i = 0; i < phases_per_step(); ++i) products_[i].pack(weights_[i]);
    dh_.load(args_.dhn, args_.dtype);
    if (dc_.taken()) dc_.load(args_.dcn, args_.dtype);
  }

  void finish() {
    dh_.store(args_.dh0, args_.dtype);
    if (dc_.taken()) dc_.store(args_.dc0, args_.dtype);
  }

  int64_t row_at(const Step& step, int64_t row) const { return step.begin + row * args_.rows.row_stride; }

  const T* gates_at(const Step& step, int64_t row) const {
    return static_cast<const T*>(args_.gates) + row_at(step, row) * width_;
  }

  // The state (c of an LSTM, else h) that a row of the s-th step came from.
  Units<T> state_before(const void* states, DType dtype, const void* first, int64_t s, int64_t row, int64_t unit,
                        int64_t n) const {
    const Step before = step_at(args_.rows, s - 1);
    if (row < before.rows) return load_units<T>(states, dtype, row_at(before, row) * args_.hidden + unit, n);
    return load_units<T>(first, args_.dtype, row * args_.hidden + unit, n);
  }

  // A gate's gradient goes to dgates and, where `into` is one, to an operand.
  void set_gate(Operand* into, const Step& step, int64_t row, int64_t gate, int64_t unit, const Units<T>& d,
                int64_t n) {
    store_units(args_.dgates, args_.dtype, row_at(step, row) * width_ + gate * args_.hidden + unit, d, n);
    if (into) into->set(row, gate * Product::padded(args_.hidden) + unit, d, n);
  }

  // dh of the step before the one just made, and the gradients of its gates.
  void go_back(int64_t s, const Share& rows, const Share& units) {
    const int64_t forward_s = args_.rows.n_steps - 1 - s;
    const Step made = step_at(args_.rows, forward_s + 1), step = step_at(args_.rows, forward_s);
    const Operand& operand = gates_[(s + 1) % 2];
    const int64_t outputs = args_.outputs;
    alignas(64) T sums[Product::kSums];
    for_each_tile<Product>(
        outputs, max(made.rows, step.rows), rows, units, [&](int64_t block, int64_t first, int64_t count) {
          const int64_t unit = block * kUnits<T>, n = min(kUnits<T>, outputs - unit);
          const int64_t with_sums = min(count, made.rows - first);
          for (int64_t i = 0; i < count && first + i < step.rows && !projected_; ++i)
            prefetch_units(gates_at(step, first + i) + unit, width_ / args_.hidden, args_.hidden);
          if (with_sums > 0) products_[0].multiply(operand, first, with_sums, block, sums);
          for (int64_t i = 0; i < count; ++i) {
            const int64_t row = first + i;
            Units<T> dh = dh_.get(row, unit);
            if (i < with_sums) {
              const Units<T> sum = Product::units(sums, 0, i);
              for (int64_t k = 0; k < kUnits<T>; ++k) dh[k] += sum[k];
            }
            if (row < step.rows) {
              const Units<T> dy = load_units<T>(args_.dy, args_.dtype, row_at(step, row) * outputs + unit, n);
              for (int64_t k = 0; k < kUnits<T>; ++k) dh[k] += dy[k];
              differentiate(s, forward_s, step, row, unit, n, dh);
            }
            dh_.set(row, unit, dh);
          }
        });
  }

  // Through the cell; dh becomes what goes to the state before it directly.
  void differentiate(int64_t s, int64_t forward_s, const Step& step, int64_t row, int64_t unit, int64_t n,
                     Units<T>& dh) {
    if (projected_) {
      middle_.set(row, unit, dh, n);
      store_units(args_.doutputs, args_.dtype, row_at(step, row) * args_.outputs + unit, dh, n);
      return clear(dh);
    }
    const int64_t hidden = args_.hidden;
    const T* saved = gates_at(step, row) + unit;
    Operand& operand = gates_[s % 2];
    if (args_.cell == Cell::Lstm) {
      differentiate_lstm(s, forward_s, step, row, unit, n, dh);
      return clear(dh);
    }
    if (args_.cell < Cell::Lstm) {
      Units<T> a = load_units(saved, n);
      rnn_gradient(args_.cell == Cell::RnnRelu, &a, dh);
      set_gate(&operand, step, row, 0, unit, a, n);
      return clear(dh);
    }
    const Units<T> before = state_before(args_.y, args_.dtype, args_.h0, forward_s, row, unit, n);
    if (resets_) {
      Units<T> z = load_units(saved + hidden, n), candidate = load_units(saved + 2 * hidden, n);
      gru_update_gradient(z, candidate, before, dh);
      set_gate(&operand, step, row, 1, unit, z, n);
      set_gate(nullptr, step, row, 2, unit, candidate, n);
      return middle_.set(row, unit, candidate, n);
    }
    Units<T> a[4];
    for (int64_t gate = 0; gate < 4; ++gate) a[gate] = load_units(saved + gate * hidden, n);
    gru_gradient(a, before, dh);
    for (int64_t gate = 0; gate < 4; ++gate) set_gate(gate < 3 ? &operand : nullptr, step, row, gate, unit, a[gate], n);
  }

  static void clear(Units<T>& units) {
    for (int64_t i = 0; i < kUnits<T>; ++i) units[i] = 0;
  }

  void differentiate_lstm(int64_t s, int64_t forward_s, const Step& step, int64_t row, int64_t unit, int64_t n,
                          const Units<T>& dh) {
    const int64_t hidden = args_.hidden, at = row_at(step, row);
    Units<T> a[4], dc = dc_.get(row, unit);
    const T* saved = gates_at(step, row) + unit;
    for (int64_t gate = 0; gate < 4; ++gate) a[gate] = load_units(saved + gate * hidden, n);
    lstm_gradient(a, load_units(static_cast<const T*>(args_.cells) + at * hidden + unit, n),
                  state_before(args_.cells, dtype_of<T>(), args_.c0, forward_s, row, unit, n), dh, dc);
    dc_.set(row, unit, dc);
    for (int64_t gate = 0; gate < 4; ++gate) set_gate(&gates_[s % 2], step, row, gate, unit, a[gate], n);
  }

  template <class Visit>
  void for_each_second(const Step& step, const Share& rows, const Share& units, const Visit& visit) {
    alignas(64) T sums[Product::kSums];
    for_each_tile<Product>(args_.hidden, step.rows, rows, units, [&](int64_t block, int64_t first, int64_t count) {
      products_[1].multiply(middle_, first, count, block, sums);
      const int64_t unit = block * kUnits<T>, n = min(kUnits<T>, args_.hidden - unit);
      for (int64_t i = 0; i < count; ++i) visit(first + i, unit, n, Product::units(sums, 0, i));
    });
  }

  // dh before the projection, and the LSTM's gates.
  void unproject(int64_t s, const Share& rows, const Share& units) {
    const int64_t forward_s = args_.rows.n_steps - 1 - s;
    const Step step = step_at(args_.rows, forward_s);
    for_each_second(step, rows, units, [&](int64_t row, int64_t unit, int64_t n, const Units<T>& dh) {
      differentiate_lstm(s, forward_s, step, row, unit, n, dh);
    });
  }

  // The reset gate of a GRU that resets before the product.
  void reset(int64_t s, const Share& rows, const Share& units) {
    const int64_t forward_s = args_.rows.n_steps - 1 - s;
    const Step step = step_at(args_.rows, forward_s);
    for_each_second(step, rows, units, [&](int64_t row, int64_t unit, int64_t n, const Units<T>& dreset) {
      Units<T> r = load_units(gates_at(step, row) + unit, n);
      Units<T> dh = dh_.get(row, unit);
      gru_reset_gradient(r, dreset, state_before(args_.y, args_.dtype, args_.h0, forward_s, row, unit, n), dh);
      set_gate(&gates_[s % 2], step, row, 0, unit, r, n);
      dh_.set(row, unit, dh);
    });
  }

  const RecurrentBackwardArgs& args_;
  const bool projected_, resets_;
  const int64_t width_;  // of a row of gates
  PhaseWeights weights_[2] = {};
  Product products_[2];
  Operand gates_[2];  // their gradients: step s writes gates_[s % 2]
  Operand middle_;
  int64_t packed_bytes_ = 0;
  Carried<T> dh_, dc_;
};

}  // namespace
}  // namespace fastnn
