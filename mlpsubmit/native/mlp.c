/* MLPs of equal shapes, one after another: outputs, and losses and gradients.
 *
 * A hidden layer computes phi(s W h + t b), with numbers s and t of the layer; the read-out s W h + b,
 * times a multiplier of the network. The samples of a network pass forward and backward in chunks
 * whose activations fit into a core's cache. Each network is computed by itself, on one thread or on
 * several that divide its columns: its bits depend neither on other networks nor on threads. NaN
 * stays NaN.
 *
 * Matrices are contiguous and row-major.
 */

#include "product.h"
#include "threads.h"

/* Of a chunk, at most: a gradient is added to in one go. */
enum { SAMPLES = SUMMANDS };

/* W (networks, out, in) and b (networks, out), and what takes their gradients; b may be NULL. */
typedef struct {
    size_t in, out, phi;
    const real *W, *b;
    real *dW, *db;
} Layer;

typedef struct {
    size_t count, samples, depth; /* networks, samples, and layers with the read-out */
    const Layer *layers;
    const real *scales, *bias_scales; /* s and t of each layer */
    const real *const *X;             /* per network (samples, in); they may share it */
    const real *multiplier;           /* (networks); NULL for 1 */
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

/* A thread of a team. All members use the signals, d and others of the first one. */
typedef struct {
    Team *team;
    Share share;
    Memory memory;
} Member;

static int leads(const Member *member) { return member->share.number == 0; }

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

/* The scratch memory of each thread. */
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
static void forward(const Networks *net, Chunk chunk, real *signals, real *f, const Member *member)
{
    const Memory *memory = &member->memory;
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
            .phi = hidden ? layer->phi : IDENTITY,
        };
        if (!hidden) {
            if (out == 1)
                dots(n, in, inputs, W.at, f, epilogue.scale, epilogue.bias, member->share);
            else
                multiply(n, out, in, inputs, W, f, out, &epilogue, memory->panel, member->share);
            break;
        }
        multiply(n, out, in, inputs, W, signals, row_of(out), &epilogue, memory->panel,
                 member->share);
        meet(member->team, member->share.of);
        h = signals;
        h_row = row_of(out);
        signals += n * h_row;
    }
    meet(member->team, member->share.of);
    if (net->multiplier && leads(member))
        for (size_t i = 0; i < n * outputs_of(net); i++) f[i] *= net->multiplier[k];
}

/* Multiply d (count, out), the gradient with respect to the outputs of a chunk, by the multiplier,
 * and add it to that of the read-out's bias. The first chunk sets the gradients of biases to 0. */
static void begin_backward(const Networks *net, Chunk chunk, real *d)
{
    size_t out = outputs_of(net), k = chunk.k;
    if (net->multiplier)
        for (size_t i = 0; i < chunk.count * out; i++) d[i] *= net->multiplier[k];
    for (size_t l = 0; chunk.start == 0 && l < net->depth; l++) {
        const Layer *layer = &net->layers[l];
        if (layer->db) memset(layer->db + k * layer->out, 0, layer->out * sizeof(real));
    }
    real *readout = net->layers[net->depth - 1].db;
    for (size_t i = 0; readout && i < chunk.count; i++)
        for (size_t j = 0; j < out; j++) readout[k * out + j] += d[i * out + j];
}

/* Add to the gradients, from the signals of a chunk, and from d (count, out) in the memory, the
 * gradient with respect to its outputs. The first chunk sets them. */
