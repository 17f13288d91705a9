// Batch normalization of (outer, channels, inner), inner > 1: a channel is `outer` planes of `inner` values.
//
// A channel that stays in L2 is read from memory once: sums, then the line. Others are cut into parts, whose sums
// are added up in their order. Planes shorter than a block are taken several at a time.
#pragma once

#include "ops/norm/blocks_cpu.h"
#include "ops/norm/norm.h"
#include "simd/row.h"
#include "simd/vec.h"

namespace fastnn {
namespace {

constexpr int64_t kMaxRuns = 256;          // planes of a block: each may end in a partial register
constexpr int64_t kCachedBytes = 1 << 20;  // of a channel
constexpr int64_t kMinCachedChannels = 8;  // fewer are too coarse a unit to share among threads
constexpr int kAccumulators = 4;           // registers for each sum: additions take 4 cycles

// The blocks of a channel: several planes each, or pieces of a plane.
class PlaneBlocks {
 public:
  explicit PlaneBlocks(const ChannelView& view)
      : view_(view),
        pieces_(ceil_div(view.inner, kBlock)),
        length_(pieces_ == 1 ? view.inner : ceil_div(ceil_div(view.inner, pieces_), 64) * 64),
        planes_(pieces_ == 1 ? smaller(kBlock / view.inner, kMaxRuns) : 1) {}

  int64_t count() const { return ceil_div(view_.outer, planes_) * pieces_; }
  int64_t elements() const { return planes_ * length_; }
  Block block(int64_t channel, int64_t index) const {
    const int64_t plane = index / pieces_ * planes_, begin = index % pieces_ * length_;
    return {(plane * view_.channels + channel) * view_.inner + begin, smaller(planes_, view_.outer - plane),
            smaller(length_, view_.inner - begin), view_.channels * view_.inner};
  }

 private:
  ChannelView view_;
  int64_t pieces_, length_, planes_;
};

struct Sums {
  double value = 0, product = 0;
};

// Adds v and v d of a run: see blocks_cpu.h. `centres` is a register's worth of the centre.
template <class T, bool kBackward>
inline __attribute__((always_inline)) void add_moments(const T* dy, const T* x, int64_t n, const T* centres,
                                                       Vec<T>* values, Vec<T>* products) {
  constexpr int kSize = Vec<T>::size;
  const Vec<T> centre = Vec<T>::load(centres);
  const auto add = [&](int k, Vec<T> d, Vec<T> v) {
    values[k] += v;
    products[k] += v * d;
  };
  int64_t i = 0;
  for (; i + kAccumulators * kSize <= n; i += kAccumulators * kSize)
#pragma GCC unroll 4
    for (int k = 0; k < kAccumulators; ++k) {
      const Vec<T> d = Vec<T>::load(x + i + k * kSize) - centre;
      add(k, d, kBackward ? Vec<T>::load(dy + i + k * kSize) : d);
    }
  for (; i < n; i += kSize) {  // lanes past the end read 0 - 0
    const int64_t rest = smaller(kSize, n - i);
    const Vec<T> d = Vec<T>::load(x + i, rest) - Vec<T>::load(centres, rest);
    add(0, d, kBackward ? Vec<T>::load(dy + i, rest) : d);
  }
}

template <class T>
double lane_sum(const Vec<T>* sums) {
  T lanes[Vec<T>::size];
  ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(lanes);
  double total = 0;
  for (T lane : lanes) total += double(lane);
  return total;
}

template <class T>
void draw_line(const Line<T>& line, const T* dy, const T* x, T* out, int64_t n) {
  if (dy) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - line.centre) * line.slope + (dy[i] * line.dy_slope + line.offset);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - line.centre) * line.slope + line.offset;
  }
}

// Pass: a direction's tensors, and the line that a channel's sums give.
template <class T, class Pass>
struct PlaneKernel {
  const Pass& pass;
  const ChannelView& view;
  PlaneBlocks blocks;
  T* buffers;  // of the calling thread: three blocks

  PlaneKernel(const Pass& direction, const PlaneBlocks& layout)
      : pass(direction),
        view(direction.view()),
        blocks(layout),
        buffers(static_cast<T*>(thread_scratch(Scratch::Operation, 3 * kBlock * sizeof(T)))) {}

  // Packed runs are one.
  static Block packed(Block block, int64_t stride) {
    if (stride == block.length) block = {block.first, 1, block.runs * block.length, block.stride};
    return block;
  }

  T centre(int64_t channel) const {
    if constexpr (Pass::kBackward) return pass.mean(channel);
    const Block block = blocks.block(channel, 0);
    const Runs<const T> x = load(pass.x(), view.dtype, block, buffers);
    double total = 0;
    for (int64_t run = 0; run < block.runs; ++run) {
      const T* values = x.run(run);
      total += row_sum<T>(block.length, [&](int64_t i) { return values[i]; });
    }
    return T(total / double(block.runs * block.length));
  }

