// From the sums of the weight gradient on AMX tiles to dw: blocks of 32 filters x 32 channels, one for every tap,
// become rows [channel][tap]. Squares of 16 taps x 16 channels are transposed, so that dw is written along memory. Sums
// of different steps ("splits") are added in order.
#pragma once

#include "gemm/pack_amx.h"
#include "ops/conv/planes_cpu.h"

namespace fastnn {
namespace {

// Of one panel of filters and one group of channels.
template <class T>
struct GroupSums {
  const float* sums;  // [split][tap] blocks
  int64_t splits, split_pitch;
  int64_t taps;
  int64_t folds;  // channels are pairs of a channel and a column tap: of so many
  T* dw;          // of the panel's first filter
  int64_t filter_pitch, filters;
  int64_t first_channel, channels;

  // Added up: 16 channels of a filter for one tap.
  __m512 lanes(int64_t r, int64_t half, int64_t tap) const {
    const float* first = sums + tap * kSumsPerBlock + r / 16 * 512 + half * 256 + r % 16 * 16;
    __m512 x = _mm512_load_ps(first);
    for (int64_t split = 1; split < splits; ++split) x = _mm512_add_ps(x, _mm512_load_ps(first + split * split_pitch));
    return x;
  }
};

// 16 channels of filter r.
template <class T>
void store_channels(const GroupSums<T>& group, int64_t r, int64_t half) {
  const int64_t taps = group.taps, channels = min(16, group.channels - 16 * half);
  T* target = group.dw + r * group.filter_pitch + (group.first_channel + 16 * half) * taps;
  if (taps == 1) return store_lanes<T>(reinterpret_cast<char*>(target), lane_mask(channels), group.lanes(r, half, 0));
  for (int64_t tap = 0; tap < taps; tap += 16) {
    const int64_t n = min(16, taps - tap);
    Vec<float> square[16];
#pragma GCC unroll 16
    for (int64_t t = 0; t < 16; ++t)
      square[t] = Vec<float>(Vec<float>::Raw(t < n ? group.lanes(r, half, tap + t) : _mm512_setzero_ps()));
    transpose(square);
#pragma GCC unroll 16
    for (int64_t c = 0; c < 16; ++c)
      store_lanes<T>(reinterpret_cast<char*>(target + c * taps + tap), c < channels ? lane_mask(n) : __mmask16(0),
                     __m512(square[c].raw));
  }
}

// The same of folded channels, of which there are few.
template <class T>
void store_folds(const GroupSums<T>& group, int64_t r, int64_t half) {
  for (int64_t tap = 0; tap < group.taps; ++tap) {
    alignas(64) T values[16];
    store_lanes<T>(reinterpret_cast<char*>(values), 0xffff, group.lanes(r, half, tap));
    for (int64_t c = 0; c < min(16, group.channels - 16 * half); ++c) {
      const int64_t k = group.first_channel + 16 * half + c, row = k / group.folds * group.taps + tap;
      group.dw[r * group.filter_pitch + row * group.folds + k % group.folds] = values[c];
    }
  }
}

template <class T>
void store_group(const GroupSums<T>& group) {
  for (int64_t r = 0; r < group.filters; ++r)
    for (int64_t half = 0; half < 2 && 16 * half < group.channels; ++half)
      if (group.folds > 1) {
        store_folds(group, r, half);
      } else {
        store_channels(group, r, half);
      }
}

}  // namespace
}  // namespace fastnn
