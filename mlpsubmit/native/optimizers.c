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
            vec rate = all(lr[k * lr_row + i * lr_column]);
            real *to = p[i] + k * sizes[i];
            const real *by = g[i] + k * sizes[i];
            for (size_t j = 0; j < sizes[i]; j += LANES) {
                size_t count = sizes[i] - j;
                store_some(to + j, load_some(to + j, count) - load_some(by + j, count) * rate, count);
            }
        }
}

/* A step of Adam for one parameter p with gradient g and moments m, v, (networks, size), of networks
 * that are updated: the formulas of mlpsubmit/training/optimizers/adam.py.
 *
 * Args:
 *     lr, eps, updated: one entry per network, so far from one to the next.
 *     correction, root: 1 - beta1^t, and the square root of 1 - beta2^t.
 */
void adam(size_t networks, size_t size, real *p, const real *g, real *m, real *v, const real *lr,
          size_t lr_stride, const real *eps, size_t eps_stride, const uint8_t *updated,
          size_t updated_stride, double beta1, double beta2, const double *correction,
          const double *root)
{
    vec of_m = all(1 - beta1), kept = all(beta2), of_v = all(1 - beta2), divisor = all(*root);
    for (size_t k = 0; k < networks; k++) {
        if (!updated[k * updated_stride]) continue;
        vec rate = all(lr[k * lr_stride] / (real)*correction), least_root = all(eps[k * eps_stride]);
        for (size_t j = k * size, end = j + size; j < end; j += LANES) {
            size_t count = end - j;
            vec by = load_some(g + j, count), first = load_some(m + j, count);
            first += (by - first) * of_m;
            vec second = load_some(v + j, count) * kept + by * by * of_v;
            vec update = first / (roots(second) / divisor + least_root);
            store_some(m + j, first, count);
            store_some(v + j, second, count);
            store_some(p + j, load_some(p + j, count) - update * rate, count);
        }
    }
}
