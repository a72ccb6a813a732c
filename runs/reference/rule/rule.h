/* The rule 'distilled-split': linear, fitted to what a policy of training seed 2 chose
 * For SM-group sizes it is asked on each GPU at the start, and again after every
 * 1/4 of the tokens it dispatches and of its sums that may be combined, and at the first of these.
 * Taken is the first of the nearest splits. */
#ifndef DYSHARP_RULE_H
#define DYSHARP_RULE_H

#include <math.h>

#define DYSHARP_NUM_SPLITS 30

/* All values lie in [0, 1]; "root" of a time: sqrt(time / lower bound), cut at 1. */
struct dysharp_context {
    float gemm_done; /* fraction of this GPU's GEMM work finished, by tokens */
    float all_sent; /* 1 if this GPU has dispatched all its tokens */
    float gemm_share; /* the same for the SMs of the GPU with the most GEMM work as link_share: what the busiest link alone needs over the lower bound: near 1 if links bind */
};

/* Dispatch SMs, combine SMs, and the fewest tokens of an open tile that may be closed early (
 * 1073741824: none may). */
static const int dysharp_splits[DYSHARP_NUM_SPLITS][3] = {
    {8, 11, 1073741824},
    {1, 1, 1073741824},
    {1, 4, 1073741824},
    {1, 8, 1073741824},
    {1, 11, 1073741824},
    {1, 16, 1073741824},
    {1, 22, 1073741824},
    {4, 1, 1073741824},
    {4, 4, 1073741824},
    {4, 8, 1073741824},
    {4, 11, 1073741824},
    {4, 16, 1073741824},
    {4, 22, 1073741824},
    {8, 1, 1073741824},
    {8, 4, 1073741824},
    {8, 8, 1073741824},
    {8, 16, 1073741824},
    {8, 22, 1073741824},
    {14, 1, 1073741824},
    {14, 4, 1073741824},
    {14, 8, 1073741824},
    {14, 11, 1073741824},
    {14, 16, 1073741824},
    {14, 22, 1073741824},
    {20, 1, 1073741824},
    {20, 4, 1073741824},
    {20, 8, 1073741824},
    {20, 11, 1073741824},
    {20, 16, 1073741824},
    {20, 22, 1073741824},
};

/* Returns the row of dysharp_splits to take on a GPU of num_sms SMs, with tiles of tile_tokens tokens. */
static inline int dysharp_split(const struct dysharp_context *c, int num_sms, int tile_tokens)
{
    float split_dispatch;
    float split_combine;
    float split_early;
    float nearest = INFINITY;
    int best = 0;

    split_dispatch = 1.10743e-01f;
    split_dispatch += -2.901e-03f * c->gemm_done;
    split_dispatch += -8.6673e-02f * c->all_sent;
    split_dispatch += -1.8798e-02f * c->gemm_share;
    split_combine = 5.1535e-02f;
    split_combine += 1.31259e-01f * c->gemm_done;
    split_combine += -1.7175e-02f * c->all_sent;
    split_combine += -5.2316e-02f * c->gemm_share;
    split_early = -0e+00f;
    split_early += 0e+00f * c->gemm_done;
    split_early += -0e+00f * c->all_sent;
    split_early += -0e+00f * c->gemm_share;
    for (int row = 0; row < DYSHARP_NUM_SPLITS; ++row) {
        const int *split = dysharp_splits[row];
        const float dispatch = (float)(split[0] / (double)num_sms);
        const float combine = (float)(split[1] / (double)num_sms);
        const float early = (float)fmax(0.0, 1.0 - split[2] / (double)tile_tokens);
        float away = 1.6e+01f * fabsf(dispatch - split_dispatch);
        away += 1.1e+01f * fabsf(combine - split_combine);
        away += 1e+00f * fabsf(early - split_early);
        if (away < nearest) {
            nearest = away;
            best = row;
        }
    }
    return best;
}

#endif
