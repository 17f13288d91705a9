// What a recurrent kernel does to one row of one block of units between the products: see recurrent.h for the
// formulas. Blocks are of kUnits units; the last one of a layer may be shorter, and its missing units compute on zeros.
#pragma once

#include "gemm/tile.h"
#include "ops/recurrent/cells.h"
#include "simd/convert.h"
#include "simd/element.h"
#include "simd/integer.h"
#include "simd/math.h"

namespace fastnn {
namespace {

template <class T>
constexpr int64_t kUnits = Tile<T>::kColumns;

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

// The units of one row of a block.
template <class T>
struct alignas(2 * kVectorBytes) Units {  // no padding: arrays of them are adjacent
  T v[kUnits<T>];

  T& operator[](int64_t i) { return v[i]; }
  T operator[](int64_t i) const { return v[i]; }
};

template <class T>
inline Units<T> load_units(const T* p, int64_t n) {
  Units<T> units;
  if (n == kUnits<T>) {
    memcpy(units.v, p, sizeof units.v);
  } else {
    for (int64_t i = 0; i < kUnits<T>; ++i) units.v[i] = 0;
    memcpy(units.v, p, size_t(n) * sizeof(T));
  }
  return units;
}

template <class T>
inline void store_units(T* p, const Units<T>& units, int64_t n) {
  memcpy(p, units.v, (n == kUnits<T> ? size_t(kUnits<T>) : size_t(n)) * sizeof(T));
}

// The same of a matrix of a storage type; a null one is zeros.
template <class T>
inline Units<T> load_units(const void* matrix, DType dtype, int64_t at, int64_t n) {
  if (matrix && dtype == dtype_of<T>()) return load_units(static_cast<const T*>(matrix) + at, n);
  Units<T> units;
  if (matrix && dtype == DType::BFloat16 && n == kUnits<T>) {
    const bfloat16* from = static_cast<const bfloat16*>(matrix) + at;
    for (int64_t i = 0; i < kUnits<T>; ++i) units.v[i] = to_compute<T>(from[i]);
    return units;
  }
  for (int64_t i = 0; i < kUnits<T>; ++i) units.v[i] = 0;
  if (matrix)
    FASTNN_LEVEL::load_row(units.v, static_cast<const char*>(matrix) + at * int64_t(item_size(dtype)), dtype, 1, n);
  return units;
}

template <class T>
inline void store_units(void* matrix, DType dtype, int64_t at, const Units<T>& units, int64_t n) {
  if (dtype == dtype_of<T>()) return store_units(static_cast<T*>(matrix) + at, units, n);
  if (dtype == DType::BFloat16 && n == kUnits<T>) {
    bfloat16* to = static_cast<bfloat16*>(matrix) + at;
#pragma GCC ivdep
    for (int64_t i = 0; i < kUnits<T>; ++i) to[i] = to_stored<bfloat16>(units.v[i]);
    return;
  }
  FASTNN_LEVEL::store_row(static_cast<char*>(matrix) + at * int64_t(item_size(dtype)), dtype, 1, units.v, n);
}

template <class T>
inline void add_units(Units<T>& sum, const Units<T>& other) {
  for (int64_t i = 0; i < kUnits<T>; ++i) sum[i] += other[i];
}

#define FASTNN_EACH_UNIT _Pragma("GCC ivdep") for (int64_t i = 0; i < kUnits<T>; ++i)

// Functions of their own: inlined into more, GCC calls their exponentials one by one.
template <class T>
__attribute__((noinline)) void sigmoid_units(T* x, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) x[i] = sigmoid_(x[i]);
}
template <class T>
__attribute__((noinline)) void tanh_units(T* x, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) x[i] = tanh_(x[i]);
}

// ---------------------------------------------------------------------------------- forward
// `x` are the gates' sums, and become the activations.

