/* MLPs of equal shapes, one after another: outputs, and losses and gradients.
 *
 * A hidden layer computes phi(s W h + t b), with numbers s and t of the layer; the read-out s W h + b,
 * times a multiplier of the network. The samples of a network pass forward and backward in chunks
 * whose activations fit into a core's cache. Each network is computed by itself, so its bits depend
 * on no other. NaN stays NaN.
 *
 * Matrices are contiguous and row-major.
 */

#include "product.h"
#ifdef SINGLE
#include "functions.h"
#endif

/* phi, a function whose derivative follows from its value. TANH and SIGMOID are for floats alone. */
enum { IDENTITY, RELU, TANH, SIGMOID };

/* Of a chunk, at most: a gradient is added to in one go. */
enum { SAMPLES = SUMMANDS };

/* W (networks, out, in) and b (networks, out), and what takes their gradients; b may be NULL. */
typedef struct {
    size_t in, out, phi;
    const real *W, *b;
    real *dW, *db;
} Layer;

/* X (networks, samples, in), or (samples, in) with X_stride = 0 where the networks share it. */
typedef struct {
    size_t samples, depth; /* the number of layers, the read-out included */
    const Layer *layers;
    const real *scales, *bias_scales; /* s and t of each layer */
    const real *X;
    size_t X_stride;
    const real *multiplier; /* (networks); NULL for 1 */
} Networks;

/* Samples of network k, from one on. */
typedef struct {
    size_t k, start, count;
    const real *X; /* (count, in) */
} Chunk;

/* The parts of scratch memory; others is two arrays like d. */
typedef struct {
    real *panel, *bias, *signals, *d, *others;
} Memory;

/* ---- sizes, in entries */

/* From one row of a layer's activations to the next: whole vectors, and no power of two that would
 * put all rows into the same few lines of the cache. */
static size_t row_of(size_t units)
{
    size_t whole = (units + LANES - 1) / LANES * LANES;
    return whole * sizeof(real) % 1024 ? whole : whole + LANES;
}

static size_t outputs_of(const Networks *net) { return net->layers[net->depth - 1].out; }

/* A sample's signals, which are the outputs of the hidden layers. */
static size_t signals_row(const Networks *net)
{
    size_t size = 0;
    for (size_t l = 0; l + 1 < net->depth; l++) size += row_of(net->layers[l].out);
    return size;
}

/* A row of any layer's outputs, at most. */
static size_t widest_of(const Networks *net)
{
    size_t most = outputs_of(net);
    for (size_t l = 0; l + 1 < net->depth; l++)
        if (row_of(net->layers[l].out) > most) most = row_of(net->layers[l].out);
    return most;
}

/* The samples of a chunk, so that all have about as many. */
static size_t chunk_of(const Networks *net)
{
    size_t chunks = (net->samples + SAMPLES - 1) / SAMPLES;
    return (net->samples + chunks - 1) / chunks;
}

/* The signals of a network. */
size_t signals_size(const Networks *net) { return net->samples * signals_row(net); }

/* The scratch memory of each function. */
size_t scratch_size(const Networks *net)
{
    return PANEL + widest_of(net) + chunk_of(net) * (signals_row(net) + 3 * widest_of(net));
}

static Memory divided(const Networks *net, real *scratch)
{
    Memory memory = {.panel = scratch};
    memory.bias = memory.panel + PANEL;
    memory.signals = memory.bias + widest_of(net);
    memory.d = memory.signals + chunk_of(net) * signals_row(net);
    memory.others = memory.d + chunk_of(net) * widest_of(net);
    return memory;
}

/* ---- one chunk */

#ifdef SINGLE

/* h = phi(h), for rows of so many units. */
static void apply(size_t phi, size_t rows, size_t units, real *h, size_t h_row)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < units; j += LANES) {
            real *at = h + i * h_row + j;
            vec v = load_some(at, units - j);
            if (phi == TANH) v = hyperbolic_tangent(v);
            else v = 0.5f * hyperbolic_tangent(0.5f * v) + 0.5f;
            store_some(at, v, units - j);
        }
}

