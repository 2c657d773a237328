/* What follows the losses of a step. */

#ifdef SINGLE

#include <stddef.h>
#include <stdint.h>

/* Smooth the losses (networks) of active networks, count the steps that these make, and note which
 * thresholds were crossed: the formulas of mlpsubmit/training/loss_history.py.
 *
 * Args:
 *     thresholds, uncrossed, crossed_after: (networks, count).
 *     made: takes which networks make the step.
 *     stops: whether a network is not active any more once it has crossed the last threshold.
 *     contracts: whether an average is rounded once less, as PyTorch does on some CPUs.
 */
void loss_step(size_t networks, size_t count, const double *losses, double *smoothed,
               const double *smoother, uint8_t *active, int64_t *steps, const double *thresholds,
               uint8_t *uncrossed, int64_t *crossed_after, uint8_t *made, size_t stops,
               size_t contracts)
{
    for (size_t k = 0; k < networks; k++) {
        if (active[k]) {
            double old = smoothed[k] * smoother[k], share = 1 - smoother[k];
            smoothed[k] = contracts ? __builtin_fma(losses[k], share, old) : losses[k] * share + old;
        }
        made[k] = active[k] && smoothed[k] - smoothed[k] == 0; /* finite */
        active[k] = made[k];
        if (!made[k]) continue;
        steps[k]++;
        for (size_t t = k * count; t < (k + 1) * count; t++)
            if (uncrossed[t] && smoothed[k] < thresholds[t]) {
                uncrossed[t] = 0;
                crossed_after[t] = steps[k];
            }
        if (stops && count) active[k] = uncrossed[(k + 1) * count - 1];
    }
}

#endif
