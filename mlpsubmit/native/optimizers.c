/* Updates of the parameters of networks, in one pass. */

#include "vectors.h"

/* p -= lr g for each of the parameters p and gradients g, (networks, size), of networks that are
 * updated.
 *
 * Args:
 *     sizes: per parameter.
 *     lr, updated: (networks, parameters), of which rows and columns have these distances.
 */
void sgd(size_t networks, size_t parameters, const size_t *sizes, real *const *p,
         const real *const *g, const real *lr, size_t lr_row, size_t lr_column,
         const uint8_t *updated, size_t updated_row, size_t updated_column)
{
    for (size_t k = 0; k < networks; k++)
        for (size_t i = 0; i < parameters; i++) {
            if (!updated[k * updated_row + i * updated_column]) continue;
            real rate = lr[k * lr_row + i * lr_column];
            real *restrict to = p[i] + k * sizes[i];
            const real *restrict by = g[i] + k * sizes[i];
            for (size_t j = 0; j < sizes[i]; j++) to[j] -= by[j] * rate;
        }
}