/* d *= phi', from the values h of phi; add d to the sums over rows, unless these are NULL. */
static void apply_derivative(size_t phi, size_t rows, size_t units, const real *h, real *d,
                             size_t row, real *sums)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < units; j += LANES) {
            size_t count = units - j;
            vec v = load_some(h + i * row + j, count), by = load_some(d + i * row + j, count);
            by *= phi == TANH ? 1.0f - v * v : v * (1.0f - v);
            store_some(d + i * row + j, by, count);
            if (sums) store_some(sums + j, load_some(sums + j, count) + by, count);
        }
}

#endif

/* t b of a layer of network k: in `scaled`, unless t is 1; NULL without b. */
static const real *bias_of(const Networks *net, size_t l, size_t k, real *scaled)
{
    const Layer *layer = &net->layers[l];
    const real *b = layer->b ? layer->b + k * layer->out : NULL;
    if (!b || net->bias_scales[l] == 1) return b;
    for (size_t j = 0; j < layer->out; j++) scaled[j] = net->bias_scales[l] * b[j];
    return scaled;
}

/* Compute f (count, out) of a chunk, and its signals. */
static void forward(const Networks *net, Chunk chunk, real *signals, real *f, const Memory *memory)
{
    size_t n = chunk.count, k = chunk.k, h_row = net->layers[0].in;
    const real *h = chunk.X;
    for (size_t l = 0; l < net->depth; l++) {
        const Layer *layer = &net->layers[l];
        size_t in = layer->in, out = layer->out;
        int hidden = l + 1 < net->depth;
        Matrix inputs = {h, h_row, 1}, W = {layer->W + k * out * in, 1, in};
        Epilogue epilogue = {
            .scale = net->scales[l],
            .bias = bias_of(net, l, k, memory->bias),
            .relu = hidden && layer->phi == RELU,
        };
        if (!hidden) {
            if (out == 1) dots(n, in, inputs, W.at, f, epilogue.scale, epilogue.bias);
            else multiply(n, out, in, inputs, W, f, out, &epilogue, memory->panel);
            break;
        }
        multiply(n, out, in, inputs, W, signals, row_of(out), &epilogue, memory->panel);
#ifdef SINGLE
        if (layer->phi > RELU) apply(layer->phi, n, out, signals, row_of(out));
#endif
        h = signals;
        h_row = row_of(out);
        signals += n * h_row;
    }
    if (net->multiplier)
        for (size_t i = 0; i < n * outputs_of(net); i++) f[i] *= net->multiplier[k];
}

/* Add to the gradients, from the signals of a chunk, and from d (count, out) in the memory, the
 * gradient with respect to its outputs. The first chunk sets them. */
static void backward(const Networks *net, Chunk chunk, const real *signals, const Memory *memory)
{
    size_t n = chunk.count, k = chunk.k, d_row = outputs_of(net);
    int adds = chunk.start > 0;
    real *d = memory->d;
    if (net->multiplier)
        for (size_t i = 0; i < n * d_row; i++) d[i] *= net->multiplier[k];
    for (size_t l = 0; !adds && l < net->depth; l++)
        if (net->layers[l].db)
            memset(net->layers[l].db + k * net->layers[l].out, 0, net->layers[l].out * sizeof(real));
    real *readout = net->layers[net->depth - 1].db;
    for (size_t i = 0; readout && i < n; i++)
        for (size_t j = 0; j < d_row; j++) readout[k * d_row + j] += d[i * d_row + j];

    signals += n * signals_row(net);
    for (size_t l = net->depth; l-- > 0;) {
        const Layer *layer = &net->layers[l];
        size_t in = layer->in, out = layer->out, h_row = l ? row_of(in) : in;
        if (l) signals -= n * h_row;
        const real *h = l ? signals : chunk.X;
        Matrix d_transposed = {d, 1, d_row}, inputs = {h, h_row, 1};
        Epilogue scaled = {.scale = net->scales[l], .adds = adds};
        multiply(out, in, n, d_transposed, inputs, layer->dW + k * out * in, in, &scaled,
                 memory->panel);
        if (l == 0) return;

        const Layer *before = &net->layers[l - 1];
        real *db = before->db ? before->db + k * in : NULL;
        real *errors_before = memory->others + l % 2 * n * widest_of(net);
        Matrix errors = {d, d_row, 1}, W = {layer->W + k * out * in, in, 1};
        Epilogue gated = {
            .scale = net->scales[l],
            .gate = before->phi == RELU ? h : NULL,
            .gate_row = h_row,
            .column_sums = before->phi <= RELU ? db : NULL,
        };
        multiply(n, in, out, errors, W, errors_before, h_row, &gated, memory->panel);
#ifdef SINGLE
        if (before->phi > RELU) apply_derivative(before->phi, n, in, h, errors_before, h_row, db);
#endif
        d = errors_before;
        d_row = h_row;
    }
}

