// Normalization of (rows, channels), two dimensions or channels last: the kernels of a piece, and batch normalization.
//
// A run is a piece of a row, one value for each of up to 512 channels, and per-channel numbers are rows of their
// own. Rows are cut into parts, whose sums are added up in their order: x is read twice, once for the sums and once
// for the line.
#pragma once

#include "ops/norm/blocks_cpu.h"
#include "ops/norm/norm.h"

namespace fastnn {
namespace {

constexpr int64_t kColumns = 512;  // channels of a run: their sums stay in L1
constexpr int64_t kMaxRows = 64;   // rows of a block: so many are added up in the compute type
constexpr int64_t kMinRows = kBlock / kColumns;

// Adds v and v d of a run: see blocks_cpu.h.
template <class T, bool kBackward>
void add_row_moments(const T* dy, const T* x, const T* centres, T* values, T* products, int64_t n) {
#pragma GCC ivdep
  for (int64_t c = 0; c < n; ++c) {
    const T d = x[c] - centres[c], v = kBackward ? dy[c] : d;
    values[c] += v;
    products[c] += v * d;
  }
}

// Four rows at once: the sums are loaded and stored once for them.
template <class T, bool kBackward>
void add_four_row_moments(const Runs<const T>& dy, const Runs<const T>& x, const T* centres, T* values, T* products,
                          int64_t n) {
  const T *x0 = x.run(0), *x1 = x.run(1), *x2 = x.run(2), *x3 = x.run(3);
  const T *y0 = dy.run(0), *y1 = dy.run(1), *y2 = dy.run(2), *y3 = dy.run(3);
#pragma GCC ivdep
  for (int64_t c = 0; c < n; ++c) {
    const T d0 = x0[c] - centres[c], d1 = x1[c] - centres[c], d2 = x2[c] - centres[c], d3 = x3[c] - centres[c];
    const T v0 = kBackward ? y0[c] : d0, v1 = kBackward ? y1[c] : d1;
    const T v2 = kBackward ? y2[c] : d2, v3 = kBackward ? y3[c] : d3;
    values[c] += (v0 + v1) + (v2 + v3);
    products[c] += (v0 * d0 + v1 * d1) + (v2 * d2 + v3 * d3);
  }
}

// Lines of all channels, one array for each coefficient.
template <class T>
struct Lines {
  T *centre, *slope, *offset, *dy_slope;
};

template <class T>
void draw_lines(const Lines<T>& lines, int64_t first, const T* dy, const T* x, T* out, int64_t n) {
  const T *centre = lines.centre + first, *slope = lines.slope + first, *offset = lines.offset + first;
  const T* dy_slope = lines.dy_slope + first;
  if (dy) {
#pragma GCC ivdep
    for (int64_t c = 0; c < n; ++c) out[c] = (x[c] - centre[c]) * slope[c] + (dy[c] * dy_slope[c] + offset[c]);
  } else {
#pragma GCC ivdep
    for (int64_t c = 0; c < n; ++c) out[c] = (x[c] - centre[c]) * slope[c] + offset[c];
  }
}

// The (part, group of columns) grid over which the work is shared.
struct RowGrid {
  int64_t rows, channels;
  int64_t columns, groups;  // channels of a group
  int64_t block_rows, part_rows, parts;

  explicit RowGrid(const ChannelView& view) : rows(view.outer), channels(view.channels) {
    columns = min(channels, kColumns);
    groups = ceil_div(channels, columns);
    block_rows = min(max(kBlock / columns, kMinRows), kMaxRows);
    part_rows = ceil_div(max(kPart / columns, 1), block_rows) * block_rows;
    parts = ceil_div(rows, part_rows);
  }
  int64_t first_column(int64_t group) const { return group * columns; }
  Block block(int64_t row, int64_t end, int64_t group) const {
    const int64_t column = first_column(group);
    return {row * channels + column, min(block_rows, end - row), min(columns, channels - column), channels};
  }
};

template <class T, class Pass>
struct RowKernel {
  const Pass& pass;
  const DType dtype;
  const RowGrid& grid;
  T* buffers;  // of the calling thread: three blocks, then two rows of sums

  RowKernel(const Pass& direction, const RowGrid& layout)
      : pass(direction),
        dtype(direction.view().dtype),
        grid(layout),
        buffers(static_cast<T*>(
            thread_scratch(Scratch::Operation, size_t(3 * buffer_size(layout) + 2 * kColumns) * sizeof(T)))) {}
  static int64_t buffer_size(const RowGrid& layout) { return layout.block_rows * layout.columns; }
  T* buffer(int64_t i) const { return buffers + i * buffer_size(grid); }

  // The channels' means over the first block of rows [begin, end).
  void means(int64_t group, int64_t begin, int64_t end, T* means) const {
    const Block block = grid.block(begin, end, group);
    const Runs<const T> x = load(pass.x(), dtype, block, buffer(0));
    for (int64_t c = 0; c < block.length; ++c) means[c] = T(0);
    for (int64_t row = 0; row < block.runs; ++row)
      for (int64_t c = 0; c < block.length; ++c) means[c] += x.run(row)[c];
    for (int64_t c = 0; c < block.length; ++c) means[c] /= T(block.runs);
  }