static void backward(const Networks *net, Chunk chunk, const real *signals, const Member *member)
{
    size_t n = chunk.count, k = chunk.k, d_row = outputs_of(net);
    const Memory *memory = &member->memory;
    real *d = memory->d;
    if (leads(member)) begin_backward(net, chunk, d);
    meet(member->team, member->share.of);

    signals += n * signals_row(net);
    for (size_t l = net->depth; l-- > 0;) {
        const Layer *layer = &net->layers[l];
        size_t in = layer->in, out = layer->out, h_row = l ? row_of(in) : in;
        if (l) signals -= n * h_row;
        const real *h = l ? signals : chunk.X;
        Matrix d_transposed = {d, 1, d_row}, inputs = {h, h_row, 1};
        Epilogue scaled = {.scale = net->scales[l], .adds = chunk.start > 0};
        multiply(out, in, n, d_transposed, inputs, layer->dW + k * out * in, in, &scaled,
                 memory->panel, member->share);
        if (l == 0) break;

        const Layer *before = &net->layers[l - 1];
        real *db = before->db ? before->db + k * in : NULL;
        real *errors_before = memory->others + l % 2 * n * widest_of(net);
        Matrix errors = {d, d_row, 1}, W = {layer->W + k * out * in, in, 1};
        Epilogue gated = {
            .scale = net->scales[l],
            .values = before->phi == IDENTITY ? NULL : h,
            .values_row = h_row,
            .differentiated = before->phi,
            .column_sums = db,
        };
        multiply(n, in, out, errors, W, errors_before, h_row, &gated, memory->panel,
                 member->share);
        meet(member->team, member->share.of);
        d = errors_before;
        d_row = h_row;
    }
    meet(member->team, member->share.of);
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

/* ---- all networks */

static Chunk chunk_at(const Networks *net, size_t k, size_t start)
{
    if (k == net->count) return (Chunk){.k = k};
    size_t count = least(chunk_of(net), net->samples - start);
    return (Chunk){k, start, count, net->X[k] + start * net->layers[0].in};
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

/* What one of the functions below is given; see there. */
typedef struct {
    Call call;
    const Networks *net;
    real *scratch;
    void (*compute)(const void *given, size_t first, size_t last, const Member *member);
    real *signals, *f, *centred, *losses;
    const real *d, *f0, *const *y;
} Given;

/* Threads that a network occupies: each has four panels of a layer or more. */
static size_t useful_threads(const Networks *net)
{
    size_t panels = widest_of(net) / (4 * COLUMNS);
    return panels ? panels : 1;
}

/* Compute the networks of a thread: a range of them, or a share of one. */
static void part(Call *call, size_t number, size_t count)
{
    Given *given = (Given *)call;
    const Networks *net = given->net;
    size_t teams = least(net->count, count), size = least(count / teams, useful_threads(net));
    size_t team = number / size, own = scratch_size(net);
    if (team >= teams) return;
    Member member = {.team = &call->teams[team], .share = {number % size, size}};
    member.memory = divided(net, given->scratch + number * own);
    Memory first_of_team = divided(net, given->scratch + team * size * own);
    member.memory.signals = first_of_team.signals;
    member.memory.d = first_of_team.d;
    member.memory.others = first_of_team.others;
    given->compute(given, net->count * team / teams, net->count * (team + 1) / teams, &member);
}

static void compute_all(Given *given, size_t threads)
{
    given->call.part = part;
    on_threads(&given->call, least(threads, given->net->count * useful_threads(given->net)));
}

#define EACH_CHUNK(net, chunk) \
    for (Chunk chunk = chunk_at(net, first, 0); chunk.k < last; chunk = next(net, chunk))

static void compute_outputs(const void *all, size_t first, size_t last, const Member *member)
{
    const Given *given = all;
    const Networks *net = given->net;
    EACH_CHUNK(net, chunk) {
        size_t before = chunk.k * net->samples + chunk.start;
        real *signals = member->memory.signals;
        if (given->signals) signals = given->signals + before * signals_row(net);
        forward(net, chunk, signals, given->f + before * outputs_of(net), member);
    }
}

static void compute_gradients(const void *all, size_t first, size_t last, const Member *member)
{
    const Given *given = all;
    const Networks *net = given->net;
    EACH_CHUNK(net, chunk) {
        size_t before = chunk.k * net->samples + chunk.start, out = outputs_of(net);
        if (leads(member))
            memcpy(member->memory.d, given->d + before * out, chunk.count * out * sizeof(real));
        backward(net, chunk, given->signals + before * signals_row(net), member);
        if (ends_network(net, chunk) && leads(member)) scale_bias_gradients(net, chunk.k);
    }
}

static void compute_mse_gradients(const void *all, size_t first, size_t last, const Member *member)
{
    const Given *given = all;
    const Networks *net = given->net;
    size_t out = outputs_of(net), entries = net->samples * out;
    real *d = member->memory.d;
    double sum = 0;
    EACH_CHUNK(net, chunk) {
        size_t start = chunk.start * out, before = chunk.k * entries + start;
        const real *targets = given->y[chunk.k] + start;
        forward(net, chunk, member->memory.signals, d, member);
        for (size_t i = 0; leads(member) && i < chunk.count * out; i++) {
            real f = given->f0 ? d[i] - given->f0[before + i] : d[i], error = f - targets[i];
            if (given->centred) given->centred[before + i] = f;
            sum += (double)error * error;
            d[i] = error * ((real)2 / entries);
        }
        backward(net, chunk, member->memory.signals, member);
        if (!ends_network(net, chunk) || !leads(member)) continue;
        scale_bias_gradients(net, chunk.k);
        given->losses[chunk.k] = sum / entries;
        sum = 0;
    }
}

/* Compute the outputs f (networks, samples, out), and the signals (networks, signals_size) unless
 * these are NULL. Scratch memory is for all threads. */
void outputs(const Networks *net, size_t threads, real *scratch, real *signals, real *f)
{
    Given given = {.net = net, .scratch = scratch, .signals = signals, .f = f};
    given.compute = compute_outputs;
    compute_all(&given, threads);
}

/* Compute the gradients from the signals, and from d (networks, samples, out), the gradients with
 * respect to the outputs. */
void gradients(const Networks *net, size_t threads, real *scratch, real *signals, const real *d)
{
    Given given = {.net = net, .scratch = scratch, .signals = signals, .d = d};
    given.compute = compute_gradients;
    compute_all(&given, threads);
}

/* Compute losses (networks) and gradients: of the means of (f - f0 - y)^2 over samples and outputs.
 *
 * Args:
 *     f0: (networks, samples, out); NULL for 0.
 *     y: per network (samples, out); they may share it.
 *     centred: takes f - f0 (networks, samples, out), unless it is NULL.
 */
void mse_gradients(const Networks *net, size_t threads, real *scratch, const real *f0,
                   const real *const *y, real *centred, real *losses)
{
    Given given = {.net = net, .scratch = scratch, .f0 = f0, .y = y};
    given.centred = centred;
    given.losses = losses;
    given.compute = compute_mse_gradients;
    compute_all(&given, threads);
}
