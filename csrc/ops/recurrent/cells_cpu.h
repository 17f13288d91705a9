// What a recurrent kernel does to one row of one block of units between the products: see recurrent.h for the
// formulas, units_cpu.h for the blocks.
//
// A cell is bound by the two vector ports: of an LSTM's unit, five activations of some 18 operations each, beside which
// its sums are loaded and its results stored. So the activations have formulas of their own here, in registers; their
// errors are a few units in the last place, also of results near 0.
#pragma once

#include "ops/recurrent/cells.h"
#include "ops/recurrent/units_cpu.h"
#include "simd/integer.h"
#include "simd/lanes_math.h"

namespace fastnn {
namespace {

// Where the vectors begin that a row saves of a block's gates: [block][row][vector of kUnits]. An LSTM's c follows,
// [block][row], since the backward reads it a step ahead of the gates: all is written and read in order.
template <class T>
inline int64_t saved_gates_at(Cell cell, const RecurrentRows& rows, int64_t row, int64_t block) {
  return (block * rows.n_rows + row) * cell_gradients(cell) * kUnits<T>;
}
template <class T>
inline int64_t saved_cells_at(const RecurrentRows& rows, int64_t hidden, int64_t row, int64_t block) {
  return 4 * rows.n_rows * saved_units(hidden) + (block * rows.n_rows + row) * kUnits<T>;
}

// ------------------------------------------------------------------------------- activations

// Of -limit to limit; NaN is kept.
inline FASTNN_INLINED Values<float> limit_units(Values<float> x, float limit) {
#ifdef __AVX512F__
  return clamp_lanes(x, -limit, limit);
#else
  x = x > limit ? broadcast(limit) : x;
  return x < -limit ? broadcast(-limit) : x;
#endif
}

// a / b, for b not near the largest number.
inline FASTNN_INLINED Values<float> quotient(Values<float> a, Values<float> b) {
#ifdef __AVX512F__
  return a * reciprocal_lanes(b);
#else
  return a / b;
#endif
}

// e^(factor x) = scale e^(factor rest), scale a power of two, |factor rest| <= ln 2 / 2.
struct ExpOfUnits {
  Values<float> scale, rest;
  FASTNN_INLINED ExpOfUnits(Values<float> x, float factor) {
    constexpr float kRoundToExponent = kRoundToInteger + 127.0f;  // leaves the exponent of 2^n in the low bits
    const Values<float> shifted = x * (factor * 1.44269504f) + kRoundToExponent;
    const Values<float> n = shifted - kRoundToExponent;
    scale = Values<float>(Numbers<float>(shifted) << 23);
#if defined(__FMA__) || defined(__aarch64__)
    rest = x - n * (0.693147181f / factor);
#else  // the product is rounded: ln 2 in two parts, the first of few bits
    rest = (x - n * (0.693359375f / factor)) + n * (2.12194440e-4f / factor);
#endif
  }
};

// (e^r - 1 - r) / r^2 at r = factor x, times factor^2; |r| <= ln 2 / 2. To 1.4e-8 of r.
inline FASTNN_INLINED Values<float> exp_excess(Values<float> x, float f) {
  Values<float> p = x * (f * f * f * f * f * f * 0.0013946497f) + f * f * f * f * f * 0.00836661063f;
  p = p * x + f * f * f * f * 0.0416662814f;
  p = p * x + f * f * f * 0.166665428f;
  return p * x + f * f * 0.500000006f;
}

inline FASTNN_INLINED Values<float> sigmoid_of(Values<float> x) {
  const ExpOfUnits e(limit_units(x, 87.0f), -1.0f);
  const Values<float> p = (exp_excess(e.rest, -1.0f) * e.rest - 1.0f) * e.rest + 1.0f;
  return quotient(broadcast(1.0f), p * e.scale + 1.0f);
}

// u / (u + 2) with u = e^2x - 1: near 0, where the scale is 1, as precise as elsewhere.
inline FASTNN_INLINED Values<float> tanh_of(Values<float> x) {
  const ExpOfUnits e(limit_units(x, 10.0f), 2.0f);  // tanh(10) rounds to 1
  const Values<float> p = (exp_excess(e.rest, 2.0f) * e.rest + 2.0f) * e.rest;
  const Values<float> u = p * e.scale + (e.scale - 1.0f);
  return quotient(u, u + 2.0f);
}

inline Values<double> sigmoid_of(Values<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = sigmoid_(x[lane]);
  return x;
}
inline Values<double> tanh_of(Values<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = tanh_(x[lane]);
  return x;
}

// ---------------------------------------------------------------------------------- forward
// `x` are the gates' sums, and become the activations.

template <class T>
inline FASTNN_INLINED Units<T> rnn_cell(bool relu, Units<T>* x) {
  FASTNN_EACH_HALF x[0][i] = relu ? relu_state(x[0][i]) : tanh_of(x[0][i]);
  return x[0];
}

// The gates and c, which becomes the new one; then h before the projection.
template <class T>
inline FASTNN_INLINED void lstm_gates(Units<T>* x, Units<T>& c) {
  FASTNN_EACH_HALF {
    x[0][i] = sigmoid_of(x[0][i]);
    x[1][i] = sigmoid_of(x[1][i]);
    x[2][i] = tanh_of(x[2][i]);
    x[3][i] = sigmoid_of(x[3][i]);
    c[i] = lstm_state(x[0][i], x[1][i], x[2][i], c[i]);
  }
}
template <class T>
inline FASTNN_INLINED Units<T> lstm_output(const Units<T>& output, const Units<T>& c) {
  Units<T> h;
  FASTNN_EACH_HALF h[i] = tanh_of(c[i]) * output[i];
  return h;
}

// r, z and the sum of n. `hidden_n` is h W_hn^T + b_hn.
template <class T>
inline FASTNN_INLINED void gru_gates(Units<T>* x, const Units<T>& hidden_n) {
  FASTNN_EACH_HALF {
    x[0][i] = sigmoid_of(x[0][i]);
    x[1][i] = sigmoid_of(x[1][i]);
    x[2][i] += x[0][i] * hidden_n[i];
  }
}
// The sum of n becomes n; the result is h'.
template <class T>
inline FASTNN_INLINED Units<T> gru_update(Units<T>& n, const Units<T>& z, const Units<T>& h) {
  Units<T> next;
  FASTNN_EACH_HALF {
    n[i] = tanh_of(n[i]);
    next[i] = gru_state(n[i], z[i], h[i]);
  }
  return next;
}

// Of a GRU that resets before the product: r, z; the result is r h.
template <class T>
inline FASTNN_INLINED Units<T> gru_reset(Units<T>* x, const Units<T>& h) {
  Units<T> reset;
  FASTNN_EACH_HALF {
    x[0][i] = sigmoid_of(x[0][i]);
    x[1][i] = sigmoid_of(x[1][i]);
    reset[i] = x[0][i] * h[i];
  }
  return reset;
}

// --------------------------------------------------------------------------------- backward
// `a` are the activations, and become the gradients before them.

template <class T>
inline FASTNN_INLINED void rnn_gradient(bool relu, Units<T>* a, const Units<T>& dh) {
  FASTNN_EACH_HALF a[0][i] = rnn_gradient(relu, a[0][i], dh[i]);
}

// dc becomes that of the step before.
template <class T>
inline FASTNN_INLINED void lstm_gradient(Units<T>* a, const Units<T>& c, const Units<T>& c_before, const Units<T>& dh,
                                         Units<T>& dc) {
  FASTNN_EACH_HALF lstm_gradient(a[0][i], a[1][i], a[2][i], a[3][i], tanh_of(c[i]), c_before[i], dh[i], dc[i]);
}

// a = (r, z, n, h W_hn^T + b_hn) becomes the gradients of (h's n, r, z, x's n), dh that of the step before, less
// what comes by the products.
template <class T>
inline FASTNN_INLINED void gru_gradient(Units<T>* a, const Units<T>& h_before, Units<T>& dh) {
  FASTNN_EACH_HALF gru_gradient(a[0][i], a[1][i], a[2][i], a[3][i], h_before[i], dh[i]);
}

// Of a GRU that resets before the product: the gradients of z and n, then that of r from the one of r h.
template <class T>
inline FASTNN_INLINED void gru_update_gradient(Units<T>& z, Units<T>& n, const Units<T>& h_before, Units<T>& dh) {
  FASTNN_EACH_HALF gru_update_gradient(z[i], n[i], h_before[i], dh[i]);
}
template <class T>
inline FASTNN_INLINED void gru_reset_gradient(Units<T>& r, const Units<T>& dreset, const Units<T>& h_before,
                                              Units<T>& dh) {
  FASTNN_EACH_HALF gru_reset_gradient(r[i], dreset[i], h_before[i], dh[i]);
}

}  // namespace
}  // namespace fastnn
