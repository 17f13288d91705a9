#include "ops/attention/attention.h"

#include <algorithm>
#include <cmath>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"

namespace fastnn {

Kernel<AttentionArgs> attention_forward{"scaled_dot_product_attention", Subnormals::Flush};
Kernel<AttentionBackwardArgs> attention_backward{"scaled_dot_product_attention_backward", Subnormals::Flush};

namespace {

constexpr const char* kName = "scaled_dot_product_attention";

// ------------------------------------------------------------------------------------------- checks

void check_arguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask, double dropout_p,
                     bool causal) {
  check<TypeError>(q.is_floating(), kName, ": expected floating tensors, got ", q.dtype());
  for (const Tensor* x : {&k, &v}) {
    check_same_device(kName, q, *x);
    check_same_dtype(kName, q, *x);
  }
  check(q.ndim() >= 2 && k.ndim() >= 2 && v.ndim() >= 2, kName,
        ": expected query, key and value of shape (..., length, dim), got ", q.shape(), ", ", k.shape(), " and ",
        v.shape());
  check(q.size(-1) == k.size(-1), kName, ": query of shape ", q.shape(), " and key of shape ", k.shape(),
        " differ in their last dimension");
  check(k.size(-2) == v.size(-2), kName, ": key of shape ", k.shape(), " and value of shape ", v.shape(),
        " differ in their length");
  check(dropout_p >= 0 && dropout_p <= 1, kName, ": expected dropout_p in [0, 1], got ", dropout_p);
  if (!mask.defined()) return;
  check(!causal, kName, ": expected attn_mask or is_causal=True, got both");
  check_same_device(kName, q, mask);
  check<TypeError>(mask.dtype() == DType::Bool || mask.is_floating(), kName,
                   ": expected a mask of bool or of a floating type, got ", mask.dtype());
}

// (batch, heads, length, dim), whatever stands before the length.
Tensor as_heads(const Tensor& x) {
  if (x.ndim() == 4) return x;
  Dims shape = x.shape();
  while (shape.size() < 4) shape.insert(0, 1);
  if (shape.size() > 4) shape = {-1, shape[shape.size() - 3], shape[shape.size() - 2], shape[shape.size() - 1]};
  return x.numel() || shape[0] != -1 ? reshape(x, shape) : reshape(x, {0, shape[1], shape[2], shape[3]});
}

Dims leading(const Tensor& x, int64_t trailing) {
  return x.ndim() > trailing ? Dims(x.shape().data(), x.ndim() - trailing) : Dims();
}

Dims joined(Dims front, std::initializer_list<int64_t> back) {
  for (int64_t size : back) front.push_back(size);
  return front;
}

// ------------------------------------------------------------------------------------------ arguments

// Heads whose rows have adjacent elements.
Tensor rows_of(const Tensor& x) { return x.stride(-1) == 1 || x.size(-1) <= 1 ? x : contiguous(x); }

HeadStrides head_strides(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

// (batch, heads, length, dim), stored as (batch, length, heads, dim): to join the heads moves nothing.
Tensor empty_heads(int64_t batch, int64_t heads, int64_t length, int64_t dim, const Tensor& like) {
  const Tensor x = empty({batch, length, heads, dim}, like.dtype(), like.device());
  return alias(x, {batch, heads, length, dim}, {length * heads * dim, dim, heads * dim, 1}, 0);
}

struct Options {
  bool causal;
  double scale, dropout_p;
  RandomStream stream;
};

AttentionArgs make_args(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask, const Tensor& out,
                        const Tensor& lse, const Options& options) {
  AttentionArgs args{};
  args.dtype = q.dtype();
  args.batch = q.size(0), args.heads = q.size(1), args.kv_heads = k.size(1);
  args.q_len = q.size(2), args.kv_len = k.size(2), args.head_dim = q.size(3), args.value_dim = v.size(3);
  args.q = q.raw(), args.k = k.raw(), args.v = v.raw(), args.out = out.raw(), args.lse = lse.raw();
  args.q_strides = head_strides(q), args.k_strides = head_strides(k), args.v_strides = head_strides(v);
  args.out_strides = head_strides(out);
  if (mask.defined()) {
    args.mask = mask.raw();
    args.mask_dtype = mask.dtype();
    for (int i = 0; i < 4; ++i) args.mask_strides[i] = mask.stride(i);
  }
  args.causal = options.causal;
  args.scale = options.scale;
  args.drop_threshold = uint32_t(std::min(std::ldexp(options.dropout_p, 32), double(UINT32_MAX)));
  args.keep_scale = options.dropout_p < 1 ? 1 / (1 - options.dropout_p) : 0;
  args.stream = options.stream;
  return args;
}

// q, k, v (batch, heads, length, dim) and the mask, of all scores' shape by strides of 0.
Tensor attend(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any, const Tensor& mask,
              const Options& options) {
  const Tensor q = rows_of(q_any), k = rows_of(k_any), v = rows_of(v_any);
  const Tensor out = empty_heads(q.size(0), q.size(1), q.size(2), v.size(3), q);
  const Tensor lse = empty({q.size(0), q.size(1), q.size(2)}, compute_dtype(q.dtype()), q.device());
  if (out.numel() > 0) attention_forward(q.device(), make_args(q, k, v, mask, out, lse, options));
  return record(kName, out, {q, k, v, mask},
                [sq = Saved(q), sk = Saved(k), sv = Saved(v), sm = Saved(mask), so = SavedOutput(out), lse,
                 options](Backward& b) {
                  const Tensor query = b.get(sq), key = b.get(sk), value = b.get(sv), bias = b.get(sm);
                  const Tensor dout = rows_of(detach(b.grad()));
                  const bool bias_wanted = bias.defined() && b.needs(3);
                  Tensor dq = empty_heads(query.size(0), query.size(1), query.size(2), query.size(3), query);
                  Tensor dk = empty_heads(key.size(0), key.size(1), key.size(2), key.size(3), key);
                  Tensor dv = empty_heads(value.size(0), value.size(1), value.size(2), value.size(3), value);
                  const Tensor dscores = bias_wanted ? zeros(bias.shape(), bias.dtype(), bias.device()) : Tensor();
                  if (dout.numel() > 0 && key.size(2) > 0) {
                    AttentionBackwardArgs args{};
                    args.forward = make_args(query, key, value, bias, b.get(so), lse, options);
                    args.dout = dout.raw(), args.dout_strides = head_strides(dout);
                    args.dq = dq.raw(), args.dq_strides = head_strides(dq);
                    args.dk = dk.raw(), args.dk_strides = head_strides(dk);
                    args.dv = dv.raw(), args.dv_strides = head_strides(dv);
                    args.dscores = bias_wanted ? dscores.raw() : nullptr;
                    attention_backward(query.device(), args);
                  } else {
                    for (const Tensor* x : {&dq, &dk, &dv}) fill_(*x, Scalar(0));
                  }
                  b.set(0, dq);
                  b.set(1, dk);
                  b.set(2, dv);
                  if (bias_wanted) b.set(3, dscores);
                });
}

}  // namespace

Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask,
                                    double dropout_p, bool causal, std::optional<double> scale, bool enable_gqa) {
  check_arguments(q, k, v, mask, dropout_p, causal);
  const int64_t q_len = q.size(-2), kv_len = k.size(-2), head_dim = q.size(-1), value_dim = v.size(-1);
  Dims q_lead = leading(q, 2), k_lead = leading(k, 2), v_lead = leading(v, 2);
  int64_t kv_heads = 0;
  if (enable_gqa) {
    check(q.ndim() >= 3 && k.ndim() >= 3 && v.ndim() >= 3, kName,
          ": enable_gqa expects shapes (..., heads, length, dim), got ", q.shape(), ", ", k.shape(), " and ",
          v.shape());
    kv_heads = k_lead.back();
    check(kv_heads == v_lead.back() && kv_heads > 0 && q_lead.back() % kv_heads == 0, kName, ": ", q_lead.back(),
          " heads of the query are no multiple of the ", kv_heads, " and ", v_lead.back(), " of key and value");
    k_lead[k_lead.size() - 1] = v_lead[v_lead.size() - 1] = q_lead.back();
  }
  const Dims lead = broadcast_shapes(kName, broadcast_shapes(kName, q_lead, k_lead), v_lead);
  Dims kv = lead;
  if (enable_gqa) kv[kv.size() - 1] = kv_heads;
  const Tensor query = as_heads(expand_to(q, joined(lead, {q_len, head_dim})));
  const Tensor key = as_heads(expand_to(k, joined(kv, {kv_len, head_dim})));
  const Tensor value = as_heads(expand_to(v, joined(kv, {kv_len, value_dim})));
  Tensor bias;
  if (mask.defined()) {
    const Dims scores = joined(lead, {q_len, kv_len});
    check(broadcast_shapes(kName, scores, mask.shape()) == scores, kName, ": a mask of shape ", mask.shape(),
          " does not broadcast to the scores, ", scores);
    bias = as_heads(expand_to(mask, scores));
  }
  Options options{causal, scale ? *scale : 1 / std::sqrt(double(std::max<int64_t>(head_dim, 1))), dropout_p, {}};
  if (dropout_p > 0) options.stream = default_generator().next_stream(q.device());
  const Tensor out = attend(query, key, value, bias, options);
  return q.ndim() == 4 && lead.size() == 2 ? out : reshape(out, joined(lead, {q_len, value_dim}));
}

}  // namespace fastnn
