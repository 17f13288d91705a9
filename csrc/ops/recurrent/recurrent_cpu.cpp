// Recurrent layers on the CPU, with the products of vector units: see recurrent.h for the formulas, walk_cpu.h for
// the walk over the steps, vector_product_cpu.h for the products.
#include "ops/recurrent/backward_walk_cpu.h"
#include "ops/recurrent/forward_walk_cpu.h"
#include "ops/recurrent/vector_product_cpu.h"

namespace fastnn {
namespace {

template <class T>
void forward_of(const RecurrentArgs& args) {
  ForwardWalk<VectorProduct<T>, VectorProduct<T>>(args).run();
}

void forward(const RecurrentArgs& args) {
  if (args.rows.batch == 0) return;
  args.dtype == DType::Float64 ? forward_of<double>(args) : forward_of<float>(args);
}

void backward(const RecurrentBackwardArgs& args) {
  if (args.rows.batch == 0) return;
  args.dtype == DType::Float64 ? BackwardWalk<VectorProduct<double>>(args).run()
                               : BackwardWalk<VectorProduct<float>>(args).run();
}

}  // namespace

FASTNN_CPU_KERNEL(recurrent_forward, forward)
FASTNN_CPU_KERNEL(recurrent_backward, backward)

}  // namespace fastnn
