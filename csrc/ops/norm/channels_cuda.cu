// Sums and lines of channels: channels_cuda.h says of what.
//
// bytes: x (and dy) once for the sums and once for the line, of which the second read finds in L2 what it holds;
// the result once. Arithmetic is a few operations an element.
//
// A block sums up a part of a channel, or of neighbouring channels where these are last, in packs of 16 bytes. A
// thread adds a few dozen elements in the compute type, forward around the first of them: since that is one of the
// channel's own values, its distance to the others is part of the variance, and the sums keep their digits however
// large the mean. From there on they are float64, around one centre for the channel: forward the mean of a few
// of its values.
#include "core/divisor.h"
#include "ops/norm/channels_cuda.h"
#include "simd/row_cuda.h"

namespace fastnn {
namespace {

constexpr int kThreads = 256;        // of a block, at most
constexpr int64_t kThreadPacks = 8;  // packs that a thread adds up, at least, if there are as many
constexpr int64_t kMaxParts = 1024;  // of a channel
constexpr int64_t kDrawnRows = 8;    // rows that a thread draws
constexpr int kCentreValues = 8;     // of a channel, whose mean is about the channel's

// What a thread has added up of a channel.
template <class T, bool kBackward>
struct ThreadSums {
  T around, value = T(0), product = T(0);
  int64_t count = 0;

  __device__ void add(T x, T dy) {
    const T d = x - around;
    value += kBackward ? dy : d;
    product += (kBackward ? dy : d) * d;
  }
  // In float64: forward around a value of the channel, backward around the mean.
  __device__ ChannelSums around_centre(double centre) const {
    const double shift = double(around) - centre, sum = double(value);
    if (kBackward) return {centre, sum, double(product) + shift * sum};
    if (count == 0) return {centre, 0, 0};
    return {centre, sum + double(count) * shift, double(product) + shift * (2 * sum + double(count) * shift)};
  }
};

__device__ inline double mean_of(const ChannelMeans& means, int64_t channel) {
  return means.means[means.stride * (channel / means.channels)];
}

// ------------------------------------------------------------------------------------------- planes

struct PlaneGrid {
  int64_t part, count;  // elements of a part and of a channel
  Divisor parts, inner;
  bool packs;
};

// Of values spread evenly over a channel of `count`; value_at(i) is the i-th.
template <class ValueAt>
__device__ double centre_of(int64_t count, const ValueAt& value_at) {
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kCentreValues; ++i) sum += value_at(count * (2 * i + 1) / (2 * kCentreValues));
  return sum / kCentreValues;
}

// sums (channels, parts)
template <class Stored, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    sum_planes(const __grid_constant__ ChannelTensors tensors, const __grid_constant__ ChannelMeans means,
               const __grid_constant__ PlaneGrid grid, ChannelSums* sums) {
  using T = Compute<Stored>;
  constexpr int kWidth = kPackOf16<Stored>;
  __shared__ double partial[kWarp];
  const Division block = grid.parts.divide(blockIdx.x);
  const int64_t channel = block.quotient, begin = block.rest * grid.part, end = min(begin + grid.part, grid.count);
  const Stored *x = static_cast<const Stored*>(tensors.x), *dy = static_cast<const Stored*>(tensors.dy);
  const auto place = [&](int64_t element) {
    const Division plane = grid.inner.divide(element);
    return (plane.quotient * tensors.channels + channel) * tensors.inner + plane.rest;
  };
  const double centre = kBackward ? mean_of(means, channel)
                                  : centre_of(grid.count, [&](int64_t i) { return to_compute<double>(x[place(i)]); });
  const int64_t width = grid.packs ? kWidth : 1, first = begin + int64_t(threadIdx.x) * width;
  ThreadSums<T, kBackward> mine;
  mine.around = kBackward || first >= end ? T(centre) : to_compute<T>(x[place(first)]);
  if (grid.packs) {
    for (int64_t i = first; i < end; i += int64_t(blockDim.x) * kWidth) {
      const int64_t at = place(i);
      const Pack<T, kWidth> values = load_values<kWidth>(x + at);
      Pack<T, kWidth> slopes{};
      if (kBackward) slopes = load_values<kWidth>(dy + at);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) mine.add(values.at[j], slopes.at[j]);
      mine.count += kWidth;
    }
  } else {
    for (int64_t i = first; i < end; i += blockDim.x) {
      const int64_t at = place(i);
      mine.add(to_compute<T>(x[at]), kBackward ? to_compute<T>(dy[at]) : T(0));
      ++mine.count;
    }
  }
  ChannelSums total = mine.around_centre(centre);
  total.value = block_reduce<Sum>(total.value, partial);
  total.product = block_reduce<Sum>(total.product, partial);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

template <class Stored>
__global__ void __launch_bounds__(kThreads)
    draw_planes(const __grid_constant__ ChannelTensors tensors, const ChannelLine<Compute<Stored>>* lines,
                const __grid_constant__ Divisor inner, const __grid_constant__ Divisor n_lines, bool packs) {
  using T = Compute<Stored>;
  constexpr int kWidth = kPackOf16<Stored>;
  const int64_t n = tensors.outer * tensors.channels * tensors.inner;
  const int64_t at = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (at >= n) return;
  Pack<T, kWidth> values = load_some<kWidth>(static_cast<const Stored*>(tensors.x) + at, n - at, packs), slopes{};
  if (tensors.dy) slopes = load_some<kWidth>(static_cast<const Stored*>(tensors.dy) + at, n - at, packs);
  Division place = inner.divide(at);
  ChannelLine<T> line = lines[n_lines.divide(place.quotient).rest];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (place.rest == tensors.inner && at + i < n) {
      place = {place.quotient + 1, 0};
      line = lines[n_lines.divide(place.quotient).rest];
    }
    ++place.rest;
    values.at[i] = (values.at[i] - line.centre) * line.slope + (slopes.at[i] * line.dy_slope + line.offset);
  }
  store_some(static_cast<Stored*>(tensors.out) + at, values, n - at, packs);
}

