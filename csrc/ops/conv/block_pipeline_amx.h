// The blocks of a task of an AMX convolution in bfloat16, each stored beside the products of the next one
// (interleaved_amx.h), with what is known of the output found beforehand.
//
// Few steps: a panel's filters stay in the first-level cache for all tiles. Of many, as many steps at a time as do stay
// there meet some tiles, whose sums are loaded anew: 36 steps of 28 x 28 positions took 30 to 32 ns each in turn, and
// 23 to 26 so.
#pragma once

#include "ops/conv/block_store_amx.h"

namespace fastnn {
namespace {

inline TileStream source_stream(const TilePass& pass, const PassTaps& taps, const TileTask& task, int64_t position) {
  const int64_t bytes = pass.source.position_bytes;
  return {task.source + position * bytes, taps.source_steps, bytes, 16 * bytes, pass.source.part_bytes};
}

inline TileStream filter_stream(const PassTaps& taps, const char* filters) {
  return {filters, taps.filter_steps, 64, kTileBytes, kBlockBytes};
}

// The next panel of bfloat16, fetched beside all tiles of a panel.
struct PanelFetch {
  const char *lines, *end;
  int64_t per_step, tile_bytes;

  PanelFetch(const PassTaps& taps, const TileTask& task, int64_t panel, int64_t tiles)
      : lines(taps.filters + (panel + 1) * taps.steps * kBlockBytes),
        end(lines + (panel + 1 < task.panel_end ? taps.steps * kBlockBytes : 0)),
        per_step(ceil_div(kBlockBytes / 64, tiles)),
        tile_bytes(taps.steps * per_step * 64) {}
  StepFetch beside(int64_t tile) const {
    const char* from = lines + tile * tile_bytes;
    return {from, from < end ? per_step : 0};
  }
};

class BlockPipeline {
 public:
  BlockPipeline(const TilePass& pass, const TileTask& task) : pass_(pass), task_(task), store_(pass, task) {
    const TaskTiles tiles(pass, task);
    const int64_t bias_bytes = pass.panels() * kBlock * int64_t(sizeof(float));
    char* memory = static_cast<char*>(
        thread_scratch(Scratch::GemmSums, size_t(bias_bytes + tiles.tiles * int64_t(sizeof(PlacedTile)))));
    bias_ = reinterpret_cast<float*>(memory);
    tiles_ = reinterpret_cast<PlacedTile*>(memory + bias_bytes);
    count_ = tiles.tiles;
    memset(bias_, 0, size_t(bias_bytes));
    for (int64_t o = 0; o < pass.m; o += kBlock) load_bias(pass, o, min(kBlock, pass.m - o), bias_ + o);
    store_.place(tiles, tiles_);
    for (int64_t tile = 0; tile < count_; ++tile) gapped_ |= tiles_[tile].single && tiles_[tile].mask != ~__mmask32(0);
  }

  void run() {
    const int64_t steps = pass_.taps[0].steps, chunks = ceil_div(steps, kMostSteps), chunk = ceil_div(steps, chunks);
    const int64_t tiles = chunks == 1 ? count_ : kMostTiles;
    buffers_ = chunks == 1 ? 2 : kMostTiles + 1;
    _tile_loadconfig(&kTileConfig);
    for (int64_t panel = task_.panel; panel < task_.panel_end; ++panel) {
      if (before_.sums && is_wide(panel) != is_wide(panel - 1)) store_before();
      for (int64_t first = 0; first < count_; first += tiles) {
        const int64_t end = min(first + tiles, count_), buffer = buffer_;
        for (int64_t step = 0; step < steps; step += chunk) {
          buffer_ = buffer;
          multiply({panel, first, end, step, min(step + chunk, steps), step + chunk >= steps});
        }
      }
    }
    _tile_release();
    store_before();
  }

 private:
  static constexpr int64_t kMostSteps = 18, kMostTiles = 8;

  // A panel and some tiles, over some steps, after which sums are complete or not.
  struct Blocks {
    int64_t panel, first, end, step, step_end;
    bool complete;
  };

  bool is_wide(int64_t panel) const { return pass_.m - panel * kBlock > 16; }

