// Products of many vectors with a weight matrix, cut into pieces that any thread can take.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_PRODUCT_H_
#define QWEN_ASR_JAX_KERNELS_CPU_PRODUCT_H_

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "scratch.h"

namespace qwen_asr {

struct Matrix {
  const void* values;
  const float* scales;  // of int8 rows, else null
  int64_t rows;
  int64_t cols;

  const uint8_t* Row(Type type, int64_t row) const {
    return static_cast<const uint8_t*>(values) + row * cols * static_cast<int64_t>(SizeOf(type));
  }
};

// Up to so many vectors it is best to read the weights as they are, and beyond to pack them.
constexpr int64_t kFewRows = 8;

// Vectors packed for products with weights of one type: tiles of nearly equal heights, each with all of its depth.
class PackedRows {
 public:
  void Init(const Kernels& kernels, Type weights, int64_t rows, int64_t depth) {
    weights_ = weights;
    rows_ = rows;
    tiles_ = (rows + kernels.tile_rows - 1) / kernels.tile_rows;
    const Type packed = kernels.packed_type(weights);
    depth_ = packed == Type::kBF16 ? (depth + 1) / 2 * 2 : depth;
    size_ = static_cast<int64_t>(SizeOf(packed));
    data_.Reset(rows * depth_ * size_);
  }

  Type weights() const { return weights_; }
  int64_t tiles() const { return tiles_; }
  int64_t Begin(int64_t tile) const { return rows_ * tile / tiles_; }
  int64_t Rows(int64_t tile) const { return Begin(tile + 1) - Begin(tile); }
  uint8_t* Tile(int64_t tile) { return data_.data() + Begin(tile) * depth_ * size_; }
  // From value k on, which is even.
  const uint8_t* Tile(int64_t tile, int64_t k) const {
    return data_.data() + (Begin(tile) * depth_ + k * Rows(tile)) * size_;
  }

 private:
  Type weights_ = Type::kF32;
  int64_t rows_ = 0, tiles_ = 0, depth_ = 0, size_ = 0;
  Buffer<uint8_t> data_;
};

// What one thread needs while it works on products.
struct ProductScratch {
  Buffer<float> rows;
  Buffer<uint8_t> panel;
  Buffer<float> sums;
  Buffer<float> more_sums;
};

// Packs one tile from the vectors that `fill(row, x)` writes.
template <typename Fill>
void PackTile(const Kernels& kernels, PackedRows& to, int64_t tile, int64_t depth, ProductScratch& scratch, const Fill& fill) {
  const int64_t begin = to.Begin(tile), count = to.Rows(tile);
  scratch.rows.Reset(kernels.tile_rows * depth);
  const void* rows[16];
  for (int64_t i = 0; i < count; ++i) {
    float* x = scratch.rows.data() + i * depth;
    fill(begin + i, x);
    rows[i] = x;
  }
  kernels.pack_tile(to.weights(), Type::kF32, rows, count, depth, to.Tile(tile));
}

// A piece is one panel of weight rows and up to kTilesPerPiece tiles of vectors.
constexpr int64_t kTilesPerPiece = 64;

inline int64_t TileBlocks(const PackedRows& x) { return (x.tiles() + kTilesPerPiece - 1) / kTilesPerPiece; }

inline int64_t ProductPieces(const Kernels& kernels, const Matrix& m, const PackedRows& x) {
  return (m.rows + kernels.panel - 1) / kernels.panel * TileBlocks(x);
}

struct ProductPiece {
  int64_t column, columns;          // of the result, which are rows of the weights
  int64_t first_tile, end_tile;
  int64_t row, rows;                // of the vectors
};

inline ProductPiece PieceOf(const Kernels& kernels, const Matrix& m, const PackedRows& x, int64_t piece) {
  const int64_t blocks = TileBlocks(x), block = piece % blocks;
  ProductPiece p;
  p.column = piece / blocks * kernels.panel;
  p.columns = std::min(kernels.panel, m.rows - p.column);
  p.first_tile = x.tiles() * block / blocks;
  p.end_tile = x.tiles() * (block + 1) / blocks;
  p.row = x.Begin(p.first_tile);
  p.rows = x.Begin(p.end_tile) - p.row;
  return p;
}

// sums[i * panel + j] = the product of vector p.row + i with weight row p.column + j, without the rows' scales.
void MultiplyPiece(const Kernels& kernels, const Matrix& m, const PackedRows& x, const ProductPiece& p, Buffer<uint8_t>& panel,
                   Buffer<float>& sums);

// The whole of a piece; `write(row, sums, column, columns)` takes one row of it, and may change the sums.
template <typename Write>
void Multiply(const Kernels& kernels, const Matrix& m, const PackedRows& x, int64_t piece, ProductScratch& scratch,
              const Write& write) {
  const ProductPiece p = PieceOf(kernels, m, x, piece);
  MultiplyPiece(kernels, m, x, p, scratch.panel, scratch.sums);
  for (int64_t i = 0; i < p.rows; ++i) write(p.row + i, scratch.sums.data() + i * kernels.panel, p.column, p.columns);
}

inline const float* At(const float* values, int64_t i) { return values == nullptr ? nullptr : values + i; }

}  // namespace qwen_asr

#endif