// ------------------------------------------------------------------------------------ channels last

// A block has blockDim.x packs of channels and blockDim.y rows at once.
struct RowGrid {
  int64_t part;          // rows
  Divisor packs, parts;  // blocks of a row, and parts of a sample
  bool aligned;
};

struct RowBlock {
  int64_t sample, part, channel, begin, end;
};

template <int kWidth>
__device__ RowBlock row_block(const ChannelTensors& tensors, const RowGrid& grid) {
  const Division by_pack = grid.packs.divide(blockIdx.x), by_part = grid.parts.divide(by_pack.quotient);
  const int64_t begin = by_part.rest * grid.part;
  return {by_part.quotient, by_part.rest, (by_pack.rest * blockDim.x + threadIdx.x) * kWidth, begin,
          min(begin + grid.part, tensors.inner)};
}

// sums (samples, channels, parts)
template <class Stored, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    sum_rows(const __grid_constant__ ChannelTensors tensors, const __grid_constant__ ChannelMeans means,
             const __grid_constant__ RowGrid grid, int64_t parts, ChannelSums* sums) {
  using T = Compute<Stored>;
  constexpr int kWidth = kPackOf16<Stored>;
  __shared__ double strips[2][kThreads];
  const RowBlock block = row_block<kWidth>(tensors, grid);
  const int64_t left = tensors.channels - block.channel;  // none for threads beyond the last
  const int64_t start = block.sample * tensors.inner * tensors.channels + block.channel;
  const Stored* x = static_cast<const Stored*>(tensors.x) + start;
  const Stored* dy = static_cast<const Stored*>(tensors.dy) + start;
  const int64_t row = block.begin + threadIdx.y, end = left > 0 ? block.end : 0;
  double centres[kWidth] = {};
  ThreadSums<T, kBackward> mine[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i < left)
      centres[i] = kBackward ? mean_of(means, block.sample * tensors.channels + block.channel + i)
                             : centre_of(tensors.inner, [&](int64_t pixel) {
                                 return to_compute<double>(x[pixel * tensors.channels + i]);
                               });
    mine[i].around =
        kBackward || i >= left || row >= end ? T(centres[i]) : to_compute<T>(x[row * tensors.channels + i]);
  }
  for (int64_t r = row; r < end; r += blockDim.y) {
    const Pack<T, kWidth> values = load_some<kWidth>(x + r * tensors.channels, left, grid.aligned);
    Pack<T, kWidth> slopes{};
    if (kBackward) slopes = load_some<kWidth>(dy + r * tensors.channels, left, grid.aligned);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      mine[i].add(values.at[i], slopes.at[i]);
      ++mine[i].count;
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    ChannelSums total = mine[i].around_centre(centres[i]);
    strips[0][thread_in_block()] = total.value;
    strips[1][thread_in_block()] = total.product;
    block_sync();
    if (threadIdx.y == 0 && i < left) {
      for (unsigned strip = 1; strip < blockDim.y; ++strip) {
        total.value += strips[0][strip * blockDim.x + threadIdx.x];
        total.product += strips[1][strip * blockDim.x + threadIdx.x];
      }
      sums[(block.sample * tensors.channels + block.channel + i) * parts + block.part] = total;
    }
    block_sync();
  }
}

