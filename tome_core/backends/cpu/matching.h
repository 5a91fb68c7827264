// Which tokens of one image merge, by each rule. Where an image is `shared`, all threads match it together.
#pragma once

#include "simd.h"

// With fewer tokens in an image, waking the other threads for it takes longer than matching and merging them.
constexpr int64_t kWorthWaking = 1 << 10;
constexpr int64_t kRowsAtOnce = 32;  // that a thread takes, so that one that other processes slow down takes fewer
constexpr float kEps = 1e-12f;  // that of torch.nn.functional.normalize, which the matchers of tome_core use

// The keys of the n tokens of one image, in the order of their heads.
struct Keys {
    const Activation* first;
    int64_t stride;
    int64_t heads;
    int64_t head_dim;
};

// Each sets for all n tokens: dest[n], old position -> new position, and merged[n], whether the token merges into another.
// r is at most half of the tokens that are no prefix tokens.
void match_as_paper(const Keys& keys, int64_t n, int64_t prefix, int64_t r, bool shared, int64_t* dest, bool* merged);
// By the distance of the keys if `nearest`, else by their cosine.
void match_pairs(const Keys& keys, int64_t n, int64_t prefix, int64_t r, bool nearest, bool shared, int64_t* dest, bool* merged);
