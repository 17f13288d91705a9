// The engine on AMX tiles, for float32, bfloat16 and float16: called by gemm() of the level avx512 when the
// machine has them.
#pragma once

#include "gemm/gemm.h"

namespace fastnn {

// How many bfloat16 parts a float32 matrix product is made of: set by the user (matmul.h).
extern int float32_parts;

// Up to here columns of C are few: the engine without tiles makes C^T where that has B's rows contiguous.
constexpr int64_t kFewColumns = 24;

// From here on rows of A are many. Of fewer, two threads share the columns of B, if there are enough to share.
constexpr int64_t kManyRows = 256, kSharedColumns = 256;

namespace amx {
// Whether the shape is worth tiles.
bool gemm_suits(const GemmArgs& args);
// One item of the batch.
void gemm(const GemmArgs& args, const GemmItem& item);
// The same for a product of which one operand stays in cache (skinny_amx.cpp).
bool gemm_skinny_suits(const GemmArgs& args);
void gemm_skinny(const GemmArgs& args, const GemmItem& item);
}  // namespace amx

namespace avx512 {
// The engine without tiles: for slabs of operands whose parts would not be exact.
void gemm_vectors(const GemmArgs& args, const GemmItem& item);
}  // namespace avx512

}  // namespace fastnn
