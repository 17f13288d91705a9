// Random numbers and dropout on the CPU.
//
//   y[i] = f(words of the stream at i)      arithmetic: 10 Philox rounds per 4 words, in vector lanes
//
// A row of 512 values is drawn at a time: its words, then the numbers in float, double or int64, then a
// store in the tensor's type. Which words a value takes depends on its index alone: uniform float and
// Bernoulli take word i; uniform double and integers words 2i and 2i + 1; a pair of normals shares two
// words (float) or four (double).
#include "ops/random/random.h"

#include "simd/convert.h"
#include "simd/philox_lanes.h"
#include "simd/stream.h"

namespace fastnn {
namespace {

constexpr int64_t kGrain = 32 * kRowChunk;

// Words [first, first + n) of the stream; first is a multiple of 4. Writes up to 3 more.
void draw_words(RandomStream stream, int64_t first, int64_t n, uint32_t* words) {
  philox_lanes(stream.seed, stream.offset, uint64_t(first) / 4, (n + 3) / 4, words);
}

constexpr int mantissa_bits(DType dtype) { return dtype == DType::BFloat16 ? 8 : dtype == DType::Float16 ? 11 : 24; }

// Values [first, first + n) of the tensor, n <= kRowChunk, in the type they are computed in.
struct Row {
  alignas(64) uint32_t words[2 * kRowChunk + 4];
  alignas(64) double values[kRowChunk];
};

// Rounding may reach the open end b: that value becomes a.
template <class T>
void shift_uniform(const RandomArgs& args, int64_t n, T* u) {
  if (args.a == 0 && args.b == 1) return;
  const T low = T(args.a), high = T(args.b);
  for (int64_t i = 0; i < n; ++i) {
    const T value = scale_shift(u[i], args.a, args.b - args.a);
    u[i] = value < high ? value : low;
  }
}

void uniform_row(const RandomArgs& args, int64_t first, int64_t n, Row& row, float* u) {
  const int bits = mantissa_bits(args.dtype);
  draw_words(args.stream, first, n, row.words);
  for (int64_t i = 0; i < n; ++i) u[i] = uniform_float(row.words[i], bits);
  shift_uniform(args, n, u);
}

void uniform_row(const RandomArgs& args, int64_t first, int64_t n, Row& row, double* u) {
  draw_words(args.stream, 2 * first, 2 * n, row.words);
  for (int64_t i = 0; i < n; ++i) u[i] = uniform_double(join_words(row.words[2 * i], row.words[2 * i + 1]));
  shift_uniform(args, n, u);
}

template <class T>
void shift_normal(const RandomArgs& args, int64_t n, T* z) {
  if (args.a == 0 && args.b == 1) return;
  for (int64_t i = 0; i < n; ++i) z[i] = scale_shift(z[i], args.a, args.b);
}

// kRowChunk is even, so pairs do not cross rows; the last one may write one value too many into the row.
void normal_row(const RandomArgs& args, int64_t first, int64_t n, Row& row, float* z) {
  draw_words(args.stream, first, n + 1, row.words);
  for (int64_t i = 0; i < n; i += 2) normal_pair(row.words[i], row.words[i + 1], z + i);
  shift_normal(args, n, z);
}

void normal_row(const RandomArgs& args, int64_t first, int64_t n, Row& row, double* z) {
  draw_words(args.stream, 2 * first, 2 * n + 2, row.words);
  for (int64_t i = 0; i < n; i += 2) {
    const uint32_t* w = row.words + 2 * i;
    normal_pair(join_words(w[0], w[1]), join_words(w[2], w[3]), z + i);
  }
  shift_normal(args, n, z);
}

void integer_row(const RandomArgs& args, int64_t first, int64_t n, Row& row, int64_t* y) {
  draw_words(args.stream, 2 * first, 2 * n, row.words);
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t word = join_words(row.words[2 * i], row.words[2 * i + 1]);
    y[i] = int64_t(uint64_t(args.low) + bounded(word, args.range));
  }
}

void bernoulli_row(const RandomArgs& args, int64_t first, int64_t n, Row& row, float* y) {
  alignas(64) double p[kRowChunk];
  const char* from = static_cast<const char*>(args.p);
  if (from)
    FASTNN_LEVEL::load_row(p, from + first * int64_t(item_size(args.p_dtype)), args.p_dtype, 1, n);
  else
    for (int64_t i = 0; i < n; ++i) p[i] = args.a;
  draw_words(args.stream, first, n, row.words);
  for (int64_t i = 0; i < n; ++i) y[i] = double(row.words[i]) * 0x1p-32 < p[i] ? 1.0f : 0.0f;
}

// Values of one row to their place, past the caches where the whole is too large for them.
template <class T>
void put_row(void* y, DType dtype, int64_t first, int64_t n, const T* values, bool streamed) {
  char* to = static_cast<char*>(y) + first * int64_t(item_size(dtype));
  if (streamed)
    stream_copy(to, values, n * int64_t(sizeof(T)));
  else
    FASTNN_LEVEL::store_row(to, dtype, 1, values, n);
}

template <class T>
bool is_streamed(DType dtype, int64_t n) {
  return dtype == dtype_of<T>() && n * int64_t(sizeof(T)) > kStreamedBytes;
}

template <class T>
void draw_rows(const RandomArgs& args, void (*draw)(const RandomArgs&, int64_t, int64_t, Row&, T*)) {
  const bool streamed = is_streamed<T>(args.dtype, args.n);
  parallel_for(args.n, kGrain, [&](int64_t begin, int64_t end) {
    Row row;
    T* values = reinterpret_cast<T*>(row.values);
    for (int64_t at = begin; at < end; at += kRowChunk) {
      const int64_t n = end - at < kRowChunk ? end - at : kRowChunk;
      draw(args, at, n, row, values);
      put_row(args.y, args.dtype, at, n, values, streamed);
    }
    if (streamed) finish_streaming();
  });
}

void fill_any(const RandomArgs& args) {
  const bool wide = args.dtype == DType::Float64;
  switch (args.distribution) {
    case Distribution::Uniform:
      return wide ? draw_rows<double>(args, uniform_row) : draw_rows<float>(args, uniform_row);
    case Distribution::Normal: return wide ? draw_rows<double>(args, normal_row) : draw_rows<float>(args, normal_row);
    case Distribution::Integer: return draw_rows<int64_t>(args, integer_row);
    case Distribution::Bernoulli: return draw_rows<float>(args, bernoulli_row);
  }
}

// ---------------------------------------------------------------------------------------- dropout

template <class T>
void drop_row(const DropoutArgs& args, const uint32_t* words, const T* x, T* y, int64_t n) {
  const T scale = T(args.scale);
  const uint32_t threshold = args.threshold;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] = words[i] >= threshold ? x[i] * scale : T(0);
}

