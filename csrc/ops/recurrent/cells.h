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
  return sum < T(0) ? T(0) : sum;  // NaN stays
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
  if (relu) return activation > T(0) ? dh : T(0);
  return dh * (T(1) - activation * activation);
}

// dc becomes that of the step before.
template <class T>
FASTNN_HD inline void lstm_gradient(T& input, T& forget, T& candidate, T& output, T tanh_c, T c_before, T dh, T& dc) {
  const T i = input, f = forget, g = candidate, o = output;
  const T d = dc + dh * o * (T(1) - tanh_c * tanh_c);
  input = d * g * i * (T(1) - i);
  forget = d * c_before * f * (T(1) - f);
  candidate = d * i * (T(1) - g * g);
  output = dh * tanh_c * o * (T(1) - o);
  dc = d * f;
}

// (r, z, n, h W_hn^T + b_hn) becomes the gradients of (h's n, r, z, x's n), dh that of the step before, less what comes
// by the products.
template <class T>
FASTNN_HD inline void gru_gradient(T& first, T& second, T& third, T& fourth, T h_before, T& dh) {
  const T r = first, z = second, n = third, hidden_n = fourth;
  const T dn = dh * (T(1) - z) * (T(1) - n * n);
  first = dn * r;
  second = dn * hidden_n * r * (T(1) - r);
  third = dh * (h_before - n) * z * (T(1) - z);
  fourth = dn;
  dh = dh * z;
}

// Of a GRU that resets before the product: the gradients of z and n, then that of r from the one of r h.
template <class T>
FASTNN_HD inline void gru_update_gradient(T& update, T& candidate, T h_before, T& dh) {
  const T z = update, n = candidate;
  update = dh * (h_before - n) * z * (T(1) - z);
  candidate = dh * (T(1) - z) * (T(1) - n * n);
  dh = dh * z;
}
template <class T>
FASTNN_HD inline void gru_reset_gradient(T& reset, T dreset, T h_before, T& dh) {
  const T r = reset;
  reset = dreset * h_before * r * (T(1) - r);
  dh += dreset * r;
}

}  // namespace
}  // namespace fastnn
