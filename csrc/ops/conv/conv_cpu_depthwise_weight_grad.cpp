// Convolution in groups of few channels on the CPU, weight gradient:
//
//   dw[o, i, t] = sum over images and pixels of dy[o, r, c] * x_i[r * stride + ..., c * stride + ...]
//
// The taps' sums stay in registers while rows pass (taps_cpu.h): for 3 x 3 taps, seven rows of dy and their 9 (of
// stride 2: 15) source rows, 27 loads for 63 multiply-adds into 9 sums; other taps read bands in blocks of eight. The
// sums are vectors; after some hundred steps their lanes are added up and carried on in float64. Parallel over groups,
// and over parts of the images where groups are few; parts are fixed by the problem and added in order.
#include "ops/conv/taps_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kTaskWork = int64_t(1) << 19;  // multiply-adds that pay for a task
constexpr int64_t kTasks = 8;                    // wanted, at least
constexpr int64_t kRun = 256;                    // vectors added up before a carry
constexpr int64_t kTapBlock = 8;

template <class T>
struct WeightGrad {
  const ConvArgs& args;
  Band band;
  int64_t taps, padded_taps;               // of a filter; in whole blocks
  const int64_t* offsets;                  // [padded_taps], in a band; those beyond the taps repeat the first
  bool is_3x3, in_place;                   // in place: images are read as they are, not through bands
  int64_t pieces, pieces_per_part, parts;  // bands of all images

  int64_t group_filters() const { return args.out_channels * args.in_channels; }
  int64_t vectors() const { return group_filters() * padded_taps; }
};

// sums[t] += sum over r, c of dy[r][c] * band[r * band_row + c + offsets[t]], in the lanes of c.
template <class T, class Pixel = T>
struct PixelsProduct {
  const Source<T>& source;
  int64_t band_row;
  const int64_t* offsets;
  const Pixel* dy;
  int64_t rows, columns;
};

// kRows rows from `row` on; kStep source rows lie between them. Beyond the last column both factors are zero.
template <class Taps, int kStep, int kRows, class T, class Pixel>
inline __attribute__((always_inline)) void add_rows_3x3(const PixelsProduct<T, Pixel>& p, int64_t row, Vec<T>* sums) {
  const Taps taps{p.source, p.offsets};
  for (int64_t c = 0; c < p.columns; c += Vec<T>::size) {
    const int64_t n = min(p.columns - c, Vec<T>::size);
    const auto columns = taps.columns(c, n);
    const Pixel* pixels = p.dy + row * p.columns + c;
    Vec<T> dy[kRows];
#pragma GCC unroll 7
    for (int r = 0; r < kRows; ++r) dy[r] = Vec<T>(load_values<Pixel>(pixels + r * p.columns, n));
    for_each_product_3x3<kStep, kRows>(taps, row, columns,
                                       [&](int r, int tap, Vec<T> x) FASTNN_INLINED { sums[tap] += dy[r] * x; });
  }
}

template <class Taps, int kStep, class T, class Pixel>
void add_pixels_3x3(const PixelsProduct<T, Pixel>& p, T* vectors) {
  Vec<T> sums[9];
#pragma GCC unroll 9
  for (int t = 0; t < 9; ++t) sums[t] = Vec<T>::load(vectors + t * Vec<T>::size);
  int64_t row = 0;
  for (; row + kTapRows <= p.rows; row += kTapRows) add_rows_3x3<Taps, kStep, kTapRows>(p, row, sums);
  if (row + 4 <= p.rows) add_rows_3x3<Taps, kStep, 4>(p, row, sums), row += 4;
  for (; row < p.rows; ++row) add_rows_3x3<Taps, kStep, 1>(p, row, sums);
#pragma GCC unroll 9
  for (int t = 0; t < 9; ++t) sums[t].store(vectors + t * Vec<T>::size);
}

template <class T>
void add_pixels(const PixelsProduct<T>& p, T* vectors) {
  Vec<T> sums[kTapBlock];
#pragma GCC unroll 8
  for (int t = 0; t < kTapBlock; ++t) sums[t] = Vec<T>::load(vectors + t * Vec<T>::size);
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t c = 0; c < p.columns; c += Vec<T>::size) {
      const int64_t n = p.columns - c;
      const T *dy = p.dy + row * p.columns + c, *x = p.source.band + row * p.band_row + c;
      if (n >= Vec<T>::size) {
#pragma GCC unroll 8
        for (int t = 0; t < kTapBlock; ++t) sums[t] += Vec<T>::load(dy) * Vec<T>::load(x + p.offsets[t]);
      } else {
#pragma GCC unroll 8
        for (int t = 0; t < kTapBlock; ++t) sums[t] += Vec<T>::load(dy, n) * Vec<T>::load(x + p.offsets[t], n);
      }
    }
#pragma GCC unroll 8
  for (int t = 0; t < kTapBlock; ++t) sums[t].store(vectors + t * Vec<T>::size);
}

