// The library of generated functions: elementary functions that the compiler vectorizes, and matrix products (GEMM).
//
// It includes no standard header, as parsing one takes longer than compiling all this.

typedef unsigned char uint8;
typedef long long int64;
typedef __SIZE_TYPE__ size;

#define INLINE static inline __attribute__((always_inline))
// Not "static const": GCC 12 miscompiles copies of some with -O2 (for AVX-512: {1, 1, 1, 0, 0, 0, 0, 0} as eight ones).
#define CONSTANT __attribute__((visibility("hidden")))

// --- Elementary functions --------------------------------------------------------------------------------------------

INLINE float bits_to_float(int bits) { return __builtin_bit_cast(float, bits); }
INLINE int float_to_bits(float x) { return __builtin_bit_cast(int, x); }

// Range reduction: e^x = 2^n e^r with |r| <= ln(2) / 2. Returns e^r - 1 by its Taylor series, up to the last bit.
INLINE float exp_parts(float x, float& n) {
  n = __builtin_rintf(x * 1.44269504f);
  float r = x - n * 0.693145752f;  // the high bits of ln(2), so that the product is exact
  r = r - n * 1.42860677e-6f;      // the low bits
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  return p * r * r + r;
}

INLINE float exp_of(float x) {
  x = x > 89.f ? 89.f : x;  // beyond, the result is infinite or zero; NaN propagates
  x = x < -104.f ? -104.f : x;
  float n;
  float p = exp_parts(x, n);
  int k = (int)n, half = k >> 1;  // two factors, as 2^n may overflow where e^x does not
  return (1.f + p) * bits_to_float((half + 127) << 23) * bits_to_float((k - half + 127) << 23);
}

// e^x - 1 without cancellation near zero.
INLINE float expm1_of(float x) {
  x = x > 89.f ? 89.f : x;  // infinite
  x = x < -40.f ? -40.f : x;  // -1
  float n;
  float p = exp_parts(x, n);
  // 2^128 overflows where the result need not.
  float factor = n > 127.f ? 2.f : 1.f;
  float power = bits_to_float(((int)n - (n > 127.f) + 127) << 23);
  return (power * p + (power - 1.f / factor)) * factor;
}

// expm1_of for x <= 0.
INLINE float expm1_of_negative(float x) {
  x = x < -40.f ? -40.f : x;
  float n;
  float p = exp_parts(x, n);
  float power = bits_to_float(((int)n + 127) << 23);
  return power * p + (power - 1.f);
}

INLINE float tanh_of(float x) {
  float e = expm1_of_negative(-2.f * __builtin_fabsf(x));
  return __builtin_copysignf(-e / (e + 2.f), x);
}

INLINE float sigmoid_of(float x) { return 1.f / (1.f + exp_of(-x)); }

// x = 2^e m with m around 1; log(m) = 2 artanh((m - 1) / (m + 1)) by its series.
INLINE float log_of(float x) {
  bool small = x < 1.17549435e-38f;
  int bits = float_to_bits(small ? x * 8388608.f : x);
  int exponent = (bits - 0x3f3504f3) >> 23;  // of sqrt(1/2)
  float m = bits_to_float(bits - (exponent << 23));
  float e = (float)(small ? exponent - 23 : exponent);
  float s = (m - 1.f) / (m + 1.f), square = s * s;
  float series = square * (1.f / 3 + square * (1.f / 5 + square * (1.f / 7 + square * (1.f / 9))));
  float result = e * 0.693145752f + (2.f * s + (2.f * s * series + e * 1.42860677e-6f));
  result = x == __builtin_inff() ? x : result;
  result = x == 0.f ? -__builtin_inff() : result;
  return x < 0.f || x != x ? __builtin_nanf("") : result;
}

// As in torch, NaN propagates.
template <class T> INLINE T maximum(T a, T b) { return a > b || a != a ? a : b; }
template <class T> INLINE T minimum(T a, T b) { return a < b || a != a ? a : b; }
template <class T> INLINE T absolute(T x) { return x < 0 ? -x : x; }
INLINE float absolute(float x) { return __builtin_fabsf(x); }
template <class T> INLINE T square(T x) { return x * x; }
template <class T> INLINE T relu(T x) { return x < 0 ? 0 : x; }
template <class T> INLINE T sign(T x) { return (T)((x > 0) - (x < 0)); }

// Integer power, which wraps around as torch's.
INLINE int64 power(int64 x, int exponent) {
  size result = 1, factor = (size)x;
  for (; exponent; exponent >>= 1, factor *= factor)
    if (exponent & 1) result *= factor;
  return (int64)result;
}

