// Batch normalization of (outer, channels, inner), inner > 1: a channel is `outer` planes of `inner` values.
//
// A channel that stays in L2 is read from memory once: sums, then the line; short ones take each pass forward in
// groups, so that one's sums are known while another's are added up. Others are cut into parts, whose sums are added up
// in their order, and the lines are drawn plane by plane. Planes shorter than a block are summed several at a time.
#pragma once

#include "ops/norm/blocks_cpu.h"
#include "ops/norm/norm.h"
#include "simd/lanes.h"

namespace fastnn {
namespace {

constexpr int64_t kMaxRuns = 256;          // planes of a block: each may end in a partial register
constexpr int64_t kCachedBytes = 1 << 20;  // of a channel
constexpr int64_t kMinCachedChannels = 8;  // fewer are too coarse a unit to share among threads
constexpr int64_t kGroup = 8;              // short channels that take each pass forward together
constexpr int64_t kChannelWork = 128;      // elements that take as long as the rest of what a channel costs
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

// The sums of v and v d over `n_runs` runs of n: see blocks_cpu.h.
template <class T, bool kBackward>
inline Sums moments(const Runs<const T>& dy, const Runs<const T>& x, int64_t n_runs, int64_t n, T centre) {
  constexpr int64_t kSize = Vec<T>::size, kStep = kAccumulators * kSize;
  const int64_t rest = n % kSize;
  const Vec<T> centres = Vec<T>::broadcast(centre);
  const Vec<T> last_centres = first_lanes_of<T>(centres.raw, rest);  // lanes past the end read 0 - 0
  Vec<T> values[kAccumulators] = {}, products[kAccumulators] = {};
  const auto add = [&](int k, Vec<T> d, Vec<T> v) FASTNN_INLINED {
    values[k] += v;
    products[k] += v * d;
  };
  for (int64_t run = 0; run < n_runs; ++run) {
    const T *x_run = x.run(run), *dy_run = dy.run(run);
    int64_t i = 0;
    for (; i + kStep <= n; i += kStep)
#pragma GCC unroll 4
      for (int k = 0; k < kAccumulators; ++k) {
        const Vec<T> d = Vec<T>::load(x_run + i + k * kSize) - centres;
        add(k, d, kBackward ? Vec<T>::load(dy_run + i + k * kSize) : d);
      }
    for (; i + kSize <= n; i += kSize) {
      const Vec<T> d = Vec<T>::load(x_run + i) - centres;
      add(0, d, kBackward ? Vec<T>::load(dy_run + i) : d);
    }
    if (rest) {
      const Vec<T> d = Vec<T>::load(x_run + i, rest) - last_centres;
      add(1, d, kBackward ? Vec<T>::load(dy_run + i, rest) : d);
    }
  }
  const auto sum = [](const Vec<T>* sums) {
    return double(sum_lanes<T>(((sums[0] + sums[1]) + (sums[2] + sums[3])).raw));
  };
  return {sum(values), sum(products)};
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
    Sums total;
    for (int64_t index = begin; index < end; ++index) {
      const Block block = blocks.block(channel, index);
      const Runs<const T> x = load(pass.x(), view.dtype, block, buffers);
      const Runs<const T> dy = load(pass.dy(), view.dtype, block, buffers + kBlock);
      const Block runs = packed(block, x.stride);
      const Sums sums = moments<T, Pass::kBackward>(dy, x, runs.runs, runs.length, centre);
      total.value += sums.value;
      total.product += sums.product;
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
  constexpr int64_t kMostTogether = Pass::kBackward ? 1 : kGroup;  // its two passes lose more than they gain
  const int64_t elements = view.outer * view.inner, group = elements <= kBlock / kGroup ? kMostTogether : 1;
  parallel_for(view.channels, ceil_div(kPart, elements + kChannelWork), [&](int64_t begin, int64_t end) {
    const PlaneKernel<T, Pass> kernel(pass, blocks);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t n = min(group, end - first);
      T centres[kMostTogether];
      Line<T> lines[kMostTogether];
      for (int64_t k = 0; k < n; ++k) centres[k] = kernel.centre(first + k);
      for (int64_t k = 0; k < n; ++k) {
        const Sums sums = kernel.sums(first + k, 0, blocks.count(), centres[k]);
        lines[k] = pass.line(first + k, centres[k], sums.value, sums.product);
      }
      for (int64_t k = 0; k < n; ++k)
        for (int64_t index = 0; index < blocks.count(); ++index) kernel.apply(blocks.block(first + k, index), lines[k]);
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
