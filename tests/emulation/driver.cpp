// The driver's own calls in the emulation: descriptions of tensors for the copy engine.
#include "cuda.h"

#include <cstring>

#include "cuda_runtime_api.h"
#include "device_memory.h"

using namespace fastnn::emulation;

namespace {

// Refuses what the driver refuses, and boxes that do not fill the rows of their swizzle.
CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const uint8_t item_size = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2;
  bool good = rank >= 1 && rank <= 5 && uintptr_t(data) % 16 == 0 && is_device_address(data);
  for (cuuint32_t d = 0; d < rank && good; ++d) {
    good = sizes[d] >= 1 && sizes[d] <= uint64_t(1) << 32 && box[d] >= 1 && box[d] <= 256 && steps[d] == 1;
    if (d + 1 < rank) good = good && strides[d] % 16 == 0 && strides[d] < uint64_t(1) << 40;
  }
  const uint32_t row_bytes = box[0] * item_size;
  good = good && row_bytes % 16 == 0 && (swizzle == CU_TENSOR_MAP_SWIZZLE_NONE || row_bytes == 16u << swizzle);
  if (!good) return CUDA_ERROR_INVALID_VALUE;
  *map = {};
  map->data = static_cast<unsigned char*>(data);
  for (cuuint32_t d = 0; d < rank; ++d) {
    map->sizes[d] = sizes[d];
    map->strides[d] = d ? strides[d - 1] : item_size;
    map->box[d] = box[d];
  }
  map->rank = uint8_t(rank);
  map->item_size = item_size;
  map->swizzle = uint8_t(swizzle);
  map->valid = 1;
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                                        unsigned long long, cudaDriverEntryPointQueryResult* status) {
  const bool known = strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(encode_tiled) : nullptr;
  if (status) *status = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return known ? cudaSuccess : cudaErrorSymbolNotFound;
}
