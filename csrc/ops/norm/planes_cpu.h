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

// A piece of a plane, counted as they lie in memory.
struct PieceInOrder {
  int64_t plane, channel, piece;  // of all planes; of the plane
};

// The blocks of a channel: several planes each, or pieces of a plane.
class PlaneBlocks {
 public:
  explicit PlaneBlocks(const ChannelView& view)
      : view_(view),
        pieces_(ceil_div(view.inner, kBlock)),
        length_(pieces_ == 1 ? view.inner : ceil_div(ceil_div(view.inner, pieces_), 64) * 64),
        planes_(pieces_ == 1 ? min(kBlock / view.inner, kMaxRuns) : 1),
        count_(ceil_div(view.outer, planes_) * pieces_) {}

  int64_t count() const { return count_; }
  int64_t elements() const { return planes_ * length_; }
  Block block(int64_t channel, int64_t index) const {
    const bool whole = pieces_ == 1;  // a division takes as long as a short plane
    const int64_t plane = (whole ? index : index / pieces_) * planes_, begin = whole ? 0 : index % pieces_ * length_;
    return {(plane * view_.channels + channel) * view_.inner + begin, min(planes_, view_.outer - plane),
            min(length_, view_.inner - begin), view_.channels * view_.inner};
  }

  int64_t length() const { return length_; }
  int64_t count_in_order() const { return view_.outer * view_.channels * pieces_; }
  PieceInOrder in_order(int64_t i) const { return {i / pieces_, i / pieces_ % view_.channels, i % pieces_}; }
  PieceInOrder after(const PieceInOrder& at) const {
    if (at.piece + 1 < pieces_) return {at.plane, at.channel, at.piece + 1};
    return {at.plane + 1, at.channel + 1 < view_.channels ? at.channel + 1 : 0, 0};
  }
  Block block(const PieceInOrder& at) const {
    const int64_t begin = at.piece * length_;
    return {at.plane * view_.inner + begin, 1, min(length_, view_.inner - begin), 0};
  }

 private:
  ChannelView view_;
  int64_t pieces_, length_, planes_, count_;
};

struct Sums {
  double value = 0, product = 0;
};

// The sums of v and v d over a block: see blocks_cpu.h. Additions take 4 cycles, so that runs shorter than a register
// are taken four at a time, and the registers of longer ones take turns.
template <class Stored, bool kBackward>
inline Sums moments(const Stored* dy, const Stored* x, const Block& block, Compute<Stored> centre) {
  using T = Compute<Stored>;
  constexpr int64_t kSize = kLanes<T>, kStep = kAccumulators * kSize;
  const Block runs = packed(block, block.stride);
  const int64_t rest = runs.length <= kSize ? runs.length : runs.length % kSize;
  const Values<T> centres = broadcast<T>(centre), rest_centres = first_lanes_of<T>(centres, rest);
  Values<T> values[kAccumulators] = {}, products[kAccumulators] = {};
  const auto add = [&](int k, int64_t at, int64_t n, Values<T> centres) FASTNN_INLINED {
    const Values<T> d = load_values<Stored>(x + at, n) - centres;  // lanes past n are 0 - 0
    const Values<T> v = kBackward ? load_values<Stored>(dy + at, n) : d;
    values[k] += v;
    products[k] += v * d;
  };
  int64_t run = 0;
  if (runs.length <= kSize) {
    for (; run + kAccumulators <= runs.runs; run += kAccumulators)
#pragma GCC unroll 4
      for (int k = 0; k < kAccumulators; ++k) add(k, runs.first + (run + k) * runs.stride, rest, rest_centres);
  }
  for (; run < runs.runs; ++run) {
    int64_t at = runs.first + run * runs.stride;
    const int64_t end = at + runs.length;
    for (; at + kStep <= end; at += kStep)
#pragma GCC unroll 4
      for (int k = 0; k < kAccumulators; ++k) add(k, at + k * kSize, kSize, centres);
#pragma GCC unroll 3
    for (int k = 0; k < kAccumulators - 1; ++k) {
      if (at + kSize > end) break;
      add(k, at, kSize, centres);
      at += kSize;
    }
    if (at < end) add(kAccumulators - 1, at, rest, rest_centres);
  }
  const auto sum = [](const Values<T>* sums) {
    return double(sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3])));
  };
  return {sum(values), sum(products)};
}

