/* Elementary functions of vectors of floats, most by the polynomials of Cephes (Moshier,
 * https://www.netlib.org/cephes): errors are a few units in the last place.
 */

#ifndef FUNCTIONS_H
#define FUNCTIONS_H

#include "vectors.h"

typedef int32_t ints __attribute__((vector_size(BYTES)));

INLINE vec where(ints mask, vec a, vec b) { return (vec)(((ints)a & mask) | ((ints)b & ~mask)); }

/* The natural logarithm of numbers in (0, 1]. */
INLINE vec logarithm(vec x)
{
    ints bits = (ints)x, exponent = (bits - (ints)all(0.70710678f)) >> 23;
    vec e = CONVERTED(exponent, vec), m = (vec)(bits - (exponent << 23)) - 1.0f;
    vec square = m * m, y = all(7.0376836292e-2f);
    const float coefficients[] = {-1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f,
                                  1.4249322787e-1f,  -1.6668057665e-1f, 2.0000714765e-1f,
                                  -2.4999993993e-1f, 3.3333331174e-1f};
    UNROLLED for (int i = 0; i < 8; i++) y = fused(y, m, all(coefficients[i]));
    y = fused(y * m, square, e * -2.12194440e-4f);
    return fused(e, all(0.693359375f), m + fused(square, all(-0.5f), y));
}

/* x rounded to an integer, for |x| < 2^22; the lower bits of the sum are the integer itself. */
#define TO_INTEGER 12582912.0f

/* Cosine and sine of so many half turns, in [-1, 1]. */
INLINE void cosine_and_sine(vec half_turns, vec *cosine, vec *sine)
{
    vec quarters = half_turns * 2.0f, shifted = quarters + TO_INTEGER;
    ints quadrant = (ints)shifted;
    vec x = (quarters - (shifted - TO_INTEGER)) * 1.57079633f, z = x * x;
    vec s = fused(fused(all(-1.9515295891e-4f), z, all(8.3321608736e-3f)), z, all(-1.6666654611e-1f));
    s = fused(s * z, x, x);
    vec c = fused(fused(all(2.443315711809948e-5f), z, all(-1.388731625493765e-3f)), z,
                  all(4.166664568298827e-2f));
    c = fused(c * z, z, fused(z, all(-0.5f), all(1.0f)));
    ints odd = -(quadrant & 1);
    *sine = (vec)((ints)where(odd, c, s) ^ (quadrant & 2) << 30);
    *cosine = (vec)((ints)where(odd, s, c) ^ ((quadrant + 1) & 2) << 30);
}

/* The hyperbolic tangent, by Eigen's quotient of polynomials, which is 1 at its limit; NaN of NaN. */
INLINE vec hyperbolic_tangent(vec x)
{
    const float limit = 7.99881172180175781f;
    x = (vec)SMALLER_FLOATS(all(limit), larger(all(-limit), x));
    vec z = x * x, above = all(-2.76076847742355e-16f), below = all(1.19825839466702e-06f);
    const float numerator[] = {2.00018790482477e-13f, -8.60467152213735e-11f, 5.12229709037114e-08f,
                               1.48572235717979e-05f, 6.37261928875436e-04f,  4.89352455891786e-03f};
    const float denominator[] = {1.18534705686654e-04f, 2.26843463243900e-03f, 4.89352518554385e-03f};
    UNROLLED for (int i = 0; i < 6; i++) above = fused(above, z, all(numerator[i]));
    UNROLLED for (int i = 0; i < 3; i++) below = fused(below, z, all(denominator[i]));
    return x * above / below;
}

#endif
