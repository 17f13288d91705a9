// A Python number, and an operand that is either a tensor or such a number.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace fastnn {

struct Scalar {
  enum class Kind : uint8_t { Bool, Int, Float };

  Scalar(bool value) : kind(Kind::Bool), integer(value) {}
  Scalar(int value) : kind(Kind::Int), integer(value) {}
  Scalar(int64_t value) : kind(Kind::Int), integer(value) {}
  Scalar(double value) : kind(Kind::Float), real(value) {}

  double to_double() const { return kind == Kind::Float ? real : double(integer); }
  int64_t to_int() const { return kind == Kind::Float ? int64_t(real) : integer; }
  bool to_bool() const { return kind == Kind::Float ? real != 0 : integer != 0; }
  DType dtype() const { return kind == Kind::Bool ? DType::Bool : kind == Kind::Int ? DType::Int64 : DType::Float32; }

  Kind kind;
  union {
    int64_t integer;
    double real;
  };
};

// A non-owning argument: `add(x, 1.0)`, `add(x, y)`.
struct Operand {
  Operand(const Tensor& x) : tensor(&x), scalar(int64_t(0)) {}
  Operand(Scalar s) : tensor(nullptr), scalar(s) {}
  Operand(double value) : tensor(nullptr), scalar(value) {}
  Operand(int value) : tensor(nullptr), scalar(value) {}
  bool is_tensor() const { return tensor != nullptr; }

  const Tensor* tensor;
  Scalar scalar;
};

// PyTorch's rule: tensors with dimensions decide; a 0-d tensor counts only when its category (bool,
// integer, float) is higher, and a Python number only when its is higher still.
DType result_type(const Operand& a, const Operand& b);

}  // namespace fastnn
