// Elementwise losses on the CPU: element_functors.h has the formulas.
//
// bytes: every operand once, and one result or gradient; arithmetic: 2 to ~60 operations an element. Rows of
// 512 elements are computed into a buffer in L1, then stored or added up: a chunk's sum goes to its own slot
// and the slots are added in order.
#include "ops/loss/element_functors.h"
#include "ops/loss/loss.h"
#include "simd/convert.h"
#include "simd/row.h"

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------------------- loops

template <class T>
using Loop = void (*)(const T* x, const T* t, const T* a, T* out, int64_t n);

#define FASTNN_LOOP(name, function)                                                                              \
  template <class F, class T>                                                                                    \
  void name(const T* __restrict x, const T* __restrict t, const T* __restrict a, T* __restrict out, int64_t n) { \
    for (int64_t i = 0; i < n; ++i) out[i] = F::function(x[i], t[i], a[i]);                                      \
  }
FASTNN_LOOP(value_loop, value)
FASTNN_LOOP(d_input_loop, d_input)
FASTNN_LOOP(d_target_loop, d_target)
#undef FASTNN_LOOP

template <class T>
struct Loops {
  Loop<T> value, d_input, d_target;
};

template <class T>
Loops<T> loops_of(ElementLoss loss) {
#define FASTNN_CASE(name, Functor) \
  case ElementLoss::name: return {value_loop<Functor, T>, d_input_loop<Functor, T>, d_target_loop<Functor, T>};
  switch (loss) { FASTNN_ELEMENT_LOSSES(FASTNN_CASE) }
#undef FASTNN_CASE
  __builtin_unreachable();
}

// The operands of a row in the compute type: in place where they have it.
template <class T>
struct Row {
  alignas(64) T x_buffer[kRowChunk], t_buffer[kRowChunk], a_buffer[kRowChunk], w_buffer[kRowChunk], out[kRowChunk];
  const T *x, *t, *a, *w;

  explicit Row(const ElementLossArgs& args) : a(a_buffer), w(nullptr) {
    for (int64_t i = 0; i < kRowChunk; ++i) a_buffer[i] = T(args.a_number);
  }
  static const T* load(const void* data, DType dtype, int64_t at, int64_t n, T* buffer) {
    if (dtype == dtype_of<T>()) return static_cast<const T*>(data) + at;
    FASTNN_LEVEL::load_row(buffer, static_cast<const char*>(data) + at * int64_t(item_size(dtype)), dtype, 1, n);
    return buffer;
  }
  void load(const ElementLossArgs& args, int64_t at, int64_t n) {
    x = load(args.input, args.dtype, at, n, x_buffer);
    t = load(args.target, args.dtype, at, n, t_buffer);
    if (args.a) a = load(args.a, args.dtype, at, n, a_buffer);
    if (args.weight) w = load(args.weight, args.dtype, at, n, w_buffer);
  }
  void scale(const T* factors, int64_t n) {
    if (!factors) return;
    for (int64_t i = 0; i < n; ++i) out[i] *= factors[i];
  }
  void scale(T factor, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[i] *= factor;
  }
  void store(void* data, DType dtype, int64_t at, int64_t n) {
    FASTNN_LEVEL::store_row(static_cast<char*>(data) + at * int64_t(item_size(dtype)), dtype, 1, out, n);
  }
};

// Calls run(row, at, n) for the rows of every chunk.
template <class T, class Run>
void for_each_row(const ElementLossArgs& args, Run run) {
  parallel_for(args.n, kElementLossGrain, [&](int64_t begin, int64_t end) {
    Row<T> row(args);
    for (int64_t at = begin; at < end; at += kRowChunk) {
      const int64_t n = end - at < kRowChunk ? end - at : kRowChunk;
      row.load(args, at, n);
      run(row, at, n);
    }
  });
}

template <class T>
void forward_typed(const ElementLossArgs& args) {
  const Loop<T> value = loops_of<T>(args.loss).value;
  const int64_t chunks = (args.n + kElementLossGrain - 1) / kElementLossGrain;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) args.partial_sums[chunk] = 0;
  for_each_row<T>(args, [&](Row<T>& row, int64_t at, int64_t n) {
    value(row.x, row.t, row.a, row.out, n);
    row.scale(row.w, n);
    if (args.values)
      row.store(args.values, args.dtype, at, n);
    else
      args.partial_sums[at / kElementLossGrain] +=
          row_sum<T>(n, [&](int64_t i, int64_t count) FASTNN_INLINED { return load_values<T>(row.out + i, count); });
  });
  if (!args.result) return;
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += args.partial_sums[chunk];
  total *= args.scale;
  FASTNN_LEVEL::store_row(args.result, args.dtype, 1, &total, 1);
}

template <class T>
void backward_typed(const ElementLossArgs& args) {
  const Loops<T> loops = loops_of<T>(args.loss);
  double dy = 0;
  if (!args.dy_per_element) FASTNN_LEVEL::load_row(&dy, args.dy, args.dtype, 1, 1);
  const T gradient = T(dy * args.scale);
  for_each_row<T>(args, [&](Row<T>& row, int64_t at, int64_t n) {
    alignas(64) T dy_buffer[kRowChunk];
    const T* gradients = args.dy_per_element ? Row<T>::load(args.dy, args.dtype, at, n, dy_buffer) : nullptr;
    auto write = [&](Loop<T> slope, void* to) {
      slope(row.x, row.t, row.a, row.out, n);
      row.scale(row.w, n);
      if (gradients)
        row.scale(gradients, n);
      else
        row.scale(gradient, n);
      row.store(to, args.dtype, at, n);
    };
    if (args.d_input) write(loops.d_input, args.d_input);
    if (args.d_target) write(loops.d_target, args.d_target);
  });
}

void forward(const ElementLossArgs& args) {
  args.dtype == DType::Float64 ? forward_typed<double>(args) : forward_typed<float>(args);
}

void backward(const ElementLossArgs& args) {
  args.dtype == DType::Float64 ? backward_typed<double>(args) : backward_typed<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(element_loss_forward, forward)
FASTNN_CPU_KERNEL(element_loss_backward, backward)

}  // namespace fastnn
