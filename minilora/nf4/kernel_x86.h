/* The variants for x86: a table of 16 levels that lives in a register.

   16 float32 values are 64 bytes: one register of AVX-512, two of AVX2. vpermps permutes a register
   by the numbers in another, so it looks up 16 values in one instruction, and nothing is loaded but
   the codes. AVX2's permutes eight floats by three bits: it looks up both halves of the table and
   blends them by the fourth bit.

   Nibbles come in order because every lane has a shift of its own. A little-endian 32-bit word
   holds eight codes: the first in bits 4 to 7, the second in bits 0 to 3, the third in bits 12 to
   15. Broadcast to eight lanes and shifted right by 4, 0, 12, 8, 20, 16, 28, 24, it shows each lane
   its own code in the lowest bits, and a permutation reads no others.

   Two bfloat16 fit in a lane, and so do the two codes of a byte: one table holds the rounded values
   in the high half for the odd code, the other in the low half for the even one.

   Sums run in two chains, a and b: an addition takes four cycles, and one chain would wait for it.

   What is too large for the caches is written past them (stream): an ordinary store first reads the
   64 bytes of which it overwrites a part, so each would cross the memory bus twice.

   `target` compiles these functions for instructions that the rest of the file does without;
   nf4_best asks the processor before they are called. */
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx2,fma,avx512f")))

INLINE int32_t word_at(const uint8_t *codes) {
    int32_t word;
    memcpy(&word, codes, 4);
    return word;
}

INLINE int is_past_caches(const Job *job, const void *out) { /* stream takes no odd addresses */
    return bytes_out(job) > LARGE && (uintptr_t)out % 64 == 0;
}

AVX2 INLINE void put_avx2(void *out, __m256 values, int past) {
    if (past) _mm256_stream_ps(out, values);
    else _mm256_storeu_ps(out, values);
}

AVX512 INLINE void put_avx512(void *out, __m512i values, int past) {
    if (past) _mm512_stream_si512(out, values);
    else _mm512_storeu_si512(out, values);
}

typedef struct { __m256 low, high; } Table; /* the values of codes 0 to 7 and 8 to 15 */

AVX2 INLINE Table table_avx2(const Job *job, size_t i) {
    __m256 s = _mm256_set1_ps(scale_of(job, i));
    __m256 low = _mm256_loadu_ps(job->levels), high = _mm256_loadu_ps(job->levels + 8);
    return (Table){_mm256_mul_ps(low, s), _mm256_mul_ps(high, s)};
}

AVX2 INLINE __m256 look_up(Table table, __m256i codes) {
    __m256i sign = _mm256_slli_epi32(codes, 28); /* the fourth bit, where the blend looks for it */
    __m256 low = _mm256_permutevar8x32_ps(table.low, codes);
    __m256 high = _mm256_permutevar8x32_ps(table.high, codes);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(sign));
}

AVX2 INLINE __m256 eight(Table table, const uint8_t *codes) {
    __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    return look_up(table, _mm256_srlv_epi32(_mm256_set1_epi32(word_at(codes)), shifts));
}

AVX2 INLINE __m256 rounded(__m256 values) { /* to_bf16, in the high half of each lane */
    __m256i bits = _mm256_castps_si256(values), one = _mm256_set1_epi32(1);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    bits = _mm256_and_si256(bits, _mm256_set1_epi32((int)0xffff0000));
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    __m256 is_nan = _mm256_cmp_ps(values, values, _CMP_UNORD_Q);
    return _mm256_blendv_ps(_mm256_castsi256_ps(bits), nan, is_nan);
}

AVX2 INLINE __m256 to_low_half(__m256 values) {
    return _mm256_castsi256_ps(_mm256_srli_epi32(_mm256_castps_si256(values), 16));
}

AVX2 INLINE void expand_avx2(const Job *job, size_t i, size_t end, size_t size, float *floats,
                             uint16_t *halves) {
    int past = is_past_caches(job, floats ? (void *)floats : (void *)halves);
    for (; i < end; i += size) {
        Table table = table_avx2(job, i);
        const uint8_t *codes = job->packed + i / 2, *stop = codes + size / 2;
        for (; floats && codes < stop; codes += 4, floats += 8)
            put_avx2(floats, eight(table, codes), past);
        if (floats) continue;
        Table odd = {rounded(table.low), rounded(table.high)};
        Table even = {to_low_half(odd.low), to_low_half(odd.high)};
        for (; codes < stop; codes += 8, halves += 16) {
            __m256i pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)codes));
            __m256 first = look_up(even, _mm256_srli_epi32(pairs, 4));
            put_avx2(halves, _mm256_or_ps(first, look_up(odd, pairs)), past);
        }
    }
    if (past) _mm_sfence(); /* before another thread may read it */
}

