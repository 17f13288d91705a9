// Elementwise kernels on CUDA.
//
//   out[i] = f(in...[i])        bytes: every operand once; arithmetic: 1 to ~40 instructions an element
//
// A thread takes four elements of the last axis, in packs of up to 16 bytes, where all operands are contiguous along it
// or repeat there; else one. An operand of any dtype and stride is converted to the compute type in registers; the
// conversions are those of the CPU (simd/element.h), and so are the formulas. A kernel switches on the operation and
// the dtypes, the same way for the whole grid: 11 kernels, instead of one for each operation and compute type, keep the
// build short and the module small. So does a loop over the four that is not unrolled, but for cheap formulas: one
// that turns the registers, so that each element in its turn is the first.
//
// LOCAL unary_kernel: sine and cosine of large arguments keep the digits of 2/pi there
// LOCAL unary_backward_kernel: the same
#include "core/cuda_index.h"
#include "core/cuda_launch.h"
#include "ops/elementwise/elementwise.h"
#include "simd/element_cuda.h"

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------ operands

template <class T>
__device__ T load(const StridedOperand& operand, int64_t offset) {
  if (!operand.data) return is_float_type<T> ? static_cast<T>(operand.real) : static_cast<T>(operand.integer);
  return load_element<T>(operand.data, operand.dtype, offset);
}

// ------------------------------------------------------------------------- from op to its formula

#define FASTNN_CASE(name, Functor) \
  case UnaryOp::name: return Functor::forward(x, p);
template <class T>
__device__ T unary_value(UnaryOp op, T x, Params<T> p) {
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
    if (op == UnaryOp::bitwise_not) return BitwiseNot::forward(x, p);
  }
  switch (op) {
    FASTNN_UNARY_BOTH(FASTNN_CASE)
    FASTNN_CASE(logical_not, LogicalNot)
    FASTNN_CASE(clamp, Clamp)
    default: return x;  // copy
  }
}
#undef FASTNN_CASE

#define FASTNN_CASE(name, Functor) \
  case UnaryOp::name: return Functor::grad(s, dy, p);
template <class T>
__device__ T unary_gradient(UnaryOp op, T s, T dy, Params<T> p) {
  switch (op) {
    FASTNN_UNARY_BOTH(FASTNN_CASE)
    FASTNN_UNARY_FLOAT(FASTNN_CASE)
    FASTNN_UNARY_ROUND(FASTNN_CASE)
    FASTNN_UNARY_PARAMS(FASTNN_CASE)
    default: return Clamp::grad(s, dy, p);
  }
}
#undef FASTNN_CASE

#define FASTNN_CASE(name, Functor) \
  case BinaryOp::name: return Functor::forward(a, b);
template <class T>
__device__ T binary_value(BinaryOp op, T a, T b) {
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
  switch (op) {
    FASTNN_BINARY_BOTH(FASTNN_CASE)
    FASTNN_BINARY_COMPARE(FASTNN_CASE)
    default: return a;
  }
}
#undef FASTNN_CASE

// ------------------------------------------------------------------------------------- kernels

template <class T>
__device__ Params<T> params_of(const ElementwiseArgs& args) {
  return {static_cast<T>(args.params[0]), static_cast<T>(args.params[1])};
}

template <class T, int N>
struct Four {
  T in[N][kFour], out[kFour];
};

// Stores formula(inputs...) for the element of this thread, or its four: cheap(four) does these at once and returns
// true, or returns false.
template <class T, int N, class Cheap, class Formula>
__device__ void map_elements(const ElementwiseArgs& args, const StridedWalk& walk, bool packs, Cheap cheap,
                             Formula formula) {
  const int64_t position = (int64_t(blockIdx.x) * kBlockThreads + threadIdx.x) * (packs ? kFour : 1);
  if (position >= args.numel) return;
  const int64_t* strides[N + 1] = {args.out.strides};
#pragma unroll
  for (int k = 0; k < N; ++k) strides[k + 1] = args.in[k].strides;
  const Offsets<N + 1> offsets = walk.offsets(position, strides);
  Four<T, N> four;
  if (!packs) {
    T in[N];
#pragma unroll
    for (int k = 0; k < N; ++k) in[k] = load<T>(args.in[k], offsets.of[k + 1]);
    return store_element(args.out.data, args.out.dtype, offsets.of[0], formula(in));
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const StridedOperand& operand = args.in[k];
    if (operand.data && operand.strides[args.ndim - 1] != 0) {
      load_four(operand.data, operand.dtype, offsets.of[k + 1], four.in[k]);
    } else {
      const T repeated = load<T>(operand, offsets.of[k + 1]);
#pragma unroll
      for (int j = 0; j < kFour; ++j) four.in[k][j] = repeated;
    }
  }
  if (!cheap(four)) {
#pragma unroll 1
    for (int turn = 0; turn < kFour; ++turn) {
      T in[N];
#pragma unroll
      for (int k = 0; k < N; ++k) in[k] = four.in[k][0];
      const T value = formula(in);
#pragma unroll
      for (int j = 1; j < kFour; ++j) {
        four.out[j - 1] = four.out[j];
#pragma unroll
        for (int k = 0; k < N; ++k) four.in[k][j - 1] = four.in[k][j];
      }
      four.out[kFour - 1] = value;
    }
  }
  store_four(args.out.data, args.out.dtype, offsets.of[0], four.out);
}

