#include "ops/random/random.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/autograd.h"
#include "ops/copy/copy.h"
#include "ops/copy/create.h"
#include "ops/reduce/reduce.h"
#include "simd/philox.h"

namespace fastnn {

Kernel<RandomArgs> random_fill{"random"};
Kernel<DropoutArgs> dropout_apply{"dropout"};

namespace {

RandomStream stream_of(Generator* generator, Device device) {
  return (generator ? *generator : default_generator()).next_stream(device);
}

RandomArgs random_args(Distribution distribution, double a, double b, Device device, Generator* generator) {
  RandomArgs args{};
  args.distribution = distribution;
  args.a = a;
  args.b = b;
  args.stream = stream_of(generator, device);
  return args;
}

// Draws into `x`, whatever its strides: the value at an index does not depend on the layout.
void draw(RandomArgs args, const Tensor& x) {
  if (x.numel() == 0) return;
  const Tensor flat = x.is_contiguous() ? x : empty(x.shape(), x.dtype(), x.device());
  args.y = flat.raw();
  args.dtype = x.dtype();
  args.n = x.numel();
  random_fill(x.device(), args);
  if (!flat.is(x)) copy_into(x, flat);
}

Tensor draw_new(const char* op, const RandomArgs& args, const Dims& shape, DType dtype, Device device) {
  check<TypeError>(is_floating(dtype), op, ": expected a floating type, got ", dtype);
  Tensor y = empty(shape, dtype, device);
  draw(args, y);
  return y;
}

Tensor draw_inplace(const char* op, const RandomArgs& args, const Tensor& x) {
  check_inplace(op, x, {});
  draw(args, x);
  return record_inplace(op, x, {x}, [](Backward& b) { b.set(0, zeros_like(b.grad())); });
}

void check_floating(const char* op, const Tensor& x) {
  check<TypeError>(x.is_floating(), op, ": expected a floating tensor, got ", x.dtype());
}

// The largest integer n such that every integer of [0, n] is held by the type.
int64_t integer_limit(DType dtype) {
  constexpr int64_t limits[kDTypeCount] = {1,         255,       127,    32767,     INT32_MAX,
                                           INT64_MAX, 1LL << 11, 1 << 8, 1LL << 24, 1LL << 53};
  return limits[int(dtype)];
}

}  // namespace

Tensor rand(const Dims& shape, DType dtype, Device device, Generator* generator) {
  return draw_new("rand", random_args(Distribution::Uniform, 0, 1, device, generator), shape, dtype, device);
}

Tensor randn(const Dims& shape, DType dtype, Device device, Generator* generator) {
  return draw_new("randn", random_args(Distribution::Normal, 0, 1, device, generator), shape, dtype, device);
}

Tensor uniform_(const Tensor& x, double low, double high, Generator* generator) {
  check_floating("uniform_", x);
  check(low <= high && std::isfinite(high - low), "uniform_: expected finite low <= high, got low=", low,
        ", high=", high);
  return draw_inplace("uniform_", random_args(Distribution::Uniform, low, high, x.device(), generator), x);
}

Tensor normal_(const Tensor& x, double mean, double std, Generator* generator) {
  check_floating("normal_", x);
  check(std >= 0, "normal_: expected std >= 0, got ", std);
  return draw_inplace("normal_", random_args(Distribution::Normal, mean, std, x.device(), generator), x);
}

Tensor randint(int64_t low, int64_t high, const Dims& shape, DType dtype, Device device, Generator* generator) {
  check(low < high, "randint: expected low < high, got low=", low, ", high=", high);
  const int64_t limit = integer_limit(dtype);
  const int64_t lowest = is_floating(dtype) ? -limit : dtype <= DType::UInt8 ? 0 : -limit - 1;
  check(low >= lowest && high - 1 <= limit, "randint: values from ", low, " to ", high - 1, " do not fit in ", dtype);
  RandomArgs args = random_args(Distribution::Integer, 0, 0, device, generator);
  args.low = low;
  args.range = uint64_t(high) - uint64_t(low);
  Tensor y = empty(shape, dtype, device);
  draw(args, y);
  return y;
}

// Fisher-Yates on the host, so that every device gives the same permutation.
Tensor randperm(int64_t n, DType dtype, Device device, Generator* generator) {
  check(n >= 0, "randperm: expected n >= 0, got ", n);
  check(n - 1 <= integer_limit(dtype), "randperm: ", n, " numbers do not fit in ", dtype);
  const RandomStream stream = stream_of(generator, Device());
  Tensor order = arange(Scalar(0), Scalar(n), Scalar(1), DType::Int64, Device());
  int64_t* values = order.data<int64_t>();
  uint32_t words[4];
  for (int64_t i = n - 1; i > 0; --i) {
    philox_blocks(stream.seed, stream.offset, uint64_t(i), 1, words);
    std::swap(values[i], values[bounded(join_words(words[0], words[1]), uint64_t(i) + 1)]);
  }
  return to(to(order, dtype), device);
}

Tensor bernoulli(const Tensor& p, Generator* generator) {
  check_floating("bernoulli", p);
  const Tensor from = contiguous(detach(p));
  if (p.numel() > 0) {
    const double lowest = item(amin(from)).to_double(), highest = item(amax(from)).to_double();
    check(lowest >= 0 && highest <= 1, "bernoulli: expected probabilities in [0, 1], got values from ", lowest, " to ",
          highest);
  }
  RandomArgs args = random_args(Distribution::Bernoulli, 0, 0, p.device(), generator);
  args.p = from.raw();
  args.p_dtype = from.dtype();
  Tensor y = empty(p.shape(), p.dtype(), p.device());
  draw(args, y);
  return record("bernoulli", y, {p}, [](Backward& b) { b.set(0, zeros_like(b.grad())); }, Differentiable::Yes);
}

Tensor bernoulli_(const Tensor& x, double p, Generator* generator) {
  check(p >= 0 && p <= 1, "bernoulli_: expected p in [0, 1], got ", p);
  return draw_inplace("bernoulli_", random_args(Distribution::Bernoulli, p, 0, x.device(), generator), x);
}

// -------------------------------------------------------------------------------------- multinomial

namespace {

// One category per sample: where u times the total falls in the running sum of the weights.
void draw_with_replacement(const double* weights, int64_t n, const double* u, int64_t n_samples, int64_t* samples) {
  std::vector<double> sums(weights, weights + n);
  for (int64_t i = 1; i < n; ++i) sums[i] += sums[i - 1];
  // Rounding could pass the last category of positive weight: stop at the first that holds the total.
  const auto last = std::lower_bound(sums.begin(), sums.end(), sums.back());
  for (int64_t i = 0; i < n_samples; ++i)
    samples[i] = std::min(last, std::upper_bound(sums.begin(), sums.end(), u[i] * sums.back())) - sums.begin();
}

// An exponential race: the category with the rate w arrives at -log(u) / w; the first ones are drawn.
void draw_without_replacement(const double* weights, int64_t n, const double* u, int64_t n_samples, int64_t* samples) {
  std::vector<std::pair<double, int64_t>> arrivals;
  for (int64_t i = 0; i < n; ++i)
    if (weights[i] > 0) arrivals.emplace_back(-std::log1p(-u[i]) / weights[i], i);
  check(int64_t(arrivals.size()) >= n_samples, "multinomial: cannot draw ", n_samples,
        " samples without replacement from ", arrivals.size(), " categories of positive weight");
  std::partial_sort(arrivals.begin(), arrivals.begin() + n_samples, arrivals.end());
  for (int64_t i = 0; i < n_samples; ++i) samples[i] = arrivals[size_t(i)].second;
}

}  // namespace

Tensor multinomial(const Tensor& weights, int64_t n_samples, bool replacement, Generator* generator) {
  check_floating("multinomial", weights);
  check(weights.ndim() == 1 || weights.ndim() == 2, "multinomial: expected weights (n) or (rows, n), got shape ",
        weights.shape());
  const int64_t n = weights.size(-1), rows = weights.ndim() == 2 ? weights.size(0) : 1;
  check(n > 0 && n_samples > 0, "multinomial: expected categories and n_samples > 0, got shape ", weights.shape(),
        " and n_samples=", n_samples);
  const Tensor host = contiguous(to(to(detach(weights), Device()), DType::Float64));
  const int64_t draws = replacement ? n_samples : n;
  const Tensor u = rand({rows, draws}, DType::Float64, Device(), generator);
  Dims shape = weights.shape();
  shape[shape.size() - 1] = n_samples;
  Tensor samples = empty(shape, DType::Int64);
  for (int64_t row = 0; row < rows; ++row) {
    const double* w = host.data<double>() + row * n;
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      check(w[i] >= 0 && std::isfinite(w[i]), "multinomial: weight ", w[i], " of category ", i,
            " is not a finite number >= 0");
      total += w[i];
    }
    check(total > 0, "multinomial: the weights of row ", row, " sum to ", total);
    (replacement ? draw_with_replacement : draw_without_replacement)(w, n, u.data<double>() + row * draws, n_samples,
                                                                     samples.data<int64_t>() + row * n_samples);
  }
  return to(samples, weights.device());
}

