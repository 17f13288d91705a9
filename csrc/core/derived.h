// Memory derived from a tensor's contents and kept with its storage: packed weights.
//
// A block is made when the same contents are asked for a second time: weights that change between two uses
// (training) are never packed for keeping, weights that stay (inference, gradient accumulation) once. Contents
// are known by the storage's version, so a storage whose memory others may write to without counting (numpy
// arrays, DLPack) keeps nothing. Nor does one on a GPU: its kernels read weights as they are.
#pragma once

#include "core/tensor.h"

namespace fastnn {

struct DerivedBlock {
  Tensor memory;  // bytes; undefined: nothing is kept (yet)
  // False: this caller alone was given it, to fill it and call mark_ready. Others get nothing until then.
  bool ready = false;

  void* data() const { return memory.defined() ? memory.raw() : nullptr; }
  bool to_fill() const { return memory.defined() && !ready; }
};

// The block of `bytes` bytes that `purpose` (unique to an operation, its form and its arguments) derives from x.
// Its contents hold while x's stay.
DerivedBlock derived_block(const Tensor& x, uint64_t purpose, int64_t bytes);
void mark_ready(const Tensor& x, const DerivedBlock& block);

// A purpose from numbers.
template <class... Numbers>
uint64_t purpose_of(Numbers... numbers) {
  uint64_t hash = 0xcbf29ce484222325u;
  ((hash = (hash ^ uint64_t(numbers)) * 0x100000001b3u, hash ^= hash >> 29), ...);
  return hash;
}

}  // namespace fastnn
