// Scaled dot-product attention, fused: the matrix of scores is never stored.
//
//   S = scale Q K^T + mask      P = softmax(S), row by row      O = dropout(P) V
//
// q (batch, heads, q_len, head_dim), k (batch, kv_heads, kv_len, head_dim), v (batch, kv_heads, kv_len, value_dim),
// out (batch, heads, q_len, value_dim). Head h reads key and value head h / (heads / kv_heads).
// A boolean mask says which keys take part, an additive one is added to the scores; causal: key j takes part in row i
// where j <= i. A row without keys, all masked or kv_len 0, gives 0.
//
// Saved for backward: q, k, v, out and the logarithm of each row's sum of exponentials, lse = log sum_j e^S_j.
// With P = e^(S - lse), recomputed block by block, and delta = sum_j dO_j O_j of each row:
//
//   dV = dropout(P)^T dO    dP = dropout'(dO V^T)    dS = P (dP - delta)    dQ = scale dS K    dK = scale dS^T Q
//
// and the gradient of an additive mask is dS. Vaswani et al. 2017; Dao et al. 2022, FlashAttention.
#pragma once

#include <optional>

#include "core/kernel.h"
#include "core/random.h"
#include "core/tensor.h"

namespace fastnn {

// A tensor of heads: rows of adjacent elements; strides count elements.
struct HeadStrides {
  int64_t batch, head, row;
};

struct AttentionArgs {
  DType dtype;  // of q, k, v and out
  int64_t batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim;
  const void *q, *k, *v;
  void* out;
  void* lse;  // (batch, heads, q_len) in the compute type; +inf where a row has no keys, so that e^(S - lse) is 0
  HeadStrides q_strides, k_strides, v_strides, out_strides;
  const void* mask;  // or null; broadcast by strides of 0
  DType mask_dtype;  // bool, or a float
  int64_t mask_strides[4];
  bool causal;
  double scale;
  // Dropout keeps P[i, j] where word ((batch, head, i), j) of the stream is >= the threshold; 0: all.
  uint32_t drop_threshold;
  double keep_scale;
  RandomStream stream;
};
extern Kernel<AttentionArgs> attention_forward;

struct AttentionBackwardArgs {
  AttentionArgs forward;
  const void* dout;
  void *dq, *dk, *dv;
  HeadStrides dout_strides, dq_strides, dk_strides, dv_strides;
  void* dscores;  // dS (batch, heads, q_len, kv_len) in the mask's dtype, zeroed; null: not wanted
};
extern Kernel<AttentionBackwardArgs> attention_backward;

// q, k, v (..., length, dim); the leading axes broadcast, or with enable_gqa the third axis from the end of k and v
// divides that of q. scale: 1 / sqrt(head_dim) unless given. Throws ValueError for shapes that do not fit, for causal
// with a mask, and for dropout_p outside [0, 1].
Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask,
                                    double dropout_p, bool causal, std::optional<double> scale, bool enable_gqa);

}  // namespace fastnn
