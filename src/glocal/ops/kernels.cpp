// Products of weights, attention, a batch through a block, and a token through a stack of decoder blocks, for x86
// processors with AVX2. First the products:
//
//     Y = X Wᵀ + b        X: rows × k, float32        W: n × k, stored as float32, fp16, bf16 or int8
//
// W is stored in panels of 16 outputs. Within a panel, the 16 weights of one input stand together, so that a product
// reads the weights once, from front to back, and multiplies each vector of weights by one broadcast input per row.
// A tile of up to 6 rows × 16 outputs stays in registers for the whole sum over k.
//
// int8: weights carry one scale per output, and within a panel four inputs of each output stand together. Inputs are
// rounded to integers with one scale per row. Up to 6 rows wait for the weights, so their inputs have 16 bits, or as many
// as the sum over k can hold in 32 bits: k · 127 · limit < 2³¹. More rows wait for the products, so their inputs have as
// many levels between the row's smallest and largest one as one instruction multiplies exactly: 256 with VNNI, 128
// without. Sums of integers are exact, so the result does not depend on the order of the sum.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t WIDTH = 16;  // outputs in a panel
constexpr int64_t TILE = 6;    // rows in a tile
constexpr int64_t QUERIES = 24;  // queries of a head whose scores are computed at a time, from `FEW_QUERIES` queries on
constexpr int64_t FEW_QUERIES = 6;
constexpr int64_t FEW = 3;     // rows in a tile of 16-bit inputs, which needs twice as many sums
constexpr int64_t BLOCK_BYTES = 1 << 18;  // inputs that one panel is applied to before the next panel: half of an L2
constexpr int64_t DEPTH = 1024;           // inputs that are summed before the next panel, so that a panel stays in the L2
constexpr int64_t AHEAD = 1024;  // bytes of weights that are fetched before they are used

enum Kind { FLOAT32 = 0, FP16 = 1, BF16 = 2, INT8 = 3, INT8_FEW_ROWS = 4 };
enum Activation { NONE = 0, RELU = 1, GELU_TANH = 2, SILU = 3, GELU = 4 };

// Reads the 16 weights of one input as two vectors of float32.
template <Kind kind>
inline void load(const char* w, __m256& low, __m256& high);

template <>
inline void load<FLOAT32>(const char* w, __m256& low, __m256& high) {
    low = _mm256_loadu_ps(reinterpret_cast<const float*>(w));
    high = _mm256_loadu_ps(reinterpret_cast<const float*>(w) + 8);
}

template <>
inline void load<FP16>(const char* w, __m256& low, __m256& high) {
    low = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
    high = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w) + 1));
}

template <>
inline void load<BF16>(const char* w, __m256& low, __m256& high) {
    __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    __m256i a = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(both));
    __m256i b = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(both, 1));
    low = _mm256_castsi256_ps(_mm256_slli_epi32(a, 16));
    high = _mm256_castsi256_ps(_mm256_slli_epi32(b, 16));
}

// sum += a · b in the register of the sum: GCC moves the sums of an unrolled loop about, and spills some of them.
inline void add_product(__m256& sum, __m256 a, __m256 b) {
    asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

// Finishes a sum before the next one is begun: GCC would load the inputs of all rows first and spill the sums.
template <class Vector>
inline Vector in_order(Vector sum) {
    asm volatile("" : "+x"(sum)::"memory");
    return sum;
}

constexpr bool integers(Kind kind) { return kind == INT8 || kind == INT8_FEW_ROWS; }
constexpr int64_t bytes_per_weight(Kind kind) { return kind == FLOAT32 ? 4 : integers(kind) ? 1 : 2; }
constexpr int64_t bytes_per_input(Kind kind) { return kind == INT8 ? 1 : kind == INT8_FEW_ROWS ? 2 : 4; }
constexpr int64_t tile_rows(Kind kind) { return kind == INT8_FEW_ROWS ? FEW : TILE; }

// exp(x) of eight numbers ≤ 0, to 2 units in the last place: 2ⁿ times a polynomial of the remainder, |r| ≤ ln 2 / 2.
inline __m256 exponential(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x);  // in this order nan stays nan
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 720);
#pragma GCC unroll 6
    for (float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f})
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(term));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

