// Convolution of one image as an implicit GEMM: a matrix product whose left matrix (im2col) is never written to memory.
// A row of it is the patch of the image under the filters at one output pixel, and is read where it lies. The right
// matrix, the filters, is packed, so that whole vectors of it lie side by side.
//
// A tile of the result, R rows by V vectors of LANES floats, stays in registers while the inner dimension k runs:
//
//                    w[k]: V vectors, loaded once per k
//                       +---------+---------+
//     x[0][k]  ------>  | s[0][0] | s[0][1] |
//     x[1][k]  ------>  | s[1][0] | s[1][1] |      s[r][v] += x[r][k] * w[k][v], x[r][k] in all lanes
//     x[2][k]  ------>  | s[2][0] | s[2][1] |      R * V <= TILE
//                       +---------+---------+
//
//   gradient of   rows of a tile (R)                  vectors of a tile (V)               inner dimension (k)
//   (forward)     output pixels of a line             filters                             weights of a filter
//   filters       LINES x LINE weights of a filter    filters                             output pixels
//   images        output pixels of a line             weights of a filter's line, KW * C  filters
#include "kernels.h"

#if defined(__AVX512F__)
enum { TILE = 28 };  // vectors of a tile, of 32 registers
#else
enum { TILE = 12 };
#endif

// The least number of nearly equal parts, none longer than `most`, and the length of the longest.
constexpr int parts(int whole, int most) { return (whole + most - 1) / most; }
constexpr int part(int whole, int most) { return (whole + parts(whole, most) - 1) / parts(whole, most); }

// to[j][i] = from[i][j]
static void transpose(const float* from, size rows, size columns, size stride, float* to, size to_stride) {
  size i = 0;
  for (; i + LANES <= rows; i += LANES) {
    size j = 0;
    for (; j + LANES <= columns; j += LANES)
      transpose_block(from + i * stride + j, stride, to + j * to_stride + i, to_stride);
    for (; j < columns; j++)
      for (size r = i; r < i + LANES; r++) to[j * to_stride + r] = from[r * stride + j];
  }
  for (; i < rows; i++)
    for (size j = 0; j < columns; j++) to[j * to_stride + i] = from[i * stride + j];
}

