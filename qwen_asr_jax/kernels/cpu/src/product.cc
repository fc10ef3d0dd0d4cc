#include "product.h"

namespace qwen_asr {

void MultiplyPiece(const Kernels& kernels, const Matrix& m, const PackedRows& x, const ProductPiece& p, Buffer<uint8_t>& panel,
                   Buffer<float>& sums) {
  const Type weights = x.weights(), packed = kernels.packed_type(weights);
  const int64_t size = static_cast<int64_t>(SizeOf(packed));
  panel.Reset(kernels.panel * (x.block() + 1) * size);
  sums.Reset(p.rows * kernels.panel);
  for (int64_t k = 0; k < m.cols; k += x.block()) {
    const int64_t step = std::min(x.block(), m.cols - k);
    kernels.pack_rows(weights, m.Row(weights, p.column) + k * static_cast<int64_t>(SizeOf(weights)), m.cols, p.columns, step,
                      panel.data());
    for (int64_t tile = p.first_tile; tile < p.end_tile; ++tile) {
      kernels.multiply(packed, x.Tile(tile, k), x.Rows(tile), step, panel.data(),
                       sums.data() + (x.Begin(tile) - p.row) * kernels.panel, kernels.panel, k > 0);
    }
  }
}

}  // namespace qwen_asr
