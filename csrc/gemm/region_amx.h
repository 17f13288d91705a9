// A region of C on AMX tiles (tile_amx.h): up to kRegionPanels panels of one operand, which is "held", times a strip of
// the other, which is "streamed".
//
//   for each piece of k
//     pack the held operand (pack_amx.h)             it stays in the second-level cache
//     for each panel of 32 rows or columns of the streamed operand
//       for each chunk of k (kChunkSteps)            the streamed operand's chunk stays in the first-level cache
//         for each panel held
//           32 x 32 sums in tile registers
//
// Vector units work beside the tile units, a little with each step: they pack the next chunk of the streamed operand
// from where it lies, and send the block of sums before to C. Packing it once for all regions instead means to write it
// to memory and to read it back: then it is fetched into the second-level cache beside the products, and sums go to C
// between them.
//
// The held operand is read by streaming loads, which leave the chunk in the first-level cache: 32 KiB of its 48. In a
// loop of tiles alone a step of bfloat16 takes 24 ns so and 36 by plain loads.
//
// Blocks of C whose float32 parts would not be exact are left out.
#pragma once

#include "core/memory.h"
#include "gemm/prefetch.h"
#include "gemm/store_amx.h"
#include "simd/integer.h"

namespace fastnn {
namespace {

template <bool kHeldA>
constexpr int64_t kRegionPanels = kHeldA ? 8 : 16;  // held, at most
constexpr int64_t kSlabPanels = 128;                // streamed, at most
template <int P>
constexpr int64_t kChunkSteps = P == 1 ? 16 : 8;

// A part of C: rows of A times columns of B.
struct Region {
  int64_t row, rows, column, columns;
};

// A packed part of an operand: panel p at data + p * panel_bytes.
struct PackedSlab {
  const char* data;
  int64_t outer, count;  // rows or columns
  int64_t steps, panel_bytes;
  PartRange range;

  int64_t panels() const { return ceil_div(count, kBlock); }
};

// A chunk of the streamed operand that is packed beside products, in `parts` parts: row after row where k is adjacent
// and goes to rows, and step after step else.
template <int P>
class ChunkPacking {
 public:
  ChunkPacking() = default;
  ChunkPacking(const PackSource& source, TileForm form, int64_t outer, int64_t count, int64_t k, int64_t depth,
               char* target, PartRange* range, int64_t parts)
      : source_(source),
        form_(form),
        outer_(outer),
        count_(count),
        k_(k),
        depth_(depth),
        target_(target),
        range_(range),
        by_rows_(source.depth_stride == 1 && form == TileForm::Rows),
        units_(by_rows_ ? count : ceil_div(depth, kStepK), parts) {}

  void operator()(int64_t part) {
    for (const int64_t end = units_.at(part + 1); done_ < end; ++done_) {
      const PartRange seen = by_rows_ ? pack_one_row(done_) : pack_one_step(done_);
      if (P > 1) range_->add(seen);
    }
  }

 private:
  PartRange pack_one_row(int64_t r) const {
    const char* row = source_.at(outer_ + r, k_);
    char* target = target_ + r * 64;
    if (source_.dtype == DType::BFloat16) return pack_row<P, bfloat16>(row, depth_, target);
    if (source_.dtype == DType::Float16) return pack_row<P, float16>(row, depth_, target);
    return pack_row<P, float>(row, depth_, target);
  }
  PartRange pack_one_step(int64_t step) const {
    const int64_t k = step * kStepK, row = max(source_.outer_stride, source_.depth_stride);
    const bool along = source_.depth_stride == 1, adjacent = along || source_.outer_stride == 1;
    char* target = target_ + step * P * kBlockBytes;
    if (!adjacent || count_ < kBlock || k + kStepK > depth_)
      return pack_panels<P>(source_, outer_, count_, k_ + k, min(kStepK, depth_ - k), {target, 0, form_});
    const char* data = source_.at(outer_, k_ + k);
    const int64_t row_bytes = row * int64_t(item_size(source_.dtype));
    if (source_.dtype == DType::BFloat16) return pack_step<P, bfloat16>(data, row_bytes, along, form_, target);
    if (source_.dtype == DType::Float16) return pack_step<P, float16>(data, row_bytes, along, form_, target);
    return pack_step<P, float>(data, row_bytes, along, form_, target);
  }

  PackSource source_{};
  TileForm form_ = TileForm::Rows;
  int64_t outer_ = 0, count_ = 0, k_ = 0, depth_ = 0;
  char* target_ = nullptr;
  PartRange* range_ = nullptr;
  bool by_rows_ = false;
  StepShare units_;
  int64_t done_ = 0;
};

// A block of sums on its way to C.
struct BlockStore {
  float* sums = nullptr;  // none
  int64_t row, column, rows, columns;

