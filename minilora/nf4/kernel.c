/* Four bits to floats, and four bits times a few rows, in one pass over memory.

   weight = level[code] * scale: a look-up among 16 levels, with one scale a block. Written with
   tensors, each step (widen the codes, look up, multiply) goes over memory once more. Here is what
   makes one pass fast.

   The table is scaled, not the weights. A block holds at most 16 different values, so level * scale
   is computed 16 times a block instead of 64, and so is its rounding to bfloat16.

   Memory is the limit. Dequantizing reads half a byte a weight and writes four: it waits for its
   stores. A product with one row reads half a byte and writes nothing where floats read four bytes:
   four bits win once the floats lie outside the nearest cache, although they take more
   instructions. Each further row only adds arithmetic, and a blocked matrix product is better at
   that: FEW_ROWS in kernel.py is where it overtakes.

   Exactness. Values are those of tensor.py to the bit, with every variant and number of threads, if
   this is compiled with -ffp-contract=off (fused, a quantized scale is rounded once, not twice). A
   row of a product has the same bits whatever rows stand beside it. kernel.py checks all sizes
   before a pointer comes here. Nothing here allocates. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#define TAKE(counter, n) __atomic_fetch_add(&(counter), n, __ATOMIC_RELAXED)
#else
#define INLINE static inline
#define TAKE(counter, n) (((counter) += (n)) - (n)) /* no team of threads there */
#endif
#if defined(__GNUC__) && defined(__x86_64__) && !defined(NF4_PLAIN)
#define X86
#endif

enum { STEP = 32, ROWS = 4, SHARE = 1 << 14, ALONE = 1 << 16, LARGE = 1 << 22 };

typedef struct Job { /* kernel.py fills this in, field by field */
    const uint8_t *packed; /* two codes a byte, the even one in the high half */
    const float *levels;   /* 16, by code */
    const void *absmax;    /* a block's scale, float32; where there is a map, its code, uint8 */
    const float *map;      /* 256 scales by code, or NULL; times */
    const float *absmax2;  /* one float32 for 256 blocks, plus */
    const float *offset;   /* one for all */
    size_t shift;          /* a block is 1 << shift weights, 32 at least */
    size_t start, count;   /* dequantize so many, from there on, */
    float *floats;         /* to float32, or, where this is NULL, */
    uint16_t *halves;      /* to bfloat16 */
    const float *x, *bias; /* or multiply: (rows, in); (features,) or NULL */
    float *y;              /* (rows, features); NULL: dequantize */
    size_t rows, in, features;
    size_t next, end, share; /* weights or features that no thread has taken; how many one takes */
} Job;

INLINE float scale_of(const Job *job, size_t i) { /* of weight i */
    size_t block = i >> job->shift;
    if (!job->map) return ((const float *)job->absmax)[block];
    float scaled = job->map[((const uint8_t *)job->absmax)[block]] * job->absmax2[block / 256];
    return scaled + *job->offset;
}

INLINE size_t bytes_out(const Job *job) { /* of a dequantization, in all */
    return job->count * (job->floats ? 4 : 2);
}

INLINE float weight_at(const Job *job, size_t i) {
    uint8_t pair = job->packed[i / 2];
    return job->levels[i % 2 ? pair & 15 : pair >> 4] * scale_of(job, i);
}

