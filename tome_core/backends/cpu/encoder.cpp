// All blocks of a plain Vision Transformer in one call: norm, attention, residual, merging, norm, MLP, residual. What a call
// of each kernel from Python costs is what small batches would mostly wait for.
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"

namespace {

// Addresses of one block's weights, in the order in which encoder.py lists them.
template <class T>
struct Block {
    const float *norm1_weight, *norm1_bias;
    const T* qkv_weight;
    const float* qkv_bias;
    const T* proj_weight;
    const float* proj_bias;
    const float *norm2_weight, *norm2_bias;
    const T* fc1_weight;
    const float* fc1_bias;
    const T* fc2_weight;
    const float* fc2_bias;
};

constexpr int64_t kWorthWaking = 1 << 12;

void log2_of(const float* sizes, int64_t n, float* out) {
#pragma omp parallel for if (n > kWorthWaking)
    for (int64_t i = 0; i < n; i++) out[i] = std::log2(sizes[i]);
}

// The first `count` rows of each image to the front, in place.
template <class T>
void gather_leading(T* rows, int64_t width, const int64_t* offsets, int64_t images, int64_t count) {
    for (int64_t image = 0; image < images; image++)
        std::memmove(rows + image * count * width, rows + offsets[image] * width, count * width * sizeof(T));
}

// What one call is given; all fields have 8 bytes, in the order in which encoder.py lists them. offsets[depth + 1]
// [images + 1]. tokens, other and normed have room for dim values of each token, wide for three times as many and for
// hidden; sizes, other_sizes and bias for one float, merged for one byte. dest of a block begins dest_stride behind the last
// one's. Where leading is not 0, only so many prefix tokens of each image are computed of the last block.
template <class T>
struct Pass {
    int64_t depth, images, dim, heads, hidden, prefix, leading, proportional, dest_stride;
    const Block<T>* blocks;
    const float* eps;
    const int64_t* offsets;
    T *tokens, *other, *normed, *wide;
    float *sizes, *other_sizes, *bias;
    int64_t* dest;
    uint8_t* merged;
};

// Returns whether what is left is in `other`.
template <class T>
int encode(const Pass<T>& pass) {
    using K = Kernels<T>;
    const int64_t depth = pass.depth, images = pass.images, dim = pass.dim, heads = pass.heads, hidden = pass.hidden;
    const int64_t leading = pass.leading, head = dim / heads, stride = 3 * dim;
    T *tokens = pass.tokens, *other = pass.other, *const normed = pass.normed, *const wide = pass.wide;
    float *sizes = pass.sizes, *other_sizes = pass.other_sizes;
    const float scale = static_cast<float>(std::pow(static_cast<double>(head), -0.5) * M_LOG2E);
    int swaps = 0;
    for (int64_t i = 0; i < depth; i++) {
        const Block<T>& block = pass.blocks[i];
        const int64_t* before = pass.offsets + i * (images + 1);
        const int64_t* after = before + images + 1;
        int64_t n = before[images];
        const bool weighted = swaps && pass.proportional, cut = leading && i == depth - 1;
        K::layer_norm(tokens, block.norm1_weight, block.norm1_bias, n, dim, pass.eps[2 * i], normed);
        K::linear(normed, block.qkv_weight, block.qkv_bias, n, dim, stride, false, nullptr, wide);
        if (weighted) log2_of(sizes, n, pass.bias);
        K::attention(wide, wide + dim, wide + 2 * dim, stride, stride, stride, weighted ? pass.bias : nullptr, before, images,
                     heads, head, scale, normed);
        if (cut) {
            gather_leading(tokens, dim, before, images, leading);
            gather_leading(normed, dim, before, images, leading);
            n = images * leading;
        }
        K::linear(normed, block.proj_weight, block.proj_bias, n, dim, dim, false, tokens, tokens);
        if (!cut && after[images] < n) {
            K::merge(tokens, wide + dim, stride, swaps ? sizes : nullptr, before, after, images, dim, heads, head,
                     pass.prefix, other, other_sizes, pass.dest + i * pass.dest_stride, pass.merged);
            std::swap(tokens, other);
            std::swap(sizes, other_sizes);
            swaps++;
            n = after[images];
        }
        K::layer_norm(tokens, block.norm2_weight, block.norm2_bias, n, dim, pass.eps[2 * i + 1], normed);
        if (n < tome_mlp_rows()) {
            K::linear(normed, block.fc1_weight, block.fc1_bias, n, dim, hidden, true, nullptr, wide);
            K::linear(wide, block.fc2_weight, block.fc2_bias, n, hidden, dim, false, tokens, tokens);
        } else {
            K::mlp(normed, block.fc1_weight, block.fc1_bias, block.fc2_weight, block.fc2_bias, n, dim, hidden, dim, tokens,
                   tokens);
        }
    }
    return swaps % 2;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
int tome_encode_bf16(const void* pass) { return encode(*static_cast<const Pass<bf16>*>(pass)); }
int tome_encode_f32(const void* pass) { return encode(*static_cast<const Pass<float>*>(pass)); }
}
