// Elementwise kernels on the CPU.
//
//   out[i] = f(in...[i])        bytes: every operand once; arithmetic: 1 to ~25 operations an element
//
// The range is flattened. Operands that are contiguous in the compute type are read and written in
// place; others are gathered row by row into 512-element buffers (simd/convert.h), so that every
// formula is one plain loop over contiguous values, which the compiler vectorises. A result too large
// for the caches is streamed: from registers by formulas written on them, else from such a buffer.
#include "ops/elementwise/elementwise.h"

#include "simd/convert.h"
#include "simd/element.h"
#include "simd/lanes_math.h"
#include "simd/stream.h"

namespace fastnn {
namespace {

// Contiguous loops: in[k] holds the k-th operand's n values. `streams` tells that results go past the caches.
struct Loop {
  void (*run)(const void* const* in, void* out, int64_t n, const double* params) = nullptr;
  bool streams = false;
};

template <class T>
Params<T> params_of(const double* p) {
  return {static_cast<T>(p[0]), static_cast<T>(p[1])};
}

template <class F, class = void>
constexpr float kFloatLimit = INFINITY;
template <class F>
constexpr float kFloatLimit<F, decltype(void(F::kFloatLimit))> = F::kFloatLimit;

// Is any |x| above the limit, or NaN?
inline bool any_beyond(const float* x, int64_t n, float limit) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t size = float_to_bits(x[i]) & 0x7fffffffu;
    largest = size > largest ? size : largest;
  }
  return largest > float_to_bits(limit);
}

// Calls range(begin, n, type) for pieces of the n values; type tells float or double to compute in.
template <class F, class T, class Range>
inline void for_each_precision(const T* x, int64_t n, const Range& range) {
  if constexpr (std::is_same<T, float>::value && kFloatLimit<F> != INFINITY) {
    for (int64_t begin = 0; begin < n; begin += kRowChunk) {
      const int64_t length = n - begin < kRowChunk ? n - begin : kRowChunk;
      if (any_beyond(x + begin, length, kFloatLimit<F>))
        range(begin, length, double());
      else
        range(begin, length, float());
    }
  } else {
    range(int64_t(0), n, T());
  }
}

// Functors of float with a form on whole registers, Lanes<F>::forward.
template <class F>
struct Lanes;
template <class F, class = void>
constexpr bool has_lanes = false;
template <class F>
constexpr bool has_lanes<F, decltype(void(sizeof(Lanes<F>)))> = true;

#ifdef __AVX512F__
#define FASTNN_LANES(Functor, expression)                                                                       \
  template <>                                                                                                   \
  struct Lanes<Functor> {                                                                                       \
    static Values<float> forward(Values<float> x, Params<float> p) { return static_cast<void>(p), expression; } \
  };
FASTNN_LANES(Rsqrt, rsqrt_lanes(x))
FASTNN_LANES(Exp, exp_lanes(x))
FASTNN_LANES(Exp2, exp2_lanes(x))
FASTNN_LANES(Log, log_lanes(x))
FASTNN_LANES(Log2, log2_lanes(x))
FASTNN_LANES(Log10, log10_lanes(x))
FASTNN_LANES(Log1p, log1p_lanes(x))
FASTNN_LANES(Sin, sin_lanes(x))
FASTNN_LANES(Cos, cos_lanes(x))
FASTNN_LANES(Tan, tan_lanes(x))
FASTNN_LANES(Asin, asin_lanes(x))
FASTNN_LANES(Acos, acos_lanes(x))
FASTNN_LANES(Atan, atan_lanes(x))
FASTNN_LANES(Tanh, tanh_lanes(x))
FASTNN_LANES(Sigmoid, sigmoid_lanes(x))
FASTNN_LANES(Erf, erf_lanes(x))
FASTNN_LANES(Silu, x* sigmoid_lanes(x))
FASTNN_LANES(Gelu, x * 0.5f * (1.0f + erf_lanes(x * 0.707106781f)))
FASTNN_LANES(GeluTanh, x * 0.5f * (1.0f + tanh_lanes(x * 0.797884561f * (1.0f + x * x * 0.044715f))))
FASTNN_LANES(LogSigmoid, minimum_lanes(Values<float>{}, x) - log1p_lanes(exp_lanes(-abs_lanes(x))))
FASTNN_LANES(Softplus, x* p.a > p.b ? x : log1p_lanes(exp_lanes(x * p.a)) / p.a)
#undef FASTNN_LANES
#endif

