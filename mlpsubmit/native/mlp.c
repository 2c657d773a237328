/* MLPs of equal shapes, one after another: outputs, and losses and gradients.
 *
 * A hidden layer computes phi(s W h + t b), with numbers s and t of the layer; the read-out s W h + b,
 * times a multiplier of the network. The activations of a network stay in the core's cache from the forward to the end of
 * the backward pass. Each network is computed by itself, so its bits depend on no other. NaN stays
 * NaN.
 *
 * Matrices are contiguous and row-major.
 */

#include "product.h"
#ifdef SINGLE
#include "functions.h"
#endif

/* Evaluated at a time, where only outputs are needed: they fit into a cache. */
enum { SAMPLES = 256 };

/* phi, a function whose derivative follows from its value. TANH and SIGMOID are for floats alone. */
enum { IDENTITY, RELU, TANH, SIGMOID };

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

/* The entries from one row of a layer's activations to the next: whole vectors, and no power of two
 * that would put all rows into the same few lines of the cache. */
static size_t row_of(size_t units)
{
    size_t whole = (units + LANES - 1) / LANES * LANES;
    return whole * sizeof(real) % 1024 ? whole : whole + LANES;
}

static size_t outputs_of(const Networks *net) { return net->layers[net->depth - 1].out; }

/* The entries of a sample's signals, which are the outputs of the hidden layers. */
static size_t signals_row(const Networks *net)
{
    size_t size = 0;
    for (size_t l = 0; l + 1 < net->depth; l++) size += row_of(net->layers[l].out);
    return size;
}

/* The entries of the signals of a network. */
size_t signals_size(const Networks *net) { return net->samples * signals_row(net); }

/* The entries of a row of any layer's outputs, at most. */
static size_t widest_of(const Networks *net)
{
    size_t most = outputs_of(net);
    for (size_t l = 0; l + 1 < net->depth; l++)
        if (row_of(net->layers[l].out) > most) most = row_of(net->layers[l].out);
    return most;
}

/* The parts of scratch memory. */
typedef struct {
    real *panel, *bias, *signals, *d, *others;
} Memory;

static Memory divided(const Networks *net, size_t samples, real *scratch)
{
    Memory memory = {.panel = scratch};
    memory.bias = memory.panel + PANEL;
    memory.signals = memory.bias + widest_of(net);
    memory.d = memory.signals + samples * signals_row(net);
    memory.others = memory.d + samples * widest_of(net); /* two like d */
    return memory;
}

/* The entries of scratch memory that a function below needs; for outputs alone with only_outputs. */
size_t scratch_size(const Networks *net, size_t only_outputs)
{
    size_t samples = only_outputs ? least(SAMPLES, net->samples) : net->samples;
    return PANEL + widest_of(net) + samples * (signals_row(net) + 3 * widest_of(net));
}

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

