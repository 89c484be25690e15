/* The kernel under AddressSanitizer and UBSan: every array is exactly as long as it must be, on the
   heap, so that one read or write beyond it is reported. tests/nf4/test_kernel.py runs this. */
#include "../../minilora/nf4/kernel.c"
#include <stdio.h>
#include <stdlib.h>

static void *filled(size_t bytes) {
    uint8_t *array = malloc(bytes);
    for (size_t i = 0; i < bytes; i++) array[i] = (uint8_t)rand();
    return array;
}

static float *numbers(size_t n) {
    float *array = malloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) array[i] = (float)(rand() % 1000) / 500 - 1;
    return array;
}

/* One weight of `rows` x `in`, at all variants: all of it, a piece of it, and a product. */
static void run_one(size_t features, size_t in, size_t shift, int nested, size_t rows) {
    size_t n = features * in, blocks = ((n - 1) >> shift) + 1;
    size_t start = (size_t)rand() % n, count = 1 + (size_t)rand() % (n - start);
    uint8_t *packed = filled((n + 1) / 2), *codes = filled(blocks);
    float *levels = numbers(16), *map = numbers(256), *absmax2 = numbers((blocks + 255) / 256);
    float *scales = numbers(blocks), *offset = numbers(1), *x = numbers(rows * in);
    float *bias = numbers(features), *expected = malloc(rows * features * sizeof(float));
    for (int variant = 0; variant <= nf4_best(); variant++) {
        float *floats = malloc(n * sizeof(float)), *piece = malloc(count * sizeof(float));
        uint16_t *halves = malloc(n * sizeof(uint16_t)), *part = malloc(count * sizeof(uint16_t));
        float *y = malloc(rows * features * sizeof(float));
        Job job = {0};
        job.packed = packed, job.levels = levels, job.shift = shift;
        job.absmax = nested ? (void *)codes : (void *)scales;
        if (nested) job.map = map, job.absmax2 = absmax2, job.offset = offset;
        job.count = n, job.floats = floats, nf4_run(&job, variant, NULL, 1);
        job.floats = NULL, job.halves = halves, nf4_run(&job, variant, NULL, 1);
        job.start = start, job.count = count, job.halves = part, nf4_run(&job, variant, NULL, 1);
        job.floats = piece, job.halves = NULL, nf4_run(&job, variant, NULL, 1);
        if (memcmp(piece, floats + start, count * sizeof(float)) ||
            memcmp(part, halves + start, count * sizeof(uint16_t)))
            exit(2);
        job.x = x, job.y = y, job.bias = bias;
        job.rows = rows, job.in = in, job.features = features, nf4_run(&job, variant, NULL, 1);
        for (size_t i = 0; i < rows * features; i++) {
            float away = variant ? y[i] - expected[i] : 0;
            if (!variant) expected[i] = y[i];
            if (away > 1e-3f || away < -1e-3f) exit(3);
        }
        free(floats), free(piece), free(halves), free(part), free(y);
    }
    free(packed), free(codes), free(levels), free(map), free(absmax2), free(scales), free(offset);
    free(x), free(bias), free(expected);
}

int main(void) {
    srand(0);
    for (int k = 0; k < 400; k++)
        run_one(1 + rand() % 9, 1 + rand() % 300, 5 + rand() % 8, rand() % 2, 1 + rand() % 16);
    run_one(64, 1024, 6, 1, 1);
    run_one(1031, 1033, 6, 1, 1); /* more than 4 MB of floats: written past the caches */
    printf("%d variants\n", nf4_best() + 1);
    return 0;
}