// x / (1 + exp(-t)), the gate of SiLU (t = x) and of GELU's approximation.
inline __m256 gated(__m256 x, __m256 t) {
    __m256 e = exponential(_mm256_or_ps(t, _mm256_set1_ps(-0.0f)));  // exp(-|t|)
    __m256 negative = _mm256_cmp_ps(t, _mm256_setzero_ps(), _CMP_LT_OQ);
    __m256 share = _mm256_blendv_ps(_mm256_set1_ps(1.0f), e, negative);
    return _mm256_div_ps(_mm256_mul_ps(x, share), _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

// Coefficients of P and Q below the highest ones; P has a factor of 1 + 1.2e-7, so that P/Q does not stay below 1/2.
struct Coefficients {
    float p, q;
};
constexpr Coefficients FRACTION[] = {{6.3564886e-6f, 7.5101378e-5f},
                                     {1.7384966e-4f, 1.9129726e-3f},
                                     {4.7072535e-3f, 2.8940045e-2f},
                                     {3.4376049e-2f, 2.5283368e-1f},
                                     {3.9894227e-1f, 1.0f}};

inline __m256 activate(__m256 x, Activation activation) {
    if (activation == RELU) return _mm256_max_ps(_mm256_setzero_ps(), x);  // the second, x, where x is not a number
    if (activation == SILU) return gated(x, x);
    if (activation == GELU) {  // x Φ(x); Φ(x) - 1/2 = x P(x²) / Q(x²), fitted to 1e-8 where |x| ≤ 5.6
        __m256 c = _mm256_min_ps(_mm256_set1_ps(5.6f), _mm256_max_ps(_mm256_set1_ps(-5.6f), x));
        __m256 square = _mm256_mul_ps(c, c), p = _mm256_set1_ps(2.2145154e-8f), q = _mm256_set1_ps(1.1802039e-6f);
#pragma GCC unroll 5
        for (auto [of_p, of_q] : FRACTION) {
            p = _mm256_fmadd_ps(p, square, _mm256_set1_ps(of_p));
            q = _mm256_fmadd_ps(q, square, _mm256_set1_ps(of_q));
        }
        __m256 half = _mm256_set1_ps(0.5f), share = _mm256_div_ps(_mm256_mul_ps(c, p), q);
        share = _mm256_min_ps(half, _mm256_max_ps(_mm256_set1_ps(-0.5f), share));
        return _mm256_mul_ps(x, _mm256_add_ps(half, share));
    }
    if (activation == GELU_TANH) {  // 0.5 x (1 + tanh(t / 2)) with t / 2 = √(2/π) (x + 0.044715 x³)
        __m256 square = _mm256_mul_ps(x, x);
        __m256 t = _mm256_fmadd_ps(square, _mm256_set1_ps(2 * 0.044715f * 0.7978845608f), _mm256_set1_ps(2 * 0.7978845608f));
        return gated(x, _mm256_mul_ps(x, t));
    }
    return x;
}

// What becomes of sums: y + sum + bias, where `add` is set, or sum + bias; then the activation.
struct After {
    const float* bias;
    Activation activation;
    bool add;
};

// Finishes up to 16 outputs of one row.
inline void store(float* y, int64_t count, __m256 low, __m256 high, const After& after, int64_t first) {
    if (count == WIDTH && after.bias == nullptr && !after.add && after.activation == NONE) {  // as in attention
        _mm256_storeu_ps(y, low);
        _mm256_storeu_ps(y + 8, high);
        return;
    }
    float bias[WIDTH] = {}, before[WIDTH] = {};
    if (count < WIDTH) {
        if (after.bias != nullptr) std::copy_n(after.bias + first, count, bias);
        if (after.add) std::copy_n(y, count, before);
    }
    const float* b = count < WIDTH || after.bias == nullptr ? bias : after.bias + first;
    const float* added = count < WIDTH || !after.add ? before : y;
    low = _mm256_add_ps(low, _mm256_loadu_ps(added));
    high = _mm256_add_ps(high, _mm256_loadu_ps(added + 8));
    low = activate(_mm256_add_ps(low, _mm256_loadu_ps(b)), after.activation);
    high = activate(_mm256_add_ps(high, _mm256_loadu_ps(b + 8)), after.activation);
    if (count < WIDTH) {
        _mm256_storeu_ps(bias, low);
        _mm256_storeu_ps(bias + 8, high);
        std::copy_n(bias, count, y);
    } else {
        _mm256_storeu_ps(y, low);
        _mm256_storeu_ps(y + 8, high);
    }
}

// `rows` × 16 outputs from floating-point weights, summed over `k` inputs; rows of x are `ldx` apart.
template <Kind kind, int rows>
void tile(const float* x, int64_t ldx, int64_t k, const char* w, const After& after, int64_t first, float* y, int64_t ldy,
          int64_t count) {
    constexpr int64_t step = WIDTH * bytes_per_weight(kind);
    constexpr int chains = rows == 1 ? 4 : rows == 2 ? 2 : 1;  // independent sums, to hide the latency of an addition
    constexpr int turn = kind == FLOAT32 && rows > 3 ? 4 : chains;  // inputs of one turn of the loop
    __m256 low[rows][chains], high[rows][chains];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < chains; ++c) low[r][c] = high[r][c] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + turn <= k; i += turn) {
#pragma GCC unroll 4
        for (int c = 0; c < turn; ++c) {
            if (c * step % 64 == 0) _mm_prefetch(w + AHEAD + c * step, _MM_HINT_T0);
            __m256 a, b;
            load<kind>(w + c * step, a, b);
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) {
                __m256 input = _mm256_broadcast_ss(x + r * ldx + i + c);
                __m256 &first = low[r][c % chains], &second = high[r][c % chains];
                if constexpr (turn > chains) {
                    add_product(first, input, a);
                    add_product(second, input, b);
                } else {
                    first = _mm256_fmadd_ps(input, a, first);
                    second = _mm256_fmadd_ps(input, b, second);
                    if constexpr (rows > 2) second = in_order(second);
                }
            }
        }
        w += turn * step;
    }
    for (; i < k; ++i, w += step) {
        __m256 a, b;
        load<kind>(w, a, b);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            __m256 input = _mm256_broadcast_ss(x + r * ldx + i);
            low[r][0] = _mm256_fmadd_ps(input, a, low[r][0]);
            high[r][0] = _mm256_fmadd_ps(input, b, high[r][0]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int c = 1; c < chains; ++c) {
            low[r][0] = _mm256_add_ps(low[r][0], low[r][c]);
            high[r][0] = _mm256_add_ps(high[r][0], high[r][c]);
        }
        store(y + r * ldy, count, low[r][0], high[r][0], after, first);
    }
}

// sum + the dot products of neighbouring pairs of 16-bit integers.
inline __m256i add_pairs(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpwssd_epi32(sum, a, b);
#elif defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) || defined(__AVXVNNI__)
constexpr int LEVELS = 255;
#else
constexpr int LEVELS = 127;  // 2 · 127 · 127 < 2¹⁵: the pairs that vpmaddubsw sums do not saturate
#endif

// sum + the dot products of four unsigned bytes of x and four signed bytes of w.
inline __m256i add_fours(__m256i sum, __m256i x, __m256i w) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, x, w);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, x, w);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
#endif
}

// How the inputs of one row were rounded: x ≈ scale · (integer - zero).
struct Rounding {
    float scale;
    int32_t zero;
};

// Scales 16 sums of integers and finishes them. `weight_sums` are the sums of the outputs' weights.
inline void store_integers(float* y, int64_t count, __m256i low, __m256i high, const Rounding& input, const float* weight_scales,
                           const int32_t* weight_sums, const After& after, int64_t first) {
    const __m256i zero = _mm256_set1_epi32(input.zero);
    const __m256 scale = _mm256_set1_ps(input.scale);
    auto scaled = [&](__m256i sum, int64_t at) {
        __m256i of_zeros = _mm256_mullo_epi32(zero, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight_sums + at)));
        return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(sum, of_zeros)),
                             _mm256_mul_ps(scale, _mm256_loadu_ps(weight_scales + at)));
    };
    store(y, count, scaled(low, 0), scaled(high, 8), after, first);
}

