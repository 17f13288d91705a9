// Indexed reads and writes on the CPU: see index.h for the walk.
//
//   read    bytes: the result twice, the index tensors once
//   write   bytes: the source once, the places met twice
//
// The walk's last axis is a row. Where index tensors do not vary along it, it is copied as a row of x
// (memcpy when both sides are contiguous): embedding and x[ids] are this case.
// Writes are partitioned by the places written, never by the index: positions that differ along a free
// axis (one that runs along a dim of x) never meet, so leading free axes are cut, or else a free row
// into columns. Every place sees its writes in the walk's order, whatever the thread count.
#include "ops/index/index.h"

#include <cstring>

#include "simd/convert.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 16384;
constexpr int64_t kColumns = 128;  // of one piece of a row that is written

// --------------------------------------------------------------------------- the index values, checked

void wrap(const IndexWrapArgs& args) {
  const int64_t bytes = int64_t(item_size(args.dtype));
  const int64_t offset = args.from_end ? args.size : 0;
  *args.first_bad = -1;
  for (int64_t begin = 0; begin < args.n; begin += kRowChunk) {
    const int64_t n = args.n - begin < kRowChunk ? args.n - begin : kRowChunk;
    int64_t* wrapped = args.wrapped + begin;
    FASTNN_LEVEL::load_row(wrapped, static_cast<const char*>(args.index) + begin * bytes, args.dtype, 1, n);
    int bad = 0;
    for (int64_t i = 0; i < n; ++i) {
      wrapped[i] += wrapped[i] < 0 ? offset : 0;
      bad |= (wrapped[i] < 0) | (wrapped[i] >= args.size);
    }
    if (!bad) continue;
    for (int64_t i = 0; i < n; ++i) {
      if (wrapped[i] >= 0 && wrapped[i] < args.size) continue;
      *args.first_bad = begin + i;
      return;
    }
  }
}

// ------------------------------------------------------------------------------------------ the walk

struct Place {
  int64_t x, other;  // offsets of the row's first element
};

// Where the row number `row` of the walk (all axes but the last) begins; index tensors that vary along
// the row are left out.
template <bool along_row>
Place place_of(const IndexWalkArgs& args, int64_t row) {
  Place place{0, 0};
  int64_t at[kMaxDims] = {};
  for (int axis = args.ndim - 2; axis >= 0; --axis) {
    const int64_t i = row % args.shape[axis];
    row /= args.shape[axis];
    place.x += i * args.x_strides[axis];
    place.other += i * args.other_strides[axis];
    for (int k = 0; k < args.n_indices; ++k) at[k] += i * args.index_strides[k][axis];
  }
  if (!along_row)
    for (int k = 0; k < args.n_indices; ++k) place.x += args.index[k][at[k]] * args.step[k];
  return place;
}

// The index tensors' part of the offsets of a row's elements [begin, begin + n).
void row_offsets(const IndexWalkArgs& args, int64_t row, int64_t begin, int64_t n, int64_t* offsets) {
  const int last = args.ndim - 1;
  for (int64_t i = 0; i < n; ++i) offsets[i] = (begin + i) * args.x_strides[last];
  for (int k = 0; k < args.n_indices; ++k) {
    int64_t at = 0, rest = row;
    for (int axis = last - 1; axis >= 0; --axis) {
      at += rest % args.shape[axis] * args.index_strides[k][axis];
      rest /= args.shape[axis];
    }
    const int64_t stride = args.index_strides[k][last], step = args.step[k];
    const int64_t* index = args.index[k] + at + begin * stride;
    for (int64_t i = 0; i < n; ++i) offsets[i] += index[i * stride] * step;
  }
}

bool varies_along_row(const IndexWalkArgs& args) {
  for (int k = 0; k < args.n_indices; ++k)
    if (args.index_strides[k][args.ndim - 1] != 0) return true;
  return false;
}

int64_t count_rows(const IndexWalkArgs& args) {
  int64_t rows = 1;
  for (int axis = 0; axis < args.ndim - 1; ++axis) rows *= args.shape[axis];
  return rows;
}

// ---------------------------------------------------------------------------------------------- read

template <class T>
void copy_row(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t n) {
  if (to_stride == 1 && from_stride == 1) {
    memcpy(to, from, size_t(n) * sizeof(T));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * to_stride] = from[i * from_stride];
  }
}

template <class T>
void read_typed(const IndexWalkArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* out = static_cast<T*>(args.other);
  const int last = args.ndim - 1;
  const int64_t n = args.shape[last], stride = args.other_strides[last];
  const bool along_row = varies_along_row(args);
  parallel_for(count_rows(args), kGrain / (n + 8) + 1, [&](int64_t first, int64_t past) {
    int64_t offsets[kRowChunk];
    for (int64_t row = first; row < past; ++row) {
      if (!along_row) {
        const Place place = place_of<false>(args, row);
        copy_row(out + place.other, stride, x + place.x, args.x_strides[last], n);
        continue;
      }
      const Place place = place_of<true>(args, row);
      for (int64_t begin = 0; begin < n; begin += kRowChunk) {
        const int64_t length = n - begin < kRowChunk ? n - begin : kRowChunk;
        row_offsets(args, row, begin, length, offsets);
        T* to = out + place.other + begin * stride;
        for (int64_t i = 0; i < length; ++i) to[i * stride] = x[place.x + offsets[i]];
      }
    }
  });
}

void read(const IndexWalkArgs& args) {
  switch (args.item_size) {
    case 1: return read_typed<uint8_t>(args);
    case 2: return read_typed<uint16_t>(args);
    case 4: return read_typed<uint32_t>(args);
    default: return read_typed<uint64_t>(args);
  }
}

