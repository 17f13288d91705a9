// Products by AMX tiles: what the AMX engine and the AMX convolutions are made of.
//
// A tile instruction multiplies 16 rows of 32 bfloat16 by 32 x 16 and adds to 16 x 16 float32 sums: 16384
// multiply-adds in 16 cycles, sixteen times the rate of AVX-512. It rounds to nearest and flushes
// subnormals. A block of 32 x 32 sums takes four of the eight tile registers, two more hold 32 rows of A
// and two 32 columns of B, so that four loads feed four products.
//
// Float32 operands are sums of P bfloat16 parts. Cutting a float32 after its 8th and its 16th leading bit
// gives three parts that add up to it exactly. Of the nine products of parts, the six that reach above
// 2^-24 of the result are made (P = 3): float32 accuracy at 6/16 of the time of AVX-512. With two rounded
// parts, three products leave an error of 2^-16 (P = 2); P = 1 is bfloat16 itself.
//
// A "step" is 32 consecutive values of k. Operands are read through streams: where the tiles of each step
// begin is a table, since a convolution's taps are offsets into one padded image.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/integer.h"

namespace fastnn {
namespace {

constexpr int64_t kBlock = 32;                   // rows and columns of a block of sums
constexpr int64_t kStepK = 32;                   // of k in a step
constexpr int64_t kTileBytes = 1024;             // 16 rows of 64 bytes
constexpr int64_t kBlockBytes = 2 * kTileBytes;  // 32 rows (columns) of an operand for one step and part
constexpr int64_t kSumsPerBlock = kBlock * kBlock;

// A product's work in tile products of 32 x 32 x 32 (64 cycles). Packing 32 x 32 elements, and storing a block of sums,
// take as long as some four of them.
inline int64_t tile_work(int64_t row_panels, int64_t column_panels, int64_t steps, int parts) {
  constexpr int64_t kMove = 4;
  return row_panels * column_panels * (steps * (parts * (parts + 1) / 2) + kMove) +
         (row_panels + column_panels) * steps * kMove;
}

// Work below which a second thread costs more than it saves: it has to wake, and to fetch its operands.
constexpr int64_t kSerialWork = 450;
// Up to here the work is two tasks, each packing what both read: that costs less than to fetch from the third-level
// cache what the other core packed.
constexpr int64_t kTwofoldWork = 10000;
constexpr int64_t kTaskProducts = 256;            // pay for a task
constexpr int64_t kPackGrain = int64_t(1) << 14;  // elements of a packing task

// What such a task packed, for the second one if the same thread comes to it.
template <class Packed>
class PackedTwofold {
 public:
  template <class Pack>
  Packed get(int64_t task, const Pack& pack) {
    void* const self = __builtin_thread_pointer();
    if (task > 0 && __atomic_load_n(&owner_, __ATOMIC_ACQUIRE) == self) return first_;
    const Packed packed = pack();
    if (task == 0) {
      first_ = packed;
      __atomic_store_n(&owner_, self, __ATOMIC_RELEASE);
    }
    return packed;
  }

 private:
  Packed first_{};
  void* owner_ = nullptr;
};

// One operand of a block: the tiles of step s begin at base + steps[s].
struct TileStream {
  const char* base;
  const int64_t* steps;
  int64_t row;     // bytes between the rows of a tile
  int64_t second;  // bytes to the tile of the next 16 rows of A, or columns of B
  int64_t part;    // bytes to the next part
};

// n things dealt evenly to `parts` steps: those from at(part) to at(part + 1). Without a division in each step, which
// would take as long as a tile product.
struct StepShare {
  int64_t n = 0, rate = 0;

  StepShare() = default;
  StepShare(int64_t count, int64_t parts) : n(count), rate(((count << kBits) + parts - 1) / parts) {}
  int64_t at(int64_t part) const { return min(n, part * rate >> kBits); }

 private:
  static constexpr int kBits = 20;
};

// What vector units do beside each step's products: here nothing.
struct NothingBeside {
  void operator()(int64_t, int64_t) const {}
};

// Eight tiles of 16 rows of 64 bytes. A constant: GCC 12 takes only the first bytes of what _tile_loadconfig
// reads for read, and would drop the stores that fill a local one.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTileConfig;

// Of blocks of 1 to 32 rows: the tiles of A and of the sums have no more, and a product takes as long as it has rows.
struct TileConfigs {
  TileConfig of[kBlock + 1];

