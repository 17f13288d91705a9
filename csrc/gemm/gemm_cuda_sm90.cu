// Products on Hopper's tensor cores: bfloat16, float16, and float32 as TF32 (which drops the low 13 bits); sums in
// float32.
//
// A block stays on its multiprocessor and takes tile after tile: 128 x 256, 128 x 128 or, for products of few rows or
// few tiles, 64 x 128. One warp has the copy engine bring stages of 128 bytes of k into a ring; a warpgroup for each 64
// rows multiplies from there (wgmma, m64nNk16), and gives a stage back when the products after it have begun. While
// they store a tile, the ring fills for the next one. 16-bit operands may lie along k or across it (Major); TF32 wants
// both along k. Memory is read by tensor maps, so addresses and strides are multiples of 16 bytes; the copy engine
// writes zeros beyond a matrix.
//
//   arithmetic   2 m n k / 990 TF/s (H200, 16-bit), 495 TF/s (TF32)
//   shared       m64n256k16 reads 10 KB in 128 clocks, m64n128k16 6 KB in 64: 80 and 96 of 128 bytes a clock
//   memory       a tile of 128 x 256 reads 48 KB for 1024 clocks of products; 8 rows of tiles share B in L2
//   stores       through 70 KB of shared memory, a warp's 16 rows at a time: some 5 % at k = 4096, not overlapped
//   registers    128 (64) sums, 232 a thread in the two warpgroups, 40 in the copying one; 384 threads, one block a
//                multiprocessor: 3 stages of 48 KB, or 4 of 32 KB. Of the small tile's 256 threads and 3 stages of
//                24 KB there are two blocks, one of which stores while the other multiplies
//
// Predicted: 75 % of the peak at 4096 and 8192.
#include <algorithm>

#include "gemm/epilogue_cuda.h"
#include "gemm/gemm_cuda.h"
#include "gemm/wgmma_cuda.h"

// SASS wgmma_kernel: HGMMA UTMALDG SYNCS
namespace fastnn {
namespace {

constexpr int kGroupRows = 64;
constexpr int kStageBytesOfK = 128, kSteps = 4;  // a stage of k in bytes, and products in it
constexpr int kStoredColumns = 128, kPitch = kStoredColumns + 8;
constexpr int kStoreBytes = 16 * kPitch * int(sizeof(float));  // of a warp

// As in memory: TF32 is float32 there.
template <class T>
using StoredAs = std::conditional_t<std::is_same_v<T, tf32>, float, T>;

// An operand's tile in shared memory: kOuter of m or n by a stage of k, rows of 128 bytes swizzled. Across k it is
// boxes of 64 of m or n.
template <class T, int kOuter, Major kMajor>
struct Operand {
  static constexpr int kDepth = kStageBytesOfK / int(sizeof(T)), kBytes = kOuter * kStageBytesOfK;
  static constexpr int kBoxes = kMajor == Major::K ? 1 : kOuter / kDepth,
                       kBoxRows = kMajor == Major::K ? kOuter : kDepth;
  static_assert(kMajor == Major::K || sizeof(T) == 2, "TF32 lies along k");

  static CUtensorMap map(const void* data, int64_t outer, int64_t k, int64_t stride, int64_t items,
                         int64_t item_stride) {
    TensorBox box;
    box.rank = 3;
    box.sizes[0] = uint64_t(kMajor == Major::K ? k : outer);
    box.sizes[1] = uint64_t(kMajor == Major::K ? outer : k);
    box.sizes[2] = uint64_t(item_stride == 0 ? 1 : items);
    box.strides[0] = uint64_t(stride) * sizeof(T);
    box.strides[1] = item_stride == 0 ? box.strides[0] : uint64_t(item_stride) * sizeof(T);
    box.box[0] = kDepth;
    box.box[1] = kBoxRows;
    box.box[2] = 1;
    box.swizzle = Swizzle::Bytes128;
    return tensor_map(static_cast<const StoredAs<T>*>(data), box);
  }
  static __device__ void load(unsigned char* tile, const CUtensorMap& map, uint64_t* full, int outer, int k, int item) {
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) {
      const int at = outer + i * kDepth;
      tma_load(tile + i * kBoxRows * kStageBytesOfK, map, full, kMajor == Major::K ? k : at,
               kMajor == Major::K ? outer : k, item);
    }
  }
  // Of the products of a step; `address` is the tile's, or 64 rows (a box) further on.
  static __device__ uint64_t descriptor(uint32_t address, int step) {
    if constexpr (kMajor == Major::K)
      return matrix_descriptor(address + uint32_t(step) * 32, 0, 8 * kStageBytesOfK, Swizzle::Bytes128);
    else
      return matrix_descriptor(address + uint32_t(step) * 16 * kStageBytesOfK, kBoxRows * kStageBytesOfK,
                               8 * kStageBytesOfK, Swizzle::Bytes128);
  }
};

template <int kTileRows, int kTileColumns>
struct Shape {
  static constexpr int kRows = kTileRows, kColumns = kTileColumns;
  static constexpr int kGroups = kRows / kGroupRows;  // of warps, that multiply
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kBlocks = kGroups == 1 ? 2 : 1;                          // of a multiprocessor
  static constexpr int kCopying = 40, kMultiplying = kGroups == 1 ? 208 : 232;  // registers
  static constexpr int kStages = kRows * kColumns == 128 * 128 ? 4 : 3;
  static constexpr int kOperandBytes = kRows * kStageBytesOfK, kStageBytes = kOperandBytes + kColumns * kStageBytesOfK;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kShared = kRingBytes + 4 * kGroups * kStoreBytes + 2 * kStages * int(sizeof(uint64_t));
  static_assert(kBlocks * (kShared + 1024) <= 228 << 10, "what a multiprocessor has, 1 KB of each block its own");
  static_assert(kBlocks * 128 * (kCopying + kGroups * kMultiplying) <= 65536, "registers of a multiprocessor");
};

// Goes round the ring: where a stage is, and the parity of its phase.
template <int kStages>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++slot == kStages) slot = 0, parity ^= 1;
  }
};

