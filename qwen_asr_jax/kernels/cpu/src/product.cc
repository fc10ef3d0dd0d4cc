#include "product.h"

namespace qwen_asr {

namespace {

// A block of weights: `rows` rows from `column` on, of each the bytes from `at` to `at + size`.
struct Block {
  const uint8_t* first;
  int64_t stride, rows, size;

  // Fetches the part of it that falls to one of `parts`.
  void Fetch(int64_t part, int64_t parts) const {
    constexpr int64_t kLine = 64;
    const int64_t lines = (size + kLine - 1) / kLine;
    for (int64_t i = rows * lines * part / parts; i < rows * lines * (part + 1) / parts; ++i) {
      __builtin_prefetch(first + i / lines * stride + i % lines * kLine, 0, 2);
    }
  }
};

Block BlockOf(const Kernels& kernels, Type weights, const Matrix& m, int64_t column, int64_t k, int64_t depth) {
  const int64_t size = static_cast<int64_t>(SizeOf(weights)), rows = std::min(kernels.panel, m.rows - column);
  if (rows <= 0) return {nullptr, 0, 0, 0};
  return {m.Row(weights, column) + k * size, m.cols * size, rows, std::min(depth, m.cols - k) * size};
}

}  // namespace

void MultiplyPiece(const Kernels& kernels, const Matrix& m, const PackedRows& x, const ProductPiece& p, const Matrix& next,
                   int64_t next_column, Buffer<uint8_t>& panel, Buffer<float>& sums) {
  const Type weights = x.weights(), packed = kernels.packed_type(weights);
  const int64_t size = static_cast<int64_t>(SizeOf(packed)), tiles = p.end_tile - p.first_tile;
  panel.Reset(kernels.panel * (x.block() + 1) * size);
  sums.Reset(p.rows * kernels.panel);
  for (int64_t k = 0; k < m.cols; k += x.block()) {
    const int64_t step = std::min(x.block(), m.cols - k);
    const bool last = k + step >= m.cols;
    const Block following = last ? BlockOf(kernels, weights, next, next_column, 0, x.block())
                                 : BlockOf(kernels, weights, m, p.column, k + step, x.block());
    kernels.pack_rows(weights, m.Row(weights, p.column) + k * static_cast<int64_t>(SizeOf(weights)), m.cols, p.columns, step,
                      panel.data());
    for (int64_t tile = p.first_tile; tile < p.end_tile; ++tile) {
      following.Fetch(tile - p.first_tile, tiles);
      kernels.multiply(packed, x.Tile(tile, k), x.Rows(tile), step, panel.data(),
                       sums.data() + (x.Begin(tile) - p.row) * kernels.panel, kernels.panel, k > 0);
    }
  }
}

}  // namespace qwen_asr