  constexpr TileConfigs() {
    for (int64_t n = 1; n <= kBlock; ++n) {
      uint8_t* rows = of[n].rows;
      rows[0] = rows[1] = rows[4] = uint8_t(n < 16 ? n : 16);
      if (n > 16) rows[2] = rows[3] = rows[5] = uint8_t(n - 16);
    }
  }
};
constexpr TileConfigs kTileConfigs;

// The calling thread's tile registers, from here to the end of the scope, for blocks of some rows.
struct TileScope {
  explicit TileScope(int64_t rows = kBlock) { _tile_loadconfig(&kTileConfigs.of[rows]); }
  ~TileScope() { _tile_release(); }
};

// The operand that passes by while the other's chunk is used again and again: loaded so that it leaves the first-level
// cache to that.
enum class Streamed : uint8_t { None, A, B };

// A tile store takes 250 ns more where no 512-bit multiplication has run for 0.7 us: the units that it waits for have
// gone to sleep. One beside each step's products, of a zero that nobody reads, keeps them awake.
inline __attribute__((always_inline)) void keep_awake(__m512& zero) {
  asm volatile("vfmadd231ps %0, %0, %0" : "+v"(zero));
}

// sums (four tiles: [row half][column half][16][16]) += or = A B over `steps` steps. kTall, kWide: whether the
// second 16 rows, columns are wanted.
template <int P, bool kTall, bool kWide, Streamed kStreamed, class Ahead>
inline __attribute__((always_inline)) void tile_product(const TileStream& a, const TileStream& b, int64_t step,
                                                        int64_t steps, float* sums, bool first, const Ahead& ahead) {
  if (first) {
    _tile_zero(0);
    if (kWide) _tile_zero(1);
    if (kTall) _tile_zero(2);
    if (kTall && kWide) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    if (kWide) _tile_loadd(1, sums + 256, 64);
    if (kTall) _tile_loadd(2, sums + 512, 64);
    if (kTall && kWide) _tile_loadd(3, sums + 768, 64);
  }
#define FASTNN_LOAD(tile, wanted, operand, data)            \
  if constexpr (wanted && kStreamed == Streamed::operand) { \
    _tile_stream_loadd(tile, data, row);                    \
  } else if constexpr (wanted) {                            \
    _tile_loadd(tile, data, row);                           \
  }
#define FASTNN_LOAD_TWO(tile, next, both, operand, stream, data) \
  {                                                              \
    const int64_t row = stream.row;                              \
    const char* part = data;                                     \
    FASTNN_LOAD(tile, true, operand, part)                       \
    FASTNN_LOAD(next, both, operand, part + stream.second)       \
  }
#define FASTNN_LOAD_A(p) FASTNN_LOAD_TWO(4, 5, kTall, A, a, pa + (p) * a.part)
#define FASTNN_LOAD_B(p) FASTNN_LOAD_TWO(6, 7, kWide, B, b, pb + (p) * b.part)
#define FASTNN_PRODUCT                         \
  _tile_dpbf16ps(0, 4, 6);                     \
  if (kWide) _tile_dpbf16ps(1, 4, 7);          \
  if (kTall) _tile_dpbf16ps(2, 5, 6);          \
  if (kTall && kWide) _tile_dpbf16ps(3, 5, 7); \
  keep_awake(zero)
  __m512 zero = _mm512_setzero_ps();
  for (int64_t s = step; s < step + steps; ++s) {
    const char *pa = a.base + a.steps[s], *pb = b.base + b.steps[s];
    ahead(s - step, steps);
    // From one product of parts to the next only one operand changes, and small products come first.
    if constexpr (P == 3) {
      FASTNN_LOAD_A(2)
      FASTNN_LOAD_B(0)
      FASTNN_PRODUCT;
      FASTNN_LOAD_A(1)
      FASTNN_PRODUCT;
      FASTNN_LOAD_B(1)
      FASTNN_PRODUCT;
      FASTNN_LOAD_A(0)
      FASTNN_PRODUCT;
      FASTNN_LOAD_B(2)
      FASTNN_PRODUCT;
      FASTNN_LOAD_B(0)
      FASTNN_PRODUCT;
    } else if constexpr (P == 2) {
      FASTNN_LOAD_A(1)
      FASTNN_LOAD_B(0)
      FASTNN_PRODUCT;
      FASTNN_LOAD_A(0)
      FASTNN_PRODUCT;
      FASTNN_LOAD_B(1)
      FASTNN_PRODUCT;
    } else {
      FASTNN_LOAD_A(0)
      FASTNN_LOAD_B(0)
      FASTNN_PRODUCT;
    }
  }
#undef FASTNN_LOAD
#undef FASTNN_LOAD_TWO
#undef FASTNN_LOAD_A
#undef FASTNN_LOAD_B
#undef FASTNN_PRODUCT
  _tile_stored(0, sums, 64);
  if (kWide) _tile_stored(1, sums + 256, 64);
  if (kTall) _tile_stored(2, sums + 512, 64);
  if (kTall && kWide) _tile_stored(3, sums + 768, 64);
}

template <int P, Streamed kStreamed = Streamed::None, class Ahead = NothingBeside>
__attribute__((noinline)) void tile_block(const TileStream& a, const TileStream& b, int64_t step, int64_t steps,
                                          bool tall, bool wide, float* sums, bool first, const Ahead& ahead = {}) {
  if (tall && wide) return tile_product<P, true, true, kStreamed>(a, b, step, steps, sums, first, ahead);
  if (tall) return tile_product<P, true, false, kStreamed>(a, b, step, steps, sums, first, ahead);
  if (wide) return tile_product<P, false, true, kStreamed>(a, b, step, steps, sums, first, ahead);
  tile_product<P, false, false, kStreamed>(a, b, step, steps, sums, first, ahead);
}

// Row r of a block of sums: columns 0..15 and 16..31.
inline float* block_row(float* sums, int64_t r) { return sums + r / 16 * 512 + r % 16 * 16; }

}  // namespace
}  // namespace fastnn
