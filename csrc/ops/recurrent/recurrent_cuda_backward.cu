// Recurrent layers on CUDA, backwards: see recurrent.h for what comes and goes, cells.h for the formulas, step_cuda.h
// for a step's product and its cost.
//
//   dh[step] = dy[step] + dgates[step after] W_hh (+ what a GRU's z carries), then through the cell: dgates[step]
//
// walk_cuda.h goes through the steps from the last to the first, and one more for dh0. Weights are transposed first,
// once a sequence, so that both operands have k as their fast axis: read and written once.
//
// SASS step_kernel_of_tensor_cores: HMMA
// SASS walk_kernel_of_tensor_cores: HMMA
#include "ops/recurrent/walk_cuda.h"
#include "simd/math.h"

namespace fastnn {
namespace {

template <class T>
struct BackwardLayer {
  using Value = Compute<T>;
  Cell cell;
  int64_t hidden, outputs;
  const T *saved, *y, *h0, *c0, *dy, *dhn, *dcn;
  T *dgates, *doutputs, *dh0, *dc0;
  Value *dh, *dc;  // (batch, hidden), carried; dh of a GRU alone

  __device__ int64_t width() const { return cell_gradients(cell) * hidden; }
  __device__ Value activation(const StepRows& step, const Step& of, int64_t row, int64_t unit, int number) const {
    const int64_t at = (step.at(of, row) * cell_saved(cell) + number) * saved_units(hidden) + unit;
    return to_compute<Value>(saved[at]);
  }
  __device__ void set_gate(const StepRows& step, int64_t row, int64_t unit, int gate, Value gradient) const {
    dgates[step.at(step.here, row) * width() + gate * hidden + unit] = to_stored<T>(gradient);
  }
  __device__ Value h_before(const StepRows& step, int64_t row, int64_t unit) const {
    if (row < step.before.rows) return to_compute<Value>(y[step.at(step.before, row) * hidden + unit]);
    return read_or_zero<Value>(h0, row * hidden + unit);
  }

  // The gradient of h that the first product left out: of the last state, or by way of a GRU's z.
  __device__ Value started(const StepRows& step, int64_t row, int64_t unit) const {
    const int64_t at = row * outputs + unit;
    if (row >= step.after.rows) return read_or_zero<Value>(dhn, at);
    return dh ? dh[at] : Value(0);
  }

  __device__ void finish_rnn(const StepRows& step, int64_t row, int64_t unit, Value gradient) const {
    const Value h = activation(step, step.here, row, unit, 0);
    set_gate(step, row, unit, 0, rnn_gradient(cell == Cell::RnnRelu, h, gradient));
  }

  __device__ void finish_lstm(const StepRows& step, int64_t row, int64_t unit, Value gradient) const {
    const int64_t at = row * hidden + unit;
    Value a[4];
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) a[gate] = activation(step, step.here, row, unit, gate);
    const Value c = activation(step, step.here, row, unit, 4);
    const bool starts = row >= step.before.rows;
    const Value c_before = starts ? read_or_zero<Value>(c0, at) : activation(step, step.before, row, unit, 4);
    Value dcell = row < step.after.rows ? dc[at] : read_or_zero<Value>(dcn, at);
    lstm_gradient(a[0], a[1], a[2], a[3], tanh_(c), c_before, gradient, dcell);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) set_gate(step, row, unit, gate, a[gate]);
    dc[at] = dcell;
    if (starts) dc0[at] = to_stored<T>(dcell);
  }

  __device__ void finish_gru(const StepRows& step, int64_t row, int64_t unit, Value gradient) const {
    Value a[4];
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) a[gate] = activation(step, step.here, row, unit, gate);
    gru_gradient(a[0], a[1], a[2], a[3], h_before(step, row, unit), gradient);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) set_gate(step, row, unit, gate, a[gate]);
    dh[row * hidden + unit] = gradient;
  }

  __device__ void finish_update(const StepRows& step, int64_t row, int64_t unit, Value gradient) const {
    Value z = activation(step, step.here, row, unit, 1), n = activation(step, step.here, row, unit, 2);
    gru_update_gradient(z, n, h_before(step, row, unit), gradient);
    set_gate(step, row, unit, 1, z);
    set_gate(step, row, unit, 2, n);
    dh[row * hidden + unit] = gradient;
  }
};

// The first product of a step: the gradients of the step after, back to its h; then through the cell, or to what its
// second product needs.
template <class T>
struct StatePhase {
  using Stored = T;
  using Value = Compute<T>;
  static constexpr int kGates = 1;
  StepWeights<T> weights;
  BackwardLayer<T> layer;

  FASTNN_HD int64_t rows(const StepRows& step) const {
    return step.here.rows > step.after.rows ? step.here.rows : step.after.rows;
  }
  __device__ const T* operand(const StepRows& step, int64_t row) const {
    return row < step.after.rows ? layer.dgates + step.at(step.after, row) * layer.width() : nullptr;
  }
  __device__ void finish(const StepRows& step, int64_t row, int64_t unit, Value (&sums)[1]) const {
    Value gradient = sums[0] + layer.started(step, row, unit);
    if (row >= step.here.rows) {  // its sequence began with the step after
      layer.dh0[row * layer.outputs + unit] = to_stored<T>(gradient);
      return;
    }
    const int64_t at = step.at(step.here, row) * layer.outputs + unit;
    gradient += read_or_zero<Value>(layer.dy, at);
    if (layer.doutputs) {
      layer.doutputs[at] = to_stored<T>(gradient);
      return;
    }
    switch (layer.cell) {
      case Cell::Lstm: return layer.finish_lstm(step, row, unit, gradient);
      case Cell::Gru: return layer.finish_gru(step, row, unit, gradient);
      case Cell::GruResetBefore: return layer.finish_update(step, row, unit, gradient);
      default: return layer.finish_rnn(step, row, unit, gradient);
    }
  }
};

