/* The rule 'reference-rule': linear, fitted to what a policy of training seed 1 decides
 * It decides, over the schedule 'dysharp-tuned', on kinds plan.
 */
#ifndef DYSHARP_RULE_H
#define DYSHARP_RULE_H

#define DYSHARP_MAX_CANDIDATES 32 /* of one decision */

/* All values lie in [0, 1]; "root" of a time: sqrt(time / lower bound), cut at 1. */
struct dysharp_context {
    float link_share; /* what the busiest link alone needs over the lower bound: near 1 if links bind */
    float tokens_per_expert; /* (token, expert) pairs an expert of this GPU has on average, over themselves and a tile */
    float l2_room; /* L2 over itself and the matrices of this GPU's experts */
};

/* The plans of 'dysharp-tuned', in the order in which they are shown. What a machine cannot run
 * is not shown, and those behind it move up.
 *  0 dysharp-tuned-0
 *  1 dysharp-tuned-1
 *  2 dysharp-tuned-2
 *  3 dysharp-tuned-3
 *  4 dysharp-tuned-4
 *  5 dysharp-tuned-5
 *  6 dysharp-tuned-6
 *  7 dysharp-tuned-7
 *  8 dysharp-tuned-8
 *  9 dysharp-tuned-9
 * 10 dysharp-tuned-10
 * 11 dysharp-tuned-11
 * 12 dysharp-tuned-12
 * 13 dysharp-tuned-13
 * 14 dysharp-tuned-14
 * 15 dysharp-tuned-15
 * 16 dysharp-tuned-16
 * 17 dysharp-tuned-17
 * 18 dysharp-tuned-18
 * 19 dysharp-tuned-19
 * 20 dysharp-tuned-20
 * 21 dysharp-tuned-21
 * 22 dysharp-tuned-22
 * 23 dysharp-tuned-23
 * 24 dysharp-tuned-24
 * 25 dysharp-tuned-25
 * 26 dysharp-tuned-26
 * 27 dysharp-tuned-27
 * 28 dysharp-tuned-28
 * 29 dysharp-tuned-29
 * 30 dysharp-tuned-30
 * 31 dysharp-tuned-31
 */

/* Of kind plan the candidates are ways to run the layer, from ``plans``, those that the machine can: once,
 * before counts are known. What is shown of one and counts: */
struct dysharp_plan_features {
    float order; /* place in the list over max_candidates (first unsent; first ready; fullest open tile last; most tokens first) */
    float size; /* tokens over chunk_tokens (dispatch) or tile_tokens (GEMM; prefetch: those known of its expert, cut at 1); combine: sums over the most a chunk can have there; plan: chunk_tokens over the tokens of a GPU, cut at 1 */
    float is_partial; /* 1 for an open tile that would be closed early; plan: 1 if tiles may be */
    float fan_out; /* dispatch, combine: mean remote GPUs per token over GPUs - 1; plan: mean copies of a token over that, cut at 1 */
    float cost; /* root of the time it takes on its GPU's link, or on the GEMM group or HBM; replicate: of all weights chosen so far on the busier of the links that it takes; plan: of the SMs that move tokens, or sums */
    float split_dispatch; /* dispatch SMs over all SMs */
    float split_combine; /* combine SMs over all SMs */
    float split_early; /* 1 less the fewest tokens of an open tile that may be closed early over tile_tokens */
    float links; /* plan: root of the time that its tokens and sums take of a link, evenly routed */
    float paid; /* plan: root of what it pays for launches, barriers, counts and planning */
    float counts; /* plan: 1 if counts are exchanged */
    float multicasts; /* plan: 1 if the switch replicates tokens */
    float pulls; /* plan: 1 if experts' GPUs read tokens */
    float switch_sums; /* plan: 1 if the switch adds results */
    float per_expert; /* plan: 1 if each of a token's experts gets a copy of its own */
    float in_gemm; /* plan: 1 if GEMMs' thread blocks communicate */
    float waves; /* plan: 1 if tokens go in waves of experts */
    float prefetches; /* plan: 1 if weights are fetched ahead */
    float copies_experts; /* plan: if it may copy experts, 1 less the mean load of GPUs over that of the busiest in an earlier batch */
};