template <class Stored>
__global__ void __launch_bounds__(kThreads)
    draw_rows(const __grid_constant__ ChannelTensors tensors, const ChannelLine<Compute<Stored>>* lines,
              const __grid_constant__ RowGrid grid) {
  using T = Compute<Stored>;
  constexpr int kWidth = kPackOf16<Stored>;
  const RowBlock block = row_block<kWidth>(tensors, grid);
  const int64_t left = tensors.channels - block.channel;
  if (left <= 0) return;
  ChannelLine<T> of[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    if (i < left) of[i] = lines[block.sample * tensors.channels + block.channel + i];
  for (int64_t row = block.begin + threadIdx.y; row < block.end; row += blockDim.y) {
    const int64_t at = (block.sample * tensors.inner + row) * tensors.channels + block.channel;
    Pack<T, kWidth> values = load_some<kWidth>(static_cast<const Stored*>(tensors.x) + at, left, grid.aligned);
    Pack<T, kWidth> slopes{};
    if (tensors.dy) slopes = load_some<kWidth>(static_cast<const Stored*>(tensors.dy) + at, left, grid.aligned);
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      values.at[i] = (values.at[i] - of[i].centre) * of[i].slope + (slopes.at[i] * of[i].dy_slope + of[i].offset);
    store_some(static_cast<Stored*>(tensors.out) + at, values, left, grid.aligned);
  }
}

// -------------------------------------------------------------------------------------------- parts

// A warp adds up a channel's parts.
__global__ void __launch_bounds__(kWarp* kRowsOfWarps)
    add_parts(const ChannelSums* partials, int64_t parts, int64_t channels, ChannelSums* sums) {
  const int64_t channel = team_row();
  if (channel >= channels) return;
  ChannelSums total{partials[channel * parts].centre, 0, 0};
  for (int64_t part = threadIdx.x; part < parts; part += kWarp) {
    total.value += partials[channel * parts + part].value;
    total.product += partials[channel * parts + part].product;
  }
  total.value = warp_reduce<Sum>(total.value);
  total.product = warp_reduce<Sum>(total.product);
  if (threadIdx.x == 0) sums[channel] = total;
}

// ----------------------------------------------------------------------------------------- launchers

int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Parts of n, none but the last smaller than `least`.
int64_t part_of(int64_t n, int64_t least) { return max(least, ceil_of(ceil_of(n, kMaxParts), least) * least); }

// The smallest power of two that is at least n, between a warp and a block.
unsigned threads_for(int64_t n) {
  unsigned threads = kWarp;
  while (threads < kThreads && threads < n) threads *= 2;
  return threads;
}

template <class Stored>
bool tensors_fit_packs(const ChannelTensors& t, int64_t run) {
  return rows_fit_packs<Stored>(run, {t.x, t.dy, t.out});
}

struct RowShape {
  RowGrid grid;
  int64_t parts;
  LaunchShape launch;
};

template <class Stored>
RowShape row_grid(const ChannelTensors& t, int64_t rows_of_thread, bool limit_parts) {
  const int64_t packs = ceil_of(t.channels, kPackOf16<Stored>);
  const unsigned lanes = packs > 16 ? 32 : packs > 8 ? 16 : packs > 4 ? 8 : 4, strips = kThreads / lanes;
  const int64_t least = strips * rows_of_thread, part = limit_parts ? part_of(t.inner, least) : least;
  const int64_t parts = ceil_of(t.inner, part), blocks = ceil_of(packs, lanes);
  return {{part, Divisor(blocks), Divisor(parts), tensors_fit_packs<Stored>(t, t.channels)},
          parts,
          {dim3(unsigned(blocks * parts * t.outer)), dim3(lanes, strips)}};
}

template <class Stored, bool kBackward>
void sum_channels_of(const ChannelTensors& t, const ChannelMeans& means, ChannelSums* sums) {
  const auto with_parts = [&](int64_t channels, int64_t parts, const auto& sum) {
    const CudaScratch partials(parts > 1 ? size_t(channels * parts) * sizeof(ChannelSums) : 0);
    sum(parts > 1 ? partials.as<ChannelSums>() : sums);
    if (parts > 1) launch(add_parts, row_shape<kWarp>(channels), partials.as<ChannelSums>(), parts, channels, sums);
  };
  if (t.channels_last) {
    const RowShape shape = row_grid<Stored>(t, 2 * kThreadPacks, true);
    with_parts(t.outer * t.channels, shape.parts, [&](ChannelSums* to) {
      launch(sum_rows<Stored, kBackward>, shape.launch, t, means, shape.grid, shape.parts, to);
    });
    return;
  }
  const bool packs = tensors_fit_packs<Stored>(t, t.inner);
  const int64_t width = packs ? kPackOf16<Stored> : 1, count = t.outer * t.inner;
  const int64_t part = part_of(count, kThreads * width * kThreadPacks), parts = ceil_of(count, part);
  with_parts(t.channels, parts, [&](ChannelSums* to) {
    launch(sum_planes<Stored, kBackward>, unsigned(t.channels * parts), threads_for(ceil_of(count, width)), 0, t, means,
           PlaneGrid{part, count, Divisor(parts), Divisor(t.inner), packs}, to);
  });
}

}  // namespace

