// Exchange with other libraries beyond what tensor_object.h declares: DLPack, __cuda_array_interface__.
#pragma once

#include <pybind11/pybind11.h>

#include "core/tensor.h"

namespace fastnn::python {

// A capsule named "dltensor_versioned" when the consumer knows DLPack 1.0, else "dltensor". A consumer on a GPU
// names the stream that is to wait for the tensor.
pybind11::object to_dlpack(const Tensor& x, pybind11::object stream, pybind11::object max_version,
                           pybind11::object dl_device, pybind11::object copy);
// From an object with __dlpack__, or a capsule. Shares memory and keeps the read-only flag. The current stream of a
// GPU waits for the producer's.
Tensor from_dlpack(pybind11::object source);

// cuda_array.cpp: arrays of CuPy and Numba. Shares memory, in the same order of streams.
bool has_cuda_array_interface(PyObject* object);
Tensor tensor_from_cuda_array(PyObject* array);

// The type names of numpy, which the interfaces share: a kind ('b', 'u', 'i', 'f') and a number of bytes.
bool dtype_of_kind(char kind, int64_t bytes, DType& dtype);  // false for types that fastnn lacks
char kind_of(DType dtype);
void release_python_owner(void* owner);  // gives back a reference, on any thread

}  // namespace fastnn::python
