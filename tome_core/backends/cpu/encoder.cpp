// All blocks of a plain Vision Transformer in one call: norm, attention, residual, merging, norm, MLP, residual. With one
// call from Python for each kernel, these calls would dominate the time of small batches.
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"

namespace {

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

}  // namespace

const int64_t tome_block_bytes = sizeof(BlockWeights), tome_encode_bytes = sizeof(EncodeArguments);

// Runs all blocks. Returns whether the resulting tokens and sizes are in the other buffers.
bool tome_encode(const EncodeArguments& args) {
    const int64_t depth = args.depth, images = args.images, dim = args.dim, heads = args.heads, hidden = args.hidden;
    const int64_t head_dim = dim / heads, stride = 3 * dim;
    Activation *tokens = args.tokens, *other = args.other_tokens, *const wide = args.wide;
    float *sizes = args.sizes, *other_sizes = args.other_sizes;
    const float scale = static_cast<float>(std::pow(static_cast<double>(head_dim), -0.5) * M_LOG2E);
    // Merging writes to the other buffers, which are then exchanged with these. Before the first merge all sizes are 1
    // and the buffer of sizes is undefined.
    bool has_sizes = false;
    for (int64_t i = 0; i < depth; i++) {
        const BlockWeights& block = args.blocks[i];
        const int64_t* before = args.offsets + i * (images + 1);
        const int64_t* after = before + images + 1;
        int64_t n = before[images];
        const bool weighted = has_sizes && args.proportional;
        // The last block goes on with the leading tokens alone after attention, and merges nothing.
        const bool only_leading = args.leading && i == depth - 1;
        tome_layer_norm(tokens, block.norm1_weight, block.norm1_bias, n, dim, block.norm1_eps, other);
        tome_linear(other, block.qkv_weight, block.qkv_bias, n, dim, stride, false, nullptr, wide);
        if (weighted) log2_of(sizes, n, args.bias);
        tome_attention(wide, wide + dim, wide + 2 * dim, stride, stride, stride, weighted ? args.bias : nullptr, before,
                       images, heads, head_dim, scale, other);
        if (only_leading) {
            gather_leading(tokens, dim, before, images, args.leading);
            gather_leading(other, dim, before, images, args.leading);
            n = images * args.leading;
        }
        tome_linear(other, block.proj_weight, block.proj_bias, n, dim, dim, false, tokens, tokens);
        if (!only_leading && after[images] < n) {
            tome_merge(tokens, wide + dim, stride, has_sizes ? sizes : nullptr, before, after, images, dim, heads,
                       head_dim, args.prefix, args.rule, other, other_sizes, args.dest + i * args.dest_stride, args.merged);
            std::swap(tokens, other);
            std::swap(sizes, other_sizes);
            has_sizes = true;
            n = after[images];
        }
        tome_layer_norm(tokens, block.norm2_weight, block.norm2_bias, n, dim, block.norm2_eps, other);
        tome_linear(other, block.fc1_weight, block.fc1_bias, n, dim, hidden, true, nullptr, wide);
        tome_linear(wide, block.fc2_weight, block.fc2_bias, n, hidden, dim, false, tokens, tokens);
    }
    return tokens == args.other_tokens;
}
