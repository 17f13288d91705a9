// Recurrent layers with products of AMX tiles. See recurrent.h for the formulas, walk_cpu.h for the walk over the
// steps, tile_product_amx.h for the products.
//
// bfloat16: one part, the state rounded as y is, and half the bytes of weights a step, which pays from one row on.
// float32 takes six products of parts for float32 accuracy, as everywhere; the state of few rows is left to the vector
// units, which have fewer bytes to read, while the input's products have the rows of many steps.
#include "ops/recurrent/backward_walk_cpu.h"
#include "ops/recurrent/forward_walk_cpu.h"
#include "ops/recurrent/tile_product_amx.h"
#include "ops/recurrent/vector_product_cpu.h"

namespace fastnn {
namespace {

bool has_few_rows(DType dtype, const RecurrentRows& rows) {
  constexpr int64_t kLeastBatch = 16;  // of what takes several parts
  return parts_of(dtype) > 1 && rows.batch < kLeastBatch;
}

bool suits(DType dtype, const RecurrentRows& rows, int64_t hidden) {
  return dtype != DType::Float64 && rows.batch > 0 && hidden >= 16;
}

template <int P>
bool run(const RecurrentArgs& args) {
  if (has_few_rows(args.dtype, args.rows)) return ForwardWalk<VectorProduct<float>, TileProduct<P>>(args).run();
  return ForwardWalk<TileProduct<P>, TileProduct<P>>(args).run();
}

template <int P>
bool run(const RecurrentBackwardArgs& args) {
  return BackwardWalk<TileProduct<P>>(args).run();
}

template <class Args>
bool run_parts(const Args& args) {
  switch (parts_of(args.dtype)) {
    case 1: return run<1>(args);
    case 2: return run<2>(args);
    default: return run<3>(args);
  }
}

void forward(const RecurrentArgs& args) {
  if (!suits(args.dtype, args.rows, args.hidden)) return call_level(recurrent_forward, CpuLevel::Avx512, args);
  if (run_parts(args)) return;
  RecurrentArgs by_vectors = args;
  by_vectors.packed_ih = by_vectors.packed_hh = {};
  call_level(recurrent_forward, CpuLevel::Avx512, by_vectors);
}

void backward(const RecurrentBackwardArgs& args) {
  if (!suits(args.dtype, args.rows, args.hidden) || has_few_rows(args.dtype, args.rows))
    return call_level(recurrent_backward, CpuLevel::Avx512, args);
  if (run_parts(args)) return;
  RecurrentBackwardArgs by_vectors = args;
  by_vectors.packed_hh = {};
  call_level(recurrent_backward, CpuLevel::Avx512, by_vectors);
}

}  // namespace

FASTNN_AMX_KERNEL(recurrent_forward, forward)
FASTNN_AMX_KERNEL(recurrent_backward, backward)

}  // namespace fastnn