// Pass: a direction's tensors, and the line that a channel's sums give.
template <class Stored, class Pass>
struct PlaneKernel {
  using T = Compute<Stored>;
  const Pass& pass;
  const PlaneBlocks& blocks;
  const Stored *x, *dy;
  Stored* out;

  PlaneKernel(const Pass& direction, const PlaneBlocks& layout)
      : pass(direction),
        blocks(layout),
        x(static_cast<const Stored*>(direction.x())),
        dy(static_cast<const Stored*>(direction.dy())),
        out(static_cast<Stored*>(direction.out())) {}

  T centre(int64_t channel) const {
    if constexpr (Pass::kBackward) return pass.centre(channel);
    const Block first = blocks.block(channel, 0);
    return T(sums(channel, 0, 1, T(0)).value / double(first.runs * first.length));
  }

  Sums sums(int64_t channel, int64_t begin, int64_t end, T centre) const {
    Sums total;
    for (int64_t index = begin; index < end; ++index) {
      const Sums sums = moments<Stored, Pass::kBackward>(dy, x, blocks.block(channel, index), centre);
      total.value += sums.value;
      total.product += sums.product;
    }
    return total;
  }

  void draw(const Block& block, const Line<T>& line) const {
    const Values<T> centre = broadcast<T>(line.centre), slope = broadcast<T>(line.slope);
    const Values<T> offset = broadcast<T>(line.offset), dy_slope = broadcast<T>(line.dy_slope);
    const Block runs = packed(block, block.stride);
    for (int64_t run = 0; run < runs.runs; ++run) {
      const int64_t first = runs.first + run * runs.stride;
      for_each_register<T>(runs.length, [&](int64_t i, int64_t n) FASTNN_INLINED {
        const int64_t at = first + i;
        const Values<T> shift = Pass::kBackward ? load_values<Stored>(dy + at, n) * dy_slope + offset : offset;
        store_values<Stored>(out + at, (load_values<Stored>(x + at, n) - centre) * slope + shift, n);
      });
    }
  }
};

template <class Stored, class Pass>
void run_cached_planes(const Pass& pass, const PlaneBlocks& blocks) {
  using T = Compute<Stored>;
  const ChannelView& view = pass.view();
  constexpr int64_t kMostTogether = Pass::kBackward ? 1 : kGroup;  // its two passes lose more than they gain
  const int64_t elements = view.outer * view.inner, group = elements <= kBlock / kGroup ? kMostTogether : 1;
  parallel_for(view.channels, ceil_div(kPart, elements + kChannelWork), [&](int64_t begin, int64_t end) {
    const PlaneKernel<Stored, Pass> kernel(pass, blocks);
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
        for (int64_t index = 0; index < blocks.count(); ++index) kernel.draw(blocks.block(first + k, index), lines[k]);
    }
  });
}

template <class Stored, class Pass>
void run_planes(const Pass& pass) {
  using T = Compute<Stored>;
  const ChannelView& view = pass.view();
  const PlaneBlocks blocks(view);
  const int64_t bytes = view.outer * view.inner * int64_t(sizeof(Stored)) * (Pass::kBackward ? 2 : 1);
  if (pass.wants_sums() && pass.out() && bytes <= kCachedBytes && view.channels >= kMinCachedChannels)
    return run_cached_planes<Stored>(pass, blocks);

  const PlaneKernel<Stored, Pass> kernel(pass, blocks);
  const int64_t part_blocks = max(1, kPart / blocks.elements()), parts = ceil_div(blocks.count(), part_blocks);
  Sums* partials = static_cast<Sums*>(thread_scratch(
      Scratch::OperationShared, size_t(view.channels) * (size_t(parts) * sizeof(Sums) + sizeof(T) + sizeof(Line<T>))));
  Line<T>* lines = reinterpret_cast<Line<T>*>(partials + view.channels * parts);
  T* centres = reinterpret_cast<T*>(lines + view.channels);
  if (pass.wants_sums()) {
    parallel_for(view.channels, ceil_div(kPart, blocks.elements()), [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) centres[channel] = kernel.centre(channel);
    });
    const int64_t grain = max(1, kPart / (part_blocks * blocks.elements()));
    parallel_for(view.channels * parts, grain, [&](int64_t begin, int64_t end) {
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
    PieceInOrder piece = blocks.in_order(begin);
    for (int64_t i = begin; i < end; ++i, piece = blocks.after(piece))
      kernel.draw(blocks.block(piece), lines[piece.channel]);
  });
}

}  // namespace
}  // namespace fastnn
