/* Updates of the parameters of networks, in one pass. Threads share the entries out. */

#include "threads.h"
#include "vectors.h"

/* Entries from which on a further thread is worth its start. */
enum { ENTRIES_OF_A_THREAD = 1 << 17 };

static size_t useful_threads(size_t entries, size_t threads)
{
    size_t useful = entries / ENTRIES_OF_A_THREAD + 1;
    return useful < threads ? useful : threads;
}

/* Where the share of thread `number` of `count` begins, of so many entries: at a whole vector. */
static size_t share_of(size_t entries, size_t number, size_t count)
{
    size_t vectors = (entries + LANES - 1) / LANES;
    return least(vectors * number / count * LANES, entries);
}

typedef struct {
    Call call;
    size_t networks, parameters;
    const size_t *sizes;
    real *const *p;
    const real *const *g;
    const real *lr;
    size_t lr_row, lr_column;
    const uint8_t *updated;
    size_t updated_row, updated_column;
} Sgd;

static void sgd_part(Call *call, size_t number, size_t count)
{
    const Sgd *given = (Sgd *)call;
    for (size_t k = 0; k < given->networks; k++)
        for (size_t i = 0; i < given->parameters; i++) {
            if (!given->updated[k * given->updated_row + i * given->updated_column]) continue;
            vec rate = all(given->lr[k * given->lr_row + i * given->lr_column]);
            size_t size = given->sizes[i], end = share_of(size, number + 1, count);
            real *p = given->p[i] + k * size;
            const real *g = given->g[i] + k * size;
            for (size_t j = share_of(size, number, count); j < end; j += LANES) {
                size_t left = end - j;
                store_some(p + j, load_some(p + j, left) - load_some(g + j, left) * rate, left);
            }
        }
}

/* p -= lr g for each of the parameters p and gradients g, (networks, size), of networks that are
 * updated.
 *
 * Args:
 *     sizes: per parameter.
 *     lr, updated: (networks, parameters), of which rows and columns have these distances.
 */
void sgd(size_t threads, size_t networks, size_t parameters, const size_t *sizes, real *const *p,
         const real *const *g, const real *lr, size_t lr_row, size_t lr_column,
         const uint8_t *updated, size_t updated_row, size_t updated_column)
{
    Sgd given = {
        .call.part = sgd_part, .networks = networks, .parameters = parameters, .sizes = sizes,
        .p = p, .g = g, .lr = lr, .lr_row = lr_row, .lr_column = lr_column, .updated = updated,
        .updated_row = updated_row, .updated_column = updated_column,
    };
    size_t entries = 0;
    for (size_t i = 0; i < parameters; i++) entries += networks * sizes[i];
    on_threads(&given.call, useful_threads(entries, threads));
}

typedef struct {
    Call call;
    size_t networks, size;
    real *p;
    const real *g;
    real *m, *v;
    const real *lr;
    size_t lr_stride;
    const real *eps;
    size_t eps_stride;
    const uint8_t *updated;
    size_t updated_stride;
    double beta1, beta2, correction, root;
} Adam;

static void adam_part(Call *call, size_t number, size_t count)
{
    const Adam *given = (Adam *)call;
    vec of_m = all(1 - given->beta1), kept = all(given->beta2), of_v = all(1 - given->beta2);
    vec divisor = all(given->root);
    for (size_t k = 0; k < given->networks; k++) {
        if (!given->updated[k * given->updated_stride]) continue;
        vec rate = all(given->lr[k * given->lr_stride] / (real)given->correction);
        vec least_root = all(given->eps[k * given->eps_stride]);
        size_t start = k * given->size, end = start + share_of(given->size, number + 1, count);
        for (size_t j = start + share_of(given->size, number, count); j < end; j += LANES) {
            size_t left = end - j;
            real *p = given->p + j, *m = given->m + j, *v = given->v + j;
            vec by = load_some(given->g + j, left), first = load_some(m, left);
            first += (by - first) * of_m;
            vec second = load_some(v, left) * kept + by * by * of_v;
            vec update = first / (roots(second) / divisor + least_root);
            store_some(m, first, left);
            store_some(v, second, left);
            store_some(p, load_some(p, left) - update * rate, left);
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
void adam(size_t threads, size_t networks, size_t size, real *p, const real *g, real *m, real *v,
          const real *lr, size_t lr_stride, const real *eps, size_t eps_stride,
          const uint8_t *updated, size_t updated_stride, double beta1, double beta2,
          const double *correction, const double *root)
{
    Adam given = {
        .call.part = adam_part, .networks = networks, .size = size, .p = p, .g = g, .m = m, .v = v,
        .lr = lr, .lr_stride = lr_stride, .eps = eps, .eps_stride = eps_stride,
        .updated = updated, .updated_stride = updated_stride,
        .beta1 = beta1, .beta2 = beta2, .correction = *correction, .root = *root,
    };
    on_threads(&given.call, useful_threads(networks * size, threads));
}
