// All blocks of a plain Vision Transformer in one call: norm, attention, residual, merging, norm, MLP, residual. With one
// call from Python for each kernel, these calls would dominate the time of small batches.
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"

namespace {

// The addresses of the weights of one block, in the order of `BlockLayers.weights` in encoder.py.
struct Block {
    const float *norm1_weight, *norm1_bias;
    const Activation* qkv_weight;
    const float* qkv_bias;
    const Activation* proj_weight;
    const float* proj_bias;
    const float *norm2_weight, *norm2_bias;
    const Activation* fc1_weight;
    const float* fc1_bias;
    const Activation* fc2_weight;
    const float* fc2_bias;
};

// With fewer numbers, waking the other threads takes longer than the logarithms.
constexpr int64_t kWorthWaking = 1 << 12;

void log2_of(const float* sizes, int64_t n, float* out) {
#pragma omp parallel for if (n > kWorthWaking)
    for (int64_t i = 0; i < n; i++) out[i] = std::log2(sizes[i]);
}

// Moves the first `count` rows of each image to the front of the buffer, in place.
void gather_leading(Activation* rows, int64_t width, const int64_t* offsets, int64_t images, int64_t count) {
    for (int64_t image = 0; image < images; image++)
        std::memmove(rows + image * count * width, rows + offsets[image] * width, count * width * sizeof(Activation));
}

// The arguments of one call, each of 8 bytes, in the order of `_run` in encoder.py. offsets is [depth + 1]
// [images + 1]. For each token, tokens, other and normed have room for dim values, wide for max(3 * dim, hidden) values,
// sizes, other_sizes and bias for one float, and merged for one byte. The dest of a block begins dest_stride after that of
// the block before. If leading is not 0, the last block computes only so many prefix tokens of each image.
struct Pass {
    int64_t depth, images, dim, heads, hidden, prefix, leading, proportional, dest_stride;
    const Block* blocks;
    const float* eps;
    const int64_t* offsets;
    Activation *tokens, *other, *normed, *wide;
    float *sizes, *other_sizes, *bias;
    int64_t* dest;
    uint8_t* merged;
};

// Runs all blocks. Returns whether the resulting tokens are in `other`.
int encode(const Pass& pass) {
    const int64_t depth = pass.depth, images = pass.images, dim = pass.dim, heads = pass.heads, hidden = pass.hidden;
    const int64_t leading = pass.leading, head_dim = dim / heads, stride = 3 * dim;
    Activation *tokens = pass.tokens, *other = pass.other, *const normed = pass.normed, *const wide = pass.wide;
    float *sizes = pass.sizes, *other_sizes = pass.other_sizes;
    const float scale = static_cast<float>(std::pow(static_cast<double>(head_dim), -0.5) * M_LOG2E);
    // Merging writes to the other buffers, which are then exchanged with these. Before the first merge all sizes are 1
    // and the buffer of sizes is undefined.
    bool has_sizes = false;
    bool result_is_in_other = false;
    for (int64_t i = 0; i < depth; i++) {
        const Block& block = pass.blocks[i];
        const int64_t* before = pass.offsets + i * (images + 1);
        const int64_t* after = before + images + 1;
        int64_t n = before[images];
        const bool weighted = has_sizes && pass.proportional;
        // The last block goes on with the leading tokens alone after attention, and merges nothing.
        const bool only_leading = leading && i == depth - 1;
        tome_layer_norm(tokens, block.norm1_weight, block.norm1_bias, n, dim, pass.eps[2 * i], normed);
        tome_linear(normed, block.qkv_weight, block.qkv_bias, n, dim, stride, false, nullptr, wide);
        if (weighted) log2_of(sizes, n, pass.bias);
        tome_attention(wide, wide + dim, wide + 2 * dim, stride, stride, stride, weighted ? pass.bias : nullptr, before,
                       images, heads, head_dim, scale, normed);
        if (only_leading) {
            gather_leading(tokens, dim, before, images, leading);
            gather_leading(normed, dim, before, images, leading);
            n = images * leading;
        }
        tome_linear(normed, block.proj_weight, block.proj_bias, n, dim, dim, false, tokens, tokens);
        if (!only_leading && after[images] < n) {
            tome_merge(tokens, wide + dim, stride, has_sizes ? sizes : nullptr, before, after, images, dim, heads,
                       head_dim, pass.prefix, other, other_sizes, pass.dest + i * pass.dest_stride, pass.merged);
            std::swap(tokens, other);
            std::swap(sizes, other_sizes);
            has_sizes = true;
            result_is_in_other = !result_is_in_other;
            n = after[images];
        }
        tome_layer_norm(tokens, block.norm2_weight, block.norm2_bias, n, dim, pass.eps[2 * i + 1], normed);
        if (n < tome_mlp_rows()) {
            tome_linear(normed, block.fc1_weight, block.fc1_bias, n, dim, hidden, true, nullptr, wide);
            tome_linear(wide, block.fc2_weight, block.fc2_bias, n, hidden, dim, false, tokens, tokens);
        } else {
            tome_mlp(normed, block.fc1_weight, block.fc1_bias, block.fc2_weight, block.fc2_bias, n, dim, hidden, dim,
                     tokens, tokens);
        }
    }
    return result_is_in_other;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
int tome_encode(const void* pass) { return encode(*static_cast<const Pass*>(pass)); }
}
#pragma GCC visibility pop
