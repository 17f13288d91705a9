// Recurrent layers on CUDA: see recurrent.h for the formulas, step_cuda.h for a step's product and its cost.
//
// The input's products are one product of all rows: 2 * rows * gates * hidden * inputs operations. Then walk_cuda.h
// goes through the steps, in kernels that fuse the recurrent product with the cell. A step's operand is y of the step
// before (or h0), in its dtype; c, and h of a GRU, are carried in the compute type by the thread that owns them.
//
// Saved is (rows, saved, saved_units(hidden)).
//
// SASS step_kernel_of_tensor_cores: HMMA
// SASS walk_kernel_of_tensor_cores: HMMA
#include "gemm/gemm_cuda.h"
#include "ops/recurrent/walk_cuda.h"
#include "simd/math.h"

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------------------ forward

template <class T>
struct Forward {
  using Value = Compute<T>;
  Cell cell;
  int64_t hidden, outputs, gates;
  Value* sums;  // (rows, gates * hidden): the input's part of each gate, with the biases
  const Value* bias_n;
  T *saved, *middle, *y;
  const T *h0, *c0;
  T *hn, *cn;
  Value *h, *c;  // (batch, hidden), carried; h of a GRU alone

  __device__ const T* state_before(const StepRows& step, int64_t row) const {
    if (row < step.before.rows) return y + step.at(step.before, row) * outputs;
    return h0 ? h0 + row * outputs : nullptr;
  }
  __device__ Value carried(const StepRows& step, const Value* state, const T* start, int64_t row, int64_t unit) const {
    const int64_t at = row * hidden + unit;
    return row < step.before.rows ? state[at] : read_or_zero<Value>(start, at);
  }
  __device__ Value& input(const StepRows& step, int64_t row, int64_t unit, int gate) const {
    return sums[(step.at(step.here, row) * gates + gate) * hidden + unit];
  }
  __device__ void save(const StepRows& step, int64_t row, int64_t unit, int number, Value value) const {
    const int64_t at = (step.at(step.here, row) * cell_saved(cell) + number) * saved_units(hidden) + unit;
    if (saved) saved[at] = to_stored<T>(value);
  }
  __device__ void set_middle(const StepRows& step, int64_t row, int64_t unit, Value value) const {
    middle[step.at(step.here, row) * hidden + unit] = to_stored<T>(value);
  }
  // A row that has no further step leaves its state.
  __device__ void set_state(const StepRows& step, int64_t row, int64_t unit, Value value) const {
    y[step.at(step.here, row) * outputs + unit] = to_stored<T>(value);
    if (h) h[row * hidden + unit] = value;
    if (row >= step.after.rows) hn[row * outputs + unit] = to_stored<T>(value);
  }
};

// The first product of a step: of h and all gates, but n of a GRU that resets before.
template <class T, int kGateCount>
struct GatesPhase {
  using Stored = T;
  using Value = Compute<T>;
  static constexpr int kGates = kGateCount;
  StepWeights<T> weights;
  Forward<T> layer;

  FASTNN_HD int64_t rows(const StepRows& step) const { return step.here.rows; }
  __device__ const T* operand(const StepRows& step, int64_t row) const { return layer.state_before(step, row); }

  __device__ void finish(const StepRows& step, int64_t row, int64_t unit, Value (&sums)[kGates]) const {
    const Value x0 = layer.input(step, row, unit, 0) + sums[0];
    if constexpr (kGates == 1) {
      const Value h = layer.cell == Cell::RnnRelu ? relu_state(x0) : tanh_(x0);
      layer.save(step, row, unit, 0, h);
      return layer.set_state(step, row, unit, h);
    } else {
      const Value x1 = layer.input(step, row, unit, 1) + sums[1];
      const Value first = sigmoid_(x0), second = sigmoid_(x1);
      layer.save(step, row, unit, 0, first);
      layer.save(step, row, unit, 1, second);
      if constexpr (kGates == 2) {
        layer.input(step, row, unit, 1) = second;
        layer.set_middle(step, row, unit, first * layer.carried(step, layer.h, layer.h0, row, unit));
      } else if constexpr (kGates == 3) {
        finish_gru(step, row, unit, first, second, sums[2]);
      } else {
        finish_lstm(step, row, unit, first, second, sums);
      }
    }
  }

 private:
  __device__ void finish_gru(const StepRows& step, int64_t row, int64_t unit, Value r, Value z, Value sum) const {
    const Value hidden_n = sum + (layer.bias_n ? layer.bias_n[unit] : Value(0));
    const Value n = tanh_(layer.input(step, row, unit, 2) + r * hidden_n);
    layer.save(step, row, unit, 2, n);
    layer.save(step, row, unit, 3, hidden_n);
    layer.set_state(step, row, unit, gru_state(n, z, layer.carried(step, layer.h, layer.h0, row, unit)));
  }