// `rows` × 16 outputs from int8 weights and inputs of one byte; `fours` of inputs are multiplied at a time.
template <int rows>
void tile_bytes(const uint8_t* x, int64_t fours, const char* w, __m256i (&low)[rows], __m256i (&high)[rows]) {
    for (int64_t i = 0; i < fours; ++i, w += 4 * WIDTH) {
        _mm_prefetch(w + AHEAD, _MM_HINT_T0);
        __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
        __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w) + 1);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            int32_t four;
            std::memcpy(&four, x + (r * fours + i) * 4, sizeof four);
            __m256i input = _mm256_set1_epi32(four);
            low[r] = in_order(add_fours(low[r], input, a));
            high[r] = in_order(add_fours(high[r], input, b));
        }
    }
}

// The same with inputs of 16 bits: the two sums of an output's pairs stand side by side until the end.
template <int rows>
void tile_words(const int16_t* x, int64_t fours, const char* w, __m256i (&low)[rows], __m256i (&high)[rows]) {
    __m256i sums[rows][4];
#pragma GCC unroll 3
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) sums[r][part] = _mm256_setzero_si256();
    for (int64_t i = 0; i < fours; ++i, w += 4 * WIDTH) {
        _mm_prefetch(w + AHEAD, _MM_HINT_T0);
        __m256i input[rows];
#pragma GCC unroll 3
        for (int r = 0; r < rows; ++r) {
            int64_t four;
            std::memcpy(&four, x + (r * fours + i) * 4, sizeof four);
            input[r] = _mm256_set1_epi64x(four);
        }
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
            __m256i some = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w) + part));
#pragma GCC unroll 3
            for (int r = 0; r < rows; ++r) sums[r][part] = in_order(add_pairs(sums[r][part], input[r], some));
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < rows; ++r) {
        low[r] = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[r][0], sums[r][1]), 0xD8);
        high[r] = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[r][2], sums[r][3]), 0xD8);
    }
}

// Weights of one linear layer, as Python lays them out.
struct Layer {
    const char* panels;
    const float* scales;  // of the outputs, where weights are int8
    const int32_t* sums;  // of the outputs' weights, where they are int8
    const float* bias;
    int64_t out, dim;
    int64_t kind;
};

struct Product {
    const float* x;
    const void* rounded;  // x, where weights are int8: bytes, or 16 bits for few rows; k is filled up to a multiple of 4
    const Rounding* roundings;  // of the rows
    int64_t rows;
    const Layer& layer;
    After after;
    float* y;

    // Sums over the inputs from `start` to `end`, whose weights are at `w`; the last of them are followed by bias and activation.
    template <Kind kind, int rows>
    void tile_of(const char* w, int64_t row, int64_t panel, int64_t start, int64_t end) const {
        int64_t k = layer.dim, n = layer.out;
        int64_t first = panel * WIDTH, count = std::min(WIDTH, n - first);
        float* out = y + row * n + first;
        if constexpr (integers(kind)) {
            int64_t fours = (k + 3) / 4;
            __m256i low[rows], high[rows];
            if constexpr (kind == INT8) {
#pragma GCC unroll 6
                for (int r = 0; r < rows; ++r) low[r] = high[r] = _mm256_setzero_si256();
                tile_bytes<rows>(static_cast<const uint8_t*>(rounded) + row * fours * 4, fours, w, low, high);
            } else {
                tile_words<rows>(static_cast<const int16_t*>(rounded) + row * fours * 4, fours, w, low, high);
            }
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r)
                store_integers(out + r * n, count, low[r], high[r], roundings[row + r], layer.scales + first, layer.sums + first,
                               after, first);
        } else {
            After now = end == k ? after : After{nullptr, NONE, after.add};
            now.add = now.add || start > 0;
            tile<kind, rows>(x + row * k + start, k, end - start, w, now, first, out, n, count);
        }
    }

    template <Kind kind>
    void tiles(const char* w, int64_t row, int64_t last, int64_t panel, int64_t start, int64_t end) const {
        while (row < last) {
            constexpr int64_t most = tile_rows(kind);
            int64_t left = last - row, count = (left + most - 1) / most;
            int64_t size = (left + count - 1) / count;  // tiles of even height
            switch (size) {
                case 1: tile_of<kind, 1>(w, row, panel, start, end); break;
                case 2: tile_of<kind, 2>(w, row, panel, start, end); break;
                case 3: tile_of<kind, 3>(w, row, panel, start, end); break;
                case 4: tile_of<kind, std::min<int>(4, most)>(w, row, panel, start, end); break;
                case 5: tile_of<kind, std::min<int>(5, most)>(w, row, panel, start, end); break;
                default: tile_of<kind, most>(w, row, panel, start, end); break;
            }
            row += size;
        }
    }

    template <Kind kind>
    void block(int64_t row, int64_t last, int64_t panel, int64_t start, int64_t end) const {
        int64_t k = integers(kind) ? (layer.dim + 3) / 4 * 4 : layer.dim;
        const char* w = layer.panels + (panel * k + start) * WIDTH * bytes_per_weight(kind);
        if constexpr (kind == FP16 || kind == BF16) {
            if (last - row > TILE) {  // several tiles read these weights, so that they are converted once
                alignas(32) float converted[DEPTH * WIDTH];
                for (int64_t i = 0; i < end - start; ++i) {
                    __m256 low, high;
                    load<kind>(w + i * WIDTH * bytes_per_weight(kind), low, high);
                    _mm256_store_ps(converted + i * WIDTH, low);
                    _mm256_store_ps(converted + i * WIDTH + 8, high);
                }
                return tiles<FLOAT32>(reinterpret_cast<const char*>(converted), row, last, panel, start, end);
            }
        }
        tiles<kind>(w, row, last, panel, start, end);
    }

    template <Kind kind>
    void run(int threads) const {
        int64_t panel_count = (layer.out + WIDTH - 1) / WIDTH;
        int64_t depth = integers(kind) || rows <= TILE ? layer.dim : std::min(layer.dim, DEPTH);
        int64_t fit = BLOCK_BYTES / (depth * bytes_per_input(kind)) / TILE * TILE;
        int64_t height = std::max(TILE, std::min(rows, fit));
        int64_t row_blocks = (rows + height - 1) / height;
        int64_t group = std::max<int64_t>(1, panel_count / (threads * 4));  // panels that a thread takes at a time
        int64_t groups = (panel_count + group - 1) / group;
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
        for (int64_t r = 0; r < row_blocks; ++r)
            for (int64_t g = 0; g < groups; ++g)
                for (int64_t start = 0; start < layer.dim; start += depth)
                    for (int64_t p = g * group; p < std::min(panel_count, (g + 1) * group); ++p)
                        block<kind>(r * height, std::min(rows, (r + 1) * height), p, start,
                                    std::min(layer.dim, start + depth));
    }
};

