#include "product.h"

namespace qwen_asr {

namespace {

// A packed panel of this size stays in the first cache while all tiles pass it.
constexpr int64_t kPanelBytes = 32 << 10;

}  // namespace

void MultiplyPiece(const Kernels& kernels, const Matrix& m, const PackedRows& x, const ProductPiece& p, Buffer<uint8_t>& panel,
                   Buffer<float>& sums) {
  const Type weights = x.weights(), packed = kernels.packed_type(weights);
  const int64_t size = static_cast<int64_t>(SizeOf(packed)), most = kPanelBytes / (kernels.panel * size);
  const int64_t blocks = (m.cols + most - 1) / most;
  const int64_t depth = ((m.cols + blocks - 1) / blocks + 1) / 2 * 2;
  panel.Reset(kernels.panel * depth * size);
  sums.Reset(p.rows * kernels.panel);
  for (int64_t k = 0; k < m.cols; k += depth) {
    const int64_t step = std::min(depth, m.cols - k);
    kernels.pack_rows(weights, m.Row(weights, p.column) + k * static_cast<int64_t>(SizeOf(weights)), m.cols, p.columns, step,
                      panel.data());
    for (int64_t tile = p.first_tile; tile < p.end_tile; ++tile) {
      kernels.multiply(packed, x.Tile(tile, k), x.Rows(tile), step, panel.data(),
                       sums.data() + (x.Begin(tile) - p.row) * kernels.panel, kernels.panel, k > 0);
    }
  }
}

}  // namespace qwen_asr