  Sums sums(int64_t channel, int64_t begin, int64_t end, T centre) const {
    T centres[Vec<T>::size];
    Vec<T>::broadcast(centre).store(centres);
    Sums total;
    for (int64_t index = begin; index < end; ++index) {
      const Block block = blocks.block(channel, index);
      const Runs<const T> x = load(pass.x(), view.dtype, block, buffers);
      const Runs<const T> dy = load(pass.dy(), view.dtype, block, buffers + kBlock);
      const Block runs = packed(block, x.stride);
      Vec<T> values[kAccumulators] = {}, products[kAccumulators] = {};
      for (int64_t run = 0; run < runs.runs; ++run)
        add_moments<T, Pass::kBackward>(dy.run(run), x.run(run), runs.length, centres, values, products);
      total.value += lane_sum(values);
      total.product += lane_sum(products);
    }
    return total;
  }

  void apply(int64_t channel, int64_t begin, int64_t end, const Line<T>& line) const {
    for (int64_t index = begin; index < end; ++index) {
      const Block block = blocks.block(channel, index);
      const Runs<const T> x = load(pass.x(), view.dtype, block, buffers);
      const Runs<const T> dy = load(pass.dy(), view.dtype, block, buffers + kBlock);
      const Runs<T> out = target(pass.out(), view.dtype, block, buffers + 2 * kBlock);
      const Block runs = packed(block, x.stride);
      for (int64_t run = 0; run < runs.runs; ++run) draw_line(line, dy.run(run), x.run(run), out.run(run), runs.length);
      finish(pass.out(), view.dtype, block, out.data);
    }
  }
};

template <class T, class Pass>
void run_cached_planes(const Pass& pass, const PlaneBlocks& blocks) {
  const ChannelView& view = pass.view();
  parallel_for(view.channels, ceil_div(kPart, view.outer * view.inner), [&](int64_t begin, int64_t end) {
    const PlaneKernel<T, Pass> kernel(pass, blocks);
    for (int64_t channel = begin; channel < end; ++channel) {
      const T centre = kernel.centre(channel);
      const Sums sums = kernel.sums(channel, 0, blocks.count(), centre);
      kernel.apply(channel, 0, blocks.count(), pass.line(channel, centre, sums.value, sums.product));
    }
  });
}

template <class T, class Pass>
void run_planes(const Pass& pass) {
  const ChannelView& view = pass.view();
  const PlaneBlocks blocks(view);
  const int64_t bytes = view.outer * view.inner * int64_t(item_size(view.dtype)) * (Pass::kBackward ? 2 : 1);
  if (pass.wants_sums() && pass.out() && bytes <= kCachedBytes && view.channels >= kMinCachedChannels)
    return run_cached_planes<T>(pass, blocks);

  const int64_t part_blocks = larger(1, kPart / blocks.elements()), parts = ceil_div(blocks.count(), part_blocks);
  const int64_t grain = larger(1, kPart / (part_blocks * blocks.elements()));
  Sums* partials = static_cast<Sums*>(thread_scratch(
      Scratch::OperationShared, size_t(view.channels) * (size_t(parts) * sizeof(Sums) + sizeof(T) + sizeof(Line<T>))));
  Line<T>* lines = reinterpret_cast<Line<T>*>(partials + view.channels * parts);
  T* centres = reinterpret_cast<T*>(lines + view.channels);
  const auto for_each_part = [&](auto&& visit) {
    parallel_for(view.channels * parts, grain, [&](int64_t begin, int64_t end) {
      const PlaneKernel<T, Pass> kernel(pass, blocks);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % parts * part_blocks;
        visit(kernel, i, i / parts, first, smaller(first + part_blocks, blocks.count()));
      }
    });
  };
  if (pass.wants_sums()) {
    parallel_for(view.channels, ceil_div(kPart, blocks.elements()), [&](int64_t begin, int64_t end) {
      const PlaneKernel<T, Pass> kernel(pass, blocks);
      for (int64_t channel = begin; channel < end; ++channel) centres[channel] = kernel.centre(channel);
    });
    for_each_part([&](const auto& kernel, int64_t part, int64_t channel, int64_t begin, int64_t end) {
      partials[part] = kernel.sums(channel, begin, end, centres[channel]);
    });
  }
  for (int64_t channel = 0; channel < view.channels; ++channel) {
    Sums total;
    if (pass.wants_sums())
      for (int64_t part = 0; part < parts; ++part) {
        total.value += partials[channel * parts + part].value;
        total.product += partials[channel * parts + part].product;
      }
    lines[channel] = pass.line(channel, pass.wants_sums() ? centres[channel] : T(0), total.value, total.product);
  }
  if (pass.out())
    for_each_part([&](const auto& kernel, int64_t, int64_t channel, int64_t begin, int64_t end) {
      kernel.apply(channel, begin, end, lines[channel]);
    });
}

}  // namespace
}  // namespace fastnn