// The second: of an LSTM's projection, or of n to r h in a GRU that resets before.
template <class T>
struct MiddleStatePhase {
  using Stored = T;
  using Value = Compute<T>;
  static constexpr int kGates = 1;
  StepWeights<T> weights;
  BackwardLayer<T> layer;

  FASTNN_HD int64_t rows(const StepRows& step) const { return step.here.rows; }
  __device__ const T* operand(const StepRows& step, int64_t row) const {
    const int64_t at = step.at(step.here, row);
    return layer.doutputs ? layer.doutputs + at * layer.outputs : layer.dgates + at * layer.width() + 2 * layer.hidden;
  }
  __device__ void finish(const StepRows& step, int64_t row, int64_t unit, Value (&sums)[1]) const {
    if (layer.doutputs) return layer.finish_lstm(step, row, unit, sums[0]);
    Value r = layer.activation(step, step.here, row, unit, 0);
    gru_reset_gradient(r, sums[0], layer.h_before(step, row, unit), layer.dh[row * layer.hidden + unit]);
    layer.set_gate(step, row, unit, 0, r);
  }
};

// ----------------------------------------------------------------------------------------- launchers

constexpr int kSquare = 32, kSquareRows = 8;

// to (columns, rows) = from (rows, columns), whose row `first` becomes the first column.
template <class T>
__global__ void __launch_bounds__(kSquare* kSquareRows)
    transpose_kernel(const T* from, int64_t rows, int64_t columns, int64_t first, T* to) {
  __shared__ T square[kSquare][kSquare + 1];
  const int64_t row = int64_t(blockIdx.x) * kSquare, column = int64_t(blockIdx.y) * kSquare;
  for (int i = int(threadIdx.y); i < kSquare; i += kSquareRows)
    if (row + i < rows && column + threadIdx.x < columns)
      square[i][threadIdx.x] = from[(row + i + first) % rows * columns + column + threadIdx.x];
  block_sync();
  for (int i = int(threadIdx.y); i < kSquare; i += kSquareRows)
    if (row + threadIdx.x < rows && column + i < columns)
      to[(column + i) * rows + row + threadIdx.x] = square[threadIdx.x][i];
}

template <class T>
void transpose(const T* from, int64_t rows, int64_t columns, int64_t first, T* to) {
  const auto squares = [](int64_t n) { return unsigned((n + kSquare - 1) / kSquare); };
  launch(transpose_kernel<T>, dim3(squares(rows), squares(columns)), dim3(kSquare, kSquareRows), 0, from, rows, columns,
         first, to);
}

template <class T>
void backward_of(const RecurrentBackwardArgs& args) {
  using Value = Compute<T>;
  const int64_t hidden = args.hidden, outputs = args.outputs;
  const bool resets = args.cell == Cell::GruResetBefore;
  const int64_t depth = (resets ? 2 : cell_gates(args.cell)) * hidden, second_depth = resets ? hidden : outputs;
  const bool two_products = args.weight_hr || resets;
  const CudaScratch first_weights(size_t(outputs * depth) * sizeof(T));
  const CudaScratch second_weights(two_products ? size_t(hidden * second_depth) * sizeof(T) : 0);
  const Carried<Value> carried(args.cell, args.rows.batch, hidden);
  const BackwardLayer<T> layer{args.cell,
                               hidden,
                               outputs,
                               static_cast<const T*>(args.saved),
                               static_cast<const T*>(args.y),
                               static_cast<const T*>(args.h0),
                               static_cast<const T*>(args.c0),
                               static_cast<const T*>(args.dy),
                               static_cast<const T*>(args.dhn),
                               static_cast<const T*>(args.dcn),
                               static_cast<T*>(args.dgates),
                               static_cast<T*>(args.doutputs),
                               static_cast<T*>(args.dh0),
                               static_cast<T*>(args.dc0),
                               carried.h(),
                               carried.c()};

  const T* weights = static_cast<const T*>(args.weight_hh);
  transpose(weights, depth, outputs, args.cell == Cell::Gru ? 2 * hidden : 0, first_weights.as<T>());
  if (two_products)
    transpose(resets ? weights + 2 * hidden * outputs : static_cast<const T*>(args.weight_hr), second_depth, hidden, 0,
              second_weights.as<T>());
  // The operands begin at multiples of the width, of which `depth` may be a part.
  const int64_t width = cell_gradients(args.cell) * hidden;
  const StatePhase<T> state{step_weights<T>(first_weights.as<T>(), outputs, depth, 0, width, {args.dgates}), layer};
  const MiddleStatePhase<T> middle{step_weights<T>(second_weights.as<T>(), hidden, second_depth, 0,
                                                   resets ? hidden : outputs, {resets ? args.dgates : args.doutputs}),
                                   layer};
  run(Walk<StatePhase<T>, MiddleStatePhase<T>>{state, middle, args.rows, true});
}

void backward(const RecurrentBackwardArgs& args) {
  run_layer(args, {args.form_hh}, [&](auto tag) { backward_of<typename decltype(tag)::type>(args); });
}

}  // namespace

FASTNN_CUDA_KERNEL(recurrent_backward, backward)

}  // namespace fastnn
