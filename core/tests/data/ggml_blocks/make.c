// Makes blocks.bin from llama.cpp's own reference quantisers:
//
//   cc -O2 -I $LLAMA/ggml/include -I $LLAMA/ggml/src make.c $LLAMA/build/ggml/src/libggml-base.a -fopenmp -lm -lstdc++ -o make && ./make > blocks.bin
//
// Layout, little-endian: u32 n; n f32 weights; then per type: u32 ggml number, u32 size, size bytes of blocks,
// u64 FNV-1a of the dequantised f32 values' bytes.
#include "ggml-quants.h"
#include "ggml.h"
#include <math.h>
#include <stdint.h>
#include <stdio.h>

enum { N = 768 };

static uint64_t fnv(const void *data, size_t size) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
    return hash;
}

int main(void) {
    static float x[N], y[N];
    static uint8_t blocks[N * 4];
    uint64_t state = 1;
    for (int i = 0; i < N; i++) {
        float sum = 0;
        for (int j = 0; j < 4; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += (float)(state >> 40) / (1 << 24) - 0.5f;
        }
        // Weight-like spread whose scale varies by block; one zero, one constant and one positive group; outliers.
        x[i] = sum * 0.05f * (1 + (i / 48) % 7);
        if (i / 32 == 9) x[i] = 0;
        if (i / 32 == 10) x[i] = 0.25f;
        if (i / 32 == 11) x[i] = fabsf(x[i]) + 0.1f;
        if (i % 97 == 0) x[i] *= 9;
    }
    uint32_t n = N;
    fwrite(&n, 4, 1, stdout);
    fwrite(x, 4, N, stdout);
#define TYPE(NAME, name)                                             \
    {                                                                \
        uint32_t head[2] = {GGML_TYPE_##NAME, (uint32_t)ggml_row_size(GGML_TYPE_##NAME, N)}; \
        quantize_row_##name##_ref(x, (void *)blocks, N);             \
        TAIL(dequantize_row_##name((void *)blocks, y, N))            \
    }
#define TAIL(DEQUANTIZE)                   \
    DEQUANTIZE;                            \
    fwrite(head, 4, 2, stdout);            \
    fwrite(blocks, 1, head[1], stdout);    \
    uint64_t hash = fnv(y, sizeof y);      \
    fwrite(&hash, 8, 1, stdout);
    TYPE(Q4_0, q4_0) TYPE(Q4_1, q4_1) TYPE(Q5_0, q5_0) TYPE(Q5_1, q5_1) TYPE(Q8_0, q8_0)
    TYPE(Q2_K, q2_K) TYPE(Q3_K, q3_K) TYPE(Q4_K, q4_K) TYPE(Q5_K, q5_K) TYPE(Q6_K, q6_K) TYPE(Q8_K, q8_K)
    {
        // ggml has no dequantize_row_q8_1: the blocks are those of Q8_0 with sums.
        uint32_t head[2] = {GGML_TYPE_Q8_1, (uint32_t)ggml_row_size(GGML_TYPE_Q8_1, N)};
        quantize_row_q8_1_ref(x, (void *)blocks, N);
        TAIL(for (int i = 0; i < N; i++) y[i] = ggml_fp16_to_fp32(*(ggml_fp16_t *)(blocks + i / 32 * 36)) *
                                                ((int8_t *)blocks)[i / 32 * 36 + 4 + i % 32])
    }
    {
        uint32_t head[2] = {GGML_TYPE_F16, 2 * N};
        ggml_fp32_to_fp16_row(x, (void *)blocks, N);
        TAIL(ggml_fp16_to_fp32_row((void *)blocks, y, N))
    }
    {
        uint32_t head[2] = {GGML_TYPE_BF16, 2 * N};
        ggml_fp32_to_bf16_row_ref(x, (void *)blocks, N);
        TAIL(ggml_bf16_to_fp32_row((void *)blocks, y, N))
    }
    return 0;
}