// --------------------------------------------------------------------------------------------- write

template <class T, bool accumulate>
inline void put(T& to, T value) {
  if constexpr (accumulate)
    to = T(to + value);
  else
    to = value;
}

// Elements [begin, end) of one row.
template <class T, bool accumulate>
void write_row(const IndexWalkArgs& args, int64_t row, bool along_row, int64_t begin, int64_t end) {
  const int last = args.ndim - 1;
  const int64_t x_stride = args.x_strides[last], stride = args.other_strides[last], n = end - begin;
  T* x = static_cast<T*>(args.x);
  const T* source = static_cast<const T*>(args.other) + begin * stride;
  if (along_row) {
    int64_t offsets[kRowChunk];
    const Place place = place_of<true>(args, row);
    for (int64_t done = 0; done < n; done += kRowChunk) {
      const int64_t length = n - done < kRowChunk ? n - done : kRowChunk;
      row_offsets(args, row, begin + done, length, offsets);
      const T* from = source + place.other + done * stride;
      for (int64_t i = 0; i < length; ++i) put<T, accumulate>(x[place.x + offsets[i]], from[i * stride]);
    }
    return;
  }
  const Place place = place_of<false>(args, row);
  T* to = x + place.x + begin * x_stride;
  const T* from = source + place.other;
  if (x_stride == 1 && stride == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) put<T, accumulate>(to[i], from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) put<T, accumulate>(to[i * x_stride], from[i * stride]);
  }
}

template <class T, bool accumulate>
void write_typed(const IndexWalkArgs& args) {
  const int last = args.ndim - 1;
  const int64_t rows = count_rows(args), n = args.shape[last];
  const bool along_row = varies_along_row(args);
  int64_t free = 1;
  for (int axis = 0; axis < last && args.x_strides[axis] != 0; ++axis) free *= args.shape[axis];
  if (free > 1 || args.x_strides[last] == 0 || n < 2 * kColumns) {
    const int64_t rows_each = rows / free;
    parallel_for(free, kGrain / (rows_each * (n + 8)) + 1, [&](int64_t first, int64_t past) {
      for (int64_t row = first * rows_each; row < past * rows_each; ++row)
        write_row<T, accumulate>(args, row, along_row, 0, n);
    });
    return;
  }
  const int64_t columns = rows * n <= 2 * kGrain ? n : kColumns;
  parallel_for(n, columns, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < rows; ++row) write_row<T, accumulate>(args, row, along_row, begin, end);
  });
}

void write(const IndexWalkArgs& args) {
  if (args.accumulate) {
    if (args.dtype == DType::Float32) return write_typed<float, true>(args);
    if (args.dtype == DType::Float64) return write_typed<double, true>(args);
    return write_typed<int64_t, true>(args);
  }
  switch (args.item_size) {
    case 1: return write_typed<uint8_t, false>(args);
    case 2: return write_typed<uint16_t, false>(args);
    case 4: return write_typed<uint32_t, false>(args);
    default: return write_typed<uint64_t, false>(args);
  }
}

// ------------------------------------------------------------------------------------------- nonzero

int64_t count_set(const uint8_t* mask, int64_t n) {
  int64_t set = 0;
  for (int64_t i = 0; i < n; ++i) set += mask[i] != 0;
  return set;
}

// Writes the coordinates of the set elements [begin, end), row by row of the last axis.
void write_coordinates(const NonzeroArgs& args, const uint8_t* mask, int64_t begin, int64_t end, int64_t place) {
  const int last = args.ndim - 1;
  int64_t index[kMaxDims], rest = begin;
  for (int axis = last; axis >= 0; --axis) {
    index[axis] = rest % args.shape[axis];
    rest /= args.shape[axis];
  }
  int64_t columns[kRowChunk];
  for (int64_t at = begin; at < end;) {
    int64_t n = args.shape[last] - index[last];
    n = n < end - at ? n : end - at;
    n = n < kRowChunk ? n : kRowChunk;
    int64_t found = 0;
    for (int64_t i = 0; i < n; ++i) {  // without a branch: half of a random mask would be mispredicted
      columns[found] = index[last] + i;
      found += mask[at + i] != 0;
    }
    for (int axis = 0; axis < last; ++axis)
      for (int64_t i = 0; i < found; ++i) args.coordinates[axis * args.total + place + i] = index[axis];
    for (int64_t i = 0; i < found; ++i) args.coordinates[last * args.total + place + i] = columns[i];
    place += found;
    at += n;
    index[last] += n;
    for (int axis = last; axis > 0 && index[axis] == args.shape[axis]; --axis) {
      index[axis] = 0;
      ++index[axis - 1];
    }
  }
}

void nonzero(const NonzeroArgs& args) {
  const uint8_t* mask = reinterpret_cast<const uint8_t*>(args.mask);
  parallel_for(args.n, kNonzeroChunk, [&](int64_t begin, int64_t end) {
    int64_t& count = args.counts[begin / kNonzeroChunk];
    if (args.coordinates) {
      write_coordinates(args, mask, begin, end, count);
    } else {
      count = count_set(mask + begin, end - begin);
    }
  });
}

}  // namespace

FASTNN_CPU_KERNEL(index_wrap, wrap)
FASTNN_CPU_KERNEL(index_read, read)
FASTNN_CPU_KERNEL(index_write, write)
FASTNN_CPU_KERNEL(index_nonzero, nonzero)

}  // namespace fastnn
