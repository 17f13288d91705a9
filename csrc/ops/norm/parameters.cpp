#include "ops/norm/parameters.h"

#include "ops/copy/copy.h"
#include "ops/copy/view.h"

namespace fastnn {

void check_parameter_type(const char* op, const char* name, const Tensor& x, const Tensor& values) {
  if (!values.defined()) return;
  check_same_device(op, x, values);
  check<TypeError>(values.dtype() == x.dtype() || values.dtype() == compute_dtype(x.dtype()), op, ": ", name,
                   " of type ", values.dtype(), " does not go with an input of type ", x.dtype());
}

Tensor in_compute_type(const Tensor& values, DType dtype) {
  return values.defined() ? contiguous(to(detach(values), compute_dtype(dtype))) : values;
}

void* raw_or_null(const Tensor& values) { return values.defined() ? values.raw() : nullptr; }

DType gradient_dtype(const Tensor& parameter, const Tensor& x) {
  return parameter.defined() ? parameter.dtype() : x.dtype();
}

}  // namespace fastnn
