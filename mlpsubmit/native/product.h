/* Products of matrices, and what is done with each entry while it is in a register.
 *
 * A product is computed in tiles of sums, which stay in vector registers, from panels of B, which
 * stay in the first-level cache (Goto and van de Geijn, https://doi.org/10.1145/1356052.1356053).
 * The order of every sum depends on the shapes alone, and on the size of a register.
 */

#ifndef PRODUCT_H
#define PRODUCT_H

#include "activations.h"
#include "vectors.h"

enum {
    COLUMNS = VECTORS * LANES, /* of a panel of B */
    SUMMANDS = 256,            /* rows of a panel, at most */
    PANEL = SUMMANDS * COLUMNS,
    NEAR = 16 * COLUMNS, /* rows of B so far apart are read where they are */
};

/* A matrix whose entry (i, j) is at[i * row + j * column]. */
typedef struct {
    const real *at;
    size_t row, column;
} Matrix;

/* Which columns a thread computes: of panels, every of-th from number on. Bits do not depend on it. */
typedef struct {
    size_t number, of;
} Share;

/* What the sums of a product become: scale * sum + bias, and so on. */
typedef struct {
    real scale;
    int adds;           /* whether they are added to what C has, for k <= SUMMANDS */
    const real *bias;   /* per column; NULL for none */
    Activation phi;     /* is applied */
    const real *values; /* of the activation by whose derivative they are multiplied; or NULL */
    size_t values_row;
    Activation differentiated;
    real *column_sums; /* the results are added to these, over the rows; or NULL */
} Epilogue;

/* What becomes of the sums of some entries of C, which are at `to`, in row i from column j on. */
INLINE vec completed(const Epilogue *epilogue, vec v, vec bias, const real *to, size_t i, size_t j,
                     size_t entries)
{
    if (epilogue->bias) v = fused(v, all(epilogue->scale), bias);
    else v *= epilogue->scale;
    if (epilogue->adds) v += load_some(to, entries);
    v = activated(epilogue->phi, v);
    if (!epilogue->values) return v;
    const real *values = epilogue->values + i * epilogue->values_row + j;
    return times_derivative(epilogue->differentiated, load_some(values, entries), v);
}

/* One tile of C = A B: `rows` rows, and so many vectors of columns, the last with `count` entries.
 *
 * Args:
 *     first: whether C has no sums of earlier panels to add to.
 *     last: what becomes of the sums, once they are complete; else NULL.
 *     i, j: where in C the tile is.
 */
INLINE void tile(const int rows, const int vectors, size_t count, size_t k, Matrix A,
                 const real *restrict B, size_t B_row, real *restrict C, size_t C_row, int first,
                 const Epilogue *last, size_t i, size_t j)
{
    vec sums[ROWS][VECTORS]; /* a fixed size: only then are they in registers */
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int c = 0; c < vectors; c++) sums[r][c] = (vec){0};
    const real *a = A.at + i * A.row;
    for (size_t p = 0; p < k; p++) {
        vec b[VECTORS];
        UNROLLED for (int c = 0; c < vectors; c++) b[c] = load(B + p * B_row + c * LANES);
        UNROLLED for (int r = 0; r < rows; r++)
            UNROLLED for (int c = 0; c < vectors; c++)
                sums[r][c] = fused(all(a[r * A.row + p * A.column]), b[c], sums[r][c]);
    }
    UNROLLED for (int c = 0; c < vectors; c++) {
        size_t entries = c + 1 < vectors ? (size_t)LANES : count, column = j + c * LANES;
        vec bias = {0}, total = {0};
        if (last && last->bias) bias = load_some(last->bias + column, entries);
        UNROLLED for (int r = 0; r < rows; r++) {
            real *to = C + (i + r) * C_row + column;
            vec v = sums[r][c];
            if (!first) v += load_some(to, entries);
            if (last) {
                v = completed(last, v, bias, to, i + r, column, entries);
                total += v;
            }
            store_some(to, v, entries);
        }
        if (last && last->column_sums) {
            real *to = last->column_sums + column;
            store_some(to, load_some(to, entries) + total, entries);
        }
    }
}

#define TILES(rows)                                                                           \
    if (columns > LANES)                                                                      \
        tile(rows, VECTORS, columns - LANES, k, A, B, B_row, C, C_row, first, last, i, j);    \
    else                                                                                      \
        tile(rows, 1, columns, k, A, B, B_row, C, C_row, first, last, i, j)

/* The columns of C = A B from j on, for a panel of B. */
static void multiply_panel(size_t m, size_t columns, size_t k, Matrix A, const real *B,
                           size_t B_row, real *C, size_t C_row, int first, const Epilogue *last,
                           size_t j)
{
    size_t i = 0;
    for (; i + ROWS <= m; i += ROWS) { TILES(ROWS); }
    for (; i + 2 <= m; i += 2) { TILES(2); }
    if (i < m) { TILES(1); }
}

/* Copy B (k, columns) into a panel (k, COLUMNS); columns that it lacks become 0. */
static void copy_panel(size_t k, size_t columns, Matrix B, real *restrict panel)
{
    if (columns < COLUMNS) memset(panel, 0, k * COLUMNS * sizeof(real));
    if (B.column == 1) {
        for (size_t p = 0; p < k; p++)
            memcpy(panel + p * COLUMNS, B.at + p * B.row, columns * sizeof(real));
        return;
    }
    size_t blocks = B.row == 1 ? columns / LANES * LANES : 0, rows = k / LANES * LANES;
    for (size_t c = 0; c < blocks; c += LANES)
        for (size_t p = 0; p < rows; p += LANES) {
            vec block[LANES];
            UNROLLED for (int i = 0; i < LANES; i++) block[i] = load(B.at + (c + i) * B.column + p);
            transpose(block);
            UNROLLED for (int i = 0; i < LANES; i++) store(panel + (p + i) * COLUMNS + c, block[i]);
        }
    for (size_t c = 0; c < columns; c++)
        for (size_t p = c < blocks ? rows : 0; p < k; p++)
            panel[p * COLUMNS + c] = B.at[p * B.row + c * B.column];
}

