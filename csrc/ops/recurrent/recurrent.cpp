#include "ops/recurrent/recurrent.h"

#include <algorithm>
#include <iterator>
#include <memory>

#include "core/autograd.h"
#include "core/derived.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/copy/view.h"
#include "ops/elementwise/elementwise.h"
#include "ops/matmul/matmul.h"
#include "ops/reduce/reduce.h"

namespace fastnn {

Kernel<RecurrentArgs> recurrent_forward{"recurrent", Subnormals::Flush};
Kernel<RecurrentBackwardArgs> recurrent_backward{"recurrent_backward", Subnormals::Flush};

namespace {

constexpr const char* kCellNames[] = {"rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before"};

// How the rows of a sequence lie; shared by the forward and its backward.
struct Layout {
  std::vector<int64_t> batch_sizes, begins;  // of a packed sequence
  bool packed, batch_first, reverse;
  int64_t n_steps, batch, n_rows;

  RecurrentRows rows() const {
    return {n_steps,
            batch,
            n_rows,
            packed ? batch_sizes.data() : nullptr,
            packed ? begins.data() : nullptr,
            batch_first ? 1 : batch,
            batch_first ? n_steps : 1,
            reverse};
  }
};

std::shared_ptr<const Layout> packed_layout(const char* op, const Tensor& x, const RecurrentOptions& options) {
  auto layout = std::make_shared<Layout>();
  layout->packed = true;
  layout->batch_first = false;
  layout->reverse = options.reverse;
  layout->batch_sizes = options.batch_sizes;
  layout->n_steps = int64_t(options.batch_sizes.size());
  layout->batch = options.batch_sizes[0];
  layout->n_rows = 0;
  int64_t before = layout->batch;
  for (const int64_t size : options.batch_sizes) {
    check(size >= 1 && size <= before, op, ": batch_sizes of a packed sequence must be positive and not increase, got ",
          size, " after ", before);
    before = size;
    layout->begins.push_back(layout->n_rows);
    layout->n_rows += size;
    check(layout->n_rows <= x.size(0), op, ": batch_sizes add up to more than the ", x.size(0), " packed rows");
  }
  check(layout->n_rows == x.size(0), op, ": batch_sizes add up to ", layout->n_rows, ", but there are ", x.size(0),
        " packed rows");
  return layout;
}

std::shared_ptr<const Layout> make_layout(const char* op, const Tensor& x, const RecurrentOptions& options) {
  if (!options.batch_sizes.empty()) {
    check(x.ndim() == 2, op, ": expected packed rows (rows, features), got shape ", x.shape());
    return packed_layout(op, x, options);
  }
  check(x.ndim() == 3, op, ": expected a 3-D input, got shape ", x.shape());
  const int time = options.batch_first ? 1 : 0;
  auto layout = std::make_shared<Layout>();
  layout->packed = false;
  layout->batch_first = options.batch_first;
  layout->reverse = options.reverse;
  layout->n_steps = x.size(time);
  layout->batch = x.size(1 - time);
  layout->n_rows = layout->n_steps * layout->batch;
  check(layout->n_steps >= 1, op, ": expected a sequence of at least one step, got shape ", x.shape());
  return layout;
}

void check_matrix(const char* op, const char* name, const Tensor& x, const Tensor& like, const Dims& shape) {
  check_same_device(op, like, x);
  check_same_dtype(op, like, x);
  check(x.shape() == shape, op, ": ", name, " has shape ", x.shape(), ", but ", shape, " is expected");
}

void check_weights(const char* op, Cell cell, const Tensor& x, const RecurrentWeights& w) {
  check<TypeError>(x.is_floating(), op, ": not implemented for ", x.dtype());
  check(w.ih.ndim() == 2 && w.hh.ndim() == 2, op, ": expected 2-D weights, got shapes ", w.ih.shape(), " and ",
        w.hh.shape());
  const int64_t gates = cell_gates(cell), hidden = w.ih.size(0) / gates;
  check(hidden >= 1 && w.ih.size(0) == gates * hidden, op, ": weight_ih has ", w.ih.size(0),
        " rows, but a positive multiple of ", gates, " is expected");
  check(x.size(-1) == w.ih.size(1), op, ": input of shape ", x.shape(), " has ", x.size(-1),
        " features, but weight_ih of shape ", w.ih.shape(), " expects ", w.ih.size(1));
  check(!w.hr.defined() || cell == Cell::Lstm, op, ": only an LSTM has a projection");
  check(!w.hr.defined() || (w.hr.ndim() == 2 && w.hr.size(0) >= 1), op,
        ": expected a 2-D projection of at least one row");
  const int64_t outputs = w.hr.defined() ? w.hr.size(0) : hidden;
  check_matrix(op, "weight_ih", w.ih, x, {gates * hidden, x.size(-1)});
  check_matrix(op, "weight_hh", w.hh, x, {gates * hidden, outputs});
  if (w.hr.defined()) check_matrix(op, "weight_hr", w.hr, x, {outputs, hidden});
  check(w.bias_ih.defined() == w.bias_hh.defined(), op, ": expected both biases or none");
  if (!w.bias_ih.defined()) return;
  check_matrix(op, "bias_ih", w.bias_ih, x, {gates * hidden});
  check_matrix(op, "bias_hh", w.bias_hh, x, {gates * hidden});
}

const void* data_of(const Tensor& x) { return x.defined() ? x.raw() : nullptr; }
void* writable(const Tensor& x) { return x.defined() ? x.raw() : nullptr; }
Tensor plain(const Tensor& x) { return x.defined() ? contiguous(detach(x)) : x; }
// The first n elements, or columns.
Tensor first_columns(const Tensor& x, int64_t begin, int64_t n) { return narrow(x, x.ndim() - 1, begin, n); }

// All biases that are added before the steps, in the compute type. In Cell::Gru, b_hn comes after a product.
Tensor added_bias(Cell cell, const RecurrentWeights& w) {
  if (!w.bias_ih.defined()) return Tensor();
  const DType compute = compute_dtype(w.ih.dtype());
  const Tensor ih = to(w.bias_ih, compute), hh = to(w.bias_hh, compute);
  if (cell != Cell::Gru) return add(ih, hh);
  const int64_t hidden = ih.size(0) / 3;
  return cat(
      {add(first_columns(ih, 0, 2 * hidden), first_columns(hh, 0, 2 * hidden)), first_columns(ih, 2 * hidden, hidden)},
      0);
}

// Weights packed by a kernel, kept while they stay the same: over the calls of a cell, and of a model in use.
class KeptWeights {
 public:
  enum Use : uint8_t { Input, State, StateGradient };

