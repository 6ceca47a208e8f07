/* C interface of VideoMAR's small kernels; libvideomar_kernels.so (CPU) and libvideomar_kernels_cuda.so both export it.
 *
 * Every function returns a VM_ status at once, allocates nothing and throws nothing. `stream` is a cudaStream_t; the
 * CUDA library takes device pointers throughout (scalars behind pointers too), launches on that stream, on the calling
 * thread's current device, and never synchronises: its calls can be captured into a CUDA graph. The CPU library ignores
 * `stream`. Arrays are dense and row-major unless strides say otherwise; they must not overlap unless a function allows
 * it. A size of 0 is no work and VM_OK. The interface knows nothing of masks' order, prompts, schedules or files.
 *
 * Raise VM_ABI_VERSION, and binding.py's, whenever a signature or a meaning changes.
 */
#ifndef VIDEOMAR_KERNELS_H
#define VIDEOMAR_KERNELS_H

#include <stdint.h>

#define VM_ABI_VERSION 1

#define VM_OK 0
#define VM_BAD_ARGUMENT 1  /* a null pointer, a negative size, an unknown dtype: nothing was written */
#define VM_BAD_POSITION 2  /* a position or frame out of range: nothing was written */
#define VM_LAUNCH_FAILED 3 /* CUDA refused the launch */

#define VM_FLOAT32 0
#define VM_FLOAT16 1

#define VM_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

VM_API int vm_abi_version(void);

/* "cpu ..." or "cuda ...", with the compiler and the architectures. */
VM_API const char* vm_build_info(void);

/* Guidance and one ancestral diffusion step, in FP32 (Nichol and Dhariwal 2021, eq. 15).
 *
 * output: [branches, n, 2 * channels] of dtype, noise then variance; branch 0 is the text, the last one `fake_latent`.
 * x, draw, next: [n, channels]; next may be x. coefficients: [6], a b p q low high. scale: [1], the guidance scale; a
 * pointer because it changes at every mask step, and a captured graph keeps its arguments but not what they point to.
 *
 * noise = output[last] + scale * (output[0] - output[last]);  start = a * x - b * noise;  share = (variance + 1) / 2
 * next = p * start + q * x + exp(0.5 * (share * high + (1 - share) * low)) * draw
 */
VM_API int vm_guided_step(const void* output, int32_t dtype, int64_t branches, int64_t n, int64_t channels,
                          const float* x, const float* coefficients, const float* draw, const float* scale,
                          float* next, void* stream);

/* tokens[positions[i]] = sampled[i] clipped to [-clip, clip]; masked[positions[i]] = 0. clip = INFINITY clips nothing.
 *
 * sampled: [n, channels]; positions: [n], distinct (if not: on a CPU the last one wins, with CUDA any);
 * tokens: [size, channels]; masked: [size]. A position outside [0, size): VM_BAD_POSITION and nothing written; with
 * CUDA, where the host cannot look without waiting, that row is skipped.
 */
VM_API int vm_scatter_tokens(const float* sampled, const int64_t* positions, int64_t n, int64_t channels, int64_t size,
                             float clip, float* tokens, uint8_t* masked, void* stream);

/* rows[i] = table[positions[i]]. table: [size, width], rows: [n, width], both of dtype; positions: [n], any order.
 *
 * A position outside [0, size): VM_BAD_POSITION and nothing written; with CUDA that row becomes NaN.
 */
VM_API int vm_gather_rows(const void* table, int32_t dtype, const int64_t* positions, int64_t n, int64_t size,
                          int64_t width, void* rows, void* stream);

/* One frame of pixels in [-1, 1] as 8-bit RGB: floor((x + 1) * 127.5 + 0.5), clipped to 0..255, in FP32; NaN is 0.
 *
 * pixels: element [c, f, y, x] of [3, frames, height, width] lies at c * stride_channel + f * stride_frame +
 * y * stride_row + x * stride_column elements of dtype, strides of any sign; a single picture has frames = 1.
 * frame: which f, otherwise VM_BAD_POSITION. rgb: [height, width, 3].
 */
VM_API int vm_pixels_to_frame(const void* pixels, int32_t dtype, int64_t frames, int64_t height, int64_t width,
                              int64_t stride_channel, int64_t stride_frame, int64_t stride_row, int64_t stride_column,
                              int64_t frame, uint8_t* rgb, void* stream);

#ifdef __cplusplus
}
#endif
#endif
