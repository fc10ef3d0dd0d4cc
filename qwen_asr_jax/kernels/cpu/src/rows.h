// Products of a weight matrix with a few vectors, cut into pieces that any thread can take.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_ROWS_H_
#define QWEN_ASR_JAX_KERNELS_CPU_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "product.h"
#include "scratch.h"

namespace qwen_asr {

// Bytes of weights per piece of work: small enough that a late or interrupted thread holds up little, and long enough that the
// counters cost nothing.
constexpr int64_t kPieceBytes = 64 << 10;

inline int64_t RowsPerPiece(Type weights, const Matrix& m) {
  return std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, m.cols * SizeOf(weights)));
}

inline int64_t Pieces(Type weights, const Matrix& m) {
  const int64_t rows = RowsPerPiece(weights, m);
  return (m.rows + rows - 1) / rows;
}

// Memory for `count` vectors prepared for one weight type.
class Operands {
 public:
  bool ready() const { return !operands_.empty(); }

  template <typename Fill>
  void Make(const Kernels& kernels, Type weights, int64_t batch, int64_t n, const Fill& fill) {
    const size_t size = (kernels.prepared_size(weights, n) + 63) / 64 * 64;
    bytes_.Reset(static_cast<int64_t>(size) * batch);
    x_.Reset(n);
    operands_.resize(batch);
    for (int64_t b = 0; b < batch; ++b) {
      fill(b, x_.data());
      operands_[b] = kernels.prepare(weights, x_.data(), n, bytes_.data() + b * size);
    }
  }

  const Operand* data() const { return operands_.data(); }

 private:
  Buffer<uint8_t> bytes_;
  Buffer<float> x_;
  std::vector<Operand> operands_;
};

inline void DotPiece(const Kernels& kernels, Type weights, const Matrix& m, int64_t piece, const Operand* x, int64_t batch, float* y,
              int64_t stride) {
  const int64_t per_piece = RowsPerPiece(weights, m);
  const int64_t begin = piece * per_piece, rows = std::min(per_piece, m.rows - begin);
  const auto* values = static_cast<const uint8_t*>(m.values) + begin * m.cols * SizeOf(weights);
  kernels.dot(weights, values, m.scales == nullptr ? nullptr : m.scales + begin, rows, m.cols, x, batch, y + begin, stride);
}

}  // namespace qwen_asr

#endif
