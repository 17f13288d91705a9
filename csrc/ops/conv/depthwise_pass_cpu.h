// Convolution in groups of few channels on the CPU, forward and input gradient:
//
//   out[o, r, c] = sum over source channels i of the group and taps t of weight[o, i, t] * source_i[position of t for
//   r, c]
//
// For 3 x 3 taps seven output rows (four, with fewer registers) of a vector of columns are computed at once: of their
// 9 source rows (of stride 2: 15) each is loaded once for each column tap, 27 loads for 63 multiply-adds. Of groups
// with four results or more, four are computed at once, in four rows (two), and share the loads. All source channels
// are added up in registers. With masks the image is read in place (taps_cpu.h; bfloat16 rows longer than a register by
// pairs, pairs_cpu.h), and 16-bit results leave the registers rounded; else it is read as bands (depthwise_cpu.h).
// Other taps read bands, load once a multiply-add, and several source channels are added up in the output.
//
// In the gradient of the input, each residue class of the positions modulo the stride is a result with the taps of
// the class in reverse; the classes of a row are woven when it is complete. A pass reads and writes every
// tensor once: depthwise convolution is bound by memory. Parallel over images, groups and bands.
#pragma once

#include "gemm/epilogue.h"
#include "ops/conv/pairs_cpu.h"
#include "ops/conv/rows_product_cpu.h"

namespace fastnn {
namespace {

constexpr int64_t kTaskWork = int64_t(1) << 17;  // multiply-adds of a task: several a thread, for an even share
constexpr int kMaxPhases = 4;                    // residue classes along an axis, at most

// Along one axis, the results of one residue class: result i reads the band from i * step + shift on.
struct AxisPhase {
  OutputAxis out;
  int64_t taps, shift;
  int64_t first_tap, tap_step;  // of the filter

  int64_t kernel_index(int64_t tap) const { return first_tap + tap * tap_step; }
};

struct PassAxis {
  PlaneAxis source;
  int64_t extent;  // positions that one result's taps span, of any phase
  int phases;
  AxisPhase phase[kMaxPhases];
};

PassAxis forward_axis(const ConvAxis& axis) {
  return {plane_axis(axis.input, axis.stride, axis.padding, axis.dilation, axis.kernel, axis.output),
          (axis.kernel - 1) * axis.dilation + 1,
          1,
          {{{axis.output, 0, 1, axis.output}, axis.kernel, 0, 0, 1}}};
}

// axis.stride <= kMaxPhases.
PassAxis gradient_axis(const ConvAxis& axis) {
  PassAxis pass{};
  pass.phases = int(min(axis.stride, axis.input));
  int64_t pads[kMaxPhases], length = 1;
  pass.source = {axis.output, 1, 0, 1, 1, 1};
  bool any = false;
  for (int p = 0; p < pass.phases; ++p) {
    const GradPhase grad = grad_phase(axis, p);
    pass.phase[p] = {grad.out, grad.taps, 0, grad.kernel_index(0), -grad.period};
    pads[p] = grad.plane.pad;
    if (grad.taps == 0) continue;
    pass.source.pad = any ? max(pass.source.pad, pads[p]) : pads[p];
    pass.source.dilation = grad.plane.dilation;
    any = true;
  }
  for (int p = 0; p < pass.phases; ++p) {
    AxisPhase& phase = pass.phase[p];
    if (phase.taps == 0) continue;
    phase.shift = pass.source.pad - pads[p];
    const int64_t extent = phase.shift + (phase.taps - 1) * pass.source.dilation + 1;
    pass.extent = max(pass.extent, extent);
    length = max(length, phase.out.count - 1 + extent);
  }
  pass.extent = max(1, pass.extent);
  pass.source.length = length;
  return pass;
}

template <class T>
struct Pass {
  int64_t images, groups;
  int64_t sources, results;  // channels of a group
  const char* source;
  DType dtype;
  PassAxis rows, columns;
  Band band;
  int64_t taps;            // of a filter
  const T* weights;        // [group][result][source][tap], ordered by row phase, column phase
  const int64_t* offsets;  // [tap], in a band
  bool whole;              // 3 x 3 taps of step 1 or 2, and one phase: all results at once
  bool in_place;           // images are read as they are, not through bands
  const T* bias;           // [group][result] or null
  const char* residual;    // of out's layout, or null
  Activation activation;
  char* out;

