// The exported functions: argument checks, then one element over all rows and columns.
//
// Included once by each library, after it has defined
//   int vm::launch(rows, columns, element, stream)    visit every (row, column); a VM_ status
//   bool vm::inside(positions, n, size)               whether all positions can be seen to lie in [0, size)
// Knows nothing of where the memory is.
#pragma once

#include "elements.h"

#ifndef VM_BUILD_INFO
#define VM_BUILD_INFO "cpu, built without CMake"
#endif

namespace vm {

inline bool is_dtype(int32_t dtype) { return dtype == VM_FLOAT32 || dtype == VM_FLOAT16; }

}  // namespace vm

extern "C" {

int vm_abi_version(void) { return VM_ABI_VERSION; }

const char* vm_build_info(void) { return VM_BUILD_INFO; }

int vm_guided_step(const void* output, int32_t dtype, int64_t branches, int64_t n, int64_t channels, const float* x,
                   const float* coefficients, const float* draw, const float* scale, float* next, void* stream) {
    if (!vm::is_dtype(dtype) || branches < 1 || branches > 2 || n < 0 || channels < 0) return VM_BAD_ARGUMENT;
    if (n == 0 || channels == 0) return VM_OK;
    if (!output || !x || !coefficients || !draw || !scale || !next) return VM_BAD_ARGUMENT;
    return vm::launch(n, channels,
                      vm::GuidedStep{output, dtype, branches, n, channels, x, coefficients, draw, scale, next}, stream);
}

int vm_scatter_tokens(const float* sampled, const int64_t* positions, int64_t n, int64_t channels, int64_t size,
                      float clip, float* tokens, uint8_t* masked, void* stream) {
    // Without channels no element would be visited to clear the mask, and a NaN bound would clip nothing.
    if (n < 0 || channels < 1 || size < 0 || !(clip >= 0.0f)) return VM_BAD_ARGUMENT;
    if (n == 0) return VM_OK;
    if (!sampled || !positions || !tokens || !masked) return VM_BAD_ARGUMENT;
    if (!vm::inside(positions, n, size)) return VM_BAD_POSITION;
    return vm::launch(n, channels, vm::ScatterTokens{sampled, positions, channels, size, clip, tokens, masked}, stream);
}

int vm_gather_rows(const void* table, int32_t dtype, const int64_t* positions, int64_t n, int64_t size, int64_t width,
                   void* rows, void* stream) {
    if (!vm::is_dtype(dtype) || n < 0 || size < 0 || width < 0) return VM_BAD_ARGUMENT;
    if (n == 0 || width == 0) return VM_OK;
    if (!table || !positions || !rows) return VM_BAD_ARGUMENT;
    if (!vm::inside(positions, n, size)) return VM_BAD_POSITION;
    return vm::launch(n, width, vm::GatherRows{table, dtype, positions, size, width, rows}, stream);
}

int vm_pixels_to_frame(const void* pixels, int32_t dtype, int64_t frames, int64_t height, int64_t width,
                       int64_t stride_channel, int64_t stride_frame, int64_t stride_row, int64_t stride_column,
                       int64_t frame, uint8_t* rgb, void* stream) {
    if (!vm::is_dtype(dtype) || frames < 0 || height < 0 || width < 0) return VM_BAD_ARGUMENT;
    if (frame < 0 || frame >= frames) return VM_BAD_POSITION;
    if (height == 0 || width == 0) return VM_OK;
    if (!pixels || !rgb) return VM_BAD_ARGUMENT;
    return vm::launch(height, width,
                      vm::PixelsToFrame{pixels, dtype, frame * stride_frame, stride_channel, stride_row, stride_column,
                                        width, rgb},
                      stream);
}

}  // extern "C"