template <class T, int N, class Formula>
__device__ bool map_four(Four<T, N>& four, Formula formula) {
#pragma unroll
  for (int j = 0; j < kFour; ++j) {
    T in[N];
#pragma unroll
    for (int k = 0; k < N; ++k) in[k] = four.in[k][j];
    four.out[j] = formula(in);
  }
  return true;
}

#define FASTNN_CASE(name, Functor) \
  case UnaryOp::name: return map_four(four, [&](const T* in) { return Functor::forward(in[0], p); });
template <class T>
__device__ bool cheap_unary(UnaryOp op, Four<T, 1>& four, Params<T> p) {
  switch (op) {
    FASTNN_UNARY_BOTH(FASTNN_CASE)
    case UnaryOp::copy: return map_four(four, [](const T* in) { return in[0]; });
    default: return false;
  }
}
#undef FASTNN_CASE

#define FASTNN_CASE(name, Functor) \
  case BinaryOp::name: return map_four(four, [](const T* in) { return Functor::forward(in[0], in[1]); });
template <class T>
__device__ bool cheap_binary(BinaryOp op, Four<T, 2>& four) {
  switch (op) {
    FASTNN_CASE(add, Add)
    FASTNN_CASE(sub, Sub)
    FASTNN_CASE(mul, Mul)
    FASTNN_CASE(maximum, Maximum)
    FASTNN_CASE(minimum, Minimum)
    default: return false;
  }
}
#undef FASTNN_CASE

template <class T>
__global__ void unary_kernel(const __grid_constant__ ElementwiseArgs args, const __grid_constant__ StridedWalk walk,
                             bool packs) {
  const Params<T> p = params_of<T>(args);
  map_elements<T, 1>(
      args, walk, packs, [&](Four<T, 1>& four) { return cheap_unary(UnaryOp(args.op), four, p); },
      [&](const T* in) { return unary_value(UnaryOp(args.op), in[0], p); });
}

template <class T>
__global__ void unary_backward_kernel(const __grid_constant__ ElementwiseArgs args,
                                      const __grid_constant__ StridedWalk walk, bool packs) {
  const Params<T> p = params_of<T>(args);
  map_elements<T, 2>(
      args, walk, packs, [](Four<T, 2>&) { return false; },
      [&](const T* in) { return unary_gradient(UnaryOp(args.op), in[0], in[1], p); });
}

template <class T>
__global__ void binary_kernel(const __grid_constant__ ElementwiseArgs args, const __grid_constant__ StridedWalk walk,
                              bool packs) {
  map_elements<T, 2>(
      args, walk, packs, [&](Four<T, 2>& four) { return cheap_binary(BinaryOp(args.op), four); },
      [&](const T* in) { return binary_value(BinaryOp(args.op), in[0], in[1]); });
}

template <class T>
__global__ void where_kernel(const __grid_constant__ ElementwiseArgs args, const __grid_constant__ StridedWalk walk,
                             bool packs) {
  const auto formula = [](const T* in) { return in[0] != T(0) ? in[1] : in[2]; };
  map_elements<T, 3>(args, walk, packs, [&](Four<T, 3>& four) { return map_four(four, formula); }, formula);
}

// ----------------------------------------------------------------------------------- launchers

using ElementwiseKernel = void (*)(ElementwiseArgs, StridedWalk, bool);

bool fits_packs(const ElementwiseArgs& args, const StridedOperand& operand) {
  if (!operand.data) return true;
  const int last = args.ndim - 1;
  bool fits = operand.strides[last] == 0 ||
              (operand.strides[last] == 1 && is_aligned(operand.data, kFour * int(item_size(operand.dtype))));
  for (int axis = 0; axis < last; ++axis) fits &= operand.strides[last] == 0 || operand.strides[axis] % kFour == 0;
  return fits;
}

void map(ElementwiseKernel kernel, const ElementwiseArgs& args) {
  bool packs = args.ndim > 0 && args.shape[args.ndim - 1] % kFour == 0 && args.out.strides[args.ndim - 1] == 1 &&
               fits_packs(args, args.out);
  for (int k = 0; k < args.n_inputs; ++k) packs = packs && fits_packs(args, args.in[k]);
  const int64_t* strides[4] = {args.out.strides};
  for (int k = 0; k < args.n_inputs; ++k) strides[k + 1] = args.in[k].data ? args.in[k].strides : nullptr;
  launch(kernel, unsigned(blocks_for(packs ? args.numel / kFour : args.numel)), kBlockThreads, 0, args,
         StridedWalk(args.ndim, args.shape, strides), packs);
}

#define FASTNN_LAUNCHER(name)                                                    \
  void name(const ElementwiseArgs& args) {                                       \
    if (args.compute == DType::Float32) return map(name##_kernel<float>, args);  \
    if (args.compute == DType::Float64) return map(name##_kernel<double>, args); \
    map(name##_kernel<int64_t>, args);                                           \
  }
FASTNN_LAUNCHER(unary)
FASTNN_LAUNCHER(binary)
FASTNN_LAUNCHER(where)
#undef FASTNN_LAUNCHER

void unary_backward(const ElementwiseArgs& args) {
  map(args.compute == DType::Float64 ? unary_backward_kernel<double> : unary_backward_kernel<float>, args);
}

}  // namespace

FASTNN_CUDA_KERNEL(elementwise_unary, unary)
FASTNN_CUDA_KERNEL(elementwise_unary_backward, unary_backward)
FASTNN_CUDA_KERNEL(elementwise_binary, binary)
FASTNN_CUDA_KERNEL(elementwise_where, where)

}  // namespace fastnn