// The same of grad: LanesGrad<F>::grad.
template <class F>
struct LanesGrad;
template <class F, class = void>
constexpr bool has_lanes_grad = false;
template <class F>
constexpr bool has_lanes_grad<F, decltype(void(sizeof(LanesGrad<F>)))> = true;

#ifdef __AVX512F__
template <>
struct LanesGrad<Gelu> {
  static Values<float> grad(Values<float> s, Values<float> dy) { return dy * gelu_slope_lanes(s); }
};
#endif

// Registers of x through F. Whether all of them are within its limit is found on the way.
template <class F, bool streamed>
inline bool lanes_within_limit(const float* x, float* y, int64_t n, Params<float> p) {
  Numbers<float> largest{};
  write_row<streamed>(y, n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    const Values<float> values = load_values<float>(x + i, count);
    if constexpr (kFloatLimit<F> != INFINITY) {
      const Numbers<float> size = Numbers<float>(values) & 0x7fffffff;
      largest = size > largest ? size : largest;
    }
    return Lanes<F>::forward(values, p);
  });
  if (kFloatLimit<F> == INFINITY) return true;
  Numbers<float> beyond = largest > broadcast_number<float>(float_to_bits(kFloatLimit<F>));
  int32_t any = 0;
  for (int i = 0; i < kLanes<float>; ++i) any |= beyond[i];
  return any == 0;
}

template <class F, class T, bool streamed>
void unary_loop(const void* const* in, void* out, int64_t n, const double* params) {
  const T* x = static_cast<const T*>(in[0]);
  T* y = static_cast<T*>(out);
  const auto run = [&](int64_t begin, int64_t length, auto precision) {
    using C = decltype(precision);
    const Params<C> p = params_of<C>(params);
    if constexpr (std::is_same<C, float>::value && has_lanes<F>) {
      return lanes_within_limit<F, streamed>(x + begin, y + begin, length, p);
    } else {
#pragma GCC ivdep
      for (int64_t i = begin; i < begin + length; ++i) y[i] = T(F::forward(C(x[i]), p));
      return true;
    }
  };
  if constexpr (std::is_same<T, float>::value && has_lanes<F> && kFloatLimit<F> != INFINITY) {
    if (x != y) {
      for (int64_t begin = 0; begin < n; begin += kRowChunk) {
        const int64_t length = min(n - begin, kRowChunk);
        if (!run(begin, length, float())) run(begin, length, double());
      }
      return;
    }
  }
  for_each_precision<F>(x, n, run);
}

template <class F, class T, bool streamed>
void unary_backward_loop(const void* const* in, void* out, int64_t n, const double* params) {
  const T* s = static_cast<const T*>(in[0]);
  const T* dy = static_cast<const T*>(in[1]);
  T* dx = static_cast<T*>(out);
  if constexpr (std::is_same<T, float>::value && has_lanes_grad<F>) {
    write_row<streamed>(dx, n, [&](int64_t i, int64_t count) FASTNN_INLINED {
      return LanesGrad<F>::grad(load_values<float>(s + i, count), load_values<float>(dy + i, count));
    });
    return;
  }
  for_each_precision<F>(s, n, [&](int64_t begin, int64_t length, auto precision) {
    using C = decltype(precision);
    const Params<C> p = params_of<C>(params);
#pragma GCC ivdep
    for (int64_t i = begin; i < begin + length; ++i) dx[i] = T(F::grad(C(s[i]), C(dy[i]), p));
  });
}

// The loop for results that are `streamed`, or not.
template <class F, class T>
Loop make_unary(bool streamed) {
  if constexpr (std::is_same<T, float>::value && has_lanes<F>)
    if (streamed) return {unary_loop<F, T, true>, true};
  return {unary_loop<F, T, false>, false};
}
template <class F, class T>
Loop make_unary_backward(bool streamed) {
  if constexpr (std::is_same<T, float>::value && has_lanes_grad<F>)
    if (streamed) return {unary_backward_loop<F, T, true>, true};
  return {unary_backward_loop<F, T, false>, false};
}

template <class F, class T>
void binary_loop(const void* const* in, void* out, int64_t n, const double*) {
  const T* a = static_cast<const T*>(in[0]);
  const T* b = static_cast<const T*>(in[1]);
  T* c = static_cast<T*>(out);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) c[i] = F::forward(a[i], b[i]);
}

template <class T>
void where_loop(const void* const* in, void* out, int64_t n, const double*) {
  const T* condition = static_cast<const T*>(in[0]);
  const T* a = static_cast<const T*>(in[1]);
  const T* b = static_cast<const T*>(in[2]);
  T* c = static_cast<T*>(out);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) c[i] = condition[i] != T(0) ? a[i] : b[i];
}

