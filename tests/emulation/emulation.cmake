# FASTNN_CUDA=EMULATED: every *.cu file compiled by the C++ compiler, for the emulation beside this file.
if(SKBUILD)
  message(FATAL_ERROR "FASTNN_CUDA=EMULATED is for tests: such a module is never packaged (make cuda-emulated)")
endif()
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  message(FATAL_ERROR "FASTNN_CUDA=EMULATED: the emulation switches threads by x86-64 instructions of Linux")
endif()
set(FASTNN_WITH_CUDA ON)
message(STATUS "CUDA: emulated on the CPU, for tests")

add_library(cuda_emulated INTERFACE)
target_include_directories(cuda_emulated INTERFACE ${CMAKE_CURRENT_LIST_DIR} ${PROJECT_SOURCE_DIR}/tests)
target_compile_definitions(cuda_emulated INTERFACE FASTNN_CUDA_EMULATED)

file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS *.cu)
set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX)
add_library(cuda_kernels OBJECT ${cuda_sources})
target_link_libraries(cuda_kernels PRIVATE fastnn_flags cuda_emulated)
target_compile_definitions(cuda_kernels PRIVATE FASTNN_WITH_CUDA)
# Fused multiply-adds as on the GPU; symbols, so that an error names a line of the kernel.
target_compile_options(cuda_kernels PRIVATE -include emulation/device.h -O2 -g1 -march=x86-64-v3 -Wno-unknown-pragmas
                                            -Wno-unused-function -Wno-attributes)

file(GLOB emulation_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cpp)
add_library(cuda_emulation OBJECT ${emulation_sources})
target_link_libraries(cuda_emulation PRIVATE fastnn_flags cuda_emulated)
target_compile_options(cuda_emulation PRIVATE -g1)

set(cuda_objects $<TARGET_OBJECTS:cuda_kernels> $<TARGET_OBJECTS:cuda_emulation>)
set(cuda_runtime cuda_emulated)
