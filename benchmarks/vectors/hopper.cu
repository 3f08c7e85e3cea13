// Conversions and tensor-core products of the GPU, for hopper.py. nvcc -gencode=arch=compute_90a,code=sm_90a -shared -Xcompiler -fPIC
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp6.h>
#include <cuda_fp8.h>

enum Conversion {
    E8M0_UP_SAT, E8M0_UP_NOSAT, E8M0_ZERO_SAT, E8M0_ZERO_NOSAT, E3M2, E2M3, E2M1, E4M3_SAT, E4M3_NOSAT, E5M2_SAT, E5M2_NOSAT
};

template <class T> struct Converter;

#define CONVERTER(TYPE, RAW, NAME)                                                                        \
    template <> struct Converter<TYPE> {                                                                  \
        __device__ static uint8_t run(int kind, RAW x) {                                                  \
            switch (kind) {                                                                               \
            case E8M0_UP_SAT: return __nv_cvt_##NAME##_to_e8m0(x, __NV_SATFINITE, cudaRoundPosInf);       \
            case E8M0_UP_NOSAT: return __nv_cvt_##NAME##_to_e8m0(x, __NV_NOSAT, cudaRoundPosInf);         \
            case E8M0_ZERO_SAT: return __nv_cvt_##NAME##_to_e8m0(x, __NV_SATFINITE, cudaRoundZero);       \
            case E8M0_ZERO_NOSAT: return __nv_cvt_##NAME##_to_e8m0(x, __NV_NOSAT, cudaRoundZero);         \
            case E3M2: return __nv_cvt_##NAME##_to_fp6(x, __NV_E3M2, cudaRoundNearest);                   \
            case E2M3: return __nv_cvt_##NAME##_to_fp6(x, __NV_E2M3, cudaRoundNearest);                   \
            case E2M1: return __nv_cvt_##NAME##_to_fp4(x, __NV_E2M1, cudaRoundNearest);                   \
            case E4M3_SAT: return __nv_cvt_##NAME##_to_fp8(x, __NV_SATFINITE, __NV_E4M3);                 \
            case E4M3_NOSAT: return __nv_cvt_##NAME##_to_fp8(x, __NV_NOSAT, __NV_E4M3);                   \
            case E5M2_SAT: return __nv_cvt_##NAME##_to_fp8(x, __NV_SATFINITE, __NV_E5M2);                 \
            default: return __nv_cvt_##NAME##_to_fp8(x, __NV_NOSAT, __NV_E5M2);                           \
            }                                                                                             \
        }                                                                                                 \
    };

CONVERTER(float, float, float)
CONVERTER(double, double, double)
CONVERTER(__nv_bfloat16, __nv_bfloat16_raw, bfloat16raw)

__global__ void range_f32(int kind, uint32_t first, uint32_t count, uint8_t *out) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = Converter<float>::run(kind, __uint_as_float(first + i));
}

__global__ void array_f64(int kind, const double *x, int count, uint8_t *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = Converter<double>::run(kind, x[i]);
}

__global__ void all_bf16(int kind, uint8_t *out) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    __nv_bfloat16_raw raw;
    raw.x = (unsigned short)i;
    out[i] = Converter<__nv_bfloat16>::run(kind, raw);
}

// d (16, 8) = c + a (16, K) b^T, b (8, K): mma.sync m16n8k32 chained along K. One warp; pairs: 0 e4m3 e4m3, 1 e5m2 e5m2, 2 e4m3 e5m2, 3 e5m2 e4m3.
#define MMA(TA, TB)                                                                                                            \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32." TA "." TB ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                               \
                 : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]))

__global__ void products(int pair, int K, const uint8_t *a, const uint8_t *b, const float *c, float *out) {
    a += (size_t)blockIdx.x * 16 * K;
    b += (size_t)blockIdx.x * 8 * K;
    c += (size_t)blockIdx.x * 128;
    out += (size_t)blockIdx.x * 128;
    int lane = threadIdx.x, group = lane / 4, t = lane % 4;
    float d[4] = {c[group * 8 + 2 * t], c[group * 8 + 2 * t + 1], c[(group + 8) * 8 + 2 * t], c[(group + 8) * 8 + 2 * t + 1]};
    for (int k = 0; k < K; k += 32) {
        const uint32_t ra[4] = {*(const uint32_t *)(a + group * K + k + 4 * t), *(const uint32_t *)(a + (group + 8) * K + k + 4 * t),
                                *(const uint32_t *)(a + group * K + k + 16 + 4 * t), *(const uint32_t *)(a + (group + 8) * K + k + 16 + 4 * t)};
        const uint32_t rb[2] = {*(const uint32_t *)(b + group * K + k + 4 * t), *(const uint32_t *)(b + group * K + k + 16 + 4 * t)};
        switch (pair) {
        case 0: MMA("e4m3", "e4m3"); break;
        case 1: MMA("e5m2", "e5m2"); break;
        case 2: MMA("e4m3", "e5m2"); break;
        default: MMA("e5m2", "e4m3"); break;
        }
    }
    out[group * 8 + 2 * t] = d[0];
    out[group * 8 + 2 * t + 1] = d[1];
    out[(group + 8) * 8 + 2 * t] = d[2];
    out[(group + 8) * 8 + 2 * t + 1] = d[3];
}

extern "C" {
int convert_range(int kind, uint32_t first, uint32_t count, uint8_t *out) {
    range_f32<<<(count + 255) / 256, 256>>>(kind, first, count, out);
    return cudaDeviceSynchronize();
}
int convert_doubles(int kind, const double *x, int count, uint8_t *out) {
    array_f64<<<(count + 255) / 256, 256>>>(kind, x, count, out);
    return cudaDeviceSynchronize();
}
int convert_bf16(int kind, uint8_t *out) {
    all_bf16<<<256, 256>>>(kind, out);
    return cudaDeviceSynchronize();
}
int mma(int pair, int tiles, int K, const uint8_t *a, const uint8_t *b, const float *c, float *out) {
    products<<<tiles, 32>>>(pair, K, a, b, c, out);
    return cudaDeviceSynchronize();
}
}
