/* Vectors of the widest registers of this CPU, in the vector extensions of GCC and Clang.
 *
 * On the compiler's command line, `real` is defined as float or double, and contraction is off: a
 * product and a sum are rounded once where the code says fused(), and nowhere else.
 */

#ifndef VECTORS_H
#define VECTORS_H

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "with -ffast-math, networks that diverge would not be noticed"
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Bytes of a register, the tile of sums that fits into all of them, and what the vector extensions
 * lack: a b + c rounded once, products of the lower halves of 64-bit integers, the larger and the
 * smaller one of a and b, which is NaN if b is, and square roots. */
#if defined(__AVX512F__)
#include <immintrin.h>
enum { BYTES = 64, ROWS = 8, VECTORS = 2 };
#define FUSED_FLOATS(a, b, c) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define FUSED_DOUBLES(a, b, c) _mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c))
#define MULTIPLIED(a, b) _mm512_mul_epu32((__m512i)(a), (__m512i)(b))
#define LARGER_FLOATS(a, b) _mm512_max_ps((__m512)(a), (__m512)(b))
#define LARGER_DOUBLES(a, b) _mm512_max_pd((__m512d)(a), (__m512d)(b))
#define SMALLER_FLOATS(a, b) _mm512_min_ps((__m512)(a), (__m512)(b))
#define ROOTS_OF_FLOATS(a) _mm512_sqrt_ps((__m512)(a))
#define ROOTS_OF_DOUBLES(a) _mm512_sqrt_pd((__m512d)(a))
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
enum { BYTES = 32, ROWS = 6, VECTORS = 2 };
#define FUSED_FLOATS(a, b, c) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#define FUSED_DOUBLES(a, b, c) _mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c))
#define MULTIPLIED(a, b) _mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#define LARGER_FLOATS(a, b) _mm256_max_ps((__m256)(a), (__m256)(b))
#define LARGER_DOUBLES(a, b) _mm256_max_pd((__m256d)(a), (__m256d)(b))
#define SMALLER_FLOATS(a, b) _mm256_min_ps((__m256)(a), (__m256)(b))
#define ROOTS_OF_FLOATS(a) _mm256_sqrt_ps((__m256)(a))
#define ROOTS_OF_DOUBLES(a) _mm256_sqrt_pd((__m256d)(a))
#elif defined(__aarch64__)
#include <arm_neon.h>
enum { BYTES = 16, ROWS = 8, VECTORS = 2 };
#define FUSED_FLOATS(a, b, c) vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b))
#define FUSED_DOUBLES(a, b, c) vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b))
#define MULTIPLIED(a, b) vmull_u32(vmovn_u64((uint64x2_t)(a)), vmovn_u64((uint64x2_t)(b)))
#define LARGER_FLOATS(a, b) vmaxq_f32((float32x4_t)(a), (float32x4_t)(b))
#define LARGER_DOUBLES(a, b) vmaxq_f64((float64x2_t)(a), (float64x2_t)(b))
#define SMALLER_FLOATS(a, b) vminq_f32((float32x4_t)(a), (float32x4_t)(b))
#define ROOTS_OF_FLOATS(a) vsqrtq_f32((float32x4_t)(a))
#define ROOTS_OF_DOUBLES(a) vsqrtq_f64((float64x2_t)(a))
#else
#error "this CPU has none of AVX-512, AVX2 with FMA, and 64-bit NEON"
#endif

typedef real vec __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

enum { LANES = BYTES / sizeof(real) };

/* The entries of a vector as those of another type; GCC has a function for this since version 9. */
#if defined(__clang__) || __GNUC__ >= 9
#define CONVERTED(v, type) __builtin_convertvector(v, type)
#else
#define CONVERTED(v, type)                                                                      \
    ({                                                                                          \
        type to_;                                                                               \
        __typeof__(v) from_ = (v);                                                              \
        for (size_t i_ = 0; i_ < sizeof to_ / sizeof to_[0]; i_++) to_[i_] = from_[i_];         \
        to_;                                                                                    \
    })
#endif

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

INLINE size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* a b + c, rounded once. */
INLINE vec fused(vec a, vec b, vec c)
{
    return sizeof(real) == sizeof(float) ? (vec)FUSED_FLOATS(a, b, c) : (vec)FUSED_DOUBLES(a, b, c);
}

/* The larger one of a and b; NaN if b is. */
INLINE vec larger(vec a, vec b)
{
    return sizeof(real) == sizeof(float) ? (vec)LARGER_FLOATS(a, b) : (vec)LARGER_DOUBLES(a, b);
}

INLINE vec roots(vec a)
{
    return sizeof(real) == sizeof(float) ? (vec)ROOTS_OF_FLOATS(a) : (vec)ROOTS_OF_DOUBLES(a);
}

INLINE vec all(real value) { return value - (vec){0}; }

INLINE vec load(const real *from) { return *(const vec *)from; }

INLINE void store(real *to, vec v) { *(vec *)to = v; }

/* The same for the first entries of a vector; the others are 0. */
INLINE vec load_some(const real *from, size_t count)
{
    vec v = {0};
    if (count >= LANES) return load(from);
    memcpy(&v, from, count * sizeof(real));
    return v;
}

INLINE void store_some(real *to, vec v, size_t count)
{
    if (count >= LANES) store(to, v);
    else memcpy(to, &v, count * sizeof(real));
}

/* The entries of a and b in turn: of their first halves, or of their second halves. */
INLINE vec in_turn(vec a, vec b, const int half)
{
    enum { FROM_B = LANES };
#if defined(__clang__)
    vec v;
    UNROLLED for (int i = 0; i < LANES; i++) v[i] = i % 2 ? b[(i + half * LANES) / 2] : a[(i + half * LANES) / 2];
    return v;
#else
    __typeof__(a <= b) from;
    UNROLLED for (int i = 0; i < LANES; i++) from[i] = (i + half * LANES) / 2 + i % 2 * FROM_B;
    return __builtin_shuffle(a, b, from);
#endif
}

/* Transpose a matrix of LANES vectors: each round puts row i beside row i + LANES / 2. */
INLINE void transpose(vec rows[LANES])
{
    UNROLLED for (int width = 1; width < LANES; width *= 2) {
        vec mixed[LANES];
        UNROLLED for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = in_turn(rows[i], rows[i + LANES / 2], 0);
            mixed[2 * i + 1] = in_turn(rows[i], rows[i + LANES / 2], 1);
        }
        UNROLLED for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
    }
}

/* v where x is positive or NaN, else 0. */
INLINE vec where_positive(vec x, vec v)
{
    __typeof__(x <= x) dropped = x <= (vec){0};
    return (vec)((__typeof__(dropped))v & ~dropped);
}

#endif