  void finish(const TileOutput& out) const {
    if (sums) finish_sums(out, sums, row, column, rows, columns);
  }
  void store(const TileOutput& out, int64_t begin, int64_t end) const {
    if (sums) store_rows(out, sums, row, column, begin, end, columns);
  }
};

// Beside the products of a block.
template <int P>
struct BesideProducts {
  const TileOutput* out;
  const BlockStore* store;
  StepShare stored;
  ChunkPacking<P>* packing;  // or null
  int64_t first_part;        // of it
  const char* packed;        // lines to fetch of the next chunk, where it is packed already
  StepShare fetched;

  void operator()(int64_t step, int64_t) const {
    if (step == 0) store->finish(*out);
    store->store(*out, stored.at(step), stored.at(step + 1));
    if (packing) (*packing)(first_part + step);
    for (int64_t line = fetched.at(step); line < fetched.at(step + 1); ++line) prefetch_near(packed + line * 64);
  }
};

// A part of an operand.
struct Strip {
  PackSource source;
  int64_t outer, count;

  int64_t panels() const { return ceil_div(count, kBlock); }
  int64_t first(int64_t panel) const { return outer + panel * kBlock; }
  int64_t length(int64_t panel) const { return min(kBlock, count - panel * kBlock); }
};

// kHeldA: whether A is held, and not B.
template <int P, bool kHeldA>
class RegionProduct {
 public:
  // `packed`: the streamed operand, or null. k is taken in pieces of `piece_steps`.
  RegionProduct(const Strip& held, const Strip& streamed, const PackedSlab* packed, int64_t k, int64_t depth,
                int64_t piece_steps, const TileOutput& out)
      : held_(held),
        streamed_(streamed),
        packed_(packed),
        k_(k),
        depth_(depth),
        n_held_(held.panels()),
        n_streamed_(streamed.panels()),
        n_steps_(ceil_div(depth, kStepK)),
        piece_steps_(piece_steps),
        out_(out) {
    sums_panels_ = piece_steps >= n_steps_ ? 1 : n_streamed_;
    const int64_t held_bytes = n_held_ * piece_steps * kStepBytes, chunk_bytes = packed ? 0 : 2 * kChunk * kStepBytes;
    const int64_t sums_bytes = sums_panels_ * n_held_ * kSumsPerBlock * int64_t(sizeof(float));
    held_data_ = static_cast<char*>(thread_scratch(Scratch::GemmA, size_t(held_bytes + chunk_bytes + sums_bytes)));
    chunks_ = held_data_ + held_bytes;
    sums_ = reinterpret_cast<float*>(chunks_ + chunk_bytes);
    for (int64_t s = 0; s < kChunk; ++s) table_[s] = s * kStepBytes;
  }

  void run() {
    _tile_loadconfig(&kTileConfig);  // no TileScope: it would want tables for exceptions, of which there are none
    Chunk chunk{0, 0, 0, chunk_steps(0, 0)};
    if (!packed_) packing_of(chunk, 0, 1)(0);
    for (int64_t turn = 0; chunk.steps > 0; ++turn) {
      if (chunk.panel == 0 && chunk.step == 0) pack_held(chunk.piece);
      const Chunk next = following(chunk);
      multiply(chunk, next, turn);
      chunk = next;
    }
    send();
    _tile_release();
  }

  // Calls body(region) for the parts of C that were left out.
  template <class Body>
  void for_each_inexact(const Body& body) const {
    for (int64_t j = 0, end; j < n_streamed_; j = end) {
      end = j + 1;
      if (!inexact_[j]) continue;
      while (end < n_streamed_ && inexact_[end]) ++end;
      body(region_of(held_.outer, held_.count, streamed_.first(j), min(end * kBlock, streamed_.count) - j * kBlock));
    }
  }

 private:
  static constexpr int64_t kStepBytes = P * kBlockBytes, kChunk = kChunkSteps<P>;
  static constexpr TileForm kHeldForm = kHeldA ? TileForm::Rows : TileForm::Pairs;
  static constexpr TileForm kStreamedForm = kHeldA ? TileForm::Pairs : TileForm::Rows;

  // Of a panel of the streamed operand, in the order of the products. After the last there is one of no steps.
  struct Chunk {
    int64_t piece, panel, step, steps;  // of k: steps from piece + step on
  };

  static Region region_of(int64_t held, int64_t n_held, int64_t streamed, int64_t n_streamed) {
    return kHeldA ? Region{held, n_held, streamed, n_streamed} : Region{streamed, n_streamed, held, n_held};
  }