// totals[filter][tap] += the lanes of its vector, which becomes zero.
template <class T>
void carry(const WeightGrad<T>& plan, T* vectors, double* totals) {
  constexpr int kLanes = Vec<T>::size;
  for (int64_t filter = 0; filter < plan.group_filters(); ++filter)
    for (int64_t t = 0; t < plan.taps; t += kLanes) {
      Vec<T> rows[kLanes];
      T sums[kLanes];
      const int64_t n = min(kLanes, plan.taps - t);
      for (int64_t i = 0; i < kLanes; ++i)
        rows[i] = i < n ? Vec<T>::load(vectors + (filter * plan.padded_taps + t + i) * kLanes) : Vec<T>::zero();
      row_sums(rows).store(sums);
      for (int64_t i = 0; i < n; ++i) totals[filter * plan.taps + t + i] += double(sums[i]);
    }
  fill_zero(vectors, plan.vectors() * kLanes);
}

template <class T>
struct Buffers {
  T *vectors, *bands, *widened, *dy;

  Buffers(const WeightGrad<T>& plan) {
    const Band& band = plan.band;
    const bool cast = plan.args.dtype != dtype_of<T>();
    const int64_t vectors_size = plan.vectors() * Vec<T>::size, channels = plan.args.in_channels;
    const int64_t bands_size = plan.in_place ? 0 : channels * band.channel_pitch;
    const int64_t widened_size = cast && !plan.in_place ? channels * band.height * band.columns.source : 0;
    const int64_t dy_size = cast && !plan.in_place ? band.outputs * plan.args.width.output : 0;
    vectors = static_cast<T*>(
        thread_scratch(Scratch::Operation, size_t(vectors_size + bands_size + widened_size + dy_size) * sizeof(T)));
    bands = vectors + vectors_size;
    widened = bands + bands_size;
    dy = widened + widened_size;
    fill_zero(vectors, vectors_size + bands_size);
  }
};

template <class T, class Pixel>
PixelsProduct<T, Pixel> product_of(const WeightGrad<T>& plan, const Source<T>& source, const Pixel* dy,
                                   int64_t outputs) {
  return {source, plan.band.rows.step * plan.band.row_pitch, plan.offsets, dy, outputs, plan.args.width.output};
}

// The image is read in place, as dy is.
template <class Stored, class T>
void add_image_pixels(const WeightGrad<T>& plan, const Source<T>& source, const char* dy, int64_t outputs, T* vectors) {
  const auto p = product_of(plan, source, reinterpret_cast<const Stored*>(dy), outputs);
  plan.band.rows.step == 1 ? add_pixels_3x3<ImageTaps<Stored, 1>, 1>(p, vectors)
                           : add_pixels_3x3<ImageTaps<Stored, 2>, 2>(p, vectors);
}

template <class T>
void add_band_pixels(const WeightGrad<T>& plan, const Source<T>& source, const T* dy, int64_t outputs, T* vectors) {
  auto p = product_of(plan, source, dy, outputs);
  if (plan.is_3x3)
    return plan.band.rows.step == 1 ? add_pixels_3x3<BandTaps<T, 1>, 1>(p, vectors)
                                    : add_pixels_3x3<BandTaps<T, 2>, 2>(p, vectors);
  for (int64_t t = 0; t < plan.taps; t += kTapBlock, p.offsets += kTapBlock) add_pixels(p, vectors + t * Vec<T>::size);
}

// One filter's vectors: dy times one source channel.
template <class T>
void add_source(const WeightGrad<T>& plan, const Source<T>& source, const char* dy, int64_t outputs, T* vectors) {
  if (!plan.in_place) return add_band_pixels(plan, source, reinterpret_cast<const T*>(dy), outputs, vectors);
  if constexpr (kImageTaps && sizeof(T) == sizeof(float)) {
    if (plan.args.dtype == DType::BFloat16) return add_image_pixels<bfloat16>(plan, source, dy, outputs, vectors);
    if (plan.args.dtype == DType::Float16) return add_image_pixels<float16>(plan, source, dy, outputs, vectors);
  }
  if constexpr (kImageTaps) add_image_pixels<T>(plan, source, dy, outputs, vectors);
}