struct Range {
    float smallest, largest;  // at most and at least 0
    bool finite;
};

Range range_of(const float* x, int64_t k) {
    __m256 smallest = _mm256_setzero_ps(), largest = _mm256_setzero_ps(), zeros = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= k; i += 8) {
        __m256 some = _mm256_loadu_ps(x + i);
        smallest = _mm256_min_ps(smallest, some);
        largest = _mm256_max_ps(largest, some);
        zeros = _mm256_add_ps(zeros, _mm256_mul_ps(some, _mm256_setzero_ps()));  // nan where an input is not finite
    }
    float low[8], high[8], rest[8];
    _mm256_storeu_ps(low, smallest);
    _mm256_storeu_ps(high, largest);
    _mm256_storeu_ps(rest, zeros);
    float zero = rest[0];
    for (int lane = 1; lane < 8; ++lane) {
        low[0] = std::min(low[0], low[lane]);
        high[0] = std::max(high[0], high[lane]);
        zero += rest[lane];
    }
    for (; i < k; ++i) {
        low[0] = std::min(low[0], x[i]);
        high[0] = std::max(high[0], x[i]);
        zero += x[i] * 0.0f;
    }
    return {low[0], high[0], zero == 0.0f};
}

constexpr Rounding NOT_A_NUMBER{NAN, 0};

// Rounds one row to integers of at most `limit`.
Rounding round_row(const float* x, int64_t k, float limit, int16_t* out) {
    std::fill(out + k / 4 * 4, out + (k + 3) / 4 * 4, 0);
    Range range = range_of(x, k);
    float most = std::max(range.largest, -range.smallest);
    if (!range.finite || most == 0.0f) {
        std::fill(out, out + k, 0);
        return range.finite ? Rounding{0.0f, 0} : NOT_A_NUMBER;
    }
    float factor = limit / most;
    __m256 by = _mm256_set1_ps(factor);
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
        __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), by));
        __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), by));
        __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), both);
    }
    for (; i < k; ++i) out[i] = static_cast<int16_t>(std::nearbyint(x[i] * factor));
    return {most / limit, 0};
}

// Rounds one row to bytes of 0 to LEVELS, from its smallest to its largest input.
Rounding round_row(const float* x, int64_t k, uint8_t* out) {
    std::fill(out + k / 4 * 4, out + (k + 3) / 4 * 4, 0);
    Range range = range_of(x, k);
    float scale = (range.largest - range.smallest) / LEVELS;
    if (!range.finite || scale == 0.0f) {
        std::fill(out, out + k, 0);
        return range.finite ? Rounding{0.0f, 0} : NOT_A_NUMBER;
    }
    float factor = 1.0f / scale;
    int32_t zero = static_cast<int32_t>(std::nearbyint(-range.smallest * factor));
    const __m256 by = _mm256_set1_ps(factor);
    const __m256i from = _mm256_set1_epi32(zero), most = _mm256_set1_epi8(static_cast<char>(LEVELS));
    auto eight = [&](int64_t at) { return _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + at), by)), from); };
    int64_t i = 0;
    for (; i + 32 <= k; i += 32) {
        __m256i words = _mm256_packs_epi32(eight(i), eight(i + 8)), more = _mm256_packs_epi32(eight(i + 16), eight(i + 24));
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, more), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_min_epu8(bytes, most));
    }
    for (; i < k; ++i) {
        int32_t level = static_cast<int32_t>(std::nearbyint(x[i] * factor)) + zero;
        out[i] = static_cast<uint8_t>(std::clamp(level, 0, LEVELS));
    }
    return {scale, zero};
}

inline float sum(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// softmax(q Kᵀ · scale) V for one query; keys and values are rows of `dim` numbers, `stride` apart; `dim` is a multiple
// of 8, and `scores` holds as many numbers as there are keys, rounded up to 8.
void attend_one(const float* q, const float* keys, const float* values, const uint8_t* mask, int64_t count, int64_t dim,
                int64_t stride, float scale, float* scores, float* out) {
    float most = -INFINITY;
    for (int64_t n = 0; n < count; ++n) {
        if (mask != nullptr && !mask[n]) {
            scores[n] = -INFINITY;
            continue;
        }
        const float* key = keys + n * stride;
        __m256 a = _mm256_mul_ps(_mm256_loadu_ps(q), _mm256_loadu_ps(key)), b = _mm256_setzero_ps();
        int64_t d = 8;
        for (; d + 16 <= dim; d += 16) {
            a = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), _mm256_loadu_ps(key + d), a);
            b = _mm256_fmadd_ps(_mm256_loadu_ps(q + d + 8), _mm256_loadu_ps(key + d + 8), b);
        }
        if (d < dim) a = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), _mm256_loadu_ps(key + d), a);
        scores[n] = scale * sum(_mm256_add_ps(a, b));
        most = std::max(most, scores[n]);
    }
    int64_t padded = (count + 7) / 8 * 8;
    std::fill(scores + count, scores + padded, -INFINITY);
    __m256 largest = _mm256_set1_ps(most), total = _mm256_setzero_ps();
    for (int64_t n = 0; n < padded; n += 8) {
        __m256 score = _mm256_loadu_ps(scores + n);
        __m256 seen = _mm256_cmp_ps(score, _mm256_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        __m256 p = _mm256_and_ps(exponential(_mm256_sub_ps(score, largest)), seen);
        total = _mm256_add_ps(total, p);
        _mm256_storeu_ps(scores + n, p);
    }
    float whole = sum(total), share = whole == 0.0f ? 0.0f : 1.0f / whole;  // no key is seen: zeros, as torch has them
    for (int64_t d = 0; d < dim; d += 8) {
        __m256 a = _mm256_setzero_ps(), b = _mm256_setzero_ps();
        int64_t n = 0;
        for (; n + 2 <= count; n += 2) {
            a = _mm256_fmadd_ps(_mm256_broadcast_ss(scores + n), _mm256_loadu_ps(values + n * stride + d), a);
            b = _mm256_fmadd_ps(_mm256_broadcast_ss(scores + n + 1), _mm256_loadu_ps(values + (n + 1) * stride + d), b);
        }
        if (n < count) a = _mm256_fmadd_ps(_mm256_broadcast_ss(scores + n), _mm256_loadu_ps(values + n * stride + d), a);
        _mm256_storeu_ps(out + d, _mm256_mul_ps(_mm256_add_ps(a, b), _mm256_set1_ps(share)));
    }
}

