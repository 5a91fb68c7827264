// The kernels: library.py declares the same functions, structures.py the same structures. The .cpp files document them.
#pragma once

#include "simd.h"

// By which tokens merge; numbered as in tome_core/rules.py.
enum Rule : int32_t { kPaper, kPairs, kNearest };

// The weights of one block, in the order in which they are used.
struct BlockWeights {
    const float* norm1_weight;
    const float* norm1_bias;
    float norm1_eps;
    const Activation* qkv_weight;
    const float* qkv_bias;
    const Activation* proj_weight;
    const float* proj_bias;
    const float* norm2_weight;
    const float* norm2_bias;
    float norm2_eps;
    const Activation* fc1_weight;
    const float* fc1_bias;
    const Activation* fc2_weight;
    const float* fc2_bias;
};

// What tome_encode works on. T is the number of tokens that enter the first block.
struct EncodeArguments {
    const BlockWeights* blocks;
    int64_t depth;
    int64_t images;
    int64_t dim;
    int64_t heads;
    int64_t hidden;
    int64_t prefix;
    int64_t leading;  // if not 0, the last block computes only so many prefix tokens of each image
    bool proportional;
    Rule rule;
    const int64_t* offsets;  // (depth + 1, images + 1)
    Activation* tokens;  // (T, dim): the tokens of the first block
    Activation* other_tokens;  // (T, dim): what norms, attention and merging give
    Activation* wide;  // (T, max(3 * dim, hidden)): queries, keys and values; later the MLP's hidden values
    float* sizes;  // (T): undefined until a block merges
    float* other_sizes;  // (T): the sizes that merging gives
    float* bias;  // (T): log2 of the sizes, for attention
    int64_t* dest;  // (T) of each block: where its tokens go
    int64_t dest_stride;  // from the dest of one block to that of the next
    bool* merged;  // (T): which tokens of a block merge
};

#pragma GCC visibility push(default)
extern "C" {
extern const int64_t tome_block_bytes, tome_encode_bytes;  // of the structures, for library.py to compare with its own
void tome_prepare();  // must run once, before all others but tome_supported and tome_has_amx
void tome_linear(const Activation* x, const Activation* weight, const float* bias, int64_t rows, int64_t inputs,
                 int64_t outputs, bool gelu, const Activation* residual, Activation* out);
void tome_attention(const Activation* q, const Activation* k, const Activation* v, int64_t q_stride, int64_t k_stride,
                    int64_t v_stride, const float* bias, const int64_t* offsets, int64_t images, int64_t heads,
                    int64_t head_dim, float scale, Activation* out);
void tome_merge(const Activation* x, const Activation* k, int64_t k_stride, const float* sizes, const int64_t* offsets,
                const int64_t* out_offsets, int64_t images, int64_t dim, int64_t heads, int64_t head_dim,
                int64_t prefix, Rule rule, Activation* out, float* out_sizes, int64_t* dest, bool* merged);
void tome_layer_norm(const Activation* x, const float* weight, const float* bias, int64_t rows, int64_t dim, float eps,
                     Activation* out);
void tome_normalise(const uint8_t* pixels, const float* scale, const float* shift, int64_t planes, int64_t channels,
                    int64_t size, Activation* out);
bool tome_encode(const EncodeArguments& args);
}
#pragma GCC visibility pop