// ------------------------------------------------------------------------- from op to its loop

template <class T>
Loop find_unary(UnaryOp op, bool streamed) {
#define FASTNN_CASE(name, Functor) \
  case UnaryOp::name: return make_unary<Functor, T>(streamed);
  switch (op) {
    FASTNN_UNARY_BOTH(FASTNN_CASE)
    FASTNN_CASE(logical_not, LogicalNot)
    FASTNN_CASE(clamp, Clamp)
    FASTNN_CASE(copy, Copy)
    default: break;
  }
  if constexpr (is_float_type<T>) {
    switch (op) {
      FASTNN_UNARY_FLOAT(FASTNN_CASE)
      FASTNN_UNARY_ROUND(FASTNN_CASE)
      FASTNN_UNARY_PARAMS(FASTNN_CASE)
      FASTNN_CASE(isnan, IsNan)
      FASTNN_CASE(isinf, IsInf)
      FASTNN_CASE(isfinite, IsFinite)
      default: break;
    }
  } else {
    if (op == UnaryOp::bitwise_not) return make_unary<BitwiseNot, T>(streamed);
  }
#undef FASTNN_CASE
  return {};
}

template <class T>
Loop find_unary_backward(UnaryOp op, bool streamed) {
#define FASTNN_CASE(name, Functor) \
  case UnaryOp::name: return make_unary_backward<Functor, T>(streamed);
  switch (op) {
    FASTNN_UNARY_BOTH(FASTNN_CASE)
    FASTNN_UNARY_FLOAT(FASTNN_CASE)
    FASTNN_UNARY_ROUND(FASTNN_CASE)
    FASTNN_UNARY_PARAMS(FASTNN_CASE)
    FASTNN_CASE(clamp, Clamp)
    default: return {};
  }
#undef FASTNN_CASE
}

template <class T>
Loop find_binary(BinaryOp op, bool) {
#define FASTNN_CASE(name, Functor) \
  case BinaryOp::name: return {binary_loop<Functor, T>};
  switch (op) {
    FASTNN_BINARY_BOTH(FASTNN_CASE)
    FASTNN_BINARY_COMPARE(FASTNN_CASE)
    default: break;
  }
  if constexpr (is_float_type<T>) {
    switch (op) {
      FASTNN_BINARY_FLOAT(FASTNN_CASE)
      default: break;
    }
  } else {
    switch (op) {
      FASTNN_BINARY_BITS(FASTNN_CASE)
      FASTNN_CASE(pow, IntPow)
      default: break;
    }
  }
#undef FASTNN_CASE
  return {};
}

template <class T>
Loop find_where(int32_t, bool) {
  return {where_loop<T>};
}

// ------------------------------------------------------------------------------ the strided walk

bool is_flat(const ElementwiseArgs& args, const StridedOperand& operand) {
  return operand.data && operand.dtype == args.compute && args.ndim <= 1 &&
         (args.ndim == 0 || args.shape[0] == 1 || operand.strides[0] == 1);
}

// Calls visit(offset in the operand, inner stride, position in the range, length) for each piece of
// [begin, begin + n) that lies in one innermost row.
template <class Visit>
inline void for_each_row(const ElementwiseArgs& args, const int64_t* strides, int64_t begin, int64_t n, Visit visit) {
  const int last = args.ndim - 1;
  if (last < 0) return visit(int64_t(0), int64_t(0), int64_t(0), n);
  int64_t index[kMaxDims];
  int64_t rest = begin;
  for (int axis = last; axis >= 0; --axis) {
    index[axis] = rest % args.shape[axis];
    rest /= args.shape[axis];
  }
  for (int64_t done = 0; done < n;) {
    int64_t offset = 0;
    for (int axis = 0; axis <= last; ++axis) offset += index[axis] * strides[axis];
    const int64_t left = args.shape[last] - index[last];
    const int64_t length = left < n - done ? left : n - done;
    visit(offset, strides[last], done, length);
    done += length;
    index[last] += length;
    for (int axis = last; axis > 0 && index[axis] == args.shape[axis]; --axis) {
      index[axis] = 0;
      ++index[axis - 1];
    }
  }
}

template <class T>
void gather(const ElementwiseArgs& args, const StridedOperand& operand, int64_t begin, int64_t n, T* row) {
  const char* base = static_cast<const char*>(operand.data);
  const int64_t bytes = int64_t(item_size(operand.dtype));
  for_each_row(args, operand.strides, begin, n, [&](int64_t offset, int64_t stride, int64_t at, int64_t length) {
    FASTNN_LEVEL::load_row(row + at, base + offset * bytes, operand.dtype, stride, length);
  });
}