// Memory of a thread that stays between calls: to ask for it anew costs a page fault for every 4 KB.
template <class Number, int place>
Number* scratch(size_t count) {
    thread_local std::vector<Number> memory;
    if (memory.size() < count) memory.resize(count);
    return memory.data();
}

// Transposes 8 × 8 numbers; rows of x are `ldx` apart, rows of y 16.
inline void transpose(const float* x, int64_t ldx, float* y) {
    __m256 a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // rows i and i + 4 in one vector each, four columns at a time
        a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + i * ldx)), _mm_loadu_ps(x + (i + 4) * ldx), 1);
        a[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + i * ldx + 4)), _mm_loadu_ps(x + (i + 4) * ldx + 4), 1);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        __m256 low01 = _mm256_unpacklo_ps(a[i], a[i + 1]), high01 = _mm256_unpackhi_ps(a[i], a[i + 1]);
        __m256 low23 = _mm256_unpacklo_ps(a[i + 2], a[i + 3]), high23 = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
        b[i] = _mm256_shuffle_ps(low01, low23, 0x44);
        b[i + 1] = _mm256_shuffle_ps(low01, low23, 0xEE);
        b[i + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
        b[i + 3] = _mm256_shuffle_ps(high01, high23, 0xEE);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(y + i * WIDTH, b[i]);
}

// Keys of one head in panels of 16, as weights of a product with queries; missing keys are zeros.
void pack_keys(const float* keys, int64_t count, int64_t dim, int64_t stride, float* panels) {
    for (int64_t first = 0; first < count; first += WIDTH, panels += dim * WIDTH) {
        const float* key = keys + first * stride;
        int64_t some = std::min(WIDTH, count - first);
        for (int64_t d = 0; d < dim; d += 8)
            for (int64_t n = 0; n < WIDTH; n += 8) {
                float* to = panels + d * WIDTH + n;
                if (n + 8 <= some) {
                    transpose(key + n * stride + d, stride, to);
                    continue;
                }
                for (int64_t i = 0; i < 8; ++i)
                    for (int64_t j = 0; j < 8; ++j) to[i * WIDTH + j] = n + j < some ? key[(n + j) * stride + d + i] : 0.0f;
            }
    }
}

// Values of one head in panels of 16 dimensions, as weights of a product with probabilities.
void pack_values(const float* values, int64_t count, int64_t dim, int64_t stride, float* panels) {
    for (int64_t first = 0; first < dim; first += WIDTH) {
        int64_t some = std::min(WIDTH, dim - first);
        for (int64_t n = 0; n < count; ++n, panels += WIDTH) {
            std::copy_n(values + n * stride + first, some, panels);
            std::fill(panels + some, panels + WIDTH, 0.0f);
        }
    }
}

// Turns the scores of one query into exp(scale · (s - max)), of which those after `seen` are 0, and returns 1 / their sum.
float exponentials(float* scores, int64_t seen, int64_t padded, const uint8_t* mask, float scale) {
    for (int64_t n = 0; mask != nullptr && n < seen; ++n)
        if (!mask[n]) scores[n] = -INFINITY;
    std::fill(scores + seen, scores + padded, -INFINITY);
    __m256 most = _mm256_set1_ps(-INFINITY), total = _mm256_setzero_ps();
    for (int64_t n = 0; n < padded; n += 8) most = _mm256_max_ps(most, _mm256_loadu_ps(scores + n));
    float lanes[8];
    _mm256_storeu_ps(lanes, most);
    most = _mm256_set1_ps(*std::max_element(lanes, lanes + 8));
    for (int64_t n = 0; n < padded; n += 8) {
        __m256 score = _mm256_loadu_ps(scores + n);
        __m256 is_seen = _mm256_cmp_ps(score, _mm256_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        __m256 p = exponential(_mm256_mul_ps(_mm256_sub_ps(score, most), _mm256_set1_ps(scale)));
        p = _mm256_and_ps(p, is_seen);
        total = _mm256_add_ps(total, p);
        _mm256_storeu_ps(scores + n, p);
    }
    float whole = sum(total);
    return whole == 0.0f ? 0.0f : 1.0f / whole;  // no key is seen: zeros, as torch has them
}

// Rows of x (`ldx` apart) times panels of float32: y = X P, `k` inputs and `n` outputs.
void multiply_panels(const float* x, int64_t ldx, int64_t rows, int64_t k, const float* panels, int64_t panel_size, int64_t n, float* y,
                     int64_t ldy) {
    const After nothing{nullptr, NONE, false};
    for (int64_t first = 0; first < n; first += WIDTH, panels += panel_size) {
        const char* w = reinterpret_cast<const char*>(panels);
        int64_t count = std::min(WIDTH, n - first);
        for (int64_t r = 0; r < rows;) {
            int64_t left = rows - r, tiles = (left + TILE - 1) / TILE, size = (left + tiles - 1) / tiles;
            const float* in = x + r * ldx;
            float* out = y + r * ldy + first;
            switch (size) {
                case 1: tile<FLOAT32, 1>(in, ldx, k, w, nothing, 0, out, ldy, count); break;
                case 2: tile<FLOAT32, 2>(in, ldx, k, w, nothing, 0, out, ldy, count); break;
                case 3: tile<FLOAT32, 3>(in, ldx, k, w, nothing, 0, out, ldy, count); break;
                case 4: tile<FLOAT32, 4>(in, ldx, k, w, nothing, 0, out, ldy, count); break;
                case 5: tile<FLOAT32, 5>(in, ldx, k, w, nothing, 0, out, ldy, count); break;
                default: tile<FLOAT32, 6>(in, ldx, k, w, nothing, 0, out, ldy, count); break;
            }
            r += size;
        }
    }
}

// The queries `first` to `last` of one head, as many at a time as their scores stay in the cache. Where `causal`, the
// query i sees the keys up to i.
void attend_many(const float* q, int64_t q_stride, int64_t first, int64_t last, const float* keys, const float* values, int64_t count,
                 int64_t dim, int64_t stride, const uint8_t* mask, bool causal, float scale, float* out, int64_t out_stride) {
    int64_t padded = (count + WIDTH - 1) / WIDTH * WIDTH, wide = (dim + WIDTH - 1) / WIDTH * WIDTH;
    float* scores = scratch<float, 3>(QUERIES * padded + padded * dim + count * wide);
    float *key_panels = scores + QUERIES * padded, *value_panels = key_panels + padded * dim;
    pack_keys(keys, count, dim, stride, key_panels);
    pack_values(values, count, dim, stride, value_panels);
    int64_t blocks = (last - first + QUERIES - 1) / QUERIES, height = blocks ? (last - first + blocks - 1) / blocks : 1;
    for (int64_t i = first; i < last; i += height) {
        int64_t rows = std::min(height, last - i), seen = causal ? std::min(count, i + rows) : count;
        multiply_panels(q + i * q_stride, q_stride, rows, dim, key_panels, dim * WIDTH, (seen + WIDTH - 1) / WIDTH * WIDTH, scores, padded);
        float shares[QUERIES];
        for (int64_t r = 0; r < rows; ++r)
            shares[r] = exponentials(scores + r * padded, causal ? std::min(count, i + r + 1) : count,
                                     (seen + WIDTH - 1) / WIDTH * WIDTH, mask, scale);
        multiply_panels(scores, padded, rows, seen, value_panels, count * WIDTH, dim, out + i * out_stride, out_stride);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t d = 0; d < dim; d += 8) {
                float* y = out + (i + r) * out_stride + d;
                _mm256_storeu_ps(y, _mm256_mul_ps(_mm256_loadu_ps(y), _mm256_set1_ps(shares[r])));
            }
    }
}