// ------------------------------------------------------------------------------------------ dropout

namespace {

// The numbers go to the elements in the order in which they lie in the result, which is the input's where that is
// dense. The mask is never stored: the backward draws the same stream again.
Tensor masked(const Tensor& x, const Dims& strides, RandomStream stream, double p) {
  const auto laid_out = [&] { return alias(empty(x.shape(), x.dtype(), x.device()), x.shape(), strides, 0); };
  Tensor y = laid_out(), from = x;
  if (x.strides() != strides) copy_into(from = laid_out(), x);
  DropoutArgs args{from.raw(), y.raw(), x.dtype(), x.numel(), stream, uint32_t(std::ldexp(p, 32)), 1 / (1 - p)};
  dropout_apply(x.device(), args);
  return record(
      "dropout", y, {x}, [strides, stream, p](Backward& b) { b.set(0, masked(b.grad(), strides, stream, p)); },
      Differentiable::Yes);
}

}  // namespace

Tensor dropout(const Tensor& x, double p, bool training, Generator* generator) {
  check(p >= 0 && p <= 1, "dropout: expected p in [0, 1], got ", p);
  check_floating("dropout", x);
  if (!training || p == 0) return x;
  if (p < 1)
    return masked(x, x.is_dense() ? x.strides() : contiguous_strides(x.shape()), stream_of(generator, x.device()), p);
  return record(
      "dropout", zeros_like(x), {x}, [](Backward& b) { b.set(0, zeros_like(b.grad())); }, Differentiable::Yes);
}

}  // namespace fastnn