template <class T>
void scatter(const ElementwiseArgs& args, int64_t begin, int64_t n, const T* row) {
  char* base = static_cast<char*>(args.out.data);
  const int64_t bytes = int64_t(item_size(args.out.dtype));
  for_each_row(args, args.out.strides, begin, n, [&](int64_t offset, int64_t stride, int64_t at, int64_t length) {
    FASTNN_LEVEL::store_row(base + offset * bytes, args.out.dtype, stride, row + at, length);
  });
}

template <class T>
void fill_number(const StridedOperand& operand, T* row) {
  const T value = is_float_type<T> ? static_cast<T>(operand.real) : static_cast<T>(operand.integer);
  for (int64_t i = 0; i < kRowChunk; ++i) row[i] = value;
}

// Stored past the caches? Not in place: those lines are read anyway.
template <class T>
bool is_streamed(const ElementwiseArgs& args) {
  bool in_place = false;
  for (int k = 0; k < args.n_inputs; ++k) in_place |= args.in[k].data == args.out.data;
  return !in_place && is_flat(args, args.out) && args.numel * int64_t(sizeof(T)) > kStreamedBytes;
}

template <class T>
void run_range(const ElementwiseArgs& args, Loop loop, bool streamed, int64_t begin, int64_t end) {
  const bool out_flat = is_flat(args, args.out), buffered = streamed ? !loop.streams : !out_flat;
  bool flat[3], all_flat = true;
  for (int k = 0; k < args.n_inputs; ++k) all_flat &= flat[k] = is_flat(args, args.in[k]);
  const void* in[3];
  T* out = static_cast<T*>(args.out.data);
  if (all_flat && !buffered) {
    for (int k = 0; k < args.n_inputs; ++k) in[k] = static_cast<const T*>(args.in[k].data) + begin;
    return loop.run(in, out + begin, end - begin, args.params);
  }
  alignas(64) T rows[4][kRowChunk];
  for (int k = 0; k < args.n_inputs; ++k)
    if (!args.in[k].data) fill_number(args.in[k], rows[k]);
  for (int64_t at = begin; at < end; at += kRowChunk) {
    const int64_t n = min(end - at, kRowChunk);
    for (int k = 0; k < args.n_inputs; ++k) {
      in[k] = flat[k] ? static_cast<const void*>(static_cast<const T*>(args.in[k].data) + at) : rows[k];
      if (!flat[k] && args.in[k].data) gather(args, args.in[k], at, n, rows[k]);
    }
    loop.run(in, buffered ? rows[3] : out + at, n, args.params);
    if (buffered && streamed)
      stream_copy(out + at, rows[3], n * int64_t(sizeof(T)));
    else if (buffered)
      scatter(args, at, n, rows[3]);
  }
}

// ------------------------------------------------------------------------------------ launchers

constexpr int64_t kGrain = 32768;  // elements of a chunk: about 20 microseconds of streaming

template <class T, class Op>
void run_typed(const ElementwiseArgs& args, Loop (*find)(Op op, bool streamed)) {
  const bool streamed = is_streamed<T>(args);
  const Loop loop = find(static_cast<Op>(args.op), streamed);
  parallel_for(args.numel, kGrain, [&](int64_t begin, int64_t end) {
    run_range<T>(args, loop, streamed, begin, end);
    if (streamed) finish_streaming();
  });
}

#define FASTNN_LAUNCHER(launcher, find)                                               \
  void launcher(const ElementwiseArgs& args) {                                        \
    if (args.compute == DType::Float32) return run_typed<float>(args, find<float>);   \
    if (args.compute == DType::Float64) return run_typed<double>(args, find<double>); \
    run_typed<int64_t>(args, find<int64_t>);                                          \
  }
FASTNN_LAUNCHER(unary, find_unary)
FASTNN_LAUNCHER(binary, find_binary)
FASTNN_LAUNCHER(where, find_where)
#undef FASTNN_LAUNCHER

void unary_backward(const ElementwiseArgs& args) {
  if (args.compute == DType::Float64) return run_typed<double>(args, find_unary_backward<double>);
  run_typed<float>(args, find_unary_backward<float>);
}

}  // namespace

FASTNN_CPU_KERNEL(elementwise_unary, unary)
FASTNN_CPU_KERNEL(elementwise_unary_backward, unary_backward)
FASTNN_CPU_KERNEL(elementwise_binary, binary)
FASTNN_CPU_KERNEL(elementwise_where, where)

}  // namespace fastnn
