// Linear layers: rows times a packed weight, plus a bias, optionally followed by GELU. Weight and bias are padded to whole
// panels of outputs. In bf16 the number of inputs is even.
#include <omp.h>

#include <algorithm>

#include "functions.h"
#include "kernels.h"
#include "products.h"

namespace {

constexpr int64_t kPanel = kColumns * kLanes;  // columns whose sums stay in registers, for kRows rows
constexpr int64_t kBlock = 16 * kRows;         // rows that stay in the second-level cache while all panels are read
static_assert(kPanel == 64, "_PANEL of kernels.py");
constexpr int64_t kTasks = 8;                  // for each thread, at least, so that the others do not wait for a slow one

// Writes the sums of one row and panel; the last panel may have fewer columns. Each store writes whole cache lines.
inline void store_panel(float* out, const __m512* sums, int64_t columns) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; j++)
        store(out + j * kLanes, sums[j], first_lanes_mask(std::max<int64_t>(columns - j * kLanes, 0)));
}
#ifdef TOME_BF16
inline void store_panel(bf16* out, const __m512* sums, int64_t columns) {
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; j += 2) {
        const int64_t left = columns - j * kLanes;
        const __mmask32 m = left >= 32 ? 0xffffffff : left > 0 ? (1u << left) - 1 : 0;
        _mm512_mask_storeu_epi16(out + j * kLanes, m, (__m512i)_mm512_cvtne2ps_pbh(sums[j + 1], sums[j]));
    }
}
#endif

// Where a tile writes: `out` with `stride` columns in each row, after GELU or plus `residual`, which has the shape of `out`.
struct Target {
    Activation* out;
    const Activation* residual;
    int64_t stride;
    bool with_gelu;

    Target at(int64_t row, int64_t column) const {
        const int64_t by = row * stride + column;
        return {out + by, residual ? residual + by : nullptr, stride, with_gelu};
    }
};

// One tile of R rows and one panel. Each sum runs over the inputs in order, for any R, so the result for a row does not
// depend on the other rows.
template <int R>
void tile(const Activation* x, const Activation* panel, const float* bias, int64_t inputs, int64_t columns, Target to) {
    constexpr int width = Step<Activation>::width;
    __m512 acc[R][kColumns];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; j++) acc[i][j] = load(bias + j * kLanes);
    accumulate(acc, x, inputs, panel, kPanel * width, inputs / width);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; j++) {
            if (to.with_gelu) acc[i][j] = gelu(acc[i][j]);
            if (to.residual) {
                const __mmask16 m = first_lanes_mask(std::max<int64_t>(columns - j * kLanes, 0));
                acc[i][j] = _mm512_add_ps(acc[i][j], load(to.residual + i * to.stride + j * kLanes, m));
            }
        }
        store_panel(to.out + i * to.stride, acc[i], columns);
    }
}

template <int R = kRows>
void tiles(int64_t rows, const Activation* x, const Activation* panel, const float* bias, int64_t inputs, int64_t columns,
           Target to) {
    for (; rows >= R; rows -= R, x += R * inputs, to = to.at(R, 0)) tile<R>(x, panel, bias, inputs, columns, to);
    if constexpr (R > 1)
        if (rows) tiles<R - 1>(rows, x, panel, bias, inputs, columns, to);
}

}  // namespace

void tome_prepare() { prepare(); }

void tome_linear(const Activation* x, const Activation* weight, const float* bias, int64_t rows, int64_t inputs,
                 int64_t outputs, bool gelu, const Activation* residual, Activation* out) {
    if (!rows) return;
    const Target to{out, residual, outputs, gelu};
    const int64_t panels = (outputs + kPanel - 1) / kPanel, blocks = (rows + kBlock - 1) / kBlock;
    const int64_t height = round_up((rows + blocks - 1) / blocks, kRows);
    const int64_t width = std::max<int64_t>(1, panels * blocks / (kTasks * omp_get_max_threads()));  // in panels
    const int64_t chunks = (panels + width - 1) / width;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t row = block * height, end = std::min(rows, row + height);
            for (int64_t panel = chunk * width; panel < std::min(panels, (chunk + 1) * width); panel++) {
                const int64_t column = panel * kPanel;
                tiles(end - row, x + row * inputs, weight + column * inputs, bias + column, inputs,
                      std::min(kPanel, outputs - column), to.at(row, column));
            }
        }
}
