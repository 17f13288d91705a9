#include "core/scalar.h"

namespace fastnn {
namespace {

int category(DType t) { return t == DType::Bool ? 0 : is_floating(t) ? 2 : 1; }

struct Candidate {
  bool present = false;
  DType dtype = DType::Bool;

  void add(DType t) {
    dtype = present ? promote(dtype, t) : t;
    present = true;
  }
  // `weak` matters only where its category is higher.
  Candidate over(const Candidate& weak) const {
    if (!present) return weak;
    if (!weak.present || category(dtype) >= category(weak.dtype)) return *this;
    return {true, promote(dtype, weak.dtype)};
  }
};

}  // namespace

DType result_type(const Operand& a, const Operand& b) {
  Candidate with_dims, zero_dim, number;
  for (const Operand* operand : {&a, &b}) {
    if (!operand->is_tensor())
      number.add(operand->scalar.dtype());
    else
      (operand->tensor->ndim() ? with_dims : zero_dim).add(operand->tensor->dtype());
  }
  return with_dims.over(zero_dim).over(number).dtype;
}

}  // namespace fastnn