template <class T>
inline Units<T> rnn_cell(bool relu, Units<T>* x) {
  if (relu) {
    FASTNN_EACH_UNIT x[0][i] = relu_state(x[0][i]);
  } else {
    tanh_units(x[0].v, kUnits<T>);
  }
  return x[0];
}

// c becomes the new one; the result is h before the projection.
template <class T>
inline Units<T> lstm_cell(Units<T>* x, Units<T>& c) {
  sigmoid_units(x[0].v, 2 * kUnits<T>);
  tanh_units(x[2].v, kUnits<T>);
  sigmoid_units(x[3].v, kUnits<T>);
  FASTNN_EACH_UNIT c[i] = lstm_state(x[0][i], x[1][i], x[2][i], c[i]);
  Units<T> h = c;
  tanh_units(h.v, kUnits<T>);
  FASTNN_EACH_UNIT h[i] *= x[3][i];
  return h;
}

// `hidden_n` is h W_hn^T + b_hn.
template <class T>
inline Units<T> gru_cell(Units<T>* x, const Units<T>& hidden_n, const Units<T>& h) {
  Units<T> next;
  sigmoid_units(x[0].v, 2 * kUnits<T>);
  FASTNN_EACH_UNIT x[2][i] += x[0][i] * hidden_n[i];
  tanh_units(x[2].v, kUnits<T>);
  FASTNN_EACH_UNIT next[i] = gru_state(x[2][i], x[1][i], h[i]);
  return next;
}

// The two halves of a GRU that resets before the product: r h, then h'.
template <class T>
inline Units<T> gru_reset(Units<T>* x, const Units<T>& h) {
  Units<T> reset;
  sigmoid_units(x[0].v, 2 * kUnits<T>);
  FASTNN_EACH_UNIT reset[i] = x[0][i] * h[i];
  return reset;
}
template <class T>
inline Units<T> gru_update(Units<T>& n, const Units<T>& z, const Units<T>& h) {
  Units<T> next;
  tanh_units(n.v, kUnits<T>);
  FASTNN_EACH_UNIT next[i] = gru_state(n[i], z[i], h[i]);
  return next;
}

// --------------------------------------------------------------------------------- backward
// `a` are the activations, and become the gradients before them.

template <class T>
inline void rnn_gradient(bool relu, Units<T>* a, const Units<T>& dh) {
  FASTNN_EACH_UNIT a[0][i] = rnn_gradient(relu, a[0][i], dh[i]);
}

// dc becomes that of the step before.
template <class T>
inline void lstm_gradient(Units<T>* a, const Units<T>& c, const Units<T>& c_before, const Units<T>& dh, Units<T>& dc) {
  Units<T> tanh_cell = c;
  tanh_units(tanh_cell.v, kUnits<T>);
  FASTNN_EACH_UNIT lstm_gradient(a[0][i], a[1][i], a[2][i], a[3][i], tanh_cell[i], c_before[i], dh[i], dc[i]);
}

// a = (r, z, n, h W_hn^T + b_hn) becomes the gradients of (h's n, r, z, x's n), dh that of the step before, less
// what comes by the products.
template <class T>
inline void gru_gradient(Units<T>* a, const Units<T>& h_before, Units<T>& dh) {
  FASTNN_EACH_UNIT gru_gradient(a[0][i], a[1][i], a[2][i], a[3][i], h_before[i], dh[i]);
}

// Of a GRU that resets before the product: the gradients of z and n, then that of r from the one of r h.
template <class T>
inline void gru_update_gradient(Units<T>& z, Units<T>& n, const Units<T>& h_before, Units<T>& dh) {
  FASTNN_EACH_UNIT gru_update_gradient(z[i], n[i], h_before[i], dh[i]);
}
template <class T>
inline void gru_reset_gradient(Units<T>& r, const Units<T>& dreset, const Units<T>& h_before, Units<T>& dh) {
  FASTNN_EACH_UNIT gru_reset_gradient(r[i], dreset[i], h_before[i], dh[i]);
}

#undef FASTNN_EACH_UNIT

}  // namespace
}  // namespace fastnn
