// Resizes an image of 8 bits along its rows, then along its columns, into planes.
//
// The result equals Pillow's bit for bit: filters and weights in double precision, weights rounded
// to 22 binary places, sums in 32 bits, and 8 bits between the two passes. Only the rows and
// columns that the part needs are computed. It is compiled for any processor, and for x86 with AVX2.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))

namespace {

// https://arrow.apache.org/docs/format/CDataInterface.html
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void** buffers;
    ArrowArray** children;
    ArrowArray* dictionary;
    void (*release)(ArrowArray*);
    void* private_data;
};

// Bytes that are handled at once: values of as many rows in the first pass, columns in the second.
constexpr int64_t LANES = 16;
constexpr int PLACES = 22;
constexpr int32_t HALF = 1 << (PLACES - 1);
constexpr double ONE = 1 << PLACES;
constexpr double PI = 3.14159265358979323846;

typedef uint8_t Bytes __attribute__((vector_size(LANES)));

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bilinear(double x) {
    x = std::fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

double hamming(double x) {
    x = std::fabs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= PI;
    return std::sin(x) / x * (0.54f + 0.46f * std::cos(x));  // constants of single precision
}

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= PI;
    return std::sin(x) / x;
}

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

// The order is that of FILTERS in resampling.py.
struct Filter {
    double (*value)(double);
    double support;
};
constexpr Filter FILTERS[] = {
    {box, 0.5}, {bilinear, 1.0}, {hamming, 1.0}, {bicubic, 2.0}, {lanczos, 3.0}};

// Of each value of a resized side: which pixels it is the sum of, and their weights.
struct Weights {
    int64_t most;  // room for the weights of one value
    std::unique_ptr<int64_t[]> starts, counts;
    std::unique_ptr<int32_t[]> values;

    Weights(int64_t side, float first, float last, int64_t resized, const Filter& filter) {
        const double scale = static_cast<double>(last - first) / static_cast<double>(resized);
        const double stretch = std::max(scale, 1.0);
        const double support = filter.support * stretch;
        const double inverse = 1.0 / stretch;
        most = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
        starts.reset(new int64_t[resized]);
        counts.reset(new int64_t[resized]);
        values.reset(new int32_t[resized * most]);
        const std::unique_ptr<double[]> exact(new double[most]);
        for (int64_t index = 0; index < resized; index++) {
            const double center = first + (static_cast<double>(index) + 0.5) * scale;
            const int64_t start = std::max<int64_t>(static_cast<int>(center - support + 0.5), 0);
            const int64_t end = std::min<int64_t>(static_cast<int>(center + support + 0.5), side);
            const int64_t count = end - start;
            double total = 0.0;
            for (int64_t tap = 0; tap < count; tap++) {
                const double position = static_cast<double>(tap + start);
                exact[tap] = filter.value((position - center + 0.5) * inverse);
                total += exact[tap];
            }
            for (int64_t tap = 0; tap < count; tap++) {
                const double share = total != 0.0 ? exact[tap] / total : exact[tap];
                const double away_from_zero = share < 0 ? -0.5 : 0.5;
                values[index * most + tap] = static_cast<int>(away_from_zero + share * ONE);
            }
            starts[index] = start;
            counts[index] = count;
        }
    }
};

INLINE Bytes load(const uint8_t* from) {
    Bytes values;
    std::memcpy(&values, from, sizeof(values));
    return values;
}