/* Multiply the gradients of the biases of network k by t, once all chunks have been added. */
static void scale_bias_gradients(const Networks *net, size_t k)
{
    for (size_t l = 0; l < net->depth; l++) {
        const Layer *layer = &net->layers[l];
        if (!layer->db || net->bias_scales[l] == 1) continue;
        for (size_t j = 0; j < layer->out; j++) layer->db[k * layer->out + j] *= net->bias_scales[l];
    }
}

/* ---- networks first, ..., last - 1 */

static Chunk chunk_at(const Networks *net, size_t k, size_t start)
{
    size_t count = least(chunk_of(net), net->samples - start);
    return (Chunk){k, start, count, net->X + k * net->X_stride + start * net->layers[0].in};
}

static int ends_network(const Networks *net, Chunk chunk)
{
    return chunk.start + chunk.count == net->samples;
}

static Chunk next(const Networks *net, Chunk chunk)
{
    if (ends_network(net, chunk)) return chunk_at(net, chunk.k + 1, 0);
    return chunk_at(net, chunk.k, chunk.start + chunk.count);
}

/* Compute the outputs f (networks, samples, out), and the signals (networks, signals_size) unless
 * these are NULL. */
void outputs(const Networks *net, size_t first, size_t last, real *signals, real *f, real *scratch)
{
    Memory memory = divided(net, scratch);
    for (Chunk chunk = chunk_at(net, first, 0); chunk.k < last; chunk = next(net, chunk)) {
        size_t before = chunk.k * net->samples + chunk.start;
        real *own = signals ? signals + before * signals_row(net) : memory.signals;
        forward(net, chunk, own, f + before * outputs_of(net), &memory);
    }
}

/* Compute the gradients from the signals, and from d (networks, samples, out), the gradients with
 * respect to the outputs. */
void gradients(const Networks *net, size_t first, size_t last, const real *signals, const real *d,
               real *scratch)
{
    Memory memory = divided(net, scratch);
    for (Chunk chunk = chunk_at(net, first, 0); chunk.k < last; chunk = next(net, chunk)) {
        size_t before = chunk.k * net->samples + chunk.start, out = outputs_of(net);
        memcpy(memory.d, d + before * out, chunk.count * out * sizeof(real));
        backward(net, chunk, signals + before * signals_row(net), &memory);
        if (ends_network(net, chunk)) scale_bias_gradients(net, chunk.k);
    }
}

/* Compute losses (networks) and gradients: of the means of (f - f0 - y)^2 over samples and outputs.
 *
 * Args:
 *     f0: (networks, samples, out); NULL for 0.
 *     y: (networks, samples, out), or (samples, out) with y_stride = 0 where they share it.
 *     centred: takes f - f0 (networks, samples, out), unless it is NULL.
 */
void mse_gradients(const Networks *net, size_t first, size_t last, const real *f0, const real *y,
                   size_t y_stride, real *centred, real *losses, real *scratch)
{
    Memory memory = divided(net, scratch);
    size_t out = outputs_of(net), entries = net->samples * out;
    double sum = 0;
    for (Chunk chunk = chunk_at(net, first, 0); chunk.k < last; chunk = next(net, chunk)) {
        size_t start = chunk.start * out, before = chunk.k * entries + start;
        const real *targets = y + chunk.k * y_stride + start;
        real *d = memory.d;
        forward(net, chunk, memory.signals, d, &memory);
        for (size_t i = 0; i < chunk.count * out; i++) {
            real f = f0 ? d[i] - f0[before + i] : d[i], error = f - targets[i];
            if (centred) centred[before + i] = f;
            sum += (double)error * error;
            d[i] = error * ((real)2 / entries);
        }
        backward(net, chunk, memory.signals, &memory);
        if (!ends_network(net, chunk)) continue;
        scale_bias_gradients(net, chunk.k);
        losses[chunk.k] = sum / entries;
        sum = 0;
    }
}