// A warp stores 16 rows of 128 columns, through shared memory of its own.
template <class T>
__device__ inline void store_strip(float* strip, const float* sums, const GemmArgs& args, const GemmItem& item,
                                   const GemmGrid& grid, const GemmTile& tile, int64_t first_row, int64_t column) {
  constexpr int kWidth = kStored<float>;
  const int lane = lane_id();
  warp_sync();  // the rows before these have been read
#pragma unroll
  for (int j = 0; j < kStoredColumns / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      store_pack(strip + (lane / 4 + half * 8) * kPitch + j * 8 + lane % 4 * 2,
                 Pack<float, 2>{sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]});
  warp_sync();
  column += lane * kWidth;
  const int present = int(args.n - column < kWidth ? args.n - column : kWidth);
  if (present <= 0) return;
  const Epilogue<StoredAs<T>, kWidth> epilogue{args, item};
  float* const partials =
      static_cast<float*>(grid.partials) + (tile.split * grid.items + tile.item) * args.m * args.n + column;
#pragma unroll 1
  for (int i = 0; i < 16; ++i) {
    const int64_t row = first_row + i;
    if (row >= args.m) return;
    const Pack<float, kWidth> values = load_pack<kWidth>(strip + i * kPitch + lane * kWidth);
    if (grid.splits > 1)
      store_elements(partials + row * args.n, values, present);
    else
      epilogue.store(values, row, column, present);
  }
}

template <class T, class S, Major kMajorA, Major kMajorB>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    wgmma_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                 const __grid_constant__ GemmArgs args, const __grid_constant__ GemmGrid grid) {
  using A = Operand<T, S::kRows, kMajorA>;
  using B = Operand<T, S::kColumns, kMajorB>;
  constexpr int kGroups = S::kGroups, kColumns = S::kColumns;
  FASTNN_DYNAMIC_SHARED(shared);
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + S::kRingBytes + 4 * kGroups * kStoreBytes);
  uint64_t* const empty = full + S::kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 4 * kGroups);  // one lane of each warp
    }
    mbarrier_init_fence();
  }
  block_sync();
  const int64_t blocks = grid.blocks();
  const auto stages_of = [&](const GemmTile& tile) {
    const int64_t left = args.k - tile.split * grid.split_k;
    return int(((left < grid.split_k ? left : grid.split_k) + A::kDepth - 1) / A::kDepth);
  };
  Ring<S::kStages> ring;
  const int group = int(threadIdx.x) / 128;
  if (group == kGroups) {
    registers_decrease<S::kCopying>();
    if (threadIdx.x != kGroups * 128) return;
    tma_prefetch(map_a);
    tma_prefetch(map_b);
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
      const GemmTile tile = grid.at(block);
      const int item_a = args.a_batch[0] == 0 ? 0 : int(tile.item), item_b = args.b_batch[0] == 0 ? 0 : int(tile.item);
      const int stages = stages_of(tile), begin = int(tile.split * grid.split_k);
      for (int stage = 0; stage < stages; ++stage, ring.advance()) {
        unsigned char* const to = shared + ring.slot * S::kStageBytes;
        mbarrier_wait(empty + ring.slot, ring.parity ^ 1);
        mbarrier_arrive_expect(full + ring.slot, S::kStageBytes);
        const int k = begin + stage * A::kDepth;
        A::load(to, map_a, full + ring.slot, int(tile.row) * S::kRows, k, item_a);
        B::load(to + S::kOperandBytes, map_b, full + ring.slot, int(tile.column) * kColumns, k, item_b);
      }
    }
  } else {
    registers_increase<S::kMultiplying>();
    float* const strip = reinterpret_cast<float*>(shared + S::kRingBytes + warp_id() * kStoreBytes);
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
      const GemmTile tile = grid.at(block);
      const int stages = stages_of(tile);
      float sums[kColumns / 2];
      int before = ring.slot;
      for (int stage = 0; stage < stages; ++stage, ring.advance()) {
        const uint32_t tile_a = shared_address(shared + ring.slot * S::kStageBytes);
        mbarrier_wait(full + ring.slot, ring.parity);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          wgmma<T, kColumns, kMajorA, kMajorB>(
              sums, A::descriptor(tile_a + uint32_t(group) * kGroupRows * kStageBytesOfK, step),
              B::descriptor(tile_a + S::kOperandBytes, step), stage > 0 || step > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (stage > 0 && lane_id() == 0) mbarrier_arrive(empty + before);
        before = ring.slot;
      }
      wgmma_wait<0>();
      wgmma_use(sums);
      if (lane_id() == 0) mbarrier_arrive(empty + before);
      const GemmItem item = device_item<StoredAs<T>>(args, tile.item);
      const int64_t row = tile.row * S::kRows + warp_id() * 16;
#pragma unroll 1
      for (int first = 0; first < kColumns; first += kStoredColumns) {
        store_strip<T>(strip, sums, args, item, grid, tile, row, tile.column * kColumns + first);
        if constexpr (kColumns > kStoredColumns)
#pragma unroll
          for (int i = 0; i < kStoredColumns / 2; ++i) sums[i] = sums[i + kStoredColumns / 2];
      }
    }
  }
}