  void multiply(const Blocks& blocks) {
    const bool lines = pass_.source.lines, wide = is_wide(blocks.panel);
    if (!lines) return wide ? multiply<BlockForm::Filters, true>(blocks) : multiply<BlockForm::Filters, false>(blocks);
    if (gapped_)
      return wide ? multiply<BlockForm::GappedPositions, true>(blocks)
                  : multiply<BlockForm::GappedPositions, false>(blocks);
    wide ? multiply<BlockForm::Positions, true>(blocks) : multiply<BlockForm::Positions, false>(blocks);
  }

  // In runs of tiles, each of which leaves its block to the next one. One that does not lie in a single run of the
  // output is stored at once, and one that has more steps to come is not.
  template <BlockForm kForm, bool kWide>
  void multiply(Blocks blocks) {
    constexpr int kAll = kWide ? 8 : 4;
    const int64_t steps = blocks.step_end - blocks.step, end = blocks.end;
    while (blocks.first < end) {
      const bool stores = before_.sums != nullptr;
      blocks.end = blocks.first + 1;
      if (!blocks.complete && !stores) blocks.end = end;
      for (; blocks.complete && stores && blocks.end < end && tiles_[blocks.end - 1].single;) ++blocks.end;
      (!stores                      ? multiply_run<kForm, kWide, 0>
       : steps >= kAll              ? multiply_run<kForm, kWide, 1>
       : steps >= kAll / 2          ? multiply_run<kForm, kWide, 2>
       : kWide && steps >= kAll / 4 ? multiply_run<kForm, kWide, kAll / 2>
                                    : multiply_run<kForm, kWide, kAll>)(*this, blocks);
      if (!before_.sums || !tiles_[before_tile_].single) store_before();
      blocks.first = blocks.end;
    }
  }

  template <BlockForm kForm, bool kWide, int kPieces>
  static __attribute__((noinline)) void multiply_run(BlockPipeline& self, const Blocks& blocks) {
    constexpr bool kLines = kForm != BlockForm::Filters;
    const TilePass& pass = self.pass_;
    const PassTaps& taps = pass.taps[0];
    const int64_t channel_bytes = pass.out.c_row * 2, begin = blocks.step, step_end = blocks.step_end;
    const TileStream filters = filter_stream(taps, taps.filters + blocks.panel * taps.steps * kBlockBytes);
    const PanelFetch fetch(taps, self.task_, blocks.panel, self.count_);
    const int64_t n = min(kBlock, pass.m - blocks.panel * kBlock);
    const float* const bias = self.bias_ + blocks.panel * kBlock;
    const float least = self.store_.least();
    char* const out = pass.out.c + blocks.panel * kBlock * channel_bytes;
    int64_t buffer = self.buffer_;
    BlockTarget before = self.before_;
    for (int64_t tile = blocks.first; tile < blocks.end; ++tile) {
      const PlacedTile& placed = self.tiles_[tile];
      const TileStream positions = source_stream(pass, taps, self.task_, placed.span.begin);
      float* const sums = self.sums_[buffer];
      if (++buffer == self.buffers_) buffer = 0;
      interleaved_product<kForm, kWide, kPieces>(kLines ? positions : filters, kLines ? filters : positions, begin,
                                                 step_end, sums, before, fetch.beside(tile));
      before = {sums, bias, least, out + placed.offset * 2, channel_bytes, placed.mask, n, self.nowhere_};
    }
    self.buffer_ = buffer;
    self.before_ = blocks.complete ? before : BlockTarget{};
    self.before_tile_ = blocks.end - 1, self.before_panel_ = blocks.panel;
  }

  // The block before, which then is none.
  void store_before() {
    if (before_.sums) {
      store_.begin(tiles_[before_tile_].span, before_panel_ * kBlock, const_cast<float*>(before_.sums));
      store_.finish();
    }
    before_ = {};
  }

  const TilePass& pass_;
  const TileTask& task_;
  BlockStore<bfloat16> store_;
  float* bias_;
  PlacedTile* tiles_;
  int64_t count_, buffer_ = 0, buffers_ = 2;
  bool gapped_ = false;
  BlockTarget before_{};
  int64_t before_tile_ = 0, before_panel_ = 0;
  alignas(64) char nowhere_[64];
  alignas(64) float sums_[kMostTiles + 1][kSumsPerBlock];
};

}  // namespace
}  // namespace fastnn
