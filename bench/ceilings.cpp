// What this machine can do at most: multiply-adds, matrix tiles, bytes moved, threads started.
//
// Compiled by bench/ceilings.py with -O3 -march=native -fopenmp and called by ctypes. Each function runs
// its loop once on `threads` threads and returns seconds; the caller repeats, takes the best, and divides.
// flops_fma    independent chains of vector multiply-adds in registers: 2 flops a lane
// flops_amx    bfloat16 tile products: 16 x 16 x 32 x 2 flops each (x86-64 with AMX only)
// copy, triad  b = a and c = a + s b over arrays cut evenly between the threads
// fork_join    empty parallel regions
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;
typedef float Vector __attribute__((vector_size(kVectorBytes)));

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Latency 4 times 2 units, and a little more; written out, so that each chain stays in its register.
#define EACH_CHAIN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)
constexpr int kChains = 10;

float fma_chains(int64_t rounds) {
  Vector a = {}, b = {};
  for (int i = 0; i < kLanes; ++i) a[i] = 0.999999f, b[i] = 1e-7f;
#define START(i) Vector chain##i = b + i * 0.01f;
  EACH_CHAIN(START)
  for (int64_t r = 0; r < rounds; ++r) {
#define STEP(i) chain##i = chain##i * a + b;
    EACH_CHAIN(STEP)
  }
#define SUM(i) +chain##i
  const Vector sum = EACH_CHAIN(SUM);
  return sum[0];
}

}  // namespace

extern "C" {

int vector_lanes() { return kLanes; }
int max_threads() { return omp_get_num_procs(); }

double flops_fma(int threads, int64_t rounds, double* flops) {
  volatile float sink = 0;
  const double start = now();
#pragma omp parallel num_threads(threads)
  {
    const float value = fma_chains(rounds);
#pragma omp critical
    sink = sink + value;
  }
  const double seconds = now() - start;
  *flops = 2.0 * kLanes * kChains * rounds * threads;
  return seconds;
}

// 1 when the CPU has AMX bfloat16 and the kernel grants its registers.
int amx_available() {
#if defined(__AMX_BF16__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return 0;
#endif
}

double flops_amx(int threads, int64_t rounds, double* flops) {
#if defined(__AMX_BF16__)
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  const double start = now();
#pragma omp parallel num_threads(threads)
  {
    alignas(64) uint16_t zeros[512] = {};
    _tile_loadconfig(&config);
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    _tile_loadd(6, zeros, 64);
    _tile_loadd(7, zeros, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t r = 0; r < rounds; ++r) {  // a 2 x 2 block of result tiles, as a matrix kernel holds it
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
  }
  const double seconds = now() - start;
  *flops = 4.0 * 2 * 16 * 16 * 32 * rounds * threads;
  return seconds;
#else
  (void)threads, (void)rounds;
  *flops = 0;
  return 0;
#endif
}

// Arrays of n floats in memory that the using thread touched first.
float* make_array(int64_t n, int threads) {
  auto* x = static_cast<float*>(aligned_alloc(64, size_t(n + 16) * 4 / 64 * 64));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < n; ++i) x[i] = float(i & 255);
  return x;
}
void free_array(float* x) { free(x); }

double copy(const float* a, float* b, int64_t n, int threads, int64_t rounds) {
  const double start = now();
  for (int64_t r = 0; r < rounds; ++r) {
#pragma omp parallel num_threads(threads)
    {
      const int t = omp_get_thread_num();
      const int64_t begin = n * t / threads, end = n * (t + 1) / threads;
      memcpy(b + begin, a + begin, size_t(end - begin) * 4);
    }
  }
  return now() - start;
}

double triad(const float* a, const float* b, float* c, int64_t n, int threads, int64_t rounds) {
  const double start = now();
  for (int64_t r = 0; r < rounds; ++r) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i) c[i] = a[i] + 3.0f * b[i];
  }
  return now() - start;
}

double fork_join(int threads, int64_t rounds) {
  const double start = now();
  for (int64_t r = 0; r < rounds; ++r) {
#pragma omp parallel num_threads(threads)
    asm volatile("");
  }
  return now() - start;
}

}  // extern "C"