void cuda_sum_channels(const ChannelTensors& tensors, const ChannelMeans& means, ChannelSums* sums) {
  with_float_type(tensors.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    tensors.dy ? sum_channels_of<Stored, true>(tensors, means, sums)
               : sum_channels_of<Stored, false>(tensors, means, sums);
  });
}

void cuda_draw_channels(const ChannelTensors& tensors, const void* lines, int64_t n_lines) {
  with_float_type(tensors.dtype, [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    const auto* of = static_cast<const ChannelLine<Compute<Stored>>*>(lines);
    if (tensors.channels_last) {
      const RowShape shape = row_grid<Stored>(tensors, kDrawnRows, false);
      return launch(draw_rows<Stored>, shape.launch, tensors, of, shape.grid);
    }
    constexpr int64_t kWidth = kPackOf16<Stored>;
    const int64_t n = tensors.outer * tensors.channels * tensors.inner;
    const bool packs = is_aligned(tensors.x, 16) && is_aligned(tensors.dy, 16) && is_aligned(tensors.out, 16);
    launch(draw_planes<Stored>, unsigned(ceil_of(n, kThreads * kWidth)), kThreads, 0, tensors, of,
           Divisor(tensors.inner), Divisor(n_lines), packs);
  });
}

}  // namespace fastnn
