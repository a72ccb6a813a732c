/* The rule 'reference-rule': linear, fitted to what a policy of training seed 2 chose
 * For SM-group sizes it is asked on each GPU at the start, and again after every
 * 1/4 of the tokens it dispatches and of its sums that may be combined, and at the first of these.
 * Taken is the first of the nearest splits. */
#ifndef DYSHARP_RULE_H
#define DYSHARP_RULE_H

#include <math.h>

#define DYSHARP_NUM_SPLITS 30

/* All values lie in [0, 1]; "root" of a time: sqrt(time / lower bound), cut at 1. */
struct dysharp_context {
    float sent; /* fraction of this GPU's tokens dispatched */
    float gemm_done; /* fraction of this GPU's GEMM work finished, by tokens */
    float gemm_share; /* the same for the SMs of the GPU with the most GEMM work as link_share: what the busiest link alone needs over the lower bound: near 1 if links bind */
    float hbm_share; /* the same for the HBM that expert weights and tokens keep busiest as link_share: what the busiest link alone needs over the lower bound: near 1 if links bind */
    float tokens_per_expert; /* (token, expert) pairs an expert of this GPU has on average, over themselves and a tile */
    float l2_room; /* L2 over itself and the matrices of this GPU's experts */
    float ready; /* fraction of the sums that this GPU combines that it may combine, or has */
    float all_sent; /* 1 if this GPU has dispatched all its tokens */
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

    split_dispatch = 1.00908e-01f;
    split_dispatch += 4e-06f * c->gemm_done;
    split_dispatch += -5.0005e-02f * c->all_sent;
    split_dispatch += 9.9e-05f * c->ready;
    split_dispatch += -4.3323e-02f * c->sent;
    split_combine = 1.3185e-02f;
    split_combine += 8.4238e-02f * c->gemm_done;
    split_combine += 1.246e-03f * c->all_sent;
    split_combine += 3.8516e-02f * c->ready;
    split_combine += -5.556e-03f * c->sent;
    split_early = 8.75e-01f;
    split_early += -0e+00f * c->gemm_done;
    split_early += 0e+00f * c->all_sent;
    split_early += 0e+00f * c->ready;
    split_early += -0e+00f * c->sent;
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

/* What a GPU's GEMM SMs may take next: ready rows, open tiles, to be closed early, waiting. */
struct dysharp_row {
    float is_gemm2; /* 1 for a GEMM-2 row */
    float weights_in_l2; /* 1 if the row's expert matrix is in L2 */
    float order; /* place in the list over max_candidates (first unsent; first ready; fullest open tile last) */
    float size; /* tokens over chunk_tokens (dispatch, combine) or tile_tokens (GEMM) */
    float is_partial; /* 1 for an open tile that would be closed early */
    float waiting; /* root of the time since it became ready */
    float expert_left; /* fraction of the row's expert's tokens still to arrive */
    float finishes; /* fraction of the row's tokens whose other experts are all done */
    float cost; /* root of the time it takes on its GPU's link, or on the GEMM group or HBM */
    float is_hold; /* 1 for hold, whose other features are 0 */
};

/* Returns the score of a row; the highest is taken, the first of equals. */
static inline float dysharp_row_score(const struct dysharp_context *c, const struct dysharp_row *r)
{
    float score = 0.0f;
    float weight;

    weight = -4.4367e-01f;
    weight += 2.80391e-01f * c->l2_room;
    weight += -3.77355e-01f * c->gemm_share;
    weight += 2.90914e-01f * c->hbm_share;
    weight += -1.7268e-02f * c->tokens_per_expert;
    score += weight * r->is_gemm2;
    weight = 1.056889e+00f;
    weight += -4.244468e+00f * c->l2_room;
    weight += -4.08661e-01f * c->gemm_share;
    weight += 8.17292e-01f * c->hbm_share;
    weight += 7.17132e-01f * c->tokens_per_expert;
    score += weight * r->weights_in_l2;
    weight = -2.23418e-01f;
    weight += 6.96182e-01f * c->l2_room;
    weight += 8.09769e-01f * c->gemm_share;
    weight += -1.28578e-01f * c->hbm_share;
    weight += -3.154e-02f * c->tokens_per_expert;
    score += weight * r->order;
    weight = 9.58029e-01f;
    weight += 9.53451e-01f * c->l2_room;
    weight += -8.33248e-01f * c->gemm_share;
    weight += -3.25217e-01f * c->hbm_share;
    weight += 3.62534e-01f * c->tokens_per_expert;
    score += weight * r->size;
    weight = -2.285709e+00f;
    weight += 5.42965e-01f * c->l2_room;
    weight += -9.63445e-01f * c->gemm_share;
    weight += 4.5815e-01f * c->hbm_share;
    weight += 4.56848e-01f * c->tokens_per_expert;
    score += weight * r->is_partial;
    weight = -3.85959e-01f;
    weight += 2.26635e-01f * c->l2_room;
    weight += 1.429788e+00f * c->gemm_share;
    weight += 6.27248e-01f * c->hbm_share;
    weight += -2.60016e-01f * c->tokens_per_expert;
    score += weight * r->waiting;
    weight = -3.54391e-01f;
    weight += 2.30875e-01f * c->l2_room;
    weight += -9.1028e-01f * c->gemm_share;
    weight += 1.423711e+00f * c->hbm_share;
    weight += -8.97538e-01f * c->tokens_per_expert;
    score += weight * r->expert_left;
    weight = 4.76306e-01f;
    weight += 1.47113e-01f * c->l2_room;
    weight += -3.67572e-01f * c->gemm_share;
    weight += 5.23256e-01f * c->hbm_share;
    weight += -1.242623e+00f * c->tokens_per_expert;
    score += weight * r->finishes;
    weight = 1.116253e+00f;
    weight += 3.11051e-01f * c->l2_room;
    weight += -2.79537e-01f * c->gemm_share;
    weight += -6.94565e-01f * c->hbm_share;
    weight += -5.47553e-01f * c->tokens_per_expert;
    score += weight * r->cost;
    weight = -8.63343e-01f;
    weight += -2.131768e+00f * c->l2_room;
    weight += 3.97195e-01f * c->gemm_share;
    weight += 4.4556e-01f * c->hbm_share;
    weight += -1.041225e+00f * c->tokens_per_expert;
    score += weight * r->is_hold;
    return score;
}

#endif
