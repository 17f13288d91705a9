// Rows of (planes, height, width) in the compute type, float or double, for the kernels of contiguous planes.
//
// A row is read in place or, of 16-bit floats, widened into a buffer; results are computed in place or in a
// line that `put_row` rounds and, when the tensor is large, stores past the caches.
//
// Windows of stride s along a row: position w of the row is put at j = w + padding of a padded line, and the
// line is split by j modulo s into s phases. Tap t of the windows i, i + 1, ... then reads one phase at
// consecutive places: contiguous registers for every kernel, stride, padding and dilation.
#pragma once

#include "core/memory.h"
#include "core/parallel.h"
#include "ops/pool/lanes_cpu.h"
#include "ops/pool/window.h"
#include "simd/stream.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements that a chunk reads or writes, about
constexpr int64_t kMaxTaps = 64;     // of a window that goes tap by tap
constexpr int64_t kMaxStride = 4;    // beyond 2 the split is element by element

// Calls rows(begin, end) for runs of the `n_rows` rows of all planes; a row takes about `work` elements.
template <class Rows>
void for_each_rows(const PoolArgs& args, int64_t n_rows, int64_t work, const Rows& rows) {
  parallel_for(args.planes * n_rows, max(kGrain / max(work, 1), 1), rows);
}

// Inputs that an output row takes.
inline int64_t inputs_of_row(const PoolArgs& args) { return min(args.height.kernel, args.height.in) * args.width.in; }

template <class Stored>
inline void widen_row(const void* from, int64_t n, float* to) {
  for_each_block<float>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    store_values<float>(to + i, load_values<Stored>(static_cast<const Stored*>(from) + i, count), count);
  });
}
template <class Stored>
inline void round_row(const float* from, int64_t n, void* to) {
  for_each_block<float>(n, [&](int64_t i, int64_t count) FASTNN_INLINED {
    store_values<Stored>(static_cast<Stored*>(to) + i, load_values<float>(from + i, count), count);
  });
}

// Row `row` of rows of n elements: in place, or in `buffer`.
template <class T>
const T* get_row(const void* rows, DType dtype, int64_t row, int64_t n, T* buffer) {
  const char* from = static_cast<const char*>(rows) + row * n * int64_t(item_size(dtype));
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::BFloat16) return widen_row<bfloat16>(from, n, buffer), buffer;
    if (dtype == DType::Float16) return widen_row<float16>(from, n, buffer), buffer;
  }
  return reinterpret_cast<const T*>(from);
}

// Where rows of results go: computed in place, or in a line with room for 2n elements and then put, because
// they are rounded or stored past the caches.
struct Sink {
  char* rows;
  DType dtype;
  bool rounds, streams;

  template <class T>
  T* line(int64_t row, int64_t n, T* buffer) const {
    return rounds || streams ? buffer : reinterpret_cast<T*>(rows) + row * n;
  }
  template <class T>
  void put(int64_t row, int64_t n, T* line) const {
    if (!rounds && !streams) return;
    const int64_t bytes = n * int64_t(item_size(dtype));
    char* target = rows + row * bytes;
    void* rounded = streams ? static_cast<void*>(line + n) : target;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (rounds)
        dtype == DType::BFloat16 ? round_row<bfloat16>(line, n, rounded) : round_row<float16>(line, n, rounded);
    }
    if (streams) stream_copy(target, rounds ? rounded : line, bytes);
  }
  void finish() const {
    if (streams) finish_streaming();
  }
};

// How far ahead a kernel asks for its input: rows of planes are short of what the hardware follows by itself.
constexpr int64_t kAhead = 2048;
inline void prefetch(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + kAhead); }

// Rows of n elements. Gradients, larger than what they are made from, are stored past the caches when they are
// large and their rows whole lines.
template <class T>
Sink result_rows(void* rows, DType dtype) {
  return {static_cast<char*>(rows), dtype, item_size(dtype) != sizeof(T), false};
}
template <class T>
Sink gradient_rows(const PoolArgs& args) {
  const int64_t row = args.width.in * int64_t(item_size(args.dtype));
  const bool streams = args.planes * args.height.in * row >= kStreamedBytes && row % 64 == 0 && is_line_start(args.x);
  return {static_cast<char*>(args.x), args.dtype, item_size(args.dtype) != sizeof(T), streams};
}

