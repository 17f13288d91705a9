// The formulas of one unit of a recurrent cell, apart from products and activations, for CPU levels and for CUDA; and
// the order of the steps. See recurrent.h for the cells.
#pragma once

#include "ops/recurrent/recurrent.h"
#include "simd/half.h"

namespace fastnn {
namespace {

// The s-th step in the order of processing; none outside of the sequence.
struct Step {
  int64_t begin = 0, rows = 0;
};
FASTNN_HD inline Step step_at(const RecurrentRows& rows, int64_t s) {
  if (s < 0 || s >= rows.n_steps) return {};
  const int64_t t = rows.reverse ? rows.n_steps - 1 - s : s;
  if (!rows.batch_sizes) return {t * rows.step_stride, rows.batch};
  return {rows.begins[t], rows.batch_sizes[t]};
}

// ---------------------------------------------------------------------------------- forward

template <class T>
FASTNN_HD inline T relu_state(T sum) {
  return sum < 0.0f ? T{} : sum;  // NaN stays
}
template <class T>
FASTNN_HD inline T lstm_state(T input, T forget, T candidate, T c) {
  return forget * c + input * candidate;
}
// `update` is z, `candidate` is n.
template <class T>
FASTNN_HD inline T gru_state(T candidate, T update, T h) {
  return candidate + update * (h - candidate);
}

// --------------------------------------------------------------------------------- backward
// Activations become the gradients before them.

template <class T>
FASTNN_HD inline T rnn_gradient(bool relu, T activation, T dh) {
  if (relu) return activation > 0.0f ? dh : T{};
  return dh * (1.0f - activation * activation);
}

// dc becomes that of the step before.
template <class T>
FASTNN_HD inline void lstm_gradient(T& input, T& forget, T& candidate, T& output, T tanh_c, T c_before, T dh, T& dc) {
  const T i = input, f = forget, g = candidate, o = output;
  const T d = dc + dh * o * (1.0f - tanh_c * tanh_c);
  input = d * g * i * (1.0f - i);
  forget = d * c_before * f * (1.0f - f);
  candidate = d * i * (1.0f - g * g);
  output = dh * tanh_c * o * (1.0f - o);
  dc = d * f;
}

// (r, z, n, h W_hn^T + b_hn) becomes the gradients of (h's n, r, z, x's n), dh that of the step before, less what comes
// by the products.
template <class T>
FASTNN_HD inline void gru_gradient(T& first, T& second, T& third, T& fourth, T h_before, T& dh) {
  const T r = first, z = second, n = third, hidden_n = fourth;
  const T dn = dh * (1.0f - z) * (1.0f - n * n);
  first = dn * r;
  second = dn * hidden_n * r * (1.0f - r);
  third = dh * (h_before - n) * z * (1.0f - z);
  fourth = dn;
  dh = dh * z;
}

// Of a GRU that resets before the product: the gradients of z and n, then that of r from the one of r h.
template <class T>
FASTNN_HD inline void gru_update_gradient(T& update, T& candidate, T h_before, T& dh) {
  const T z = update, n = candidate;
  update = dh * (h_before - n) * z * (1.0f - z);
  candidate = dh * (1.0f - z) * (1.0f - n * n);
  dh = dh * z;
}
template <class T>
FASTNN_HD inline void gru_reset_gradient(T& reset, T dreset, T h_before, T& dh) {
  const T r = reset;
  reset = dreset * h_before * r * (1.0f - r);
  dh += dreset * r;
}

}  // namespace
}  // namespace fastnn
