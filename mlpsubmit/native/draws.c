/* Gaussian random numbers, from a key and a counter.
 *
 * Words of 32 bits by Philox4x32-10 (Salmon et al., https://doi.org/10.1145/2063384.2063405), in
 * pairs made Gaussian by the transform of Box and Muller. The numbers are floats also where other
 * functions compute in double, so that all precisions see the same data.
 */

#ifdef SINGLE

#include "vectors.h"

typedef uint64_t words __attribute__((vector_size(BYTES)));
typedef int32_t ints __attribute__((vector_size(BYTES)));
typedef uint32_t halves __attribute__((vector_size(BYTES / 2)));

enum {
    COUNTERS = 16, /* per block: each gives 4 words */
    NUMBERS = 4 * COUNTERS,
    PER_VECTOR = BYTES / sizeof(uint64_t),
};

/* Words (4, COUNTERS) of the counters from `counter` on. */
INLINE void block_of_words(uint64_t key, uint64_t counter, uint32_t found[4][COUNTERS])
{
    static const uint64_t next[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    UNROLLED for (int start = 0; start < COUNTERS; start += PER_VECTOR) {
        words x0, x1, x2 = {0}, x3 = {0}; /* a word in the lower half of each 64 bits */
        memcpy(&x0, next, sizeof x0);
        x0 += counter + start, x1 = x0 >> 32;
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        UNROLLED for (int round = 0; round < 10; round++) {
            words a = (words)MULTIPLIED(x0, (words){0} + 0xD2511F53u);
            words b = (words)MULTIPLIED(x2, (words){0} + 0xCD9E8D57u);
            x0 = (b >> 32) ^ x1 ^ k0, x1 = b;
            x2 = (a >> 32) ^ x3 ^ k1, x3 = a;
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        words x[4] = {x0, x1, x2, x3};
        UNROLLED for (int j = 0; j < 4; j++) {
            halves lower = __builtin_convertvector(x[j], halves);
            memcpy(&found[j][start], &lower, sizeof lower);
        }
    }
}

/* The natural logarithm of numbers in (0, 1] (the polynomial of Cephes' logf). */
INLINE vec logarithm(vec x)
{
    ints bits = (ints)x;
    ints exponent = (bits - (ints)all(0.70710678f)) >> 23;
    vec e = __builtin_convertvector(exponent, vec), m = (vec)(bits - (exponent << 23)) - 1.0f;
    vec square = m * m, y = all(7.0376836292e-2f);
    const float coefficients[] = {-1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f,
                                  1.4249322787e-1f,  -1.6668057665e-1f, 2.0000714765e-1f,
                                  -2.4999993993e-1f, 3.3333331174e-1f};
    UNROLLED for (int i = 0; i < 8; i++) y = fused(y, m, all(coefficients[i]));
    y = fused(y * m, square, e * -2.12194440e-4f);
    return fused(e, all(0.693359375f), m + fused(square, all(-0.5f), y));
}

INLINE vec chosen(ints where, vec a, vec b) { return (vec)(((ints)a & where) | ((ints)b & ~where)); }

/* Cosine and sine of so many half turns, in [-1, 1] (polynomials of Cephes' sinf and cosf). */
INLINE void cosine_and_sine(vec half_turns, vec *cosine, vec *sine)
{
    vec quarters = half_turns * 2.0f;
    const float shift = 12582912.0f; /* 1.5 * 2^23: the sum is rounded to an integer */
    vec shifted = quarters + shift;
    ints quadrant = (ints)shifted;
    vec x = (quarters - (shifted - shift)) * 1.57079633f, z = x * x;
    vec s = fused(fused(all(-1.9515295891e-4f), z, all(8.3321608736e-3f)), z, all(-1.6666654611e-1f));
    s = fused(s * z, x, x);
    vec c = fused(fused(all(2.443315711809948e-5f), z, all(-1.388731625493765e-3f)), z,
                  all(4.166664568298827e-2f));
    c = fused(c * z, z, fused(z, all(-0.5f), all(1.0f)));
    ints odd = -(quadrant & 1);
    *sine = (vec)((ints)chosen(odd, c, s) ^ (quadrant & 2) << 30);
    *cosine = (vec)((ints)chosen(odd, s, c) ^ ((quadrant + 1) & 2) << 30);
}

/* The upper 24 bits of words, as integers from -2^23 on. */
INLINE vec upper_bits(const uint32_t *from)
{
    ints words;
    memcpy(&words, from, sizeof words);
    return __builtin_convertvector(words >> 8, vec);
}

/* NUMBERS Gaussian numbers: those of words 0 and 1 of each counter, then of words 2 and 3. */
static void block_of_numbers(uint64_t key, uint64_t counter, float *to)
{
    uint32_t x[4][COUNTERS];
    block_of_words(key, counter, x);
    UNROLLED for (int pair = 0; pair < 4; pair += 2)
        UNROLLED for (int i = 0; i < COUNTERS; i += LANES) {
            vec uniform = (upper_bits(&x[pair][i]) + 8388609.0f) * 0x1p-24f; /* in (0, 1] */
            vec radius = roots(logarithm(uniform) * -2.0f), cosine, sine;
            cosine_and_sine(upper_bits(&x[pair + 1][i]) * 0x1p-23f, &cosine, &sine);
            store(to + pair * COUNTERS + i, radius * cosine);
            store(to + (pair + 1) * COUNTERS + i, radius * sine);
        }
}

/* Fill to (count) with independent N(0, 1), determined by the key, one number. */
void normals(const uint64_t *at, size_t count, float *to)
{
    uint64_t key = *at;
    size_t whole = count / NUMBERS;
    for (size_t block = 0; block < whole; block++)
        block_of_numbers(key, block * COUNTERS, to + block * NUMBERS);
    if (count % NUMBERS) {
        float last[NUMBERS];
        block_of_numbers(key, whole * COUNTERS, last);
        memcpy(to + whole * NUMBERS, last, count % NUMBERS * sizeof(float));
    }
}

#endif
