// Indexed reads and writes on CUDA: see index.h for the walk.
//
//   read    bytes: the result twice, the index tensors once
//   write   bytes: the source once, the places met twice; sorting the positions, 32 a position and merge
//
// A thread takes an element, or 16 bytes of a row that index tensors do not vary along: embedding and x[ids].
//
// Writes: axes that index tensors vary along, or that run along no dim of x, are the sorted ones; the others are plain
// and never meet. The positions of the sorted axes are sorted by the place in x that they lead to, stably. Whoever
// takes the first position of a place writes it, going through the others in their order: no atomics, and the bits of
// the CPU. A number assigned everywhere needs no order, and neither does a single position.
#include "ops/index/index.h"

#include "core/cuda_index.h"
#include "ops/reduce/sort_cuda.h"
#include "simd/element_cuda.h"

namespace fastnn {
namespace {

// --------------------------------------------------------------------------- the index values, checked

__global__ void wrap_kernel(const __grid_constant__ IndexWrapArgs args) {
  const int64_t i = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (i >= args.n) return;
  int64_t index = load_element<int64_t>(args.index, args.dtype, i);
  if (index < 0 && args.from_end) index += args.size;
  const bool bad = index < 0 || index >= args.size;
  args.wrapped[i] = bad ? 0 : index;
  // The first place by unsigned order, in which -1 (none) comes last.
  if (bad) atomicMin(reinterpret_cast<unsigned long long*>(args.first_bad), static_cast<unsigned long long>(i));
}

void wrap(const IndexWrapArgs& args) {
  check_cuda(cudaMemsetAsync(args.first_bad, 0xff, sizeof(int64_t), cuda_stream()), "cudaMemsetAsync");
  launch(wrap_kernel, unsigned(blocks_for(args.n)), kBlockThreads, 0, args);
}

// ------------------------------------------------------------------------------------------ the walk

struct Place {
  int64_t x, other;  // offsets
};

__device__ inline Place place_of(const IndexWalkArgs& walk, int64_t position) {
  Place place{0, 0};
  int64_t at[kMaxDims];
#pragma unroll
  for (int k = 0; k < kMaxDims; ++k) at[k] = 0;
  for (int axis = walk.ndim - 1; axis >= 0; --axis) {
    const int64_t rest = axis > 0 ? position / walk.shape[axis] : 0;
    const int64_t i = position - rest * walk.shape[axis];
    position = rest;
    place.x += i * walk.x_strides[axis];
    place.other += i * walk.other_strides[axis];
#pragma unroll
    for (int k = 0; k < kMaxDims; ++k)
      if (k < walk.n_indices) at[k] += i * walk.index_strides[k][axis];
  }
#pragma unroll
  for (int k = 0; k < kMaxDims; ++k)
    if (k < walk.n_indices) place.x += walk.index[k][at[k]] * walk.step[k];
  return place;
}

int64_t count_of(const IndexWalkArgs& walk) {
  int64_t count = 1;
  for (int axis = 0; axis < walk.ndim; ++axis) count *= walk.shape[axis];
  return count;
}

bool varies_along(const IndexWalkArgs& walk, int axis) {
  for (int k = 0; k < walk.n_indices; ++k)
    if (walk.index_strides[k][axis] != 0) return true;
  return false;
}

// The walk in items of 16 bytes, where rows allow it; else as it is.
IndexWalkArgs widened(IndexWalkArgs walk) {
  const int last = walk.ndim - 1;
  const int64_t pack = 16 / walk.item_size;
  bool fits = walk.x_strides[last] == 1 && walk.other_strides[last] == 1 && !varies_along(walk, last) &&
              walk.shape[last] % pack == 0 && is_aligned(walk.x, 16) && is_aligned(walk.other, 16);
  for (int axis = 0; axis < last; ++axis)
    fits &= walk.x_strides[axis] % pack == 0 && walk.other_strides[axis] % pack == 0;
  for (int k = 0; k < walk.n_indices; ++k) fits &= walk.step[k] % pack == 0;
  if (!fits) return walk;
  walk.item_size = 16;
  walk.shape[last] /= pack;
  for (int axis = 0; axis < last; ++axis) {
    walk.x_strides[axis] /= pack;
    walk.other_strides[axis] /= pack;
  }
  for (int k = 0; k < walk.n_indices; ++k) walk.step[k] /= pack;
  return walk;
}

// Calls visit(TypeTag<Item>()) with a type of that size.
template <class Visit>
void with_item(int64_t size, const Visit& visit) {
  switch (size) {
    case 1: return visit(TypeTag<uint8_t>());
    case 2: return visit(TypeTag<uint16_t>());
    case 4: return visit(TypeTag<uint32_t>());
    case 8: return visit(TypeTag<uint64_t>());
    default: return visit(TypeTag<uint4>());
  }
}

// ---------------------------------------------------------------------------------------------- read

template <class T>
__global__ void read_kernel(const __grid_constant__ IndexWalkArgs walk, int64_t n) {
  const int64_t position = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (position >= n) return;
  const Place place = place_of(walk, position);
  static_cast<T*>(walk.other)[place.other] = static_cast<const T*>(walk.x)[place.x];
}

void read(const IndexWalkArgs& args) {
  const IndexWalkArgs walk = widened(args);
  const int64_t n = count_of(walk);
  with_item(walk.item_size, [&](auto tag) {
    launch(read_kernel<typename decltype(tag)::type>, unsigned(blocks_for(n)), kBlockThreads, 0, walk, n);
  });
}

// --------------------------------------------------------------------------------------------- write

// The sorted axes and the plain ones, whose positions are counted apart.
struct WriteArgs {
  IndexWalkArgs sorted;
  int plain_ndim;
  int64_t plain_shape[kMaxDims], plain_x_strides[kMaxDims], plain_other_strides[kMaxDims];
  int64_t n_sorted, n_plain;
};

WriteArgs split(const IndexWalkArgs& walk) {
  WriteArgs args{};
  args.sorted = walk;
  args.sorted.ndim = 0;
  args.n_sorted = args.n_plain = 1;
  for (int axis = 0; axis < walk.ndim; ++axis) {
    if (walk.x_strides[axis] != 0 && !varies_along(walk, axis)) {
      const int plain = args.plain_ndim++;
      args.plain_shape[plain] = walk.shape[axis];
      args.plain_x_strides[plain] = walk.x_strides[axis];
      args.plain_other_strides[plain] = walk.other_strides[axis];
      args.n_plain *= walk.shape[axis];
      continue;
    }
    const int sorted = args.sorted.ndim++;
    args.sorted.shape[sorted] = walk.shape[axis];
    args.sorted.x_strides[sorted] = walk.x_strides[axis];
    args.sorted.other_strides[sorted] = walk.other_strides[axis];
    for (int k = 0; k < walk.n_indices; ++k) args.sorted.index_strides[k][sorted] = walk.index_strides[k][axis];
    args.n_sorted *= walk.shape[axis];
  }
  return args;
}

__global__ void make_places(const __grid_constant__ IndexWalkArgs walk, int64_t n, uint64_t* places) {
  const int64_t position = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (position < n) places[position] = uint64_t(place_of(walk, position).x);
}

// `order` is null where the order does not matter.
template <class T, int kWidth, bool kAccumulate>
__global__ void __launch_bounds__(kBlockThreads) write_kernel(const __grid_constant__ WriteArgs args, SortRun order) {
  const int64_t thread = int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
  const int64_t n_packs = args.n_plain / kWidth, i = thread / n_packs;
  if (i >= args.n_sorted) return;
  const int64_t* const strides[2] = {args.plain_x_strides, args.plain_other_strides};
  const Offsets<2> plain = strided_offsets((thread - i * n_packs) * kWidth, args.plain_ndim, args.plain_shape, strides);
  const T* source = static_cast<const T*>(args.sorted.other) + plain.of[1];
  auto from = [&](int64_t position) {
    const int64_t offset = strided_offset(position, args.sorted.ndim, args.sorted.shape, args.sorted.other_strides);
    return load_pack<kWidth>(source + offset);
  };
  T* x = static_cast<T*>(args.sorted.x) + plain.of[0];
  if (!order.keys) {
    x += place_of(args.sorted, i).x;
    Pack<T, kWidth> value = from(i);
    if constexpr (kAccumulate) {
      const Pack<T, kWidth> before = load_pack<kWidth>(x);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) value.at[j] = before.at[j] + value.at[j];
    }
    return store_pack(x, value);
  }
  const uint64_t place = order.keys[i];
  x += int64_t(place);
  if constexpr (kAccumulate) {
    if (i > 0 && order.keys[i - 1] == place) return;
    constexpr int kAhead = 4;
    Pack<T, kWidth> sum = load_pack<kWidth>(x), values[kAhead];
    for (int64_t at = i; at < args.n_sorted && order.keys[at] == place; at += kAhead) {
      int n = 0;
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (n == k && at + k < args.n_sorted && order.keys[at + k] == place) {
          values[k] = from(order.indices[at + k]);
          ++n;
        }
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (k < n)
#pragma unroll
          for (int j = 0; j < kWidth; ++j) sum.at[j] = sum.at[j] + values[k].at[j];
    }
    store_pack(x, sum);
  } else {
    if (i + 1 < args.n_sorted && order.keys[i + 1] == place) return;  // the last one wins
    store_pack(x, from(order.indices[i]));
  }
}

template <class T, int kWidth, bool kAccumulate>
void write_typed(const WriteArgs& args, SortRun order) {
  const int64_t threads = args.n_sorted * (args.n_plain / kWidth);
  launch(write_kernel<T, kWidth, kAccumulate>, unsigned(blocks_for(threads)), kBlockThreads, 0, args, order);
}

bool is_number(const IndexWalkArgs& walk) {
  for (int axis = 0; axis < walk.ndim; ++axis)
    if (walk.other_strides[axis] != 0) return false;
  return true;
}

void write(const IndexWalkArgs& args) {
  const IndexWalkArgs walk = args.accumulate ? args : widened(args);
  const WriteArgs writes = split(walk);
  const bool ordered = writes.n_sorted > 1 && (args.accumulate || !is_number(args));
  const size_t n = ordered ? size_t(writes.n_sorted) : 0;
  CudaScratch keys(2 * n * sizeof(uint64_t)), indices(2 * n * sizeof(int64_t));
  SortRun order{};
  if (ordered) {
    launch(make_places, unsigned(blocks_for(writes.n_sorted)), kBlockThreads, 0, writes.sorted, writes.n_sorted,
           keys.as<uint64_t>());
    order = sort_pairs({keys.as<uint64_t>(), indices.as<int64_t>()},
                       {keys.as<uint64_t>() + n, indices.as<int64_t>() + n}, 1, writes.n_sorted);
  }
  if (!args.accumulate)
    return with_item(walk.item_size,
                     [&](auto tag) { write_typed<typename decltype(tag)::type, 1, false>(writes, order); });
  if (args.dtype == DType::Float64) return write_typed<double, 1, true>(writes, order);
  if (args.dtype != DType::Float32) return write_typed<int64_t, 1, true>(writes, order);
  widened(args).item_size == 16 ? write_typed<float, 4, true>(writes, order)
                                : write_typed<float, 1, true>(writes, order);
}

// ------------------------------------------------------------------------------------------- nonzero

constexpr int kMarks = 4;  // elements of a thread

// A block takes a chunk: counts its set elements, or writes their coordinates behind each other.
__global__ void __launch_bounds__(kBlockThreads) nonzero_kernel(const __grid_constant__ NonzeroArgs args) {
  __shared__ int warps[kBlockThreads / kWarp];
  const uint8_t* mask = reinterpret_cast<const uint8_t*>(args.mask);
  const int64_t begin = blockIdx.x * kNonzeroChunk;
  const int64_t end = begin + kNonzeroChunk < args.n ? begin + kNonzeroChunk : args.n;
  int64_t place = args.coordinates ? args.counts[blockIdx.x] : 0;
  for (int64_t tile = begin; tile < end; tile += kBlockThreads * kMarks) {
    const int64_t first = tile + threadIdx.x * kMarks;
    bool set[kMarks];
    int mine = 0;
#pragma unroll
    for (int j = 0; j < kMarks; ++j) {
      set[j] = first + j < end && mask[first + j] != 0;
      mine += set[j];
    }
    int through = mine;  // of the warp's threads up to this one
    for (int step = 1; step < kWarp; step *= 2) {
      const int before = shuffle_up(through, step);
      if (lane_id() >= step) through += before;
    }
    if (lane_id() == kWarp - 1) warps[warp_id()] = through;
    block_sync();
    int64_t at = place + through - mine;
    for (int warp = 0; warp < kBlockThreads / kWarp; ++warp) {
      if (warp < warp_id()) at += warps[warp];
      place += warps[warp];
    }
    block_sync();
    if (!args.coordinates) continue;
#pragma unroll
    for (int j = 0; j < kMarks; ++j) {
      if (!set[j]) continue;
      int64_t rest = first + j;
      for (int axis = args.ndim - 1; axis >= 0; --axis) {
        const int64_t outer = axis > 0 ? rest / args.shape[axis] : 0;
        args.coordinates[axis * args.total + at] = rest - outer * args.shape[axis];
        rest = outer;
      }
      ++at;
    }
  }
  if (!args.coordinates && threadIdx.x == 0) args.counts[blockIdx.x] = place;
}

void nonzero(const NonzeroArgs& args) {
  launch(nonzero_kernel, unsigned((args.n + kNonzeroChunk - 1) / kNonzeroChunk), kBlockThreads, 0, args);
}

}  // namespace

FASTNN_CUDA_KERNEL(index_wrap, wrap)
FASTNN_CUDA_KERNEL(index_read, read)
FASTNN_CUDA_KERNEL(index_write, write)
FASTNN_CUDA_KERNEL(index_nonzero, nonzero)

}  // namespace fastnn
