// fastnn._C: the extension module.
#include "core/kernel.h"
#include "python/bindings.h"

namespace py = pybind11;
using namespace fastnn::python;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Tensors, operations and autograd of fastnn.";
  define_errors(m);
  // Here rather than on first use: an unknown FASTNN_CPU is an error of the import.
  try {
    fastnn::load_kernels();
  } catch (const fastnn::Error&) {
    set_python_error();
    throw py::error_already_set();
  }
  define_dtypes(m);
  define_memory_formats(m);
  define_tensor(m);
  bind_runtime(m);
  bind_cuda(m);
  bind_tensors(m);
  bind_ops(m);
  bind_nn_ops(m);
  bind_autograd(m);
}