// y = activation(x Wᵀ + b), or y + x Wᵀ + b.
void multiply(const float* x, int64_t rows, const Layer& layer, Activation activation, bool add, float* y, int threads) {
    Product product{x, nullptr, nullptr, rows, layer, {layer.bias, activation, add}, y};
    switch (layer.kind) {
        case FLOAT32: product.run<FLOAT32>(threads); return;
        case FP16: product.run<FP16>(threads); return;
        case BF16: product.run<BF16>(threads); return;
    }
    int64_t k = layer.dim, padded = (k + 3) / 4 * 4;
    Rounding* roundings = scratch<Rounding, 0>(rows);
    product.roundings = roundings;
    if (rows <= TILE) {
        float limit = static_cast<float>(std::min<int64_t>(32767, 2147483647 / (127 * k)));
        int16_t* words = scratch<int16_t, 0>(rows * padded);
        for (int64_t r = 0; r < rows; ++r) roundings[r] = round_row(x + r * k, k, limit, words + r * padded);
        product.rounded = words;
        product.run<INT8_FEW_ROWS>(threads);
    } else {
        uint8_t* bytes = scratch<uint8_t, 0>(rows * padded);
#pragma omp parallel for num_threads(threads) if (rows > 8)
        for (int64_t r = 0; r < rows; ++r) roundings[r] = round_row(x + r * k, k, bytes + r * padded);
        product.rounded = bytes;
        product.run<INT8>(threads);
    }
}

}  // namespace

// Attention: q (batch, heads, queries, dim) with strides `q_batch, q_head, q_query`; keys and values (batch, heads, keys,
// dim) with strides `k_batch, k_head, k_key`; mask (batch, keys), 1 where a key is seen, or null; counts (batch), the keys
// of each row of the batch, or null where all have `count`, which is the largest; out (batch, queries, heads, dim),
// contiguous. All strides count numbers. Few queries read the keys once, as in decoding; more of them are products with
// keys and values in panels.
extern "C" void glocal_attend(const float* q, int64_t q_batch, int64_t q_head, int64_t q_query, const float* keys, const float* values,
                              int64_t k_batch, int64_t k_head, int64_t k_key, const uint8_t* mask, int64_t mask_batch,
                              const int64_t* counts, int causal, float* out, int64_t batch, int64_t heads, int64_t queries,
                              int64_t count, int64_t dim, float scale, int threads) {
    threads = batch * heads * queries * count * dim < 16384 ? 1 : threads;
    bool many = causal || queries >= FEW_QUERIES;
    int64_t few_heads = std::max<int64_t>(1, std::min<int64_t>(threads, queries / FEW_QUERIES));
    int64_t parts = !many ? queries : batch * heads < 4 * threads ? few_heads : 1;  // of the queries of a head
    int64_t size = (queries + parts - 1) / parts;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float* scores = scratch<float, 1>((count + 7) / 8 * 8);
#pragma omp for collapse(3) schedule(static)
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t h = 0; h < heads; ++h)
                for (int64_t part = 0; part < parts; ++part) {
                    const float* query = q + b * q_batch + h * q_head;
                    const float *key = keys + b * k_batch + h * k_head, *value = values + b * k_batch + h * k_head;
                    const uint8_t* seen = mask == nullptr ? nullptr : mask + b * mask_batch;
                    int64_t own = counts == nullptr ? count : counts[b];
                    float* o = out + (b * queries * heads + h) * dim;
                    if (many)
                        attend_many(query, q_query, part * size, std::min(queries, (part + 1) * size), key, value, own, dim, k_key,
                                    seen, causal, scale, o, heads * dim);
                    else
                        attend_one(query + part * q_query, key, value, seen, own, dim, k_key, scale, scores, o + part * heads * dim);
                }
    }
}

