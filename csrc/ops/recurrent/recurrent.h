// Recurrent layers over whole sequences: one node for one layer and direction.
//
//   rnn_tanh, rnn_relu   h' = act(x W_ih^T + b_ih + h W_hh^T + b_hh)
//   lstm                 i, f, o = sigmoid(...), g = tanh(...)      c' = f c + i g     h' = o tanh(c') [W_hr^T]
//   gru                  r, z = sigmoid(...)                        h' = (1 - z) n + z h
//                        n = tanh(x W_in^T + b_in + r (h W_hn^T + b_hn))
//   gru_reset_before     n = tanh(x W_in^T + b_in + (r h) W_hn^T + b_hn)          (Cho et al. 2014)
//
// Weights are stacked by gate, in this order, as PyTorch stacks them: i, f, g, o; r, z, n. W_hr (lstm alone) projects
// the state to fewer outputs.
//
// A sequence is steps of rows: x (T, B, I), (B, T, I) when the batch comes first, or packed (rows, I), where step t
// has batch_sizes[t] rows, non-increasing (PackedSequence of PyTorch). Results: y, which is x's shape with `outputs`
// in place of I, and the last states h_n (B, outputs) and c_n (B, hidden).
//
// The input's products are made for a stretch of steps at once, and stay in cache until their steps come. Saved for
// backward, in the dtype of x: the activations, c of an LSTM, and what a second product of a step took. The backward
// walks the steps the other way and gives the gradients of the gates; those of the weights are products over all rows.
// 16-bit types are storage: on the CPU states stay float32 from step to step, y is rounded; on CUDA a step's product
// takes y as it is stored. There is no second derivative.
#pragma once

#include <string>
#include <vector>

#include "core/kernel.h"
#include "core/tensor.h"

namespace fastnn {

enum class Cell : uint8_t { RnnTanh, RnnRelu, Lstm, Gru, GruResetBefore };

// Stacked in the weights.
constexpr int64_t cell_gates(Cell cell) { return cell == Cell::Lstm ? 4 : cell >= Cell::Gru ? 3 : 1; }
// Gradients that a row has in dgates: a GRU that resets after tells those of h's n and of x's n apart.
constexpr int64_t cell_gradients(Cell cell) { return cell == Cell::Gru ? 4 : cell_gates(cell); }
// Numbers that a unit saves: the activations, h W_hn^T + b_hn of a GRU that resets after, c of an LSTM.
constexpr int64_t cell_saved(Cell cell) { return cell_gradients(cell) + (cell == Cell::Lstm ? 1 : 0); }
// The columns that `hidden` units take where they are saved: blocks of which each level's kernels know the order.
constexpr int64_t saved_units(int64_t hidden) { return (hidden + 31) / 32 * 32; }

// Row b of step t lies at begin(t) + b * row_stride.
struct RecurrentRows {
  int64_t n_steps, batch, n_rows;
  const int64_t* batch_sizes;  // of each step, non-increasing; null: `batch` each
  const int64_t* begins;       // of each step; null: t * step_stride
  int64_t step_stride, row_stride;
  bool reverse;  // the last step comes first
};

// Memory for weights as the kernels pack them, to be used by later calls, too: null unless it is offered. A call packs
// into it unless it is ready.
struct PackedWeights {
  void* data;
  bool ready;
};
// What a call would pack: as many bytes, in a form told by a number.
struct PackedForm {
  int64_t bytes, form;
};

// Matrices are contiguous. Of `dtype`, unless "compute" (float64, or float32).
struct RecurrentArgs {
  Cell cell;
  DType dtype;
  int64_t inputs, hidden, outputs;
  RecurrentRows rows;
  const void* x;          // (rows, inputs)
  const void* weight_ih;  // (gates * hidden, inputs)
  const void* weight_hh;  // (gates * hidden, outputs)
  const void* weight_hr;  // (outputs, hidden); null: outputs = hidden
  const void* bias;       // compute: (gates * hidden), all that is added before the activations; null: none
  const void* bias_n;     // compute: of h W_hn^T in Cell::Gru; null: none
  void* saved;            // (rows, saved * saved_units(hidden)); null unless there will be a backward
  void* middle;           // (rows, hidden): the operand of a step's second product; null likewise, or without one
  void* y;                // (rows, outputs)
  const void *h0, *c0;    // (batch, outputs), (batch, hidden); null: zeros
  void *hn, *cn;          // of these shapes; cn null unless an LSTM
  PackedWeights packed_ih, packed_hh;  // packed_hh has weight_hr, too
  PackedForm *form_ih, *form_hh;       // where not null, they are told, and nothing else is done
};
extern Kernel<RecurrentArgs> recurrent_forward;

// dgates is (rows, gradients * hidden), the gradients before the activations. Cell::Gru keeps them in the order
// (n times r, r, z, n): the first three are of h's products, the last three of x's.
struct RecurrentBackwardArgs {
  Cell cell;
  DType dtype;
  int64_t hidden, outputs;
  RecurrentRows rows;
  const void *weight_hh, *weight_hr;
  const void* saved;
  const void* y;               // null unless a GRU
  const void *h0, *c0;         // null: zeros
  const void *dy, *dhn, *dcn;  // null: zeros
  void* dgates;
  void* doutputs;   // (rows, outputs): the whole gradient of y; null without a projection
  void *dh0, *dc0;  // dc0 null unless an LSTM
  PackedWeights packed_hh;
  PackedForm* form_hh;  // as in RecurrentArgs
};
extern Kernel<RecurrentBackwardArgs> recurrent_backward;

struct RecurrentWeights {
  Tensor ih, hh, bias_ih, bias_hh, hr;  // the biases may be undefined, hr is so without a projection
};

struct RecurrentOptions {
  Cell cell;
  bool batch_first = false;  // of a 3-D x
  bool reverse = false;
  std::vector<int64_t> batch_sizes;  // of a packed, 2-D x
};

// {y, h_n}, and c_n of an LSTM. The states may be undefined: zeros.
std::vector<Tensor> recurrent(const Tensor& x, const RecurrentWeights& weights, const Tensor& h0, const Tensor& c0,
                              const RecurrentOptions& options);

// "rnn_tanh", "rnn_relu", "lstm", "gru" or "gru_reset_before". Throws ValueError for any other word.
Cell parse_cell(const std::string& name);

}  // namespace fastnn