// Pieces of a chunk's scratch, each aligned to cache lines.
class Pieces {
 public:
  explicit Pieces(int64_t bytes) : next_(static_cast<char*>(thread_scratch(Scratch::Operation, size_t(bytes)))) {}
  template <class T>
  T* take(int64_t n) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += size<T>(n);
    return piece;
  }
  template <class T>
  static constexpr int64_t size(int64_t n) {
    return (n * int64_t(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  char* next_;
};

// ------------------------------------------------------------------------------------------- phases

inline int64_t reach_of(const PoolAxis& axis) { return axis.dilation * (axis.kernel - 1) + 1; }

// The split of a line: `length` elements a phase, and where tap t of window 0 lies.
template <class T>
struct Phases {
  int64_t stride, padding, length, taps;
  int64_t offset[kMaxTaps];

  explicit Phases(const PoolAxis& axis) : stride(axis.stride), padding(axis.padding), taps(axis.kernel) {
    const int64_t read = max(axis.out, kLanes<T>) + (reach_of(axis) - 1) / stride;
    const int64_t written = (axis.in - 1 + padding) / stride + 1;
    length = (max(read, written) + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t j = t * axis.dilation;
      offset[t] = j % stride * length + j / stride;
    }
  }
  int64_t size() const { return stride * length; }

  void fill(T* line, T value) const {
    for (int64_t i = 0; i < size(); ++i) line[i] = value;
  }

  // Puts the n values of a row into a line; the padding stays as it was filled.
  void split(const T* row, int64_t n, T* line) const {
    if (stride == 1) {
      memcpy(line + padding, row, size_t(n) * sizeof(T));
    } else if (stride == 2) {
      T* even = line + padding % 2 * length + padding / 2;
      T* odd = line + (padding + 1) % 2 * length + (padding + 1) / 2;
      split_pairs(row, n, even, odd);
    } else {
      for (int64_t first = 0; first < stride; ++first) {
        T* phase = line + (first + padding) % stride * length + (first + padding) / stride;
        for (int64_t w = first, i = 0; w < n; w += stride, ++i) phase[i] = row[w];
      }
    }
  }

 private:
  static void split_pairs(const T* row, int64_t n, T* even, T* odd) {
    constexpr int64_t lanes = kLanes<T>;
    Values<T> low, high, evens, odds;
    int64_t w = 0;
    for (; w + 2 * lanes <= n; w += 2 * lanes) {
      separate<T>(load_values<T>(row + w), load_values<T>(row + w + lanes), evens, odds);
      store_values<T>(even + w / 2, evens);
      store_values<T>(odd + w / 2, odds);
    }
    const int64_t rest = n - w;
    if (rest == 0) return;
    low = load_values<T>(row + w, min(rest, lanes));
    high = rest > lanes ? load_values<T>(row + w + lanes, rest - lanes) : Values<T>{};
    separate<T>(low, high, evens, odds);
    store_values<T>(even + w / 2, evens, (rest + 1) / 2);
    if (rest > 1) store_values<T>(odd + w / 2, odds, rest / 2);
  }
};

// The other way round, for the gradient: position w = i stride + r gets from window i + shift by the taps t
// with t dilation = r + padding - shift stride.
struct Spread {
  int64_t margin;  // windows before the first and beyond the last that are asked for
  int64_t count[kMaxStride];
  struct Source {
    int64_t tap, shift;
  } source[kMaxStride][kMaxTaps];  // in ascending order of windows

  explicit Spread(const PoolAxis& axis) : margin(0) {
    for (int64_t r = 0; r < axis.stride; ++r) {
      count[r] = 0;
      for (int64_t t = axis.kernel - 1; t >= 0; --t) {
        const int64_t distance = r + axis.padding - t * axis.dilation;
        if (distance % axis.stride) continue;
        const int64_t shift = distance / axis.stride;
        source[r][count[r]++] = {t, shift};
        margin = max(margin, max(shift, -shift));
      }
    }
  }
};

// Stores one register for each phase at line[0, stride * lanes).
template <class T>
inline void merge(const Values<T>* phases, int64_t stride, T* line) {
  if (stride == 1) {
    store_values<T>(line, phases[0]);
  } else if (stride == 2) {
    Values<T> low, high;
    interleave<T>(phases[0], phases[1], low, high);
    store_values<T>(line, low);
    store_values<T>(line + kLanes<T>, high);
  } else {
    for (int64_t r = 0; r < stride; ++r)
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) line[lane * stride + r] = phases[r][lane];
  }
}

// Fixed windows that go tap by tap.
inline bool goes_by_taps(const PoolArgs& args) {
  const auto is_small = [](const PoolAxis& axis) {
    return axis.stride && axis.stride <= kMaxStride && reach_of(axis) <= kMaxTaps;
  };
  return is_small(args.height) && is_small(args.width) && args.height.kernel * args.width.kernel <= kMaxTaps;
}

// Windows side by side, a power of two wide and within one register: they are reduced in registers.
template <class T>
bool fits_registers(const PoolAxis& width) {
  const int64_t n = width.kernel;
  return width.stride == n && n <= kLanes<T> && (n & (n - 1)) == 0 && width.padding == 0 && width.dilation == 1 &&
         width.out * n <= width.in;
}

// Rows of a ring that holds `n` in succession: a power of two, so that row & (slots - 1) is a row's slot.
inline int64_t ring_slots(int64_t n) {
  int64_t slots = 1;
  while (slots < n) slots *= 2;
  return slots;
}

inline bool is_2x2(const PoolArgs& args) {
  const auto halves = [](const PoolAxis& axis) {
    return axis.kernel == 2 && axis.stride == 2 && axis.padding == 0 && axis.dilation == 1 && 2 * axis.out <= axis.in;
  };
  return halves(args.height) && halves(args.width);
}

}  // namespace
}  // namespace fastnn
