/* What follows an affine map in a layer: phi, and its derivative from its values. */

#ifndef ACTIVATIONS_H
#define ACTIVATIONS_H

#include "vectors.h"
#ifdef SINGLE
#include "functions.h"
#endif

/* TANH and SIGMOID are for floats alone. */
typedef enum { IDENTITY, RELU, TANH, SIGMOID } Activation;

INLINE vec activated(Activation phi, vec v)
{
    if (phi == RELU) return larger((vec){0}, v);
#ifdef SINGLE
    if (phi == TANH) return hyperbolic_tangent(v);
    if (phi == SIGMOID) return 0.5f * hyperbolic_tangent(0.5f * v) + 0.5f;
#endif
    return v;
}

/* d times the derivative of phi where its value is `value`. */
INLINE vec times_derivative(Activation phi, vec value, vec d)
{
    if (phi == RELU) return where_positive(value, d);
    if (phi == TANH) return d * (1 - value * value);
    if (phi == SIGMOID) return d * (value * (1 - value));
    return d;
}

#endif