// Transposes LANES x LANES bytes.
INLINE void transpose(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
    Bytes rows[LANES], merged[LANES];
    for (int64_t row = 0; row < LANES; row++) rows[row] = load(from + row * from_stride);
    for (int stage = 0; stage < 4; stage++) {
        for (int64_t row = 0; row < LANES / 2; row++) {
            const Bytes upper = rows[row], lower = rows[row + LANES / 2];
            merged[2 * row] = __builtin_shuffle(
                upper, lower, Bytes{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
            merged[2 * row + 1] = __builtin_shuffle(
                upper, lower, Bytes{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
        }
        for (int64_t row = 0; row < LANES; row++) rows[row] = merged[row];
    }
    for (int64_t row = 0; row < LANES; row++) {
        std::memcpy(to + row * to_stride, &rows[row], sizeof(Bytes));
    }
}

// Writes `groups` x LANES sums of `count` times as many bytes, which lie `step` apart.
template <int groups>
INLINE void add_up(
    const uint8_t* from, int64_t step, const int32_t* weights, int64_t count, uint8_t* to) {
#ifdef __AVX2__
    constexpr int halves = 2 * groups;
    const __m256i half = _mm256_set1_epi32(HALF);
    __m256i sums[halves];
#pragma GCC unroll 6
    for (int index = 0; index < halves; index++) sums[index] = half;
    for (int64_t tap = 0; tap < count; tap++) {
        const __m256i weight = _mm256_set1_epi32(weights[tap]);
#pragma GCC unroll 6
        for (int index = 0; index < halves; index++) {
            const void* const eight = from + index * LANES / 2;
            const __m128i bytes = _mm_loadl_epi64(static_cast<const __m128i*>(eight));
            const __m256i products = _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), weight);
            sums[index] = _mm256_add_epi32(sums[index], products);
        }
        from += step;
    }
#pragma GCC unroll 3
    for (int group = 0; group < groups; group++) {
        const __m256i low = _mm256_srai_epi32(sums[2 * group], PLACES);
        const __m256i high = _mm256_srai_epi32(sums[2 * group + 1], PLACES);
        // Packing saturates, and mixes the halves of the registers.
        const __m256i mixed = _mm256_packs_epi32(low, high);
        const __m256i words = _mm256_permute4x64_epi64(mixed, _MM_SHUFFLE(3, 1, 2, 0));
        const __m128i values = _mm_packus_epi16(_mm256_castsi256_si128(words),
                                                _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + group * LANES), values);
    }
#else
    for (int group = 0; group < groups; group++) {
        int32_t sums[LANES];
        for (int32_t& sum : sums) sum = HALF;
        const uint8_t* values = from + group * LANES;
        for (int64_t tap = 0; tap < count; tap++) {
            for (int64_t lane = 0; lane < LANES; lane++) sums[lane] += values[lane] * weights[tap];
            values += step;
        }
        for (int64_t lane = 0; lane < LANES; lane++) {
            to[group * LANES + lane] = std::min(std::max(sums[lane] >> PLACES, 0), 255);
        }
    }
#endif
}

struct Source {
    const uint8_t* pixels;
    int64_t width, height, pixel_bytes;
};

// Transposes the bytes from `first` to `last` of up to LANES rows: `to[byte][row]`.
INLINE void transpose_rows(
    const Source& source, int64_t top, int64_t first, int64_t last, uint8_t* to) {
    const int64_t stride = source.width * source.pixel_bytes;
    const int64_t rows = std::min(LANES, source.height - top);
    const uint8_t* from = source.pixels + top * stride;
    int64_t start = first;
    if (rows == LANES) {
        for (; start + LANES <= last; start += LANES) {
            transpose(from + start, stride, to + (start - first) * LANES, LANES);
        }
    }
    for (; start < last; start += LANES) {
        uint8_t edge[LANES * LANES] = {};
        const int64_t bytes = std::min(LANES, last - start);
        for (int64_t row = 0; row < rows; row++) {
            std::memcpy(edge + row * LANES, from + row * stride + start, bytes);
        }
        transpose(edge, LANES, to + (start - first) * LANES, LANES);
    }
}

INLINE int64_t whole_lanes(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// The first pixel that any value needs, and the end of the last one.
INLINE void find_span(const Weights& weights, int64_t resized, int64_t& first, int64_t& last) {
    first = weights.starts[0];
    last = weights.starts[resized - 1] + weights.counts[resized - 1];
}

template <int channels>
INLINE void resize(const Source& source, const Weights& across, int64_t width, const Weights& down,
                   int64_t height, uint8_t* planes) {
    int64_t left, right, top, bottom;
    find_span(across, width, left, right);
    find_span(down, height, top, bottom);
    const int64_t padded = whole_lanes(width);
    const int64_t row_bytes = channels * padded;
    const int64_t column_bytes = source.pixel_bytes * LANES;
    const std::unique_ptr<uint8_t[]> columns(
        new uint8_t[whole_lanes((right - left) * source.pixel_bytes) * LANES]);
    const std::unique_ptr<uint8_t[]> sums(new uint8_t[LANES * row_bytes]());
    // The image after the first pass: of each row, `channels` x `padded`.
    const std::unique_ptr<uint8_t[]> narrow(new uint8_t[whole_lanes(bottom - top) * row_bytes]);

    for (int64_t row = top; row < bottom; row += LANES) {
        transpose_rows(source, row, left * source.pixel_bytes, right * source.pixel_bytes,
                       columns.get());
        for (int64_t x = 0; x < width; x++) {
            add_up<channels>(columns.get() + (across.starts[x] - left) * column_bytes, column_bytes,
                             &across.values[x * across.most], across.counts[x],
                             sums.get() + x * channels * LANES);
        }
        uint8_t* const rows = narrow.get() + (row - top) * row_bytes;
        for (int64_t x = 0; x < padded; x += LANES) {
            for (int channel = 0; channel < channels; channel++) {
                transpose(sums.get() + (x * channels + channel) * LANES, channels * LANES,
                          rows + channel * padded + x, row_bytes);
            }
        }
    }
    for (int64_t y = 0; y < height; y++) {
        const uint8_t* const rows = narrow.get() + (down.starts[y] - top) * row_bytes;
        for (int64_t start = 0; start < row_bytes; start += channels * LANES) {
            add_up<channels>(rows + start, row_bytes, &down.values[y * down.most], down.counts[y],
                             sums.get() + start);
        }
        for (int channel = 0; channel < channels; channel++) {
            std::memcpy(planes + (channel * height + y) * width, sums.get() + channel * padded,
                        width);
        }
    }
}

}  // namespace

// Whether this processor has the instructions that the library is compiled for.
EXPORT bool tome_supported() {
#ifdef __AVX2__
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
#else
    return true;
#endif
}

// The bytes of an image that Pillow exports as an array of `pixels` numbers of one byte, or lists of
// four. Null if it is another array.
EXPORT const uint8_t* tome_find_pixels(const ArrowArray* array, int64_t pixels,
                                       int64_t pixel_bytes) {
    if (array->n_children != (pixel_bytes == 1 ? 0 : 1)) return nullptr;
    const ArrowArray* const bytes = pixel_bytes == 1 ? array : array->children[0];
    if (array->length != pixels || bytes->length != pixels * pixel_bytes) return nullptr;
    if (array->offset != 0 || bytes->offset != 0 || bytes->n_buffers != 2) return nullptr;
    return static_cast<const uint8_t*>(bytes->buffers[1]);
}

// Resizes the part from left to right and from top to bottom of an image without gaps, whose first
// `channels` bytes of each `pixel_bytes` count, to `planes`, uint8 (channels, height, width). There
// are 1 or 3 channels. False if memory is missing.
EXPORT bool tome_resize(const uint8_t* pixels, int64_t channels, int64_t pixel_bytes,
                        int64_t source_width, int64_t source_height, float left, float right,
                        float top, float bottom, int64_t filter, int64_t width, int64_t height,
                        uint8_t* planes) {
    try {
        const Source source{pixels, source_width, source_height, pixel_bytes};
        const Weights across(source_width, left, right, width, FILTERS[filter]);
        const Weights down(source_height, top, bottom, height, FILTERS[filter]);
        if (channels == 1) {
            resize<1>(source, across, width, down, height, planes);
        } else {
            resize<3>(source, across, width, down, height, planes);
        }
    } catch (const std::bad_alloc&) {
        return false;
    }
    return true;
}