AVX2 INLINE void dot_avx2(const Job *job, size_t i, size_t end, size_t size, const float *x,
                          int rows, float *sums) {
    __m256 a[ROWS], b[ROWS];
    for (int r = 0; r < rows; r++) a[r] = b[r] = _mm256_setzero_ps();
    for (; i < end; i += size) {
        Table table = table_avx2(job, i);
        const uint8_t *codes = job->packed + i / 2, *stop = codes + size / 2;
        for (; codes < stop; codes += 8, x += 16) {
            __m256 w = eight(table, codes), v = eight(table, codes + 4);
            for (int r = 0; r < rows; r++) {
                const float *at = x + r * job->in;
                a[r] = _mm256_fmadd_ps(w, _mm256_loadu_ps(at), a[r]);
                b[r] = _mm256_fmadd_ps(v, _mm256_loadu_ps(at + 8), b[r]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        __m256 s = _mm256_add_ps(a[r], b[r]);
        __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
        t = _mm_add_ps(t, _mm_movehl_ps(t, t));
        sums[r] += _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
    }
}

AVX512 INLINE __m512 table_avx512(const Job *job, size_t i) {
    return _mm512_mul_ps(_mm512_loadu_ps(job->levels), _mm512_set1_ps(scale_of(job, i)));
}

AVX512 INLINE __m512 sixteen(__m512 table, const uint8_t *codes) { /* one look-up, no blend */
    __m512i word = _mm512_set1_epi32(word_at(codes));
    __m512i both = _mm512_mask_set1_epi32(word, 0xff00, word_at(codes + 4));
    __m512i shifts = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(both, shifts), table);
}

AVX512 INLINE void expand_avx512(const Job *job, size_t i, size_t end, size_t size, float *floats,
                                 uint16_t *halves) {
    int past = is_past_caches(job, floats ? (void *)floats : (void *)halves);
    for (; i < end; i += size) {
        const uint8_t *codes = job->packed + i / 2, *stop = codes + size / 2;
        for (__m512 table = table_avx512(job, i); floats && codes < stop; codes += 8, floats += 16)
            put_avx512(floats, _mm512_castps_si512(sixteen(table, codes)), past);
        if (floats) continue;
        Table t = table_avx2(job, i);
        __m512i odd = _mm512_castps_si512(_mm512_castps256_ps512(rounded(t.low)));
        odd = _mm512_inserti64x4(odd, _mm256_castps_si256(rounded(t.high)), 1);
        __m512i even = _mm512_srli_epi32(odd, 16);
        for (; codes < stop; codes += 16, halves += 32) {
            __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)codes));
            __m512i first = _mm512_permutexvar_epi32(_mm512_srli_epi32(pairs, 4), even);
            __m512i second = _mm512_permutexvar_epi32(pairs, odd);
            put_avx512(halves, _mm512_or_si512(first, second), past);
        }
    }
    if (past) _mm_sfence();
}

AVX512 INLINE void dot_avx512(const Job *job, size_t i, size_t end, size_t size, const float *x,
                              int rows, float *sums) {
    __m512 a[ROWS], b[ROWS];
    for (int r = 0; r < rows; r++) a[r] = b[r] = _mm512_setzero_ps();
    for (; i < end; i += size) {
        __m512 table = table_avx512(job, i);
        const uint8_t *codes = job->packed + i / 2, *stop = codes + size / 2;
        for (; codes < stop; codes += 16, x += 32) {
            __m512 w = sixteen(table, codes), v = sixteen(table, codes + 8);
            for (int r = 0; r < rows; r++) {
                const float *at = x + r * job->in;
                a[r] = _mm512_fmadd_ps(w, _mm512_loadu_ps(at), a[r]);
                b[r] = _mm512_fmadd_ps(v, _mm512_loadu_ps(at + 16), b[r]);
            }
        }
    }
    for (int r = 0; r < rows; r++) sums[r] += _mm512_reduce_add_ps(_mm512_add_ps(a[r], b[r]));
}
