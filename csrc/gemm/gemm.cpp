#include "gemm/gemm.h"

#include <cstring>

#include "gemm/gemm_amx.h"

namespace fastnn {

Kernel<GemmPack> gemm_pack{"gemm_pack", Subnormals::Flush};

int float32_parts = 3;

namespace {
constexpr const char* kPrecisions[] = {"medium", "high", "highest"};  // of one, two, three parts
constexpr const char* kActivations[] = {"", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"};
}  // namespace

void set_float32_matmul_precision(const char* precision) {
  for (int parts = 1; parts <= 3; ++parts)
    if (std::strcmp(precision, kPrecisions[parts - 1]) == 0) {
      float32_parts = parts;
      return;
    }
  fail("set_float32_matmul_precision: expected 'highest', 'high' or 'medium', got '", precision, "'");
}

const char* float32_matmul_precision() { return kPrecisions[float32_parts - 1]; }

Activation parse_activation(const char* op, const char* name) {
  for (int i = 0; i <= int(Activation::Tanh); ++i)
    if (std::strcmp(name, kActivations[i]) == 0) return Activation(i);
  fail(op, ": expected activation to be 'relu', 'gelu', 'gelu_tanh', 'silu', 'sigmoid', 'tanh' or None, got '", name,
       "'");
}

}  // namespace fastnn
