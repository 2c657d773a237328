/* Gaussian random numbers, from a key and a counter.
 *
 * Words of 32 bits by Philox4x32-10 (Salmon et al., https://doi.org/10.1145/2063384.2063405), in
 * pairs made Gaussian by the transform of Box and Muller. The numbers are floats also where other
 * functions compute in double, so that all precisions see the same data.
 */

#ifdef SINGLE

#include "functions.h"

typedef uint64_t words __attribute__((vector_size(BYTES)));
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
            halves lower = CONVERTED(x[j], halves);
            memcpy(&found[j][start], &lower, sizeof lower);
        }
    }
}

/* The upper 24 bits of words, as integers from -2^23 on. */
INLINE vec upper_bits(const uint32_t *from)
{
    ints words;
    memcpy(&words, from, sizeof words);
    return CONVERTED(words >> 8, vec);
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

/* Fill to (count) with independent N(0, 1), determined by one number. */
void normals(const uint64_t *seed, size_t count, float *to)
{
    uint64_t key = *seed;
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
