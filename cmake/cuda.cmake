# The CUDA kernels: FASTNN_CUDA=AUTO builds them where a working nvcc is found, ON requires one. EMULATED
# compiles them with the C++ compiler, to run on the CPU in tests (tests/emulation): it needs no nvcc and no GPU.
#
# Sets FASTNN_WITH_CUDA, cuda_objects and cuda_runtime. Adds one OBJECT library per group of architectures, so that
# flags are never set per file: cuda_base holds the kernels of every GPU, as machine code for compute capability 8.0 and
# as PTX, from which the driver compiles for later ones; cuda_sm90 holds *_sm90.cu, for 9.0a alone.

set(FASTNN_CUDA AUTO CACHE STRING "CUDA kernels: AUTO, ON, OFF or EMULATED")
set(FASTNN_WITH_CUDA OFF)

if(NOT FASTNN_CUDA MATCHES "^(AUTO|ON|OFF|EMULATED)$")
  message(FATAL_ERROR "FASTNN_CUDA: expected AUTO, ON, OFF or EMULATED, got '${FASTNN_CUDA}'")
endif()
if(FASTNN_CUDA STREQUAL "OFF")
  message(STATUS "CUDA: off (FASTNN_CUDA=OFF)")
  return()
endif()

if(FASTNN_CUDA STREQUAL "EMULATED")
  include(${PROJECT_SOURCE_DIR}/tests/emulation/emulation.cmake)
  return()
endif()

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE) # look again: nvcc may have come or been repaired since
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80)
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(FASTNN_CUDA STREQUAL "ON")
    message(
      FATAL_ERROR
        "FASTNN_CUDA=ON, but no working nvcc was found. Put nvcc on PATH or set CUDACXX to it; when it is there, "
        "'nvcc -c' of an empty .cu file shows what is wrong (often a host compiler that is too new).")
  endif()
  message(STATUS "CUDA: off (no working nvcc; FASTNN_CUDA=ON makes that an error)")
  return()
endif()

enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(FASTNN_WITH_CUDA ON)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
message(STATUS "CUDA: on (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES})")

# nvcc takes about 1 GB a file: no more at once than half of the memory holds, however many cores there are.
cmake_host_system_information(RESULT megabytes QUERY TOTAL_PHYSICAL_MEMORY)
math(EXPR nvcc_at_once "${megabytes} / 2048 + 1")
set_property(GLOBAL APPEND PROPERTY JOB_POOLS cuda=${nvcc_at_once})

# One group of kernels: the sources and the architectures that they are compiled for. What ptxas says of registers and
# spills is kept beside each object, where cmake/check_cuda.py reads it.
function(add_cuda_group name architectures)
  add_library(${name} OBJECT ${ARGN})
  set_target_properties(
    ${name}
    PROPERTIES CUDA_ARCHITECTURES "${architectures}"
               JOB_POOL_COMPILE cuda
               RULE_LAUNCH_COMPILE "\"${Python_EXECUTABLE}\" \"${PROJECT_SOURCE_DIR}/cmake/keep_output.py\" <OBJECT>.ptxas")
  target_link_libraries(${name} PRIVATE fastnn_flags)
  target_compile_definitions(${name} PRIVATE FASTNN_WITH_CUDA)
  target_compile_options(
    ${name}
    PRIVATE --expt-relaxed-constexpr # constexpr helpers of headers run on the device too
            -Werror cross-execution-space-call,all-warnings
            -diag-suppress 177 # a kernel's registration is read by the linker only
            -Xptxas=-v # kept, see above
            -Xcompiler=-Wall,-Wextra)
endfunction()

file(GLOB_RECURSE cuda_base_sources CONFIGURE_DEPENDS *.cu)
file(GLOB_RECURSE cuda_sm90_sources CONFIGURE_DEPENDS *_sm90.cu)
list(REMOVE_ITEM cuda_base_sources ${cuda_sm90_sources})
add_cuda_group(cuda_base "${CMAKE_CUDA_ARCHITECTURES}" ${cuda_base_sources})
set(cuda_objects $<TARGET_OBJECTS:cuda_base>)
if(cuda_sm90_sources)
  add_cuda_group(cuda_sm90 90a-real ${cuda_sm90_sources})
  list(APPEND cuda_objects $<TARGET_OBJECTS:cuda_sm90>)
endif()
set(cuda_runtime CUDA::cudart_static)