  int64_t out_rows() const { return rows.phase[0].out.size; }
  int64_t out_columns() const { return columns.phase[0].out.size; }
  int64_t phase_pitch() const {  // of the results of a column phase, when there are several
    return columns.phases > 1 ? band.outputs * columns.phase[0].out.count + Vec<T>::size : 0;
  }
};

// --------------------------------------------------------------------------------------- bands

// What a task uses for one band after another.
template <class T>
struct Buffers {
  T* bands;    // [source]; none when images are read in place
  T* widened;  // [source] image rows, when the dtype is another
  T* results;  // when the dtype is another
  T* phases;   // of a channel, when there are several column phases

  Buffers(const Pass<T>& pass) {
    const bool cast = pass.dtype != dtype_of<T>();
    const int64_t bands_size = pass.in_place ? 0 : pass.sources * pass.band.channel_pitch;
    const int64_t widened_size =
        cast && !pass.in_place ? pass.sources * pass.band.height * pass.band.columns.source : 0;
    const int64_t result_size = pass.band.outputs * pass.rows.phases * pass.out_columns();
    const int64_t results_size = cast && !pass.in_place ? pass.results * result_size : 0;
    bands = static_cast<T*>(thread_scratch(
        Scratch::Operation,
        size_t(bands_size + widened_size + results_size + pass.columns.phases * pass.phase_pitch()) * sizeof(T)));
    widened = bands + bands_size;
    results = widened + widened_size;
    phases = results + results_size;
    fill_zero(bands, bands_size);
  }
};

// One row from its residue classes, `phase_pitch` elements apart: element i of class p is column i * phases + p.
template <class T>
void weave_row(const T* classes, int64_t phase_pitch, int phases, int64_t columns, T* out) {
  constexpr int kLanes = Vec<T>::size;
  if (phases != 2) {
    for (int p = 0; p < phases; ++p)
      for (int64_t i = 0, c = p; c < columns; ++i, c += phases) out[c] = classes[p * phase_pitch + i];
    return;
  }
  for (int64_t c = 0; c < columns; c += 2 * kLanes) {
    Vec<T> low = Vec<T>::load(classes + c / 2), high = Vec<T>::load(classes + phase_pitch + c / 2);
    interleave(low, high);
    const int64_t n = columns - c;
    n >= kLanes ? low.store(out + c) : low.store(out + c, n);
    if (n > kLanes) n >= 2 * kLanes ? high.store(out + c + kLanes) : high.store(out + c + kLanes, n - kLanes);
  }
}

// 3 x 3 taps of the image in place, in Stored, or of bands.
template <class Stored, class T, class Out>
void multiply_3x3(const Pass<T>& pass, const RowsProduct<T, Out>& p) {
  if constexpr (kImageTaps) {
    if (pass.in_place)
      return pass.rows.source.step == 1 ? multiply_3x3<ImageTaps<Stored, 1>, 1>(p)
                                        : multiply_3x3<ImageTaps<Stored, 2>, 2>(p);
  }
  if constexpr (__is_same(Stored, T))
    pass.rows.source.step == 1 ? multiply_3x3<BandTaps<T, 1>, 1>(p) : multiply_3x3<BandTaps<T, 2>, 2>(p);
}

// `rows` rows of all results of group `group`, where there is one phase and 3 x 3 taps.
template <class Stored, class T, class Out>
void multiply_whole(const Pass<T>& pass, int64_t group, int64_t rows, const Source<T>* sources, const T* addend,
                    Out* out, int64_t out_plane) {
  RowsProduct<T, Out> p{};
  p.sources = sources;
  p.n_sources = pass.sources;
  p.n_results = pass.results;
  p.band_row = pass.rows.source.step * pass.band.row_pitch;
  p.weights = pass.weights + group * pass.results * pass.sources * pass.taps;
  p.source_weights = p.taps = pass.taps;
  p.offsets = pass.offsets;
  p.bias = pass.bias ? pass.bias + group * pass.results : nullptr;
  p.addend = addend;
  p.out = out;
  p.out_plane = out_plane;
  p.out_row = p.columns = pass.out_columns();
  p.rows = rows;
#if defined(__AVX512BW__)
  if constexpr (__is_same(Stored, bfloat16)) {
    if (pass.rows.source.step == 1 && pass.results < kGroupResults && p.columns > Vec<T>::size) {
      for (int64_t r = 0; r < pass.results; ++r)
        multiply_pairs_3x3({sources, p.n_sources, p.weights_of(r, 0), p.source_weights, p.bias ? p.bias[r] : 0,
                            out + r * out_plane, rows, p.columns});
      return;
    }
  }
#endif
  multiply_3x3<Stored>(pass, p);
}

// Channel `result`, counted over all groups: `outputs` rows of each row phase, from `output` on. `target` is their
// first row, `addend` too.
template <class T>
void multiply_phases(const Pass<T>& pass, int64_t result, int64_t output, int64_t outputs, const Source<T>* sources,
                     const Buffers<T>& buffers, const T* addend, T* target) {
  const int64_t columns = pass.out_columns(), pitch = pass.phase_pitch();
  RowsProduct<T> p{};
  p.sources = sources;
  p.n_sources = pass.sources;
  p.band_row = pass.rows.source.step * pass.band.row_pitch;
  p.source_weights = pass.taps;
  p.bias = pass.bias ? pass.bias + result : nullptr;
  p.addend = addend;
  p.weights = pass.weights + result * pass.sources * pass.taps;
  p.offsets = pass.offsets;
  for (int a = 0; a < pass.rows.phases; ++a) {
    const AxisPhase& row_phase = pass.rows.phase[a];
    p.rows = min(outputs, row_phase.out.count - output);
    T* const rows = target + row_phase.out.first * columns;
    for (int b = 0; b < pass.columns.phases; ++b) {
      const AxisPhase& column_phase = pass.columns.phase[b];
      p.taps = row_phase.taps * column_phase.taps;
      p.columns = column_phase.out.count;
      p.out = pitch ? buffers.phases + b * pitch : rows;
      p.out_row = pitch ? pass.columns.phase[0].out.count : row_phase.out.step * columns;
      multiply_taps(p);
      p.weights += p.taps;
      p.offsets += p.taps;
    }
    for (int64_t r = 0; pitch && r < p.rows; ++r)
      weave_row(buffers.phases + r * p.out_row, pitch, pass.columns.phases, columns,
                rows + r * row_phase.out.step * columns);
  }
}

// A unit: all results of one image, group and band.
struct Unit {
  int64_t image_group, group, output;
};

// Results in the compute type, then cast.
template <class T>
void run_in_compute_type(const Pass<T>& pass, const Unit& unit, int64_t outputs, const Source<T>* sources,
                         const Buffers<T>& buffers) {
  const int64_t row_step = pass.rows.phase[0].out.step, columns = pass.out_columns();
  const int64_t size = int64_t(item_size(pass.dtype)), first_row = unit.output * row_step;
  const int64_t elements = (min(first_row + outputs * row_step, pass.out_rows()) - first_row) * columns;
  const int64_t plane = pass.out_rows() * columns, at = unit.image_group * pass.results * plane + first_row * columns;
  const bool cast = pass.dtype != dtype_of<T>();
  T* const results = cast ? buffers.results : reinterpret_cast<T*>(pass.out) + at;
  const int64_t pitch = cast ? elements : plane;
  const T* addend = reinterpret_cast<const T*>(pass.residual) + (pass.residual && !cast ? at : 0);
  for (int64_t r = 0; r < pass.results && cast && pass.residual; ++r)
    FASTNN_LEVEL::load_row(results + r * pitch, pass.residual + (at + r * plane) * size, pass.dtype, 1, elements);
  if (cast && pass.residual) addend = results;
  if (pass.whole) multiply_whole<T>(pass, unit.group, outputs, sources, addend, results, pitch);
  for (int64_t r = 0; r < pass.results; ++r) {
    T* const result = results + r * pitch;
    if (!pass.whole)
      multiply_phases(pass, unit.group * pass.results + r, unit.output, outputs, sources, buffers,
                      addend ? addend + r * pitch : nullptr, result);
    if (pass.activation != Activation::None) activate_row(pass.activation, result, elements);
    if (cast) FASTNN_LEVEL::store_row(pass.out + (at + r * plane) * size, pass.dtype, 1, result, elements);
  }
}

template <class Stored, class T>
void run_in_registers(const Pass<T>& pass, const Unit& unit, int64_t outputs, const Source<T>* sources) {
  const int64_t plane = pass.out_rows() * pass.out_columns();
  const int64_t at = unit.image_group * pass.results * plane + unit.output * pass.out_columns();
  multiply_whole<Stored, T, Stored>(pass, unit.group, outputs, sources, nullptr,
                                    reinterpret_cast<Stored*>(pass.out) + at, plane);
}

// What is compiled: all, or bfloat16 images in place alone.
enum class Compiled { All, BFloat16InPlace };

template <Compiled kCompiled, class T>
void run_unit(const Pass<T>& pass, const Unit& unit, const Buffers<T>& buffers) {
  const int64_t outputs = min(pass.band.outputs, pass.rows.phase[0].out.count - unit.output);
  const int64_t source_plane = pass.rows.source.source * pass.columns.source.source * int64_t(item_size(pass.dtype));
  const RowRange range(pass.band, unit.output, outputs);
  Source<T> sources[kFewSources];
  for (int64_t s = 0; s < pass.sources; ++s)
    sources[s] =
        load_source(pass.band, pass.in_place, pass.source + (unit.image_group * pass.sources + s) * source_plane,
                    pass.dtype, range, s, buffers.bands, buffers.widened);
  if constexpr (kCompiled == Compiled::BFloat16InPlace) {
    return run_in_registers<bfloat16>(pass, unit, outputs, sources);
  } else if constexpr (kImageTaps && sizeof(T) == sizeof(float)) {
    if (pass.in_place && pass.dtype == DType::BFloat16) return run_in_registers<bfloat16>(pass, unit, outputs, sources);
    if (pass.in_place && pass.dtype == DType::Float16) return run_in_registers<float16>(pass, unit, outputs, sources);
  }
  if constexpr (kCompiled == Compiled::All) run_in_compute_type(pass, unit, outputs, sources, buffers);
}

template <Compiled kCompiled, class T>
void run_pass(const Pass<T>& pass) {
  const int64_t unit_work =
      pass.sources * pass.results * pass.taps * pass.band.outputs * pass.columns.phase[0].out.count;
  const int64_t grain = max(1, kTaskWork / max(1, unit_work));
  parallel_for(pass.images * pass.groups * pass.band.count, grain, [&](int64_t begin, int64_t end) {
    const Buffers<T> buffers(pass);
    int64_t image_group = begin / pass.band.count, group = image_group % pass.groups, band = begin % pass.band.count;
    for (int64_t unit = begin; unit < end; ++unit) {  // counted without divisions: small planes take some 100 cycles
      run_unit<kCompiled>(pass, {image_group, group, band * pass.band.outputs}, buffers);
      if (++band < pass.band.count) continue;
      band = 0;
      ++image_group;
      if (++group == pass.groups) group = 0;
    }
  });
}

// ------------------------------------------------------------------------------------- weights

// The order of a filter's taps in a pass: where they are in the filter, and what they read in a band.
template <class T>
void order_taps(const Pass<T>& pass, int64_t kernel_columns, int64_t* kernel_indices, int64_t* offsets) {
  for (int a = 0; a < pass.rows.phases; ++a)
    for (int b = 0; b < pass.columns.phases; ++b) {
      const AxisPhase &row = pass.rows.phase[a], &column = pass.columns.phase[b];
      for (int64_t i = 0; i < row.taps; ++i)
        for (int64_t j = 0; j < column.taps; ++j) {
          *kernel_indices++ = row.kernel_index(i) * kernel_columns + column.kernel_index(j);
          *offsets++ = (row.shift + i * pass.rows.source.dilation) * pass.band.row_pitch + column.shift +
                       pass.band.column_offset(j);
        }
    }
}

// What the calling thread prepares for all tasks, in scratch; the pass is complete then but for its tensors.
template <class T>
void prepare_weights(const ConvArgs& args, bool gradient, Pass<T>& pass) {
  const int64_t filters = args.groups * args.out_channels, count = filters * args.in_channels * pass.taps;
  const bool cast = args.dtype != dtype_of<T>();
  char* memory = static_cast<char*>(thread_scratch(
      Scratch::OperationShared, size_t(2 * pass.taps) * sizeof(int64_t) +
                                    size_t((cast ? count + filters : 0) + (gradient ? count : 0)) * sizeof(T)));
  int64_t *offsets = reinterpret_cast<int64_t*>(memory), *kernel_indices = offsets + pass.taps;
  T *widened = reinterpret_cast<T*>(kernel_indices + pass.taps), *bias = widened + count;
  order_taps(pass, args.width.kernel, kernel_indices, offsets);
  pass.offsets = offsets;
  pass.weights = static_cast<const T*>(args.weight);
  pass.bias = gradient ? nullptr : static_cast<const T*>(args.bias);
  if (cast) {
    FASTNN_LEVEL::load_row(widened, args.weight, args.dtype, 1, count);
    if (pass.bias) FASTNN_LEVEL::load_row(bias, args.bias, args.dtype, 1, filters), pass.bias = bias;
    pass.weights = widened;
  }
  if (!gradient) return;  // the taps of the one phase are in order
  const T* filter = pass.weights;
  T* ordered = cast ? bias + filters : widened;
  pass.weights = ordered;
  for (int64_t g = 0; g < args.groups; ++g)
    for (int64_t i = 0; i < args.in_channels; ++i)
      for (int64_t o = 0; o < args.out_channels; ++o, ordered += pass.taps) {
        const T* taps = filter + ((g * args.out_channels + o) * args.in_channels + i) * pass.taps;
        for (int64_t t = 0; t < pass.taps; ++t) ordered[t] = taps[kernel_indices[t]];
      }
}

template <class T, Compiled kCompiled>
bool run(const ConvArgs& args, bool gradient) {
  Pass<T> pass{};
  pass.images = args.images;
  pass.groups = args.groups;
  pass.sources = gradient ? args.out_channels : args.in_channels;
  pass.results = gradient ? args.in_channels : args.out_channels;
  pass.dtype = args.dtype;
  pass.source = static_cast<const char*>(gradient ? args.dy : args.x);
  pass.residual = gradient ? nullptr : static_cast<const char*>(args.residual);
  pass.activation = gradient ? Activation::None : args.activation;
  pass.out = static_cast<char*>(args.out);
  pass.rows = gradient ? gradient_axis(args.height) : forward_axis(args.height);
  pass.columns = gradient ? gradient_axis(args.width) : forward_axis(args.width);
  pass.taps = args.height.kernel * args.width.kernel;
  pass.band = make_band(pass.rows.source, pass.columns.source, pass.rows.phase[0].out.count, pass.rows.extent,
                        pass.sources, Vec<T>::size, int64_t(sizeof(T)));
  if (pass.band.channel_pitch > kLargestBand) return false;
  const PlaneAxis &rows = pass.rows.source, &columns = pass.columns.source;
  pass.whole = pass.rows.phases == 1 && pass.columns.phases == 1 && pass.rows.phase[0].taps == 3 &&
               pass.columns.phase[0].taps == 3 && rows.dilation == 1 && rows.step <= 2;
  // 16-bit results leave the registers rounded: nothing may be left to do with them.
  const bool finished = args.dtype == dtype_of<T>() || (!pass.residual && pass.activation == Activation::None);
  pass.in_place = kImageTaps && pass.whole && finished && columns.dilation == 1 && rows.step == columns.step;
  if (kCompiled != Compiled::All && !pass.in_place) return false;
  prepare_weights(args, gradient, pass);
  run_pass<kCompiled>(pass);
  return true;
}

template <Compiled kCompiled>
bool run_typed(const ConvArgs& args, bool gradient) {
  if constexpr (kCompiled == Compiled::All)
    if (args.dtype == DType::Float64) return run<double, kCompiled>(args, gradient);
  return run<float, kCompiled>(args, gradient);
}

template <Compiled kCompiled>
bool convolve_by_rows(const ConvArgs& given) {
  const ConvArgs args = with_long_rows(given);
  return suits_bands(args, args.in_channels, args.out_channels, kFewSources) && run_typed<kCompiled>(args, false);
}

template <Compiled kCompiled>
bool input_grad_by_rows(const ConvArgs& given) {
  const ConvArgs args = with_long_rows(given);
  const int64_t stride = max(args.height.stride, args.width.stride);
  return stride <= kMaxPhases &&
         suits_bands(args, args.out_channels, args.in_channels, stride == 1 ? kFewSources : 3) &&
         run_typed<kCompiled>(args, true);
}

}  // namespace
}  // namespace fastnn