// One band of one image and group: all its filters.
template <class T>
void add_band(const WeightGrad<T>& plan, int64_t image_group, int64_t output, int64_t outputs,
              const Buffers<T>& buffers) {
  const ConvArgs& args = plan.args;
  const int64_t size = int64_t(item_size(args.dtype)), x_plane = args.height.input * args.width.input * size;
  const int64_t dy_row = args.width.output * size, dy_plane = args.height.output * dy_row;
  const RowRange range(plan.band, output, outputs);
  Source<T> sources[kFewSources];
  for (int64_t i = 0; i < args.in_channels; ++i)
    sources[i] = load_source(plan.band, plan.in_place,
                             static_cast<const char*>(args.x) + (image_group * args.in_channels + i) * x_plane,
                             args.dtype, range, i, buffers.bands, buffers.widened);
  T* vectors = buffers.vectors;
  for (int64_t o = 0; o < args.out_channels; ++o) {
    const char* plane = static_cast<const char*>(args.dy) + (image_group * args.out_channels + o) * dy_plane;
    const char* dy = plan.in_place ? plane + output * dy_row
                                   : reinterpret_cast<const char*>(widen_rows(
                                         plane, args.dtype, output, output + outputs, args.width.output, buffers.dy));
    for (int64_t i = 0; i < args.in_channels; ++i, vectors += plan.padded_taps * Vec<T>::size)
      add_source(plan, sources[i], dy, outputs, vectors);
  }
}

template <class T>
void run_unit(const WeightGrad<T>& plan, int64_t part, int64_t group, const Buffers<T>& buffers, double* totals) {
  fill_zero(totals, plan.group_filters() * plan.taps);
  const int64_t end = min(plan.pieces, (part + 1) * plan.pieces_per_part);
  int64_t run = 0;
  for (int64_t piece = part * plan.pieces_per_part; piece < end; ++piece) {
    const int64_t image = piece / plan.band.count, output = piece % plan.band.count * plan.band.outputs;
    const int64_t outputs = min(plan.band.outputs, plan.args.height.output - output);
    add_band(plan, image * plan.args.groups + group, output, outputs, buffers);
    run += outputs * ceil_div(plan.args.width.output, Vec<T>::size);
    if (run < kRun && piece + 1 < end) continue;
    carry(plan, buffers.vectors, totals);
    run = 0;
  }
}

template <class T>
bool run(const ConvArgs& args) {
  const ConvAxis &h = args.height, &w = args.width;
  const int64_t taps = h.kernel * w.kernel;
  const Band band = make_band(plane_axis(h.input, h.stride, h.padding, h.dilation, h.kernel, h.output),
                              plane_axis(w.input, w.stride, w.padding, w.dilation, w.kernel, w.output), h.output,
                              (h.kernel - 1) * h.dilation + 1, args.in_channels, Vec<T>::size, int64_t(sizeof(T)));
  if (band.channel_pitch > kLargestBand) return false;
  WeightGrad<T> plan{args,
                     band,
                     taps,
                     ceil_div(taps, kTapBlock) * kTapBlock,
                     nullptr,
                     h.kernel == 3 && w.kernel == 3 && h.dilation == 1 && h.stride <= 2,
                     kImageTaps && h.kernel == 3 && w.kernel == 3 && h.dilation == 1 && w.dilation == 1 &&
                         h.stride == w.stride && h.stride <= 2,
                     args.images * band.count,
                     0,
                     0};
  const int64_t piece_work = max(1, plan.group_filters() * taps * band.outputs * w.output);
  const int64_t wanted = min(ceil_div(kTasks, args.groups), plan.pieces * piece_work / kTaskWork);
  plan.pieces_per_part = ceil_div(plan.pieces, max(1, wanted));
  plan.parts = ceil_div(plan.pieces, plan.pieces_per_part);

  const int64_t group_size = plan.group_filters() * taps, count = args.groups * group_size;
  char* memory =
      static_cast<char*>(thread_scratch(Scratch::OperationShared, size_t(plan.padded_taps) * sizeof(int64_t) +
                                                                      size_t(plan.parts * count) * sizeof(double)));
  int64_t* offsets = reinterpret_cast<int64_t*>(memory);
  double* totals = reinterpret_cast<double*>(offsets + plan.padded_taps);
  for (int64_t t = 0; t < plan.padded_taps; ++t)
    offsets[t] = t < taps ? t / w.kernel * h.dilation * band.row_pitch + band.column_offset(t % w.kernel) : offsets[0];
  plan.offsets = offsets;
  const int64_t grain = max(1, kTaskWork / (plan.pieces_per_part * piece_work));
  parallel_for(plan.parts * args.groups, grain, [&](int64_t begin, int64_t end) {
    const Buffers<T> buffers(plan);
    for (int64_t unit = begin; unit < end; ++unit)
      run_unit(plan, unit / args.groups, unit % args.groups, buffers, totals + unit * group_size);
  });
  for (int64_t part = 1; part < plan.parts; ++part)
    for (int64_t i = 0; i < count; ++i) totals[i] += totals[part * count + i];
  FASTNN_LEVEL::store_row(args.out, args.dtype, 1, totals, count);
  return true;
}

}  // namespace

namespace FASTNN_LEVEL {

bool depthwise_weight_grad(const ConvArgs& given) {
  const ConvArgs args = with_long_rows(given);
  if (!suits_bands(args, args.in_channels, args.out_channels, kFewSources)) return false;
  return args.dtype == DType::Float64 ? run<double>(args) : run<float>(args);
}

}  // namespace FASTNN_LEVEL
}  // namespace fastnn
