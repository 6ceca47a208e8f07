// The arithmetic, written once for CPUs and CUDA: what happens to one (row, column) of each kernel.
//
// An element guards its own memory accesses and touches no other element's result, so rows and columns may be visited
// in any order or at once. Knows nothing of loops, launches or argument checks.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "videomar_kernels.h"

#ifdef __CUDACC__
#define VM_BOTH __host__ __device__ inline
#else
#define VM_BOTH inline
#endif

namespace vm {

// IEEE half -> float, exact; written out because neither compiler's own half type exists in the other.
VM_BOTH float half_to_float(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, mantissa = half & 1023u;
    if (exponent == 0) {  // by a product, not by bits: right also where the process flushes subnormals to zero
        const float value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | mantissa << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

VM_BOTH float read(const void* values, int32_t dtype, int64_t at) {
    return dtype == VM_FLOAT16 ? half_to_float(((const uint16_t*)values)[at]) : ((const float*)values)[at];
}

struct GuidedStep {
    const void* output;
    int32_t dtype;
    int64_t branches, n, channels;
    const float *x, *coefficients, *draw, *scale;
    float* next;

    VM_BOTH void operator()(int64_t row, int64_t column) const {
        const float a = coefficients[0], b = coefficients[1], p = coefficients[2], q = coefficients[3];
        const float low = coefficients[4], high = coefficients[5];
        const int64_t at = row * channels + column, in = row * 2 * channels + column;
        float noise = read(output, dtype, in);
        if (branches == 2) {
            const float without = read(output, dtype, n * 2 * channels + in);
            noise = without + scale[0] * (noise - without);
        }
        const float share = (read(output, dtype, in + channels) + 1.0f) / 2.0f;
        const float start = a * x[at] - b * noise;
        const float deviation = expf(0.5f * (share * high + (1.0f - share) * low));
        next[at] = p * start + q * x[at] + deviation * draw[at];
    }
};

struct ScatterTokens {
    const float* sampled;
    const int64_t* positions;
    int64_t channels, size;
    float clip;
    float* tokens;
    uint8_t* masked;

    VM_BOTH void operator()(int64_t row, int64_t column) const {
        const int64_t position = positions[row];
        if (position < 0 || position >= size) return;
        const float value = sampled[row * channels + column];
        // Comparisons that a NaN fails: it goes through, as with numpy and PyTorch.
        tokens[position * channels + column] = value < -clip ? -clip : value > clip ? clip : value;
        if (column == 0) masked[position] = 0;
    }
};

struct GatherRows {
    const void* table;
    int32_t dtype;
    const int64_t* positions;
    int64_t size, width;
    void* rows;

    VM_BOTH void operator()(int64_t row, int64_t column) const {
        const int64_t position = positions[row], from = position * width + column, to = row * width + column;
        const bool inside = position >= 0 && position < size;
        if (dtype == VM_FLOAT16) {
            ((uint16_t*)rows)[to] = inside ? ((const uint16_t*)table)[from] : 0x7e00u;
        } else {  // as bits: some processors rewrite a NaN that passes as a float
            ((uint32_t*)rows)[to] = inside ? ((const uint32_t*)table)[from] : 0x7fc00000u;
        }
    }
};

struct PixelsToFrame {
    const void* pixels;
    int32_t dtype;
    int64_t start, stride_channel, stride_row, stride_column, width;
    uint8_t* rgb;

    VM_BOTH void operator()(int64_t row, int64_t column) const {
        const int64_t from = start + row * stride_row + column * stride_column;
        for (int channel = 0; channel < 3; ++channel) {
            const float level = (read(pixels, dtype, from + channel * stride_channel) + 1.0f) * 127.5f + 0.5f;
            // The conversion truncates, which is floor from 0 on; !(level >= 0) takes the NaN too.
            rgb[(row * width + column) * 3 + channel] = !(level >= 0.0f) ? 0 : level >= 255.0f ? 255 : (uint8_t)level;
        }
    }
};

}  // namespace vm