template <class T>
void dropout_typed(const DropoutArgs& args) {
  const bool streamed = is_streamed<T>(args.dtype, args.n) && args.x != args.y;
  const bool direct = args.dtype == dtype_of<T>() && !streamed;
  const int64_t bytes = int64_t(item_size(args.dtype));
  parallel_for(args.n, kGrain, [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t words[kRowChunk];
    alignas(64) T values[kRowChunk];
    for (int64_t at = begin; at < end; at += kRowChunk) {
      const int64_t n = end - at < kRowChunk ? end - at : kRowChunk;
      const char* x = static_cast<const char*>(args.x) + at * bytes;
      draw_words(args.stream, at, n, words);
      if (direct) {
        drop_row(args, words, reinterpret_cast<const T*>(x), static_cast<T*>(args.y) + at, n);
        continue;
      }
      const T* from = reinterpret_cast<const T*>(x);
      if (!streamed) FASTNN_LEVEL::load_row(values, x, args.dtype, 1, n), from = values;
      drop_row(args, words, from, values, n);
      put_row(args.y, args.dtype, at, n, values, streamed);
    }
    if (streamed) finish_streaming();
  });
}

void dropout_any(const DropoutArgs& args) {
  args.dtype == DType::Float64 ? dropout_typed<double>(args) : dropout_typed<float>(args);
}

}  // namespace

FASTNN_CPU_KERNEL(random_fill, fill_any)
FASTNN_CPU_KERNEL(dropout_apply, dropout_any)

}  // namespace fastnn