// --- Matrix products -------------------------------------------------------------------------------------------------

// LANES floats of a vector; a register tile has up to ROWS rows of two vectors, or 4 by DOTS dot products.

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 14, DOTS = 4 };  // 28 of 32 registers
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 6, DOTS = 2 };
#else
enum { LANES = 4, ROWS = 6, DOTS = 2 };
#endif
enum { DEPTH = 256 };  // cache blocking: a panel, DEPTH rows of two vectors, fits the first-level cache
enum { PACKED = 3 };  // packing pays if so many tiles read the panel, or where rows are not contiguous

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int Lanes __attribute__((vector_size(4 * LANES)));

// The numbers of the lanes: a constant, also for GCC, which does not see one in lanes that are written one by one.
#if defined(__AVX512F__)
#define NUMBERS (Lanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#elif defined(__AVX__)
#define NUMBERS (Lanes{0, 1, 2, 3, 4, 5, 6, 7})
#else
#define NUMBERS (Lanes{0, 1, 2, 3})
#endif

// Lanes of two vectors by their indices, which are constants once loops are unrolled.
#if defined(__clang__)
INLINE Vector shuffle(Vector first, Vector second, Lanes numbers) {
  Vector result;
  for (int i = 0; i < LANES; i++) result[i] = numbers[i] < LANES ? first[numbers[i]] : second[numbers[i] - LANES];
  return result;
}
#else
#define shuffle __builtin_shuffle
#endif

// Transposes a block of LANES x LANES in registers, by log2(LANES) rounds of shuffles.
INLINE void transpose_block(const float* from, size stride, float* to, size to_stride) {
  Vector rows[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) rows[i] = *(const Vector*)(from + i * stride);
#pragma GCC unroll 4
  for (int step = 1; step < LANES; step *= 2) {
    Lanes of_second = (NUMBERS & step) != 0;  // -1 where it is true
    Lanes upper = NUMBERS + (of_second & (LANES - step)), lower = upper + step;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
      if (i & step) continue;
      Vector first = rows[i], second = rows[i | step];
      rows[i] = shuffle(first, second, upper);
      rows[i | step] = shuffle(first, second, lower);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) *(Vector*)(to + i * to_stride) = rows[i];
}

// Packing: `depth` rows and `width` columns of the right matrix, as contiguous rows of `padded` columns.
static void pack(const float* b, size row, size column, size depth, size width, size padded, float* to) {
  size whole = 0;
  if (column != 1 && row == 1 && width == padded)
    for (; whole + LANES <= depth; whole += LANES)
      for (size j = 0; j < width; j += LANES)
        transpose_block(b + whole + j * column, column, to + whole * padded + j, padded);
  for (size k = whole; k < depth; k++) {
    const float* from = b + k * row;
    float* line = to + k * padded;
    if (column == 1 && width == padded)
      for (size j = 0; j < padded; j += LANES) *(Vector*)(line + j) = *(const Vector*)(from + j);
    else
      for (size j = 0; j < padded; j++) line[j] = j < width ? from[j * column] : 0.f;
  }
}

struct Tile {
  const float *a, *b, *start;  // start: what the product is added to, if anything
  size a_row, a_column, b_row, start_row, depth;
  float* c;
  size c_row;
};

// Clang keeps a tile in registers only if it is a function of its own; GCC does anyway, and inlining saves the call.
#if defined(__clang__)
#define TILE_FUNCTION __attribute__((noinline)) static
#else
#define TILE_FUNCTION static
#endif

// Register tile: R rows by V vectors of the result stay in registers while the inner dimension runs.
template <int R, int V> TILE_FUNCTION void multiply_tile(const Tile& t) {
  Vector sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++)
      sums[r][v] = t.start ? *(const Vector*)(t.start + r * t.start_row + v * LANES) : Vector{};
  const float *a = t.a, *b = t.b;
  for (size k = 0; k < t.depth; k++, a += t.a_column, b += t.b_row) {
    Vector right[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) right[v] = *(const Vector*)(b + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sums[r][v] += a[r * t.a_row] * right[v];
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) *(Vector*)(t.c + r * t.c_row + v * LANES) = sums[r][v];
}

template <int R, int V> INLINE void multiply_rows(int rows, const Tile& tile) {
  if (rows == R) multiply_tile<R, V>(tile);
  else if constexpr (R > 1) multiply_rows<R - 1, V>(rows, tile);
}