// C channels of H x W pixels, padding included; O filters of KH x KW with strides SH and SW. Images, filters and results
// lie as torch has them, pixels innermost (CHW); scratch memory has filters or channels innermost, in whole vectors.
template <int C, int H, int W, int O, int KH, int KW, int SH, int SW> struct Convolution {
  enum {
    OH = (H - KH) / SH + 1, OW = (W - KW) / SW + 1, PIXELS = OH * OW,
    FILTER = C * KH * KW,
    VECTORS = (O + LANES - 1) / LANES, WIDTH = VECTORS * LANES,  // all filters of a pixel
    LINE_VECTORS = (KW * C + LANES - 1) / LANES,                 // a line of a filter, all channels
    MOST = OW <= TILE / 4 ? 4 : OW <= TILE / 3 ? 3 : 2,          // most vectors of a tile
    ROWS_OF_TILE = part(OW, TILE / MOST),
  };

  // --- Forward -------------------------------------------------------------------------------------------------------

  enum { FORWARD = part(VECTORS, MOST) };  // vectors of a tile

  // Packing: filters as [block of FORWARD vectors][FILTER][vectors], zeros on the right.
  static void pack_forward(const float* weights, float* to) {
    for (int v = 0; v < VECTORS; v += FORWARD) {
      int width = (VECTORS - v < FORWARD ? VECTORS - v : FORWARD) * LANES;
      int there = O - v * LANES < width ? O - v * LANES : width;
      pack(weights + v * LANES * FILTER, 1, FILTER, FILTER, there, width, to);
      to += FILTER * width;
    }
  }

  template <int R, int V> static void forward_tile(const float* x, const float* w, const float* bias, float* y) {
    Vector sums[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[r][v] = *(const Vector*)(bias + v * LANES);
    for (int c = 0; c < C; c++)
      for (int h = 0; h < KH; h++) {
        const float* line = x + (c * H + h) * W;
#pragma GCC unroll 8
        for (int k = 0; k < KW; k++, w += V * LANES) {
          Vector right[V];
#pragma GCC unroll 4
          for (int v = 0; v < V; v++) right[v] = *(const Vector*)(w + v * LANES);
#pragma GCC unroll 16
          for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] += line[r * SW + k] * right[v];
        }
      }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) *(Vector*)(y + r * WIDTH + v * LANES) = sums[r][v];
  }

  template <int V> static void forward_columns(const float* x, const float* w, const float* bias, float* y) {
    for (int h = 0; h < OH; h++) {
      constexpr int tiles = parts(OW, ROWS_OF_TILE), whole = OW / tiles, longer = OW % tiles;
      int column = 0;
      for (int i = 0; i < tiles; i++) {
        const float* at = x + h * SH * W + column * SW;
        float* to = y + (h * OW + column) * WIDTH;
        if (longer && i < longer) forward_tile<whole + (longer > 0), V>(at, w, bias, to);
        else forward_tile<whole, V>(at, w, bias, to);
        column += whole + (i < longer);
      }
    }
  }

  // y[O][PIXELS] from x[C][H][W]; `room` is scratch memory of PIXELS * WIDTH floats.
  static void forward(const float* x, const float* packed, const float* bias, float* y, float* room) {
    constexpr int rest = VECTORS % FORWARD;
    int v = 0;
    for (; v + FORWARD <= VECTORS; v += FORWARD, packed += FILTER * FORWARD * LANES)
      forward_columns<FORWARD>(x, packed, bias + v * LANES, room + v * LANES);
    if constexpr (rest > 0) forward_columns<rest>(x, packed, bias + v * LANES, room + v * LANES);
    transpose(room, PIXELS, O, WIDTH, y, PIXELS);
  }

  // --- Gradient of the filters ---------------------------------------------------------------------------------------

  // A tile has LINES x LINE rows, weights of a filter, and GRADIENT vectors.
  enum {
    LINE = part(KW, TILE / 2), LINES = LINE < KW ? 1 : part(KH, TILE / 2 / KW),
    GRADIENT = part(VECTORS, TILE / (LINE * LINES) > 4 ? 4 : TILE / (LINE * LINES)),
    // Cache blocking: output lines whose gradient fits 24 KiB of the first-level cache.
    STRIPE = part(OH, 24576 / (4 * OW * WIDTH) ? 24576 / (4 * OW * WIDTH) : 1),
  };

  template <int L, int R, int V> static void gradient_tile(const float* x, const float* dy, int lines, float* dw) {
    Vector sums[L * R][V];
#pragma GCC unroll 16
    for (int r = 0; r < L * R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[r][v] = *(const Vector*)(dw + (r / R * KW + r % R) * WIDTH + v * LANES);
    for (int h = 0; h < lines; h++) {
      const float* line = x + h * SH * W;
      for (int i = 0; i < OW; i++, dy += WIDTH, line += SW) {
        Vector right[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) right[v] = *(const Vector*)(dy + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < L * R; r++)
#pragma GCC unroll 4
          for (int v = 0; v < V; v++) sums[r][v] += line[r / R * W + r % R] * right[v];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < L * R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) *(Vector*)(dw + (r / R * KW + r % R) * WIDTH + v * LANES) = sums[r][v];
  }

  template <int L, int R> static void gradient_rows(const float* x, const float* dy, int lines, float* dw) {
    constexpr int rest = VECTORS % GRADIENT;
    int v = 0;
    for (; v + GRADIENT <= VECTORS; v += GRADIENT)
      gradient_tile<L, R, GRADIENT>(x, dy + v * LANES, lines, dw + v * LANES);
    if constexpr (rest > 0) gradient_tile<L, R, rest>(x, dy + v * LANES, lines, dw + v * LANES);
  }

  template <int L> static void gradient_lines(const float* x, const float* dy, int lines, float* dw) {
    constexpr int rest = KW % LINE;
    int k = 0;
    for (; k + LINE <= KW; k += LINE) gradient_rows<L, LINE>(x + k, dy, lines, dw + k * WIDTH);
    if constexpr (rest > 0) gradient_rows<L, rest>(x + k, dy, lines, dw + k * WIDTH);
  }

  // Adds to dw[FILTER][WIDTH], from x[C][H][W] and dy[PIXELS][WIDTH].
  static void weight_gradient(const float* x, const float* dy, float* dw) {
    constexpr int rest = KH % LINES;
    for (int begin = 0; begin < OH; begin += STRIPE) {
      int lines = OH - begin < STRIPE ? OH - begin : STRIPE;
      for (int c = 0; c < C; c++) {
        const float* at = x + (c * H + begin * SH) * W;
        int h = 0;
        for (; h + LINES <= KH; h += LINES)
          gradient_lines<LINES>(at + h * W, dy + begin * OW * WIDTH, lines, dw + (c * KH + h) * KW * WIDTH);
        if constexpr (rest > 0)
          gradient_lines<rest>(at + h * W, dy + begin * OW * WIDTH, lines, dw + (c * KH + h) * KW * WIDTH);
      }
    }
  }

  // Adds to db[O], from dy[O][PIXELS].
  static void bias_gradient(const float* dy, float* db) {
    for (int o = 0; o < O; o++) {
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int i = 0; i < PIXELS; i++) sum += dy[o * PIXELS + i];
      db[o] += sum;
    }
  }

  // --- Gradient of the images ----------------------------------------------------------------------------------------

  enum { BACKWARD = part(LINE_VECTORS, MOST) };  // vectors of a tile

  // Packing: filters as [KH][block of BACKWARD vectors of a line, channels innermost][O][vectors].
  static void pack_backward(const float* weights, float* to) {
    for (int h = 0; h < KH; h++)
      for (int v = 0; v < LINE_VECTORS; v += BACKWARD) {
        int width = (LINE_VECTORS - v < BACKWARD ? LINE_VECTORS - v : BACKWARD) * LANES;
        for (int o = 0; o < O; o++, to += width)
          for (int j = 0; j < width; j++) {
            int at = v * LANES + j;
            to[j] = at < KW * C ? weights[((o * C + at % C) * KH + h) * KW + at / C] : 0.f;
          }
      }
  }

  template <int R, int V> static void image_tile(const float* dy, const float* w, float* dx) {
    Vector sums[R][V] = {};
    for (int o = 0; o < O; o++, dy += PIXELS, w += V * LANES) {
      Vector right[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) right[v] = *(const Vector*)(w + v * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] += dy[r] * right[v];
    }
    // In order, as the patches of neighbouring pixels overlap.
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) *(Vector*)(dx + r * SW * C + v * LANES) += sums[r][v];
  }

  template <int V> static void image_columns(const float* dy, const float* w, float* dx) {
    for (int h = 0; h < OH; h++) {
      constexpr int tiles = parts(OW, ROWS_OF_TILE), whole = OW / tiles, longer = OW % tiles;
      int column = 0;
      for (int i = 0; i < tiles; i++) {
        const float* at = dy + h * OW + column;
        float* to = dx + (h * SH * W + column * SW) * C;
        if (longer && i < longer) image_tile<whole + (longer > 0), V>(at, w, to);
        else image_tile<whole, V>(at, w, to);
        column += whole + (i < longer);
      }
    }
  }

  // `room`, scratch memory of [H][W][C] floats and LANES more, from dy[O][PIXELS].
  static void image_gradient(const float* dy, const float* packed, float* room) {
    for (int i = 0; i < H * W * C + LANES; i++) room[i] = 0;
    constexpr int rest = LINE_VECTORS % BACKWARD;
    for (int h = 0; h < KH; h++) {
      int v = 0;
      for (; v + BACKWARD <= LINE_VECTORS; v += BACKWARD, packed += O * BACKWARD * LANES)
        image_columns<BACKWARD>(dy, packed, room + h * W * C + v * LANES);
      if constexpr (rest > 0) {
        image_columns<rest>(dy, packed, room + h * W * C + v * LANES);
        packed += O * rest * LANES;
      }
    }
  }
};
