/* MLPs of equal shapes, one after another: outputs, and losses and gradients.
 *
 * A hidden layer computes relu(scale W h + b), the read-out (scale W h + b) times a multiplier of
 * the network. The activations of a network stay in the core's cache from the forward to the end of
 * the backward pass. Each network is computed by itself, so its bits depend on no other. NaN stays
 * NaN.
 *
 * Matrices are contiguous and row-major.
 */

#include "product.h"

/* Evaluated at a time, where only outputs are needed: they fit into a cache. */
enum { SAMPLES = 256 };

/* W (networks, out, in) and b (networks, out), and what takes their gradients; b may be NULL. */
typedef struct {
    size_t in, out;
    const real *W, *b;
    real *dW, *db;
} Layer;

/* X (networks, samples, in), or (samples, in) with X_stride = 0 where the networks share it. */
typedef struct {
    size_t samples, depth; /* the number of layers, the read-out included */
    const Layer *layers;
    const real *scales; /* one per layer */
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

/* The entries of the signals of a network, which are the outputs of its hidden layers. */
size_t signals_size(const Networks *net)
{
    size_t size = 0;
    for (size_t l = 0; l + 1 < net->depth; l++)
        size += net->samples * row_of(net->layers[l].out);
    return size;
}

/* The entries of an array that holds the gradient with respect to the outputs of any one layer. */
static size_t errors_size(const Networks *net)
{
    size_t most = outputs_of(net);
    for (size_t l = 0; l + 1 < net->depth; l++)
        if (row_of(net->layers[l].out) > most) most = row_of(net->layers[l].out);
    return net->samples * most;
}

/* The entries of scratch memory that each function below needs. */
size_t scratch_size(const Networks *net)
{
    return PANEL + signals_size(net) + 3 * errors_size(net);
}

/* Compute f (samples, out) of network k, and its signals. */
static void forward(const Networks *net, size_t k, size_t samples, const real *X, real *signals,
                    real *f, real *panel)
{
    const real *h = X;
    size_t h_row = net->layers[0].in;
    for (size_t l = 0; l + 1 < net->depth; l++) {
        const Layer *layer = &net->layers[l];
        size_t in = layer->in, out = layer->out;
        Epilogue epilogue = {net->scales[l], layer->b ? layer->b + k * out : NULL, 1, NULL, 0, NULL};
        Matrix W = {layer->W + k * out * in, 1, in};
        multiply(samples, out, in, (Matrix){h, h_row, 1}, W, signals, row_of(out), &epilogue, panel);
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
        multiply(samples, out, in, (Matrix){h, h_row, 1}, (Matrix){W, 1, in}, f, out, &epilogue, panel);
    }
    if (net->multiplier)
        for (size_t i = 0; i < samples * out; i++) f[i] *= net->multiplier[k];
}

/* Compute the gradients of network k from its signals, and from d (samples, out), the gradient with
 * respect to its outputs, which is overwritten; so are others, two arrays of errors_size. */
static void backward(const Networks *net, size_t k, const real *X, const real *signals, real *d,
                     real *others, real *panel)
{
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
                 layer->dW + k * out * in, in, &scaled, panel);
        if (l == 0) return;
        real *db = net->layers[l - 1].db, *next = others + l % 2 * errors_size(net);
        Epilogue gated = {net->scales[l], NULL, 0, h, h_row, db ? db + k * in : NULL};
        multiply(samples, in, out, (Matrix){d, d_row, 1}, (Matrix){layer->W + k * out * in, in, 1},
                 next, h_row, &gated, panel);
        d = next, d_row = h_row;
    }
}

/* Compute the outputs f (networks, samples, out) of networks first, ..., last - 1, and their signals
 * (networks, signals_size) unless that is NULL. */
void outputs(const Networks *net, size_t first, size_t last, real *signals, real *f, real *scratch)
{
    size_t in = net->layers[0].in, out = outputs_of(net);
    for (size_t k = first; k < last; k++) {
        const real *X = net->X + k * net->X_stride;
        real *f_k = f + k * net->samples * out;
        if (signals) {
            forward(net, k, net->samples, X, signals + k * signals_size(net), f_k, scratch);
            continue;
        }
        for (size_t i = 0; i < net->samples; i += SAMPLES)
            forward(net, k, least(SAMPLES, net->samples - i), X + i * in, scratch + PANEL,
                    f_k + i * out, scratch);
    }
}

/* Compute the gradients of networks first, ..., last - 1 from their signals, and from d (networks,
 * samples, out), the gradients with respect to their outputs. */
void gradients(const Networks *net, size_t first, size_t last, const real *signals, const real *d,
               real *scratch)
{
    size_t entries = net->samples * outputs_of(net);
    real *copy = scratch + PANEL;
    for (size_t k = first; k < last; k++) {
        memcpy(copy, d + k * entries, entries * sizeof(real));
        backward(net, k, net->X + k * net->X_stride, signals + k * signals_size(net), copy,
                 copy + errors_size(net), scratch);
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
    real *signals = scratch + PANEL, *d = signals + signals_size(net);
    for (size_t k = first; k < last; k++) {
        const real *X = net->X + k * net->X_stride;
        forward(net, k, net->samples, X, signals, d, scratch);
        double sum = 0;
        for (size_t i = 0; i < entries; i++) {
            real f = f0 ? d[i] - f0[k * entries + i] : d[i], error = f - y[k * y_stride + i];
            if (centred) centred[k * entries + i] = f;
            sum += (double)error * error;
            d[i] = error * ((real)2 / entries);
        }
        losses[k] = sum / entries;
        backward(net, k, X, signals, d, d + errors_size(net), scratch);
    }
}