  __device__ void finish_lstm(const StepRows& step, int64_t row, int64_t unit, Value i, Value f,
                              const Value (&sums)[kGates]) const {
    const Value g = tanh_(layer.input(step, row, unit, 2) + sums[2]);
    const Value o = sigmoid_(layer.input(step, row, unit, 3) + sums[3]);
    const Value c = lstm_state(i, f, g, layer.carried(step, layer.c, layer.c0, row, unit));
    const Value h = o * tanh_(c);
    const int64_t at = row * layer.hidden + unit;
    layer.c[at] = c;
    if (row >= step.after.rows) layer.cn[at] = to_stored<T>(c);
    layer.save(step, row, unit, 2, g);
    layer.save(step, row, unit, 3, o);
    layer.save(step, row, unit, 4, c);
    layer.middle ? layer.set_middle(step, row, unit, h) : layer.set_state(step, row, unit, h);
  }
};

// The second product of a step: o tanh(c') of an LSTM with its projection, r h of a GRU that resets before with W_hn.
template <class T>
struct MiddlePhase {
  using Stored = T;
  using Value = Compute<T>;
  static constexpr int kGates = 1;
  StepWeights<T> weights;
  Forward<T> layer;

  FASTNN_HD int64_t rows(const StepRows& step) const { return step.here.rows; }
  __device__ const T* operand(const StepRows& step, int64_t row) const {
    return layer.middle + step.at(step.here, row) * layer.hidden;
  }
  __device__ void finish(const StepRows& step, int64_t row, int64_t unit, Value (&sums)[1]) const {
    if (layer.cell == Cell::Lstm) return layer.set_state(step, row, unit, sums[0]);
    const Value n = tanh_(layer.input(step, row, unit, 2) + sums[0]), z = layer.input(step, row, unit, 1);
    layer.save(step, row, unit, 2, n);
    layer.set_state(step, row, unit, gru_state(n, z, layer.carried(step, layer.h, layer.h0, row, unit)));
  }
};

// The input's part of the gates, for all rows.
template <class T>
void input_sums(const RecurrentArgs& args, Compute<T>* sums) {
  const int64_t units = cell_gates(args.cell) * args.hidden;
  GemmArgs gemm{};
  gemm.m = args.rows.n_rows, gemm.n = units, gemm.k = args.inputs;
  gemm.a = args.x, gemm.a_row = args.inputs, gemm.a_column = 1;
  gemm.b = args.weight_ih, gemm.b_row = 1, gemm.b_column = args.inputs;
  gemm.c = sums, gemm.c_row = units;
  gemm.dtype = args.dtype, gemm.c_dtype = dtype_of<Compute<T>>();
  if (args.bias) gemm.bias_kind = GemmBias::PerColumn, gemm.bias = args.bias;
  cuda_gemm(gemm);
}

template <class T, int kGates>
void walk_forward(const RecurrentArgs& args, const Forward<T>& layer) {
  const int64_t hidden = args.hidden, outputs = args.outputs;
  const GatesPhase<T, kGates> gates{
      step_weights<T>(args.weight_hh, hidden, outputs, hidden, outputs, {args.y, args.h0}), layer};
  const void* second = args.weight_hr;
  if (args.cell == Cell::GruResetBefore) second = static_cast<const T*>(args.weight_hh) + 2 * hidden * outputs;
  const MiddlePhase<T> middle{step_weights<T>(second, outputs, hidden, 0, hidden, {layer.middle}), layer};
  run(Walk<GatesPhase<T, kGates>, MiddlePhase<T>>{gates, middle, args.rows, false});
}

template <class T>
void forward_of(const RecurrentArgs& args) {
  using Value = Compute<T>;
  const int64_t hidden = args.hidden, gates = cell_gates(args.cell), n_rows = args.rows.n_rows;
  const bool two_products = args.weight_hr || args.cell == Cell::GruResetBefore;
  const CudaScratch sums(size_t(n_rows * gates * hidden) * sizeof(Value));
  const Carried<Value> carried(args.cell, args.rows.batch, hidden);
  const CudaScratch middle(two_products && !args.middle ? size_t(n_rows * hidden) * sizeof(T) : 0);
  const Forward<T> layer{args.cell,
                         hidden,
                         args.outputs,
                         gates,
                         sums.as<Value>(),
                         static_cast<const Value*>(args.bias_n),
                         static_cast<T*>(args.saved),
                         args.middle ? static_cast<T*>(args.middle) : middle.as<T>(),
                         static_cast<T*>(args.y),
                         static_cast<const T*>(args.h0),
                         static_cast<const T*>(args.c0),
                         static_cast<T*>(args.hn),
                         static_cast<T*>(args.cn),
                         carried.h(),
                         carried.c()};
  input_sums<T>(args, sums.as<Value>());
  switch (args.cell) {
    case Cell::Lstm: return walk_forward<T, 4>(args, layer);
    case Cell::Gru: return walk_forward<T, 3>(args, layer);
    case Cell::GruResetBefore: return walk_forward<T, 2>(args, layer);
    default: return walk_forward<T, 1>(args, layer);
  }
}

void forward(const RecurrentArgs& args) {
  run_layer(args, {args.form_ih, args.form_hh}, [&](auto tag) { forward_of<typename decltype(tag)::type>(args); });
}

}  // namespace

FASTNN_CUDA_KERNEL(recurrent_forward, forward)

}  // namespace fastnn