/* d *= phi', from the values h of phi, and the sums of d over its rows unless that is NULL. */
static void apply_derivative(size_t phi, size_t rows, size_t units, const real *h, real *d,
                             size_t row, real *sums)
{
    if (sums) memset(sums, 0, units * sizeof(real));
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

/* Compute f (samples, out) of network k, and its signals. */
static void forward(const Networks *net, size_t k, size_t samples, const real *X, real *signals,
                    real *f, const Memory *memory)
{
    const real *h = X;
    size_t h_row = net->layers[0].in;
    for (size_t l = 0; l + 1 < net->depth; l++) {
        const Layer *layer = &net->layers[l];
        size_t in = layer->in, out = layer->out;
        Epilogue epilogue = {net->scales[l], bias_of(net, l, k, memory->bias), layer->phi == RELU, NULL, 0, NULL};
        Matrix W = {layer->W + k * out * in, 1, in};
        multiply(samples, out, in, (Matrix){h, h_row, 1}, W, signals, row_of(out), &epilogue, memory->panel);
#ifdef SINGLE
        if (layer->phi > RELU) apply(layer->phi, samples, out, signals, row_of(out));
#endif
        h = signals, h_row = row_of(out), signals += samples * h_row;
    }
    const Layer *readout = &net->layers[net->depth - 1];
    size_t in = readout->in, out = readout->out;
    const real *W = readout->W + k * out * in, *b = readout->b ? readout->b + k * out : NULL;
    real scale = net->scales[net->depth - 1];
    if (out == 1) {
        dots(samples, in, h, h_row, W, f);
        for (size_t i = 0; i < samples; i++) f[i] = scale * f[i] + (b ? *b : 0);
    } else {
        Epilogue epilogue = {scale, b, 0, NULL, 0, NULL};
        multiply(samples, out, in, (Matrix){h, h_row, 1}, (Matrix){W, 1, in}, f, out, &epilogue, memory->panel);
    }
    if (net->multiplier)
        for (size_t i = 0; i < samples * out; i++) f[i] *= net->multiplier[k];
}

/* Compute the gradients of network k from its signals, and from d (samples, out) in the memory, the
 * gradient with respect to its outputs. */
static void backward(const Networks *net, size_t k, const real *X, const real *signals,
                     const Memory *memory)
{
    real *d = memory->d;
    const Layer *readout = &net->layers[net->depth - 1];
    size_t samples = net->samples, d_row = readout->out;
    if (net->multiplier)
        for (size_t i = 0; i < samples * d_row; i++) d[i] *= net->multiplier[k];
    if (readout->db) {
        real *db = readout->db + k * d_row;
        memset(db, 0, d_row * sizeof(real));
        for (size_t i = 0; i < samples; i++)
            for (size_t j = 0; j < d_row; j++) db[j] += d[i * d_row + j];
    }
    signals += signals_size(net);
    for (size_t l = net->depth; l-- > 0;) {
        const Layer *layer = &net->layers[l];
        size_t in = layer->in, out = layer->out, h_row = l ? row_of(in) : in;
        const real *h = l ? (signals -= samples * h_row) : X;
        Epilogue scaled = {net->scales[l], NULL, 0, NULL, 0, NULL};
        multiply(out, in, samples, (Matrix){d, 1, d_row}, (Matrix){h, h_row, 1},
                 layer->dW + k * out * in, in, &scaled, memory->panel);
        if (l == 0) return;
        const Layer *before = &net->layers[l - 1];
        real *db = before->db ? before->db + k * in : NULL, *next = memory->others + l % 2 * samples * widest_of(net);
        Epilogue gated = {net->scales[l], NULL, 0, before->phi == RELU ? h : NULL, h_row,
                          before->phi <= RELU ? db : NULL};
        multiply(samples, in, out, (Matrix){d, d_row, 1}, (Matrix){layer->W + k * out * in, in, 1},
                 next, h_row, &gated, memory->panel);
#ifdef SINGLE
        if (before->phi > RELU) apply_derivative(before->phi, samples, in, h, next, h_row, db);
#endif
        if (db && net->bias_scales[l - 1] != 1)
            for (size_t j = 0; j < in; j++) db[j] *= net->bias_scales[l - 1];
        d = next, d_row = h_row;
    }
}

/* Compute the outputs f (networks, samples, out) of networks first, ..., last - 1, and their signals
 * (networks, signals_size) unless that is NULL: these are only outputs. */
void outputs(const Networks *net, size_t first, size_t last, real *signals, real *f, real *scratch)
{
    size_t in = net->layers[0].in, out = outputs_of(net);
    Memory memory = divided(net, signals ? net->samples : least(SAMPLES, net->samples), scratch);
    for (size_t k = first; k < last; k++) {
        const real *X = net->X + k * net->X_stride;
        real *f_k = f + k * net->samples * out;
        if (signals) {
            forward(net, k, net->samples, X, signals + k * signals_size(net), f_k, &memory);
            continue;
        }
        for (size_t i = 0; i < net->samples; i += SAMPLES)
            forward(net, k, least(SAMPLES, net->samples - i), X + i * in, memory.signals,
                    f_k + i * out, &memory);
    }
}

/* Compute the gradients of networks first, ..., last - 1 from their signals, and from d (networks,
 * samples, out), the gradients with respect to their outputs. */
void gradients(const Networks *net, size_t first, size_t last, const real *signals, const real *d,
               real *scratch)
{
    size_t entries = net->samples * outputs_of(net);
    Memory memory = divided(net, net->samples, scratch);
    for (size_t k = first; k < last; k++) {
        memcpy(memory.d, d + k * entries, entries * sizeof(real));
        backward(net, k, net->X + k * net->X_stride, signals + k * signals_size(net), &memory);
    }
}

/* Compute losses (networks) and gradients of networks first, ..., last - 1: of the means of
 * (f - f0 - y)^2 over samples and outputs.
 *
 * Args:
 *     f0: (networks, samples, out); NULL for 0.
 *     y: (networks, samples, out), or (samples, out) with y_stride = 0 where they share it.
 *     centred: takes f - f0 (networks, samples, out), unless it is NULL.
 */
void mse_gradients(const Networks *net, size_t first, size_t last, const real *f0, const real *y,
                   size_t y_stride, real *centred, real *losses, real *scratch)
{
    size_t entries = net->samples * outputs_of(net);
    Memory memory = divided(net, net->samples, scratch);
    real *d = memory.d;
    for (size_t k = first; k < last; k++) {
        const real *X = net->X + k * net->X_stride;
        forward(net, k, net->samples, X, memory.signals, d, &memory);
        double sum = 0;
        for (size_t i = 0; i < entries; i++) {
            real f = f0 ? d[i] - f0[k * entries + i] : d[i], error = f - y[k * y_stride + i];
            if (centred) centred[k * entries + i] = f;
            sum += (double)error * error;
            d[i] = error * ((real)2 / entries);
        }
        losses[k] = sum / entries;
        backward(net, k, X, memory.signals, &memory);
    }
}
