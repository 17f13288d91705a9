// Batch normalization of (outer, channels, inner), inner > 1: a channel is `outer` planes of `inner` values.
//
// A channel that stays in L2 is read from memory once: sums, then the line. Others are cut into parts, whose sums
// are added up in their order, and the lines are drawn plane by plane. Planes shorter than a block are summed
// several at a time.
#pragma once

#include "ops/norm/blocks_cpu.h"
#include "ops/norm/norm.h"
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
        planes_(pieces_ == 1 ? min(kBlock / view.inner, kMaxRuns) : 1) {}

  int64_t count() const { return ceil_div(view_.outer, planes_) * pieces_; }
  int64_t elements() const { return planes_ * length_; }
  Block block(int64_t channel, int64_t index) const {
    const int64_t plane = index / pieces_ * planes_, begin = index % pieces_ * length_;
    return {(plane * view_.channels + channel) * view_.inner + begin, min(planes_, view_.outer - plane),
            min(length_, view_.inner - begin), view_.channels * view_.inner};
  }

  // Planes and pieces as they lie in memory.
  int64_t length() const { return length_; }
  int64_t count_in_order() const { return view_.outer * view_.channels * pieces_; }
  int64_t channel_in_order(int64_t i) const { return i / pieces_ % view_.channels; }
  Block block_in_order(int64_t i) const {
    const int64_t begin = i % pieces_ * length_;
    return {i / pieces_ * view_.inner + begin, 1, min(length_, view_.inner - begin), 0};
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
    const int64_t rest = min(kSize, n - i);
    const Vec<T> d = Vec<T>::load(x + i, rest) - Vec<T>::load(centres, rest);
    add(0, d, kBackward ? Vec<T>::load(dy + i, rest) : d);
  }
}

// In float64, through a few sums side by side: additions wait for each other.
template <class T>
double lane_sum(const Vec<T>* sums) {
  constexpr int kSize = Vec<T>::size, kTotals = kSize < 8 ? kSize : 8;
  T lanes[kSize];
  ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(lanes);
  double totals[kTotals];
  for (int i = 0; i < kTotals; ++i) totals[i] = double(lanes[i]);
  for (int i = kTotals; i < kSize; ++i) totals[i - kTotals] += double(lanes[i]);
  for (int apart = kTotals / 2; apart > 0; apart /= 2)
    for (int i = 0; i < apart; ++i) totals[i] += totals[i + apart];
  return totals[0];
}

template <class T, bool kBackward>
inline __attribute__((always_inline)) void draw_line(const Line<T>& line, const T* dy, const T* x, T* out, int64_t n) {
  constexpr int kSize = Vec<T>::size;
  const Vec<T> centre = Vec<T>::broadcast(line.centre), slope = Vec<T>::broadcast(line.slope);
  const Vec<T> offset = Vec<T>::broadcast(line.offset), dy_slope = Vec<T>::broadcast(line.dy_slope);
  const auto point = [&](Vec<T> at, Vec<T> gradient) {
    return (at - centre) * slope + (kBackward ? gradient * dy_slope + offset : offset);
  };
  int64_t i = 0;
  for (; i + kSize <= n; i += kSize)
    point(Vec<T>::load(x + i), kBackward ? Vec<T>::load(dy + i) : offset).store(out + i);
  if (i < n) point(Vec<T>::load(x + i, n - i), kBackward ? Vec<T>::load(dy + i, n - i) : offset).store(out + i, n - i);
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

  T centre(int64_t channel) const {
    if constexpr (Pass::kBackward) return pass.centre(channel);
    const Block first = blocks.block(channel, 0);
    return T(sums(channel, 0, 1, T(0)).value / double(first.runs * first.length));
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

  void apply(const Block& block, const Line<T>& line) const {
    const Runs<const T> x = load(pass.x(), view.dtype, block, buffers);
    const Runs<const T> dy = load(pass.dy(), view.dtype, block, buffers + kBlock);
    const Runs<T> out = target(pass.out(), view.dtype, block, buffers + 2 * kBlock);
    const Block runs = packed(block, x.stride);
    for (int64_t run = 0; run < runs.runs; ++run)
      draw_line<T, Pass::kBackward>(line, dy.run(run), x.run(run), out.run(run), runs.length);
    finish(pass.out(), view.dtype, block, out.data);
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
      const Line<T> line = pass.line(channel, centre, sums.value, sums.product);
      for (int64_t index = 0; index < blocks.count(); ++index) kernel.apply(blocks.block(channel, index), line);
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

  const int64_t part_blocks = max(1, kPart / blocks.elements()), parts = ceil_div(blocks.count(), part_blocks);
  Sums* partials = static_cast<Sums*>(thread_scratch(
      Scratch::OperationShared, size_t(view.channels) * (size_t(parts) * sizeof(Sums) + sizeof(T) + sizeof(Line<T>))));
  Line<T>* lines = reinterpret_cast<Line<T>*>(partials + view.channels * parts);
  T* centres = reinterpret_cast<T*>(lines + view.channels);
  if (pass.wants_sums()) {
    parallel_for(view.channels, ceil_div(kPart, blocks.elements()), [&](int64_t begin, int64_t end) {
      const PlaneKernel<T, Pass> kernel(pass, blocks);
      for (int64_t channel = begin; channel < end; ++channel) centres[channel] = kernel.centre(channel);
    });
    const int64_t grain = max(1, kPart / (part_blocks * blocks.elements()));
    parallel_for(view.channels * parts, grain, [&](int64_t begin, int64_t end) {
      const PlaneKernel<T, Pass> kernel(pass, blocks);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t channel = i / parts, first = i % parts * part_blocks;
        partials[i] = kernel.sums(channel, first, min(first + part_blocks, blocks.count()), centres[channel]);
      }
    });
  }
  for (int64_t channel = 0; channel < view.channels; ++channel) {
    Sums total;
    for (int64_t part = 0; pass.wants_sums() && part < parts; ++part) {
      total.value += partials[channel * parts + part].value;
      total.product += partials[channel * parts + part].product;
    }
    lines[channel] = pass.line(channel, pass.wants_sums() ? centres[channel] : T(0), total.value, total.product);
  }
  if (!pass.out()) return;
  const int64_t grain = max(1, kPart / blocks.length());
  parallel_for(blocks.count_in_order(), grain, [&](int64_t begin, int64_t end) {
    const PlaneKernel<T, Pass> kernel(pass, blocks);
    for (int64_t i = begin; i < end; ++i) kernel.apply(blocks.block_in_order(i), lines[blocks.channel_in_order(i)]);
  });
}

}  // namespace
}  // namespace fastnn