namespace {

struct Norm {
    const float* weight;
    const float* bias;
    double eps;
};

// (x - mean) / √(variance + eps) · weight + bias, row by row; `dim` is a multiple of 8.
void normalise(const float* from, int64_t rows, int64_t dim, const Norm& norm, float* to, int threads = 1) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 32)
    for (int64_t r = 0; r < rows; ++r) {
        const float* x = from + r * dim;
        float* y = to + r * dim;
        __m256 total = _mm256_setzero_ps(), squares = _mm256_setzero_ps();
        for (int64_t i = 0; i < dim; i += 8) total = _mm256_add_ps(total, _mm256_loadu_ps(x + i));
        __m256 mean = _mm256_set1_ps(sum(total) / dim);
        for (int64_t i = 0; i < dim; i += 8) {
            __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean);
            squares = _mm256_fmadd_ps(d, d, squares);
        }
        __m256 scale = _mm256_set1_ps(1.0f / std::sqrt(sum(squares) / dim + static_cast<float>(norm.eps)));
        for (int64_t i = 0; i < dim; i += 8) {
            __m256 d = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mean), scale);
            _mm256_storeu_ps(y + i, _mm256_fmadd_ps(d, _mm256_loadu_ps(norm.weight + i), _mm256_loadu_ps(norm.bias + i)));
        }
    }
}

// Local heads: a gated convolution over the last `size` tokens and a new one, or attention to a window of as many. The
// last tokens of a row stand in a buffer of `slots`, in front of the place of the new one.
struct LocalHeads {
    int64_t heads;  // of a window; 0 of a convolution
    int64_t size, slots;
    Layer into, out;  // out.dim is the width of a token in the buffer; out.out is 0 where a block has no local heads
    float *tokens, *values;  // (rows, slots, width): hidden channels, or keys and values
    uint8_t* own;            // (rows, slots), 1 where a token of a window is seen
    const float *kernel, *kernel_bias;  // (size + 1, width) and (width)
    Norm norm;
};

// One block: its weights and, in decoding, where its keys and values are.
struct Block {
    int64_t heads, pre_norm, activation, cross_heads;
    Norm norm1, norm_cross, norm2;
    Layer qkv, proj, cross_q, cross_proj, fc1, fc2;
    LocalHeads local;
    float *keys, *values;                      // (rows, heads, max_length, head_dim), contiguous
    const float *cross_keys, *cross_values;    // (contexts, heads, context_length, head_dim) with the strides below
    int64_t cross_batch, cross_head, cross_key;
};

// A new token in each row.
struct Step {
    int64_t rows, dim, length, max_length;  // `length` tokens are in the cache before this one
    const uint8_t* mask;              // (rows, length + 1), 1 where a token is seen, or null
    const int64_t* counts;            // (rows), the tokens of each row with this one, or null where it is length + 1
    int64_t contexts, context_length;
    const uint8_t* context_mask;      // (contexts, context_length), or null
    const int64_t* ends;              // of each block: the place of the token in the buffer of its local heads
};

// x = x + f(norm(x)), or norm(x + f(x)).
template <class Sublayer>
void residual(bool pre_norm, const Norm& norm, float* x, const Step& step, float* normalised, Sublayer sublayer) {
    if (pre_norm) {
        normalise(x, step.rows, step.dim, norm, normalised);
        sublayer(normalised);
    } else {
        sublayer(x);
        normalise(x, step.rows, step.dim, norm, x);
    }
}

// Global heads: y + attention(in), or attention(in) alone; both are (rows, proj.out).
void attend_tokens(const Block& block, const Step& step, const float* in, float* hidden, bool add, float* y, int threads) {
    int64_t rows = step.rows, width = block.proj.dim, head_dim = width / block.heads;
    int64_t head_stride = step.max_length * head_dim, row_stride = block.heads * head_stride;
    float* mixed = hidden + rows * 3 * width;
    multiply(in, rows, block.qkv, NONE, false, hidden, threads);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t h = 0; h < block.heads; ++h) {
            int64_t before = step.counts == nullptr ? step.length : step.counts[r] - 1;
            int64_t place = r * row_stride + h * head_stride + before * head_dim;
            const float* key = hidden + r * 3 * width + width + h * head_dim;
            std::copy_n(key, head_dim, block.keys + place);
            std::copy_n(key + width, head_dim, block.values + place);
        }
    glocal_attend(hidden, 3 * width, head_dim, 0, block.keys, block.values, row_stride, head_stride, head_dim, step.mask,
           step.length + 1, step.counts, 0, mixed, rows, block.heads, 1, step.length + 1, head_dim,
           1.0f / std::sqrt(static_cast<float>(head_dim)), threads);
    multiply(mixed, rows, block.proj, NONE, add, y, threads);
}

// GLU, the depthwise convolution, LayerNorm and Swish: `hidden` is (rows, 2 width), `mixed` (rows, width).
void convolve(const LocalHeads& local, int64_t rows, int64_t end, const float* hidden, float* mixed) {
    int64_t width = local.out.dim;
    for (int64_t r = 0; r < rows; ++r, hidden += 2 * width) {
        float *token = local.tokens + (r * local.slots + end) * width, *y = mixed + r * width;
        const float* first = token - local.size * width;
        for (int64_t i = 0; i < width; i += 8)
            _mm256_storeu_ps(token + i, gated(_mm256_loadu_ps(hidden + i), _mm256_loadu_ps(hidden + width + i)));
        for (int64_t i = 0; i < width; i += 8) {
            __m256 total = _mm256_loadu_ps(local.kernel_bias + i);
            for (int64_t k = i; k <= local.size * width + i; k += width)
                total = _mm256_fmadd_ps(_mm256_loadu_ps(local.kernel + k), _mm256_loadu_ps(first + k), total);
            _mm256_storeu_ps(y + i, total);
        }
    }
    normalise(mixed, rows, width, local.norm, mixed);
    for (int64_t i = 0; i < rows * width; i += 8)
        _mm256_storeu_ps(mixed + i, activate(_mm256_loadu_ps(mixed + i), SILU));
}

// Attention to the last `size` tokens and the new one: `hidden` is (rows, 3 width), `mixed` (rows, width).
void attend_window(const LocalHeads& local, int64_t rows, int64_t end, const float* hidden, float* mixed, int threads) {
    int64_t width = local.out.dim, head_dim = width / local.heads, first = end - local.size;
    for (int64_t r = 0; r < rows; ++r) {
        int64_t place = r * local.slots + end;
        std::copy_n(hidden + (3 * r + 1) * width, width, local.tokens + place * width);
        std::copy_n(hidden + (3 * r + 2) * width, width, local.values + place * width);
        local.own[place] = 1;
    }
    glocal_attend(hidden, 3 * width, head_dim, 0, local.tokens + first * width, local.values + first * width,
           local.slots * width, head_dim, width, local.own + first, local.slots, nullptr, 0, mixed, rows, local.heads, 1, local.size + 1,
           head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim)), threads);
}