  // The sums of a group's channels over rows [begin, end).
  void sums(int64_t group, int64_t begin, int64_t end, const T* centres, double* values, double* products) const {
    const int64_t columns = grid.block(begin, end, group).length;
    for (int64_t c = 0; c < columns; ++c) values[c] = products[c] = 0;
    T *block_values = buffer(3), *block_products = block_values + kColumns;
    for (int64_t first = begin; first < end; first += grid.block_rows) {
      const Block block = grid.block(first, end, group);
      const Runs<const T> x = load(pass.x(), dtype, block, buffer(0));
      const Runs<const T> dy = load(pass.dy(), dtype, block, buffer(1));
      for (int64_t c = 0; c < columns; ++c) block_values[c] = block_products[c] = T(0);
      int64_t row = 0;
      for (; row + 4 <= block.runs; row += 4)
        add_four_row_moments<T, Pass::kBackward>({dy.run(row), dy.stride}, {x.run(row), x.stride}, centres,
                                                 block_values, block_products, columns);
      for (; row < block.runs; ++row)
        add_row_moments<T, Pass::kBackward>(dy.run(row), x.run(row), centres, block_values, block_products, columns);
      for (int64_t c = 0; c < columns; ++c) {
        values[c] += double(block_values[c]);
        products[c] += double(block_products[c]);
      }
    }
  }

  void apply(int64_t group, int64_t begin, int64_t end, const Lines<T>& lines) const {
    for (int64_t first = begin; first < end; first += grid.block_rows) {
      const Block block = grid.block(first, end, group);
      const Runs<const T> x = load(pass.x(), dtype, block, buffer(0));
      const Runs<const T> dy = load(pass.dy(), dtype, block, buffer(1));
      const Runs<T> out = target(pass.out(), dtype, block, buffer(2));
      for (int64_t row = 0; row < block.runs; ++row)
        draw_lines(lines, grid.first_column(group), dy.run(row), x.run(row), out.run(row), block.length);
      finish(pass.out(), dtype, block, out.data);
    }
  }
};

template <class T, class Pass>
void run_rows(const Pass& pass) {
  const RowGrid grid(pass.view());
  const int64_t channels = grid.channels, n_partials = 2 * grid.parts * channels;
  double* partials = static_cast<double*>(
      thread_scratch(Scratch::OperationShared, size_t(n_partials) * sizeof(double) + size_t(4 * channels) * sizeof(T)));
  T* line_rows = reinterpret_cast<T*>(partials + n_partials);
  const Lines<T> lines{line_rows, line_rows + channels, line_rows + 2 * channels, line_rows + 3 * channels};
  const auto for_each_part = [&](auto&& visit) {
    const int64_t grain = max(1, kPart / max(1, min(grid.part_rows, grid.rows) * grid.columns));
    parallel_for(grid.parts * grid.groups, grain, [&](int64_t begin, int64_t end) {
      const RowKernel<T, Pass> kernel(pass, grid);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t part = i / grid.groups, first = part * grid.part_rows;
        visit(kernel, part, i % grid.groups, first, min(first + grid.part_rows, grid.rows));
      }
    });
  };
  if (pass.wants_sums()) {
    const RowKernel<T, Pass> kernel(pass, grid);
    if constexpr (Pass::kBackward) {
      for (int64_t channel = 0; channel < channels; ++channel) lines.centre[channel] = pass.centre(channel);
    } else {
      for (int64_t group = 0; group < grid.groups; ++group)
        kernel.means(group, 0, grid.rows, lines.centre + grid.first_column(group));
    }
    for_each_part([&](const auto& part_kernel, int64_t part, int64_t group, int64_t begin, int64_t end) {
      double* values = partials + 2 * part * channels + grid.first_column(group);
      part_kernel.sums(group, begin, end, lines.centre + grid.first_column(group), values, values + channels);
    });
  }
  parallel_for(channels, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
      double value = 0, product = 0;
      if (pass.wants_sums())
        for (int64_t part = 0; part < grid.parts; ++part) {
          value += partials[2 * part * channels + channel];
          product += partials[(2 * part + 1) * channels + channel];
        }
      const Line<T> line = pass.line(channel, pass.wants_sums() ? lines.centre[channel] : T(0), value, product);
      lines.centre[channel] = line.centre;
      lines.slope[channel] = line.slope;
      lines.offset[channel] = line.offset;
      lines.dy_slope[channel] = line.dy_slope;
    }
  });
  if (pass.out())
    for_each_part([&](const auto& part_kernel, int64_t, int64_t group, int64_t begin, int64_t end) {
      part_kernel.apply(group, begin, end, lines);
    });
}

}  // namespace
}  // namespace fastnn