  int64_t piece_length(int64_t piece) const { return min(piece_steps_, n_steps_ - piece); }
  int64_t chunk_steps(int64_t piece, int64_t step) const {
    return min(even_piece(piece_length(piece), kChunk), piece_length(piece) - step);
  }
  Chunk following(const Chunk& chunk) const {
    Chunk next{chunk.piece, chunk.panel, chunk.step + chunk.steps, 0};
    if (next.step == piece_length(next.piece)) next.step = 0, ++next.panel;
    if (next.panel == n_streamed_) next.panel = 0, next.piece += piece_steps_;
    if (next.piece < n_steps_) next.steps = chunk_steps(next.piece, next.step);
    return next;
  }

  char* chunk_at(int64_t turn) const { return chunks_ + turn % 2 * kChunk * kStepBytes; }
  const char* packed_at(const Chunk& chunk) const {
    const int64_t panel = (streamed_.outer - packed_->outer) / kBlock + chunk.panel;
    return packed_->data + panel * packed_->panel_bytes + (chunk.piece + chunk.step) * kStepBytes;
  }
  ChunkPacking<P> packing_of(const Chunk& chunk, int64_t turn, int64_t parts) {
    const int64_t first = (chunk.piece + chunk.step) * kStepK;
    return {streamed_.source,
            kStreamedForm,
            streamed_.first(chunk.panel),
            streamed_.length(chunk.panel),
            k_ + first,
            min(chunk.steps * kStepK, depth_ - first),
            chunk_at(turn),
            &streamed_ranges_[chunk.panel],
            parts};
  }

  void pack_held(int64_t piece) {
    const int64_t first = piece * kStepK, bytes = piece_steps_ * kStepBytes;
    const int64_t depth = min(piece_length(piece) * kStepK, depth_ - first);
    held_range_.add(
        pack_panels<P>(held_.source, held_.outer, held_.count, k_ + first, depth, {held_data_, bytes, kHeldForm}));
  }

  // Beside the products of one chunk the next is made ready.
  void multiply(const Chunk& chunk, const Chunk& next, int64_t turn) {
    const bool first = chunk.piece + chunk.step == 0, last = chunk.piece + chunk.step + chunk.steps == n_steps_;
    const bool packs = !packed_ && next.steps > 0;
    ChunkPacking<P> packing;
    if (packs) packing = packing_of(next, turn + 1, n_held_ * chunk.steps);
    const StepShare stored(kBlock, chunk.steps), lines(packed_ ? next.steps * kStepBytes / 64 : 0, n_held_);
    const bool whole = streamed_.length(chunk.panel) > 16;
    const TileStream streamed{packed_ ? packed_at(chunk) : chunk_at(turn), table_, 64, kTileBytes, kBlockBytes};
    for (int64_t i = 0; i < n_held_; ++i) {
      const char* fetched = lines.n ? packed_at(next) + lines.at(i) * 64 : nullptr;
      BesideProducts<P> beside{&out_, &store_, stored, packs ? &packing : nullptr, i * chunk.steps, fetched, {}};
      beside.stored.n = store_.sums ? store_.rows : 0;
      if (lines.n) beside.fetched = StepShare(lines.at(i + 1) - lines.at(i), chunk.steps);
      float* sums = sums_ + ((sums_panels_ == 1 ? 0 : chunk.panel * n_held_) + i) * kSumsPerBlock;
      const TileStream held{held_data_ + (i * piece_steps_ + chunk.step) * kStepBytes, table_, 64, kTileBytes,
                            kBlockBytes};
      if constexpr (kHeldA) {
        tile_block<P, Streamed::A>(held, streamed, 0, chunk.steps, held_.length(i) > 16, whole, sums, first, beside);
      } else {
        tile_block<P, Streamed::B>(streamed, held, 0, chunk.steps, whole, held_.length(i) > 16, sums, first, beside);
      }
      store_ = last ? finished(chunk, i, sums) : BlockStore{};
      if (packed_) send();  // beside fetches it would be slower
    }
  }

  void send() {
    store_.finish(out_);
    store_.store(out_, 0, store_.rows);
    store_ = {};
  }

  BlockStore finished(const Chunk& chunk, int64_t i, float* sums) {
    const PartRange& range = packed_ ? packed_->range : streamed_ranges_[chunk.panel];
    if (P > 1 && !parts_are_exact(held_range_, range)) {
      inexact_[chunk.panel] = true;
      return {};
    }
    const Region at =
        region_of(held_.first(i), held_.length(i), streamed_.first(chunk.panel), streamed_.length(chunk.panel));
    return {sums, at.row, at.column, at.rows, at.columns};
  }

  Strip held_, streamed_;
  const PackedSlab* packed_;
  int64_t k_, depth_, n_held_, n_streamed_, n_steps_, piece_steps_, sums_panels_;
  TileOutput out_;
  char *held_data_, *chunks_;
  float* sums_;
  BlockStore store_{};
  int64_t table_[kChunk];
  PartRange held_range_, streamed_ranges_[kSlabPanels];
  bool inexact_[kSlabPanels] = {};  // of each streamed panel
};

}  // namespace
}  // namespace fastnn
