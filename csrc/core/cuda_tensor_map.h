// Descriptions of tensors for the copy engine of Hopper (TMA): where a tensor lies, and the box of it that one copy
// moves. Made on the host, given to kernels as `const __grid_constant__ CUtensorMap`.
#pragma once

#include <cuda.h>

#include "core/check.h"
#include "core/cuda_launch.h"

namespace fastnn {
namespace {

// How a tile lies in shared memory: each row has as many bytes as the name says, and the 16-byte chunks of a row are
// exchanged among themselves (chunk ^= row % 8 for 128), so that neither rows nor columns meet in a bank.
enum class Swizzle : uint8_t { None = 0, Bytes32 = 1, Bytes64 = 2, Bytes128 = 3 };

// Dimensions fastest first, as the copy engine has them. strides[i] is the distance in bytes of dimension i + 1; the
// fastest is dense. The box may reach beyond the tensor: loads give zeros there, stores leave it out.
struct TensorBox {
  int rank = 2;              // 1 to 5
  uint64_t sizes[5] = {};    // elements; below 2^32
  uint64_t strides[4] = {};  // bytes; multiples of 16
  uint32_t box[5] = {};      // elements; at most 256 each, the first at most what the swizzle spans
  Swizzle swizzle = Swizzle::None;
};

template <class T>
constexpr CUtensorMapDataType tensor_map_type() {
  if constexpr (__is_same(T, bfloat16)) return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if constexpr (__is_same(T, float16)) return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  if constexpr (__is_same(T, float)) return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, through the runtime: libcuda is never linked.
inline EncodeTiled encode_tiled() {
  static const EncodeTiled found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &status);
    check_cuda(error, "cuTensorMapEncodeTiled");
    check<DeviceError>(function != nullptr, "cuTensorMapEncodeTiled: the CUDA driver is too old");
    return reinterpret_cast<EncodeTiled>(function);
  }();
  return found;
}

// `data` is aligned to 16 bytes. T: bfloat16, float16 or float.
template <class T>
CUtensorMap tensor_map(const T* data, const TensorBox& tensor) {
  CUtensorMap map;
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  cuuint64_t sizes[5], strides[4];
  for (int i = 0; i < 5; ++i) sizes[i] = tensor.sizes[i];
  for (int i = 0; i < 4; ++i) strides[i] = tensor.strides[i];
  const CUresult result =
      encode_tiled()(&map, tensor_map_type<T>(), cuuint32_t(tensor.rank), const_cast<T*>(data), sizes, strides,
                     tensor.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CUtensorMapSwizzle(tensor.swizzle),
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check<DeviceError>(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error ", int(result), " for rank ", tensor.rank,
                     ", sizes ", tensor.sizes[0], " x ", tensor.sizes[1], ", box ", tensor.box[0], " x ", tensor.box[1],
                     ", stride ", tensor.strides[0]);
  return map;
}

}  // namespace
}  // namespace fastnn
