// Elementwise kernels on CUDA.
//
//   out[i] = f(in...[i])        bytes: every operand once; arithmetic: 1 to ~40 instructions an element
//
// One thread an element. An operand of any dtype and stride is converted to the compute type in a
// register; the conversions are those of the CPU (simd/element.h), and so are the formulas. A kernel
// switches on the operation and the dtypes, the same way for the whole grid: 11 kernels, instead of
// one for each operation and compute type, keep the build short and the module small.
//
// LOCAL unary_kernel: sine and cosine of large arguments keep the digits of 2/pi there
// LOCAL unary_backward_kernel: the same
#include "core/cuda_index.h"
#include "core/cuda_launch.h"
#include "ops/elementwise/elementwise.h"
#include "simd/element.h"

namespace fastnn {
namespace {

// ------------------------------------------------------------------------------ one element

template <class T>
__device__ T load(const StridedOperand& operand, int64_t offset) {
  const void* data = operand.data;
  if (!data) return is_float_type<T> ? static_cast<T>(operand.real) : static_cast<T>(operand.integer);
  switch (operand.dtype) {
    case DType::Bool: return to_compute<T>(static_cast<const bool*>(data)[offset]);
    case DType::UInt8: return to_compute<T>(static_cast<const uint8_t*>(data)[offset]);
    case DType::Int8: return to_compute<T>(static_cast<const int8_t*>(data)[offset]);
    case DType::Int16: return to_compute<T>(static_cast<const int16_t*>(data)[offset]);
    case DType::Int32: return to_compute<T>(static_cast<const int32_t*>(data)[offset]);
    case DType::Int64: return to_compute<T>(static_cast<const int64_t*>(data)[offset]);
    case DType::Float16: return to_compute<T>(static_cast<const float16*>(data)[offset]);
    case DType::BFloat16: return to_compute<T>(static_cast<const bfloat16*>(data)[offset]);
    case DType::Float32: return to_compute<T>(static_cast<const float*>(data)[offset]);
    default: return to_compute<T>(static_cast<const double*>(data)[offset]);
  }
}

template <class T>
__device__ void store(const StridedOperand& operand, int64_t offset, T value) {
  void* data = operand.data;
  switch (operand.dtype) {
    case DType::Bool: static_cast<bool*>(data)[offset] = to_stored<bool>(value); return;
    case DType::UInt8: static_cast<uint8_t*>(data)[offset] = to_stored<uint8_t>(value); return;
    case DType::Int8: static_cast<int8_t*>(data)[offset] = to_stored<int8_t>(value); return;
    case DType::Int16: static_cast<int16_t*>(data)[offset] = to_stored<int16_t>(value); return;
    case DType::Int32: static_cast<int32_t*>(data)[offset] = to_stored<int32_t>(value); return;
    case DType::Int64: static_cast<int64_t*>(data)[offset] = to_stored<int64_t>(value); return;
    case DType::Float16: static_cast<float16*>(data)[offset] = to_stored<float16>(value); return;
    case DType::BFloat16: static_cast<bfloat16*>(data)[offset] = to_stored<bfloat16>(value); return;
    case DType::Float32: static_cast<float*>(data)[offset] = to_stored<float>(value); return;
    default: static_cast<double*>(data)[offset] = to_stored<double>(value); return;
  }
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

// Stores formula(inputs...) for the element of this thread.
template <class T, int N, class Formula>
__device__ void map_element(const ElementwiseArgs& args, Formula formula) {
  const int64_t position = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (position >= args.numel) return;
  const int64_t* strides[N + 1] = {args.out.strides};
  for (int k = 0; k < N; ++k) strides[k + 1] = args.in[k].strides;
  const Offsets<N + 1> offsets = strided_offsets(position, args.ndim, args.shape, strides);
  T in[N];
  for (int k = 0; k < N; ++k) in[k] = load<T>(args.in[k], offsets.of[k + 1]);
  store(args.out, offsets.of[0], formula(in));
}

template <class T>
__global__ void unary_kernel(const __grid_constant__ ElementwiseArgs args) {
  map_element<T, 1>(args, [&](const T* in) { return unary_value(UnaryOp(args.op), in[0], params_of<T>(args)); });
}

template <class T>
__global__ void unary_backward_kernel(const __grid_constant__ ElementwiseArgs args) {
  map_element<T, 2>(args,
                    [&](const T* in) { return unary_gradient(UnaryOp(args.op), in[0], in[1], params_of<T>(args)); });
}

template <class T>
__global__ void binary_kernel(const __grid_constant__ ElementwiseArgs args) {
  map_element<T, 2>(args, [&](const T* in) { return binary_value(BinaryOp(args.op), in[0], in[1]); });
}

template <class T>
__global__ void where_kernel(const __grid_constant__ ElementwiseArgs args) {
  map_element<T, 3>(args, [](const T* in) { return in[0] != T(0) ? in[1] : in[2]; });
}

// ----------------------------------------------------------------------------------- launchers

using ElementwiseKernel = void (*)(ElementwiseArgs);

void map(ElementwiseKernel kernel, const ElementwiseArgs& args) {
  launch(kernel, unsigned(blocks_for(args.numel)), kBlockThreads, 0, args);
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