/* Returns what each feature counts, the same for all candidates of a decision. */
static inline struct dysharp_plan_features dysharp_plan_weights(const struct dysharp_context *c)
{
    struct dysharp_plan_features w;

    w.order = 4.89414e-01f;
    w.order += 6.80747e-01f * c->link_share;
    w.order += -1.603422e+00f * c->tokens_per_expert;
    w.order += -2.41627e-01f * c->l2_room;
    w.size = 6.62369e-01f;
    w.size += 1.325947e+00f * c->link_share;
    w.size += 4.063285e+00f * c->tokens_per_expert;
    w.size += -3.4022e+00f * c->l2_room;
    w.is_partial = -6.18536e-01f;
    w.is_partial += 3.45791e-01f * c->link_share;
    w.is_partial += 9.64938e-01f * c->tokens_per_expert;
    w.is_partial += 1.78136e+00f * c->l2_room;
    w.fan_out = -2.305233e+00f;
    w.fan_out += -8.310336e+00f * c->link_share;
    w.fan_out += 1.0615251e+01f * c->tokens_per_expert;
    w.fan_out += -1.976983e+00f * c->l2_room;
    w.cost = -1.09633e+00f;
    w.cost += -6.77382e+00f * c->link_share;
    w.cost += 1.556895e+00f * c->tokens_per_expert;
    w.cost += 9.98729e-01f * c->l2_room;
    w.split_dispatch = -1.18793e+00f;
    w.split_dispatch += 8.820853e+00f * c->link_share;
    w.split_dispatch += -6.259102e+00f * c->tokens_per_expert;
    w.split_dispatch += 7.386268e+00f * c->l2_room;
    w.split_combine = 3.92148e+00f;
    w.split_combine += -4.695592e+00f * c->link_share;
    w.split_combine += -3.422933e+00f * c->tokens_per_expert;
    w.split_combine += 3.394249e+00f * c->l2_room;
    w.split_early = -2.069707e+00f;
    w.split_early += 2.32129e+00f * c->link_share;
    w.split_early += -5.493794e+00f * c->tokens_per_expert;
    w.split_early += 6.145298e+00f * c->l2_room;
    w.links = 2.121825e+01f;
    w.links += -3.723666e+00f * c->link_share;
    w.links += -6.210877e+00f * c->tokens_per_expert;
    w.links += -3.4148922e+01f * c->l2_room;
    w.paid = -1.0611671e+01f;
    w.paid += 1.033279e+00f * c->link_share;
    w.paid += 1.2324274e+01f * c->tokens_per_expert;
    w.paid += -1.3468e-01f * c->l2_room;
    w.counts = 8.4353e-02f;
    w.counts += 1.720348e+00f * c->link_share;
    w.counts += -6.04665e-01f * c->tokens_per_expert;
    w.counts += -5.967562e+00f * c->l2_room;
    w.multicasts = -4.0327e-02f;
    w.multicasts += -6.50375e-01f * c->link_share;
    w.multicasts += 3.34271e-01f * c->tokens_per_expert;
    w.multicasts += 1.762541e+00f * c->l2_room;
    w.pulls = 4.0327e-02f;
    w.pulls += 6.50375e-01f * c->link_share;
    w.pulls += -3.34271e-01f * c->tokens_per_expert;
    w.pulls += -1.762541e+00f * c->l2_room;
    w.switch_sums = -2.549318e+00f;
    w.switch_sums += 3.792242e+00f * c->link_share;
    w.switch_sums += 3.60889e-01f * c->tokens_per_expert;
    w.switch_sums += 1.298406e+00f * c->l2_room;
    w.per_expert = 4.0327e-02f;
    w.per_expert += 6.50375e-01f * c->link_share;
    w.per_expert += -3.34271e-01f * c->tokens_per_expert;
    w.per_expert += -1.762541e+00f * c->l2_room;
    w.in_gemm = 2.549318e+00f;
    w.in_gemm += -3.792242e+00f * c->link_share;
    w.in_gemm += -3.60889e-01f * c->tokens_per_expert;
    w.in_gemm += -1.298406e+00f * c->l2_room;
    w.waves = 8.4353e-02f;
    w.waves += 1.720348e+00f * c->link_share;
    w.waves += -6.04665e-01f * c->tokens_per_expert;
    w.waves += -5.967562e+00f * c->l2_room;
    w.prefetches = 1.50417e-01f;
    w.prefetches += 1.1150327e+01f * c->link_share;
    w.prefetches += -5.503627e+00f * c->tokens_per_expert;
    w.prefetches += 1.2128521e+01f * c->l2_room;
    w.copies_experts = -1.166437e+00f;
    w.copies_experts += 1.332656e+00f * c->link_share;
    w.copies_experts += 1.1799228e+01f * c->tokens_per_expert;
    w.copies_experts += 1.678482e+00f * c->l2_room;
    return w;
}

/* Returns the score of a candidate; the highest is taken, the first of equals. */
static inline float dysharp_plan_score(const struct dysharp_plan_features *w, const struct dysharp_plan_features *f)
{
    float score = 0.0f;

    score += w->order * f->order;
    score += w->size * f->size;
    score += w->is_partial * f->is_partial;
    score += w->fan_out * f->fan_out;
    score += w->cost * f->cost;
    score += w->split_dispatch * f->split_dispatch;
    score += w->split_combine * f->split_combine;
    score += w->split_early * f->split_early;
    score += w->links * f->links;
    score += w->paid * f->paid;
    score += w->counts * f->counts;
    score += w->multicasts * f->multicasts;
    score += w->pulls * f->pulls;
    score += w->switch_sums * f->switch_sums;
    score += w->per_expert * f->per_expert;
    score += w->in_gemm * f->in_gemm;
    score += w->waves * f->waves;
    score += w->prefetches * f->prefetches;
    score += w->copies_experts * f->copies_experts;
    return score;
}

#endif