  // `alone`: whether the kernel packs no other weights along with these.
  KeptWeights(Cell cell, Use use, const Tensor& weights, const PackedForm& form, bool alone = true)
      : weights_(weights) {
    if (alone && form.bytes > 0) block_ = derived_block(weights, purpose_of('R', cell, use, form.form), form.bytes);
  }
  PackedWeights packed() const { return {block_.data(), block_.ready}; }
  // After the kernel's call.
  void mark_filled() const {
    if (block_.to_fill()) mark_ready(weights_, block_);
  }

 private:
  const Tensor weights_;
  DerivedBlock block_;
};

// What the forward leaves for its backward.
struct SavedSequence {
  Cell cell;
  std::shared_ptr<const Layout> layout;
  Saved x, ih, hh, hr, h0, c0;
  SavedOutput y;
  Tensor activations, middle;  // of this node alone; as RecurrentArgs lays them out
};

Tensor as_rows(const Tensor& x) { return x.ndim() == 2 ? x : reshape(x, {x.size(0) * x.size(1), x.size(2)}); }

// The state that each row came from: y one step earlier, h0 (or zeros) at the first.
Tensor previous_states(const Layout& layout, const Tensor& y, const Tensor& h0) {
  const Tensor previous = empty(y.shape(), y.dtype(), y.device());
  const auto rows_at = [&](const Tensor& x, int64_t step, int64_t n_steps) {
    if (layout.packed) return narrow(x, 0, layout.begins[size_t(step)], layout.batch_sizes[size_t(step)]);
    return narrow(x, layout.batch_first ? 1 : 0, step, n_steps);
  };
  const auto start = [&](const Tensor& target, int64_t first) {
    if (target.numel() == 0) return;
    if (!h0.defined()) return fill_into(target, Scalar(0));
    const Tensor states = narrow(h0, 0, first, target.numel() / h0.size(1));
    copy_into(target, layout.packed ? states : unsqueeze(states, layout.batch_first ? 1 : 0));
  };
  const int64_t last = layout.n_steps - 1;
  if (!layout.packed) {
    start(rows_at(previous, layout.reverse ? last : 0, 1), 0);
    if (last > 0) copy_into(rows_at(previous, layout.reverse ? 0 : 1, last), rows_at(y, layout.reverse ? 1 : 0, last));
    return as_rows(previous);
  }
  for (int64_t step = 0; step <= last; ++step) {
    const int64_t from = layout.reverse ? step + 1 : step - 1, size = layout.batch_sizes[size_t(step)];
    const int64_t known = from < 0 || from > last ? 0 : std::min(size, layout.batch_sizes[size_t(from)]);
    const Tensor target = rows_at(previous, step, 1);
    if (known > 0) copy_into(narrow(target, 0, 0, known), narrow(rows_at(y, from, 1), 0, 0, known));
    start(narrow(target, 0, known, size - known), known);
  }
  return previous;
}

Tensor transposed_product(const Tensor& a, const Tensor& b) { return mm(transpose(a, 0, 1), b); }

// The gradient of weight_hh, from dgates as RecurrentBackwardArgs lays them out.
Tensor hidden_weight_grad(const SavedSequence& saved, const Tensor& dgates, const Tensor& previous, int64_t hidden) {
  if (saved.cell == Cell::Gru) {
    const Tensor n_r_z = transposed_product(first_columns(dgates, 0, 3 * hidden), previous);
    return cat({narrow(n_r_z, 0, hidden, 2 * hidden), narrow(n_r_z, 0, 0, hidden)}, 0);
  }
  if (saved.cell == Cell::GruResetBefore)
    return cat({transposed_product(first_columns(dgates, 0, 2 * hidden), previous),
                transposed_product(first_columns(dgates, 2 * hidden, hidden), saved.middle)},
               0);
  return transposed_product(dgates, previous);
}

enum Input : uint32_t { kX, kIh, kHh, kBiasIh, kBiasHh, kHr, kH0, kC0 };

// The biases' gradients are the same sums, or parts of the same; each has its own, since users change gradients.
void set_bias_grads(Backward& b, Cell cell, const Tensor& dgates, int64_t hidden) {
  if (!b.needs(kBiasIh) && !b.needs(kBiasHh)) return;
  const Tensor sums = sum(dgates, {0});
  const bool gru = cell == Cell::Gru;
  if (b.needs(kBiasIh)) b.set(kBiasIh, gru ? clone(first_columns(sums, hidden, 3 * hidden)) : sums);
  if (!b.needs(kBiasHh)) return;
  b.set(kBiasHh, gru ? cat({narrow(sums, 0, hidden, 2 * hidden), narrow(sums, 0, 0, hidden)}, 0) : clone(sums));
}

void backward(const SavedSequence& saved, Backward& b) {
  const Tensor x = contiguous(b.get(saved.x)), ih = b.get(saved.ih), hh = plain(b.get(saved.hh));
  const Tensor hr = plain(b.get(saved.hr));
  const Tensor h0 = plain(b.get(saved.h0)), c0 = plain(b.get(saved.c0)), y = b.get(saved.y);
  const bool lstm = saved.cell == Cell::Lstm, gru = saved.cell >= Cell::Gru;
  const auto grad = [&](uint32_t output) { return b.has_grad(output) ? contiguous(b.grad(output)) : Tensor(); };
  const Tensor dy = grad(0), dhn = grad(1), dcn = lstm ? grad(2) : Tensor();

  const int64_t gates = cell_gates(saved.cell), hidden = hh.size(0) / gates, outputs = hh.size(1);
  const Dims states{saved.layout->batch, outputs}, cell_states{saved.layout->batch, hidden};
  const Tensor dgates = empty({saved.layout->n_rows, cell_gradients(saved.cell) * hidden}, x.dtype(), x.device());
  const Tensor doutputs = hr.defined() ? empty({saved.layout->n_rows, outputs}, x.dtype(), x.device()) : Tensor();
  const Tensor dh0 = empty(states, x.dtype(), x.device());
  const Tensor dc0 = lstm ? empty(cell_states, x.dtype(), x.device()) : Tensor();
  RecurrentBackwardArgs args{saved.cell,
                             x.dtype(),
                             hidden,
                             outputs,
                             saved.layout->rows(),
                             hh.raw(),
                             data_of(hr),
                             saved.activations.raw(),
                             gru ? y.raw() : nullptr,
                             data_of(h0),
                             data_of(c0),
                             data_of(dy),
                             data_of(dhn),
                             data_of(dcn),
                             dgates.raw(),
                             writable(doutputs),
                             dh0.raw(),
                             writable(dc0),
                             {},
                             nullptr};
  PackedForm form{};
  args.form_hh = &form;
  recurrent_backward(x.device(), args);
  const KeptWeights kept(saved.cell, KeptWeights::StateGradient, hh, form, !hr.defined());
  args.form_hh = nullptr;
  args.packed_hh = kept.packed();
  recurrent_backward(x.device(), args);
  kept.mark_filled();

  const Tensor dinput = saved.cell == Cell::Gru ? first_columns(dgates, hidden, 3 * hidden) : dgates;
  if (b.needs(kX)) b.set(kX, reshape(mm(dinput, ih), x.shape()));
  if (b.needs(kIh)) b.set(kIh, transposed_product(dinput, as_rows(x)));
  if (b.needs(kHh)) b.set(kHh, hidden_weight_grad(saved, dgates, previous_states(*saved.layout, y, h0), hidden));
  set_bias_grads(b, saved.cell, dgates, hidden);
  if (b.needs(kHr)) b.set(kHr, transposed_product(doutputs, saved.middle));
  if (b.needs(kH0)) b.set(kH0, dh0);
  if (b.needs(kC0)) b.set(kC0, dc0);
}

}  // namespace

Cell parse_cell(const std::string& name) {
  for (size_t i = 0; i < std::size(kCellNames); ++i)
    if (name == kCellNames[i]) return Cell(i);
  fail("recurrent: expected 'rnn_tanh', 'rnn_relu', 'lstm', 'gru' or 'gru_reset_before', got '", name, "'");
}

std::vector<Tensor> recurrent(const Tensor& input, const RecurrentWeights& weights, const Tensor& h0, const Tensor& c0,
                              const RecurrentOptions& options) {
  const char* op = kCellNames[int(options.cell)];
  const bool lstm = options.cell == Cell::Lstm;
  check_weights(op, options.cell, input, weights);
  const auto layout = make_layout(op, input, options);
  const int64_t gates = cell_gates(options.cell), hidden = weights.hh.size(0) / gates, outputs = weights.hh.size(1);
  const Dims states{layout->batch, outputs}, cell_states{layout->batch, hidden};
  if (h0.defined()) check_matrix(op, "h_0", h0, input, states);
  if (c0.defined()) check_matrix(op, "c_0", c0, input, cell_states);
  check(!c0.defined() || lstm, op, ": only an LSTM has cell states");

  const DType dtype = input.dtype(), compute = compute_dtype(dtype);
  const Device device = input.device();
  const bool save = needs_grad({input, weights.ih, weights.hh, weights.bias_ih, weights.bias_hh, weights.hr, h0, c0});
  Dims shape = input.shape();
  shape[shape.size() - 1] = outputs;
  const Tensor y = empty(shape, dtype, device), hn = empty(states, dtype, device);
  const Tensor cn = lstm ? empty(cell_states, dtype, device) : Tensor();
  const Tensor activations =
      save ? empty({layout->n_rows, cell_saved(options.cell) * saved_units(hidden)}, dtype, device) : Tensor();
  const bool two_products = weights.hr.defined() || options.cell == Cell::GruResetBefore;
  const Tensor middle = two_products && save ? empty({layout->n_rows, hidden}, dtype, device) : Tensor();
  {
    GradMode off(false);
    const Tensor x = plain(input), ih = plain(weights.ih), hh = plain(weights.hh), hr = plain(weights.hr);
    const Tensor first_h = plain(h0), first_c = plain(c0), bias = added_bias(options.cell, weights),
                 bias_n = options.cell == Cell::Gru && weights.bias_hh.defined()
                              ? to(plain(first_columns(weights.bias_hh, 2 * hidden, hidden)), compute)
                              : Tensor();
    RecurrentArgs args{options.cell,
                       dtype,
                       x.size(-1),
                       hidden,
                       outputs,
                       layout->rows(),
                       x.raw(),
                       ih.raw(),
                       hh.raw(),
                       data_of(hr),
                       data_of(bias),
                       data_of(bias_n),
                       writable(activations),
                       writable(middle),
                       y.raw(),
                       data_of(first_h),
                       data_of(first_c),
                       hn.raw(),
                       writable(cn),
                       {},
                       {},
                       nullptr,
                       nullptr};
    PackedForm form_ih{}, form_hh{};
    args.form_ih = &form_ih, args.form_hh = &form_hh;
    recurrent_forward(device, args);
    const KeptWeights kept_ih(options.cell, KeptWeights::Input, ih, form_ih);
    const KeptWeights kept_hh(options.cell, KeptWeights::State, hh, form_hh, !hr.defined());
    args.form_ih = args.form_hh = nullptr;
    args.packed_ih = kept_ih.packed(), args.packed_hh = kept_hh.packed();
    recurrent_forward(device, args);
    kept_ih.mark_filled();
    kept_hh.mark_filled();
  }
  std::vector<Tensor> results{y, hn};
  if (lstm) results.push_back(cn);
  return record(op, std::move(results),
                {input, weights.ih, weights.hh, weights.bias_ih, weights.bias_hh, weights.hr, h0, c0},
                [saved = SavedSequence{options.cell, layout, Saved(input), Saved(weights.ih), Saved(weights.hh),
                                       Saved(weights.hr), Saved(h0), Saved(c0), SavedOutput(y, 0), activations,
                                       middle}](Backward& b) { backward(saved, b); });
}

}  // namespace fastnn