// ----------------------------------------------------------------------------------------- launchers

template <class T, class S, Major kMajorA, Major kMajorB>
void multiply_layout(const GemmArgs& args, int processors) {
  using A = Operand<T, S::kRows, kMajorA>;
  using B = Operand<T, S::kColumns, kMajorB>;
  const int64_t items = gemm_batch_size(args);
  const CUtensorMap map_a =
      A::map(args.a, args.m, args.k, kMajorA == Major::K ? args.a_row : args.a_column, items, args.a_batch[0]);
  const CUtensorMap map_b =
      B::map(args.b, args.n, args.k, kMajorB == Major::K ? args.b_column : args.b_row, items, args.b_batch[0]);
  run_tiles(args, {S::kRows, S::kColumns, A::kDepth, 8 * A::kDepth}, processors, [&](const GemmGrid& grid) {
    const int64_t blocks = std::min<int64_t>(grid.blocks(), S::kBlocks * processors);
    launch(wgmma_kernel<T, S, kMajorA, kMajorB>, unsigned(blocks), S::kThreads, S::kShared, map_a, map_b, args, grid);
  });
}

template <class T, class S>
void multiply_tiles(const GemmArgs& args, int processors) {
  if constexpr (sizeof(T) == 4) {
    multiply_layout<T, S, Major::K, Major::K>(args, processors);
  } else {
    const bool a_along_k = args.a_column == 1, b_along_k = args.b_row == 1;
    if (a_along_k && b_along_k) return multiply_layout<T, S, Major::K, Major::K>(args, processors);
    if (a_along_k) return multiply_layout<T, S, Major::K, Major::MN>(args, processors);
    if (b_along_k) return multiply_layout<T, S, Major::MN, Major::K>(args, processors);
    multiply_layout<T, S, Major::MN, Major::MN>(args, processors);
  }
}

template <class T>
void multiply(const GemmArgs& args) {
  const int processors = gemm_cuda::gpu().processors;
  const WgmmaTile tile =
      wgmma_tile(args.m, args.n, gemm_batch_size(args), args.k, kStageBytesOfK / int(sizeof(T)), processors);
  if (tile.columns == 256) return multiply_tiles<T, Shape<128, 256>>(args, processors);
  if (tile.rows == 128) return multiply_tiles<T, Shape<128, 128>>(args, processors);
  multiply_tiles<T, Shape<64, 128>>(args, processors);
}

// Can the copy engine read this operand? Its fast stride is 1.
bool suits_copies(const void* data, int64_t extent, int64_t stride, const int64_t* batch, int batch_ndim,
                  int64_t size) {
  const auto steps = [&](int64_t s) { return s * size % 16 == 0 && s > 0 && s * size < int64_t(1) << 40; };
  return is_aligned(data, 16) && extent < INT_MAX && steps(stride) &&
         (batch_ndim == 0 || batch[0] == 0 || steps(batch[0]));
}

}  // namespace

namespace gemm_cuda {

bool sm90_suits(const GemmArgs& args) {
  const int64_t size = args.dtype == DType::Float32 ? 4 : 2;
  const bool a_along_k = args.a_column == 1, b_along_k = args.b_row == 1;
  if (size == 4 && !(a_along_k && b_along_k)) return false;
  if (!(a_along_k || args.a_row == 1) || !(b_along_k || args.b_column == 1)) return false;
  return args.batch_ndim <= 1 && args.k > 0 && args.k < INT_MAX && gemm_batch_size(args) < INT_MAX &&
         suits_copies(args.a, args.m, a_along_k ? args.a_row : args.a_column, args.a_batch, args.batch_ndim, size) &&
         suits_copies(args.b, args.n, b_along_k ? args.b_column : args.b_row, args.b_batch, args.batch_ndim, size);
}

void sm90(const GemmArgs& args) {
  if (args.dtype == DType::Float32) return multiply<tf32>(args);
  args.dtype == DType::BFloat16 ? multiply<bfloat16>(args) : multiply<float16>(args);
}

}  // namespace gemm_cuda
}  // namespace fastnn
