// Exchange with other libraries beyond what tensor_object.h declares: DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include "core/tensor.h"

namespace fastnn::python {

// A capsule named "dltensor_versioned" when the consumer knows DLPack 1.0, else "dltensor".
pybind11::object to_dlpack(const Tensor& x, pybind11::object max_version, pybind11::object dl_device,
                           pybind11::object copy);
// From an object with __dlpack__, or a capsule. Shares memory and keeps the read-only flag.
Tensor from_dlpack(pybind11::object source);

}  // namespace fastnn::python