INLINE uint16_t to_bf16(float value) { /* nearest, ties to even: add a half, a bit less if even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return value != value ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* A variant is two functions for the weights from i to end, in blocks of `size`, full steps of 32.
   Expand writes their values. Dot adds values * x to the sums of `rows` rows of x. */
typedef void Expand(const Job *, size_t i, size_t end, size_t size, float *, uint16_t *);
typedef void Dot(const Job *, size_t i, size_t end, size_t size, const float *x, int rows, float *);

INLINE void expand_plain(const Job *job, size_t i, size_t end, size_t size, float *floats,
                         uint16_t *halves) {
    for (; i < end; i += size) {
        float scale = scale_of(job, i), table[16];
        uint16_t rounded[16];
        for (int k = 0; k < 16; k++) rounded[k] = to_bf16(table[k] = job->levels[k] * scale);
        const uint8_t *pair = job->packed + i / 2, *stop = pair + size / 2;
        for (; pair < stop; pair++)
            if (floats) *floats++ = table[*pair >> 4], *floats++ = table[*pair & 15];
            else *halves++ = rounded[*pair >> 4], *halves++ = rounded[*pair & 15];
    }
}

INLINE void dot_plain(const Job *job, size_t i, size_t end, size_t size, const float *x, int rows,
                      float *sums) {
    float even[ROWS] = {0}, odd[ROWS] = {0};
    for (; i < end; i += size) {
        float scale = scale_of(job, i), table[16];
        for (int k = 0; k < 16; k++) table[k] = job->levels[k] * scale;
        const uint8_t *pair = job->packed + i / 2, *stop = pair + size / 2;
        for (; pair < stop; pair++, x += 2)
            for (int r = 0; r < rows; r++) {
                even[r] += table[*pair >> 4] * x[r * job->in];
                odd[r] += table[*pair & 15] * x[r * job->in + 1];
            }
    }
    for (int r = 0; r < rows; r++) sums[r] += even[r] + odd[r];
}

#ifdef X86
#include "kernel_x86.h"
#endif

typedef struct { size_t size, whole, stop; } Span;

/* From weight i on: all whole blocks that there are; or of one block steps, then single weights. */
INLINE Span span_at(size_t i, size_t end, size_t shift) {
    size_t size = (size_t)1 << shift, stop = i / size * size + size;
    if (i % size == 0 && stop <= end) return (Span){size, end / size * size, end / size * size};
    stop = stop < end ? stop : end;
    size_t steps = i % 2 ? 0 : (stop - i) / STEP * STEP;
    return (Span){steps, i + steps, stop};
}

INLINE void dequantize(const Job *job, size_t from, size_t to, Expand expand) {
    for (size_t i = from + job->start, end = to + job->start; i < end;) {
        Span s = span_at(i, end, job->shift);
        float *floats = job->floats ? job->floats + (i - job->start) : NULL;
        uint16_t *halves = job->halves ? job->halves + (i - job->start) : NULL;
        expand(job, i, s.whole, s.size, floats, halves);
        for (size_t k = s.whole; k < s.stop; k++)
            if (floats) floats[k - i] = weight_at(job, k);
            else halves[k - i] = to_bf16(weight_at(job, k));
        i = s.stop;
    }
}

/* One feature for `rows` rows of x: a constant wherever this is inlined, so sums are registers. */
INLINE void multiply(const Job *job, size_t feature, size_t row, int rows, Dot dot) {
    const float *x = job->x + row * job->in;
    float sums[ROWS] = {0};
    for (size_t i = feature * job->in, end = i + job->in; i < end;) {
        Span s = span_at(i, end, job->shift);
        dot(job, i, s.whole, s.size, x, rows, sums);
        for (size_t k = s.whole; k < s.stop; k++)
            for (int r = 0; r < rows; r++) sums[r] += weight_at(job, k) * x[r * job->in + k - i];
        x += s.stop - i, i = s.stop;
    }
    float bias = job->bias ? job->bias[feature] : 0;
    for (int r = 0; r < rows; r++) job->y[(row + r) * job->features + feature] = sums[r] + bias;
}

INLINE void product(const Job *job, size_t feature, size_t to, Dot dot) {
    for (size_t row = 0; feature < to; feature++, row = 0) {
        for (; row + ROWS <= job->rows; row += ROWS) multiply(job, feature, row, ROWS, dot);
        for (; row + 2 <= job->rows; row += 2) multiply(job, feature, row, 2, dot);
        if (row < job->rows) multiply(job, feature, row, 1, dot);
    }
}

/* What each thread runs. It takes shares until none is left, so a late thread delays no other. */
#define VARIANT(name, TARGET)                                                                      \
    TARGET static void work_##name(void *shared) {                                                 \
        Job *job = shared;                                                                         \
        for (size_t i, to; (i = TAKE(job->next, job->share)) < job->end;) {                        \
            to = job->end - i < job->share ? job->end : i + job->share;                            \
            if (job->y) product(job, i, to, dot_##name);                                           \
            else dequantize(job, i, to, expand_##name);                                            \
        }                                                                                          \
    }
VARIANT(plain, )
#ifdef X86
VARIANT(avx2, AVX2)
VARIANT(avx512, AVX512)
#endif

/* ---- What kernel.py calls ---- */
#ifdef _WIN32
#define EXPORT __declspec(dllexport)
EXPORT void *PyInit__kernel(void) { return NULL; } /* setuptools' linker flags ask for it */
#else
#define EXPORT __attribute__((visibility("default")))
#endif

EXPORT int nf4_interface(void) { return 1; } /* another number once Job has another meaning */

EXPORT int nf4_job_size(void) { return (int)sizeof(Job); }

EXPORT int nf4_best(void) { /* 2: AVX-512, 1: AVX2, 0: plain; on this processor and system */
#ifdef X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return __builtin_cpu_supports("avx512f") ? 2 : 1;
#endif
    return 0;
}

/* So large an array comes fresh from the system, zeroed page by page when it is first written. For
   4 KB pages that takes longer than all the rest, so Linux is asked for pages of 2 MB. */
static void ask_for_large_pages(const Job *job) {
#ifdef MADV_HUGEPAGE
    size_t bytes = bytes_out(job), page = 1 << 21;
    uintptr_t out = (uintptr_t)(job->floats ? (void *)job->floats : (void *)job->halves);
    uintptr_t first = (out + page - 1) / page * page, last = (out + bytes) / page * page;
    if (!job->y && bytes >= LARGE) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)job;
#endif
}

/* team: GOMP_parallel of the OpenMP library that torch brought; its threads work here too. */
typedef void Team(void (*work)(void *), void *job, unsigned threads, unsigned flags);

EXPORT void nf4_run(Job *job, int variant, Team *team, unsigned threads) {
    void (*work)(void *) = work_plain;
#ifdef X86
    if (variant) work = variant == 2 ? work_avx512 : work_avx2;
#endif
    size_t total = job->y ? job->in * job->features * job->rows : job->count;
    job->next = 0, job->end = job->y ? job->features : job->count;
    job->share = job->y ? 1 + SHARE / job->in : SHARE;
    ask_for_large_pages(job);
    (void)variant;
    if (team && threads > 1 && total > ALONE) team(work, job, threads, 0);
    else work(job);
}
