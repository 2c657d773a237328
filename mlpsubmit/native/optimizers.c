/* Updates of the parameters of networks, in one pass. */

#include "vectors.h"

/* p -= lr g, of networks that are updated: p and g (networks, size).
 *
 * Args:
 *     lr, updated: one entry per network, so far from one to the next.
 */
void sgd(size_t networks, size_t size, real *restrict p, const real *restrict g, const real *lr,
         size_t lr_stride, const uint8_t *updated, size_t updated_stride)
{
    for (size_t k = 0; k < networks; k++) {
        if (!updated[k * updated_stride]) continue;
        real rate = lr[k * lr_stride];
        for (size_t i = k * size; i < (k + 1) * size; i++) p[i] -= g[i] * rate;
    }
}
