// A task's source, prepared: as columns, as lines, or as lines of folded taps (source_amx.h).
#pragma once

#include "ops/conv/prepare_columns_amx.h"
#include "ops/conv/prepare_folded_amx.h"
#include "ops/conv/prepare_lines_amx.h"

namespace fastnn {
namespace {

template <int P, class T>
PartRange prepare_source_of(const TileSource& source, const SourceRange& range, char* memory) {
  RangeLanes lanes;
  if (source.folds() > 1) {
    store_folded<P, T>(source, range, memory, memory + P * source.part_bytes, lanes);
  } else {
    (source.pixels  ? store_lines<P, T>
     : source.lines ? store_transposed<P, T>
                    : store_columns<P, T>)(source, range, memory, lanes);
    if (source.lines) zero_end<P>(source, range, memory);
  }
  return lanes.finish();
}

template <int P>
int64_t prepared_bytes(const TileSource& source) {
  return P * (source.part_bytes + source.pixels_part_bytes());
}

template <int P>
PartRange prepare_source(const TileSource& source, const SourceRange& range, char* memory) {
  if constexpr (P == 1) {
    return prepare_source_of<1, bfloat16>(source, range, memory);
  } else {
    return prepare_source_of<P, float>(source, range, memory);
  }
}

}  // namespace
}  // namespace fastnn