// GEMM with packing, cache blocking and register tiles: c[m][n] = start[m][n] + sum over k of a[m][k] b[k][n]. All
// matrices have strides, but c is contiguous. `panel` is scratch memory of DEPTH * 2 * LANES floats, for packed b.
static void multiply(size m, size n, size k, const float* a, size a_row, size a_column, const float* b, size b_row,
                     size b_column, const float* start, size start_row, size start_column, float* c, float* panel) {
  float edge[ROWS * 2 * LANES];  // a tile across the right edge
  size tiles = (m + ROWS - 1) / ROWS;
  for (size depth = 0; depth < k; depth += DEPTH)
    for (size column = 0; column < n; column += 2 * LANES) {
      size width = n - column < 2 * LANES ? n - column : 2 * LANES, padded = width > LANES ? 2 * LANES : LANES;
      size part = k - depth < DEPTH ? k - depth : DEPTH;
      const float* right = b + depth * b_row + column * b_column;
      bool in_place = b_column == 1 && width == padded && tiles < PACKED;
      if (!in_place) pack(right, b_row, b_column, part, width, padded, panel);
      for (size i = 0; i < tiles; i++) {
        size row = i * m / tiles;
        int rows = (int)((i + 1) * m / tiles - row);
        float* result = c + row * n + column;
        const float* sum = start + row * start_row + column * start_column;
        size sum_row = start_row, sum_column = start_column;
        if (depth) sum = result, sum_row = n, sum_column = 1;
        bool added = start || depth, across = width < padded || (added && sum_column != 1);
        if (across && added)
          for (int r = 0; r < rows; r++)
            for (size j = 0; j < width; j++) edge[r * padded + j] = sum[r * sum_row + j * sum_column];
        Tile tile{a + row * a_row + depth * a_column, in_place ? right : panel, added ? across ? edge : sum : 0,
                  a_row, a_column, in_place ? b_row : padded, across ? padded : sum_row, part,
                  across ? edge : result, across ? padded : n};
        if (padded > LANES) multiply_rows<ROWS, 2>(rows, tile);
        else multiply_rows<ROWS, 1>(rows, tile);
        if (across)
          for (int r = 0; r < rows; r++)
            for (size j = 0; j < width; j++) result[r * n + j] = edge[r * padded + j];
      }
    }
}

INLINE float sum_of_lanes(Vector x) {
#pragma GCC unroll 4
  for (int half = LANES / 2; half; half /= 2) x += shuffle(x, x, NUMBERS ^ half);
  return x[0];
}

// Adds the dot products of R rows of a and S rows of b, contiguous and of length k, to c.
template <int R, int S>
static void multiply_rows_with_rows(size k, const float* a, size a_row, const float* b, size b_row, float* c,
                                    size c_row) {
  Vector sums[R][S] = {};
  size whole = k / LANES * LANES;
  for (size i = 0; i < whole; i += LANES) {
    Vector right[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; s++) right[s] = *(const Vector*)(b + s * b_row + i);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      Vector left = *(const Vector*)(a + r * a_row + i);
#pragma GCC unroll 4
      for (int s = 0; s < S; s++) sums[r][s] += left * right[s];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int s = 0; s < S; s++) {
      float sum = sum_of_lanes(sums[r][s]);
      for (size i = whole; i < k; i++) sum += a[r * a_row + i] * b[s * b_row + i];
      c[r * c_row + s] += sum;
    }
}

// GEMM by dot products, for few rows of a and contiguous long columns of b: packing b would cost more than it saves.
static void multiply_few(size m, size n, size k, const float* a, size a_row, const float* b, size b_column,
                         const float* start, size start_row, size start_column, float* c) {
  for (size i = 0; i < m; i++)
    for (size j = 0; j < n; j++) c[i * n + j] = start ? start[i * start_row + j * start_column] : 0.f;
  size j = 0;
  for (; j + 4 <= n; j += 4) {
    size i = 0;
    for (; i + 4 <= m; i += 4)
      for (size s = j; s < j + 4; s += DOTS)
        multiply_rows_with_rows<4, DOTS>(k, a + i * a_row, a_row, b + s * b_column, b_column, c + i * n + s, n);
    for (; i < m; i++)
      multiply_rows_with_rows<1, 4>(k, a + i * a_row, a_row, b + j * b_column, b_column, c + i * n + j, n);
  }
  for (; j < n; j++)
    for (size i = 0; i < m; i++)
      multiply_rows_with_rows<1, 1>(k, a + i * a_row, a_row, b + j * b_column, b_column, c + i * n + j, n);
}
