// Optimizer kernels on the CPU: see optim.h for the formulas.
//
//   bytes: SGD with momentum 20 an element in float32, Adam 28; memory-bound
//
// A chunk is updated in pieces of 512: float32 and float64 in place, 16-bit floats through float32
// buffers that are rounded back.
#include "ops/optim/optim.h"
#include "simd/convert.h"
#include "simd/math.h"

namespace fastnn {
namespace {

constexpr int kMaxOperands = 5;

// One operand of a piece: where it lies, or its buffer.
template <class T>
struct Piece {
  alignas(64) T buffers[kMaxOperands][kRowChunk];

  T* load(int operand, const void* data, DType dtype, int64_t begin, int64_t n) {
    char* at = static_cast<char*>(const_cast<void*>(data)) + begin * int64_t(item_size(dtype));
    if (dtype == dtype_of<T>()) return reinterpret_cast<T*>(at);
    FASTNN_LEVEL::load_row(buffers[operand], at, dtype, 1, n);
    return buffers[operand];
  }

  void store(const T* row, void* data, DType dtype, int64_t begin, int64_t n) {
    if (dtype == dtype_of<T>()) return;
    FASTNN_LEVEL::store_row(static_cast<char*>(data) + begin * int64_t(item_size(dtype)), dtype, 1, row, n);
  }
};

// Calls update(piece, chunk, begin, n) for every piece of every chunk, in float or double.
template <class Update>
void for_each_piece(const OptimTable& table, const Update& update) {
  parallel_for(table.n_chunks, table.grain, [&](int64_t first, int64_t past) {
    Piece<float> single;
    Piece<double> twice;
    for (int64_t c = first; c < past; ++c) {
      const OptimChunk& chunk = table.chunks[c];
      for (int64_t begin = 0; begin < chunk.n; begin += kRowChunk) {
        const int64_t n = chunk.n - begin < kRowChunk ? chunk.n - begin : kRowChunk;
        if (chunk.dtype == DType::Float64)
          update(twice, c, begin, n);
        else
          update(single, c, begin, n);
      }
    }
  });
}

// ----------------------------------------------------------------------------------------------- SGD

template <class T>
void sgd_piece(const SgdArgs& args, T* __restrict p, const T* __restrict grad, T* __restrict m, int64_t n) {
  const T lr = T(args.lr), momentum = T(args.momentum), decay = T(args.weight_decay);
  const T sign = args.maximize ? T(-1) : T(1), fresh = args.first_step ? T(1) : T(1 - args.dampening);
  const T kept = args.first_step ? T(0) : momentum;
  if (!m) {
    for (int64_t i = 0; i < n; ++i) p[i] -= lr * (sign * grad[i] + decay * p[i]);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const T g = sign * grad[i] + decay * p[i];
    const T before = args.first_step ? T(0) : m[i];  // what an unused buffer holds may be NaN
    m[i] = kept * before + fresh * g;
    p[i] -= lr * (args.nesterov ? g + momentum * m[i] : m[i]);
  }
}

template <class T>
void sgd_chunk(const SgdArgs& args, Piece<T>& piece, const OptimChunk& chunk, int64_t begin, int64_t n) {
  T* p = piece.load(0, chunk.param, chunk.dtype, begin, n);
  const T* grad = piece.load(1, chunk.grad, chunk.dtype, begin, n);
  T* m = chunk.state[0] ? piece.load(2, chunk.state[0], chunk.dtype, begin, n) : nullptr;
  sgd_piece(args, p, grad, m, n);
  piece.store(p, chunk.param, chunk.dtype, begin, n);
  if (m) piece.store(m, chunk.state[0], chunk.dtype, begin, n);
}

void sgd(const SgdArgs& args) {
  for_each_piece(args.table, [&](auto& piece, int64_t chunk, int64_t begin, int64_t n) {
    sgd_chunk(args, piece, args.table.chunks[chunk], begin, n);
  });
}

// ---------------------------------------------------------------------------------------------- Adam

template <class T>
void adam_piece(const AdamArgs& args, T* __restrict p, const T* __restrict grad, T* __restrict m, T* __restrict v,
                T* __restrict largest, int64_t n) {
  const T sign = args.maximize ? T(-1) : T(1), eps = T(args.eps), step_size = T(args.step_size);
  const T shrink = args.decoupled ? T(1 - args.lr * args.weight_decay) : T(1);
  const T decay = args.decoupled ? T(0) : T(args.weight_decay);
  const T fresh1 = T(1 - args.beta1), beta2 = T(args.beta2), fresh2 = T(1 - args.beta2);
  const T correction = T(args.bias_correction2_sqrt);
  for (int64_t i = 0; i < n; ++i) {
    const T before = p[i] * shrink;
    const T g = sign * grad[i] + decay * before;
    m[i] += fresh1 * (g - m[i]);
    v[i] = beta2 * v[i] + fresh2 * g * g;
    T second = v[i];
    if (largest) second = largest[i] = largest[i] > second || largest[i] != largest[i] ? largest[i] : second;
    p[i] = before - step_size * (m[i] / (sqrt_(second) / correction + eps));
  }
}

template <class T>
void adam_chunk(const AdamArgs& args, Piece<T>& piece, const OptimChunk& chunk, int64_t begin, int64_t n) {
  const DType dtype = chunk.dtype;
  T* p = piece.load(0, chunk.param, dtype, begin, n);
  const T* grad = piece.load(1, chunk.grad, dtype, begin, n);
  T* m = piece.load(2, chunk.state[0], dtype, begin, n);
  T* v = piece.load(3, chunk.state[1], dtype, begin, n);
  T* largest = chunk.state[2] ? piece.load(4, chunk.state[2], dtype, begin, n) : nullptr;
  if (largest)
    adam_piece(args, p, grad, m, v, largest, n);
  else
    adam_piece(args, p, grad, m, v, static_cast<T*>(nullptr), n);
  piece.store(p, chunk.param, dtype, begin, n);
  piece.store(m, chunk.state[0], dtype, begin, n);
  piece.store(v, chunk.state[1], dtype, begin, n);
  if (largest) piece.store(largest, chunk.state[2], dtype, begin, n);
}

void adam(const AdamArgs& args) {
  for_each_piece(args.table, [&](auto& piece, int64_t chunk, int64_t begin, int64_t n) {
    adam_chunk(args, piece, args.table.chunks[chunk], begin, n);
  });
}

// ------------------------------------------------------------------------------- norms and scaling

// Eight sums side by side in double.
template <class T, class Term>
double sum_of(const T* x, int64_t n, const Term& term) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += term(double(x[i + lane]));
  for (int lane = 0; i < n; ++i, ++lane) sums[lane] += term(double(x[i]));
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

template <class T>
double largest_of(const T* x, int64_t n) {
  T largest = T(0);
  for (int64_t i = 0; i < n; ++i) {
    const T size = fabs_(x[i]);
    largest = size > largest || size != size ? size : largest;
  }
  return double(largest);
}

template <class T>
void norm_piece(const GradNormArgs& args, const T* x, int64_t n, double& partial) {
  if (args.p == INFINITY) {
    const double largest = largest_of(x, n);
    partial = largest > partial || largest != largest ? largest : partial;
  } else if (args.p == 2) {
    partial += sum_of(x, n, [](double value) { return value * value; });
  } else if (args.p == 1) {
    partial += sum_of(x, n, [](double value) { return fabs_(value); });
  } else {
    partial += sum_of(x, n, [&](double value) { return pow_(fabs_(value), args.p); });
  }
}

void grad_norm(const GradNormArgs& args) {
  for_each_piece(args.table, [&](auto& piece, int64_t c, int64_t begin, int64_t n) {
    const OptimChunk& chunk = args.table.chunks[c];
    if (begin == 0) args.partials[c] = 0;
    norm_piece(args, piece.load(0, chunk.grad, chunk.dtype, begin, n), n, args.partials[c]);
  });
}

template <class T>
void scale_piece(T* x, double factor, int64_t n) {
  const T by = T(factor);
  for (int64_t i = 0; i < n; ++i) x[i] *= by;
}

void scale(const ScaleArgs& args) {
  for_each_piece(args.table, [&](auto& piece, int64_t c, int64_t begin, int64_t n) {
    const OptimChunk& chunk = args.table.chunks[c];
    auto* row = piece.load(0, chunk.param, chunk.dtype, begin, n);
    scale_piece(row, args.factor, n);
    piece.store(row, chunk.param, chunk.dtype, begin, n);
  });
}

}  // namespace

FASTNN_CPU_KERNEL(optim_sgd, sgd)
FASTNN_CPU_KERNEL(optim_adam, adam)
FASTNN_CPU_KERNEL(optim_grad_norm, grad_norm)
FASTNN_CPU_KERNEL(optim_scale, scale)

}  // namespace fastnn