// The mixer of a block with local heads, which have the last channels of a token: x + mixer(in).
void mix(const Block& block, const Step& step, int64_t end, const float* in, float* hidden, float* x, int threads) {
    const LocalHeads& local = block.local;
    int64_t rows = step.rows, dim = step.dim, width = local.out.dim, near = local.out.out, far = dim - near;
    float* part = scratch<float, 4>(2 * rows * dim);
    float *near_out = part + rows * dim, *far_out = near_out + rows * near;
    auto take = [&](int64_t first, int64_t count) {
        for (int64_t r = 0; r < rows; ++r) std::copy_n(in + r * dim + first, count, part + r * count);
    };
    auto add = [&](const float* y, int64_t first, int64_t count) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < count; ++i) x[r * dim + first + i] += y[r * count + i];
    };
    float* mixed = hidden + rows * 3 * width;
    take(far, near);
    multiply(part, rows, local.into, NONE, false, hidden, threads);
    if (local.heads == 0)
        convolve(local, rows, end, hidden, mixed);
    else
        attend_window(local, rows, end, hidden, mixed, threads);
    multiply(mixed, rows, local.out, NONE, false, near_out, threads);
    if (far > 0) {
        take(0, far);
        attend_tokens(block, step, part, hidden, false, far_out, threads);
    }
    add(far_out, 0, far);  // after both were computed: `in` is x where the block is post-norm
    add(near_out, far, near);
}

void decode(const Block& block, const Step& step, int64_t end, float* x, int threads) {
    int64_t rows = step.rows, dim = step.dim, width = std::max(block.proj.dim, block.cross_proj.dim);
    float* normalised = scratch<float, 2>(rows * (dim + std::max({4 * width, 4 * block.local.out.dim, block.fc1.out})));
    float* hidden = normalised + rows * dim;

    residual(block.pre_norm, block.norm1, x, step, normalised, [&](const float* in) {
        if (block.local.out.out > 0)
            mix(block, step, end, in, hidden, x, threads);
        else
            attend_tokens(block, step, in, hidden, true, x, threads);
    });
    if (block.cross_heads > 0) {
        residual(block.pre_norm, block.norm_cross, x, step, normalised, [&](const float* in) {
            int64_t queries = rows / step.contexts;  // rows of one context stand together
            int64_t inner = block.cross_proj.dim, head_dim = inner / block.cross_heads;
            float* mixed = hidden + rows * inner;
            multiply(in, rows, block.cross_q, NONE, false, hidden, threads);
            glocal_attend(hidden, queries * inner, head_dim, inner, block.cross_keys, block.cross_values, block.cross_batch,
                   block.cross_head, block.cross_key, step.context_mask, step.context_length, nullptr, 0, mixed, step.contexts,
                   block.cross_heads, queries, step.context_length, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim)),
                   threads);
            multiply(mixed, rows, block.cross_proj, NONE, true, x, threads);
        });
    }
    residual(block.pre_norm, block.norm2, x, step, normalised, [&](const float* in) {
        multiply(in, rows, block.fc1, static_cast<Activation>(block.activation), false, hidden, threads);
        multiply(hidden, rows, block.fc2, NONE, true, x, threads);
    });
}

// The tokens of a batch, which pass one block without a cache.
struct Batch {
    int64_t batch, tokens, queries, dim;  // the first `queries` tokens of each row are computed
    int64_t causal;
    const uint8_t* mask;  // (batch, tokens), 1 where a token is no padding, or null
};

// x (batch, tokens, dim) through a block with global heads; y is (batch, queries, dim).
void encode(const Block& block, const Batch& batch, const float* x, float* y, int threads) {
    int64_t tokens = batch.tokens, dim = batch.dim, width = block.proj.dim, head_dim = width / block.heads;
    int64_t rows = batch.batch * tokens, out_rows = batch.batch * batch.queries;
    float* normalised = scratch<float, 2>(rows * dim + std::max(rows * 4 * width, out_rows * block.fc1.out));
    float *hidden = normalised + rows * dim, *mixed = hidden + rows * 3 * width;

    if (block.pre_norm) normalise(x, rows, dim, block.norm1, normalised, threads);
    multiply(block.pre_norm ? normalised : x, rows, block.qkv, NONE, false, hidden, threads);
    glocal_attend(hidden, tokens * 3 * width, head_dim, 3 * width, hidden + width, hidden + 2 * width, tokens * 3 * width, head_dim,
                  3 * width, batch.mask, tokens, nullptr, batch.causal, mixed, batch.batch, block.heads, batch.queries, tokens,
                  head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim)), threads);
    for (int64_t b = 0; b < batch.batch; ++b)
        std::copy_n(x + b * tokens * dim, batch.queries * dim, y + b * batch.queries * dim);
    multiply(mixed, out_rows, block.proj, NONE, true, y, threads);
    if (!block.pre_norm) normalise(y, out_rows, dim, block.norm1, y, threads);

    if (block.pre_norm) normalise(y, out_rows, dim, block.norm2, normalised, threads);
    multiply(block.pre_norm ? normalised : y, out_rows, block.fc1, static_cast<Activation>(block.activation), false, hidden, threads);
    multiply(hidden, out_rows, block.fc2, NONE, true, y, threads);
    if (!block.pre_norm) normalise(y, out_rows, dim, block.norm2, y, threads);
}

}  // namespace

extern "C" {

void glocal_encode(const Block* block, const Batch* batch, const float* x, float* y, int threads) {
    encode(*block, *batch, x, y, threads);
}

void glocal_linear(const float* x, int64_t rows, const Layer* layer, const float* bias, int activation, float* y,
                   int threads) {
    Layer with_bias = *layer;
    with_bias.bias = bias;
    multiply(x, rows, with_bias, static_cast<Activation>(activation), false, y, threads);
}

// A token through a stack of decoder blocks: x (rows, dim) is refined in place, and remembered in the caches.
void glocal_decode(const Block* blocks, int64_t count, const Step* step, float* x, int threads) {
    for (int64_t i = 0; i < count; ++i) decode(blocks[i], *step, step->ends[i], x, threads);
}

}  // extern "C"