/* Columns of C = A B from j on, so many vectors of them, where A has one column and B one row b. */
INLINE void outer_columns(const int vectors, size_t m, Matrix A, const real *b, real *restrict C,
                          size_t C_row, const Epilogue *given, size_t j)
{
    const Epilogue epilogue = *given;
    vec factors[VECTORS], bias[VECTORS];
    UNROLLED for (int c = 0; c < vectors; c++) {
        factors[c] = load(b + j + c * LANES);
        bias[c] = epilogue.bias ? load(epilogue.bias + j + c * LANES) : (vec){0};
    }
    for (size_t i = 0, rows; i < m; i += rows) {
        rows = m - i >= ROWS ? ROWS : m - i >= 2 ? 2 : 1;
        vec totals[VECTORS] = {{0}};
        for (size_t r = i; r < i + rows; r++)
            UNROLLED for (int c = 0; c < vectors; c++) {
                real *to = C + r * C_row + j + c * LANES;
                vec product = all(A.at[r * A.row]) * factors[c];
                vec v = completed(&epilogue, product, bias[c], to, r, j + c * LANES, LANES);
                store(to, v);
                totals[c] += v;
            }
        UNROLLED for (int c = 0; c < vectors && epilogue.column_sums; c++) {
            real *to = epilogue.column_sums + j + c * LANES;
            store(to, load(to) + totals[c]);
        }
    }
}

/* A share of C (m, n), with n a multiple of LANES, where A has one column and B one row b. C is
 * written row by row, as a tile would take longer to begin and to end than to compute.
 */
static void outer(size_t m, size_t n, Matrix A, const real *b, real *C, size_t C_row,
                  const Epilogue *epilogue, Share share)
{
    for (size_t j = share.number * COLUMNS; j < n; j += share.of * COLUMNS)
        if (n - j >= COLUMNS) outer_columns(VECTORS, m, A, b, C, C_row, epilogue, j);
        else outer_columns(1, m, A, b, C, C_row, epilogue, j);
}

/* A share of C (m, n) = epilogue(A (m, k) B (k, n)), with k > 0.
 *
 * A panel of B is copied, so that its entries are contiguous; not where its rows are near each
 * other, or too few rows of A would repay that.
 *
 * Args:
 *     panel: scratch memory for PANEL entries.
 */
static void multiply(size_t m, size_t n, size_t k, Matrix A, Matrix B, real *C, size_t C_row,
                     const Epilogue *epilogue, real *panel, Share share)
{
    if (k == 1 && B.column == 1 && n % LANES == 0) {
        outer(m, n, A, B.at, C, C_row, epilogue, share);
        return;
    }
    for (size_t p = 0; p < k; p += SUMMANDS) {
        size_t depth = least(SUMMANDS, k - p);
        const Epilogue *last = p + depth == k ? epilogue : NULL;
        Matrix A_part = {A.at + p * A.column, A.row, A.column};
        for (size_t j = share.number * COLUMNS; j < n; j += share.of * COLUMNS) {
            size_t columns = least(COLUMNS, n - j);
            Matrix part = {B.at + p * B.row + j * B.column, B.row, B.column};
            int copied = B.column != 1 || columns < COLUMNS || (m > 2 * ROWS && B.row > NEAR);
            if (copied) copy_panel(depth, columns, part, panel);
            multiply_panel(m, columns, depth, A_part, copied ? panel : part.at,
                           copied ? COLUMNS : B.row, C, C_row, p == 0, last, j);
        }
    }
}

/* A share of the rows of scale * A w + *bias, for A (rows, k) with columns of distance 1; bias may be
 * NULL. */
static void dots(size_t rows, size_t k, Matrix A, const real *w, real *results, real scale,
                 const real *bias, Share share)
{
    enum { TOGETHER = LANES < 4 ? LANES : 4 };
    for (size_t i = share.number * LANES; i < rows; i += share.of * LANES) {
        vec partial[LANES]; /* per row a vector, whose entries are to be added */
        size_t count = least(LANES, rows - i);
        for (size_t r = 0; r < LANES; r += TOGETHER) {
            const real *a[TOGETHER];
            vec sums[TOGETHER];
            UNROLLED for (int q = 0; q < TOGETHER; q++) {
                a[q] = A.at + (i + least(r + q, count - 1)) * A.row;
                sums[q] = (vec){0};
            }
            for (size_t p = 0; p < k; p += LANES) {
                vec weights = load_some(w + p, k - p);
                UNROLLED for (int q = 0; q < TOGETHER; q++)
                    sums[q] = fused(load_some(a[q] + p, k - p), weights, sums[q]);
            }
            UNROLLED for (int q = 0; q < TOGETHER; q++) partial[r + q] = sums[q];
        }
        transpose(partial);
        for (int width = LANES / 2; width > 0; width /= 2)
            for (int r = 0; r < width; r++) partial[r] += partial[r + width];
        store_some(results + i, fused(partial[0], all(scale), all(bias ? *bias : 0)), count);
    }
}

#endif
